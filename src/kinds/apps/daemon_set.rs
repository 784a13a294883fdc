//! DaemonSet: one pod on every matching node.

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetStatus, DaemonSetUpdateStrategy};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::Value;

use super::workload;
use crate::api::field::{FieldError, Path};
use crate::api::kind::{Column, Subresource};
use crate::kinds::check::{
    Errors, at_most_100_percent, immutable, is_zero, maybe_not_negative, number_or_percent, one_of, same, str_of,
};
use crate::kinds::core::pod_spec::defaults::{self, text, value};
use crate::kinds::print::{age, containers, labels, name, selector};
use crate::kinds::typed::{Definition, empty};

/// Counts the changes of the template; the pods carry the count as a label. Clients cannot set it.
const GENERATION: &str = "deprecated.daemonset.template.generation";

/// The kind.
pub static DAEMON_SET: Definition<DaemonSet> = Definition {
    subresources: &[Subresource::Status],
    columns: &[
        Column::NAME,
        Column::integer("Desired"),
        Column::integer("Current"),
        Column::integer("Ready"),
        Column::integer("Up-to-date"),
        Column::integer("Available"),
        Column::text("Node Selector"),
        Column::AGE,
        Column::wide("Containers"),
        Column::wide("Images"),
        Column::wide("Selector"),
    ],
    row: Some(row),
    default: Some(default),
    initial_status: Some(empty::<DaemonSetStatus>),
    prepare_create: Some(|set| set_generation(set, 1)),
    prepare_update: Some(prepare_update),
    validate: Some(validate),
    validate_update: Some(validate_update),
    warnings: Some(|set| workload::warnings(set.spec.as_ref().map(|spec| &spec.template))),
    ..Definition::namespaced("io.k8s.api.apps.v1.DaemonSet", "apps/daemonsets", "daemonset").short(&["ds"]).in_all()
};

fn default(set: &mut DaemonSet) {
    let spec = set.spec.get_or_insert_default();
    value(&mut spec.revision_history_limit, 10);
    let strategy = spec.update_strategy.get_or_insert_default();
    text(&mut strategy.type_, "RollingUpdate");
    if str_of(&strategy.type_) == "RollingUpdate" {
        let rolling = strategy.rolling_update.get_or_insert_default();
        value(&mut rolling.max_unavailable, IntOrString::Int(1));
        value(&mut rolling.max_surge, IntOrString::Int(0));
    }
    defaults::template(&mut spec.template);
    set.status.get_or_insert_default();
}

fn set_generation(set: &mut DaemonSet, generation: i64) {
    set.metadata.annotations.get_or_insert_default().insert(GENERATION.to_owned(), generation.to_string());
}

fn prepare_update(new: &mut DaemonSet, old: &DaemonSet, subresource: Option<Subresource>) {
    let annotation = old.metadata.annotations.as_ref().and_then(|annotations| annotations.get(GENERATION));
    let generation = annotation.and_then(|generation| generation.parse().ok()).unwrap_or(0_i64);
    let template = |set: &DaemonSet| set.spec.as_ref().map(|spec| spec.template.clone());
    let is_changed = subresource.is_none() && !same(&template(new), &template(old));
    set_generation(new, generation.saturating_add(i64::from(is_changed)));
}

fn validate(set: &DaemonSet) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let path = Path::new("spec");
    let spec = set.spec.clone().unwrap_or_default();
    workload::selected_template(&mut errors, &path, &spec.selector, &spec.template, "DaemonSet");
    maybe_not_negative(&mut errors, &path.child("minReadySeconds"), spec.min_ready_seconds);
    if let Some(strategy) = &spec.update_strategy {
        update_strategy(&mut errors, &path.child("updateStrategy"), strategy);
    }
    maybe_not_negative(&mut errors, &path.child("revisionHistoryLimit"), spec.revision_history_limit);
    errors
}

fn update_strategy(errors: &mut Errors, path: &Path, strategy: &DaemonSetUpdateStrategy) {
    one_of(errors, &path.child("type"), str_of(&strategy.type_), &["OnDelete", "RollingUpdate"]);
    if str_of(&strategy.type_) != "RollingUpdate" {
        return;
    }
    let path = path.child("rollingUpdate");
    let Some(rolling) = &strategy.rolling_update else {
        errors.push(FieldError::required(path, ""));
        return;
    };
    let zero = IntOrString::Int(0);
    let unavailable = rolling.max_unavailable.as_ref().unwrap_or(&zero);
    let surge = rolling.max_surge.as_ref().unwrap_or(&zero);
    for (name, value) in [("maxUnavailable", unavailable), ("maxSurge", surge)] {
        number_or_percent(errors, &path.child(name), value);
        at_most_100_percent(errors, &path.child(name), value);
    }
    match (is_zero(unavailable), is_zero(surge)) {
        (true, true) => {
            let value = serde_json::to_value(unavailable).unwrap_or_default();
            errors.push(FieldError::invalid(path.child("maxUnavailable"), value, "cannot be 0 when maxSurge is 0"));
        }
        (false, false) => {
            let value = serde_json::to_value(surge).unwrap_or_default();
            errors.push(FieldError::invalid(path.child("maxSurge"), value, "may not be set when maxUnavailable is non-zero"));
        }
        _ => {}
    }
}

fn validate_update(new: &DaemonSet, old: &DaemonSet, subresource: Option<Subresource>) -> Vec<FieldError> {
    if subresource == Some(Subresource::Status) {
        return Vec::new();
    }
    let mut errors = validate(new);
    if let (Some(new), Some(old)) = (&new.spec, &old.spec) {
        immutable(&mut errors, &Path::new("spec").child("selector"), &new.selector, &old.selector);
    }
    errors
}

fn row(set: &DaemonSet, now: Timestamp) -> Vec<Value> {
    let spec = set.spec.clone().unwrap_or_default();
    let status = set.status.clone().unwrap_or_default();
    let [names, images] = containers(Some(&spec.template));
    vec![
        name(&set.metadata),
        status.desired_number_scheduled.into(),
        status.current_number_scheduled.into(),
        status.number_ready.into(),
        status.updated_number_scheduled.unwrap_or(0).into(),
        status.number_available.unwrap_or(0).into(),
        labels(spec.template.spec.as_ref().and_then(|spec| spec.node_selector.as_ref())).into(),
        age(&set.metadata, now),
        names,
        images,
        selector(Some(&spec.selector)).into(),
    ]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::api::{Kind, Object};

    fn set(image: &str, generation: &str) -> Object {
        let value = json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "a", "annotations": {GENERATION: generation}},
            "spec": {"selector": {"matchLabels": {"app": "a"}}, "template": {"metadata": {"labels": {"app": "a"}},
            "spec": {"containers": [{"name": "c", "image": image}]}}}});
        let Value::Object(map) = value else { panic!() };
        let mut object = Object(map);
        DAEMON_SET.default(&mut object);
        object
    }

    #[test]
    fn the_template_is_counted_by_nobody_else() {
        let generation = |object: &Object| object.get(&["metadata", "annotations", GENERATION]).cloned();
        let mut first = set("x:1", "9");
        DAEMON_SET.prepare_create(&mut first);
        assert_eq!(generation(&first), Some(json!("1")));
        for (image, subresource, expected) in [("x:1", None, "1"), ("x:2", None, "2"), ("x:2", Some(Subresource::Status), "1")] {
            let mut next = set(image, "7");
            DAEMON_SET.prepare_update(&mut next, &first, subresource);
            assert_eq!(generation(&next), Some(json!(expected)), "{image} {subresource:?}");
        }
    }
}
