//! The node's own objects: registers the Node, keeps its status, renews its Lease. The status is written when it changes, and every
//! five minutes; the Lease is what says, every ten seconds, that the node lives.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::{ContainerImage, Node, NodeStatus, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use super::AgentConfig;
use super::eviction::Pressures;
use super::eviction::signal::Pressure;
use super::pod::context::EventSink;
use crate::client::informer::Informer;
use crate::client::{ClientError, PatchKind};
use crate::cri::{Runtime, RuntimeInfo};
use crate::rt::Backoff;

pub mod facts;
mod object;
pub mod reserve;

use object::{Health, StatusInput};

const LEASE_NAMESPACE: &str = "kube-node-lease";
const LEASE_RENEWAL: Duration = Duration::from_secs(10);
const LEASE_SECONDS: i32 = 40;
/// How often the node's health is looked at when nothing is heard.
const HEALTH_INTERVAL: Duration = Duration::from_secs(10);
/// How often the status is written although nothing changed.
const STATUS_INTERVAL: Duration = Duration::from_secs(300);
/// Images in the status at most, the largest first.
const MAX_IMAGES: usize = 50;

/// Keeps the node's objects.
pub struct NodeKeeper {
    config: AgentConfig,
    runtime: watch::Sender<Option<RuntimeInfo>>,
    /// Why the pod network is not there, until it is.
    network_problem: Mutex<Option<String>>,
    pressures: Arc<Pressures>,
    events: Arc<dyn EventSink>,
    news: Notify,
}

impl NodeKeeper {
    /// A keeper that has not said anything yet.
    pub fn new(config: AgentConfig, events: Arc<dyn EventSink>) -> Self {
        let network_problem = Mutex::new(Some(network_not_ready("the node has no podCIDR yet")));
        let (runtime, pressures, news) = (watch::Sender::new(None), Arc::default(), Notify::new());
        Self { config, runtime, network_problem, pressures, events, news }
    }

    /// What the engine is, once it has answered.
    pub fn runtime_info(&self) -> watch::Receiver<Option<RuntimeInfo>> {
        self.runtime.subscribe()
    }

    /// What the node is short of; who changes it says [`look_again`](Self::look_again).
    pub fn pressures(&self) -> Arc<Pressures> {
        Arc::clone(&self.pressures)
    }

    /// Says why the pod network is not there, or that it is; the node's status follows at once.
    pub fn set_network(&self, problem: Option<&str>) {
        *self.network_problem.lock() = problem.map(network_not_ready);
        self.news.notify_one();
    }

    /// Looks at the node's health now: the runtime was heard of.
    pub fn look_again(&self) {
        self.news.notify_one();
    }

    /// Keeps the Node and its status, for ever.
    pub async fn run(&self, nodes: Arc<Informer<Node>>) {
        let node = self.register().await;
        self.announce(&node, "Starting", "Starting kubelet.");
        let mut known = node.status.clone().unwrap_or_default();
        let mut written_at = None;
        loop {
            let is_due = written_at.is_none_or(|at: tokio::time::Instant| at.elapsed() >= STATUS_INTERVAL);
            match self.write_status(&known, is_due).await {
                Ok(Some(status)) => {
                    let was_ready = is_ready(&known);
                    for word in turned(&known, &status) {
                        self.announce(&node, word, &format!("Node {} status is now: {word}", self.config.node_name));
                    }
                    known = status;
                    written_at = Some(crate::rt::clock::instant());
                    if is_ready(&known) != was_ready {
                        let word = if was_ready { "NodeNotReady" } else { "NodeReady" };
                        self.announce(&node, word, &format!("Node {} status is now: {word}", self.config.node_name));
                    }
                }
                Ok(None) => {}
                Err(error) if error.is_not_found() => {
                    tracing::warn!(node = self.config.node_name, "the Node is gone from the API; registering it again");
                    known = self.register().await.status.unwrap_or_default();
                    written_at = None;
                }
                Err(error) => tracing::warn!(%error, "the node's status was not written; trying again"),
            }
            // What others write into the status (and what a server lost) is taken into account.
            if let Some(status) = nodes.get("", &self.config.node_name).and_then(|node| node.status.clone())
                && written_at.is_some_and(|at| at.elapsed() > HEALTH_INTERVAL)
            {
                known = status;
            }
            tokio::select! {
                () = self.news.notified() => {}
                () = tokio::time::sleep(HEALTH_INTERVAL) => {}
            }
        }
    }

    fn announce(&self, node: &Node, reason: &str, message: &str) {
        self.events.event(&self.about(node.metadata.uid.clone()), false, reason, message);
    }

    /// Records a warning about the node.
    pub fn warn(&self, reason: &str, message: &str) {
        self.events.event(&self.about(None), true, reason, message);
    }

    /// The node as events refer to it. Upstream's carry its name as uid where that is not known.
    fn about(&self, uid: Option<String>) -> ObjectReference {
        let name = Some(self.config.node_name.clone());
        ObjectReference { kind: Some("Node".to_owned()), uid: uid.or_else(|| name.clone()), name, ..ObjectReference::default() }
    }

    /// Registers the Node, or takes over the one that is there.
    async fn register(&self) -> Node {
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(7));
        loop {
            match self.try_register().await {
                Ok(node) => return node,
                Err(error) => {
                    tracing::warn!(node = self.config.node_name, %error, "cannot register the node; trying again");
                    tokio::time::sleep(backoff.next_delay()).await;
                }
            }
        }
    }

    async fn try_register(&self) -> Result<Node, ClientError> {
        let (client, name) = (&self.config.client, &self.config.node_name);
        let status = self.status(&NodeStatus::default(), false).await;
        match client.create(&object::registration(&self.config, status)).await {
            Err(error) if error.is_already_exists() => {}
            other => return other,
        }
        let node: Node = client.get("", name).await?;
        match object::label_patch(&self.config, &node) {
            Some(patch) => client.patch("", name, None, PatchKind::Strategic, &patch).await,
            None => Ok(node),
        }
    }

    async fn health(&self) -> Health {
        let mut problems = Vec::new();
        match self.config.runtime.info().await {
            Ok(info) => {
                self.runtime.send_if_modified(|known| {
                    let is_news = known.as_ref() != Some(&info);
                    *known = Some(info);
                    is_news
                });
            }
            Err(error) => problems.push(format!("container runtime is down: {error}")),
        }
        problems.extend(self.network_problem.lock().clone());
        Health { problems, pressures: self.pressures.now() }
    }

    async fn status(&self, known: &NodeStatus, with_images: bool) -> NodeStatus {
        let health = self.health().await;
        let images = if with_images { images(&*self.config.runtime).await } else { None };
        let info = facts::system_info(self.runtime.borrow().as_ref());
        let mut capacity = facts::capacity(&self.config.data_dir);
        // Only Docker's NVIDIA runtime can give devices to containers.
        if !self.runtime.borrow().as_ref().is_some_and(|info| info.runtimes.contains("nvidia")) {
            capacity.gpus = 0;
        }
        let now = self.config.clock.now();
        object::status(StatusInput { config: &self.config, capacity, info, health: &health, images, known, now })
    }

    async fn write_status(&self, known: &NodeStatus, is_due: bool) -> Result<Option<NodeStatus>, ClientError> {
        let wanted = self.status(known, is_due).await;
        if !is_due && object::says_the_same(known, &wanted) {
            return Ok(None);
        }
        let patch = match object::status_patch(known, &wanted) {
            Ok(patch) => patch,
            Err(error) => {
                tracing::error!(%error, "the node's status does not serialize");
                return Ok(None);
            }
        };
        let name = &self.config.node_name;
        let node: Node = self.config.client.patch("", name, Some("status"), PatchKind::Strategic, &patch).await?;
        Ok(Some(node.status.unwrap_or(wanted)))
    }

    /// Renews the node's Lease, for ever.
    pub async fn run_lease(&self, nodes: Arc<Informer<Node>>) {
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(7));
        let mut lease: Option<Lease> = None;
        loop {
            let owner = nodes.get("", &self.config.node_name).and_then(|node| node.metadata.uid.clone());
            match self.renew(lease.take(), owner).await {
                Ok(renewed) => {
                    lease = Some(renewed);
                    backoff.reset();
                    tokio::time::sleep(LEASE_RENEWAL).await;
                }
                Err(error) => {
                    tracing::debug!(%error, "the node's lease was not renewed; trying again");
                    tokio::time::sleep(backoff.next_delay()).await;
                }
            }
        }
    }

    async fn renew(&self, known: Option<Lease>, owner: Option<String>) -> Result<Lease, ClientError> {
        let (client, name) = (&self.config.client, &self.config.node_name);
        let lease = match known {
            Some(lease) => Some(lease),
            None => match client.get::<Lease>(LEASE_NAMESPACE, name).await {
                Ok(lease) => Some(lease),
                Err(error) if error.is_not_found() => None,
                Err(error) => return Err(error),
            },
        };
        let is_new = lease.is_none();
        let mut lease = lease.unwrap_or_default();
        lease.metadata = ObjectMeta { name: Some(name.clone()), namespace: Some(LEASE_NAMESPACE.to_owned()), ..lease.metadata };
        if let (None, Some(uid)) = (&lease.metadata.owner_references, owner) {
            lease.metadata.owner_references = Some(vec![OwnerReference {
                api_version: "v1".to_owned(),
                kind: "Node".to_owned(),
                name: name.clone(),
                uid,
                ..OwnerReference::default()
            }]);
        }
        let now = self.config.clock.now();
        let renew_time = jiff::Timestamp::from_microsecond(now.as_microsecond()).unwrap_or(now);
        lease.spec = Some(LeaseSpec {
            holder_identity: Some(name.clone()),
            lease_duration_seconds: Some(LEASE_SECONDS),
            renew_time: Some(MicroTime(renew_time)),
            ..lease.spec.unwrap_or_default()
        });
        if is_new { client.create(&lease).await } else { client.update(&lease).await }
    }
}

fn network_not_ready(why: &str) -> String {
    format!("container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady message:{why}")
}

/// The reasons of the events that say which pressures came and went.
fn turned(before: &NodeStatus, now: &NodeStatus) -> Vec<&'static str> {
    let is_on = |status: &NodeStatus, pressure: Pressure| {
        let mut all = status.conditions.iter().flatten();
        all.any(|condition| condition.type_ == pressure.condition() && condition.status == "True")
    };
    let turned = Pressure::ALL.into_iter().filter(|pressure| is_on(before, *pressure) != is_on(now, *pressure));
    turned.map(|pressure| pressure.event(is_on(now, pressure))).collect()
}

fn is_ready(status: &NodeStatus) -> bool {
    status.conditions.iter().flatten().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

async fn images(runtime: &dyn Runtime) -> Option<Vec<ContainerImage>> {
    let mut images = runtime.images().await.ok()?;
    images.sort_by_key(|image| std::cmp::Reverse(image.size_bytes));
    let named = images.into_iter().filter(|image| !(image.tags.is_empty() && image.digests.is_empty()));
    let images = named.take(MAX_IMAGES).map(|image| ContainerImage {
        names: Some(image.digests.into_iter().chain(image.tags).collect()),
        size_bytes: i64::try_from(image.size_bytes).ok(),
    });
    Some(images.collect())
}

#[cfg(test)]
mod tests;
