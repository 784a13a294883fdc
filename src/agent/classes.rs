//! The cgroups above those of pods. All pods together have what the node keeps for them, whatever they ask for; Burstable pods together
//! weigh what they ask for, and BestEffort pods next to nothing, so that neither takes CPU from a pod that asked for it (upstream
//! `pkg/kubelet/cm`: `node_container_manager` and `qos_container_manager`).

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;

use super::Pods;
use super::node::facts::Capacity;
use super::pod::cgroup;
use super::pod::resources::{QosClass, cpu_shares, qos_class};
use crate::cri::{CgroupDriver, Resources};
use crate::kinds::core::pod::has_ended;
use crate::kinds::core::pod::resources::of_pod;
use crate::rt::TaskGroup;

/// Looks after the cgroups of all pods and of the classes of service.
pub struct Classes {
    all: Resources,
    driver: CgroupDriver,
    pods: Arc<Pods>,
}

/// The limits of all pods together: what the node has for them, and how many processes, if some are kept from them.
pub fn all_pods(allocatable: &Capacity, pids: Option<i64>) -> Resources {
    Resources {
        cpu_shares: Some(cpu_shares(allocatable.cpu_milli)),
        memory_bytes: Some(allocatable.memory_bytes),
        pids,
        ..Resources::default()
    }
}

impl Classes {
    /// `all` is what all pods together may have.
    pub fn new(all: Resources, driver: CgroupDriver, pods: Arc<Pods>) -> Self {
        Self { all, driver, pods }
    }

    /// Runs until the agent stops: brings the limits up to date whenever containers come or go. The engine makes the cgroups with the
    /// first container that is in them, and a limit that is in force already is not written.
    pub async fn run(self) {
        let mut changes = self.pods.changes();
        loop {
            let (driver, limits) = (self.driver, self.limits());
            let write = move || limits.iter().for_each(|(class, limits)| cgroup::apply_to_class(*class, driver, limits));
            if let Err(error) = TaskGroup::blocking(write).await {
                tracing::warn!(%error, "the limits of the classes of pods were not written");
            }
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    fn limits(&self) -> [(QosClass, Resources); 3] {
        let of_class = |pod: &Pod| !has_ended(pod) && qos_class(pod) == QosClass::Burstable;
        let requested = self.pods.list().iter().filter(|pod| of_class(pod)).map(|pod| of_pod(pod).cpu_millis).sum();
        let weighs = |milli_cpu| Resources { cpu_shares: Some(cpu_shares(milli_cpu)), ..Resources::default() };
        [(QosClass::Guaranteed, self.all.clone()), (QosClass::Burstable, weighs(requested)), (QosClass::BestEffort, weighs(0))]
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::agent::pods::PodView;

    #[test]
    fn classes_weigh_what_their_pods_ask_for() {
        let pods = Arc::new(Pods::default());
        for (name, phase, resources) in [
            ("one", "Running", json!({"requests": {"cpu": "500m"}})),
            ("two", "Running", json!({"requests": {"cpu": "250m"}, "limits": {"cpu": "1"}})),
            ("ended", "Succeeded", json!({"requests": {"cpu": "1"}})),
            ("whole", "Running", json!({"limits": {"cpu": "1", "memory": "1Mi"}})),
            ("none", "Running", json!({})),
        ] {
            let pod = json!({"metadata": {"name": name, "uid": name}, "status": {"phase": phase},
                "spec": {"containers": [{"name": "c", "resources": resources}]}});
            let pod = Arc::new(serde_json::from_value(pod).unwrap());
            pods.publish(PodView { pod, containers: Default::default(), is_seen: true });
        }
        let allocatable = Capacity { cpu_milli: 1_900, memory_bytes: 1 << 30, ..Capacity::default() };
        let classes = Classes::new(all_pods(&allocatable, Some(1_000)), CgroupDriver::Cgroupfs, pods);
        let [(_, all), (_, burstable), (_, best_effort)] = classes.limits();
        assert_eq!((all.cpu_shares, all.memory_bytes, all.pids), (Some(1_945), Some(1 << 30), Some(1_000)));
        assert_eq!((burstable.cpu_shares, burstable.memory_bytes), (Some(768), None));
        assert_eq!(best_effort.cpu_shares, Some(2));
    }
}
