//! The pod network: addresses (`ipam`), the routed veth of each pod (`attach`), and the rules that let pod traffic through
//! (`firewall`), and what runs on every node beside them ([`parts`]).
//!
//! A pod's sandbox starts with network `none`. [`PodNetwork::attach`] then lays a point-to-point veth pair by netlink: the pod's
//! address as /32, a link-local gateway, one host route a pod; no bridge, so all pod traffic is routed and conntrack sees both
//! ways. Several agents may share one machine: names of interfaces, chains and tables derive from the node's name.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use ipnet::Ipv4Net;

mod attach;
mod dns;
mod firewall;
pub mod ipam;
mod netns;
pub mod nft;
mod overlay;
pub mod parts;
mod policy;
mod proxy;
mod traffic;

pub use netns::connect;
pub use overlay::pod_mtu;
pub use proxy::close_localhost;
pub use traffic::{NodeTraffic, Traffic};

use attach::Wire;
use firewall::Firewall;
use firewall::watch::Watch;
use ipam::Ipam;
use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;
use policy::{Gate, Mode, PodFacts};
use rtnetlink::Handle;
use tokio::sync::Notify;

use crate::rt::{Backoff, TaskGroup};

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
    /// MTU of the pods' interfaces, until the uplink's changes.
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

/// Rules change in bursts: Docker sets many when it starts.
const RULES_SETTLE: Duration = Duration::from_millis(100);

/// A netlink socket; its work runs in `tasks`.
fn open(tasks: &TaskGroup) -> Result<Handle, NetworkError> {
    let opened = rtnetlink::new_connection();
    let (connection, host, _) = opened.map_err(|error| NetworkError::step("open a netlink socket", error))?;
    let token = tasks.token();
    tasks.spawn(async move {
        tokio::select! {
            () = token.cancelled() => {}
            () = connection => {}
        }
    });
    Ok(host)
}

/// The pod network of one node.
pub struct PodNetwork {
    config: NetworkConfig,
    ipam: Mutex<Ipam>,
    mtu: AtomicU32,
    host: Handle,
    firewall: Firewall,
    rules_wanted: Notify,
    rules_missing: AtomicBool,
    /// Whether everything was taken away: nothing may be set any more.
    rules_gone: tokio::sync::Mutex<bool>,
    pub(in crate::network) gate: Gate,
    tasks: TaskGroup,
}

impl PodNetwork {
    /// Opens the way to the kernel and sets up what pods share: forwarding and the rules that let their traffic through.
    /// Background work (the netlink socket, the watch over the rules) runs in `tasks`.
    ///
    /// # Errors
    /// When there is no netlink socket. Rules that cannot be set are warned about and tried again.
    pub async fn start(config: NetworkConfig, tasks: &TaskGroup) -> Result<Arc<Self>, NetworkError> {
        let host = open(tasks)?;
        let firewall = Firewall::new(&config.node, config.pod_cidr, config.cluster_cidr);
        let ipam = Mutex::new(Ipam::new(config.pod_cidr));
        let network = Arc::new(Self {
            mtu: AtomicU32::new(config.mtu),
            config,
            ipam,
            host,
            firewall,
            rules_wanted: Notify::new(),
            rules_missing: AtomicBool::new(false),
            rules_gone: tokio::sync::Mutex::default(),
            gate: Gate::new(),
            tasks: tasks.clone(),
        });
        let mut watch = Watch::open(&network.firewall).await;
        network.ensure_rules().await;
        let (watched, token) = (Arc::clone(&network), tasks.token());
        tasks.critical("pod network rules", async move {
            let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(60));
            loop {
                tokio::select! {
                    () = token.cancelled() => return,
                    () = watch.changed(&watched.firewall) => tokio::time::sleep(RULES_SETTLE).await,
                    () = watched.rules_wanted.notified() => {}
                    () = tokio::time::sleep(backoff.next_delay()), if watched.rules_missing.load(Ordering::Relaxed) => {}
                }
                watched.ensure_rules().await;
                if !watched.rules_missing.load(Ordering::Relaxed) {
                    backoff.reset();
                }
            }
        });
        Ok(network)
    }

    /// The MTU that interfaces made from now on have. Those of running pods stay: where the uplink's MTU became smaller, the node
    /// answers their larger packets itself.
    pub(crate) fn set_mtu(&self, mtu: u32) {
        self.mtu.store(mtu, Ordering::Relaxed);
    }

    /// Sets the rules that are missing: to be called when the engine has been restarted.
    pub async fn ensure_rules(&self) {
        let gone = self.rules_gone.lock().await;
        if *gone {
            return;
        }
        let result = self.firewall.ensure().await;
        drop(gone);
        self.rules_missing.store(result.is_err(), Ordering::Relaxed);
        if let Err(error) = result {
            tracing::warn!(%error, "cannot set the rules of the pod network; trying again");
        }
    }

    /// The addresses of nodes that know the way back to this node's pods: they see a pod's own address.
    pub(crate) fn set_nodes(&self, nodes: Vec<Ipv4Addr>) {
        if self.firewall.set_nodes(nodes) {
            self.rules_wanted.notify_one();
        }
    }

    /// From now on a new pod waits until the network policies about it are in force: [`parts`] run that see to it.
    pub fn close_gate(&self) {
        self.gate.set_mode(Mode::Unknown);
    }

    /// Gives a pod its address and waits until the network policies about it are in force: to be called before
    /// [`attach`](Self::attach), so that its first packet is filtered. Cancel safe.
    ///
    /// # Errors
    /// [`NetworkError::Exhausted`], or that the wait was long: try again.
    pub async fn admit(&self, pod: &Pod) -> Result<PodAddress, NetworkError> {
        let ip = self.ipam.lock().allocate(pod.metadata.uid.as_deref().unwrap_or(""))?;
        self.gate.admit(Arc::new(PodFacts::from(pod)), ip).await?;
        Ok(PodAddress { ip })
    }

    /// Gives a pod its interface and address; a pod that has them keeps them, and what is missing is repaired. `sandbox_pid`
    /// is the running pause process.
    ///
    /// # Errors
    /// [`NetworkError::Exhausted`], or a step that failed: a retry may help. The address stays the pod's until
    /// [`detach`](Self::detach).
    pub async fn attach(&self, pod_uid: &str, sandbox_pid: u32) -> Result<PodAddress, NetworkError> {
        let ip = self.ipam.lock().allocate(pod_uid)?;
        let wire = Wire { node: &self.config.node, pod_uid, ip, mtu: self.mtu.load(Ordering::Relaxed) };
        wire.lay(&self.host, sandbox_pid, &self.tasks).await?;
        Ok(PodAddress { ip })
    }

    /// Takes a pod's interface and routes away and frees its address. A pod without is left as it is.
    ///
    /// # Errors
    /// A step that failed: try again.
    pub async fn detach(&self, pod_uid: &str) -> Result<(), NetworkError> {
        attach::remove(&self.host, &attach::interface_name(pod_uid)).await?;
        self.gate.leave(pod_uid);
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
            if kept.is_ok() {
                self.gate.adopt(&pod.uid, pod.ip);
            }
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

    /// What went over the interfaces since they were made, as the pods and the node see it.
    ///
    /// # Errors
    /// When the kernel's interfaces cannot be listed.
    pub async fn traffic(&self) -> Result<NodeTraffic, NetworkError> {
        traffic::read(&self.host, &self.config.node).await
    }

    /// Takes everything away that this node left in the kernel: for uninstalling.
    ///
    /// # Errors
    /// The first step that failed.
    pub async fn cleanup(&self) -> Result<(), NetworkError> {
        *self.rules_gone.lock().await = true;
        for (interface, _) in attach::list(&self.host, &self.config.node).await? {
            attach::remove(&self.host, &interface).await?;
        }
        dns::address::cleanup(&self.host, &self.config.node).await?;
        let NetworkConfig { node, pod_cidr, cluster_cidr, .. } = &self.config;
        overlay::cleanup(&self.host, node, *pod_cidr, *cluster_cidr).await?;
        removed("remove the network policies", policy::remove(&self.config.node).await)?;
        removed("remove the rules of Services", proxy::remove(&self.config.node).await)?;
        self.firewall.remove().await
    }
}

/// What came of removing a table: where the kernel has no nf_tables there is none.
fn removed(step: &str, outcome: Result<(), nft::NftError>) -> Result<(), NetworkError> {
    match outcome {
        Err(error) if !error.is_unsupported() => Err(NetworkError::step(step, error)),
        _ => Ok(()),
    }
}
