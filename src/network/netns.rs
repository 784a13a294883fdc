//! Work inside the network namespace of a process. A thread that has changed its namespace is never used for anything else, so
//! each piece of work gets a thread of its own, never one of the runtime's.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

/// Time to connect to a port of a pod.
const CONNECT: Duration = Duration::from_secs(5);

/// Runs short, blocking work in the network namespace of a process. What it opens there stays there; the runtime is entered.
///
/// # Errors
/// When the process has gone, or the work failed.
pub(super) async fn within<T: Send + 'static>(pid: u32, work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    let runtime = Handle::current();
    let (sender, receiver) = oneshot::channel();
    std::thread::Builder::new().name("netns".to_owned()).spawn(move || {
        let _entered = runtime.enter();
        let result = enter(pid).and_then(|()| work());
        // Nobody waits any more if the caller was dropped.
        drop(sender.send(result));
    })?;
    receiver.await.map_err(io::Error::other)?
}

fn enter(pid: u32) -> io::Result<()> {
    let namespace = File::open(format!("/proc/{pid}/ns/net"))?;
    setns(namespace, CloneFlags::CLONE_NEWNET).map_err(io::Error::from)
}

/// Connects to a TCP port on the loopback interface of a pod, as `kubectl port-forward` means it.
///
/// # Errors
/// When nothing listens there, or the sandbox has gone.
pub async fn connect(sandbox_pid: u32, port: u16) -> io::Result<TcpStream> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let stream = within(sandbox_pid, move || std::net::TcpStream::connect_timeout(&address, CONNECT)).await?;
    stream.set_nonblocking(true)?;
    TcpStream::from_std(stream)
}
