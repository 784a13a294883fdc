//! The network between nodes: every pod reaches every pod by its address, on whichever node it is.
//!
//! For each other Node the kernel is asked how it reaches that node's InternalIP. On the same Ethernet its pods get a **direct
//! route** (`podCIDR via InternalIP`), at the full speed and MTU of the link. Behind a gateway or a tunnel they get a **VXLAN** route
//! (UDP 8472). Each peer is decided by itself, and again when addresses or routes change. Nothing is published for this: the
//! address and the network number of a node's VXLAN device follow from the node's name ([`plan`]).
//!
//! # What is in the kernel
//!
//! - In the main table, protocol 111: a route to each peer's podCIDR, and an unreachable route that catches what no pod of this
//!   node has (it would leave by the default route otherwise).
//! - While a peer needs it: a VXLAN device named after the node, a permanent neighbour and a forwarding entry for each such peer,
//!   and a rule `from podCIDR` to a table with these peers' own addresses: so pods reach the nodes themselves with their own
//!   source address too, which no router between would carry.
//!
//! All of it is compared with what has to be there and repaired, at start and whenever the kernel tells of a change: a link that
//! goes down takes its routes with it, and they come back with the link. Routes of others are never touched; one that stands in the
//! way is reported ([`report`]).
//!
//! # MTU
//!
//! Pods have the MTU of the node's uplink. Routes by VXLAN carry a smaller one (50 bytes less), so that only packets to such peers
//! must be smaller: the node answers a pod's larger one by itself ("fragmentation needed"), and the pod remembers it for that
//! destination. TCP need not be told: both sides hear at the connection's begin how large segments may be
//! ([`firewall`](super::firewall)).
//!
//! # Reverse path filter
//!
//! Nothing is switched off: every peer is reached the way that its packets come, so that the strict filter (`rp_filter=1`) lets
//! them pass.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::Node;
use rtnetlink::Handle;

mod device;
mod kernel;
mod peers;
mod plan;
mod report;
mod watch;

pub(super) use device::PORT;

use super::parts::PartContext;
use super::{NetworkError, PodNetwork};
use crate::client::informer::Informer;
use crate::client::recorder::Recorder;
use crate::rt::{Backoff, TaskGroup};
use kernel::Interfaces;
use peers::Peer;
use plan::{Action, Own, Path, Problem};
use report::Report;
use watch::Changes;

/// Changes come in bursts.
const SETTLE: Duration = Duration::from_millis(20);
/// MTU where no interface says better.
const DEFAULT_MTU: u32 = 1_500;
/// The file that remembers the peers.
const PEERS_FILE: &str = "peers.json";

/// Keeps the ways to the pods of other nodes, for ever.
pub fn run(context: PartContext) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        let IpAddr::V4(ip) = context.node_ip else {
            tracing::warn!(node_ip = %context.node_ip, "pods of other nodes are not reached: that needs an IPv4 address of the node");
            return std::future::pending().await;
        };
        let changes: Arc<Changes> = Arc::default();
        let overlay = Overlay::new(context, ip, Arc::clone(&changes));
        tokio::join!(watch::watch(changes), overlay.run());
    })
}

struct Overlay {
    own: Own,
    handle: Handle,
    pods: Arc<PodNetwork>,
    nodes: Arc<Informer<Node>>,
    report: Report,
    changes: Arc<Changes>,
    peers_file: PathBuf,
}

impl Overlay {
    fn new(context: PartContext, ip: Ipv4Addr, changes: Arc<Changes>) -> Self {
        let PartContext { node, pod_cidr, cluster_cidr, data_dir, client, informers, pods, clock, tasks, .. } = context;
        let recorder = Recorder::new(&tasks, &client, "route_controller", &node, &clock);
        let report = Report::new(node.clone(), client, recorder, clock);
        let own = Own { name: node, ip, ip_is_local: false, pod_cidr: pod_cidr.trunc(), cluster_cidr: cluster_cidr.trunc() };
        let (handle, nodes) = (pods.host.clone(), informers.of::<Node>());
        Self { own, handle, pods, nodes, report, changes, peers_file: data_dir.join(PEERS_FILE) }
    }

    async fn run(mut self) {
        let mut news = self.nodes.subscribe();
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(30));
        let mut known = peers::load(&self.peers_file).await;
        let mut outcome = Ok(());
        loop {
            tokio::select! {
                change = news.next() => {
                    if change.is_none() {
                        return std::future::pending().await;
                    }
                }
                () = self.changes.changed() => {}
                () = retry(&mut backoff, outcome.is_err()) => {}
            }
            tokio::time::sleep(SETTLE).await;
            outcome = self.turn(&mut known).await;
            match &outcome {
                Ok(()) => backoff.reset(),
                Err(error) => tracing::warn!(%error, "the ways to other nodes' pods are not complete; trying again"),
            }
        }
    }

    /// One comparison of what has to be there with what is there.
    async fn turn(&mut self, known: &mut Vec<Peer>) -> Result<(), String> {
        let mut problems = Vec::new();
        // While the API has not answered, what was known before the restart holds.
        if self.nodes.is_synced() {
            let (peers, wrong) = peers::of_nodes(&self.own.name, self.own.pod_cidr, &self.nodes.list());
            if peers != *known {
                peers::save(&self.peers_file, &peers).await;
                *known = peers;
            }
            problems = wrong;
        }
        let failure = match self.reconcile(known).await {
            Ok(found) => {
                problems.extend(found);
                None
            }
            Err(error) => Some(error),
        };
        if let Some(error) = &failure {
            let destination = self.own.cluster_cidr;
            problems.push(Problem { node: self.own.name.clone(), destination, why: error.to_string() });
        }
        let told = self.report.tell(&self.nodes, &problems).await.map_err(|error| error.to_string());
        failure.map_or(told, |error| Err(error.to_string()))
    }

    /// Brings the kernel in line. Returns what stands in the way; all else is done in spite of it.
    async fn reconcile(&mut self, known: &[Peer]) -> Result<Vec<Problem>, NetworkError> {
        let interfaces = kernel::interfaces(&self.handle).await?;
        let uplink = kernel::interface_of(&self.handle, self.own.ip).await?;
        self.own.ip_is_local = uplink.is_some();
        self.pods.set_mtu(uplink_mtu(&self.handle, &interfaces, uplink).await?);
        let mut ways: Vec<(Peer, Path)> = Vec::with_capacity(known.len());
        for peer in known {
            ways.push((peer.clone(), kernel::path(&self.handle, &interfaces, peer.ip).await?));
        }
        let present = device::present(&self.handle, &self.own.name).await?;
        let vxlan = match plan::vxlan_mtu(&ways, present.map(|device| device.mtu)) {
            Some(mtu) => Some(device::ensure(&self.handle, &self.own, mtu).await?.index),
            None => None,
        };
        // Until it has gone, what is on the device is compared too.
        let device = vxlan.or(present.map(|device| device.index));
        self.changes.look_at(device);
        let seen = kernel::observe(&self.handle, &self.own, &interfaces, device).await?;
        let wanted = plan::wanted(&self.own, &ways, vxlan);
        self.pods.set_nodes(plan::answering(&ways));
        let (actions, problems) = plan::plan(&self.own, &ways, &wanted, &seen);
        self.perform(device, &actions).await?;
        if vxlan.is_none() && present.is_some() {
            device::remove(&self.handle, &self.own.name).await?;
        }
        Ok(problems)
    }

    /// Makes all changes; the first that failed is the error, and those after it are made nevertheless.
    async fn perform(&self, vxlan: Option<u32>, actions: &[Action]) -> Result<(), NetworkError> {
        let mut failure = None;
        for action in actions {
            match kernel::perform(&self.handle, vxlan, action).await {
                Ok(()) => tracing::debug!(?action, "changed the kernel's network"),
                Err(error) => {
                    tracing::debug!(?action, %error, "the kernel refused a change");
                    failure.get_or_insert(error);
                }
            }
        }
        failure.map_or(Ok(()), Err)
    }
}

async fn retry(backoff: &mut Backoff, has_failed: bool) {
    match has_failed {
        true => tokio::time::sleep(backoff.next_delay()).await,
        false => std::future::pending().await,
    }
}

/// The MTU of the interface that has the node's address; else of the one to the outside.
async fn uplink_mtu(handle: &Handle, interfaces: &Interfaces, uplink: Option<u32>) -> Result<u32, NetworkError> {
    // TEST-NET-1: an address that is nobody's.
    const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
    let real = uplink.and_then(|index| interfaces.get(&index)).filter(|interface| !interface.is_loopback);
    if let Some(interface) = real {
        return Ok(interface.mtu);
    }
    Ok(match kernel::path(handle, interfaces, OUTSIDE).await? {
        Path::Routed { mtu } => mtu,
        Path::OnLink { interface } => interfaces.get(&interface).map_or(DEFAULT_MTU, |interface| interface.mtu),
        Path::Local | Path::Unreachable => DEFAULT_MTU,
    })
}

/// The MTU that pods of a node with this address have.
///
/// # Errors
/// When the kernel does not answer.
pub async fn pod_mtu(tasks: &TaskGroup, node_ip: IpAddr) -> Result<u32, NetworkError> {
    let handle = super::open(tasks)?;
    let interfaces = kernel::interfaces(&handle).await?;
    let uplink = match node_ip {
        IpAddr::V4(ip) => kernel::interface_of(&handle, ip).await?,
        IpAddr::V6(_) => None,
    };
    uplink_mtu(&handle, &interfaces, uplink).await
}

/// Takes everything away that the overlay of a node left in the kernel. Another agent of the same cluster on this machine puts what
/// it needs back at once.
///
/// # Errors
/// The first step that failed.
pub(super) async fn cleanup(handle: &Handle, node: &str, pod_cidr: Ipv4Net, cluster_cidr: Ipv4Net) -> Result<(), NetworkError> {
    let own = Own { name: node.to_owned(), ip: Ipv4Addr::UNSPECIFIED, ip_is_local: false, pod_cidr, cluster_cidr };
    let interfaces = kernel::interfaces(handle).await?;
    let seen = kernel::observe(handle, &own, &interfaces, None).await?;
    let (actions, _) = plan::plan(&own, &[], &plan::State::default(), &seen);
    for action in &actions {
        kernel::perform(handle, None, action).await?;
    }
    device::remove(handle, node).await
}
