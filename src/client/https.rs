//! The transport of an agent: HTTPS to an API server, with a client certificate or a bearer token.

use std::sync::Arc;

use ::http::{HeaderValue, header};
use arc_swap::ArcSwapOption;
use async_trait::async_trait;

use super::Transport;
use crate::http::connector::{Connector, Endpoint};
use crate::http::tls::ClientTls;
use crate::http::{BoxError, HttpRequest, HttpResponse};
use crate::rt::TaskGroup;

/// HTTPS to one API server. Connections are kept and opened again as needed.
pub struct Https {
    connector: Connector,
    endpoint: Endpoint,
    authorization: ArcSwapOption<HeaderValue>,
}

impl Https {
    /// A transport to the server at `url` (`https://host:port`). Connections are tasks of `tasks`.
    ///
    /// # Errors
    /// When the URL or the token cannot be sent.
    pub fn new(url: &str, tls: ClientTls, bearer: Option<&str>, tasks: TaskGroup) -> Result<Arc<Self>, BoxError> {
        let authorization = bearer.map(|token| HeaderValue::from_str(&format!("Bearer {token}"))).transpose()?;
        let authorization = authorization.map(|mut value| {
            value.set_sensitive(true);
            Arc::new(value)
        });
        let endpoint = Endpoint::parse(url)?;
        Ok(Arc::new(Self { connector: Connector::new(tls, tasks), endpoint, authorization: ArcSwapOption::new(authorization) }))
    }

    /// Shows another certificate from now on, as after a renewal, and no token.
    pub fn replace_identity(&self, tls: ClientTls) {
        self.authorization.store(None);
        self.connector.replace_tls(tls);
    }
}

#[async_trait]
impl Transport for Https {
    async fn send(&self, mut request: HttpRequest) -> Result<HttpResponse, BoxError> {
        if let Some(value) = self.authorization.load_full() {
            request.headers_mut().insert(header::AUTHORIZATION, HeaderValue::clone(&value));
        }
        self.connector.send(&self.endpoint, request).await
    }
}
