//! The limit of request bodies.

use ::http::header;
use http_body_util::{BodyExt, Limited};

use crate::api::ApiError;
use crate::http::HttpRequest;
use crate::rt::limits;

/// A request whose body ends with an error at the limit. One that says that it is larger is refused at once.
///
/// # Errors
/// 413.
pub(super) fn limited(request: HttpRequest) -> Result<HttpRequest, ApiError> {
    let length = request.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if length.is_some_and(|length| length > limits::REQUEST_BODY_BYTES as u64) {
        return Err(too_large());
    }
    Ok(request.map(|body| Limited::new(body, limits::REQUEST_BODY_BYTES).boxed_unsync()))
}

/// The answer to a body beyond the limit, in the words of `NewRequestEntityTooLargeError`.
fn too_large() -> ApiError {
    ApiError::too_large(format!("Request entity too large: limit is {}", limits::REQUEST_BODY_BYTES))
}
