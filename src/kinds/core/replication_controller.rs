//! ReplicationController: keeps a number of pods running, in the oldest form.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ReplicationController, ReplicationControllerStatus};
use serde_json::Value;

use super::pod_spec::{defaults, template};
use crate::api::field::{FieldError, Path};
use crate::api::kind::{Column, Subresource};
use crate::kinds::check::{labels, maybe_not_negative};
use crate::kinds::print::{age, containers, labels as print_labels, name};
use crate::kinds::typed::{Definition, Selectable, empty, names_of};

const FIELDS: [Selectable; 1] = [Selectable { name: "status.replicas", paths: &[&["status", "replicas"]], absent: "0" }];

/// The kind.
pub static REPLICATION_CONTROLLER: Definition<ReplicationController> = Definition {
    subresources: &[Subresource::Scale, Subresource::Status],
    columns: &[
        Column::NAME,
        Column::integer("Desired"),
        Column::integer("Current"),
        Column::integer("Ready"),
        Column::AGE,
        Column::wide("Containers"),
        Column::wide("Images"),
        Column::wide("Selector"),
    ],
    row: Some(row),
    selectable: &FIELDS,
    selectable_names: &names_of(&FIELDS),
    default: Some(default),
    defaults_metadata: true,
    initial_status: Some(empty::<ReplicationControllerStatus>),
    validate: Some(validate),
    orphans_by_default: true,
    ..Definition::namespaced("io.k8s.api.core.v1.ReplicationController", "core/replicationcontrollers", "replicationcontroller")
        .short(&["rc"])
        .in_all()
};

fn default(controller: &mut ReplicationController) {
    let spec = controller.spec.get_or_insert_default();
    spec.replicas.get_or_insert(1);
    if let Some(template) = &mut spec.template {
        defaults::template(template);
        let labels = Some(template::labels_of(template)).filter(|labels| !labels.is_empty());
        if spec.selector.as_ref().is_none_or(|selector| selector.is_empty()) {
            spec.selector.clone_from(&labels);
        }
        if controller.metadata.labels.as_ref().is_none_or(|labels| labels.is_empty()) {
            controller.metadata.labels = labels;
        }
    }
    controller.status.get_or_insert_default();
}

fn validate(controller: &ReplicationController) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let path = Path::new("spec");
    let spec = controller.spec.clone().unwrap_or_default();
    maybe_not_negative(&mut errors, &path.child("minReadySeconds"), spec.min_ready_seconds);
    let selector = spec.selector.unwrap_or_default();
    if selector.is_empty() {
        errors.push(FieldError::required(path.child("selector"), ""));
    }
    labels(&mut errors, &path.child("selector"), Some(&selector));
    maybe_not_negative(&mut errors, &path.child("replicas"), spec.replicas);
    let at = path.child("template");
    match &spec.template {
        None => errors.push(FieldError::required(at, "")),
        Some(template) => {
            let given = template::labels_of(template);
            if !selector.iter().all(|(key, value)| given.get(key) == Some(value)) {
                let value = serde_json::to_value(&given).unwrap_or_default();
                let why = "`selector` does not match template `labels`";
                errors.push(FieldError::invalid(at.child("metadata").child("labels"), value, why));
            }
            template::always(&mut errors, &at, template, &[], "ReplicationController");
        }
    }
    errors
}

fn row(controller: &ReplicationController, now: Timestamp) -> Vec<Value> {
    let spec = controller.spec.clone().unwrap_or_default();
    let status = controller.status.clone().unwrap_or_default();
    let [names, images] = containers(spec.template.as_ref());
    vec![
        name(&controller.metadata),
        spec.replicas.unwrap_or(0).into(),
        status.replicas.into(),
        status.ready_replicas.unwrap_or(0).into(),
        age(&controller.metadata, now),
        names,
        images,
        print_labels(spec.selector.as_ref()).into(),
    ]
}
