//! What every pod worker shares: the runtime, the node's network, volumes, images, and where events go.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{Node, ObjectReference, Pod};
use tokio::sync::{Semaphore, watch};

use super::super::cpu::Cpus;
use super::super::eviction::Pressures;
use super::super::image::Images;
use super::super::pods::Pods;
use super::super::probe::Prober;
use super::super::sources::Sources;
use super::super::volume::Volumes;
use super::admit::Grants;
use super::fields::{Allocatable, FieldContext};
use crate::client::Client;
use crate::client::informer::Informer;
use crate::cri::{CgroupDriver, Runtime};
use crate::kinds::core::pod::resources::Resources;
use crate::network::{NetworkError, NodeTraffic, PodAddress};
use crate::rt::TaskGroup;
use crate::rt::clock::SharedClock;

/// Attaches sandboxes to the pod network.
#[async_trait]
pub trait SandboxNetwork: Send + Sync + 'static {
    /// Gives a pod its address and, once the network policies about it are in force, lays the way to it. Asked again, it
    /// answers the same.
    async fn attach(&self, pod: &Pod, sandbox_pid: u32) -> Result<PodAddress, NetworkError>;
    /// Takes the way down and the address back. A pod that is not attached is left as it is.
    async fn detach(&self, pod_uid: &str) -> Result<(), NetworkError>;
    /// What went over the interfaces of pods and node.
    async fn traffic(&self) -> Result<NodeTraffic, NetworkError> {
        Ok(NodeTraffic::default())
    }
}

/// Where events about pods and the node go. Never blocks.
pub trait EventSink: Send + Sync + 'static {
    /// Records an event; `is_warning` chooses between `Warning` and `Normal`.
    fn event(&self, about: &ObjectReference, is_warning: bool, reason: &str, message: &str);
}

/// What the node offers to its pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeOffer {
    pub allocatable: Allocatable,
    pub memory_bytes: i64,
    /// Most processes of one pod.
    pub max_pids: Option<i64>,
    pub cgroup_driver: CgroupDriver,
    pub can_lower_oom_score: bool,
    pub has_recursive_read_only: bool,
    pub has_apparmor: bool,
    pub logs: LogLimits,
}

/// What the log of one container may take on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogLimits {
    /// A file that is larger is rotated.
    pub max_bytes: u64,
    /// Files that are kept, the one that is written among them.
    pub max_files: u32,
}

/// The network, once the node has its range.
pub type NetworkSlot = watch::Receiver<Option<Arc<dyn SandboxNetwork>>>;

/// A volume that is set up.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MountedVolume {
    /// Where it is on the host.
    pub path: PathBuf,
    /// Whether no container may write, whatever its mount says.
    pub read_only: bool,
    /// Whether it is a raw device.
    pub is_device: bool,
}

impl From<PathBuf> for MountedVolume {
    fn from(path: PathBuf) -> Self {
        Self { path, ..Self::default() }
    }
}

/// The volumes of a pod that are set up, by name.
pub type MountedVolumes = BTreeMap<String, MountedVolume>;

/// What every pod worker shares.
pub struct Context {
    pub node_ip: IpAddr,
    /// `DATA/agent/pods`.
    pub pods_dir: PathBuf,
    /// `DATA/agent/seccomp`: the profiles that pods name.
    pub seccomp_dir: PathBuf,
    /// Identifies this agent among those that share an engine: value of the label `io.orch.owner`.
    pub owner: String,
    pub cluster_dns: Option<IpAddr>,
    pub cluster_domain: String,
    pub client: Client,
    pub runtime: Arc<dyn Runtime>,
    pub clock: SharedClock,
    pub events: Arc<dyn EventSink>,
    pub network: NetworkSlot,
    pub sources: Arc<Sources>,
    pub volumes: Volumes,
    pub images: Images,
    pub prober: Prober,
    pub pods: Arc<Pods>,
    pub offer: NodeOffer,
    /// What the node is short of.
    pub pressures: Arc<Pressures>,
    /// Who runs on which CPUs.
    pub cpus: Arc<Cpus>,
    /// What the node's pods were granted.
    pub grants: Grants,
    pub allowed_unsafe_sysctls: Vec<String>,
    /// The node's own object.
    pub nodes: Arc<Informer<Node>>,
    /// Bounds how many containers start at one time.
    pub starts: Semaphore,
    pub tasks: TaskGroup,
}

impl Context {
    /// The node's own object, once the API has told it.
    pub fn node(&self) -> Option<Arc<Node>> {
        self.nodes.list().into_iter().next()
    }

    /// What the node can give to pods, in all.
    pub fn allocatable(&self) -> Resources {
        let told = self.node().and_then(|node| node.status.as_ref().and_then(|status| status.allocatable.clone()));
        match told {
            Some(told) => Resources::parse(Some(&told)),
            None => Resources {
                cpu_millis: self.offer.allocatable.cpu_milli,
                memory_bytes: self.offer.allocatable.memory_bytes,
                ephemeral_bytes: self.offer.allocatable.ephemeral_storage_bytes,
                pods: i64::MAX,
                extended: Vec::new(),
            },
        }
    }

    /// Records an event about a pod, or one of its containers.
    pub fn event(&self, pod: &Pod, container: Option<&str>, is_warning: bool, reason: &str, message: &str) {
        self.events.event(&reference(pod, container), is_warning, reason, message);
    }

    /// The downward API's view of a pod on this node.
    pub fn fields<'a>(&self, pod: &'a Pod, pod_ip: Option<IpAddr>) -> FieldContext<'a> {
        FieldContext { pod, host_ip: self.node_ip, pod_ip, allocatable: self.offer.allocatable.within(pod) }
    }

    /// The directory of a pod: volumes, hosts file, termination messages.
    pub fn pod_dir(&self, pod: &Pod) -> PathBuf {
        self.pods_dir.join(pod.metadata.uid.as_deref().unwrap_or("unknown"))
    }
}

/// A reference to a pod, or to a container in its spec, for events.
pub fn reference(pod: &Pod, container: Option<&str>) -> ObjectReference {
    let spec = pod.spec.as_ref();
    let is_init = |name: &str| spec.iter().flat_map(|spec| spec.init_containers.iter().flatten()).any(|init| init.name == name);
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        namespace: pod.metadata.namespace.clone(),
        name: pod.metadata.name.clone(),
        uid: pod.metadata.uid.clone(),
        resource_version: pod.metadata.resource_version.clone(),
        field_path: container.map(|name| {
            let list = if is_init(name) { "initContainers" } else { "containers" };
            format!("spec.{list}{{{name}}}")
        }),
    }
}
