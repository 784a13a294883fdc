//! gRPC probes: one call of `grpc.health.v1.Health/Check`. Its two messages have one field each, so they are written by hand.

use ::http::{HeaderMap, Request, header};

use super::{Ill, Verdict};
use crate::http::connector::Endpoint;
use crate::http::full;
use crate::http::once::{Once, Protocol};

const ANSWER_BYTES: usize = 4 << 10;
const UNIMPLEMENTED: &str = "12";

/// Asks the health service and judges its answer.
pub(super) async fn check(once: &Once, host: &str, port: u16, service: &str) -> Verdict {
    let endpoint = Endpoint::new(false, host, port);
    let request = Request::post("/grpc.health.v1.Health/Check")
        .header(header::CONTENT_TYPE, "application/grpc")
        .header(header::TE, "trailers")
        .header(header::USER_AGENT, super::AGENT)
        .body(full(frame(service)))
        .map_err(|error| error.to_string())?;
    let answer = once.exchange(&endpoint, Protocol::Http2, request, ANSWER_BYTES).await;
    let answer = answer.map_err(|error| Ill::of(format!("error: health rpc probe failed: {error}"), error.as_ref()))?;
    let trailers = answer.trailers.as_ref();
    let text = |name: &str| {
        let value = |headers: &HeaderMap| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        trailers.and_then(value).or_else(|| value(&answer.head.headers))
    };
    match text("grpc-status").as_deref() {
        Some("0") | None if answer.head.status.is_success() => match status(&answer.body) {
            1 => Ok(None),
            other => Err(format!("service unhealthy (responded with \"{}\")", word(other)).into()),
        },
        Some(UNIMPLEMENTED) => {
            let message = text("grpc-message").unwrap_or_else(|| "unknown service grpc.health.v1.Health".to_owned());
            Err(format!("error: this server does not implement the grpc health protocol (grpc.health.v1.Health): {message}")
                .into())
        }
        Some(code) => {
            let message = text("grpc-message").unwrap_or_else(|| format!("code {code}"));
            Err(format!("error: health rpc probe failed: {message}").into())
        }
        None => Err(format!("error: health rpc probe failed: status {}", answer.head.status).into()),
    }
}

/// A gRPC frame that holds `HealthCheckRequest { service }`.
fn frame(service: &str) -> Vec<u8> {
    let mut message = Vec::new();
    if !service.is_empty() {
        message.push(0x0a);
        let mut length = service.len();
        while length >= 0x80 {
            message.push((length & 0x7f) as u8 | 0x80);
            length >>= 7;
        }
        message.push(length as u8);
        message.extend(service.as_bytes());
    }
    let mut frame = vec![0];
    frame.extend(u32::try_from(message.len()).unwrap_or(0).to_be_bytes());
    frame.extend(message);
    frame
}

/// The status in a frame that holds a `HealthCheckResponse`; a field that is not there is 0.
fn status(frame: &[u8]) -> u8 {
    match frame.get(5..) {
        Some([0x08, status, ..]) => *status,
        _ => 0,
    }
}

const fn word(status: u8) -> &'static str {
    match status {
        1 => "SERVING",
        2 => "NOT_SERVING",
        3 => "SERVICE_UNKNOWN",
        _ => "UNKNOWN",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_as_protobuf() {
        assert_eq!(frame(""), [0, 0, 0, 0, 0]);
        assert_eq!(frame("ab"), [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
        assert_eq!(&frame(&"a".repeat(200))[..8], [0, 0, 0, 0, 203, 0x0a, 0xc8, 1]);
        assert_eq!((status(&[0, 0, 0, 0, 2, 8, 1]), status(&[0, 0, 0, 0, 2, 8, 2]), status(&[0, 0, 0, 0, 0])), (1, 2, 0));
    }
}
