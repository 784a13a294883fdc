//! StatefulSet: pods with stable names and storage.

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetSpec, StatefulSetStatus};
use k8s_openapi::api::core::v1::{PersistentVolumeClaimStatus, Volume};
use serde_json::Value;

use super::workload;
use crate::api::field::{FieldError, Path};
use crate::api::kind::{Column, Subresource};
use crate::api::names;
use crate::kinds::check::{
    Errors, at_most_100_percent, is_empty_selector, is_zero, label_selector, maybe_not_negative, number_or_percent, one_of,
    required_one_of, same, str_of,
};
use crate::kinds::core::pod_spec::defaults::{self, quantities, text, value};
use crate::kinds::core::pod_spec::template;
use crate::kinds::print::{age, containers, name};
use crate::kinds::typed::{Definition, empty};

const UPDATES: &str = "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden";

/// The kind.
pub static STATEFUL_SET: Definition<StatefulSet> = Definition {
    subresources: &[Subresource::Scale, Subresource::Status],
    columns: &[Column::NAME, Column::text("Ready"), Column::AGE, Column::wide("Containers"), Column::wide("Images")],
    row: Some(row),
    default: Some(default),
    initial_status: Some(|| {
        let mut status = empty::<StatefulSetStatus>();
        if let Value::Object(map) = &mut status {
            map.insert("availableReplicas".to_owned(), 0.into());
        }
        status
    }),
    validate: Some(validate),
    validate_update: Some(validate_update),
    warnings: Some(|set| workload::warnings(set.spec.as_ref().map(|spec| &spec.template))),
    name_rule: names::dns1123_label,
    ..Definition::namespaced("io.k8s.api.apps.v1.StatefulSet", "apps/statefulsets", "statefulset").short(&["sts"]).in_all()
};

fn default(set: &mut StatefulSet) {
    let spec = set.spec.get_or_insert_default();
    text(&mut spec.pod_management_policy, "OrderedReady");
    value(&mut spec.replicas, 1);
    value(&mut spec.revision_history_limit, 10);
    let strategy = spec.update_strategy.get_or_insert_default();
    text(&mut strategy.type_, "RollingUpdate");
    if str_of(&strategy.type_) == "RollingUpdate" {
        value(&mut strategy.rolling_update.get_or_insert_default().partition, 0);
    }
    let retention = spec.persistent_volume_claim_retention_policy.get_or_insert_default();
    text(&mut retention.when_deleted, "Retain");
    text(&mut retention.when_scaled, "Retain");
    defaults::template(&mut spec.template);
    for claim in spec.volume_claim_templates.iter_mut().flatten() {
        let spec = claim.spec.get_or_insert_default();
        text(&mut spec.volume_mode, "Filesystem");
        if let Some(resources) = &mut spec.resources {
            quantities(&mut resources.requests);
            quantities(&mut resources.limits);
        }
        let status: &mut PersistentVolumeClaimStatus = claim.status.get_or_insert_default();
        text(&mut status.phase, "Pending");
    }
    set.status.get_or_insert_default();
}

fn validate(set: &StatefulSet) -> Vec<FieldError> {
    let mut errors = Vec::new();
    spec(&mut errors, &Path::new("spec"), &set.spec.clone().unwrap_or_default());
    errors
}

fn spec(errors: &mut Errors, path: &Path, spec: &StatefulSetSpec) {
    required_one_of(
        errors,
        &path.child("podManagementPolicy"),
        str_of(&spec.pod_management_policy),
        &["OrderedReady", "Parallel"],
    );
    if let Some(strategy) = &spec.update_strategy {
        let path = path.child("updateStrategy");
        required_one_of(errors, &path.child("type"), str_of(&strategy.type_), &["OnDelete", "RollingUpdate"]);
        let at = path.child("rollingUpdate");
        match (str_of(&strategy.type_), &strategy.rolling_update) {
            ("OnDelete", Some(_)) => {
                let value = serde_json::to_value(&strategy.rolling_update).unwrap_or_default();
                errors.push(FieldError::invalid(at, value, "only allowed for updateStrategy 'RollingUpdate'"));
            }
            (_, Some(rolling)) => {
                maybe_not_negative(errors, &at.child("partition"), rolling.partition);
                if let Some(unavailable) = &rolling.max_unavailable {
                    let at = at.child("maxUnavailable");
                    number_or_percent(errors, &at, unavailable);
                    if is_zero(unavailable) {
                        let value = serde_json::to_value(unavailable).unwrap_or_default();
                        errors.push(FieldError::invalid(at.clone(), value, "cannot be 0"));
                    }
                    at_most_100_percent(errors, &at, unavailable);
                }
            }
            _ => {}
        }
    }
    if let Some(policy) = &spec.persistent_volume_claim_retention_policy {
        let path = path.child("persistentVolumeClaimRetentionPolicy");
        one_of(errors, &path.child("whenDeleted"), str_of(&policy.when_deleted), &["Delete", "Retain"]);
        one_of(errors, &path.child("whenScaled"), str_of(&policy.when_scaled), &["Delete", "Retain"]);
    }
    maybe_not_negative(errors, &path.child("replicas"), spec.replicas);
    maybe_not_negative(errors, &path.child("minReadySeconds"), spec.min_ready_seconds);
    maybe_not_negative(errors, &path.child("revisionHistoryLimit"), spec.revision_history_limit);
    maybe_not_negative(errors, &path.child("ordinals.start"), spec.ordinals.as_ref().and_then(|ordinals| ordinals.start));
    if is_empty_selector(&spec.selector) {
        errors.push(FieldError::required(path.child("selector"), ""));
    } else {
        label_selector(errors, &path.child("selector"), &spec.selector);
        template::selected(errors, &path.child("template"), &spec.template, &spec.selector);
    }
    template::always(errors, &path.child("template"), &spec.template, &claimed_volumes(spec), "StatefulSet");
}

/// The volumes that the claims will give the pods.
fn claimed_volumes(spec: &StatefulSetSpec) -> Vec<Volume> {
    let names = spec.volume_claim_templates.iter().flatten().filter_map(|claim| claim.metadata.name.clone());
    names.map(|name| Volume { name, persistent_volume_claim: Some(Default::default()), ..Volume::default() }).collect()
}

fn validate_update(new: &StatefulSet, old: &StatefulSet, subresource: Option<Subresource>) -> Vec<FieldError> {
    if subresource == Some(Subresource::Status) {
        return Vec::new();
    }
    let mut errors = validate(new);
    if let (Some(new), Some(old)) = (&new.spec, &old.spec) {
        let mut allowed = new.clone();
        allowed.replicas = old.replicas;
        allowed.ordinals.clone_from(&old.ordinals);
        allowed.template.clone_from(&old.template);
        allowed.update_strategy.clone_from(&old.update_strategy);
        allowed.min_ready_seconds = old.min_ready_seconds;
        allowed.revision_history_limit = old.revision_history_limit;
        allowed.persistent_volume_claim_retention_policy.clone_from(&old.persistent_volume_claim_retention_policy);
        if !same(&allowed, old) {
            errors.push(FieldError::forbidden(Path::new("spec"), UPDATES));
        }
    }
    errors
}

fn row(set: &StatefulSet, now: Timestamp) -> Vec<Value> {
    let spec = set.spec.clone().unwrap_or_default();
    let ready = set.status.as_ref().and_then(|status| status.ready_replicas).unwrap_or(0);
    let [names, images] = containers(Some(&spec.template));
    let ready = format!("{ready}/{}", spec.replicas.unwrap_or(0));
    vec![name(&set.metadata), ready.into(), age(&set.metadata, now), names, images]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn max_unavailable_is_above_nothing_and_at_most_all() {
        for (value, expected) in [
            (json!(2), vec![]),
            (json!("40%"), vec![]),
            (json!(0), vec!["cannot be 0"]),
            (json!("0%"), vec!["cannot be 0"]),
            (json!("101%"), vec!["must not be greater than 100%"]),
            (json!(-1), vec!["must be greater than or equal to 0"]),
        ] {
            let set: StatefulSet = serde_json::from_value(json!({"metadata": {"name": "a"}, "spec": {
                "podManagementPolicy": "Parallel", "selector": {"matchLabels": {"app": "a"}}, "serviceName": "a",
                "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": value}}, "template": {}}}))
            .unwrap();
            let errors: Vec<String> = validate(&set).iter().map(ToString::to_string).collect();
            let about: Vec<&String> = errors.iter().filter(|error| error.contains("maxUnavailable")).collect();
            assert_eq!(about.len(), expected.len(), "{value}: {errors:?}");
            assert!(about.iter().zip(&expected).all(|(error, words)| error.contains(words)), "{value}: {about:?}");
        }
    }
}
