//! Pod: containers that run together on a node.

mod label_keys;
mod print;
mod qos;
pub mod resources;
mod update;
mod warnings;

use k8s_openapi::api::core::v1::{Pod, PodCondition, PodStatus};

use super::pod_spec::{Holder, defaults, validate};
use crate::api::field::{FieldError, Path};
use crate::api::kind::Subresource;
use crate::kinds::check::str_of;
use crate::kinds::typed::{Definition, Selectable, names_of};

pub use qos::qos_class;
pub use warnings::spec as template_warnings;

const FIELDS: [Selectable; 8] = [
    Selectable::text("spec.nodeName", &[&["spec", "nodeName"]]),
    Selectable::text("spec.restartPolicy", &[&["spec", "restartPolicy"]]),
    Selectable::text("spec.schedulerName", &[&["spec", "schedulerName"]]),
    Selectable::text("spec.serviceAccountName", &[&["spec", "serviceAccountName"]]),
    Selectable { name: "spec.hostNetwork", paths: &[&["spec", "hostNetwork"]], absent: "false" },
    Selectable::text("status.phase", &[&["status", "phase"]]),
    Selectable::text("status.podIP", &[&["status", "podIP"]]),
    Selectable::text("status.nominatedNodeName", &[&["status", "nominatedNodeName"]]),
];

/// The kind.
pub static POD: Definition<Pod> = Definition {
    subresources: &[
        Subresource::Attach,
        Subresource::Binding,
        Subresource::EphemeralContainers,
        Subresource::Eviction,
        Subresource::Exec,
        Subresource::Log,
        Subresource::PortForward,
        Subresource::Proxy,
        Subresource::Resize,
        Subresource::Status,
    ],
    columns: print::COLUMNS,
    row: Some(print::row),
    selectable: &FIELDS,
    selectable_names: &names_of(&FIELDS),
    default: Some(default),
    prepare_create: Some(prepare_create),
    prepare_update: Some(prepare_update),
    validate: Some(validate_create),
    validate_update: Some(update::validate_update),
    warnings: Some(warnings::warnings),
    grace: Some(grace),
    ..Definition::namespaced("io.k8s.api.core.v1.Pod", "core/pods", "pod").short(&["po"]).in_all()
};

fn default(pod: &mut Pod) {
    let spec = pod.spec.get_or_insert_default();
    defaults::spec(spec);
    defaults::pod(spec);
    pod.status.get_or_insert_default();
}

fn prepare_create(pod: &mut Pod) {
    label_keys::merge(pod);
    let spec = pod.spec.get_or_insert_default();
    defaults::service_account(spec);
    let is_gated = spec.scheduling_gates.as_ref().is_some_and(|gates| !gates.is_empty());
    let gated = PodCondition {
        type_: "PodScheduled".to_owned(),
        status: "False".to_owned(),
        reason: Some("SchedulingGated".to_owned()),
        message: Some("Scheduling is blocked due to non-empty scheduling gates".to_owned()),
        ..PodCondition::default()
    };
    pod.status = Some(PodStatus {
        phase: Some("Pending".to_owned()),
        qos_class: Some(qos_class(spec).to_owned()),
        conditions: is_gated.then(|| vec![gated]),
        ..PodStatus::default()
    });
}

fn prepare_update(pod: &mut Pod, old: &Pod, subresource: Option<Subresource>) {
    if let Some(spec) = &mut pod.spec {
        defaults::service_account(spec);
    }
    if subresource == Some(Subresource::Status) {
        pod.metadata.owner_references.clone_from(&old.metadata.owner_references);
        let class = old.status.as_ref().and_then(|status| status.qos_class.clone());
        if let Some(status) = &mut pod.status {
            status.qos_class = class.or_else(|| status.qos_class.take());
        }
    }
}

fn validate_create(pod: &Pod) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let path = Path::new("spec");
    let spec = pod.spec.clone().unwrap_or_default();
    validate::spec(&mut errors, &path, &spec, Holder::Pod, &[]);
    if spec.ephemeral_containers.as_ref().is_some_and(|containers| !containers.is_empty()) {
        errors.push(FieldError::forbidden(path.child("ephemeralContainers"), "cannot be set on create"));
    }
    let has_gates = spec.scheduling_gates.as_ref().is_some_and(|gates| !gates.is_empty());
    if has_gates && !str_of(&spec.node_name).is_empty() {
        errors.push(FieldError::forbidden(path.child("nodeName"), "cannot be set until all schedulingGates have been cleared"));
    }
    errors
}

/// Whether all containers of a pod have ended for good.
pub fn has_ended(pod: &Pod) -> bool {
    pod.status.as_ref().is_some_and(|status| matches!(str_of(&status.phase), "Succeeded" | "Failed"))
}

/// A pod that no node runs, or that has ended, needs no grace.
fn grace(pod: &Pod, requested: Option<i64>) -> Option<i64> {
    let spec = pod.spec.as_ref();
    let own = spec.and_then(|spec| spec.termination_grace_period_seconds).unwrap_or(30);
    let is_bound = spec.is_some_and(|spec| !str_of(&spec.node_name).is_empty());
    if !is_bound || has_ended(pod) {
        return Some(0);
    }
    let seconds = requested.unwrap_or(own);
    Some(if seconds < 0 { 1 } else { seconds })
}

#[cfg(test)]
mod tests;
