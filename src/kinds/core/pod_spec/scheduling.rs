//! Checks of what the scheduler goes by: tolerations, spreading, gates.

use std::collections::HashSet;

use k8s_openapi::api::core::v1::{PodSpec, Toleration, TopologySpreadConstraint};

use crate::api::field::{FieldError, Path};
use crate::api::names;
use crate::kinds::check::{Errors, label_selector, one_of, required, required_one_of, rule, str_of, unique};

/// The effects of taints.
pub const EFFECTS: &[&str] = &["NoExecute", "NoSchedule", "PreferNoSchedule"];

/// Checks tolerations, spreading and gates.
pub fn scheduling(errors: &mut Errors, path: &Path, spec: &PodSpec) {
    for (index, toleration) in spec.tolerations.iter().flatten().enumerate() {
        self::toleration(errors, &path.child("tolerations").index(index), toleration);
    }
    spread(errors, &path.child("topologySpreadConstraints"), spec.topology_spread_constraints.as_deref().unwrap_or_default());
    let mut seen = HashSet::new();
    for (index, gate) in spec.scheduling_gates.iter().flatten().enumerate() {
        let path = path.child("schedulingGates").index(index);
        rule(errors, &path, &gate.name, names::qualified_name);
        unique(errors, &path, &mut seen, &gate.name);
    }
}

fn toleration(errors: &mut Errors, path: &Path, toleration: &Toleration) {
    let (key, operator, effect) = (str_of(&toleration.key), str_of(&toleration.operator), str_of(&toleration.effect));
    if !key.is_empty() {
        rule(errors, &path.child("key"), key, names::qualified_name);
    } else if operator != "Exists" {
        let why = "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
        errors.push(FieldError::invalid(path.child("operator"), operator, why));
    }
    if toleration.toleration_seconds.is_some() && effect != "NoExecute" {
        let why = "effect must be 'NoExecute' when `tolerationSeconds` is set";
        errors.push(FieldError::invalid(path.child("effect"), effect, why));
    }
    let at = path.child("operator");
    match operator {
        "" | "Equal" => rule(errors, &at, str_of(&toleration.value), names::label_value),
        "Exists" => {
            if !str_of(&toleration.value).is_empty() {
                let why = "value must be empty when `operator` is 'Exists'";
                errors.push(FieldError::invalid(at, str_of(&toleration.value), why));
            }
        }
        // `Lt` and `Gt` stand behind a gate in upstream that is off by default.
        other => errors.push(FieldError::not_supported(at, other, &["Equal", "Exists"])),
    }
    if !effect.is_empty() {
        one_of(errors, &path.child("effect"), effect, EFFECTS);
    }
}

fn spread(errors: &mut Errors, path: &Path, constraints: &[TopologySpreadConstraint]) {
    let mut seen = HashSet::new();
    for (index, constraint) in constraints.iter().enumerate() {
        let path = path.index(index);
        if constraint.max_skew <= 0 {
            errors.push(FieldError::invalid(path.child("maxSkew"), constraint.max_skew, "must be greater than zero"));
        }
        if constraint.topology_key.is_empty() {
            errors.push(FieldError::required(path.child("topologyKey"), "can not be empty"));
        } else {
            rule(errors, &path.child("topologyKey"), &constraint.topology_key, names::qualified_name);
        }
        required_one_of(
            errors,
            &path.child("whenUnsatisfiable"),
            &constraint.when_unsatisfiable,
            &["DoNotSchedule", "ScheduleAnyway"],
        );
        if !seen.insert((&constraint.topology_key, &constraint.when_unsatisfiable)) {
            let pair = format!("{{{}, {}}}", constraint.topology_key, constraint.when_unsatisfiable);
            errors.push(FieldError::duplicate(path.child("{topologyKey, whenUnsatisfiable}"), pair));
        }
        if let Some(domains) = constraint.min_domains {
            if domains <= 0 {
                errors.push(FieldError::invalid(path.child("minDomains"), domains, "must be greater than zero"));
            }
            if constraint.when_unsatisfiable != "DoNotSchedule" {
                let why =
                    format!("can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {}", constraint.when_unsatisfiable);
                errors.push(FieldError::invalid(path.child("minDomains"), domains, why));
            }
        }
        for (name, policy) in
            [("nodeAffinityPolicy", &constraint.node_affinity_policy), ("nodeTaintsPolicy", &constraint.node_taints_policy)]
        {
            if let Some(policy) = policy {
                one_of(errors, &path.child(name), policy, &["Honor", "Ignore"]);
            }
        }
        match &constraint.label_selector {
            Some(selector) => label_selector(errors, &path.child("labelSelector"), selector),
            None if constraint.match_label_keys.as_ref().is_some_and(|keys| !keys.is_empty()) => {
                let why = "must not be specified when labelSelector is not set";
                errors.push(FieldError::forbidden(path.child("matchLabelKeys"), why));
            }
            None => {}
        }
        for (index, key) in constraint.match_label_keys.iter().flatten().enumerate() {
            rule(errors, &path.child("matchLabelKeys").index(index), key, names::qualified_name);
        }
    }
}

/// Checks the names that a pod refers to: classes, accounts, secrets.
pub fn references(errors: &mut Errors, path: &Path, spec: &PodSpec) {
    let subdomains = [
        ("serviceAccountName", &spec.service_account_name),
        ("nodeName", &spec.node_name),
        ("schedulerName", &spec.scheduler_name),
        ("runtimeClassName", &spec.runtime_class_name),
        ("priorityClassName", &spec.priority_class_name),
    ];
    for (name, text) in subdomains {
        if let Some(text) = text.as_deref().filter(|text| !text.is_empty()) {
            rule(errors, &path.child(name), text, names::dns1123_subdomain);
        }
    }
    for (index, secret) in spec.image_pull_secrets.iter().flatten().enumerate() {
        required(errors, &path.child("imagePullSecrets").index(index).child("name"), &secret.name);
    }
    for (index, gate) in spec.readiness_gates.iter().flatten().enumerate() {
        rule(
            errors,
            &path.child("readinessGates").index(index).child("conditionType"),
            &gate.condition_type,
            names::qualified_name,
        );
    }
}
