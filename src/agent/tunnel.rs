//! The agent's side of the tunnel: it dials every server that it knows, keeps the connection, and serves on it what the server asks
//! for: its own HTTPS server, and the ports of its pods. Nothing else is reached through it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ::http::{HeaderValue, Request, StatusCode, Uri, header};
use async_trait::async_trait;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::Pods;
use super::server::KubeletServer;
use crate::client::https::Https;
use crate::http::connector::Endpoint;
use crate::http::listener::{GroupExecutor, serve_tls};
use crate::http::reverse::{self, Pipe, Refusal, Serve, Targets};
use crate::http::tls::ServerTls;
use crate::http::{BoxError, HttpResponse, empty};
use crate::rt::{Backoff, TaskGroup};

/// The API server's path, and its headers: which server it is, and which the node is connected to.
const PATH: &str = "/orch/v1/tunnel";
const SERVER_ID: &str = "orch-server-id";
const CONNECTED: &str = "orch-connected";
/// A tunnel that lived this long was a good one: the next try comes soon.
const GOOD: Duration = Duration::from_secs(10);
/// How often an address of a server that is connected under another one is tried again.
const DUPLICATE: Duration = Duration::from_secs(60);
/// Bytes held in each direction of a pipe to a pod.
const BUFFER_BYTES: usize = 64 << 10;

/// What the tunnel leads to.
pub struct NodeTargets {
    /// Names and addresses by which servers call this node.
    pub names: Vec<String>,
    pub kubelet_port: u16,
    pub kubelet: Arc<KubeletServer>,
    /// By which the node's server is known, and whose clients it believes.
    pub tls: Arc<ServerTls>,
    pub pods: Arc<Pods>,
    pub tasks: TaskGroup,
}

impl NodeTargets {
    fn is_own(&self, host: &str) -> bool {
        self.names.iter().any(|name| name == host)
    }

    /// Whether a pod of this node has the address; right after the agent's start, waits until its pods are found again.
    async fn has_pod(&self, host: &str) -> bool {
        self.pods.recovered_or(|| self.has_published(host)).await;
        self.has_published(host)
    }

    fn has_published(&self, host: &str) -> bool {
        let addresses = |status: &k8s_openapi::api::core::v1::PodStatus| {
            status.pod_ip.as_deref() == Some(host) || status.pod_ips.iter().flatten().any(|ip| ip.ip == host)
        };
        self.pods.list().iter().any(|pod| pod.status.as_ref().is_some_and(addresses))
    }

    fn serve_kubelet(self: Arc<Self>) -> Serve {
        Box::new(move |pipe: Pipe| {
            Box::pin(async move {
                let (token, executor) = (self.tasks.token(), GroupExecutor(self.tasks.clone()));
                let handler = Arc::clone(&self.kubelet) as Arc<_>;
                // There is no address at the other end but the API server's, which its certificate names.
                let remote = SocketAddr::from(([0, 0, 0, 0], 0));
                serve_tls(pipe, remote, &self.tls, handler, token, executor).await;
            })
        })
    }
}

#[async_trait]
impl Targets for NodeTargets {
    async fn connect(self: Arc<Self>, target: &str) -> Result<Serve, Refusal> {
        let split = target.rsplit_once(':').and_then(|(host, port)| Some((host.trim_matches(['[', ']']), port.parse().ok()?)));
        let (host, port): (&str, u16) = split.ok_or_else(|| Refusal::forbidden(format!("{target:?} is no host and port")))?;
        if self.is_own(host) && port == self.kubelet_port {
            return Ok(self.serve_kubelet());
        }
        let address = match host.parse::<IpAddr>() {
            Ok(address) if self.is_own(host) || self.has_pod(host).await => address,
            _ => return Err(Refusal::forbidden(format!("{host} is no address of this node or of its pods"))),
        };
        let dialled = TcpStream::connect((address, port)).await;
        let mut stream =
            dialled.map_err(|error| Refusal::bad_gateway(format!("dial tcp {target}: connect: {}", plain(&error))))?;
        Ok(Box::new(move |mut pipe| {
            Box::pin(async move {
                let copied = tokio::io::copy_bidirectional_with_sizes(&mut pipe, &mut stream, BUFFER_BYTES, BUFFER_BYTES).await;
                if let Err(error) = copied {
                    tracing::debug!(%error, "a pipe broke");
                }
            })
        }))
    }
}

/// The system's words in Go's form: `connection refused`.
fn plain(error: &std::io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_lowercase()
}

/// Keeps a tunnel to every server that `uplink` knows, until the targets' tasks are cancelled.
pub async fn run(uplink: Arc<Https>, targets: Arc<NodeTargets>) {
    let mut servers = uplink.servers().watch();
    let tasks = targets.tasks.clone();
    let keeper = Arc::new(Keeper { uplink, targets, connected: watch::Sender::default() });
    let mut kept: BTreeMap<String, TaskGroup> = BTreeMap::new();
    loop {
        let wanted = servers.borrow_and_update().clone();
        let names: BTreeSet<String> = wanted.iter().map(Endpoint::authority).collect();
        kept.retain(|name, group| {
            let stays = names.contains(name);
            if !stays {
                group.cancel();
            }
            stays
        });
        for endpoint in wanted {
            kept.entry(endpoint.authority()).or_insert_with(|| {
                let (group, keeper) = (tasks.child(), Arc::clone(&keeper));
                let (token, own) = (group.token(), group.clone());
                tasks.spawn(async move {
                    keeper.keep(&endpoint, &own).await;
                    token.cancel();
                });
                group
            });
        }
        let token = tasks.token();
        match token.run_until_cancelled(servers.changed()).await {
            Some(Ok(())) => {}
            Some(Err(_)) | None => return,
        }
    }
}

struct Keeper {
    uplink: Arc<Https>,
    targets: Arc<NodeTargets>,
    /// Ids of the servers that there is a tunnel to.
    connected: watch::Sender<BTreeSet<String>>,
}

enum Opened {
    Tunnel {
        stream: hyper::upgrade::OnUpgrade,
        server_id: String,
    },
    /// The server is connected under another address.
    Duplicate,
}

impl Keeper {
    /// Keeps the tunnel to one server until `tasks` is cancelled.
    async fn keep(&self, endpoint: &Endpoint, tasks: &TaskGroup) {
        let token = tasks.token();
        let mut backoff = Backoff::new(Duration::from_millis(250), Duration::from_secs(30));
        while !token.is_cancelled() {
            let started = crate::rt::clock::instant();
            let Some(ended) = token.run_until_cancelled(self.open(endpoint)).await else { return };
            let ended = match ended {
                Ok(Opened::Tunnel { stream, server_id }) => self.serve(endpoint, stream, server_id, tasks).await,
                Ok(Opened::Duplicate) => {
                    self.wait_for_change(tasks).await;
                    continue;
                }
                Err(error) => Err(error),
            };
            if token.is_cancelled() {
                return;
            }
            if started.elapsed() >= GOOD {
                backoff.reset();
            }
            let delay = backoff.next_delay();
            match ended {
                Ok(()) => tracing::info!(server = endpoint.authority(), "the tunnel was closed; opening another"),
                Err(error) if backoff.attempts() == 3 => {
                    tracing::warn!(server = endpoint.authority(), %error, "there is no tunnel to the server; trying again");
                }
                Err(error) => tracing::debug!(server = endpoint.authority(), %error, "no tunnel; trying again"),
            }
            token.run_until_cancelled(tokio::time::sleep(delay)).await;
        }
    }

    /// Waits until a tunnel to some server is gone, or a while.
    async fn wait_for_change(&self, tasks: &TaskGroup) {
        let mut connected = self.connected.subscribe();
        let changed = tokio::time::timeout(crate::rt::random::jitter(DUPLICATE, 0.2), connected.changed());
        tasks.token().run_until_cancelled(changed).await;
    }

    async fn open(&self, endpoint: &Endpoint) -> Result<Opened, BoxError> {
        let mut request = Request::new(empty());
        *request.uri_mut() = Uri::from_static(PATH);
        *request.headers_mut() = reverse::upgrade_headers();
        request.headers_mut().insert(header::USER_AGENT, HeaderValue::from_static("orch/tunnel"));
        let connected = self.connected.borrow().iter().cloned().collect::<Vec<_>>().join(",");
        if !connected.is_empty() {
            request.headers_mut().insert(CONNECTED, HeaderValue::try_from(connected)?);
        }
        let mut response = self.uplink.send_to(endpoint, request).await?;
        if response.status() == StatusCode::CONFLICT {
            return Ok(Opened::Duplicate);
        }
        let server_id = server_id(&response).unwrap_or_else(|| endpoint.authority());
        let status = response.status();
        let stream = reverse::granted(&mut response).ok_or_else(|| format!("the server answers {status}"))?;
        Ok(Opened::Tunnel { stream, server_id })
    }

    async fn serve(
        &self,
        endpoint: &Endpoint,
        stream: hyper::upgrade::OnUpgrade,
        server_id: String,
        tasks: &TaskGroup,
    ) -> Result<(), BoxError> {
        let stream = TokioIo::new(stream.await?);
        tracing::info!(server = endpoint.authority(), "the tunnel is open");
        self.connected.send_modify(|connected| {
            connected.insert(server_id.clone());
        });
        let ended = reverse::serve(stream, Arc::clone(&self.targets) as Arc<_>, tasks).await;
        self.connected.send_modify(|connected| {
            connected.remove(&server_id);
        });
        ended
    }
}

fn server_id(response: &HttpResponse) -> Option<String> {
    response.headers().get(SERVER_ID)?.to_str().ok().map(str::to_owned)
}
