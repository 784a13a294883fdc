//! gRPC probes: one call of `grpc.health.v1.Health/Check`. Its two messages have one field each, so they are written by hand.

use ::http::{Request, header};
use http_body_util::BodyExt;

use crate::http::connector::{Connector, Endpoint};
use crate::http::full;

const SERVING: u8 = 1;

/// Asks the health service and judges its answer.
pub(super) async fn check(connector: &Connector, host: &str, port: u16, service: &str) -> Result<(), String> {
    let endpoint = Endpoint::new(false, host, port);
    let request = Request::post("/grpc.health.v1.Health/Check")
        .version(::http::Version::HTTP_2)
        .header(header::CONTENT_TYPE, "application/grpc")
        .header(header::TE, "trailers")
        .body(full(frame(service)))
        .map_err(|error| error.to_string())?;
    let response = connector.send(&endpoint, request).await;
    let response = response.map_err(|error| format!("error: health rpc probe failed: {error}"))?;
    let body = response.into_body().collect().await.map_err(|error| format!("error: health rpc probe failed: {error}"))?;
    if serving(&body.to_bytes()) { Ok(()) } else { Err("service unhealthy (responded with \"NOT_SERVING\")".to_owned()) }
}

/// A gRPC frame that holds `HealthCheckRequest { service }`.
fn frame(service: &str) -> Vec<u8> {
    let mut message = Vec::new();
    if let Some(length) = u8::try_from(service.len()).ok().filter(|length| (1..128).contains(length)) {
        message.extend([0x0a, length]);
        message.extend(service.as_bytes());
    }
    let mut frame = vec![0];
    frame.extend(u32::try_from(message.len()).unwrap_or(0).to_be_bytes());
    frame.extend(message);
    frame
}

/// Whether a frame holds `HealthCheckResponse { status: SERVING }`.
fn serving(frame: &[u8]) -> bool {
    frame.get(5..).is_some_and(|message| message == [0x08, SERVING])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_as_protobuf() {
        assert_eq!(frame(""), [0, 0, 0, 0, 0]);
        assert_eq!(frame("ab"), [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
        assert!(serving(&[0, 0, 0, 0, 2, 8, 1]));
        assert!(!serving(&[0, 0, 0, 0, 2, 8, 2]));
    }
}
