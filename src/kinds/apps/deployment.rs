//! Deployment: declarative updates of ReplicaSets.

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, DeploymentStrategy, RollingUpdateDeployment};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::Value;

use crate::api::field::{FieldError, Path};
use crate::api::kind::{Column, Subresource};
use crate::kinds::check::{
    Errors, at_most_100_percent, immutable, is_zero, maybe_not_negative, number_or_percent, required_one_of, str_of,
};
use crate::kinds::core::pod_spec::defaults::{self, text, value};
use crate::kinds::print::{age, containers, name, selector};
use crate::kinds::typed::Definition;

use super::workload;

/// The kind.
pub static DEPLOYMENT: Definition<Deployment> = Definition {
    subresources: &[Subresource::Scale, Subresource::Status],
    columns: &[
        Column::NAME,
        Column::text("Ready"),
        Column::text("Up-to-date"),
        Column::text("Available"),
        Column::AGE,
        Column::wide("Containers"),
        Column::wide("Images"),
        Column::wide("Selector"),
    ],
    row: Some(row),
    default: Some(default),
    validate: Some(validate),
    validate_update: Some(validate_update),
    warnings: Some(|deployment| workload::warnings(deployment.spec.as_ref().map(|spec| &spec.template))),
    ..Definition::namespaced("io.k8s.api.apps.v1.Deployment", "apps/deployments", "deployment").short(&["deploy"]).in_all()
};

fn default(deployment: &mut Deployment) {
    let spec = deployment.spec.get_or_insert_default();
    value(&mut spec.replicas, 1);
    value(&mut spec.revision_history_limit, 10);
    value(&mut spec.progress_deadline_seconds, 600);
    let strategy = spec.strategy.get_or_insert_default();
    text(&mut strategy.type_, "RollingUpdate");
    if str_of(&strategy.type_) == "RollingUpdate" {
        let rolling = strategy.rolling_update.get_or_insert_default();
        let quarter = || IntOrString::String("25%".to_owned());
        rolling.max_unavailable.get_or_insert_with(quarter);
        rolling.max_surge.get_or_insert_with(quarter);
    }
    defaults::template(&mut spec.template);
    deployment.status.get_or_insert_default();
}

fn validate(deployment: &Deployment) -> Vec<FieldError> {
    let mut errors = Vec::new();
    spec(&mut errors, &Path::new("spec"), &deployment.spec.clone().unwrap_or_default());
    errors
}

fn spec(errors: &mut Errors, path: &Path, spec: &DeploymentSpec) {
    maybe_not_negative(errors, &path.child("replicas"), spec.replicas);
    workload::selected_template(errors, path, &spec.selector, &spec.template, "ReplicaSet");
    if let Some(strategy) = &spec.strategy {
        self::strategy(errors, &path.child("strategy"), strategy);
    }
    maybe_not_negative(errors, &path.child("minReadySeconds"), spec.min_ready_seconds);
    maybe_not_negative(errors, &path.child("revisionHistoryLimit"), spec.revision_history_limit);
    if let Some(deadline) = spec.progress_deadline_seconds {
        let path = path.child("progressDeadlineSeconds");
        maybe_not_negative(errors, &path, Some(deadline));
        if deadline <= spec.min_ready_seconds.unwrap_or(0) {
            errors.push(FieldError::invalid(path, deadline, "must be greater than minReadySeconds"));
        }
    }
}

fn strategy(errors: &mut Errors, path: &Path, strategy: &DeploymentStrategy) {
    required_one_of(errors, &path.child("type"), str_of(&strategy.type_), &["Recreate", "RollingUpdate"]);
    let at = path.child("rollingUpdate");
    match (str_of(&strategy.type_), &strategy.rolling_update) {
        ("Recreate", Some(_)) => {
            errors.push(FieldError::forbidden(at, "may not be specified when strategy `type` is 'Recreate'"))
        }
        ("RollingUpdate", None) => errors.push(FieldError::required(at, "this should be defaulted and never be nil")),
        ("RollingUpdate", Some(rolling)) => rolling_update(errors, &at, rolling),
        _ => {}
    }
}

fn rolling_update(errors: &mut Errors, path: &Path, rolling: &RollingUpdateDeployment) {
    let zero = IntOrString::Int(0);
    let unavailable = rolling.max_unavailable.as_ref().unwrap_or(&zero);
    let surge = rolling.max_surge.as_ref().unwrap_or(&zero);
    let at = path.child("maxUnavailable");
    number_or_percent(errors, &at, unavailable);
    number_or_percent(errors, &path.child("maxSurge"), surge);
    if is_zero(unavailable) && is_zero(surge) {
        let value = serde_json::to_value(unavailable).unwrap_or_default();
        errors.push(FieldError::invalid(at.clone(), value, "may not be 0 when `maxSurge` is 0"));
    }
    at_most_100_percent(errors, &at, unavailable);
}

fn validate_update(new: &Deployment, old: &Deployment, subresource: Option<Subresource>) -> Vec<FieldError> {
    if subresource == Some(Subresource::Status) {
        return status(new, old);
    }
    let mut errors = validate(new);
    if let (Some(new), Some(old)) = (&new.spec, &old.spec) {
        immutable(&mut errors, &Path::new("spec").child("selector"), &new.selector, &old.selector);
    }
    errors
}

fn status(new: &Deployment, old: &Deployment) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let path = Path::new("status");
    let (status, before) = (new.status.clone().unwrap_or_default(), old.status.clone().unwrap_or_default());
    maybe_not_negative(&mut errors, &path.child("observedGeneration"), status.observed_generation);
    let counts = [
        ("replicas", status.replicas),
        ("updatedReplicas", status.updated_replicas),
        ("readyReplicas", status.ready_replicas),
        ("availableReplicas", status.available_replicas),
        ("unavailableReplicas", status.unavailable_replicas),
        ("terminatingReplicas", status.terminating_replicas),
        ("collisionCount", status.collision_count),
    ];
    for (name, count) in counts {
        maybe_not_negative(&mut errors, &path.child(name), count);
    }
    let total = status.replicas.unwrap_or(0);
    for (name, count) in counts.into_iter().skip(1).take(3) {
        if let Some(count) = count.filter(|count| *count > total) {
            errors.push(FieldError::invalid(path.child(name), count, "cannot be greater than status.replicas"));
        }
    }
    let ready = status.ready_replicas.unwrap_or(0);
    if let Some(available) = status.available_replicas.filter(|available| *available > ready) {
        errors.push(FieldError::invalid(path.child("availableReplicas"), available, "cannot be greater than readyReplicas"));
    }
    if before.collision_count.is_some() && status.collision_count < before.collision_count {
        let why = "cannot be decremented";
        errors.push(FieldError::invalid(path.child("collisionCount"), status.collision_count, why));
    }
    errors
}

fn row(deployment: &Deployment, now: Timestamp) -> Vec<Value> {
    let spec = deployment.spec.clone().unwrap_or_default();
    let status = deployment.status.clone().unwrap_or_default();
    let [names, images] = containers(Some(&spec.template));
    vec![
        name(&deployment.metadata),
        format!("{}/{}", status.ready_replicas.unwrap_or(0), spec.replicas.unwrap_or(0)).into(),
        status.updated_replicas.unwrap_or(0).into(),
        status.available_replicas.unwrap_or(0).into(),
        age(&deployment.metadata, now),
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

    fn web() -> Object {
        let mut object = Object::default();
        object.set(&["apiVersion"], "apps/v1");
        object.set(&["kind"], "Deployment");
        object.set(&["metadata"], json!({"name": "web", "creationTimestamp": "2024-01-01T00:00:00Z"}));
        object.set(&["spec", "selector"], json!({"matchLabels": {"app": "web"}}));
        object.set(
            &["spec", "template"],
            json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "nginx", "image": "nginx:1.14"}]}}),
        );
        DEPLOYMENT.default(&mut object);
        object
    }

    #[test]
    fn defaults_and_row() {
        let mut object = web();
        assert_eq!(
            object.get(&["spec", "strategy"]),
            Some(&json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}}))
        );
        let numbers =
            ["replicas", "revisionHistoryLimit", "progressDeadlineSeconds"].map(|name| object.get(&["spec", name]).cloned());
        assert_eq!(numbers, [Some(json!(1)), Some(json!(10)), Some(json!(600))]);
        assert_eq!(object.status(), Some(&json!({})));
        assert_eq!(DEPLOYMENT.validate(&object), []);
        object.set(&["status"], json!({"readyReplicas": 1, "updatedReplicas": 1, "availableReplicas": 1, "replicas": 1}));
        let row = DEPLOYMENT.row(&object, "2024-01-01T00:00:07Z".parse().unwrap());
        assert_eq!(Value::Array(row), json!(["web", "1/1", 1, 1, "7s", "nginx", "nginx:1.14", "app=web"]));
    }

    #[test]
    fn errors_in_upstreams_words() {
        let table: &[(&[&str], Value, &[&str])] = &[
            (&["spec", "replicas"], json!(-1), &["spec.replicas: Invalid value: -1: must be greater than or equal to 0"]),
            (
                &["spec", "selector"],
                json!({"matchLabels": {"app": "x"}}),
                &[
                    "spec.template.metadata.labels: Invalid value: {\"app\":\"web\"}: `selector` does not match template `labels`",
                    "spec.selector: Invalid value: {\"matchLabels\":{\"app\":\"x\"}}: field is immutable",
                ],
            ),
            (
                &["spec", "strategy"],
                json!({"type": "Recreate", "rollingUpdate": {}}),
                &["spec.strategy.rollingUpdate: Forbidden: may not be specified when strategy `type` is 'Recreate'"],
            ),
            (
                &["spec", "strategy", "rollingUpdate"],
                json!({"maxSurge": 0, "maxUnavailable": "0%"}),
                &["spec.strategy.rollingUpdate.maxUnavailable: Invalid value: \"0%\": may not be 0 when `maxSurge` is 0"],
            ),
            (
                &["spec", "progressDeadlineSeconds"],
                json!(0),
                &["spec.progressDeadlineSeconds: Invalid value: 0: must be greater than minReadySeconds"],
            ),
            (
                &["spec", "template", "spec", "restartPolicy"],
                json!("Never"),
                &["spec.template.spec.restartPolicy: Unsupported value: \"Never\": supported values: \"Always\""],
            ),
        ];
        let old = web();
        for (path, value, expected) in table {
            let mut new = old.clone();
            new.set(path, value.clone());
            let texts: Vec<String> = DEPLOYMENT.validate_update(&new, &old, None).iter().map(ToString::to_string).collect();
            assert_eq!(texts, *expected);
        }
    }
}
