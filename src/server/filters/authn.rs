//! Authentication of a request: what the transport knows of the caller, and what the request shows.

use std::sync::Arc;

use ::http::header;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use tokio_util::sync::CancellationToken;

use crate::api::ApiError;
use crate::auth::authn::Credentials;
use crate::auth::{CertificateUser, UserInfo, identity};
use crate::http::{HttpRequest, PeerCertificates};
use crate::server::{Server, identities};

/// WebSocket clients in browsers cannot set headers: they send the token as a subprotocol.
const WEBSOCKET_TOKEN: &str = "base64url.bearer.authorization.k8s.io.";

/// Carries the password of a machine that joins.
const NODE_PASSWORD: &str = "orch-node-password";

/// Who asks, and what ends their watches before their time: the end of a node's identity.
pub(super) struct Caller {
    pub(super) user: Arc<UserInfo>,
    pub(super) end: Option<CancellationToken>,
}

/// Who sent the request. Takes the credentials out of it, so that nothing behind sees or passes them on.
pub(super) async fn authenticate(server: &Server, request: &mut HttpRequest) -> Result<Caller, ApiError> {
    // Only the loopback puts a user there: nothing that comes over a connection can.
    if let Some(user) = request.extensions().get::<Arc<UserInfo>>() {
        return Ok(Caller { user: Arc::clone(user), end: None });
    }
    if let Some(user) = request.extensions().get::<UserInfo>() {
        return Ok(Caller { user: Arc::new(user.clone().authenticated()), end: None });
    }
    let password = request.headers_mut().remove(NODE_PASSWORD);
    let mut user = connected(server, request)?;
    if let Some(password) = password.as_ref().and_then(|value| value.to_str().ok()) {
        identity::with_password(Arc::make_mut(&mut user), password);
    }
    let end = identities::check(server, &user).await?;
    Ok(Caller { user, end })
}

/// Who is at the other end of the connection.
fn connected(server: &Server, request: &mut HttpRequest) -> Result<Arc<UserInfo>, ApiError> {
    let bearer = request.headers_mut().remove(header::AUTHORIZATION);
    let bearer = bearer.as_ref().and_then(|value| bearer_of(value.to_str().ok()?)).map(str::to_owned);
    let bearer = bearer.or_else(|| websocket_token(request));
    let extensions = request.extensions();
    let certificate = extensions.get::<CertificateUser>();
    let shown = extensions.get::<PeerCertificates>().is_some_and(|peer| !peer.chain.is_empty());
    let credentials = Credentials { certificate, bad_certificate: shown && certificate.is_none(), bearer: bearer.as_deref() };
    server.authenticator.authenticate(credentials).map_err(|error| {
        tracing::info!(reason = %error, "Unable to authenticate the request");
        ApiError::unauthorized()
    })
}

fn bearer_of(header: &str) -> Option<&str> {
    let (scheme, token) = header.trim_start().split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim()).filter(|token| !token.is_empty())
}

/// Takes the token out of the subprotocols; the others stay to be negotiated.
fn websocket_token(request: &mut HttpRequest) -> Option<String> {
    let all = request.headers().get(header::SEC_WEBSOCKET_PROTOCOL)?.to_str().ok()?.to_owned();
    let (tokens, rest): (Vec<&str>, Vec<&str>) =
        all.split(',').map(str::trim).partition(|protocol| protocol.starts_with(WEBSOCKET_TOKEN));
    let encoded = tokens.first()?.strip_prefix(WEBSOCKET_TOKEN)?;
    if let Ok(value) = header::HeaderValue::try_from(rest.join(", ")) {
        request.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, value);
    }
    String::from_utf8(URL_SAFE_NO_PAD.decode(encoded.trim_end_matches('=')).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bearer_headers() {
        let table = [
            ("Bearer abc", Some("abc")),
            ("bearer  abc ", Some("abc")),
            ("Basic abc", None),
            ("Bearer", None),
            ("Bearer ", None),
        ];
        for (header, token) in table {
            assert_eq!(bearer_of(header), token, "{header}");
        }
    }

    #[test]
    fn a_token_among_subprotocols() {
        let protocols = format!("{WEBSOCKET_TOKEN}{}, v5.channel.k8s.io", URL_SAFE_NO_PAD.encode("abc"));
        let mut request = ::http::Request::new(crate::http::empty());
        request.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, protocols.parse().unwrap());
        assert_eq!(websocket_token(&mut request).as_deref(), Some("abc"));
        assert_eq!(request.headers()[header::SEC_WEBSOCKET_PROTOCOL], "v5.channel.k8s.io");
        assert_eq!(websocket_token(&mut request), None);
    }
}
