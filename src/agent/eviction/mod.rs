//! Evictions: when the node runs short of memory, disk or process numbers, it says so in its conditions, wins back what nobody needs,
//! and then ends pods one at a time, those first that use more than they asked for. Pods that keep more on disk than they may are
//! ended too. Follows upstream's `pkg/kubelet/eviction`, words included.
//!
//! What is read is read from the kernel's files. The memory is looked at when the kernel says so ([`notify`]); a slow timer sees to
//! the rest, since a disk tells nobody that it fills.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::image::collect::Collector;
use super::node::NodeKeeper;
use super::pod::context::{EventSink, reference};
use super::pod::status::Ended;
use super::pod::{Evict, Mailboxes};
use super::pods::{PodView, Pods};
use super::stats::{PodReading, Stats};
use crate::cri::{Runtime, State as ContainerState};
use crate::kinds::core::pod::has_ended;
use crate::rt::TaskGroup;
use crate::rt::clock::instant;

mod disk;
mod local;
pub mod message;
mod metrics;
mod notify;
mod observe;
pub mod rank;
pub mod signal;
mod state;
pub mod threshold;

use local::LocalStorage;
use notify::Notifier;
use observe::Places;
use rank::{Candidate, ContainerUsage, PodUsage};
use signal::{Pressure, Signal};
use state::{Finding, Observations, State};
use threshold::{Settings, Threshold};

pub use observe::processes;

/// How often the node is looked at when nothing is heard: upstream's `evictionMonitoringPeriod`.
const INTERVAL: Duration = Duration::from_secs(10);
/// News that follow each other faster are looked at together.
const LEAST_GAP: Duration = Duration::from_secs(1);
/// How long an evicted pod may take to end before the next one is chosen.
const CLEAN_UP: Duration = Duration::from_secs(30);
/// The grace of a pod that cannot wait.
pub const IMMEDIATE: Duration = Duration::from_secs(1);

/// The node's conditions that keep pods away, as they are now.
#[derive(Debug, Default)]
pub struct Pressures(Mutex<BTreeSet<Pressure>>);

impl Pressures {
    /// Those that are on.
    pub fn now(&self) -> BTreeSet<Pressure> {
        self.0.lock().clone()
    }

    /// Sets them; returns whether that is news.
    fn set(&self, pressures: BTreeSet<Pressure>) -> bool {
        let mut known = self.0.lock();
        let is_news = *known != pressures;
        *known = pressures;
        is_news
    }
}

/// What an evictor works with.
pub struct Parts {
    pub settings: Settings,
    /// `DATA/agent`.
    pub data_dir: PathBuf,
    /// Where the engine keeps images and containers.
    pub image_dir: PathBuf,
    /// What of the memory is the pods', if less than all.
    pub allocatable_memory_bytes: Option<u64>,
    pub pods: Arc<Pods>,
    pub mailboxes: Arc<Mailboxes>,
    pub stats: Arc<Stats>,
    pub keeper: Arc<NodeKeeper>,
    pub collector: Arc<Collector>,
    pub runtime: Arc<dyn Runtime>,
    pub events: Arc<dyn EventSink>,
}

/// Looks after one node.
pub struct Evictor {
    parts: Parts,
    places: Places,
    pods_dir: PathBuf,
    state: State,
    storage: LocalStorage,
}

/// Told when an evicted pod has ended; an error means that nobody knows it any more.
type Gone = oneshot::Receiver<()>;

impl Evictor {
    /// An evictor that has not looked yet.
    pub fn new(parts: Parts) -> Self {
        let places = Places { data_dir: parts.data_dir.clone(), image_dir: parts.image_dir.clone() };
        let pods_dir = parts.data_dir.join("pods");
        Self { parts, places, pods_dir, state: State::default(), storage: LocalStorage::default() }
    }

    /// Looks after the node, for ever.
    pub async fn run(mut self) {
        let is_memory = |threshold: &Threshold| threshold.signal.pressure() == Pressure::Memory;
        let mut notifier = Notifier::new(self.parts.settings.thresholds.iter().any(is_memory));
        loop {
            let evicted = self.look(&mut notifier).await;
            if evicted.is_empty() {
                let wait_for_news = async {
                    tokio::time::sleep(LEAST_GAP).await;
                    notifier.news().await;
                };
                tokio::select! {
                    () = wait_for_news => {}
                    () = tokio::time::sleep(INTERVAL) => {}
                }
                continue;
            }
            let all = futures_util::future::join_all(evicted);
            if tokio::time::timeout(CLEAN_UP, all).await.is_err() {
                tracing::warn!("an evicted pod takes long to end");
            }
        }
    }

    /// One look. Returns the pods that were evicted.
    async fn look(&mut self, notifier: &mut Notifier) -> Vec<Gone> {
        let Some(observations) = self.observe().await else { return Vec::new() };
        let finding = self.state.observe(&self.parts.settings, &observations, instant());
        if self.parts.keeper.pressures().set(finding.pressures.clone()) {
            tracing::info!(pressures = ?finding.pressures, "the node's pressures changed");
            self.parts.keeper.look_again();
        }
        notifier.arm(distance(&self.parts.settings.thresholds, &observations));
        let views = active(&self.parts.pods);
        let has_image_fs = self.places.has_image_file_system();
        let mut evicted = Vec::new();
        for one in self.storage.check(&views, &self.pods_dir, has_image_fs).await {
            if let Some(gone) = self.evict(&one.pod, IMMEDIATE, one.why, false) {
                metrics::count(one.limit);
                evicted.push(gone);
            }
        }
        if evicted.is_empty() { self.relieve(&finding, observations, views, has_image_fs).await } else { evicted }
    }

    async fn observe(&self) -> Option<Observations> {
        let (places, stats, allocatable) =
            (self.places.clone(), Arc::clone(&self.parts.stats), self.parts.allocatable_memory_bytes);
        let read = TaskGroup::blocking(move || {
            let mut all = places.read();
            if let Some(allocatable) = allocatable {
                let available = allocatable.saturating_sub(stats.pods_working_set_bytes());
                let signal = Signal::AllocatableMemoryAvailable;
                all.insert(signal, observe::observed(signal, available, allocatable));
            }
            all
        });
        read.await.map_err(|error| tracing::warn!(%error, "the node's resources were not read")).ok()
    }

    /// Wins back what the most urgent threshold is about: from the node itself, or else from one pod.
    async fn relieve(
        &self,
        finding: &Finding,
        observations: Observations,
        views: Vec<Arc<PodView>>,
        has_image_fs: bool,
    ) -> Vec<Gone> {
        let Some(threshold) = finding.due.first() else { return Vec::new() };
        let resource = threshold.signal.resource();
        tracing::warn!(signal = threshold.signal.name(), "the node runs short");
        self.parts.keeper.warn("EvictionThresholdMet", &format!("Attempting to reclaim {resource}"));
        if self.reclaim(threshold.signal, has_image_fs).await {
            let again = self.observe().await.unwrap_or_default();
            if !finding.due.iter().any(|threshold| state::is_met(threshold, &again, true)) {
                tracing::info!(resource, "the node won back enough without ending pods");
                return Vec::new();
            }
        }
        let mut candidates = self.candidates(threshold.signal, views, has_image_fs).await;
        rank::rank(threshold.signal, &mut candidates);
        for Candidate { pod, usage } in candidates {
            let grace = grace(threshold, &pod, self.parts.settings.max_pod_grace);
            let why = message::shortage(resource, &pod, usage.as_ref(), &finding.due, &observations);
            if let Some(gone) = self.evict(&pod, grace, why, true) {
                metrics::count(threshold.signal.name());
                return vec![gone];
            }
        }
        tracing::warn!(resource, "there is no pod that may be evicted");
        Vec::new()
    }

    /// Removes what nobody needs from a disk; returns whether anything could have been won.
    async fn reclaim(&self, signal: Signal, has_image_fs: bool) -> bool {
        let is_image = matches!(signal, Signal::ImagefsAvailable | Signal::ImagefsInodesFree);
        let is_node = matches!(signal, Signal::NodefsAvailable | Signal::NodefsInodesFree);
        if !(is_image || is_node && !has_image_fs) {
            return false;
        }
        for id in dead_containers(&self.parts.pods) {
            if let Err(error) = self.parts.runtime.remove(&id).await {
                tracing::debug!(id, %error, "a dead container stays");
            }
        }
        self.parts.collector.free_unused().await;
        true
    }

    /// The pods that run, each with what it uses of what is short.
    async fn candidates(&self, signal: Signal, views: Vec<Arc<PodView>>, has_image_fs: bool) -> Vec<Candidate> {
        let is_running = |view: &&Arc<PodView>| {
            let mut current = view.containers.values().filter_map(|lookup| lookup.current.as_ref());
            current.any(|instance| instance.state == ContainerState::Running)
        };
        let views: Vec<Arc<PodView>> = views.iter().filter(is_running).cloned().collect();
        let mut usages = match signal.pressure() {
            Pressure::Disk => self.disk_usages(signal, &views, has_image_fs).await,
            Pressure::Memory | Pressure::Pid => self.readings().await,
        };
        let candidate = |view: &Arc<PodView>| Candidate {
            usage: usages.remove(view.pod.metadata.uid.as_deref().unwrap_or("")),
            pod: Arc::clone(&view.pod),
        };
        views.iter().map(candidate).collect()
    }

    async fn readings(&self) -> BTreeMap<String, PodUsage> {
        match self.parts.stats.counters().await {
            Ok(reading) => {
                reading.pods.into_iter().filter_map(|one| Some((one.pod.metadata.uid.clone()?, usage(&one)))).collect()
            }
            Err(error) => {
                tracing::warn!(error, "what the pods use was not read");
                BTreeMap::new()
            }
        }
    }

    /// Layers count against the engine's file system, the rest against the node's; both where it is one.
    async fn disk_usages(&self, signal: Signal, views: &[Arc<PodView>], has_image_fs: bool) -> BTreeMap<String, PodUsage> {
        let is_image = matches!(signal, Signal::ImagefsAvailable | Signal::ImagefsInodesFree);
        let (layers, rest) = (is_image || !has_image_fs, !is_image || !has_image_fs);
        let mut usages = BTreeMap::new();
        for view in views {
            let Some(uid) = view.pod.metadata.uid.clone() else { continue };
            let (seen, folder) = (Arc::clone(view), self.pods_dir.join(&uid));
            match TaskGroup::blocking(move || disk::measure(&seen, &folder)).await {
                Ok(measured) => {
                    let sum = measured.sum(layers, rest);
                    let container = |name: &String| ContainerUsage {
                        disk_bytes: Some(measured.container(name, true).bytes),
                        name: name.clone(),
                        ..ContainerUsage::default()
                    };
                    let containers = view.containers.keys().map(container).collect();
                    let usage = PodUsage { disk_bytes: sum.bytes, inodes: sum.inodes, containers, ..PodUsage::default() };
                    usages.insert(uid, usage);
                }
                Err(error) => tracing::debug!(uid, %error, "a pod's storage was not measured"),
            }
        }
        usages
    }

    /// Ends a pod, unless the node needs it. Returns how to know when it has ended.
    fn evict(&self, pod: &Pod, grace: Duration, why: String, is_disruption: bool) -> Option<Gone> {
        if rank::is_critical(pod) {
            tracing::warn!(pod = pod.metadata.name, "cannot evict a critical pod");
            return None;
        }
        let (done, gone) = oneshot::channel();
        tracing::info!(pod = pod.metadata.name, namespace = pod.metadata.namespace, why, "evicting a pod");
        let ended = Ended { reason: message::REASON.to_owned(), message: why.clone(), grace: Some(grace), is_disruption };
        self.parts.mailboxes.evict(pod.metadata.uid.as_deref()?, Evict { ended, done })?;
        self.parts.events.event(&reference(pod, None), true, message::REASON, &why);
        Some(gone)
    }
}

/// A hard threshold leaves a pod no time; a soft one its own, up to the longest.
fn grace(threshold: &Threshold, pod: &Pod, longest: Duration) -> Duration {
    let own = pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds);
    let own = own.and_then(|seconds| u64::try_from(seconds).ok()).map(Duration::from_secs);
    if threshold.is_hard() { IMMEDIATE } else { own.map_or(longest, |own| own.min(longest)) }
}

/// Containers that are kept for their logs alone: those of pods that have ended.
fn dead_containers(pods: &Pods) -> Vec<String> {
    let mut dead = Vec::new();
    for view in pods.views().iter().filter(|view| has_ended(&view.pod)) {
        let instances = view.containers.values().flat_map(|lookup| [&lookup.current, &lookup.previous]).flatten();
        dead.extend(instances.filter(|one| one.state == ContainerState::Exited).map(|one| one.id.clone()));
    }
    dead
}

fn active(pods: &Pods) -> Vec<Arc<PodView>> {
    pods.views().into_iter().filter(|view| !has_ended(&view.pod)).collect()
}

fn usage(one: &PodReading) -> PodUsage {
    let containers = one.containers.iter().map(|container| ContainerUsage {
        name: container.name.clone(),
        working_set_bytes: container.reading.usage.working_set_bytes,
        disk_bytes: None,
    });
    PodUsage {
        working_set_bytes: one.reading.usage.working_set_bytes,
        processes: one.reading.usage.processes,
        containers: containers.collect(),
        ..PodUsage::default()
    }
}

/// How much memory may still be used before the next threshold is crossed.
fn distance(thresholds: &[Threshold], observations: &Observations) -> Option<u64> {
    let memory = thresholds.iter().filter(|threshold| threshold.signal == Signal::MemoryAvailable);
    let left = memory.filter_map(|threshold| {
        let observed = observations.get(&threshold.signal)?;
        let left = observed.available.value() - threshold.level.of(observed.capacity).value();
        u64::try_from(left).ok().filter(|left| *left > 0)
    });
    left.min()
}

/// The path of the engine's data where it can be seen from here; else that of the node, as if they were one.
pub fn image_dir(engine: &Path, data_dir: &Path) -> PathBuf {
    if engine.exists() { engine.to_owned() } else { data_dir.to_owned() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn graces_by_threshold_and_pod() {
        let texts = threshold::Texts {
            hard: "memory.available<1Gi",
            soft: "memory.available<2Gi",
            soft_grace_period: "memory.available=1m",
            ..Default::default()
        };
        let all = threshold::parse(texts).unwrap();
        let pod: Pod = serde_json::from_value(json!({"spec": {"terminationGracePeriodSeconds": 20, "containers": []}})).unwrap();
        let table = [(0, 60, 1), (1, 60, 20), (1, 5, 5), (1, 0, 0)];
        for (which, longest, expected) in table {
            assert_eq!(grace(&all[which], &pod, Duration::from_secs(longest)).as_secs(), expected);
        }
    }

    #[test]
    fn the_next_threshold_is_the_nearest_that_is_not_passed() {
        let texts = threshold::Texts {
            hard: "memory.available<100Mi",
            soft: "memory.available<1Gi",
            soft_grace_period: "memory.available=1m",
            ..Default::default()
        };
        let all = threshold::parse(texts).unwrap();
        let at = |mib: u64| [(Signal::MemoryAvailable, observe::observed(Signal::MemoryAvailable, mib << 20, 4 << 30))].into();
        assert_eq!(distance(&all, &at(2_048)), Some(1 << 30));
        assert_eq!(distance(&all, &at(1_000)), Some(900 << 20));
        assert_eq!(distance(&all, &at(50)), None);
    }
}
