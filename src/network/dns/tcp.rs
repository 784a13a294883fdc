//! The TCP server (RFC 7766): for answers that are too long for UDP, and for clients that like it better.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::metrics::{Counters, Protocol};
use super::resolver::{Resolver, Step};
use super::zone::Scratch;
use crate::rt::{TaskGroup, clock, random};

/// Connections at one time; more wait.
const CONNECTIONS: usize = 512;
/// How long a connection may be silent, as CoreDNS has it, and an answer may take to be read.
const IDLE: Duration = Duration::from_secs(10);
/// Largest answer.
const LIMIT: usize = u16::MAX as usize;

/// Serves a socket until this is dropped, or the socket fails.
///
/// # Errors
/// Those of the socket.
pub(super) async fn serve(
    listener: TcpListener,
    resolver: Arc<Resolver>,
    counters: Arc<Counters>,
    tasks: TaskGroup,
) -> io::Result<()> {
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let permit = Arc::clone(&permits).acquire_owned().await.map_err(io::Error::other)?;
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            // The client is gone again, or there are too many files open: the next may do.
            Err(error) => {
                tracing::debug!(%error, "a connection was not accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (resolver, counters, token) = (Arc::clone(&resolver), Arc::clone(&counters), tasks.token());
        tasks.spawn(async move {
            if let Some(Err(error)) = token.run_until_cancelled(converse(stream, &resolver, &counters)).await {
                tracing::debug!(%error, "a connection ended");
            }
            drop(permit);
        });
    }
}

/// Answers one question after the other.
async fn converse(mut stream: TcpStream, resolver: &Resolver, counters: &Counters) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let (mut scratch, mut out) = (Scratch::new(random::below(u64::MAX)), Vec::new());
    let mut message = Vec::new();
    loop {
        let length = match timeout(IDLE, stream.read_u16()).await {
            Ok(Ok(length)) => length,
            Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Ok(Err(error)) => return Err(error),
            Err(_) => return Ok(()),
        };
        message.resize(length.into(), 0);
        timeout(IDLE, stream.read_exact(&mut message)).await??;
        let step = resolver.start(&resolver.index(), &message, Some(LIMIT), clock::instant(), &mut scratch, &mut out);
        let step = match step {
            Step::Ask(job) => resolver.finish(job, &mut scratch, &mut out).await,
            step => step,
        };
        let Step::Reply(qtype) = step else { continue };
        counters.count(Protocol::Tcp, qtype, &out);
        let length = u16::try_from(out.len()).map_err(io::Error::other)?;
        timeout(IDLE, stream.write_all(&[&length.to_be_bytes()[..], &out].concat())).await??;
    }
}
