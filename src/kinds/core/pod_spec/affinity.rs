//! Checks of affinity.

use k8s_openapi::api::core::v1::{
    Affinity, NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, PodAffinityTerm, WeightedPodAffinityTerm,
};

use crate::api::field::{FieldError, Path};
use crate::api::names;
use crate::kinds::check::{Errors, label_selector, required, required_rule, rule};

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";

/// Checks the affinity of a pod.
pub fn affinity(errors: &mut Errors, path: &Path, affinity: &Affinity) {
    if let Some(node) = &affinity.node_affinity {
        node_affinity(errors, &path.child("nodeAffinity"), node);
    }
    if let Some(pods) = &affinity.pod_affinity {
        let (required, preferred) = (
            &pods.required_during_scheduling_ignored_during_execution,
            &pods.preferred_during_scheduling_ignored_during_execution,
        );
        pod_terms(errors, &path.child("podAffinity"), required.as_deref(), preferred.as_deref());
    }
    if let Some(pods) = &affinity.pod_anti_affinity {
        let (required, preferred) = (
            &pods.required_during_scheduling_ignored_during_execution,
            &pods.preferred_during_scheduling_ignored_during_execution,
        );
        pod_terms(errors, &path.child("podAntiAffinity"), required.as_deref(), preferred.as_deref());
    }
}

fn node_affinity(errors: &mut Errors, path: &Path, affinity: &NodeAffinity) {
    if let Some(selector) = &affinity.required_during_scheduling_ignored_during_execution {
        node_selector(errors, &path.child(REQUIRED), selector);
    }
    for (index, term) in affinity.preferred_during_scheduling_ignored_during_execution.iter().flatten().enumerate() {
        let path = path.child(PREFERRED).index(index);
        weight(errors, &path, term.weight);
        node_term(errors, &path.child("preference"), &term.preference);
    }
}

/// Checks a selector of nodes: of a pod, or of a volume.
pub fn node_selector(errors: &mut Errors, path: &Path, selector: &NodeSelector) {
    let path = path.child("nodeSelectorTerms");
    if selector.node_selector_terms.is_empty() {
        errors.push(FieldError::required(path.clone(), "must have at least one node selector term"));
    }
    for (index, term) in selector.node_selector_terms.iter().enumerate() {
        node_term(errors, &path.index(index), term);
    }
}

fn node_term(errors: &mut Errors, path: &Path, term: &NodeSelectorTerm) {
    for (index, requirement) in term.match_expressions.iter().flatten().enumerate() {
        node_requirement(errors, &path.child("matchExpressions").index(index), requirement, true);
    }
    for (index, requirement) in term.match_fields.iter().flatten().enumerate() {
        let path = path.child("matchFields").index(index);
        let values = requirement.values.as_deref().unwrap_or_default();
        if !matches!(requirement.operator.as_str(), "In" | "NotIn") {
            errors.push(FieldError::invalid(
                path.child("operator"),
                requirement.operator.as_str(),
                "not a valid selector operator",
            ));
        } else if values.len() != 1 {
            let why = "must be only one value when `operator` is 'In' or 'NotIn' for node field selector";
            errors.push(FieldError::required(path.child("values"), why));
        }
        if requirement.key != "metadata.name" {
            errors.push(FieldError::invalid(path.child("key"), requirement.key.as_str(), "not a valid field selector key"));
        }
    }
}

fn node_requirement(errors: &mut Errors, path: &Path, requirement: &NodeSelectorRequirement, check_values: bool) {
    let values = requirement.values.as_deref().unwrap_or_default();
    let at = path.child("values");
    match requirement.operator.as_str() {
        "In" | "NotIn" if values.is_empty() => {
            errors.push(FieldError::required(at.clone(), "must be specified when `operator` is 'In' or 'NotIn'"));
        }
        "Exists" | "DoesNotExist" if !values.is_empty() => {
            errors.push(FieldError::forbidden(at.clone(), "may not be specified when `operator` is 'Exists' or 'DoesNotExist'"));
        }
        "Gt" | "Lt" if values.len() != 1 => {
            errors.push(FieldError::required(at.clone(), "must be specified single value when `operator` is 'Lt' or 'Gt'"));
        }
        "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
        other => errors.push(FieldError::invalid(path.child("operator"), other, "not a valid selector operator")),
    }
    rule(errors, &path.child("key"), &requirement.key, names::qualified_name);
    for (index, value) in values.iter().enumerate().filter(|_| check_values) {
        rule(errors, &at.index(index), value, names::label_value);
    }
}

fn weight(errors: &mut Errors, path: &Path, weight: i32) {
    if !(1..=100).contains(&weight) {
        errors.push(FieldError::invalid(path.child("weight"), weight, "must be in the range 1-100"));
    }
}

fn pod_terms(
    errors: &mut Errors,
    path: &Path,
    required: Option<&[PodAffinityTerm]>,
    preferred: Option<&[WeightedPodAffinityTerm]>,
) {
    for (index, term) in required.unwrap_or_default().iter().enumerate() {
        pod_term(errors, &path.child(REQUIRED).index(index), term);
    }
    for (index, term) in preferred.unwrap_or_default().iter().enumerate() {
        let path = path.child(PREFERRED).index(index);
        weight(errors, &path, term.weight);
        pod_term(errors, &path.child("podAffinityTerm"), &term.pod_affinity_term);
    }
}

fn pod_term(errors: &mut Errors, path: &Path, term: &PodAffinityTerm) {
    for (name, selector) in [("labelSelector", &term.label_selector), ("namespaceSelector", &term.namespace_selector)] {
        if let Some(selector) = selector {
            label_selector(errors, &path.child(name), selector);
        }
    }
    for (name, keys) in [("matchLabelKeys", &term.match_label_keys), ("mismatchLabelKeys", &term.mismatch_label_keys)] {
        let path = path.child(name);
        let keys = keys.as_deref().unwrap_or_default();
        if !keys.is_empty() && term.label_selector.is_none() {
            errors.push(FieldError::forbidden(path.clone(), "must not be specified when labelSelector is not set"));
        }
        for (index, key) in keys.iter().enumerate() {
            rule(errors, &path.index(index), key, names::qualified_name);
            if name == "matchLabelKeys" && term.mismatch_label_keys.iter().flatten().any(|other| other == key) {
                let why = "exists in both matchLabelKeys and mismatchLabelKeys";
                errors.push(FieldError::invalid(path.index(index), key.as_str(), why));
            }
        }
    }
    for namespace in term.namespaces.iter().flatten() {
        required_rule(errors, &path.child("namespace"), namespace, names::dns1123_label);
    }
    if term.topology_key.is_empty() {
        errors.push(FieldError::required(path.child("topologyKey"), "can not be empty"));
    } else if required(errors, &path.child("topologyKey"), &term.topology_key) {
        rule(errors, &path.child("topologyKey"), &term.topology_key, names::qualified_name);
    }
}
