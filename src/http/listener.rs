//! A listener: accept, shake hands, serve HTTP/1.1 and HTTP/2, drain. Everything that a client can hold open has a limit.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use ::http::{Extensions, Request};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::tls::ServerTls;
use super::{Handler, PeerCertificates, RemoteAddr};
use crate::rt::{TaskGroup, limits};

/// Time for a TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Time for the header of a request, and for the next request on an idle HTTP/1.1 connection.
const HEADER_READ: Duration = Duration::from_secs(90);
/// A quiet HTTP/2 connection is asked whether it still lives.
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(15);
/// Streams on one HTTP/2 connection.
const STREAMS: u32 = 250;
/// Bytes that a client may send ahead on a stream and on a connection.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;
/// Pause after the system refuses to accept (out of file descriptors).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A bound socket.
#[derive(Debug)]
pub struct Listener {
    tcp: TcpListener,
    tls: Option<Arc<ServerTls>>,
}

impl Listener {
    /// Binds; port 0 takes a free one. Without `tls` it serves plain HTTP.
    ///
    /// # Errors
    /// Those of `bind(2)`: the port is taken, or the address is not this machine's.
    pub async fn bind(address: SocketAddr, tls: Option<Arc<ServerTls>>) -> io::Result<Self> {
        Ok(Self { tcp: TcpListener::bind(address).await?, tls })
    }

    /// The address that it is bound to.
    ///
    /// # Errors
    /// Those of `getsockname(2)`.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.tcp.local_addr()
    }

    /// Serves until the group is cancelled; then no connection is accepted, and those that stand finish what they began.
    /// Connections are tasks of the group.
    pub async fn serve(self, handler: Arc<dyn Handler>, tasks: TaskGroup) {
        let token = tasks.token();
        let slots = Arc::new(Semaphore::new(limits::CONNECTIONS));
        loop {
            let accepted = tokio::select! {
                () = token.cancelled() => return,
                accepted = self.tcp.accept() => accepted,
            };
            let (stream, remote) = match accepted {
                Ok(pair) => pair,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else {
                tracing::warn!(%remote, "too many connections; closing a new one");
                continue;
            };
            let (tls, handler, token) = (self.tls.clone(), Arc::clone(&handler), token.clone());
            let executor = GroupExecutor(tasks.clone());
            tasks.spawn(async move {
                serve_tcp(stream, remote, tls, handler, token, executor).await;
                drop(slot);
            });
        }
    }
}

async fn serve_tcp(
    stream: TcpStream,
    remote: SocketAddr,
    tls: Option<Arc<ServerTls>>,
    handler: Arc<dyn Handler>,
    token: CancellationToken,
    executor: GroupExecutor,
) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%remote, %error, "cannot set TCP_NODELAY");
    }
    match tls {
        Some(tls) => serve_tls(stream, remote, &tls, handler, token, executor).await,
        None => {
            let mut extensions = Extensions::new();
            extensions.insert(RemoteAddr(remote));
            serve_stream(stream, extensions, Protocol::Any, handler, token, executor).await;
        }
    }
}

/// Serves HTTP over TLS on a stream that is already there, as on an accepted one; `remote` is whoever is at its other end.
pub async fn serve_tls<S>(
    stream: S,
    remote: SocketAddr,
    tls: &ServerTls,
    handler: Arc<dyn Handler>,
    token: CancellationToken,
    executor: GroupExecutor,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut extensions = Extensions::new();
    extensions.insert(RemoteAddr(remote));
    let stream = match tokio::time::timeout(HANDSHAKE, tls.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%remote, %error, "TLS handshake failed"),
        Err(_) => return tracing::debug!(%remote, "TLS handshake took too long"),
    };
    let session = stream.get_ref().1;
    if let Some(chain) = session.peer_certificates() {
        let verified = tls.verify_peer(chain);
        extensions.insert(PeerCertificates { chain: chain.iter().map(|one| one.to_vec()).collect(), verified });
    }
    let protocol = if session.alpn_protocol() == Some(b"h2") { Protocol::Http2 } else { Protocol::Http1 };
    serve_stream(stream, extensions, protocol, handler, token, executor).await;
}

/// The protocol of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    Http1,
    Http2,
    /// Told by the first bytes.
    Any,
}

/// Spawns what hyper needs to run into a task group.
#[derive(Clone, Debug)]
pub struct GroupExecutor(pub TaskGroup);

impl<F> hyper::rt::Executor<F> for GroupExecutor
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, future: F) {
        self.0.spawn(async move {
            future.await;
        });
    }
}

fn builder(executor: GroupExecutor, protocol: Protocol) -> auto::Builder<GroupExecutor> {
    let mut builder = auto::Builder::new(executor);
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_READ).max_buf_size(limits::REQUEST_HEADER_BYTES);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(u32::try_from(limits::REQUEST_HEADER_BYTES).unwrap_or(u32::MAX))
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT);
    match protocol {
        Protocol::Http1 => builder.http1_only(),
        Protocol::Http2 => builder.http2_only(),
        Protocol::Any => builder,
    }
}

/// Serves HTTP on a stream that is already there (a tunnel, a test) until it ends, or until `token` and then the requests
/// that have begun.
pub async fn serve_stream<S>(
    stream: S,
    mut extensions: Extensions,
    protocol: Protocol,
    handler: Arc<dyn Handler>,
    token: CancellationToken,
    executor: GroupExecutor,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    handler.connected(&mut extensions);
    let service = service_fn(move |request: Request<Incoming>| {
        let (handler, extensions) = (Arc::clone(&handler), extensions.clone());
        async move {
            let mut request = request.map(|body| body.map_err(Into::into).boxed_unsync());
            request.extensions_mut().extend(extensions);
            Ok::<_, Infallible>(handler.handle(request).await)
        }
    });
    let builder = builder(executor, protocol);
    let mut connection = pin!(builder.serve_connection_with_upgrades(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = token.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection broke");
    }
}

#[cfg(test)]
mod tests;
