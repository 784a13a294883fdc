//! Whom to evict first: those that use more than they asked for, then the least important, then those that are farthest above their
//! request (upstream `eviction/helpers.go`, the `rank…Pressure` functions). Pure.

use std::cmp::Reverse;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;

use super::signal::Signal;
use crate::agent::pod::resources::SYSTEM_CRITICAL_PRIORITY;
use crate::agent::pod::statics;
use crate::kinds::core::pod::resources::of_pod;

/// What one container uses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ContainerUsage {
    pub name: String,
    pub working_set_bytes: u64,
    /// Its writable layer and its logs, where they were measured.
    pub disk_bytes: Option<u64>,
}

/// What one pod uses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodUsage {
    pub working_set_bytes: u64,
    pub processes: u64,
    /// Writable layers, logs and local volumes, as far as they lie on the file system that is full.
    pub disk_bytes: u64,
    pub inodes: u64,
    pub containers: Vec<ContainerUsage>,
}

/// A pod that may be evicted.
#[derive(Debug, Clone)]
pub struct Candidate {
    pub pod: Arc<Pod>,
    /// `None` where nothing could be measured: such a pod goes first.
    pub usage: Option<PodUsage>,
}

/// Whether the node does not evict the pod whatever happens: a static one, or one that the system needs.
pub fn is_critical(pod: &Pod) -> bool {
    let priority = pod.spec.as_ref().and_then(|spec| spec.priority);
    statics::is_static(pod) || statics::is_mirror(pod) || priority.is_some_and(|priority| priority >= SYSTEM_CRITICAL_PRIORITY)
}

/// Sorts by who is to be evicted first.
pub fn rank(signal: Signal, candidates: &mut [Candidate]) {
    candidates.sort_by_cached_key(|candidate| {
        let requested = of_pod(&candidate.pod);
        let priority = candidate.pod.spec.as_ref().and_then(|spec| spec.priority).unwrap_or(0);
        let usage = candidate.usage.clone().unwrap_or_default();
        let amount = |amount: u64| i64::try_from(amount).unwrap_or(i64::MAX);
        let (used, requested) = match signal {
            Signal::MemoryAvailable | Signal::AllocatableMemoryAvailable => {
                (amount(usage.working_set_bytes), requested.memory_bytes)
            }
            Signal::NodefsAvailable | Signal::ImagefsAvailable => (amount(usage.disk_bytes), requested.ephemeral_bytes),
            Signal::NodefsInodesFree | Signal::ImagefsInodesFree => (amount(usage.inodes), 0),
            // Processes are not asked for: only importance counts, and then their number.
            Signal::PidAvailable => (amount(usage.processes), i64::MAX),
        };
        let above = if signal == Signal::PidAvailable { used } else { used.saturating_sub(requested) };
        (candidate.usage.is_some(), used <= requested, priority, Reverse(above))
    });
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn candidate(name: &str, priority: i32, request: &str, used: Option<u64>) -> Candidate {
        let resources = json!({"requests": {"memory": request, "ephemeral-storage": request}});
        let spec = json!({"priority": priority, "containers": [{"name": "c", "resources": resources}]});
        let pod = serde_json::from_value(json!({"metadata": {"name": name}, "spec": spec})).unwrap();
        let usage = used.map(|used| PodUsage {
            working_set_bytes: used,
            disk_bytes: used,
            inodes: used,
            processes: used,
            containers: Vec::new(),
        });
        Candidate { pod: Arc::new(pod), usage }
    }

    #[test]
    fn order_as_upstream() {
        let all = || {
            vec![
                candidate("within", 0, "100", Some(90)),
                candidate("important", 10, "10", Some(1_000)),
                candidate("little above", 0, "10", Some(20)),
                candidate("far above", 0, "10", Some(90)),
                candidate("unknown", 0, "0", None),
            ]
        };
        let by_request = ["unknown", "far above", "little above", "important", "within"];
        let by_priority = ["unknown", "within", "far above", "little above", "important"];
        let table = [
            (Signal::MemoryAvailable, by_request),
            (Signal::NodefsAvailable, by_request),
            (Signal::ImagefsInodesFree, by_priority),
            (Signal::PidAvailable, by_priority),
        ];
        for (signal, expected) in table {
            let mut candidates = all();
            rank(signal, &mut candidates);
            let names: Vec<&str> = candidates.iter().filter_map(|one| one.pod.metadata.name.as_deref()).collect();
            assert_eq!(names, expected, "{signal:?}");
        }
    }

    #[test]
    fn who_stays_whatever_happens() {
        let table = [
            (json!({"metadata": {"annotations": {"kubernetes.io/config.source": "file"}}}), true),
            (json!({"metadata": {"annotations": {"kubernetes.io/config.mirror": "x"}}}), true),
            (json!({"spec": {"priority": 2_000_001_000, "containers": []}}), true),
            (json!({"spec": {"priority": 1_000_000_000, "containers": []}}), false),
        ];
        for (pod, expected) in table {
            assert_eq!(is_critical(&serde_json::from_value(pod.clone()).unwrap()), expected, "{pod}");
        }
    }
}
