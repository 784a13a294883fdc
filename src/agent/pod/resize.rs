//! Resizes in place (KEP-1287): what a pod asks for now, what the node has granted it, and what its running containers have. A
//! change is granted as a whole or not at all; then each container is changed while it runs, or restarted where its policy says so.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, ContainerStatus, Pod, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::admit::Lack;
use super::resources::{QosClass, container_resources, pod_resources, qos_class};
use super::spec::on_cpus;
use super::state::{Role, held};
use super::worker::{Done, Worker};
use super::{cgroup, recover};
use crate::cri::{Resources, RuntimeError};

/// How long until a change that the engine refused is tried again.
const RETRY: Duration = Duration::from_secs(10);

/// Where the requests and limits of the whole pod stand among those of its containers.
pub const WHOLE_POD: &str = "";

/// Requests and limits by the container's name.
pub type PerContainer = BTreeMap<String, ResourceRequirements>;

/// Why a resize is not done yet; shown as the condition `PodResizePending`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pending {
    /// `Deferred` or `Infeasible`.
    pub reason: &'static str,
    pub message: String,
}

/// Where the resizes of a pod stand.
#[derive(Debug, Clone, Default)]
pub struct Resizes {
    /// What the node has granted.
    pub allocated: PerContainer,
    /// What the containers have, or had when they last ran.
    pub actual: PerContainer,
    pub pending: Option<Pending>,
    /// A granted change is being made; the text says why it did not work yet.
    pub in_progress: Option<Option<String>>,
    /// The container that is being changed.
    changing: Option<String>,
    /// Containers that have the whole pod's new limits already, where they have none of their own.
    followed: BTreeSet<String>,
    retry_at: Option<Timestamp>,
}

fn resizable(pod: &Pod) -> impl Iterator<Item = &Container> {
    let spec = pod.spec.iter();
    spec.flat_map(|spec| {
        let sidecars = spec.init_containers.iter().flatten().filter(|init| init.restart_policy.as_deref() == Some("Always"));
        spec.containers.iter().chain(sidecars)
    })
}

fn wanted(pod: &Pod) -> PerContainer {
    let containers = resizable(pod).map(|one| (one.name.clone(), one.resources.clone().unwrap_or_default()));
    containers.chain(of_whole(pod).map(|resources| (WHOLE_POD.to_owned(), resources.clone()))).collect()
}

fn of_whole(pod: &Pod) -> Option<&ResourceRequirements> {
    pod.spec.as_ref().and_then(|spec| spec.resources.as_ref())
}

/// The pod with these resources in place of those that it asks for.
fn with_resources(pod: &Pod, resources: &PerContainer) -> Pod {
    let mut pod = pod.clone();
    if let (Some(spec), Some(whole)) = (&mut pod.spec, resources.get(WHOLE_POD)) {
        spec.resources = Some(whole.clone());
    }
    let spec = pod.spec.iter_mut();
    for container in spec.flat_map(|spec| spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten())) {
        if let Some(own) = resources.get(&container.name) {
            container.resources = Some(own.clone());
        }
    }
    pod
}

/// What was granted before the agent was restarted: the status in the API has kept what was granted, and what is in force.
fn remembered(
    asked: Option<&ResourceRequirements>,
    granted: Option<&BTreeMap<String, Quantity>>,
    actual: Option<&ResourceRequirements>,
) -> ResourceRequirements {
    let asked = asked.cloned().unwrap_or_default();
    let Some(granted) = granted.cloned() else { return asked };
    let same = |one: &BTreeMap<_, _>| Some(one) == asked.requests.as_ref();
    if same(&granted) {
        return asked;
    }
    let limits = actual.and_then(|resources| resources.limits.clone());
    ResourceRequirements { requests: Some(granted), limits: limits.or(asked.limits), claims: asked.claims }
}

/// Whether a change of these resources needs a restart, by the container's `resizePolicy`.
fn needs_restart(container: &Container, from: &ResourceRequirements, to: &ResourceRequirements) -> bool {
    let differs = |name: &str| {
        let amount = |list: &Option<BTreeMap<String, _>>| list.as_ref().and_then(|list| list.get(name)).cloned();
        amount(&from.requests) != amount(&to.requests) || amount(&from.limits) != amount(&to.limits)
    };
    let policies = container.resize_policy.iter().flatten();
    policies.into_iter().any(|policy| policy.restart_policy == "RestartContainer" && differs(&policy.resource_name))
}

/// Whether the CPUs of a Guaranteed pod change: which are its own is decided once.
fn changes_whole_cpus(pod: &Pod, from: &PerContainer, to: &PerContainer) -> bool {
    let cpu = |all: &PerContainer| -> Vec<_> {
        all.values().map(|one| one.requests.as_ref().and_then(|requests| requests.get("cpu")).cloned()).collect()
    };
    qos_class(pod) == QosClass::Guaranteed && cpu(from) != cpu(to)
}

fn refusal(lack: &Lack) -> Pending {
    let Lack { resource, requested, used, capacity } = lack;
    if lack.is_for_good() {
        let message = format!("Node didn't have enough capacity: {resource}, requested: {requested}, capacity: {capacity}");
        return Pending { reason: "Infeasible", message };
    }
    let message =
        format!("Node didn't have enough resource: {resource}, requested: {requested}, used: {used}, capacity: {capacity}");
    Pending { reason: "Deferred", message }
}

/// The larger of two limits of a pod's cgroup: while its containers change one after the other, both hold.
fn larger(one: &Resources, other: &Resources) -> Resources {
    let most = |one: Option<i64>, other: Option<i64>| one.zip(other).map(|(one, other)| one.max(other));
    Resources {
        cpu_quota_us: most(one.cpu_quota_us, other.cpu_quota_us),
        memory_bytes: most(one.memory_bytes, other.memory_bytes),
        ..other.clone()
    }
}

impl Worker {
    /// Notes what a pod has when the node takes it, or has taken it before.
    pub(super) fn begin_resizes(&mut self, has_begun: bool) {
        self.resizes.allocated = wanted(&self.pod);
        if has_begun {
            let known: BTreeMap<&str, &ContainerStatus> =
                recover::statuses(&self.pod).map(|status| (status.name.as_str(), status)).collect();
            let of_containers = resizable(&self.pod).map(|one| {
                let status = known.get(one.name.as_str());
                let granted = status.and_then(|status| status.allocated_resources.as_ref());
                let actual = status.and_then(|status| status.resources.as_ref());
                (one.name.clone(), remembered(one.resources.as_ref(), granted, actual))
            });
            let status = self.pod.status.as_ref();
            let whole = of_whole(&self.pod).map(|asked| {
                let granted = status.and_then(|status| status.allocated_resources.as_ref());
                let actual = status.and_then(|status| status.resources.as_ref());
                (WHOLE_POD.to_owned(), remembered(Some(asked), granted, actual))
            });
            let allocated: PerContainer = of_containers.chain(whole).collect();
            let actual = |(name, granted): (&String, &ResourceRequirements)| {
                let shown = match name.as_str() {
                    WHOLE_POD => status.and_then(|status| status.resources.clone()),
                    name => known.get(name).and_then(|status| status.resources.clone()),
                };
                (name.clone(), shown.unwrap_or_else(|| granted.clone()))
            };
            self.resizes.actual = allocated.iter().map(actual).collect();
            self.resizes.allocated = allocated;
        } else if let Some(whole) = of_whole(&self.pod) {
            self.resizes.actual.insert(WHOLE_POD.to_owned(), whole.clone());
        }
        self.take_allocation();
    }

    /// The pod as its containers are made: with what it was granted.
    pub(super) fn take_allocation(&mut self) {
        let is_same = self.resizes.allocated.is_empty() || self.resizes.allocated == wanted(&self.pod);
        self.granted = if is_same { Arc::clone(&self.pod) } else { Arc::new(with_resources(&self.pod, &self.resizes.allocated)) };
        self.members = super::state::members(&self.granted);
    }

    /// Brings what the node grants, and then what the containers have, to what the pod asks for.
    pub(super) fn resize(&mut self, now: Timestamp) -> Option<Timestamp> {
        let wanted = wanted(&self.pod);
        if wanted == self.resizes.allocated {
            self.resizes.pending = None;
        } else {
            self.ask_for(wanted);
        }
        self.change_containers(now)
    }

    fn ask_for(&mut self, wanted: PerContainer) {
        if self.context.cpus.is_static() && changes_whole_cpus(&self.pod, &self.resizes.allocated, &wanted) {
            let message = "Resize is infeasible for Guaranteed Pods alongside CPU Manager policy \"static\"".to_owned();
            return self.pend(Pending { reason: "Infeasible", message });
        }
        match self.context.grants.grant(&self.uid, &self.pod, &self.context.allocatable()) {
            Ok(()) => {
                self.resizes.pending = None;
                self.resizes.allocated = wanted;
                self.take_allocation();
            }
            Err(lack) => {
                self.pend(refusal(&lack));
                self.context.grants.wait(&self.uid, &self.mailbox);
            }
        }
    }

    fn pend(&mut self, pending: Pending) {
        if self.resizes.pending.as_ref() != Some(&pending) {
            let reason = format!("Resize{}", pending.reason);
            self.context.event(&self.pod, None, true, &reason, &pending.message);
            self.resizes.pending = Some(pending);
        }
    }

    fn limits_of(&self, pod: &Pod) -> Resources {
        pod_resources(pod, self.context.cpus.has_own(&self.uid))
    }

    fn change_containers(&mut self, now: Timestamp) -> Option<Timestamp> {
        if self.resizes.changing.is_some() {
            return None;
        }
        let is_due = |worker: &Self, member: &super::state::Member| {
            let latest = worker.runtime.latest(member.name()).filter(|latest| latest.is_running())?;
            let to = worker.resizes.allocated.get(member.name())?;
            let from = worker.resizes.actual.get(member.name())?;
            let is_stale = from != to || worker.must_follow(member);
            (is_stale && !worker.containers.contains_key(member.name()))
                .then(|| (latest.detail.id.clone(), from.clone(), to.clone()))
        };
        let candidates = self.members.iter().filter(|member| matches!(member.role, Role::App | Role::Sidecar));
        let Some((member, (id, from, to))) = candidates.filter_map(|member| Some((member, is_due(self, member)?))).next() else {
            self.finish_resize();
            return None;
        };
        if let Some(at) = held(self.resizes.retry_at, now, RETRY) {
            return Some(at);
        }
        let member = member.clone();
        if self.resizes.in_progress.is_none() {
            self.context.event(&self.pod, None, false, "ResizeStarted", "Pod resize started");
            self.resizes.in_progress = Some(None);
        }
        self.limit_pod_for_both();
        if needs_restart(&member.spec, &from, &to) {
            self.records.resize_restarts.insert(member.name().to_owned(), id);
            return None;
        }
        self.resizes.changing = Some(member.name().to_owned());
        let share = self.context.cpus.share(&self.uid, member.name());
        let (context, limits) =
            (Arc::clone(&self.context), on_cpus(container_resources(&self.granted, &member.spec), share.as_ref()));
        self.operations.push(Box::pin(async move {
            let changed = context.runtime.update(&id, &limits).await;
            Done::Resized(member.spec.name.clone(), Box::new(to), changed)
        }));
        None
    }

    /// Whether a container without limits of its own still has those that the whole pod had.
    fn must_follow(&self, member: &super::state::Member) -> bool {
        let (from, to) = (self.resizes.actual.get(WHOLE_POD), self.resizes.allocated.get(WHOLE_POD));
        if from == to || self.resizes.followed.contains(member.name()) {
            return false;
        }
        let before = with_resources(&self.pod, &self.resizes.actual);
        container_resources(&before, &member.spec) != container_resources(&self.granted, &member.spec)
    }

    fn limit_pod_for_both(&self) {
        let before = self.limits_of(&with_resources(&self.pod, &self.resizes.actual));
        let limits = larger(&before, &self.limits_of(&self.granted));
        cgroup::apply(qos_class(&self.pod), &self.uid, self.context.offer.cgroup_driver, &limits);
    }

    /// When all containers have what was granted, the whole pod gets it too: its own limits change last.
    fn finish_resize(&mut self) {
        let Resizes { allocated, actual, .. } = &self.resizes;
        let mut of_containers = allocated.iter().filter(|(name, _)| *name != WHOLE_POD);
        if !of_containers.all(|(name, granted)| actual.get(name) == Some(granted)) {
            return;
        }
        let whole = allocated.get(WHOLE_POD).filter(|whole| actual.get(WHOLE_POD) != Some(whole)).cloned();
        if let Some(whole) = whole {
            if self.resizes.in_progress.is_none() {
                self.context.event(&self.pod, None, false, "ResizeStarted", "Pod resize started");
                self.resizes.in_progress = Some(None);
            }
            self.resizes.actual.insert(WHOLE_POD.to_owned(), whole);
            self.resizes.followed.clear();
        }
        if self.resizes.in_progress.take().is_some() {
            let limits = self.limits_of(&self.granted);
            cgroup::apply(qos_class(&self.pod), &self.uid, self.context.offer.cgroup_driver, &limits);
            self.context.event(&self.pod, None, false, "ResizeCompleted", "Pod resize completed");
        }
    }

    /// Notes how the change of a running container ended.
    pub(super) fn note_resized(
        &mut self,
        container: &str,
        to: ResourceRequirements,
        result: Result<(), RuntimeError>,
        now: Timestamp,
    ) {
        self.resizes.changing = None;
        match result {
            Ok(()) => {
                self.resizes.actual.insert(container.to_owned(), to);
                self.resizes.followed.insert(container.to_owned());
                self.resizes.retry_at = None;
                if let Some(in_progress) = &mut self.resizes.in_progress {
                    *in_progress = None;
                }
            }
            // It ended meanwhile: it starts again with what it was granted.
            Err(RuntimeError::NotFound(_) | RuntimeError::Conflict(_)) => self.resizes.retry_at = Some(now + RETRY),
            Err(error) => {
                let message = format!("failed to resize container {container}: {error}");
                self.context.event(&self.pod, None, true, "ResizeError", &message);
                self.resizes.in_progress = Some(Some(message));
                self.resizes.retry_at = Some(now + RETRY);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn container(resources: Value, policy: Value) -> Container {
        serde_json::from_value(json!({"name": "c", "resources": resources, "resizePolicy": policy})).unwrap()
    }

    #[test]
    fn policies_say_what_needs_a_restart() {
        let from = container(json!({"requests": {"cpu": "1", "memory": "1Gi"}}), json!([])).resources.unwrap();
        let policy = json!([{"resourceName": "memory", "restartPolicy": "RestartContainer"},
            {"resourceName": "cpu", "restartPolicy": "NotRequired"}]);
        let table = [
            (json!({"requests": {"cpu": "2", "memory": "1Gi"}}), false),
            (json!({"requests": {"cpu": "1", "memory": "2Gi"}}), true),
            (json!({"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"memory": "2Gi"}}), true),
        ];
        for (to, expected) in table {
            let container = container(to.clone(), policy.clone());
            assert_eq!(needs_restart(&container, &from, container.resources.as_ref().unwrap()), expected, "{to}");
        }
    }

    #[test]
    fn an_agent_that_comes_back_knows_what_was_granted() {
        let status = |value: Value| {
            let mut value = value;
            for (key, default) in [
                ("name", json!("c")),
                ("image", json!("")),
                ("imageID", json!("")),
                ("ready", json!(true)),
                ("restartCount", json!(0)),
            ] {
                value[key] = default;
            }
            serde_json::from_value::<ContainerStatus>(value).unwrap()
        };
        let asked = container(json!({"requests": {"cpu": "2"}, "limits": {"cpu": "2"}}), json!([]));
        let known = |status: &ContainerStatus| {
            remembered(asked.resources.as_ref(), status.allocated_resources.as_ref(), status.resources.as_ref())
        };
        let same = status(json!({"allocatedResources": {"cpu": "2"}, "resources": {"limits": {"cpu": "1"}}}));
        assert_eq!(Some(known(&same)), asked.resources);
        let less = status(json!({"allocatedResources": {"cpu": "1"}, "resources": {"limits": {"cpu": "1"}}}));
        let granted = container(json!({"requests": {"cpu": "1"}, "limits": {"cpu": "1"}}), json!([])).resources.unwrap();
        assert_eq!(known(&less), granted);
        assert_eq!(Some(remembered(asked.resources.as_ref(), None, None)), asked.resources);
    }

    #[test]
    fn pods_limits_hold_for_both_while_changing() {
        let limits = |cpu: Option<i64>| Resources { cpu_quota_us: cpu, ..Resources::default() };
        assert_eq!(larger(&limits(Some(1)), &limits(Some(2))).cpu_quota_us, Some(2));
        assert_eq!(larger(&limits(None), &limits(Some(2))).cpu_quota_us, None);
    }
}
