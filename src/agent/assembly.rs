//! Puts the agent together: node, network and pods are tasks of their own, and each waits for what it needs.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt;
use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::{Node, ObjectReference, Pod};
use tokio::sync::{Semaphore, watch};

use super::checkpoint::Checkpoints;
use super::classes::{self, Classes};
use super::cpu::Cpus;
use super::csi::{CsiMounts, Drivers};
use super::eviction::{self, Evictor};
use super::image::Images;
use super::image::collect::Collector;
use super::image::ledger::Ledger;
use super::image::preload;
use super::node::{NodeKeeper, facts};
use super::pod::context::{Context, EventSink, NetworkSlot, NodeOffer, SandboxNetwork};
use super::pod::fields::Allocatable;
use super::pod::sandbox::kept_address;
use super::pod::statics::Folder;
use super::pod::{Dispatcher, Mailboxes};
use super::probe::Prober;
use super::sources::Sources;
use super::stats::Stats;
use super::volume::{Volumes, reclaim};
use super::{AgentConfig, AgentError, Pods};
use crate::client::informer::{Informer, Informers, Scope};
use crate::client::recorder::{EventType, Recorder};
use crate::cri::{Resources, Runtime, RuntimeEvent, RuntimeInfo, State, labels};
use crate::network::parts::{self, PartContext};
use crate::network::{ExistingPod, NetworkConfig, NetworkError, NodeTraffic, PodAddress, PodNetwork, pod_mtu};
use crate::rt::{Backoff, TaskGroup};

/// How often the space of images is looked at (one `statvfs`); a disk tells nobody that it fills.
const IMAGE_CHECK: Duration = Duration::from_secs(60);
/// The file that remembers the node's range for a start without the API.
const POD_CIDR_FILE: &str = "pod-cidr";

#[async_trait]
impl SandboxNetwork for PodNetwork {
    async fn attach(&self, pod: &Pod, sandbox_pid: u32) -> Result<PodAddress, NetworkError> {
        self.admit(pod).await?;
        PodNetwork::attach(self, pod.metadata.uid.as_deref().unwrap_or_default(), sandbox_pid).await
    }

    async fn detach(&self, pod_uid: &str) -> Result<(), NetworkError> {
        PodNetwork::detach(self, pod_uid).await
    }

    async fn traffic(&self) -> Result<NodeTraffic, NetworkError> {
        PodNetwork::traffic(self).await
    }
}

impl EventSink for Recorder {
    fn event(&self, about: &ObjectReference, is_warning: bool, reason: &str, message: &str) {
        let kind = if is_warning { EventType::Warning } else { EventType::Normal };
        Self::event(self, about, kind, reason, message);
    }
}

/// Starts all tasks of the agent.
pub(super) async fn run(config: AgentConfig, tasks: &TaskGroup) -> Result<(Arc<Pods>, Arc<Stats>), AgentError> {
    for directory in [config.data_dir.clone(), config.data_dir.join("pods")] {
        let made = tokio::fs::create_dir_all(&directory).await;
        made.map_err(|source| AgentError::DataDir { path: directory, source })?;
    }
    let cpus = Arc::new(Cpus::open(&config.cpu_policy, &config.data_dir).map_err(AgentError::Cpus)?);
    until_cancelled(tasks, "CPUs", Arc::clone(&cpus).run(Arc::clone(&config.runtime)));
    let prober = Prober::new(Arc::clone(&config.runtime), tasks.child())?;
    let recorder = Recorder::new(tasks, &config.client.named("orch/kubelet"), "kubelet", &config.node_name, &config.clock);
    let events: Arc<dyn EventSink> = Arc::new(recorder);
    let own_node = format!("fieldSelector=metadata.name%3D{}", config.node_name);
    let scope = Scope { namespace: String::new(), query: own_node };
    let nodes = Informer::<Node>::start(tasks, config.client.clone(), scope);
    let keeper = Arc::new(NodeKeeper::new(config.clone(), Arc::clone(&events)));
    let own_nodes = Arc::clone(&nodes);
    let informers = Informers::new(tasks, config.client.named("orch/network")).with_snapshots(&config.data_dir.join("informers"));
    let (slot, network) = watch::channel(None);
    let pods: Arc<Pods> = Arc::default();
    let stats = Stats::new(&config, Arc::clone(&pods), keeper.runtime_info(), network.clone());

    let (node, node_informer) = (Arc::clone(&keeper), Arc::clone(&nodes));
    until_cancelled(tasks, "node status", async move { node.run(node_informer).await });
    let (node, node_informer) = (Arc::clone(&keeper), Arc::clone(&nodes));
    until_cancelled(tasks, "node lease", async move { node.run_lease(node_informer).await });
    let (node, shared) =
        (Arc::clone(&keeper), Shared { config: config.clone(), informers: informers.clone(), tasks: tasks.clone() });
    until_cancelled(tasks, "pod network", async move { run_network(shared, node, nodes, slot).await });
    let parts = Parts {
        config,
        cpus,
        informers,
        events,
        keeper,
        nodes: own_nodes,
        network,
        prober,
        pods: Arc::clone(&pods),
        stats: Arc::clone(&stats),
        tasks: tasks.clone(),
    };
    until_cancelled(tasks, "pods", async move { parts.run().await });
    Ok((pods, stats))
}

fn until_cancelled(tasks: &TaskGroup, name: &str, work: impl Future<Output = ()> + Send + 'static) {
    let token = tasks.token();
    tasks.critical(name, async move {
        if token.run_until_cancelled(work).await.is_some() && !token.is_cancelled() {
            tracing::error!("a part of the agent ended by itself");
        }
    });
}

/// What the network's parts are made from.
struct Shared {
    config: AgentConfig,
    informers: Informers,
    tasks: TaskGroup,
}

struct Parts {
    config: AgentConfig,
    cpus: Arc<Cpus>,
    informers: Informers,
    events: Arc<dyn EventSink>,
    keeper: Arc<NodeKeeper>,
    nodes: Arc<Informer<Node>>,
    network: NetworkSlot,
    prober: Prober,
    pods: Arc<Pods>,
    stats: Arc<Stats>,
    tasks: TaskGroup,
}

impl Parts {
    async fn run(self) {
        let Self { config, cpus, informers, events, keeper, nodes, network, prober, pods, stats, tasks } = self;
        let mut runtime_info = keeper.runtime_info();
        // Without an engine there is nothing that pods could be done with.
        let info = match runtime_info.wait_for(Option::is_some).await {
            Ok(info) => info.clone().unwrap_or_default(),
            Err(_) => return,
        };
        let ledger = Arc::new(Ledger::open(config.data_dir.join(Ledger::FILE)));
        let collector = keep_images(&config, &pods, &ledger, &keeper, &info, &tasks);
        let mailboxes: Arc<Mailboxes> = Arc::default();
        let told = Arc::clone(&mailboxes);
        let changed = Arc::new(move |uid: &str| told.source_changed(uid));
        let sources = Sources::new(&tasks, config.client.clone(), &config.node_name, informers.of(), changed);
        let drivers = Drivers::new(&config.data_dir, &config.node_name, config.client.clone(), &tasks);
        let registering = Arc::clone(&drivers);
        until_cancelled(&tasks, "CSI drivers", async move { registering.run().await });
        let cores = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
        let context = Context {
            node_ip: config.node_ip,
            pods_dir: config.data_dir.join("pods"),
            seccomp_dir: config.data_dir.join("seccomp"),
            owner: config.owner.clone(),
            cluster_dns: Some(config.cluster_dns),
            cluster_domain: config.cluster_domain.clone(),
            client: config.client.clone(),
            runtime: Arc::clone(&config.runtime),
            clock: Arc::clone(&config.clock),
            images: images(&config, &events, ledger),
            events,
            network,
            sources: Arc::new(sources),
            volumes: Volumes::new(
                &config.data_dir,
                config.storage_dir.clone(),
                CsiMounts::new(Arc::clone(&drivers), &config.node_name, &config.data_dir),
            ),
            prober,
            pods,
            offer: offer(&config, &info),
            pressures: keeper.pressures(),
            cpus,
            grants: Default::default(),
            allowed_unsafe_sysctls: config.allowed_unsafe_sysctls.clone(),
            nodes,
            starts: Semaphore::new((cores * 2).max(4)),
            tasks: tasks.clone(),
        };
        let query = format!("fieldSelector=spec.nodeName%3D{}", config.node_name);
        let scope = Scope { namespace: String::new(), query };
        let informer = Informer::<Pod>::start(&tasks, config.client.clone(), scope);
        let checkpoints = Checkpoints::new(config.data_dir.join("checkpoints"));
        let statics = Folder::new(config.static_pods_dir.clone(), config.node_name.clone());
        if let Err(error) = context.volumes.sweep() {
            tracing::warn!(%error, "what a cut-off start left behind was not removed");
        }
        let context = Arc::new(context);
        until_cancelled(&tasks, "classes of pods", look_after_classes(&config, &context).run());
        evict_when_short(&config, &info, &context, &mailboxes, (stats, keeper, collector));
        let (reclaiming, node) = (Arc::clone(&context), config.node_name.clone());
        until_cancelled(&tasks, "local volumes", async move { reclaim::run(reclaiming, node).await });
        Dispatcher::new(context, mailboxes, checkpoints, statics).run(informer).await;
    }
}

fn images(config: &AgentConfig, events: &Arc<dyn EventSink>, ledger: Arc<Ledger>) -> Images {
    let (runtime, clock) = (Arc::clone(&config.runtime), Arc::clone(&config.clock));
    Images::new(runtime, clock, Arc::clone(events), config.registries.clone(), ledger)
}

/// Starts looking after what the node may run short of.
fn evict_when_short(
    config: &AgentConfig,
    info: &RuntimeInfo,
    context: &Context,
    mailboxes: &Arc<Mailboxes>,
    (stats, keeper, collector): (Arc<Stats>, Arc<NodeKeeper>, Arc<Collector>),
) {
    let evictor = Evictor::new(eviction::Parts {
        settings: config.eviction.clone(),
        image_dir: eviction::image_dir(&info.root_dir, &config.data_dir),
        allocatable_memory_bytes: allocatable_memory(config),
        data_dir: config.data_dir.clone(),
        pods: Arc::clone(&context.pods),
        mailboxes: Arc::clone(mailboxes),
        stats,
        keeper,
        collector,
        runtime: Arc::clone(&config.runtime),
        events: Arc::clone(&context.events),
    });
    until_cancelled(&context.tasks, "evictions", evictor.run());
}

/// Loads the images that lie in a folder, and removes unused ones when the disk fills.
fn keep_images(
    config: &AgentConfig,
    pods: &Arc<Pods>,
    ledger: &Arc<Ledger>,
    keeper: &Arc<NodeKeeper>,
    info: &RuntimeInfo,
    tasks: &TaskGroup,
) -> Arc<Collector> {
    let folder = config.data_dir.join("images");
    until_cancelled(tasks, "image preload", preload::run(Arc::clone(&config.runtime), folder));
    let root = eviction::image_dir(&info.root_dir, &config.data_dir);
    let collector = Arc::new(Collector::new(
        Arc::clone(&config.runtime),
        Arc::clone(ledger),
        Arc::clone(pods),
        Arc::clone(&config.clock),
        config.image_thresholds,
    ));
    let (keeper, collecting) = (Arc::clone(keeper), Arc::clone(&collector));
    until_cancelled(tasks, "image collection", async move {
        loop {
            tokio::time::sleep(IMAGE_CHECK).await;
            if let Err(why) = collecting.collect(&root).await {
                keeper.warn("ImageGCFailed", &why);
            }
        }
    });
    collector
}

/// Looks after the cgroups of all pods and of their classes.
fn look_after_classes(config: &AgentConfig, context: &Context) -> Classes {
    let capacity = facts::capacity(&config.data_dir);
    // The margins of evictions are the pods': it is evictions that keep them out of there.
    let allocatable = config.reserve.allocatable(&capacity, &Default::default());
    let pids = eviction::processes().and_then(|(_, capacity)| config.reserve.pids(capacity));
    let all = if config.is_enforced { classes::all_pods(&allocatable, pids) } else { Resources::default() };
    Classes::new(all, context.offer.cgroup_driver, Arc::clone(&context.pods))
}

/// What of the memory is the pods', where a part of it is kept from them; the margins of evictions are still theirs.
fn allocatable_memory(config: &AgentConfig) -> Option<u64> {
    let capacity = facts::capacity(&config.data_dir);
    let allocatable = config.reserve.allocatable(&capacity, &Default::default());
    let is_kept = config.reserve.system.memory_bytes > 0 || config.reserve.kube.memory_bytes > 0;
    u64::try_from(allocatable.memory_bytes).ok().filter(|_| is_kept)
}

fn offer(config: &AgentConfig, info: &RuntimeInfo) -> NodeOffer {
    let capacity = facts::capacity(&config.data_dir);
    let allocatable = config.reserve.allocatable(&capacity, &config.eviction);
    NodeOffer {
        allocatable: Allocatable {
            cpu_milli: allocatable.cpu_milli,
            memory_bytes: allocatable.memory_bytes,
            ephemeral_storage_bytes: allocatable.ephemeral_storage_bytes,
        },
        memory_bytes: capacity.memory_bytes,
        max_pids: config.pod_max_pids,
        cgroup_driver: info.cgroup_driver,
        can_lower_oom_score: info.can_lower_oom_score,
        has_recursive_read_only: info.has_recursive_read_only(),
        has_apparmor: info.has_apparmor,
        logs: config.logs,
    }
}

/// Waits for the node's range, lays the pod network, and looks after its rules when the engine comes back.
async fn run_network(
    shared: Shared,
    keeper: Arc<NodeKeeper>,
    nodes: Arc<Informer<Node>>,
    slot: watch::Sender<Option<Arc<dyn SandboxNetwork>>>,
) {
    let Shared { config, tasks, .. } = &shared;
    let mut events = config.runtime.events();
    let pod_cidr = pod_cidr(config, &nodes).await;
    let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(30));
    let network = loop {
        match start_network(config, pod_cidr, tasks).await {
            Ok(network) => break network,
            Err(error) => {
                tracing::warn!(%error, "the pod network is not there; trying again");
                keeper.set_network(Some(&error));
                tokio::time::sleep(backoff.next_delay()).await;
            }
        }
    };
    slot.send_replace(Some(Arc::clone(&network) as Arc<dyn SandboxNetwork>));
    keeper.set_network(None);
    parts::start(&part_context(&shared, pod_cidr, &network));
    while let Some(event) = events.next().await {
        match event {
            RuntimeEvent::Resync => {
                network.ensure_rules().await;
                keeper.look_again();
            }
            RuntimeEvent::Down(_) => keeper.look_again(),
            RuntimeEvent::Container { .. } => {}
        }
    }
    std::future::pending::<()>().await;
}

fn part_context(shared: &Shared, pod_cidr: Ipv4Net, pods: &Arc<PodNetwork>) -> PartContext {
    let Shared { config, informers, tasks } = shared;
    let client = config.client.named("orch/network");
    PartContext {
        node: config.node_name.clone(),
        node_ip: config.node_ip,
        pod_cidr,
        cluster_cidr: config.cluster_cidr,
        service_cidr: config.service_cidr,
        cluster_dns: config.cluster_dns,
        cluster_domain: config.cluster_domain.clone(),
        data_dir: config.data_dir.join("network"),
        informers: informers.clone(),
        client,
        pods: Arc::clone(pods),
        clock: Arc::clone(&config.clock),
        tasks: tasks.clone(),
    }
}

/// The node's range: from the API, or, while that does not answer, the one known from before.
async fn pod_cidr(config: &AgentConfig, nodes: &Informer<Node>) -> Ipv4Net {
    const API_ANSWERS: Duration = Duration::from_secs(3);
    let file = config.data_dir.join(POD_CIDR_FILE);
    let mut changes = nodes.subscribe();
    let of_node = || {
        let node = nodes.get("", &config.node_name)?;
        node.spec.as_ref()?.pod_cidr.as_deref()?.parse::<Ipv4Net>().ok()
    };
    let from_api = async {
        loop {
            if let Some(found) = of_node() {
                return found;
            }
            if changes.next().await.is_none() {
                std::future::pending::<()>().await;
            }
        }
    };
    tokio::pin!(from_api);
    if let Ok(found) = tokio::time::timeout(API_ANSWERS, &mut from_api).await {
        remember(&file, found).await;
        return found;
    }
    let known = tokio::fs::read_to_string(&file).await.ok().and_then(|text| text.trim().parse().ok());
    if let Some(known) = known.filter(|_| !nodes.is_synced()) {
        return known;
    }
    let found = from_api.await;
    remember(&file, found).await;
    found
}

async fn remember(file: &Path, pod_cidr: Ipv4Net) {
    if let Err(error) = tokio::fs::write(file, pod_cidr.to_string()).await {
        tracing::warn!(path = %file.display(), %error, "the node's range was not noted");
    }
}

async fn start_network(config: &AgentConfig, pod_cidr: Ipv4Net, tasks: &TaskGroup) -> Result<Arc<PodNetwork>, String> {
    let mtu = pod_mtu(tasks, config.node_ip).await.map_err(|error| error.to_string())?;
    let wanted = NetworkConfig { node: config.node_name.clone(), pod_cidr, cluster_cidr: config.cluster_cidr, mtu };
    let network = PodNetwork::start(wanted, tasks).await.map_err(|error| error.to_string())?;
    network.close_gate();
    let existing = existing_pods(&*config.runtime, config.data_dir.join("pods")).await.map_err(|error| error.to_string())?;
    network.restore(existing).await.map_err(|error| error.to_string())?;
    Ok(network)
}

/// The sandboxes that ran on, with the addresses that they had.
async fn existing_pods(runtime: &dyn Runtime, pods_dir: PathBuf) -> Result<Vec<ExistingPod>, crate::cri::RuntimeError> {
    let mut existing = Vec::new();
    let containers = runtime.list().await?;
    let is_sandbox =
        |all: &std::collections::BTreeMap<String, String>| all.get(labels::TYPE).is_some_and(|kind| kind == "podsandbox");
    for container in containers.iter().filter(|one| one.state == State::Running && is_sandbox(&one.labels)) {
        let Some(uid) = container.labels.get(labels::POD_UID) else { continue };
        let Some(IpAddr::V4(ip)) = kept_address(&pods_dir.join(uid)).await else { continue };
        if let Ok(detail) = runtime.inspect(&container.id).await
            && let Some(sandbox_pid) = detail.pid
        {
            existing.push(ExistingPod { uid: uid.clone(), ip, sandbox_pid });
        }
    }
    Ok(existing)
}
