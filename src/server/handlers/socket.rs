//! Watches and logs over WebSocket, for clients in a browser: the answer is what it is over plain HTTP, in messages.

use std::sync::Arc;

use ::http::{HeaderMap, StatusCode, header};

use super::super::{RequestContext, Server};
use super::dispatch;
use crate::api::ApiError;
use crate::api::kind::Subresource;
use crate::api::status::Reason;
use crate::http::websocket::reader::{self, Framing};
use crate::http::{HttpRequest, HttpResponse, is_upgrade, tunnel};

/// How the answer is cut into messages, if the request asks for WebSocket and its answer is a stream.
pub fn framing(headers: &HeaderMap, verb: &str, subresource: Option<Subresource>) -> Option<Framing> {
    let is_socket =
        is_upgrade(headers) && headers.get(header::UPGRADE).is_some_and(|to| to.as_bytes().eq_ignore_ascii_case(b"websocket"));
    match (subresource, verb) {
        (Some(Subresource::Log), _) if is_socket => Some(Framing::Chunks),
        (None, "watch") if is_socket => Some(Framing::Lines),
        _ => None,
    }
}

/// Serves the request as if it came over plain HTTP, and sends the answer's body as messages. An error stays an HTTP answer.
///
/// # Errors
/// As the request without WebSocket; 400 when the handshake is none.
pub async fn serve(
    server: &Arc<Server>,
    context: RequestContext,
    mut request: HttpRequest,
    framing: Framing,
) -> Result<HttpResponse, ApiError> {
    let client = tunnel::upgrade_of(&mut request).ok_or_else(|| ApiError::bad_request("the connection cannot be upgraded"))?;
    let handshake = request.headers().clone();
    for name in [header::UPGRADE, header::CONNECTION, header::ACCEPT_ENCODING] {
        request.headers_mut().remove(name);
    }
    let response = Box::pin(dispatch(server, context, request)).await?;
    if response.status() != StatusCode::OK {
        return Ok(response);
    }
    let sent = reader::send(&handshake, client, response.into_body(), framing, &server.tasks);
    sent.map_err(|error| ApiError::new(error.status.as_u16(), Reason::BadRequest, error.message))
}
