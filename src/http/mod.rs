//! HTTP plumbing over hyper and rustls: bodies, listeners, connectors, SPDY and WebSocket streams. Knows no Kubernetes objects.

use ::http::{Request, Response};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};

/// Any error, boxed: what a body may fail with.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The one body type of requests and responses, streaming or not.
pub type Body = UnsyncBoxBody<Bytes, BoxError>;

/// A request as every layer of the server sees it.
pub type HttpRequest = Request<Body>;

/// A response as every layer of the server sees it.
pub type HttpResponse = Response<Body>;

/// A body of bytes that are at hand.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// A body of no bytes.
pub fn empty() -> Body {
    full(Bytes::new())
}
