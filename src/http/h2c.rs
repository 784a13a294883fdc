//! HTTP/2 without TLS and without negotiation, as gRPC speaks it over Unix sockets: one connection, one request.

use ::http::{Uri, Version, header};
use http_body_util::BodyExt;
use hyper::client::conn::http2;
use hyper_util::rt::TokioIo;

use super::connector::ByteStream;
use super::listener::GroupExecutor;
use super::{BoxError, HttpRequest, HttpResponse};
use crate::rt::TaskGroup;

/// Sends a request over a fresh stream. The connection lives as long as the answer's body, in a task of `tasks`.
///
/// # Errors
/// When no answer came. The caller has the deadline.
pub async fn send(
    stream: impl ByteStream + 'static,
    mut request: HttpRequest,
    tasks: &TaskGroup,
) -> Result<HttpResponse, BoxError> {
    let (mut sender, connection) = http2::handshake(GroupExecutor(tasks.clone()), TokioIo::new(stream)).await?;
    run(connection, tasks);
    *request.version_mut() = Version::HTTP_2;
    request.headers_mut().remove(header::HOST);
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    *request.uri_mut() = Uri::builder().scheme("http").authority("localhost").path_and_query(path).build()?;
    let response = sender.send_request(request).await?;
    // The sender goes with the body: without one, the connection ends.
    Ok(response.map(|body| {
        let kept = body.map_err(|error: hyper::Error| -> BoxError { Box::new(error) }).map_frame(move |frame| {
            let _open = &sender;
            frame
        });
        kept.boxed_unsync()
    }))
}

fn run(connection: impl Future<Output = Result<(), hyper::Error>> + Send + 'static, tasks: &TaskGroup) {
    let token = tasks.token();
    tasks.spawn(async move {
        if let Some(Err(error)) = token.run_until_cancelled(connection).await {
            tracing::debug!(%error, "an HTTP/2 connection ended");
        }
    });
}
