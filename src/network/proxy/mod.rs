//! The Service proxy: what kube-proxy does, by maps of nf_tables.
//!
//! # How a connection finds its endpoint
//!
//! The first packet to a Service's address is looked up in one verdict map by (address, protocol, port), however many Services
//! there are. The verdict leads to a chain that is shared by all Services with so many endpoints (`balance-3`): it draws a number,
//! and looks (address, protocol, port, number) up in a second map, which gives the endpoint. So a Service is nothing but elements of
//! maps, and a change of endpoints is a change of some elements, in one transaction. NodePorts are the same with keys of
//! (protocol, port) for the addresses that the node has. Session affinity is a third map, which the kernel fills by itself.
//!
//! # Source addresses
//!
//! An answer must come back through the node that translated. It does when the client or the endpoint is on this node: the source is
//! kept then. It is masqueraded for a client from elsewhere whose endpoint is elsewhere, and for an endpoint that is its own client.
//!
//! # Life
//!
//! Everything is decided by pure functions ([`plan`], [`endpoints`]) and held as the desired content of a table ([`table`]), from
//! which a change is sent as a difference. After a start nothing is touched until everything is known; then the table is replaced
//! in one transaction. While the API is away the rules stay. If somebody else changes the table it is made anew at once.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use k8s_openapi::api::core::v1::{Node, ObjectReference, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use tokio::time::Instant;

mod endpoints;
mod health;
mod hostport;
mod kernel;
mod layout;
mod localhost;
mod plan;
mod stale;
mod table;

use super::nft::{Batch, Changed, Monitor, Nft, NftError};
use super::parts::PartContext;
use crate::client::informer::{Change, Informer, Scope, Subscription};
use crate::client::recorder::{EventType, Recorder};
use crate::client::{Cached, ObjectKey, Source};
use crate::rt::{Backoff, clock};
use endpoints::NodeView;
use health::HealthServer;
use hostport::PodPorts;
use kernel::Kernel;
use layout::Layout;
pub use localhost::close_localhost;
use stale::Stale;

/// The name of the index of slices by the Service that they belong to.
const BY_SERVICE: &str = "proxy service";
const SERVICE_NAME: &str = "kubernetes.io/service-name";
const ZONE: &str = "topology.kubernetes.io/zone";
/// Repairs of a table that somebody else changes again and again are at least so far apart.
const REPAIR_INTERVAL: Duration = Duration::from_millis(200);
const RETRY: Backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(30));

/// The Service proxy of this node, as a part of the network: runs until it is dropped, and leaves the rules in force.
pub(super) fn run(context: PartContext) -> BoxFuture<'static, ()> {
    async move {
        let mut retry = RETRY;
        let mut trouble = Trouble::new(&context);
        loop {
            match Proxy::start(&context) {
                Ok(proxy) => proxy.run(&mut trouble).await,
                Err(error) => trouble.tell("the Service proxy cannot reach the kernel", &error),
            }
            tokio::time::sleep(retry.next_delay()).await;
        }
    }
    .boxed()
}

/// Takes the rules of a node's Services away: for uninstalling.
///
/// # Errors
/// When the kernel refuses.
pub(super) async fn remove(node: &str) -> Result<(), NftError> {
    let mut batch = Batch::new();
    batch.remove_table(&layout::table(node));
    Nft::open()?.commit(batch).await
}

/// Says in the log and in an event about the node why Services do not work there; each cause once.
struct Trouble {
    recorder: Recorder,
    node: ObjectReference,
    said: Option<String>,
}

impl Trouble {
    fn new(context: &PartContext) -> Self {
        let client = context.client.named("orch/proxy");
        let recorder = Recorder::new(&context.tasks, &client, "kube-proxy", &context.node, &context.clock);
        // As the kubelet names its node: by its name in the place of its uid.
        let (kind, name) = (Some("Node".to_owned()), Some(context.node.clone()));
        let node = ObjectReference { kind, uid: name.clone(), name, ..ObjectReference::default() };
        Self { recorder, node, said: None }
    }

    fn tell(&mut self, what: &str, error: &NftError) {
        let text = format!("{what}: {}", error.report());
        if self.said.as_ref() == Some(&text) {
            return;
        }
        tracing::warn!(error = text, "Services do not work on this node; trying again");
        self.recorder.event(&self.node, EventType::Warning, "FailedToSyncServiceRules", text.clone());
        self.said = Some(text);
    }
}

struct Watched {
    services: Arc<Informer<Service>>,
    slices: Arc<Informer<EndpointSlice>>,
    nodes: Arc<Informer<Node>>,
    pods: Arc<Informer<PodPorts>>,
}

struct Changes {
    services: Subscription<Service>,
    slices: Subscription<EndpointSlice>,
    nodes: Subscription<Node>,
    pods: Subscription<PodPorts>,
}

struct Proxy {
    context: PartContext,
    watched: Watched,
    node: NodeView,
    kernel: Kernel,
    monitor: Monitor,
    stale_nft: Nft,
    dirty: Dirty,
}

/// What is to be looked at again.
#[derive(Default)]
struct Dirty {
    services: BTreeSet<ObjectKey>,
    pods: BTreeSet<ObjectKey>,
    /// The node's own zone may have changed.
    node: bool,
}

/// Why the loop went on.
enum Woken {
    Service(Option<Change<Service>>),
    Slice(Option<Change<EndpointSlice>>),
    Node(Option<Change<Node>>),
    Pod(Option<Change<PodPorts>>),
    Foreign(Result<Changed, NftError>),
    Retry,
}

impl Proxy {
    fn start(context: &PartContext) -> Result<Self, NftError> {
        let (informers, node) = (&context.informers, &context.node);
        let slices = informers.of::<EndpointSlice>();
        slices.add_index(BY_SERVICE, |slice| service_of(slice).map(|key| key.to_string()).into_iter().collect());
        let of_node = Scope { query: format!("fieldSelector=spec.nodeName%3D{node}"), ..Scope::all() };
        let accept = "application/json".to_owned();
        let pods = Source { path: "/api/v1/pods".into(), query: of_node.query, accept_watch: accept.clone(), accept };
        let pods = Informer::start_source(&context.tasks, context.client.clone(), pods);
        let watched = Watched { services: informers.of(), slices, nodes: informers.of(), pods };
        let kernel = Kernel::new(Nft::open()?, Layout::new(node, context.pod_cidr, context.service_cidr));
        let monitor = kernel.monitor()?;
        let view = NodeView { name: node.clone(), zone: None };
        let stale_nft = Nft::open()?;
        Ok(Self { context: context.clone(), watched, node: view, kernel, monitor, stale_nft, dirty: Dirty::default() })
    }

    /// Runs until the monitor fails or the informers end.
    async fn run(self, trouble: &mut Trouble) {
        let stale = Stale::default();
        let forgetting = stale.run(self.stale_nft.clone());
        tokio::select! {
            () = forgetting => {}
            () = self.follow(&stale, trouble) => {}
        }
    }

    async fn follow(mut self, stale: &Stale, trouble: &mut Trouble) {
        let mut changes = Changes {
            services: self.watched.services.subscribe(),
            slices: self.watched.slices.subscribe(),
            nodes: self.watched.nodes.subscribe(),
            pods: self.watched.pods.subscribe(),
        };
        let mut health = HealthServer::new(&self.context, trouble.recorder.clone());
        let (mut backoff, mut retry_at, mut synced_at) = (RETRY, None, None);
        loop {
            let woken = self.wait(&mut changes, retry_at).await;
            if matches!(woken, Woken::Foreign(Ok(_)))
                && let Some(at) = synced_at
            {
                tokio::time::sleep_until(at + REPAIR_INTERVAL).await;
            }
            if !self.note(woken) {
                return;
            }
            self.note_waiting(&mut changes);
            if !self.is_ready() {
                continue;
            }
            self.replan();
            let synced = self.kernel.sync(stale).await;
            match &synced {
                Ok(()) if synced_at.is_none() => localhost::open(&self.context.data_dir).await,
                Ok(()) => {}
                Err(error) => trouble.tell("the rules of Services are not in force", error),
            }
            synced_at = Some(clock::instant());
            let is_whole = health.set(self.kernel.desired.health_checks()).await && synced.is_ok();
            if is_whole {
                (backoff, trouble.said) = (RETRY, None);
            }
            retry_at = (!is_whole).then(|| clock::instant() + backoff.next_delay());
        }
    }

    async fn wait(&mut self, changes: &mut Changes, retry_at: Option<Instant>) -> Woken {
        let retry = async {
            match retry_at {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            change = changes.services.next() => Woken::Service(change),
            change = changes.slices.next() => Woken::Slice(change),
            change = changes.nodes.next() => Woken::Node(change),
            change = changes.pods.next() => Woken::Pod(change),
            changed = self.monitor.changed() => Woken::Foreign(changed),
            () = retry => Woken::Retry,
        }
    }

    /// Notes what is to be looked at again; false: there is nothing more to come.
    fn note(&mut self, woken: Woken) -> bool {
        match woken {
            Woken::Service(Some(change)) => each(change, |service| self.dirty.services.extend([ObjectKey::of(service)])),
            Woken::Slice(Some(change)) => each(change, |slice| self.dirty.services.extend(service_of(slice))),
            Woken::Node(Some(change)) => each(change, |node| self.dirty.node |= node.name() == self.node.name),
            Woken::Pod(Some(change)) => each(change, |pod| self.dirty.pods.extend([ObjectKey::of(pod)])),
            Woken::Foreign(Ok(how)) => {
                tracing::info!(?how, "somebody else changed the Service proxy's rules; they are made anew");
                self.kernel.distrust();
            }
            Woken::Foreign(Err(error)) => {
                tracing::warn!(%error, "changes of the Service proxy's rules by others are not noticed; starting anew");
                return false;
            }
            Woken::Retry => {}
            Woken::Service(None) | Woken::Slice(None) | Woken::Node(None) | Woken::Pod(None) => return false,
        }
        true
    }

    /// Takes along everything that waits, so that it goes into the same transaction.
    fn note_waiting(&mut self, changes: &mut Changes) {
        while let Some(change) = changes.services.try_next() {
            self.note(Woken::Service(Some(change)));
        }
        while let Some(change) = changes.slices.try_next() {
            self.note(Woken::Slice(Some(change)));
        }
        while let Some(change) = changes.nodes.try_next() {
            self.note(Woken::Node(Some(change)));
        }
        while let Some(change) = changes.pods.try_next() {
            self.note(Woken::Pod(Some(change)));
        }
    }

    /// Whether everything is known: before that the rules from before a restart stay.
    fn is_ready(&self) -> bool {
        let Watched { services, slices, nodes, pods } = &self.watched;
        services.is_synced() && slices.is_synced() && nodes.is_synced() && pods.is_synced()
    }

    /// Computes again what is noted.
    fn replan(&mut self) {
        let mut dirty = std::mem::take(&mut self.dirty);
        let zone = self.watched.nodes.get("", &self.node.name).and_then(|node| node.metadata.labels.as_ref()?.get(ZONE).cloned());
        if dirty.node && zone != self.node.zone {
            self.node.zone = zone;
            dirty.services.extend(self.watched.services.list().iter().map(|service| ObjectKey::of(&**service)));
        }
        for key in dirty.services {
            let plan = self.watched.services.get(&key.namespace, &key.name).and_then(|service| {
                let slices = self.watched.slices.by_index(BY_SERVICE, &key.to_string());
                plan::plan(&service, &slices, &self.node, self.context.node_ip)
            });
            self.kernel.desired.set_service(&key, plan);
        }
        for key in dirty.pods {
            let pod = self.watched.pods.get(&key.namespace, &key.name);
            self.kernel.desired.set_host_ports(&key, pod.map(|pod| pod.host_ports()).unwrap_or_default());
        }
    }
}

/// The objects of a change: the old one too, which may have belonged elsewhere.
fn each<T>(change: Change<T>, mut note: impl FnMut(&T)) {
    match change {
        Change::Applied { old, new } => {
            old.iter().for_each(|old| note(old));
            note(&new);
        }
        Change::Deleted(old) => note(&old),
        Change::Synced => {}
    }
}

/// The Service that a slice belongs to.
fn service_of(slice: &EndpointSlice) -> Option<ObjectKey> {
    let name = slice.metadata.labels.as_ref()?.get(SERVICE_NAME)?;
    Some(ObjectKey::new(slice.namespace(), name))
}

/// A protocol that Services know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Protocol {
    Tcp = 6,
    Udp = 17,
    Sctp = 132,
}

impl Protocol {
    /// As an API object names it; nothing is TCP. `None` for a name that is not known.
    fn of(name: Option<&str>) -> Option<Self> {
        match name {
            None | Some("TCP") => Some(Self::Tcp),
            Some("UDP") => Some(Self::Udp),
            Some("SCTP") => Some(Self::Sctp),
            Some(_) => None,
        }
    }
}

/// What a client connects to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Front {
    Address {
        ip: Ipv4Addr,
        protocol: Protocol,
        port: u16,
    },
    /// A port on every address of this node.
    NodePort {
        protocol: Protocol,
        port: u16,
    },
}

#[cfg(test)]
mod tests;
