//! What an update of a pod may change (upstream `ValidatePodUpdate` and its kin).

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, Toleration};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::super::pod_spec::{Holder, is_sidecar, validate};
use crate::api::field::{FieldError, Path};
use crate::api::kind::Subresource;
use crate::kinds::check::{Errors, differences, required, same, str_of};

type Amounts = BTreeMap<String, Quantity>;

const UPDATABLE: &str = "`spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

/// Checks an update.
pub fn validate_update(new: &Pod, old: &Pod, subresource: Option<Subresource>) -> Errors {
    let mut errors = Vec::new();
    let (Some(spec), Some(before)) = (&new.spec, &old.spec) else { return errors };
    let path = Path::new("spec");
    match subresource {
        Some(Subresource::Status) => status(&mut errors, new, old),
        Some(Subresource::Binding) => {}
        Some(Subresource::EphemeralContainers | Subresource::Resize) if is_static(old) => {
            let what = if subresource == Some(Subresource::Resize) { "be resized" } else { "have ephemeral containers" };
            errors.push(FieldError::forbidden(Path::new(""), format!("static pods cannot {what}")));
        }
        Some(Subresource::EphemeralContainers) => ephemeral_containers(&mut errors, &path, spec, before),
        Some(Subresource::Resize) => resize(&mut errors, &path, spec, before),
        _ => {
            validate::spec(&mut errors, &path, spec, Holder::Pod, &[]);
            main(&mut errors, &path, spec, before);
        }
    }
    errors
}

fn main(errors: &mut Errors, path: &Path, new: &PodSpec, old: &PodSpec) {
    if !same_names(&new.containers, &old.containers) {
        errors.push(FieldError::forbidden(path.child("containers"), "pod updates may not add or remove containers"));
        return;
    }
    let (init, init_before) =
        (new.init_containers.as_deref().unwrap_or_default(), old.init_containers.as_deref().unwrap_or_default());
    if !same_names(init, init_before) {
        errors.push(FieldError::forbidden(path.child("initContainers"), "pod updates may not add or remove containers"));
        return;
    }
    for (name, containers) in [("containers", &new.containers[..]), ("initContainers", init)] {
        for (index, container) in containers.iter().enumerate() {
            required(errors, &path.child(name).index(index).child("image"), str_of(&container.image));
        }
    }
    active_deadline(errors, path, new, old);
    tolerations(errors, &path.child("tolerations"), new, old);
    scheduling_gates(errors, &path.child("schedulingGates"), new, old);
    let allowed = with_allowed_changes(new, old);
    if !same(&allowed, old) {
        let changed = differences(&allowed, old).join("\n");
        errors.push(FieldError::forbidden(
            path.clone(),
            format!("pod updates may not change fields other than {UPDATABLE}\n{changed}"),
        ));
    }
}

fn same_names(new: &[Container], old: &[Container]) -> bool {
    new.len() == old.len() && new.iter().zip(old).all(|(new, old)| new.name == old.name)
}

/// The new specification with what may change set back to what it was: what differs then is forbidden.
fn with_allowed_changes(new: &PodSpec, old: &PodSpec) -> PodSpec {
    let mut spec = new.clone();
    for (container, before) in spec.containers.iter_mut().zip(&old.containers) {
        container.image.clone_from(&before.image);
    }
    for (container, before) in spec.init_containers.iter_mut().flatten().zip(old.init_containers.iter().flatten()) {
        container.image.clone_from(&before.image);
    }
    spec.active_deadline_seconds = old.active_deadline_seconds;
    spec.tolerations.clone_from(&old.tolerations);
    spec.ephemeral_containers.clone_from(&old.ephemeral_containers);
    if old.termination_grace_period_seconds.is_some_and(|seconds| seconds < 0) && spec.termination_grace_period_seconds == Some(1)
    {
        spec.termination_grace_period_seconds = old.termination_grace_period_seconds;
    }
    if old.scheduling_gates.as_ref().is_some_and(|gates| !gates.is_empty()) {
        let narrowed = old
            .node_selector
            .iter()
            .flatten()
            .all(|(key, value)| spec.node_selector.as_ref().and_then(|selector| selector.get(key)) == Some(value));
        if narrowed {
            spec.node_selector.clone_from(&old.node_selector);
        }
    }
    spec.scheduling_gates.clone_from(&old.scheduling_gates);
    spec
}

fn active_deadline(errors: &mut Errors, path: &Path, new: &PodSpec, old: &PodSpec) {
    let path = path.child("activeDeadlineSeconds");
    match (new.active_deadline_seconds, old.active_deadline_seconds) {
        (Some(new), Some(old)) if new > old => {
            errors.push(FieldError::invalid(path, new, "must be less than or equal to previous value"));
        }
        (None, Some(_)) => {
            errors.push(FieldError::invalid(
                path,
                serde_json::Value::Null,
                "must not update from a positive integer to nil value",
            ));
        }
        _ => {}
    }
}

fn tolerations(errors: &mut Errors, path: &Path, new: &PodSpec, old: &PodSpec) {
    let alike = |one: &Toleration, other: &Toleration| {
        one.key == other.key && one.operator == other.operator && one.value == other.value && one.effect == other.effect
    };
    let new = new.tolerations.as_deref().unwrap_or_default();
    let is_kept = |old: &Toleration| new.iter().any(|new| alike(new, old));
    if !old.tolerations.iter().flatten().all(is_kept) {
        let why = "existing toleration can not be modified except its tolerationSeconds";
        errors.push(FieldError::forbidden(path.clone(), why));
    }
}

fn scheduling_gates(errors: &mut Errors, path: &Path, new: &PodSpec, old: &PodSpec) {
    let was_there = |name: &str| old.scheduling_gates.iter().flatten().any(|gate| gate.name == name);
    for (index, gate) in new.scheduling_gates.iter().flatten().enumerate() {
        if !was_there(&gate.name) {
            let why = format!("only deletion is allowed, but found new scheduling gate '{}'", gate.name);
            errors.push(FieldError::forbidden(path.index(index), why));
        }
    }
}

fn status(errors: &mut Errors, new: &Pod, old: &Pod) {
    let (Some(status), Some(before)) = (&new.status, &old.status) else { return };
    let path = Path::new("status");
    let spec = new.spec.clone().unwrap_or_default();
    if let Some(node) = status.nominated_node_name.as_deref().filter(|node| !node.is_empty()) {
        crate::kinds::check::rule(errors, &path.child("nominatedNodeName"), node, crate::api::names::dns1123_subdomain);
    }
    let ended = |pod: &k8s_openapi::api::core::v1::PodStatus, name: &str| {
        let statuses = pod.container_statuses.iter().flatten();
        statuses.filter(|each| each.name == name).any(|each| each.state.as_ref().is_some_and(|state| state.terminated.is_some()))
    };
    if str_of(&spec.restart_policy) == "Always" {
        return;
    }
    for (index, each) in status.container_statuses.iter().flatten().enumerate() {
        let code = before
            .container_statuses
            .iter()
            .flatten()
            .find(|old| old.name == each.name)
            .and_then(|old| old.state.as_ref()?.terminated.as_ref())
            .map(|ended| ended.exit_code);
        let may_restart = str_of(&spec.restart_policy) == "OnFailure" && code.is_some_and(|code| code != 0);
        if ended(before, &each.name) && !ended(status, &each.name) && !may_restart {
            let path = path.child("containerStatuses").index(index).child("state");
            errors.push(FieldError::forbidden(path, "may not be transitioned to non-terminated state"));
        }
    }
}

fn ephemeral_containers(errors: &mut Errors, path: &Path, new: &PodSpec, old: &PodSpec) {
    validate::spec(errors, path, new, Holder::Pod, &[]);
    let path = path.child("ephemeralContainers");
    let kept = new.ephemeral_containers.as_deref().unwrap_or_default();
    for before in old.ephemeral_containers.iter().flatten() {
        match kept.iter().position(|container| container.name == before.name) {
            None => {
                let why = format!("existing ephemeral containers {:?} may not be removed\n", before.name);
                errors.push(FieldError::forbidden(path.clone(), why));
            }
            Some(index) if !same(&kept[index], before) => {
                let changed = differences(&kept[index], before).join("\n");
                let why = format!("existing ephemeral containers {:?} may not be changed\n{changed}", before.name);
                errors.push(FieldError::forbidden(path.clone(), why));
            }
            Some(_) => {}
        }
    }
}

/// Whether the pod only stands for one of a node's files.
fn is_static(pod: &Pod) -> bool {
    pod.metadata.annotations.as_ref().is_some_and(|all| all.contains_key("kubernetes.io/config.mirror"))
}

fn resize(errors: &mut Errors, path: &Path, new: &PodSpec, old: &PodSpec) {
    validate::spec(errors, path, new, Holder::Pod, &[]);
    let init = new.init_containers.as_deref().unwrap_or_default();
    let init_before = old.init_containers.as_deref().unwrap_or_default();
    for (name, containers, before) in
        [("containers", &new.containers[..], &old.containers[..]), ("initContainers", init, init_before)]
    {
        for (index, (container, before)) in containers.iter().zip(before).enumerate() {
            let path = path.child(name).index(index).child("resources");
            let (new, old) = (container.resources.clone().unwrap_or_default(), before.resources.clone().unwrap_or_default());
            if name == "initContainers" && !is_sidecar(container) && !same(&new, &old) {
                errors.push(FieldError::forbidden(path.clone(), "resources of non-restartable init containers are immutable"));
            }
            resized(errors, &path, "requests", new.requests.as_ref(), old.requests.as_ref());
            resized(errors, &path, "limits", new.limits.as_ref(), old.limits.as_ref());
        }
    }
    let (whole, whole_before) = (new.resources.clone().unwrap_or_default(), old.resources.clone().unwrap_or_default());
    resized(errors, &path.child("resources"), "requests", whole.requests.as_ref(), whole_before.requests.as_ref());
    resized(errors, &path.child("resources"), "limits", whole.limits.as_ref(), whole_before.limits.as_ref());
    let mut spec = new.clone();
    spec.resources.clone_from(&old.resources);
    let containers = spec.containers.iter_mut().zip(&old.containers);
    for (container, before) in containers.chain(spec.init_containers.iter_mut().flatten().zip(init_before)) {
        container.resources.clone_from(&before.resources);
    }
    if !same(&spec, old) {
        let why = "only cpu and memory resources are mutable";
        errors.push(FieldError::forbidden(path.clone(), why));
    }
    let (class, before) = (super::qos::qos_class(new), super::qos::qos_class(old));
    if class != before {
        let why = "Pod QOS Class may not change as a result of resizing";
        errors.push(FieldError::invalid(path.clone(), class, why));
    }
}

/// Only cpu and memory change, and neither is taken away.
fn resized(errors: &mut Errors, path: &Path, list: &str, new: Option<&Amounts>, old: Option<&Amounts>) {
    let empty = Amounts::new();
    let (new, old) = (new.unwrap_or(&empty), old.unwrap_or(&empty));
    let is_resizable = |name: &str| matches!(name, "cpu" | "memory");
    let others = |amounts: &Amounts| -> Amounts {
        amounts.iter().filter(|(name, _)| !is_resizable(name)).map(|(name, amount)| (name.clone(), amount.clone())).collect()
    };
    if !same(&others(new), &others(old)) {
        errors.push(FieldError::forbidden(path.child(list), "only cpu and memory resources are mutable"));
    }
    for name in old.keys().filter(|name| is_resizable(name) && !new.contains_key(*name)) {
        errors.push(FieldError::forbidden(path.child(list).key(name), format!("resource {list} cannot be removed")));
    }
}
