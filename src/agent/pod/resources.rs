//! A pod's resources: its quality-of-service class, its cgroup, and the kernel's limits for its containers. Pure functions; the
//! formulas are those of the kubelet's `cm` and `qos` packages.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Typed;

use crate::api::quantity::Quantity;
use crate::cri::{CgroupDriver, Resources};
use crate::kinds::core::pod::resources::{of_containers, of_pod};

/// Quality-of-service class of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QosClass {
    Guaranteed,
    Burstable,
    BestEffort,
}

impl QosClass {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Guaranteed, Self::Burstable, Self::BestEffort];

    /// As `status.qosClass` shows it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Guaranteed => "Guaranteed",
            Self::Burstable => "Burstable",
            Self::BestEffort => "BestEffort",
        }
    }
}

/// The extended resource that is handed out by Docker's NVIDIA runtime.
pub const GPU: &str = "nvidia.com/gpu";
const CPU_PERIOD_US: i64 = 100_000;
const MIN_CPU_QUOTA_US: i64 = 1_000;
const MIN_CPU_SHARES: i64 = 2;
const MAX_CPU_SHARES: i64 = 262_144;
const GUARANTEED_OOM_SCORE_ADJ: i64 = -997;
const BEST_EFFORT_OOM_SCORE_ADJ: i64 = 1_000;
/// Priority from which a pod counts as critical to its node.
pub const SYSTEM_CRITICAL_PRIORITY: i32 = 2_000_000_000;

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

/// The class of a pod, from the requests and limits of its containers, or its own.
pub fn qos_class(pod: &Pod) -> QosClass {
    match pod.spec.as_ref().map(crate::kinds::core::pod::qos_class) {
        Some("Guaranteed") => QosClass::Guaranteed,
        Some("Burstable") => QosClass::Burstable,
        _ => QosClass::BestEffort,
    }
}

/// The pod's cgroup, in the form of the engine's cgroup driver.
pub fn cgroup_parent(class: QosClass, uid: &str, driver: CgroupDriver) -> String {
    let parent = class_group(class, driver);
    match driver {
        CgroupDriver::Cgroupfs => format!("{parent}/pod{uid}"),
        CgroupDriver::Systemd => format!("{}-pod{}.slice", parent.trim_end_matches(".slice"), uid.replace('-', "_")),
    }
}

/// The cgroup in which the pods of a class are, in the form of the engine's cgroup driver. That of Guaranteed pods is above the others'.
pub fn class_group(class: QosClass, driver: CgroupDriver) -> String {
    let name = match class {
        QosClass::Guaranteed => "",
        QosClass::Burstable => "burstable",
        QosClass::BestEffort => "besteffort",
    };
    match driver {
        CgroupDriver::Cgroupfs if name.is_empty() => "/kubepods".to_owned(),
        CgroupDriver::Cgroupfs => format!("/kubepods/{name}"),
        CgroupDriver::Systemd if name.is_empty() => "kubepods.slice".to_owned(),
        CgroupDriver::Systemd => format!("kubepods-{name}.slice"),
    }
}

/// A limit of the whole pod.
pub fn limit_of_pod(pod: &Pod, name: &str) -> Option<Quantity> {
    let resources = pod.spec.as_ref().and_then(|spec| spec.resources.as_ref());
    amount(resources.and_then(|resources| resources.limits.as_ref()), name)
}

/// A container's limits in the kernel's units; where it has none of its own, those of its pod.
pub fn container_resources(pod: &Pod, container: &Container) -> Resources {
    let limit = |name: &str| limit(container, name).or_else(|| limit_of_pod(pod, name));
    let cpu_limit = limit("cpu").map(|limit| limit.milli_value());
    let cpu_request = request(container, "cpu").map(|request| request.milli_value()).or(cpu_limit);
    Resources {
        cpu_shares: Some(cpu_shares(cpu_request.unwrap_or(0))),
        cpu_quota_us: cpu_limit.map(cpu_quota_us),
        cpu_period_us: cpu_limit.map(|_| CPU_PERIOD_US),
        memory_bytes: limit("memory").map(|limit| limit.value()),
        pids: None,
        huge_pages: Vec::new(),
        cpuset: None,
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
            let requested = requested.saturating_add(unassigned_memory(pod));
            let share = i128::from(requested) * 1_000 / i128::from(node_memory_bytes.max(1));
            let score = 1_000 - i64::try_from(share).unwrap_or(1_000);
            score.clamp(1_000 + GUARANTEED_OOM_SCORE_ADJ, BEST_EFFORT_OOM_SCORE_ADJ - 1)
        }
    }
}

/// What of the memory that a whole pod asks for none of its containers asks for, shared out among them.
fn unassigned_memory(pod: &Pod) -> i64 {
    let Some(spec) = &pod.spec else { return 0 };
    let of_pod = amount(spec.resources.as_ref().and_then(|resources| resources.requests.as_ref()), "memory");
    let Some(of_pod) = of_pod else { return 0 };
    let assigned = of_containers(spec, |container| request(container, "memory")).map_or(0, |sum| sum.value());
    let count = i64::try_from(containers(spec).count()).unwrap_or(1).max(1);
    (of_pod.value().saturating_sub(assigned) / count).max(0)
}

/// Limits of the pod's own cgroup: its own, or the sum over its containers where each has one (upstream `ResourceConfigForPod`).
/// A pod with CPUs of its own is not slowed down there.
pub fn pod_resources(pod: &Pod, has_own_cpus: bool) -> Resources {
    let Some(spec) = &pod.spec else { return Resources::default() };
    let cpu = pod_limit(spec, "cpu", Quantity::milli_value).filter(|_| !has_own_cpus);
    let huge = |name: &str| pod_limit(spec, name, Quantity::value).map(|bytes| (name.to_owned(), bytes));
    Resources {
        cpu_shares: Some(cpu_shares(of_pod(pod).cpu_millis)),
        cpu_quota_us: cpu.map(cpu_quota_us),
        cpu_period_us: cpu.map(|_| CPU_PERIOD_US),
        memory_bytes: pod_limit(spec, "memory", Quantity::value),
        pids: None,
        cpuset: None,
        huge_pages: huge_pages(spec).into_iter().filter_map(huge).collect(),
    }
}

/// The huge pages that a pod asks for, by the names of the resources.
pub fn huge_pages(spec: &PodSpec) -> BTreeSet<&str> {
    let limits = containers(spec).filter_map(|container| container.resources.as_ref()?.limits.as_ref());
    limits.flatten().map(|(name, _)| name.as_str()).filter(|name| name.starts_with("hugepages-")).collect()
}

fn containers(spec: &PodSpec) -> impl Iterator<Item = &Container> {
    spec.init_containers.iter().flatten().chain(&spec.containers)
}

/// The limit of a whole pod; `None` if a container has none. Huge pages are limited as soon as one container is.
fn pod_limit(spec: &PodSpec, name: &str, unit: fn(&Quantity) -> i64) -> Option<i64> {
    let overhead = amount(spec.overhead.as_ref(), name).map_or(0, |amount| unit(&amount));
    if let Some(own) = amount(spec.resources.as_ref().and_then(|resources| resources.limits.as_ref()), name) {
        return Some(unit(&own).saturating_add(overhead));
    }
    let of = |container: &Container| limit(container, name).map(|limit| unit(&limit));
    let is_limited = if name.starts_with("hugepages-") {
        containers(spec).any(|container| of(container).is_some())
    } else {
        containers(spec).all(|container| of(container).is_some())
    };
    let of = |container: &Container| of(container).unwrap_or(0);
    let mut sum: i64 = spec.containers.iter().map(of).sum();
    // Init containers run one after the other, beside the sidecars that were started before them.
    let (mut sidecars, mut peak) = (0_i64, 0_i64);
    for container in spec.init_containers.iter().flatten() {
        if container.restart_policy.as_deref() == Some("Always") {
            sidecars += of(container);
            sum += of(container);
        } else {
            peak = peak.max(sidecars + of(container));
        }
    }
    is_limited.then(|| sum.max(peak).saturating_add(overhead))
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
        let burstable = json!({"requests": {"cpu": "100m"}});
        let table = [
            (vec![json!({})], QosClass::BestEffort),
            (vec![guaranteed.clone()], QosClass::Guaranteed),
            (vec![guaranteed.clone(), guaranteed.clone()], QosClass::Guaranteed),
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
        let resources = container_resources(&all, &spec.containers[0]);
        assert_eq!(resources.cpu_shares, Some(102));
        assert_eq!(resources.cpu_quota_us, Some(25_000));
        assert_eq!(resources.memory_bytes, Some(64 << 20));
        assert_eq!(oom_score_adj(&all, &spec.containers[0], 8 << 30), 999);
        assert_eq!(cgroup_parent(qos_class(&all), "a-b", CgroupDriver::Cgroupfs), "/kubepods/burstable/poda-b");
        assert_eq!(cgroup_parent(QosClass::Guaranteed, "a-b", CgroupDriver::Systemd), "kubepods-poda_b.slice");
    }

    #[test]
    fn what_a_pod_has_as_a_whole_is_its_containers() {
        let mut all = pod(&[json!({"requests": {"memory": "1Gi"}}), json!({"limits": {"cpu": "100m"}})]);
        let whole = json!({"requests": {"cpu": "200m", "memory": "2Gi"}, "limits": {"cpu": "500m", "memory": "4Gi"}});
        all.spec.as_mut().unwrap().resources = serde_json::from_value(whole).unwrap();
        let spec = all.spec.as_ref().unwrap();
        let [first, second] = [0, 1].map(|at| container_resources(&all, &spec.containers[at]));
        assert_eq!((first.cpu_quota_us, first.memory_bytes), (Some(50_000), Some(4 << 30)));
        assert_eq!((second.cpu_quota_us, second.memory_bytes), (Some(10_000), Some(4 << 30)));
        let of_pod = pod_resources(&all, false);
        assert_eq!((of_pod.cpu_shares, of_pod.cpu_quota_us, of_pod.memory_bytes), (Some(204), Some(50_000), Some(4 << 30)));
        // Half of the gibibyte that nobody asks for goes to each.
        assert_eq!([0, 1].map(|at| oom_score_adj(&all, &spec.containers[at], 8 << 30)), [813, 938]);
    }
}
