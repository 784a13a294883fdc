//! HTTP probes and hooks: one GET; 200 to 399 is success.

use ::http::{Request, header};
use k8s_openapi::api::core::v1::HTTPGetAction;

use super::{Target, port};
use crate::http::connector::{Connector, Endpoint};
use crate::http::empty;

/// Sends the request and judges the answer.
pub(super) async fn get(connector: &Connector, get: &HTTPGetAction, target: &Target<'_>, agent: &str) -> Result<(), String> {
    let named = get.host.clone().filter(|host| !host.is_empty());
    let tls = get.scheme.as_deref() == Some("HTTPS");
    let endpoint = Endpoint::new(tls, target.host(named)?, port(&get.port, target.container)?);
    let path = get.path.as_deref().filter(|path| !path.is_empty()).unwrap_or("/");
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    let scheme = if tls { "https" } else { "http" };
    let url = format!("{scheme}://{}:{}{path}", endpoint.host, endpoint.port);
    let mut request = Request::builder().uri(&path).header(header::USER_AGENT, agent).header(header::ACCEPT, "*/*");
    if !tls {
        // Each probe is a connection of its own: what it proves must not be that an old one still works.
        request = request.header(header::CONNECTION, "close");
    }
    for own in get.http_headers.iter().flatten() {
        request = request.header(own.name.as_str(), own.value.as_str());
    }
    let request = request.body(empty()).map_err(|error| error.to_string())?;
    let response = connector.send(&endpoint, request).await.map_err(|error| format!("Get \"{url}\": {error}"))?;
    let status = response.status();
    if status.is_success() || status.is_redirection() {
        return Ok(());
    }
    Err(format!("HTTP probe failed with statuscode: {}", status.as_u16()))
}
