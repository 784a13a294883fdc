//! What runs on every node beside the pods' own wires: a table of parts, each one loop over what the API says.
//!
//! A part is a level-triggered loop: it may be ended anywhere and started again, takes over what it finds in the kernel, and goes on
//! with what it last knew while the API is away. It decides in pure functions and then acts.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use ipnet::Ipv4Net;

use super::{PodNetwork, dns, overlay, policy, proxy};
use crate::client::Client;
use crate::client::informer::Informers;
use crate::rt::TaskGroup;
use crate::rt::clock::SharedClock;

/// What every part is told of its node and its cluster.
#[derive(Clone)]
pub struct PartContext {
    /// Name of the Node object.
    pub node: String,
    /// The node's own address: its InternalIP.
    pub node_ip: IpAddr,
    /// The range of this node's pods.
    pub pod_cidr: Ipv4Net,
    /// The range of all pods.
    pub cluster_cidr: Ipv4Net,
    /// The range of Service addresses.
    pub service_cidr: Ipv4Net,
    /// Where the cluster's DNS answers.
    pub cluster_dns: IpAddr,
    /// `cluster.local`.
    pub cluster_domain: String,
    /// Where parts keep what they must know across a restart (`DATA/agent/network`).
    pub data_dir: PathBuf,
    pub client: Client,
    /// Shared by all parts: an informer is started by the first that asks for it.
    pub informers: Informers,
    /// The wires of this node's pods.
    pub pods: Arc<PodNetwork>,
    pub clock: SharedClock,
    pub tasks: TaskGroup,
}

/// Starts a part; the future runs until it is dropped.
pub type Run = fn(PartContext) -> BoxFuture<'static, ()>;

/// Every part, by name.
pub const PARTS: &[(&str, Run)] =
    &[("dns", dns::run), ("overlay", overlay::run), ("policy", policy::run), ("service proxy", proxy::run)];

/// Starts all parts as tasks of the context's group.
pub fn start(context: &PartContext) {
    for (name, run) in PARTS {
        let (part, token) = (run(context.clone()), context.tasks.token());
        context.tasks.critical(format!("network {name}"), async move {
            token.run_until_cancelled(part).await;
        });
    }
}
