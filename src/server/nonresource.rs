//! Paths that are no resources: version, health, metrics, discovery, OpenID documents.

use ::http::{Method, StatusCode};
use serde_json::json;

use super::{RequestContext, Server, discovery, openapi, respond};
use crate::api::ApiError;
use crate::http::{HttpRequest, HttpResponse};
use crate::rt::metrics;

/// The Kubernetes API that is served.
pub const MAJOR: &str = "1";
/// See [`MAJOR`].
pub const MINOR: &str = "36";
/// The version in `/version`; nodes say the same of themselves.
pub const GIT_VERSION: &str = concat!("v1.36.0+orch.", env!("CARGO_PKG_VERSION"));

/// Paths that answer with a list of themselves at `/`.
const PATHS: [&str; 12] = [
    "/.well-known/openid-configuration",
    "/api",
    "/api/v1",
    "/apis",
    "/healthz",
    "/livez",
    "/metrics",
    "/openapi/v2",
    "/openapi/v3",
    "/openid/v1/jwks",
    "/readyz",
    "/version",
];

/// Answers a path.
///
/// # Errors
/// 404 for a path that is not served, 405 for a method other than GET and HEAD.
pub(super) fn serve(server: &Server, context: &RequestContext, request: &HttpRequest) -> Result<HttpResponse, ApiError> {
    let path = request.uri().path();
    let answer = match path.trim_end_matches('/') {
        "" => Some(respond::json(StatusCode::OK, &json!({"paths": PATHS}))),
        "/version" => Some(respond::json(StatusCode::OK, &version())),
        "/metrics" => Some(respond::plain(
            StatusCode::OK,
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
            metrics::render().map_err(ApiError::internal)?,
        )),
        "/.well-known/openid-configuration" => Some(respond::json(StatusCode::OK, &server.tokens.openid_configuration())),
        "/openid/v1/jwks" => {
            Some(respond::plain(StatusCode::OK, "application/jwk-set+json", server.tokens.key_set().to_string()))
        }
        _ if is_below(path, &["/healthz", "/livez", "/readyz"]) => server.health.answer(path, &context.query),
        _ if is_below(path, &["/api", "/apis"]) => {
            discovery::serve(server.registry.kinds(), &server.config.advertise.to_string(), request)
        }
        _ if is_below(path, &["/openapi"]) => openapi::serve(server.registry.kinds(), request),
        _ => None,
    };
    let answer = answer.ok_or_else(ApiError::no_such_path)?;
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let message = "the server does not allow this method on the requested resource";
        return Err(ApiError::new(405, crate::api::status::Reason::MethodNotAllowed, message));
    }
    Ok(answer)
}

fn is_below(path: &str, roots: &[&str]) -> bool {
    roots.iter().any(|root| path.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')))
}

/// The document at `/version`; minor has no `+`: clients parse it as a number.
fn version() -> serde_json::Value {
    let platform = format!("{}/{}", std::env::consts::OS, go_arch());
    json!({
        "major": MAJOR,
        "minor": MINOR,
        "gitVersion": GIT_VERSION,
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "",
        "compiler": "rustc",
        "platform": platform,
    })
}

/// The machine's architecture under Go's name, as labels and `/version` have it.
fn go_arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
