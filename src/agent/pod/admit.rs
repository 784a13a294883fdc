//! Whether the node takes a pod that is bound to it: the kubelet's admission (`lifecycle.PodAdmitHandler`). A pod that it refuses
//! fails, with a reason. What the node's pods ask for together is counted here too, also for resizes in place.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, Node, Pod, PodSpec, Taint};
use parking_lot::Mutex;

use super::mailbox::Mailbox;
use super::resources::{QosClass, qos_class};
use crate::agent::eviction::signal::Pressure;
use crate::agent::eviction::{message, rank};
use crate::kinds::core::pod::resources::{Resources, of_pod};
use crate::kinds::core::pod_spec::placement::{matches_node, tolerates};

/// Sysctls that are namespaced and cannot hurt others (upstream `sysctl/safe_sysctls.go`).
const SAFE_SYSCTLS: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
];

const MEMORY_PRESSURE: &str = "node.kubernetes.io/memory-pressure";

/// Why a pod is refused; the words are the kubelet's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    pub reason: String,
    pub message: String,
}

impl Rejection {
    fn new(reason: &str, message: impl Into<String>) -> Self {
        Self { reason: reason.to_owned(), message: message.into() }
    }
}

/// What the node can do, beside its resources.
#[derive(Debug, Clone, Copy)]
pub struct Abilities<'a> {
    pub has_apparmor: bool,
    pub allowed_unsafe_sysctls: &'a [String],
}

/// Whether a node that is short of something takes the pod: what is critical always, others that asked for resources when it is
/// only memory that is short (upstream `eviction.managerImpl.Admit`).
///
/// # Errors
/// What the node is short of.
pub fn under_pressure(pod: &Pod, pressures: &BTreeSet<Pressure>) -> Result<(), Rejection> {
    if pressures.is_empty() || rank::is_critical(pod) {
        return Ok(());
    }
    if pressures.iter().all(|pressure| *pressure == Pressure::Memory) {
        let taint = Taint { key: MEMORY_PRESSURE.to_owned(), effect: "NoSchedule".to_owned(), ..Taint::default() };
        let tolerations = pod.spec.iter().flat_map(|spec| spec.tolerations.iter().flatten());
        if qos_class(pod) != QosClass::BestEffort || tolerations.into_iter().any(|toleration| tolerates(toleration, &taint)) {
            return Ok(());
        }
    }
    Err(Rejection::new(message::REASON, message::pressed(pressures.iter())))
}

/// Checks what does not depend on other pods.
///
/// # Errors
/// The first reason to refuse the pod.
pub fn check(pod: &Pod, node: Option<&Node>, abilities: Abilities<'_>) -> Result<(), Rejection> {
    let Some(spec) = &pod.spec else { return Ok(()) };
    if spec.os.as_ref().is_some_and(|os| os.name != "linux") {
        return Err(Rejection::new("PodOSNotSupported", "Failed to admit pod as the OS field doesn't match node OS"));
    }
    if spec.resource_claims.as_ref().is_some_and(|claims| !claims.is_empty()) {
        return Err(Rejection::new("UnexpectedAdmissionError", "the node has no driver for dynamic resource claims"));
    }
    let sysctls = spec.security_context.iter().flat_map(|context| context.sysctls.iter().flatten());
    for sysctl in sysctls {
        let name = sysctl.name.replace('/', ".");
        if !is_allowed(&name, abilities.allowed_unsafe_sysctls) {
            return Err(Rejection::new("SysctlForbidden", format!("forbidden sysctl: \"{name}\" not allowlisted")));
        }
    }
    if wants_apparmor(spec) && !abilities.has_apparmor {
        let message = "Cannot enforce AppArmor: AppArmor is not enabled on the host";
        return Err(Rejection::new("AppArmor", message));
    }
    if !groups_are_known(spec) {
        let message = "SupplementalGroupsPolicy=Strict needs runAsUser and runAsGroup of every container with Docker";
        return Err(Rejection::new("SupplementalGroupsPolicyNotSupported", message));
    }
    node.map_or(Ok(()), |node| on_node(pod, spec, node))
}

fn is_allowed(name: &str, unsafe_allowed: &[String]) -> bool {
    SAFE_SYSCTLS.contains(&name)
        || unsafe_allowed.iter().any(|allowed| match allowed.strip_suffix('*') {
            Some(prefix) => name.starts_with(prefix),
            None => allowed == name,
        })
}

fn containers(spec: &PodSpec) -> impl Iterator<Item = &Container> {
    spec.init_containers.iter().flatten().chain(&spec.containers)
}

fn wants_apparmor(spec: &PodSpec) -> bool {
    let pods = spec.security_context.as_ref().and_then(|context| context.app_armor_profile.as_ref());
    containers(spec).any(|container| {
        let own = container.security_context.as_ref().and_then(|context| context.app_armor_profile.as_ref());
        own.or(pods).is_some_and(|profile| profile.type_ != "Unconfined")
    })
}

/// Docker adds the groups of the image's `/etc/group` unless user and group are both given.
fn groups_are_known(spec: &PodSpec) -> bool {
    let Some(context) = &spec.security_context else { return true };
    context.supplemental_groups_policy.as_deref() != Some("Strict")
        || containers(spec).all(|container| {
            let own = container.security_context.as_ref();
            own.and_then(|own| own.run_as_user).or(context.run_as_user).is_some()
                && own.and_then(|own| own.run_as_group).or(context.run_as_group).is_some()
        })
}

fn on_node(pod: &Pod, spec: &PodSpec, node: &Node) -> Result<(), Rejection> {
    if !matches_node(spec, node) {
        return Err(Rejection::new("NodeAffinity", "Predicate NodeAffinity failed"));
    }
    let is_static = super::statics::is_static(pod);
    let taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    let untolerated = |taint: &&Taint| {
        taint.effect == "NoExecute" && !spec.tolerations.iter().flatten().any(|toleration| tolerates(toleration, taint))
    };
    if !is_static && taints.into_iter().any(|taint| untolerated(&taint)) {
        return Err(Rejection::new("TaintToleration", "Predicate TaintToleration failed"));
    }
    Ok(())
}

/// A resource that there is not enough of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lack {
    pub resource: String,
    pub requested: i64,
    /// By the node's other pods.
    pub used: i64,
    pub capacity: i64,
}

impl Lack {
    /// Whether the node would lack it also if it were empty.
    pub fn is_for_good(&self) -> bool {
        self.requested > self.capacity
    }
}

/// What the pods of the node have been granted, and who waits for more.
#[derive(Debug, Default)]
pub struct Grants {
    granted: Mutex<BTreeMap<String, Resources>>,
    waiting: Mutex<BTreeMap<String, Arc<Mailbox>>>,
}

impl Grants {
    /// Counts a pod that runs already.
    pub fn note(&self, uid: &str, pod: &Pod) {
        self.granted.lock().insert(uid.to_owned(), of_pod(pod));
    }

    /// Grants a pod all that it asks for, or nothing.
    ///
    /// # Errors
    /// What there is not enough of.
    pub fn grant(&self, uid: &str, pod: &Pod, allocatable: &Resources) -> Result<(), Lack> {
        let wanted = of_pod(pod);
        let mut granted = self.granted.lock();
        let mut used = Resources::default();
        granted.iter().filter(|(other, _)| *other != uid).for_each(|(_, one)| used.add(one));
        let amount = |all: &Resources, name: &str| all.named().find(|(known, _)| *known == name).map_or(0, |(_, amount)| amount);
        for (name, requested) in wanted.named().filter(|(_, requested)| *requested > 0) {
            let (used, capacity) = (amount(&used, name), amount(allocatable, name));
            if used.saturating_add(requested) > capacity {
                return Err(Lack { resource: name.to_owned(), requested, used, capacity });
            }
        }
        granted.insert(uid.to_owned(), wanted);
        Ok(())
    }

    /// Tells this worker when another pod gives something back.
    pub fn wait(&self, uid: &str, mailbox: &Arc<Mailbox>) {
        self.waiting.lock().insert(uid.to_owned(), Arc::clone(mailbox));
    }

    /// Takes back what a pod was granted; who waits is told.
    pub fn give_back(&self, uid: &str) {
        let was_there = self.granted.lock().remove(uid).is_some();
        self.waiting.lock().remove(uid);
        if was_there {
            for mailbox in std::mem::take(&mut *self.waiting.lock()).values() {
                mailbox.tell(|_| {});
            }
        }
    }
}

/// A pod that does not fit is refused.
pub fn out_of(lack: &Lack) -> Rejection {
    let Lack { resource, requested, used, capacity } = lack;
    let message =
        format!("Node didn't have enough resource: {resource}, requested: {requested}, used: {used}, capacity: {capacity}");
    Rejection::new(&format!("OutOf{resource}"), message)
}

/// A pod for which something else cannot be had (upstream `admission.GetPodAdmitResult`).
pub fn unexpected(why: &str) -> Rejection {
    Rejection::new("UnexpectedAdmissionError", format!("Allocate failed due to {why}, which is unexpected"))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(spec: Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap()
    }

    fn node() -> Node {
        serde_json::from_value(json!({"metadata": {"name": "n1", "labels": {"disk": "ssd", "cores": "8"}},
            "spec": {"taints": [{"key": "gone", "effect": "NoExecute"}]}}))
        .unwrap()
    }

    #[test]
    fn what_the_node_refuses() {
        let tolerant = json!([{"key": "gone", "operator": "Exists"}]);
        let required = |expression: Value| {
            json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{"matchExpressions": [expression]}]}}})
        };
        let cores = |operator: &str, bound: &str| required(json!({"key": "cores", "operator": operator, "values": [bound]}));
        let sysctl = |name: &str| json!({"sysctls": [{"name": name, "value": "1"}]});
        let container = json!([{"name": "c"}]);
        let table = [
            (json!({}), ""),
            (json!({"tolerations": []}), "TaintToleration"),
            (json!({"nodeSelector": {"disk": "ssd"}}), ""),
            (json!({"nodeSelector": {"disk": "hdd"}}), "NodeAffinity"),
            (json!({"affinity": cores("Gt", "4")}), ""),
            (json!({"affinity": cores("Lt", "4")}), "NodeAffinity"),
            (json!({"os": {"name": "windows"}}), "PodOSNotSupported"),
            (json!({"securityContext": sysctl("net.ipv4.tcp_syncookies")}), ""),
            (json!({"securityContext": sysctl("net/ipv4/tcp_syncookies")}), ""),
            (json!({"securityContext": sysctl("kernel.msgmax")}), "SysctlForbidden"),
            (json!({"securityContext": sysctl("net.core.somaxconn")}), ""),
            (json!({"securityContext": {"appArmorProfile": {"type": "RuntimeDefault"}}}), "AppArmor"),
            (json!({"securityContext": {"appArmorProfile": {"type": "Unconfined"}}}), ""),
            (json!({"securityContext": {"supplementalGroupsPolicy": "Strict"}}), "SupplementalGroupsPolicyNotSupported"),
            (json!({"securityContext": {"supplementalGroupsPolicy": "Strict", "runAsUser": 1, "runAsGroup": 1}}), ""),
        ];
        let unsafe_allowed = ["net.core.*".to_owned()];
        let abilities = Abilities { has_apparmor: false, allowed_unsafe_sysctls: &unsafe_allowed };
        for (mut spec, reason) in table {
            spec["containers"] = container.clone();
            if spec.get("tolerations").is_none() {
                spec["tolerations"] = tolerant.clone();
            }
            let got = check(&pod(spec.clone()), Some(&node()), abilities);
            assert_eq!(got.err().map(|rejection| rejection.reason).unwrap_or_default(), reason, "{spec}");
        }
    }

    #[test]
    fn a_node_that_is_short_takes_fewer_pods() {
        let best_effort = json!({"containers": [{"name": "c"}]});
        let burstable = json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": "1m"}}}]});
        let critical = json!({"priority": 2_000_000_000, "containers": [{"name": "c"}]});
        let tolerant = json!({"containers": [{"name": "c"}], "tolerations": [{"key": MEMORY_PRESSURE, "operator": "Exists"}]});
        let (memory, disk) = (BTreeSet::from([Pressure::Memory]), BTreeSet::from([Pressure::Disk]));
        let both = BTreeSet::from([Pressure::Memory, Pressure::Disk]);
        let table = [
            (&best_effort, &BTreeSet::new(), None),
            (&best_effort, &memory, Some("The node had condition: [MemoryPressure]. ")),
            (&burstable, &memory, None),
            (&tolerant, &memory, None),
            (&burstable, &disk, Some("The node had condition: [DiskPressure]. ")),
            (&tolerant, &both, Some("The node had condition: [MemoryPressure DiskPressure]. ")),
            (&critical, &both, None),
        ];
        for (spec, pressures, expected) in table {
            let refused = under_pressure(&pod(spec.clone()), pressures).err();
            assert!(refused.iter().all(|refused| refused.reason == "Evicted"));
            assert_eq!(refused.map(|refused| refused.message).as_deref(), expected, "{spec} {pressures:?}");
        }
    }

    #[test]
    fn grants_are_counted() {
        let asks = |cpu: &str| pod(json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]}));
        let have = Resources { cpu_millis: 2_000, pods: 3, ..Resources::default() };
        let grants = Grants::default();
        assert_eq!(grants.grant("a", &asks("1500m"), &have), Ok(()));
        let lack = grants.grant("b", &asks("1"), &have).unwrap_err();
        assert_eq!(out_of(&lack).message, "Node didn't have enough resource: cpu, requested: 1000, used: 1500, capacity: 2000");
        assert!(!lack.is_for_good() && grants.grant("b", &asks("3"), &have).unwrap_err().is_for_good());
        let mailbox = Arc::new(Mailbox::default());
        grants.wait("b", &mailbox);
        grants.give_back("a");
        assert!(futures_util::FutureExt::now_or_never(mailbox.wait()).is_some(), "b is told");
        assert_eq!(grants.grant("b", &asks("1"), &have), Ok(()));
        assert_eq!(grants.grant("b", &asks("2"), &have), Ok(()), "its own grant does not stand in its way");
    }
}
