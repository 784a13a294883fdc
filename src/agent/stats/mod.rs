//! What the node, its pods and their containers use: read when somebody asks, never in between, so that an idle node stays idle.
//!
//! A rate needs two readings. The last one is kept; where it is too old (or there is none) a short window is measured for the asker.
//! The forms are those of upstream's `k8s.io/kubelet/pkg/apis/stats/v1alpha1` ([`summary`]) and of its `/metrics/resource` and
//! `/metrics/cadvisor` ([`exposition`]).

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use tokio::sync::{Mutex, watch};

use super::AgentConfig;
use super::pod::context::NetworkSlot;
use super::pod::resources::qos_class;
use super::pod::statuses;
use super::pods::Pods;
use crate::cri::{CgroupDriver, RuntimeInfo, State};
use crate::network::{NodeTraffic, Traffic};
use crate::rt::TaskGroup;
use crate::rt::clock::SharedClock;

mod cgroup;
pub mod exposition;
pub mod filesystem;
pub mod summary;

pub use cgroup::machine;
use cgroup::{PodCgroup, Usage};
use filesystem::Space;

/// A rate over less says little.
const WINDOW_MIN: Duration = Duration::from_secs(1);
/// A rate over more is about the past.
const WINDOW_MAX: Duration = Duration::from_secs(60);

/// A reading of one cgroup, and how fast it uses CPU now.
#[derive(Debug, Clone, PartialEq)]
pub struct Reading {
    pub at: Timestamp,
    pub usage: Usage,
    /// Billionths of a core, over the window.
    pub nano_cores: u64,
}

/// One container.
#[derive(Debug, Clone)]
pub struct ContainerReading {
    pub name: String,
    pub id: String,
    /// The path of its cgroup.
    pub cgroup: String,
    pub image: String,
    pub started_at: Option<Timestamp>,
    pub reading: Reading,
    pub log_bytes: u64,
}

/// One pod.
#[derive(Debug, Clone)]
pub struct PodReading {
    pub pod: Arc<Pod>,
    /// The path of its cgroup.
    pub cgroup: String,
    pub reading: Reading,
    pub containers: Vec<ContainerReading>,
    pub traffic: Option<Traffic>,
}

/// The whole node at one time.
#[derive(Debug, Clone)]
pub struct NodeReading {
    pub node: String,
    pub booted_at: Timestamp,
    pub reading: Reading,
    pub pods: Vec<PodReading>,
    pub traffic: Vec<Traffic>,
    /// The file system of the agent's data, and that of the engine.
    pub data_space: Space,
    pub image_space: Space,
    /// What the rates are measured over.
    pub window: Duration,
}

/// What is read at once, before rates are known.
#[derive(Clone, Default)]
struct Raw {
    at: Timestamp,
    node: Usage,
    pods: HashMap<String, Usage>,
    containers: HashMap<String, Usage>,
}

/// The figures of one node.
pub struct Stats {
    node: String,
    data_dir: PathBuf,
    pods: Arc<Pods>,
    runtime: watch::Receiver<Option<RuntimeInfo>>,
    network: NetworkSlot,
    clock: SharedClock,
    last: Mutex<Option<Raw>>,
}

impl Stats {
    /// The figures of these pods and their node.
    pub(super) fn new(
        config: &AgentConfig,
        pods: Arc<Pods>,
        runtime: watch::Receiver<Option<RuntimeInfo>>,
        network: NetworkSlot,
    ) -> Arc<Self> {
        let (node, data_dir, clock) = (config.node_name.clone(), config.data_dir.clone(), Arc::clone(&config.clock));
        Arc::new(Self { node, data_dir, pods, runtime, network, clock, last: Mutex::default() })
    }

    /// Reads everything. Takes up to a second, where there is no earlier reading to compare with; then who asks at the same time waits.
    pub async fn read(self: &Arc<Self>) -> Result<NodeReading, String> {
        let mut last = self.last.lock().await;
        let age = |raw: &Raw| self.clock.now().duration_since(raw.at).unsigned_abs();
        let before = match last.take().filter(|raw| age(raw) <= WINDOW_MAX) {
            Some(before) => before,
            None => self.raw().await?,
        };
        if let Some(rest) = WINDOW_MIN.checked_sub(age(&before)) {
            tokio::time::sleep(rest).await;
        }
        let now = self.raw().await?;
        let reading = self.compare(&before, &now).await;
        *last = Some(now);
        Ok(reading)
    }

    /// The readings without rates: for those who compute their own from the counters.
    pub async fn counters(self: &Arc<Self>) -> Result<NodeReading, String> {
        let now = self.raw().await?;
        Ok(self.compare(&now, &now).await)
    }

    /// What the pods together keep in memory that the kernel does not give up first. Blocking.
    pub fn pods_working_set_bytes(&self) -> u64 {
        let driver = self.driver();
        let views = self.pods.views();
        let uids = views.iter().filter_map(|view| Some((qos_class(&view.pod), view.pod.metadata.uid.as_deref()?)));
        uids.filter_map(|(class, uid)| PodCgroup::new(class, uid, driver).pod()).map(|usage| usage.working_set_bytes).sum()
    }

    fn driver(&self) -> CgroupDriver {
        self.runtime.borrow().as_ref().map(|info| info.cgroup_driver).unwrap_or_default()
    }

    async fn raw(self: &Arc<Self>) -> Result<Raw, String> {
        let stats = Arc::clone(self);
        TaskGroup::blocking(move || stats.raw_blocking()).await.map_err(|error| format!("cannot read the figures: {error}"))
    }

    fn raw_blocking(&self) -> Raw {
        let driver = self.driver();
        let mut raw = Raw { at: self.clock.now(), node: cgroup::machine(), ..Raw::default() };
        for view in self.pods.views() {
            let Some(uid) = &view.pod.metadata.uid else { continue };
            let cgroup = PodCgroup::new(qos_class(&view.pod), uid, driver);
            if let Some(usage) = cgroup.pod() {
                raw.pods.insert(uid.clone(), usage);
            }
            let running =
                view.containers.values().filter_map(|one| one.current.as_ref()).filter(|one| one.state == State::Running);
            for instance in running {
                if let Some(usage) = cgroup.container(&instance.id) {
                    raw.containers.insert(instance.id.clone(), usage);
                }
            }
        }
        raw
    }

    async fn compare(&self, before: &Raw, now: &Raw) -> NodeReading {
        let window = now.at.duration_since(before.at).unsigned_abs();
        let network = self.network.borrow().clone();
        let mut traffic = match network {
            Some(network) => network.traffic().await.unwrap_or_else(|error| {
                tracing::debug!(%error, "the interfaces' counters were not read");
                NodeTraffic::default()
            }),
            None => NodeTraffic::default(),
        };
        let mut pods = Vec::new();
        for view in self.pods.views() {
            let Some(usage) = view.pod.metadata.uid.as_ref().and_then(|uid| now.pods.get(uid)) else { continue };
            let uid = view.pod.metadata.uid.as_deref().unwrap_or("");
            let started = view.pod.status.as_ref().and_then(|status| status.start_time.as_ref()).map(|time| time.0);
            let cgroup = PodCgroup::new(qos_class(&view.pod), uid, self.driver());
            let mut containers = Vec::new();
            for lookup in view.containers.values() {
                let Some(instance) = &lookup.current else { continue };
                let Some(usage) = now.containers.get(&instance.id) else { continue };
                let status = statuses(&view.pod).find(|status| status.name == lookup.container);
                let started_at = status.and_then(|status| Some(status.state.as_ref()?.running.as_ref()?.started_at.as_ref()?.0));
                containers.push(ContainerReading {
                    name: lookup.container.clone(),
                    id: instance.id.clone(),
                    cgroup: cgroup.container_path(&instance.id).display().to_string(),
                    image: status.map_or_else(String::new, |status| status.image.clone()),
                    started_at,
                    reading: reading(now.at, *usage, before.containers.get(&instance.id), before.at, started_at),
                    log_bytes: instance.log_path.as_ref().and_then(|path| path.metadata().ok()).map_or(0, |file| file.len()),
                });
            }
            let reading = reading(now.at, *usage, before.pods.get(uid), before.at, started);
            let (cgroup, traffic) = (cgroup.path().display().to_string(), traffic.pods.remove(uid));
            pods.push(PodReading { pod: Arc::clone(&view.pod), cgroup, reading, containers, traffic });
        }
        let images = self.runtime.borrow().as_ref().map(|info| info.root_dir.clone());
        NodeReading {
            node: self.node.clone(),
            booted_at: now.at - uptime(),
            reading: reading(now.at, now.node, Some(&before.node), before.at, None),
            pods,
            traffic: traffic.node,
            data_space: Space::of(&self.data_dir),
            image_space: Space::of(images.as_deref().unwrap_or(&self.data_dir)),
            window,
        }
    }
}

/// A rate since the reading before, or, for what is younger than that, since its own start.
fn reading(at: Timestamp, usage: Usage, before: Option<&Usage>, before_at: Timestamp, started_at: Option<Timestamp>) -> Reading {
    let (used, since) = match before {
        Some(before) => (usage.cpu_ns.saturating_sub(before.cpu_ns), Some(before_at)),
        None => (usage.cpu_ns, started_at),
    };
    let elapsed_ms = since.map_or(0, |since| at.duration_since(since).as_millis()).max(0);
    let nano_cores = u64::try_from(elapsed_ms).ok().and_then(|ms| used.checked_mul(1_000)?.checked_div(ms));
    Reading { at, usage, nano_cores: nano_cores.unwrap_or(0) }
}

fn uptime() -> Duration {
    let text = std::fs::read_to_string("/proc/uptime").ok();
    let seconds = text.and_then(|text| text.split_whitespace().next()?.parse::<f64>().ok()).filter(|seconds| seconds.is_finite());
    Duration::try_from_secs_f64(seconds.unwrap_or(0.0)).unwrap_or(Duration::ZERO)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_over_the_window_or_the_life() {
        let second = |second| Timestamp::from_second(second).unwrap();
        let usage = |cpu_ns| Usage { cpu_ns, ..Usage::default() };
        let old = usage(1_000_000_000);
        let rate = |before, started| reading(second(110), usage(3_000_000_000), before, second(100), started).nano_cores;
        assert_eq!(rate(Some(&old), None), 200_000_000, "2 s of CPU in 10 s");
        assert_eq!(rate(None, Some(second(107))), 1_000_000_000, "3 s of CPU in a life of 3 s");
        assert_eq!(rate(None, None), 0, "nothing is known");
    }
}
