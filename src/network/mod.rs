//! The pod network: addresses (`ipam`), the routed veth of each pod (`attach`), and the rules that let pod traffic through
//! (`firewall`), and what runs on every node beside them ([`parts`]).
//!
//! A pod's sandbox starts with network `none`. [`PodNetwork::attach`] then lays a point-to-point veth pair by netlink: the pod's
//! address as /32, a link-local gateway, one host route a pod; no bridge, so all pod traffic is routed and conntrack sees both
//! ways. Several agents may share one machine: names of interfaces, chains and tables derive from the node's name.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::Ipv4Net;

mod attach;
mod firewall;
pub mod ipam;
mod netns;
pub mod nft;
pub mod parts;
mod proxy;

pub use netns::connect;

use attach::Wire;
use firewall::{Firewall, Watch};
use ipam::Ipam;
use parking_lot::Mutex;
use rtnetlink::Handle;

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

/// How often the rules are looked after where the kernel tells nothing of changes (legacy tables of iptables).
const RULES_INTERVAL: Duration = Duration::from_secs(60);

/// The pod network of one node.
pub struct PodNetwork {
    config: NetworkConfig,
    ipam: Mutex<Ipam>,
    host: Handle,
    firewall: Firewall,
    tasks: TaskGroup,
}

impl PodNetwork {
    /// Opens the way to the kernel and sets up what pods share: forwarding and the rules that let their traffic through.
    /// Background work (the netlink socket, the watch over the rules) runs in `tasks`.
    ///
    /// # Errors
    /// When there is no netlink socket. Rules that cannot be set are warned about and tried again.
    pub async fn start(config: NetworkConfig, tasks: &TaskGroup) -> Result<Arc<Self>, NetworkError> {
        let opened = rtnetlink::new_connection();
        let (connection, host, _) = opened.map_err(|error| NetworkError::step("open a netlink socket", error))?;
        let token = tasks.token();
        tasks.spawn(async move {
            tokio::select! {
                () = token.cancelled() => {}
                () = connection => {}
            }
        });
        let firewall = Firewall::open(&config.node, config.pod_cidr, config.cluster_cidr)?;
        let ipam = Mutex::new(Ipam::new(config.pod_cidr));
        let network = Arc::new(Self { config, ipam, host, firewall, tasks: tasks.clone() });
        network.ensure_rules().await;
        let (watched, token) = (Arc::clone(&network), tasks.token());
        tasks.critical("pod network rules", async move {
            token.run_until_cancelled(watched.keep_rules()).await;
        });
        Ok(network)
    }

    /// Sets rules again for ever: as soon as the kernel tells that somebody else changed them, and now and then.
    async fn keep_rules(&self) {
        loop {
            match self.firewall.watch() {
                Ok(watch) => self.follow_rules(watch).await,
                Err(error) => {
                    tracing::warn!(%error, "changes of the pod network's rules by others are not noticed");
                    tokio::time::sleep(RULES_INTERVAL).await;
                    self.ensure_rules().await;
                }
            }
        }
    }

    async fn follow_rules(&self, mut watch: Watch) {
        loop {
            self.ensure_rules().await;
            if let Ok(Err(error)) = tokio::time::timeout(RULES_INTERVAL, watch.changed()).await {
                return tracing::warn!(%error, "looking anew at the rules of the pod network");
            }
        }
    }

    /// Sets the rules that are missing: to be called when the engine has been restarted.
    pub async fn ensure_rules(&self) {
        if let Err(error) = self.firewall.ensure().await {
            tracing::warn!(%error, "cannot set the rules of the pod network; trying again");
        }
    }

    /// Gives a pod its interface and address; a pod that has them keeps them, and what is missing is repaired. `sandbox_pid`
    /// is the running pause process.
    ///
    /// # Errors
    /// [`NetworkError::Exhausted`], or a step that failed: a retry may help. The address stays the pod's until
    /// [`detach`](Self::detach).
    pub async fn attach(&self, pod_uid: &str, sandbox_pid: u32) -> Result<PodAddress, NetworkError> {
        let ip = self.ipam.lock().allocate(pod_uid)?;
        let wire = Wire { node: &self.config.node, pod_uid, ip, mtu: self.config.mtu };
        wire.lay(&self.host, sandbox_pid, &self.tasks).await?;
        Ok(PodAddress { ip })
    }

    /// Takes a pod's interface and routes away and frees its address. A pod without is left as it is.
    ///
    /// # Errors
    /// A step that failed: try again.
    pub async fn detach(&self, pod_uid: &str) -> Result<(), NetworkError> {
        attach::remove(&self.host, &attach::interface_name(pod_uid)).await?;
        self.ipam.lock().release(pod_uid);
        Ok(())
    }

    /// Takes over what was there before a restart: reserves the addresses, repairs what is missing, and removes interfaces and
    /// routes of this node that belong to none of the pods. Returns the pods whose network could not be kept.
    ///
    /// # Errors
    /// When the kernel's interfaces cannot be listed.
    pub async fn restore(&self, existing: Vec<ExistingPod>) -> Result<Vec<ExistingPod>, NetworkError> {
        let mut lost = Vec::new();
        for pod in existing {
            let reserved = self.ipam.lock().reserve(&pod.uid, pod.ip);
            let kept = match reserved {
                true => self.attach(&pod.uid, pod.sandbox_pid).await.map_err(|error| error.to_string()),
                false => Err(format!("{} is not free in {}", pod.ip, self.config.pod_cidr)),
            };
            if let Err(why) = kept {
                tracing::warn!(pod = pod.uid, ip = %pod.ip, why, "cannot keep the network of a pod");
                self.ipam.lock().release(&pod.uid);
                lost.push(pod);
            }
        }
        let known: HashSet<String> = self.ipam.lock().pods().map(|(uid, _)| uid.to_owned()).collect();
        for (interface, pod_uid) in attach::list(&self.host, &self.config.node).await? {
            if !known.contains(&pod_uid) {
                tracing::info!(interface, pod = pod_uid, "removing the interface of a pod that is gone");
                attach::remove(&self.host, &interface).await?;
            }
        }
        Ok(lost)
    }

    /// The address of a pod, if it has one.
    pub fn address(&self, pod_uid: &str) -> Option<PodAddress> {
        self.ipam.lock().get(pod_uid).map(|ip| PodAddress { ip })
    }

    /// Takes everything away that this node left in the kernel: for uninstalling.
    ///
    /// # Errors
    /// The first step that failed.
    pub async fn cleanup(&self) -> Result<(), NetworkError> {
        for (interface, _) in attach::list(&self.host, &self.config.node).await? {
            attach::remove(&self.host, &interface).await?;
        }
        self.firewall.remove().await
    }
}
