//! The agent (Kubernetes calls it kubelet): registers its node, runs the pods that are bound to it, and writes what it sees
//! back through the same API that everybody uses.
//!
//! One worker a pod ([`pod`]) compares the pod's spec with its containers and acts on the difference; [`node`] keeps Node and
//! Lease; [`volume`] makes the directories that containers see. The agent never touches a container that another agent owns,
//! and stopping it never stops a container.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::Taint;

use self::image::collect::Thresholds;
use self::image::registries::Registries;
use crate::client::Client;
use crate::cri::Runtime;
use crate::rt::TaskGroup;
use crate::rt::clock::SharedClock;

pub mod bootstrap;

mod assembly;
mod checkpoint;
mod classes;
pub mod cleanup;
pub mod cpu;
mod csi;
pub mod eviction;
pub mod image;
mod node;
mod pod;
mod pods;
mod probe;
pub mod server;
mod sources;
pub mod stats;
pub mod tunnel;
mod volume;

pub use node::reserve::{Amounts, Reserve};
pub use pod::context::LogLimits;
pub use pods::{ContainerInstance, ContainerLookup, LookupError, Pods};

/// Everything the agent needs; settings are resolved once, by `cmd`.
#[derive(Clone)]
pub struct AgentConfig {
    /// Name of the Node object.
    pub node_name: String,
    /// The address at which others reach this node: its InternalIP.
    pub node_ip: IpAddr,
    /// The address from outside, if there is one: its ExternalIP.
    pub external_ip: Option<IpAddr>,
    /// Where the agent keeps its state: volumes, checkpoints, logs (`DATA/agent`).
    pub data_dir: PathBuf,
    /// Where local volumes are made (`DATA/storage`).
    pub storage_dir: PathBuf,
    /// Labels set at registration, and only then.
    pub labels: BTreeMap<String, String>,
    /// Taints set at registration, and only then.
    pub taints: Vec<Taint>,
    /// Whether this is a server's own node: it gets the label `node-role.kubernetes.io/control-plane`.
    pub is_control_plane: bool,
    /// Port of the kubelet server, as `status.daemonEndpoints` shows it.
    pub kubelet_port: u16,
    /// The addresses of all pods of the cluster.
    pub cluster_cidr: Ipv4Net,
    /// The addresses of all Services.
    pub service_cidr: Ipv4Net,
    /// Address of the cluster's DNS.
    pub cluster_dns: IpAddr,
    /// `cluster.local`.
    pub cluster_domain: String,
    /// Value of the label `io.orch.owner` on this agent's containers: the same that the runtime was connected with.
    pub owner: String,
    /// Mirrors of registries, and the credentials for them.
    pub registries: Registries,
    /// When unused images are removed.
    pub image_thresholds: Thresholds,
    /// How large the logs of containers grow.
    pub logs: LogLimits,
    /// Most pods that the node takes.
    pub max_pods: u32,
    /// What of the machine is kept from pods.
    pub reserve: Reserve,
    /// Whether the kernel keeps all pods together within what the node has for them.
    pub is_enforced: bool,
    /// Most processes of one pod; `None` for no limit of its own.
    pub pod_max_pids: Option<i64>,
    /// How CPUs are given to containers.
    pub cpu_policy: cpu::Policy,
    /// When and how pods are evicted.
    pub eviction: eviction::threshold::Settings,
    /// Sysctls beyond the safe ones that pods may set: names, or prefixes that end in `*`.
    pub allowed_unsafe_sysctls: Vec<String>,
    /// The folder of static pods' manifests.
    pub static_pods_dir: PathBuf,
    pub client: Client,
    pub runtime: Arc<dyn Runtime>,
    pub clock: SharedClock,
}

/// Why the agent cannot start.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The data directory cannot be made or written.
    #[error("cannot use the data directory {}", path.display())]
    DataDir {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// The CPUs cannot be given out as asked for.
    #[error("cannot start the CPU manager: {0}")]
    Cpus(String),
    /// Probes over HTTPS need TLS.
    #[error("cannot set up TLS for probes")]
    Tls(#[from] crate::http::tls::TlsError),
}

/// A running agent.
pub struct Agent {
    pods: Arc<Pods>,
    stats: Arc<stats::Stats>,
}

impl Agent {
    /// Starts the agent in `tasks` and returns at once; it runs until the group is cancelled. The API and the container runtime
    /// need not be there yet.
    ///
    /// # Errors
    /// [`AgentError`] when the data directory cannot be used.
    pub async fn run(config: AgentConfig, tasks: &TaskGroup) -> Result<Self, AgentError> {
        assembly::run(config, tasks).await.map(|(pods, stats)| Self { pods, stats })
    }

    /// Look-ups for the kubelet server: which container is meant by (namespace, pod, container).
    pub fn pods(&self) -> Arc<Pods> {
        Arc::clone(&self.pods)
    }

    /// What the node and its pods use.
    pub fn stats(&self) -> Arc<stats::Stats> {
        Arc::clone(&self.stats)
    }
}
