//! The HTTP API server: what a request wants ([`request_info`]), the filters that every request passes ([`filters`]), and the
//! handlers behind them ([`handlers`]).
//!
//! Filters run in upstream's order: panic, audit id and metrics, request info, time-out, authentication, impersonation, in-flight
//! limits, authorization; then dispatch.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ::http::Extensions;
use async_trait::async_trait;
use ipnet::IpNet;

use crate::api::ApiError;
use crate::auth::{Authenticator, AuthnConfig, Authorizer, CertificateUser, UserInfo, authn::StaticToken, tokens::TokenIssuer};
use crate::http::tls::ClientTls;
use crate::http::{Handler, HttpRequest, HttpResponse, PeerCertificates};
use crate::pki::Ca;
use crate::pki::jwt::SigningKey;
use crate::registry::Registry;
use crate::rt::TaskGroup;
use crate::rt::clock::SharedClock;

pub mod bootstrap;
pub mod discovery;
pub mod filters;
pub mod handlers;
pub mod health;
pub mod identities;
pub mod negotiate;
pub mod node;
pub mod nonresource;
pub mod openapi;
pub mod request_info;
pub mod respond;
pub mod tunnel;

pub use request_info::RequestInfo;

/// What every handler gets beside the request itself.
#[derive(Debug, Clone)]
pub struct RequestContext {
    pub info: RequestInfo,
    pub user: Arc<UserInfo>,
    /// Query parameters in the order given, decoded.
    pub query: Vec<(String, String)>,
    /// Of a write that would create the object where it is not there: why the user may not.
    pub create_refused: Option<ApiError>,
}

impl RequestContext {
    /// The first value of a query parameter.
    pub fn query(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// Whether a query parameter says yes (`true`, `1`, or present without a value).
    pub fn flag(&self, name: &str) -> bool {
        self.query(name).is_some_and(|value| matches!(value, "" | "1" | "true" | "True" | "TRUE" | "t" | "T"))
    }
}

/// Settings of a server.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// Domain of the cluster's DNS: `cluster.local`.
    pub cluster_domain: String,
    pub cluster_cidr: IpNet,
    pub service_cidr: IpNet,
    /// Where the cluster's DNS answers.
    pub cluster_dns: IpAddr,
    /// Where other machines reach this server.
    pub advertise: SocketAddr,
    /// Whether a request without credentials is `system:anonymous`; otherwise it is refused.
    pub anonymous: bool,
}

impl ServerConfig {
    /// The address of the Service `kubernetes`: the first of the service range.
    pub fn kubernetes_service_ip(&self) -> IpAddr {
        nth_address(&self.service_cidr, 1)
    }
}

/// The `n`th address of a range, the network's own being the 0th.
pub fn nth_address(range: &IpNet, n: u32) -> IpAddr {
    match range {
        IpNet::V4(range) => u32::from(range.network()).wrapping_add(n).to_be_bytes().into(),
        IpNet::V6(range) => u128::from(range.network()).wrapping_add(u128::from(n)).to_be_bytes().into(),
    }
}

/// What a server is made of; `cmd` puts it together.
pub struct ServerParts {
    pub registry: Arc<Registry>,
    pub authorizer: Arc<Authorizer>,
    pub config: ServerConfig,
    /// Tokens that are known from the start.
    pub static_tokens: Vec<StaticToken>,
    /// Signs service account tokens.
    pub token_key: Arc<SigningKey>,
    /// Signs certificates of users and nodes on request.
    pub client_ca: Arc<Ca>,
    /// The CA of the API's own certificate, which service accounts are given to trust.
    pub server_ca: Arc<Ca>,
    /// How kubelets are believed and shown who calls.
    pub node_tls: ClientTls,
    pub tasks: TaskGroup,
}

/// The API server. One a process.
pub struct Server {
    pub registry: Arc<Registry>,
    pub authenticator: Authenticator,
    pub authorizer: Arc<Authorizer>,
    pub tokens: Arc<TokenIssuer>,
    pub config: ServerConfig,
    pub client_ca: Arc<Ca>,
    pub server_ca: Arc<Ca>,
    /// Connections to kubelets and pods.
    pub nodes: node::Nodes,
    /// The connections that nodes have opened.
    pub tunnels: Arc<tunnel::Tunnels>,
    /// What ends with the identity of a node.
    pub identities: identities::Identities,
    pub health: health::Health,
    pub clock: SharedClock,
    /// Watches and tunnels end with its token.
    pub tasks: TaskGroup,
    inflight: filters::inflight::Inflight,
}

impl Server {
    /// Puts a server together. It serves what [`handle`](Self::handle) is given; listeners are the caller's.
    pub fn new(parts: ServerParts) -> Arc<Self> {
        let ServerParts { registry, authorizer, config, static_tokens, token_key, client_ca, server_ca, node_tls, tasks } = parts;
        let clock = Arc::clone(registry.clock());
        let tokens = Arc::new(TokenIssuer::new(token_key, &config.cluster_domain, Arc::clone(&clock)));
        let authn = AuthnConfig {
            store: Arc::clone(registry.store()),
            tokens: Arc::clone(&tokens),
            static_tokens,
            anonymous: config.anonymous,
            clock: Arc::clone(&clock),
        };
        let health = health::Health::default();
        health.add("ping", health::Probe::Live, Arc::new(|| Ok(())));
        let token = tasks.token();
        let running = move || if token.is_cancelled() { Err("shutting down".to_owned()) } else { Ok(()) };
        health.add("shutdown", health::Probe::Ready, Arc::new(running));
        let store = Arc::clone(registry.store());
        let has_roles = move || match store.snapshot().get(bootstrap::SETUP_ROLE) {
            Some(_) => Ok(()),
            None => Err("the roles of a new cluster are not there yet".to_owned()),
        };
        health.add("poststarthook/rbac/bootstrap-roles", health::Probe::Ready, Arc::new(has_roles));
        let tunnels: Arc<tunnel::Tunnels> = Arc::default();
        Arc::new(Self {
            authenticator: Authenticator::new(authn),
            nodes: node::Nodes::new(node_tls, Arc::clone(&tunnels) as Arc<_>, tasks.clone()),
            tunnels,
            identities: identities::Identities::default(),
            inflight: filters::inflight::Inflight::default(),
            registry,
            authorizer,
            tokens,
            config,
            client_ca,
            server_ca,
            health,
            clock,
            tasks,
        })
    }

    /// Answers a request, of a connection or of the loopback: there is no other way in.
    pub async fn handle(self: &Arc<Self>, request: HttpRequest) -> HttpResponse {
        filters::run(self, request).await
    }
}

#[async_trait]
impl Handler for Server {
    async fn handle(self: Arc<Self>, request: HttpRequest) -> HttpResponse {
        Self::handle(&self, request).await
    }

    /// Works out once what user the connection's certificate names.
    fn connected(&self, connection: &mut Extensions) {
        let Some(peer) = connection.get::<PeerCertificates>().filter(|peer| peer.verified) else { return };
        let Some(leaf) = peer.chain.first() else { return };
        match CertificateUser::of(leaf) {
            Ok(Some(user)) => drop(connection.insert(user)),
            Ok(None) => tracing::debug!("a client certificate without a common name"),
            Err(error) => tracing::debug!(%error, "a client certificate that does not parse"),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
