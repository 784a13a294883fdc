//! Answers that are not objects of a kind: the one place where an error becomes a `Status` on the wire, and plain documents.

use ::http::{HeaderValue, StatusCode, header};
use bytes::Bytes;
use serde_json::Value;

use crate::api::ApiError;
use crate::http::{HttpResponse, full};

/// An answer with a body of a media type.
pub fn plain(status: StatusCode, media_type: &'static str, body: impl Into<Bytes>) -> HttpResponse {
    let mut response = HttpResponse::new(full(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    response
}

/// An answer of lines of text.
pub fn text(status: StatusCode, body: impl Into<Bytes>) -> HttpResponse {
    let mut response = plain(status, "text/plain; charset=utf-8", body);
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// An answer of a JSON document.
pub fn json(status: StatusCode, value: &Value) -> HttpResponse {
    plain(status, "application/json", value.to_string())
}

/// The answer to a request that failed: its `Status`.
pub fn error(error: &ApiError) -> HttpResponse {
    let status = StatusCode::from_u16(error.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = json(status, &error.to_value());
    if let Some(seconds) = error.details.retry_after_seconds {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}
