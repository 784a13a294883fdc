//! The way to kubelets: logs, exec, attach, port-forward and `nodes/proxy` go to the node's own HTTPS server over mutual TLS,
//! through the node's tunnel where it has one ([`tunnels`](super::tunnel)). What is upgraded (SPDY, WebSocket) is passed through as raw bytes.

use std::sync::Arc;

use ::http::{HeaderMap, StatusCode, Uri, header};
use k8s_openapi::api::core::v1::Node;

use super::{RequestContext, Server};
use crate::api::ApiError;
use crate::http::connector::{Connector, Dial, Endpoint};
use crate::http::tls::ClientTls;
use crate::http::{HttpRequest, HttpResponse, is_upgrade, tunnel};
use crate::kinds::core;
use crate::rt::TaskGroup;

/// The port of a kubelet that does not say.
const KUBELET_PORT: u16 = 10_250;
/// Kinds of addresses in the order in which they are tried, as upstream's `--kubelet-preferred-address-types`.
const ADDRESS_TYPES: [&str; 3] = ["InternalIP", "ExternalIP", "Hostname"];
/// Headers of one hop, which are not passed on.
const HOP: [&str; 8] =
    ["connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer", "transfer-encoding", "upgrade"];

/// Connections to kubelets, kept and shared.
pub struct Nodes {
    connector: Connector,
    tasks: TaskGroup,
}

impl Nodes {
    /// Connections that believe and show what `tls` says, and are made by `dialler`.
    pub fn new(tls: ClientTls, dialler: Arc<dyn Dial>, tasks: TaskGroup) -> Self {
        Self { connector: Connector::with_dial(tls, dialler, tasks.clone()), tasks }
    }

    /// Changes what new connections believe and show (a renewed certificate).
    pub fn replace_tls(&self, tls: ClientTls) {
        self.connector.replace_tls(tls);
    }
}

/// Sends a request to the kubelet of a node at `path_and_query` (`/containerLogs/ns/pod/c?follow=true`) and hands back its
/// answer, whatever its status. If the request asks for an upgrade and the kubelet grants it, the two connections are joined.
///
/// # Errors
/// 404 when there is no such node, 503 when it has no address yet, 500 when it does not answer.
pub async fn proxy(
    server: &Arc<Server>,
    node_name: &str,
    path_and_query: &str,
    request: HttpRequest,
) -> Result<HttpResponse, ApiError> {
    forward(server, &endpoint(server, node_name)?, path_and_query, request).await
}

/// Sends a request to an endpoint of the cluster and hands back its answer, whatever its status; upgrades are passed through.
///
/// # Errors
/// 500 when it does not answer.
pub async fn forward(
    server: &Arc<Server>,
    endpoint: &Endpoint,
    path_and_query: &str,
    mut request: HttpRequest,
) -> Result<HttpResponse, ApiError> {
    let uri: Uri = path_and_query.parse().map_err(|_| ApiError::bad_request(format!("invalid path {path_and_query:?}")))?;
    let client = tunnel::upgrade_of(&mut request);
    *request.uri_mut() = uri;
    let upgrade = is_upgrade(request.headers());
    request.headers_mut().remove(header::AUTHORIZATION);
    if !upgrade {
        strip_hop(request.headers_mut());
    }
    let method = request.method().clone();
    let sent = server.nodes.connector.send(endpoint, request).await;
    let mut response = sent.map_err(|error| {
        let Endpoint { tls, host, port, .. } = endpoint;
        let scheme = if *tls { "https" } else { "http" };
        tracing::debug!(%host, port, %error, "no answer");
        ApiError::internal(format!("{method} \"{scheme}://{host}:{port}{path_and_query}\": {error}"))
    })?;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        tunnel::join(client, &mut response, &server.nodes.tasks);
    } else {
        strip_hop(response.headers_mut());
    }
    Ok(response)
}

/// Serves `nodes/NAME/proxy/PATH`; a name may be `https:NAME:PORT`, of which the node is what counts.
///
/// # Errors
/// As [`proxy`].
pub async fn serve_proxy(server: &Arc<Server>, context: &RequestContext, request: HttpRequest) -> Result<HttpResponse, ApiError> {
    let name = match context.info.name.split(':').collect::<Vec<_>>()[..] {
        [_scheme, name, _port] => name,
        [name, ..] => name,
        [] => "",
    };
    let query = request.uri().query().map(|query| format!("?{query}")).unwrap_or_default();
    let path = format!("/{}{query}", context.info.rest);
    proxy(server, name, &path, request).await
}

fn endpoint(server: &Server, node_name: &str) -> Result<Endpoint, ApiError> {
    let kind = &core::node::NODE;
    let node: Node = server.registry.get_object(kind, "", node_name)?.typed()?;
    let status = node.status.unwrap_or_default();
    let addresses = status.addresses.unwrap_or_default();
    let address = ADDRESS_TYPES.iter().find_map(|wanted| addresses.iter().find(|address| address.type_ == *wanted));
    let address = address
        .ok_or_else(|| ApiError::unavailable(format!("no preferred addresses found; known addresses: []: node {node_name:?}")))?;
    let port = status.daemon_endpoints.and_then(|endpoints| endpoints.kubelet_endpoint).map(|kubelet| kubelet.port);
    let port = port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0).unwrap_or(KUBELET_PORT);
    Ok(Endpoint { tls: true, host: address.address.clone(), port, via: Some(node_name.into()) })
}

fn strip_hop(headers: &mut HeaderMap) {
    for name in HOP {
        headers.remove(name);
    }
}
