//! The tunnels of nodes: agents only dial out, so each opens a connection to every server, and requests to the node and to its pods
//! go back over it. A node without a tunnel (the one in this process) is dialled.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use ::http::{HeaderValue, Response, StatusCode};
use async_trait::async_trait;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{RequestContext, Server};
use crate::api::ApiError;
use crate::api::status::Reason;
use crate::http::connector::{ByteStream, Dial, Endpoint, dial};
use crate::http::reverse::{self, PipeError, Pipes};
use crate::http::{BoxError, HttpRequest, HttpResponse, empty, tunnel};
use crate::rt::{Backoff, TaskGroup, clock, random};

/// Where a node opens its tunnel.
pub const PATH: &str = "/orch/v1/tunnel";
/// Says which server this is: one server may be known under several addresses.
pub const SERVER_ID: &str = "orch-server-id";
/// The servers that the node has a tunnel to already, separated by commas.
pub const CONNECTED: &str = "orch-connected";

/// How long a node that refuses connections is taken for one that is about to come: its agent, or this process, has just started.
const COMING: Duration = Duration::from_secs(5);

/// The tunnels that stand, by the name of the node.
pub struct Tunnels {
    server_id: String,
    standing: Mutex<HashMap<String, Tunnel>>,
    /// How many were opened: the number of the newest.
    opened: watch::Sender<u64>,
}

struct Tunnel {
    number: u64,
    pipes: Pipes,
    /// Cancelled when another takes its place.
    replaced: CancellationToken,
}

impl Default for Tunnels {
    fn default() -> Self {
        Self { server_id: random::uid(), standing: Mutex::default(), opened: watch::Sender::new(0) }
    }
}

impl Tunnels {
    /// Ends the tunnel of a node: it is not to be reached any more.
    pub fn close(&self, node: &str) {
        if let Some(tunnel) = self.standing.lock().remove(node) {
            tunnel.replaced.cancel();
        }
    }

    fn of(&self, node: &str) -> Option<Pipes> {
        let standing = self.standing.lock();
        standing.get(node).filter(|tunnel| !tunnel.pipes.is_closed()).map(|tunnel| tunnel.pipes.clone())
    }

    /// Waits until a node has opened its tunnel.
    async fn wait_for(&self, node: &str) -> Pipes {
        let mut opened = self.opened.subscribe();
        loop {
            opened.borrow_and_update();
            if let Some(pipes) = self.of(node) {
                return pipes;
            }
            if opened.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    fn put(&self, node: &str, pipes: Pipes) -> (u64, CancellationToken) {
        let mut number = 0;
        // Who waits is told when the tunnel is there: the change is seen after the lock below is free.
        let mut standing = self.standing.lock();
        self.opened.send_modify(|opened| {
            *opened += 1;
            number = *opened;
        });
        let replaced = CancellationToken::new();
        let tunnel = Tunnel { number, pipes, replaced: replaced.clone() };
        if let Some(before) = standing.insert(node.to_owned(), tunnel) {
            tracing::debug!(node, "a new tunnel takes the place of the one before");
            before.replaced.cancel();
        }
        (number, replaced)
    }

    fn remove(&self, node: &str, number: u64) {
        let mut standing = self.standing.lock();
        if standing.get(node).is_some_and(|tunnel| tunnel.number == number) {
            standing.remove(node);
        }
    }

    /// Keeps a tunnel until it ends.
    async fn keep(&self, node: &str, stream: hyper::upgrade::OnUpgrade, tasks: &TaskGroup) -> Result<(), BoxError> {
        let (pipes, life) = Pipes::over(TokioIo::new(stream.await?), tasks).await?;
        let (number, replaced) = self.put(node, pipes);
        tracing::info!(node, "the node's tunnel is open");
        let (stopped, ended) = (tasks.token(), replaced.run_until_cancelled(life));
        let ended = stopped.run_until_cancelled(ended).await.flatten();
        self.remove(node, number);
        tracing::info!(node, "the node's tunnel is closed");
        ended.unwrap_or(Ok(()))
    }
}

#[async_trait]
impl Dial for Tunnels {
    async fn dial(&self, to: &Endpoint) -> Result<Box<dyn ByteStream>, BoxError> {
        let Some(node) = to.via.as_deref() else { return straight(to).await };
        if let Some(pipes) = self.of(node) {
            match pipes.open(&to.authority()).await {
                Ok(pipe) => return Ok(Box::new(pipe)),
                Err(PipeError::Refused(refusal)) => return Err(refusal.message.into()),
                Err(error @ PipeError::Broken(_)) => tracing::debug!(node, %error, "dialling the node itself"),
            }
        }
        // A node that cannot be dialled may be about to open its tunnel: after a restart of this server, or of its own.
        tokio::select! {
            dialled = until_it_listens(to) => dialled,
            pipes = self.wait_for(node) => Ok(Box::new(pipes.open(&to.authority()).await?)),
        }
    }
}

/// Dials a node, again for a while when it is there but does not listen.
async fn until_it_listens(to: &Endpoint) -> Result<Box<dyn ByteStream>, BoxError> {
    let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_millis(500));
    let given_up_at = clock::instant() + COMING;
    loop {
        match dial(&to.host, to.port).await {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused && clock::instant() < given_up_at => {
                tokio::time::sleep(backoff.next_delay()).await;
            }
            dialled => return told(to, dialled),
        }
    }
}

async fn straight(to: &Endpoint) -> Result<Box<dyn ByteStream>, BoxError> {
    told(to, dial(&to.host, to.port).await)
}

fn told(to: &Endpoint, dialled: io::Result<TcpStream>) -> Result<Box<dyn ByteStream>, BoxError> {
    Ok(Box::new(dialled.map_err(|error| format!("dial tcp {}: connect: {error}", to.authority()))?))
}

/// Answers a node that opens its tunnel: the connection turns round.
///
/// # Errors
/// 403 for whoever is no node, 400 for a request that is no upgrade, 409 when the node has a tunnel to this server already.
pub(super) fn serve(server: &Arc<Server>, context: &RequestContext, mut request: HttpRequest) -> Result<HttpResponse, ApiError> {
    let Some(node) = context.user.node_name().map(str::to_owned) else {
        let message = format!("forbidden: User {:?} is no node: only a node opens its tunnel", context.user.name);
        return Err(ApiError::new(403, Reason::Forbidden, message));
    };
    let headers = request.headers();
    let connected = headers.get(CONNECTED).and_then(|value| value.to_str().ok()).unwrap_or("");
    let server_id = server.tunnels.server_id.as_str();
    if connected.split(',').any(|id| id.trim() == server_id) {
        return Err(ApiError::new(409, Reason::Conflict, format!("node {node:?} has a tunnel to this server already")));
    }
    let is_upgrade = reverse::is_upgrade(headers);
    let Some(stream) = tunnel::upgrade_of(&mut request).filter(|_| is_upgrade) else {
        return Err(ApiError::bad_request(format!("Upgrade request to {} required", reverse::PROTOCOL)));
    };
    let mut response = Response::new(empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().extend(reverse::upgrade_headers());
    response.headers_mut().insert(SERVER_ID, HeaderValue::from_str(server_id).map_err(ApiError::internal)?);
    let (tunnels, tasks) = (Arc::clone(&server.tunnels), server.tasks.clone());
    server.tasks.spawn(async move {
        if let Err(error) = tunnels.keep(&node, stream, &tasks).await {
            tracing::debug!(node, %error, "the node's tunnel broke");
        }
    });
    Ok(response)
}
