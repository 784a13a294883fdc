//! ReplicaSet: keeps a number of pods running.

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetStatus};
use serde_json::Value;

use super::workload;
use crate::api::field::{FieldError, Path};
use crate::api::kind::{Column, Subresource};
use crate::kinds::check::{immutable, maybe_not_negative, not_negative};
use crate::kinds::core::pod_spec::defaults::{self, value};
use crate::kinds::print::{age, containers, name, selector};
use crate::kinds::typed::{Definition, Selectable, empty, names_of};

const FIELDS: [Selectable; 1] = [Selectable { name: "status.replicas", paths: &[&["status", "replicas"]], absent: "0" }];

/// The kind.
pub static REPLICA_SET: Definition<ReplicaSet> = Definition {
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
    initial_status: Some(empty::<ReplicaSetStatus>),
    validate: Some(validate),
    validate_update: Some(validate_update),
    warnings: Some(|set| workload::warnings(set.spec.as_ref().and_then(|spec| spec.template.as_ref()))),
    ..Definition::namespaced("io.k8s.api.apps.v1.ReplicaSet", "apps/replicasets", "replicaset").short(&["rs"]).in_all()
};

fn default(set: &mut ReplicaSet) {
    let spec = set.spec.get_or_insert_default();
    value(&mut spec.replicas, 1);
    defaults::template(spec.template.get_or_insert_default());
    set.status.get_or_insert_default();
}

fn validate(set: &ReplicaSet) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let path = Path::new("spec");
    let spec = set.spec.clone().unwrap_or_default();
    maybe_not_negative(&mut errors, &path.child("replicas"), spec.replicas);
    maybe_not_negative(&mut errors, &path.child("minReadySeconds"), spec.min_ready_seconds);
    workload::selected_template(&mut errors, &path, &spec.selector, &spec.template.unwrap_or_default(), "ReplicaSet");
    errors
}

fn validate_update(new: &ReplicaSet, old: &ReplicaSet, subresource: Option<Subresource>) -> Vec<FieldError> {
    if subresource == Some(Subresource::Status) {
        return status(&new.status.clone().unwrap_or_default());
    }
    let mut errors = validate(new);
    if let (Some(new), Some(old)) = (&new.spec, &old.spec) {
        immutable(&mut errors, &Path::new("spec").child("selector"), &new.selector, &old.selector);
    }
    errors
}

fn status(status: &ReplicaSetStatus) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let path = Path::new("status");
    not_negative(&mut errors, &path.child("replicas"), i64::from(status.replicas));
    let counts = [
        ("fullyLabeledReplicas", status.fully_labeled_replicas),
        ("readyReplicas", status.ready_replicas),
        ("availableReplicas", status.available_replicas),
    ];
    for (name, count) in counts {
        maybe_not_negative(&mut errors, &path.child(name), count);
        if let Some(count) = count.filter(|count| *count > status.replicas) {
            errors.push(FieldError::invalid(path.child(name), count, "cannot be greater than status.replicas"));
        }
    }
    if status.available_replicas > status.ready_replicas {
        let available = status.available_replicas.unwrap_or(0);
        errors.push(FieldError::invalid(path.child("availableReplicas"), available, "cannot be greater than readyReplicas"));
    }
    maybe_not_negative(&mut errors, &path.child("observedGeneration"), status.observed_generation);
    errors
}

fn row(set: &ReplicaSet, now: Timestamp) -> Vec<Value> {
    let spec = set.spec.clone().unwrap_or_default();
    let status = set.status.clone().unwrap_or_default();
    let [names, images] = containers(spec.template.as_ref());
    vec![
        name(&set.metadata),
        spec.replicas.unwrap_or(0).into(),
        status.replicas.into(),
        status.ready_replicas.unwrap_or(0).into(),
        age(&set.metadata, now),
        names,
        images,
        selector(Some(&spec.selector)).into(),
    ]
}
