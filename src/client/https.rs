//! The transport of an agent: HTTPS to the API servers, with a client certificate or a bearer token. A server that does not answer
//! is passed over at once, and taken again when it does.

use std::sync::Arc;
use std::time::Duration;

use ::http::request::Parts;
use ::http::{HeaderMap, HeaderValue, Method, Request, header};
use arc_swap::ArcSwap;
use async_trait::async_trait;
use tokio_util::sync::CancellationToken;

use super::Transport;
use super::servers::{self, Servers};
use crate::http::connector::{Connector, Endpoint};
use crate::http::tls::ClientTls;
use crate::http::{BoxError, HttpRequest, HttpResponse, empty};
use crate::rt::TaskGroup;

/// Time to reach a server before another is asked.
const PATIENCE: Duration = Duration::from_secs(3);
/// Time for a server to say that it lives.
const PROBE: Duration = Duration::from_secs(5);
/// In the answer to a node that was removed from the cluster.
pub const REMOVED: &str = "orch-node-removed";

/// Carries a joining machine's password, by which it shows that a node's name is its own.
pub const NODE_PASSWORD: &str = "orch-node-password";

/// What every request shows beside the certificate.
#[derive(Default)]
pub struct Credentials(HeaderMap);

impl Credentials {
    /// A bearer token.
    ///
    /// # Errors
    /// When it cannot be sent.
    pub fn bearer(token: &str) -> Result<Self, BoxError> {
        Self::default().with(header::AUTHORIZATION, &format!("Bearer {token}"))
    }

    /// The same with the password of a machine that joins.
    ///
    /// # Errors
    /// When it cannot be sent.
    pub fn with_node_password(self, password: &str) -> Result<Self, BoxError> {
        self.with(header::HeaderName::from_static(NODE_PASSWORD), password)
    }

    fn with(mut self, name: header::HeaderName, value: &str) -> Result<Self, BoxError> {
        let mut value = HeaderValue::from_str(value)?;
        value.set_sensitive(true);
        self.0.insert(name, value);
        Ok(self)
    }
}

/// HTTPS to the API servers of one cluster. Connections are kept and opened again as needed.
pub struct Https {
    connector: Arc<Connector>,
    servers: Arc<Servers>,
    credentials: ArcSwap<Credentials>,
    removed: CancellationToken,
    tasks: TaskGroup,
}

impl Https {
    /// A transport to whichever of `servers` answers. Connections are tasks of `tasks`.
    ///
    /// # Errors
    /// When there is no server at all.
    pub fn to_servers(
        servers: Servers,
        tls: ClientTls,
        credentials: Credentials,
        tasks: TaskGroup,
    ) -> Result<Arc<Self>, BoxError> {
        if servers.order().is_empty() {
            return Err("no API server is given".into());
        }
        Ok(Arc::new(Self {
            connector: Arc::new(Connector::new(tls, tasks.clone()).with_patience(PATIENCE)),
            servers: Arc::new(servers),
            credentials: ArcSwap::from_pointee(credentials),
            removed: CancellationToken::new(),
            tasks,
        }))
    }

    /// Shows another certificate from now on, as after a renewal, and no token.
    pub fn replace_identity(&self, tls: ClientTls) {
        self.credentials.store(Arc::default());
        self.connector.replace_tls(tls);
    }

    /// The servers that are asked.
    pub fn servers(&self) -> &Arc<Servers> {
        &self.servers
    }

    /// Cancelled when a server says that this node was removed from the cluster.
    pub fn removed(&self) -> CancellationToken {
        self.removed.clone()
    }

    /// Sends a request to one server, whatever is known of it.
    ///
    /// # Errors
    /// When no answer came.
    pub async fn send_to(&self, endpoint: &Endpoint, mut request: HttpRequest) -> Result<HttpResponse, BoxError> {
        self.authorize(&mut request);
        let response = self.connector.send(endpoint, request).await?;
        self.look(&response);
        Ok(response)
    }

    fn authorize(&self, request: &mut HttpRequest) {
        for (name, value) in &self.credentials.load().0 {
            request.headers_mut().insert(name, value.clone());
        }
    }

    fn look(&self, response: &HttpResponse) {
        if response.headers().contains_key(REMOVED) {
            self.removed.cancel();
        }
    }

    /// Passes a server over until it answers again.
    fn set_down(&self, endpoint: &Endpoint, error: &BoxError) {
        if !self.servers.note(endpoint, true) || !self.servers.has_several() {
            return;
        }
        tracing::warn!(server = endpoint.authority(), %error, "the server does not answer; asking another");
        let (connector, servers, endpoint) = (Arc::clone(&self.connector), Arc::clone(&self.servers), endpoint.clone());
        let token = self.tasks.token();
        self.tasks.spawn(async move {
            token.run_until_cancelled(probe(&connector, &servers, &endpoint)).await;
        });
    }
}

/// Looks at a server until it lives, or is none of the cluster's any more.
async fn probe(connector: &Connector, servers: &Servers, endpoint: &Endpoint) {
    let mut backoff = servers::probes();
    while servers.is_down(endpoint) {
        tokio::time::sleep(backoff.next_delay()).await;
        let mut request = Request::new(empty());
        *request.uri_mut() = ::http::Uri::from_static("/readyz");
        let answer = tokio::time::timeout(PROBE, connector.send(endpoint, request)).await;
        if matches!(answer, Ok(Ok(response)) if !response.status().is_server_error()) && servers.note(endpoint, false) {
            tracing::info!(server = endpoint.authority(), "the server answers again");
        }
    }
}

/// A copy of a request that changes nothing and has no body, so that it can be asked twice.
fn copy(parts: &Parts) -> HttpRequest {
    let mut request = Request::new(empty());
    *request.method_mut() = parts.method.clone();
    *request.uri_mut() = parts.uri.clone();
    *request.headers_mut() = parts.headers.clone();
    request
}

#[async_trait]
impl Transport for Https {
    async fn send(&self, mut request: HttpRequest) -> Result<HttpResponse, BoxError> {
        self.authorize(&mut request);
        let (parts, body) = request.into_parts();
        let spare = (parts.method == Method::GET).then(|| copy(&parts).into_parts().0);
        let mut request = Request::from_parts(parts, body);
        let order = self.servers.order();
        for (at, endpoint) in order.iter().enumerate() {
            let is_last = at + 1 == order.len();
            match self.connector.try_send(endpoint, request).await {
                Ok(response) => {
                    self.servers.note(endpoint, false);
                    self.look(&response);
                    return Ok(response);
                }
                Err((error, unsent)) => {
                    self.set_down(endpoint, &error);
                    request = match (unsent, &spare) {
                        (Some(unsent), _) if !is_last => *unsent,
                        (None, Some(spare)) if !is_last => copy(spare),
                        _ => return Err(error),
                    };
                }
            }
        }
        Err("no API server is known".into())
    }
}
