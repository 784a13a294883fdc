//! HTTP plumbing over hyper and rustls: bodies, listeners, connectors, SPDY and WebSocket streams. Knows no Kubernetes objects.

use std::net::SocketAddr;
use std::sync::Arc;

use ::http::{Extensions, Request, Response, header};
use async_trait::async_trait;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};

pub mod connector;
pub mod listener;
pub mod reverse;
pub mod spdy;
pub mod streams;
pub mod tls;
pub mod tunnel;
pub mod websocket;

/// Any error, boxed: what a body may fail with.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The one body type of requests and responses, streaming or not.
pub type Body = UnsyncBoxBody<Bytes, BoxError>;

/// A request as every layer of the server sees it.
pub type HttpRequest = Request<Body>;

/// A response as every layer of the server sees it.
pub type HttpResponse = Response<Body>;

/// The certificates that the other side of a TLS connection showed (DER, leaf first), in the extensions of its requests.
/// That it holds the key has been proven; whether the chain ends at the client CA is `verified`.
#[derive(Debug, Clone)]
pub struct PeerCertificates {
    pub chain: Arc<[Vec<u8>]>,
    pub verified: bool,
}

/// The address of the other side of a connection, in the extensions of its requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RemoteAddr(pub SocketAddr);

/// What a listener serves.
#[async_trait]
pub trait Handler: Send + Sync + 'static {
    /// Answers one request.
    async fn handle(self: Arc<Self>, request: HttpRequest) -> HttpResponse;

    /// Called once for each connection; what is added here is in the extensions of each of its requests, beside
    /// [`RemoteAddr`] and [`PeerCertificates`].
    fn connected(&self, _connection: &mut Extensions) {}
}

/// A body of bytes that are at hand.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// A body of no bytes.
pub fn empty() -> Body {
    full(Bytes::new())
}

/// Whether a request asks to leave HTTP (`Connection: Upgrade`).
pub fn is_upgrade(headers: &::http::HeaderMap) -> bool {
    let asks = |value: &::http::HeaderValue| {
        value.to_str().is_ok_and(|text| text.split(',').any(|token| token.trim().eq_ignore_ascii_case("upgrade")))
    };
    headers.contains_key(header::UPGRADE) && headers.get_all(header::CONNECTION).iter().any(asks)
}
