//! The UDP server: a thread that takes questions and gives answers by the batch (`recvmmsg`, `sendmmsg`), so that a question costs
//! a fraction of two system calls. What needs the network goes to a task and is answered from there.

use std::io::{self, IoSlice, IoSliceMut, Write};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrStorage, recvmmsg, sendmmsg};
use tokio::sync::{mpsc, oneshot};

use super::metrics::{Counters, Protocol};
use super::resolver::{Job, Resolver, Step};
use super::zone::Scratch;
use crate::rt::{TaskGroup, clock, random};

/// Most questions of a batch.
const BATCH: usize = 32;
/// Longest question that is read: one name, and options of EDNS0.
const QUESTION: usize = 1_536;
/// Questions that wait for a task.
const WAITING: usize = 1_024;
/// Questions that wait for upstreams; beyond, the client asks again.
const ASKED: usize = 4_096;

/// A question that needs the network, and who asked.
type Asked = (Box<Job>, SockaddrStorage);

/// Serves a socket until this is dropped, or the socket fails.
///
/// # Errors
/// Those of the socket.
pub(super) async fn serve(
    socket: UdpSocket,
    resolver: Arc<Resolver>,
    counters: Arc<Counters>,
    tasks: TaskGroup,
) -> io::Result<()> {
    socket.set_nonblocking(true)?;
    let socket = Arc::new(socket);
    let (jobs, waiting) = mpsc::channel(WAITING);
    let (ended, end) = oneshot::channel();
    let (ours, theirs) = UnixStream::pair()?;
    let _wake = Wake(ours);
    let thread = Thread {
        socket: Arc::clone(&socket),
        stop: theirs,
        resolver: Arc::clone(&resolver),
        counters: Arc::clone(&counters),
        jobs,
    };
    std::thread::Builder::new().name("dns".to_owned()).spawn(move || {
        // Nobody waits any more if the caller was dropped.
        drop(ended.send(thread.run()));
    })?;
    tokio::select! {
        result = end => result.map_err(io::Error::other)?,
        () = answer_waiting(waiting, &socket, &resolver, &counters, &tasks) => Ok(()),
    }
}

/// Tells the thread to end.
struct Wake(UnixStream);

impl Drop for Wake {
    fn drop(&mut self) {
        // A thread that has gone has nothing to be told.
        self.0.write_all(&[0]).ok();
    }
}

async fn answer_waiting(
    mut waiting: mpsc::Receiver<Asked>,
    socket: &Arc<UdpSocket>,
    resolver: &Arc<Resolver>,
    counters: &Arc<Counters>,
    tasks: &TaskGroup,
) {
    let permits = Arc::new(tokio::sync::Semaphore::new(ASKED));
    while let Some((job, client)) = waiting.recv().await {
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
        let (socket, resolver, counters) = (Arc::clone(socket), Arc::clone(resolver), Arc::clone(counters));
        tasks.spawn(async move {
            let (mut scratch, mut out) = (Scratch::new(random::below(u64::MAX)), Vec::new());
            if let Step::Reply(qtype) = resolver.finish(job, &mut scratch, &mut out).await {
                counters.count(Protocol::Udp, qtype, &out);
                if let Err(error) = nix::sys::socket::sendto(socket.as_raw_fd(), &out, &client, MsgFlags::MSG_DONTWAIT) {
                    tracing::debug!(%error, "an answer was not sent");
                }
            }
            drop(permit);
        });
    }
}

struct Thread {
    socket: Arc<UdpSocket>,
    stop: UnixStream,
    resolver: Arc<Resolver>,
    counters: Arc<Counters>,
    jobs: mpsc::Sender<Asked>,
}

/// One batch's worth of buffers.
struct Buffers {
    questions: Vec<Vec<u8>>,
    answers: Vec<Vec<u8>>,
    /// Length and sender of each question.
    received: Vec<(usize, Option<SockaddrStorage>)>,
    /// Whom the first answers go to.
    clients: Vec<Option<SockaddrStorage>>,
}

impl Thread {
    /// Runs until it is told to stop.
    fn run(&self) -> io::Result<()> {
        let mut scratch = Scratch::new(random::below(u64::MAX));
        // Sending makes headers point to the clients' addresses, receiving to room for addresses: they cannot be shared.
        let mut incoming = MultiHeaders::<SockaddrStorage>::preallocate(BATCH, None);
        let mut outgoing = MultiHeaders::<SockaddrStorage>::preallocate(BATCH, None);
        let mut buffers = Buffers {
            questions: vec![vec![0; QUESTION]; BATCH],
            answers: vec![Vec::new(); BATCH],
            received: Vec::with_capacity(BATCH),
            clients: Vec::with_capacity(BATCH),
        };
        loop {
            match self.receive(&mut buffers, &mut incoming) {
                Ok(()) => {}
                Err(Errno::EAGAIN) => {
                    if self.wait()? {
                        return Ok(());
                    }
                    continue;
                }
                Err(Errno::EINTR) => continue,
                Err(error) => return Err(error.into()),
            }
            self.answer(&mut buffers, &mut scratch);
            self.send(&buffers, &mut outgoing);
        }
    }

    /// Waits for a question; true when it is time to stop.
    fn wait(&self) -> io::Result<bool> {
        let mut sources =
            [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN), PollFd::new(self.stop.as_fd(), PollFlags::POLLIN)];
        match poll(&mut sources, PollTimeout::NONE) {
            Ok(_) => Ok(sources[1].any().unwrap_or(true)),
            Err(Errno::EINTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn receive(&self, buffers: &mut Buffers, headers: &mut MultiHeaders<SockaddrStorage>) -> Result<(), Errno> {
        buffers.received.clear();
        let mut slices: Vec<[IoSliceMut<'_>; 1]> = buffers.questions.iter_mut().map(|buffer| [IoSliceMut::new(buffer)]).collect();
        let results = recvmmsg(self.socket.as_raw_fd(), headers, slices.iter_mut(), MsgFlags::MSG_DONTWAIT, None)?;
        buffers.received.extend(results.map(|message| (message.bytes, message.address)));
        Ok(())
    }

    fn answer(&self, buffers: &mut Buffers, scratch: &mut Scratch) {
        let (now, index) = (clock::instant(), self.resolver.index());
        buffers.clients.clear();
        for (question, (length, client)) in buffers.questions.iter().zip(&buffers.received) {
            let (Some(client), Some(message)) = (client, question.get(..*length)) else { continue };
            let out = &mut buffers.answers[buffers.clients.len()];
            let qtype = match self.resolver.start(&index, message, None, now, scratch, out) {
                Step::Reply(qtype) => qtype,
                Step::Silence => continue,
                Step::Ask(job) => match self.jobs.try_send((job, *client)) {
                    Ok(()) => continue,
                    Err(error) => {
                        let (job, _) = error.into_inner();
                        Resolver::overloaded(&job, out);
                        0
                    }
                },
            };
            self.counters.count(Protocol::Udp, qtype, out);
            buffers.clients.push(Some(*client));
        }
    }

    /// Sends the answers. One that cannot be sent is lost, as datagrams may be.
    fn send(&self, buffers: &Buffers, headers: &mut MultiHeaders<SockaddrStorage>) {
        let slices: Vec<[IoSlice<'_>; 1]> = buffers.answers.iter().map(|answer| [IoSlice::new(answer)]).collect();
        let mut sent = 0;
        while sent < buffers.clients.len() {
            let clients = &buffers.clients[sent..];
            let result = sendmmsg(self.socket.as_raw_fd(), headers, &slices[sent..], clients, [], MsgFlags::MSG_DONTWAIT);
            sent += match result.map(Iterator::count) {
                Ok(count) => count.max(1),
                Err(Errno::EINTR) => 0,
                Err(error) => {
                    tracing::debug!(%error, "an answer was not sent");
                    1
                }
            };
        }
    }
}

/// A socket at an address, with room for a burst.
///
/// # Errors
/// When the address is not ours or another has it.
pub(super) fn bind(address: SocketAddr) -> io::Result<UdpSocket> {
    const ROOM: usize = 1 << 20;
    let socket = UdpSocket::bind(address)?;
    for set in [
        nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::RcvBuf, &ROOM),
        nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::SndBuf, &ROOM),
    ] {
        if let Err(error) = set {
            tracing::debug!(%error, "the socket's buffers stay as they are");
        }
    }
    Ok(socket)
}
