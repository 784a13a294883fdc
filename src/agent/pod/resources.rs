//! A pod's resources: its quality-of-service class, its cgroup, and the kernel's limits for its containers. Pure functions; the
//! formulas are those of the kubelet's `cm` and `qos` packages.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Typed;

use crate::api::quantity::Quantity;
use crate::cri::{CgroupDriver, Resources};

/// Quality-of-service class of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QosClass {
    Guaranteed,
    Burstable,
    BestEffort,
}

impl QosClass {
    /// As `status.qosClass` shows it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Guaranteed => "Guaranteed",
            Self::Burstable => "Burstable",
            Self::BestEffort => "BestEffort",
        }
    }
}

const CPU_PERIOD_US: i64 = 100_000;
const MIN_CPU_QUOTA_US: i64 = 1_000;
const MIN_CPU_SHARES: i64 = 2;
const MAX_CPU_SHARES: i64 = 262_144;
const GUARANTEED_OOM_SCORE_ADJ: i64 = -997;
const BEST_EFFORT_OOM_SCORE_ADJ: i64 = 1_000;
/// Priority from which a pod counts as critical to its node.
const SYSTEM_CRITICAL_PRIORITY: i32 = 2_000_000_000;

type Amounts = BTreeMap<String, Typed>;

fn amount(amounts: Option<&Amounts>, name: &str) -> Option<Quantity> {
    amounts?.get(name).and_then(|typed| Quantity::try_from(typed).ok()).filter(|amount| !amount.is_zero())
}

/// What a container asks for or is limited to.
pub fn limit(container: &Container, name: &str) -> Option<Quantity> {
    amount(container.resources.as_ref().and_then(|resources| resources.limits.as_ref()), name)
}

/// What a container requests.
pub fn request(container: &Container, name: &str) -> Option<Quantity> {
    amount(container.resources.as_ref().and_then(|resources| resources.requests.as_ref()), name)
}

/// The class of a pod, from the requests and limits of its containers.
pub fn qos_class(pod: &Pod) -> QosClass {
    let Some(spec) = &pod.spec else { return QosClass::BestEffort };
    let containers: Vec<&Container> = spec.init_containers.iter().flatten().chain(&spec.containers).collect();
    let all = ["cpu", "memory"];
    let sets_none =
        |container: &&&Container| all.iter().all(|name| limit(container, name).is_none() && request(container, name).is_none());
    if containers.iter().filter(|container| !sets_none(container)).count() == 0 {
        return QosClass::BestEffort;
    }
    let is_guaranteed = |container: &&Container| {
        all.iter().all(|name| {
            let limit = limit(container, name);
            limit.is_some() && request(container, name).is_none_or(|request| Some(request) == limit)
        })
    };
    if containers.iter().all(is_guaranteed) { QosClass::Guaranteed } else { QosClass::Burstable }
}

/// The pod's cgroup, in the form of the engine's cgroup driver.
pub fn cgroup_parent(class: QosClass, uid: &str, driver: CgroupDriver) -> String {
    let class = match class {
        QosClass::Guaranteed => "",
        QosClass::Burstable => "burstable",
        QosClass::BestEffort => "besteffort",
    };
    match driver {
        CgroupDriver::Cgroupfs if class.is_empty() => format!("/kubepods/pod{uid}"),
        CgroupDriver::Cgroupfs => format!("/kubepods/{class}/pod{uid}"),
        CgroupDriver::Systemd => {
            let class = if class.is_empty() { String::new() } else { format!("-{class}") };
            format!("kubepods{class}-pod{}.slice", uid.replace('-', "_"))
        }
    }
}

/// A container's limits in the kernel's units.
pub fn container_resources(container: &Container) -> Resources {
    let cpu_limit = limit(container, "cpu").map(|limit| limit.milli_value());
    let cpu_request = request(container, "cpu").map(|request| request.milli_value()).or(cpu_limit);
    Resources {
        cpu_shares: Some(cpu_shares(cpu_request.unwrap_or(0))),
        cpu_quota_us: cpu_limit.map(cpu_quota_us),
        cpu_period_us: cpu_limit.map(|_| CPU_PERIOD_US),
        memory_bytes: limit(container, "memory").map(|limit| limit.value()),
        pids: None,
    }
}

/// `cpu.shares` for a request in thousandths of a CPU.
pub fn cpu_shares(milli_cpu: i64) -> i64 {
    (milli_cpu.saturating_mul(1_024) / 1_000).clamp(MIN_CPU_SHARES, MAX_CPU_SHARES)
}

fn cpu_quota_us(milli_cpu: i64) -> i64 {
    (milli_cpu.saturating_mul(CPU_PERIOD_US) / 1_000).max(MIN_CPU_QUOTA_US)
}

/// How willingly the kernel kills a container's processes when memory runs out.
pub fn oom_score_adj(pod: &Pod, container: &Container, node_memory_bytes: i64) -> i64 {
    let priority = pod.spec.as_ref().and_then(|spec| spec.priority).unwrap_or(0);
    if priority >= SYSTEM_CRITICAL_PRIORITY {
        return GUARANTEED_OOM_SCORE_ADJ;
    }
    match qos_class(pod) {
        QosClass::Guaranteed => GUARANTEED_OOM_SCORE_ADJ,
        QosClass::BestEffort => BEST_EFFORT_OOM_SCORE_ADJ,
        QosClass::Burstable => {
            let requested = request(container, "memory").map_or(0, |request| request.value());
            let share = i128::from(requested) * 1_000 / i128::from(node_memory_bytes.max(1));
            let score = 1_000 - i64::try_from(share).unwrap_or(1_000);
            score.clamp(1_000 + GUARANTEED_OOM_SCORE_ADJ, BEST_EFFORT_OOM_SCORE_ADJ - 1)
        }
    }
}

/// Limits of the pod's own cgroup: the sum over its containers, where each has one.
pub fn pod_resources(pod: &Pod) -> Resources {
    let Some(spec) = &pod.spec else { return Resources::default() };
    let sum =
        |of: &dyn Fn(&Container) -> Option<i64>| spec.containers.iter().map(of).try_fold(0_i64, |sum, part| Some(sum + part?));
    let milli = |container: &Container| limit(container, "cpu").map(|limit| limit.milli_value());
    let bytes = |container: &Container| limit(container, "memory").map(|limit| limit.value());
    let requested: i64 =
        spec.containers.iter().map(|container| request(container, "cpu").map_or(0, |request| request.milli_value())).sum();
    // Init containers run alone and may be larger than all the others together: then the pod has no limit of its own.
    let has_init = spec.init_containers.iter().flatten().next().is_some();
    let (cpu, memory) = if has_init { (None, None) } else { (sum(&milli), sum(&bytes)) };
    Resources {
        cpu_shares: Some(cpu_shares(requested)),
        cpu_quota_us: cpu.map(cpu_quota_us),
        cpu_period_us: cpu.map(|_| CPU_PERIOD_US),
        memory_bytes: memory,
        pids: None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(resources: &[serde_json::Value]) -> Pod {
        let containers: Vec<_> =
            resources.iter().enumerate().map(|(n, resources)| json!({"name": format!("c{n}"), "resources": resources})).collect();
        serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": {"containers": containers}})).unwrap()
    }

    #[test]
    fn classes_as_upstream() {
        let guaranteed = json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1000m", "memory": "1Gi"}});
        let limits_only = json!({"limits": {"cpu": "1", "memory": "1Gi"}});
        let burstable = json!({"requests": {"cpu": "100m"}});
        let table = [
            (vec![json!({})], QosClass::BestEffort),
            (vec![guaranteed.clone()], QosClass::Guaranteed),
            (vec![guaranteed.clone(), limits_only], QosClass::Guaranteed),
            (vec![guaranteed, json!({})], QosClass::Burstable),
            (vec![burstable], QosClass::Burstable),
        ];
        for (resources, class) in table {
            assert_eq!(qos_class(&pod(&resources)), class, "{resources:?}");
        }
    }

    #[test]
    fn units_of_the_kernel() {
        let all = pod(&[json!({"limits": {"cpu": "250m", "memory": "64Mi"}, "requests": {"cpu": "100m"}})]);
        let spec = all.spec.as_ref().unwrap();
        let resources = container_resources(&spec.containers[0]);
        assert_eq!(resources.cpu_shares, Some(102));
        assert_eq!(resources.cpu_quota_us, Some(25_000));
        assert_eq!(resources.memory_bytes, Some(64 << 20));
        assert_eq!(oom_score_adj(&all, &spec.containers[0], 8 << 30), 999);
        assert_eq!(cgroup_parent(qos_class(&all), "a-b", CgroupDriver::Cgroupfs), "/kubepods/burstable/poda-b");
        assert_eq!(cgroup_parent(QosClass::Guaranteed, "a-b", CgroupDriver::Systemd), "kubepods-poda_b.slice");
    }
}
