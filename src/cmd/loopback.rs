//! The transport of components in the server's own process: requests go to the server's handler, past the socket and TLS but
//! through everything else.

use std::sync::Arc;

use async_trait::async_trait;

use crate::auth::UserInfo;
use crate::client::{Client, Transport};
use crate::http::{BoxError, HttpRequest, HttpResponse};
use crate::server::Server;

/// Sends requests to a server in this process, as one user.
pub struct Loopback {
    server: Arc<Server>,
    user: UserInfo,
}

impl Loopback {
    /// A client of `server` that acts as `user` and says it is `user_agent`.
    pub fn client(server: &Arc<Server>, user: UserInfo, user_agent: &str) -> Client {
        Client::new(Arc::new(Self { server: Arc::clone(server), user: user.authenticated() }), user_agent)
    }
}

#[async_trait]
impl Transport for Loopback {
    async fn send(&self, mut request: HttpRequest) -> Result<HttpResponse, BoxError> {
        request.extensions_mut().insert(self.user.clone());
        Ok(self.server.handle(request).await)
    }
}
