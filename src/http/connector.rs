//! The client's side of HTTP: connections that are kept, HTTP/2 where the other side has it, HTTP/1.1 for upgrades.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ::http::{HeaderValue, Uri, Version, header};
use arc_swap::ArcSwap;
use async_trait::async_trait;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::listener::GroupExecutor;
use super::tls::ClientTls;
use super::{Body, BoxError, HttpRequest, HttpResponse, is_upgrade};
use crate::rt::TaskGroup;

/// Time to connect and to shake hands.
const CONNECT: Duration = Duration::from_secs(10);
/// A quiet HTTP/2 connection is asked whether it still lives, also while nothing but a watch runs on it.
const PING_INTERVAL: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(5);
/// Streams on one HTTP/2 connection before another is opened; below what servers allow (Kubernetes: 100).
const STREAMS: usize = 90;
/// HTTP/1.1 connections kept for one endpoint.
const IDLE_HTTP1: usize = 16;
/// Bytes that a server may send ahead.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 8 << 20;

/// Where to connect to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// Whether TLS is spoken.
    pub tls: bool,
    /// Name or address, without brackets.
    pub host: String,
    pub port: u16,
    /// The node that the way leads over; only the [`Dial`] knows what that means. Addresses of two nodes may be the same.
    pub via: Option<Arc<str>>,
}

impl Endpoint {
    /// An endpoint that is reached as any other host is.
    pub fn new(tls: bool, host: impl Into<String>, port: u16) -> Self {
        Self { tls, host: host.into(), port, via: None }
    }

    /// The endpoint of a URL (`https://host:port`, whatever path).
    ///
    /// # Errors
    /// When it is no URL of http or https.
    pub fn parse(url: &str) -> Result<Self, BoxError> {
        let uri: Uri = url.parse()?;
        let tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(format!("{url:?} begins with neither https:// nor http://").into()),
        };
        let host = uri.host().ok_or_else(|| format!("{url:?} names no host"))?.trim_matches(['[', ']']).to_owned();
        Ok(Self::new(tls, host, uri.port_u16().unwrap_or(if tls { 443 } else { 80 })))
    }

    /// `host:port`.
    pub fn authority(&self) -> String {
        if self.host.contains(':') { format!("[{}]:{}", self.host, self.port) } else { format!("{}:{}", self.host, self.port) }
    }
}

/// A stream of bytes, whatever carries it.
pub trait ByteStream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> ByteStream for S {}

/// How a connection to an endpoint is made.
#[async_trait]
pub trait Dial: Send + Sync + 'static {
    /// # Errors
    /// When the endpoint is not reached. It may take as long as it likes: the connector has a deadline.
    async fn dial(&self, to: &Endpoint) -> Result<Box<dyn ByteStream>, BoxError>;
}

/// Straight over TCP.
struct Direct;

#[async_trait]
impl Dial for Direct {
    async fn dial(&self, to: &Endpoint) -> Result<Box<dyn ByteStream>, BoxError> {
        Ok(Box::new(dial(&to.host, to.port).await?))
    }
}

/// A kept HTTP/2 connection, and how many streams are open on it.
#[derive(Clone)]
struct Shared {
    sender: http2::SendRequest<Body>,
    streams: Arc<AtomicUsize>,
}

#[derive(Default)]
struct Kept {
    http2: Vec<Shared>,
    http1: Vec<http1::SendRequest<Body>>,
}

enum Connection {
    Http2(Shared),
    Http1(http1::SendRequest<Body>),
}

/// Sends requests to any endpoint; connections are kept and shared.
pub struct Connector {
    tls: ArcSwap<ClientTls>,
    dialler: Arc<dyn Dial>,
    patience: Duration,
    kept: Mutex<HashMap<Endpoint, Kept>>,
    tasks: TaskGroup,
}

impl Connector {
    /// A connector whose connections are tasks of `tasks`.
    pub fn new(tls: ClientTls, tasks: TaskGroup) -> Self {
        Self::with_dial(tls, Arc::new(Direct), tasks)
    }

    /// As [`new`](Self::new), with another way of making connections.
    pub fn with_dial(tls: ClientTls, dialler: Arc<dyn Dial>, tasks: TaskGroup) -> Self {
        Self { tls: ArcSwap::from_pointee(tls), dialler, patience: CONNECT, kept: Mutex::default(), tasks }
    }

    /// The same with another time to connect and to shake hands.
    #[must_use]
    pub fn with_patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// Changes what new connections believe and show (a renewed certificate); the kept ones are used no more.
    pub fn replace_tls(&self, tls: ClientTls) {
        self.tls.store(Arc::new(tls));
        self.kept.lock().clear();
    }

    /// Sends a request whose URI is a path and query. A request that asks for an upgrade gets a connection of its own.
    ///
    /// # Errors
    /// Only when no answer came. The request may have been processed.
    pub async fn send(&self, to: &Endpoint, request: HttpRequest) -> Result<HttpResponse, BoxError> {
        self.try_send(to, request).await.map_err(|(error, _)| error)
    }

    /// As [`send`](Self::send), and a request that did not leave is handed back, to be sent elsewhere.
    ///
    /// # Errors
    /// Only when no answer came, with the request unless it may have been processed.
    pub async fn try_send(&self, to: &Endpoint, mut request: HttpRequest) -> Result<HttpResponse, Unsent> {
        if is_upgrade(request.headers()) {
            return match self.open_http1(to).await {
                Ok(sender) => self.send_http1(to, sender, request).await,
                Err(error) => Err((error, Some(Box::new(request)))),
            };
        }
        while let Some(kept) = self.take(to) {
            let sent = match kept {
                Connection::Http2(shared) => send_http2(to, shared, request).await,
                Connection::Http1(sender) => self.send_http1(to, sender, request).await,
            };
            match sent {
                Ok(response) => return Ok(response),
                // It did not leave: the kept connection was closed meanwhile.
                Err((_, Some(unsent))) => request = *unsent,
                Err((error, None)) => return Err((error, None)),
            }
        }
        let opened = match self.open(to).await {
            Ok(opened) => opened,
            Err(error) => return Err((error, Some(Box::new(request)))),
        };
        match opened {
            Connection::Http2(shared) => {
                self.kept.lock().entry(to.clone()).or_default().http2.push(shared.clone());
                send_http2(to, shared, request).await
            }
            Connection::Http1(sender) => self.send_http1(to, sender, request).await,
        }
    }

    fn take(&self, to: &Endpoint) -> Option<Connection> {
        let mut all = self.kept.lock();
        let kept = all.get_mut(to)?;
        kept.http2.retain(|shared| !shared.sender.is_closed());
        kept.http1.retain(|sender| !sender.is_closed());
        let free = |shared: &&Shared| shared.streams.load(Ordering::Relaxed) < STREAMS;
        if let Some(shared) = kept.http2.iter().find(free) {
            return Some(Connection::Http2(shared.clone()));
        }
        let ready = kept.http1.iter().position(http1::SendRequest::is_ready)?;
        Some(Connection::Http1(kept.http1.swap_remove(ready)))
    }

    async fn open(&self, to: &Endpoint) -> Result<Connection, BoxError> {
        let opening = async {
            let stream = self.dialler.dial(to).await?;
            if !to.tls {
                return self.handshake_http1(stream).await.map(Connection::Http1);
            }
            let stream = self.tls.load_full().connect(&to.host, &[b"h2", b"http/1.1"], stream).await?;
            if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
                self.handshake_http2(stream).await.map(Connection::Http2)
            } else {
                self.handshake_http1(stream).await.map(Connection::Http1)
            }
        };
        tokio::time::timeout(self.patience, opening).await.map_err(|_| self.slow(to))?
    }

    async fn open_http1(&self, to: &Endpoint) -> Result<http1::SendRequest<Body>, BoxError> {
        let opening = async {
            let stream = self.dialler.dial(to).await?;
            if !to.tls {
                return self.handshake_http1(stream).await;
            }
            let stream = self.tls.load_full().connect(&to.host, &[b"http/1.1"], stream).await?;
            self.handshake_http1(stream).await
        };
        tokio::time::timeout(self.patience, opening).await.map_err(|_| self.slow(to))?
    }

    async fn handshake_http1<S>(&self, stream: S) -> Result<http1::SendRequest<Body>, BoxError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        self.run(async move { connection.with_upgrades().await });
        Ok(sender)
    }

    async fn handshake_http2<S>(&self, stream: S) -> Result<Shared, BoxError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (sender, connection) = http2::Builder::new(GroupExecutor(self.tasks.clone()))
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT)
            .handshake(TokioIo::new(stream))
            .await?;
        self.run(connection);
        Ok(Shared { sender, streams: Arc::default() })
    }

    fn slow(&self, to: &Endpoint) -> BoxError {
        format!("no connection to {} within {} s", to.authority(), self.patience.as_secs()).into()
    }

    fn run(&self, connection: impl Future<Output = Result<(), hyper::Error>> + Send + 'static) {
        let token = self.tasks.token();
        self.tasks.spawn(async move {
            tokio::select! {
                () = token.cancelled() => {}
                ended = connection => if let Err(error) = ended {
                    tracing::debug!(%error, "a connection broke");
                }
            }
        });
    }

    async fn send_http1(
        &self,
        to: &Endpoint,
        mut sender: http1::SendRequest<Body>,
        mut request: HttpRequest,
    ) -> Result<HttpResponse, Unsent> {
        let upgrade = is_upgrade(request.headers());
        *request.version_mut() = Version::HTTP_11;
        if let Ok(host) = HeaderValue::try_from(to.authority()) {
            request.headers_mut().insert(header::HOST, host);
        }
        let response = sender.try_send_request(request).await.map_err(|mut error| {
            let unsent = error.take_message().map(Box::new);
            (error.into_error().into(), unsent)
        })?;
        if !upgrade {
            let mut all = self.kept.lock();
            let kept = all.entry(to.clone()).or_default();
            if kept.http1.len() < IDLE_HTTP1 {
                kept.http1.push(sender);
            }
        }
        Ok(response.map(boxed))
    }
}

/// Why a request failed, and the request itself if it did not leave.
pub type Unsent = (BoxError, Option<Box<HttpRequest>>);

fn boxed(body: Incoming) -> Body {
    body.map_err(Into::into).boxed_unsync()
}

/// Counts an open stream for as long as the answer's body lives.
struct OpenStream(Arc<AtomicUsize>);

impl OpenStream {
    fn new(streams: &Arc<AtomicUsize>) -> Self {
        streams.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(streams))
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn send_http2(to: &Endpoint, mut shared: Shared, mut request: HttpRequest) -> Result<HttpResponse, Unsent> {
    let open = OpenStream::new(&shared.streams);
    let path = request.uri().clone();
    *request.version_mut() = Version::HTTP_2;
    request.headers_mut().remove(header::HOST);
    request.headers_mut().remove(header::CONNECTION);
    let uri = Uri::builder().scheme("https").authority(to.authority());
    let uri = uri.path_and_query(path.path_and_query().map_or("/", |path| path.as_str())).build();
    *request.uri_mut() = uri.map_err(|error| (BoxError::from(error), None))?;
    let sent = shared.sender.try_send_request(request).await;
    let response = sent.map_err(|mut error| {
        let unsent = error.take_message().map(|mut request| {
            *request.uri_mut() = path;
            Box::new(request)
        });
        (error.into_error().into(), unsent)
    })?;
    Ok(response.map(|body| {
        let counted = body.map_err(BoxError::from).map_frame(move |frame| {
            // The closure owns the count, and is dropped with the body.
            let _open = &open;
            frame
        });
        counted.boxed_unsync()
    }))
}

/// Opens a TCP connection to a name or address.
///
/// # Errors
/// Those of name resolution and `connect(2)`; it may take as long as the system lets it.
pub async fn dial(host: &str, port: u16) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect((host, port)).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_of_urls() {
        let table = [
            ("https://a:6443", Some((true, "a", 6443))),
            ("https://a/x", Some((true, "a", 443))),
            ("http://[::1]:80", Some((false, "::1", 80))),
            ("ftp://a", None),
            ("a:1", None),
        ];
        for (url, expected) in table {
            let found = Endpoint::parse(url).ok();
            let expected = expected.map(|(tls, host, port)| Endpoint::new(tls, host, port));
            assert_eq!(found, expected, "{url}");
        }
    }
}
