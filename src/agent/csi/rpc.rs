//! gRPC over a Unix socket: one request, one answer, a deadline.

use std::path::{Path, PathBuf};
use std::time::Duration;

use ::http::{HeaderMap, Request, header};
use futures_util::future::BoxFuture;
use http_body_util::BodyExt;
use tokio::net::UnixStream;

use super::proto::Message;
use crate::http::{BoxError, full, h2c};
use crate::rt::TaskGroup;

/// Time for one call; upstream's default of two minutes.
const CALL: Duration = Duration::from_secs(120);
/// Bytes of an answer.
const ANSWER: usize = 4 << 20;
/// `FAILED_PRECONDITION` and the like are the driver's words; this one says that it does not know the method.
const UNIMPLEMENTED: u32 = 12;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum RpcError {
    /// The driver refused, in its words.
    #[error("rpc error: code = {} desc = {message}", code_name(*.code))]
    Status { code: u32, message: String },
    /// No answer, or half of one.
    #[error("rpc error: code = Unavailable desc = {0}")]
    Unavailable(String),
}

impl RpcError {
    /// Whether the driver does not know the method.
    pub fn is_unimplemented(&self) -> bool {
        matches!(self, Self::Status { code: UNIMPLEMENTED, .. })
    }
}

/// The name of a status code, as Go's gRPC prints it.
fn code_name(code: u32) -> &'static str {
    const NAMES: [&str; 17] = [
        "OK",
        "Canceled",
        "Unknown",
        "InvalidArgument",
        "DeadlineExceeded",
        "NotFound",
        "AlreadyExists",
        "PermissionDenied",
        "ResourceExhausted",
        "FailedPrecondition",
        "Aborted",
        "OutOfRange",
        "Unimplemented",
        "Internal",
        "Unavailable",
        "DataLoss",
        "Unauthenticated",
    ];
    usize::try_from(code).ok().and_then(|code| NAMES.get(code)).copied().unwrap_or("Unknown")
}

/// Calls services behind sockets.
pub struct Rpc(TaskGroup);

impl Rpc {
    /// Connections are tasks of `tasks`.
    pub fn new(tasks: &TaskGroup) -> Self {
        Self(tasks.clone())
    }

    /// Calls `/package.Service/Method` with a message; the answer's message.
    ///
    /// # Errors
    /// [`RpcError`].
    pub async fn call(&self, socket: &Path, method: &'static str, message: Message) -> Result<Vec<u8>, RpcError> {
        let answer: BoxFuture<'static, Result<Vec<u8>, RpcError>> =
            Box::pin(send(self.0.clone(), socket.to_owned(), method, message));
        let call = tokio::time::timeout(CALL, answer).await;
        call.unwrap_or_else(|_| Err(RpcError::Unavailable(format!("{method} took longer than {} s", CALL.as_secs()))))
    }
}

async fn send(tasks: TaskGroup, socket: PathBuf, method: &'static str, message: Message) -> Result<Vec<u8>, RpcError> {
    let unavailable = |error: BoxError| RpcError::Unavailable(error.to_string());
    let message = message.into_bytes();
    let mut frame = vec![0];
    frame.extend(u32::try_from(message.len()).unwrap_or(0).to_be_bytes());
    frame.extend(message);
    let request = Request::post(method)
        .version(::http::Version::HTTP_2)
        .header(header::CONTENT_TYPE, "application/grpc")
        .header(header::TE, "trailers")
        .body(full(frame))
        .map_err(|error| unavailable(error.into()))?;
    let stream = UnixStream::connect(socket).await.map_err(|error| unavailable(error.into()))?;
    let response = h2c::send(stream, request, &tasks).await.map_err(unavailable)?;
    // An answer without a message has its status among the headers.
    let headers = response.headers().clone();
    let (mut body, mut bytes, mut trailers) = (response.into_body(), Vec::new(), HeaderMap::new());
    while let Some(frame) = body.frame().await {
        match frame.map_err(unavailable)?.into_data() {
            Ok(data) if bytes.len() + data.len() <= ANSWER => bytes.extend_from_slice(&data),
            Ok(_) => return Err(RpcError::Unavailable("the answer is too large".to_owned())),
            Err(other) => trailers.extend(other.into_trailers().unwrap_or_else(|_| HeaderMap::new())),
        }
    }
    let text = |name: &str| {
        let value = trailers.get(name).or_else(|| headers.get(name));
        value.and_then(|value| value.to_str().ok()).map(str::to_owned)
    };
    match text("grpc-status").and_then(|code| code.parse().ok()) {
        Some(0) => Ok(bytes.get(5..).unwrap_or(&[]).to_vec()),
        Some(code) => Err(RpcError::Status { code, message: text("grpc-message").unwrap_or_else(String::new) }),
        None => Err(RpcError::Unavailable("the answer has no grpc-status".to_owned())),
    }
}
