//! What every request passes before a handler sees it, in upstream's order (`DefaultBuildHandlerChain`).

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use ::http::{HeaderValue, header};
use futures_util::FutureExt;
use tracing::Instrument;

use super::request_info::parse_query;
use super::{RequestContext, RequestInfo, Server, handlers, identities, nonresource, respond, tunnel};
use crate::api::ApiError;
use crate::http::{HttpRequest, HttpResponse};
use crate::rt::{clock, limits, random};

mod authn;
mod authz;
mod impersonation;
pub(super) mod inflight;
mod metrics;

pub use authz::attributes;

const AUDIT_ID: &str = "audit-id";

/// Runs a request through all filters and its handler. Never fails: an error is an answer.
pub(super) async fn run(server: &Arc<Server>, request: HttpRequest) -> HttpResponse {
    let started = clock::instant();
    let audit_id = audit_id(&request);
    let query = parse_query(request.uri().query().unwrap_or(""));
    let info = RequestInfo::parse(request.method(), request.uri().path(), &query);
    let span = tracing::debug_span!(
        "request",
        audit_id = audit_id.to_str().unwrap_or(""),
        verb = %info.verb,
        path = %info.path,
        user = tracing::field::Empty,
    );
    let labels = metrics::Labels::of(server, &info);
    let answered = AssertUnwindSafe(timed(server, info, query, request)).catch_unwind().instrument(span.clone()).await;
    let mut response = match answered {
        Ok(Ok(response)) => response,
        Ok(Err(error)) => failed(&error),
        Err(_panic) => {
            span.in_scope(|| tracing::error!("a handler panicked"));
            respond::error(&ApiError::internal("this request caused apiserver to panic. Look in the logs for details"))
        }
    };
    let headers = response.headers_mut();
    headers.insert(AUDIT_ID, audit_id);
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-cache, private"));
    labels.observe(response.status(), started.elapsed());
    span.in_scope(|| tracing::debug!(code = response.status().as_u16(), elapsed = ?started.elapsed(), "answered"));
    response
}

fn failed(error: &ApiError) -> HttpResponse {
    let mut response = respond::error(error);
    if error.details.causes.iter().any(|cause| cause.reason == identities::REMOVED) {
        response.headers_mut().insert(identities::REMOVED_HEADER, HeaderValue::from_static("true"));
    }
    response
}

/// The id that the client gave the request, or a new one.
fn audit_id(request: &HttpRequest) -> HeaderValue {
    let given = request.headers().get(AUDIT_ID).filter(|value| value.len() <= 64 && value.to_str().is_ok()).cloned();
    given.or_else(|| HeaderValue::try_from(random::uid()).ok()).unwrap_or(HeaderValue::from_static("-"))
}

/// Ends a request that takes too long, unless it is one that may.
async fn timed(
    server: &Arc<Server>,
    info: RequestInfo,
    query: Vec<(String, String)>,
    request: HttpRequest,
) -> Result<HttpResponse, ApiError> {
    if info.is_long_running() {
        return filtered(server, info, query, request).await;
    }
    let answered = tokio::time::timeout(limits::REQUEST_TIMEOUT, filtered(server, info, query, request)).await;
    answered.unwrap_or_else(|_| Err(ApiError::timeout("Timeout: request did not complete within the allotted timeout")))
}

async fn filtered(
    server: &Arc<Server>,
    info: RequestInfo,
    query: Vec<(String, String)>,
    mut request: HttpRequest,
) -> Result<HttpResponse, ApiError> {
    let caller = authn::authenticate(server, &mut request).await?;
    let user = impersonation::impersonate(server, caller.user, &mut request)?;
    tracing::Span::current().record("user", &user.name);
    let slot = server.inflight.enter(&info, &user)?;
    authz::authorize(server, &user, &info)?;
    let create_refused = authz::refuses_create(server, &user, &info, &request);
    let context = RequestContext { info, user, query, create_refused };
    let response = if context.info.is_resource {
        handlers::dispatch(server, context, request).await?
    } else if context.info.path == tunnel::PATH {
        tunnel::serve(server, &context, request)?
    } else {
        nonresource::serve(server, &context, &request)?
    };
    let response = slot.until_sent(response);
    Ok(match caller.end {
        Some(end) => identities::until(response, end),
        None => response,
    })
}
