//! PodDisruptionBudget: how many pods may be evicted at a time.

use jiff::Timestamp;
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus};
use serde_json::Value;

use crate::api::field::{FieldError, Path};
use crate::api::kind::{Column, Subresource};
use crate::kinds::check::{at_most_100_percent, label_selector, number_or_percent, one_of};
use crate::kinds::print::{age, int_or_string, name};
use crate::kinds::typed::{Definition, empty};

/// The kind.
pub static POD_DISRUPTION_BUDGET: Definition<PodDisruptionBudget> = Definition {
    subresources: &[Subresource::Status],
    columns: &[
        Column::NAME,
        Column::text("Min Available"),
        Column::text("Max Unavailable"),
        Column::integer("Allowed Disruptions"),
        Column::AGE,
    ],
    row: Some(row),
    initial_status: Some(empty::<PodDisruptionBudgetStatus>),
    validate: Some(validate),
    ..Definition::namespaced("io.k8s.api.policy.v1.PodDisruptionBudget", "policy/poddisruptionbudgets", "poddisruptionbudget")
        .short(&["pdb"])
};

fn validate(budget: &PodDisruptionBudget) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let path = Path::new("spec");
    let spec = budget.spec.clone().unwrap_or_default();
    if spec.min_available.is_some() && spec.max_unavailable.is_some() {
        let value = serde_json::to_value(&spec).unwrap_or_default();
        errors.push(FieldError::invalid(path.clone(), value, "minAvailable and maxUnavailable cannot be both set"));
    }
    for (field, value) in [("minAvailable", &spec.min_available), ("maxUnavailable", &spec.max_unavailable)] {
        if let Some(value) = value {
            number_or_percent(&mut errors, &path.child(field), value);
            at_most_100_percent(&mut errors, &path.child(field), value);
        }
    }
    if let Some(selector) = &spec.selector {
        label_selector(&mut errors, &path.child("selector"), selector);
    }
    if let Some(policy) = &spec.unhealthy_pod_eviction_policy {
        one_of(&mut errors, &path.child("unhealthyPodEvictionPolicy"), policy, &["AlwaysAllow", "IfHealthyBudget"]);
    }
    errors
}

fn row(budget: &PodDisruptionBudget, now: Timestamp) -> Vec<Value> {
    let spec = budget.spec.clone().unwrap_or_default();
    let allowed = budget.status.as_ref().and_then(|status| status.disruptions_allowed).unwrap_or(0);
    vec![
        name(&budget.metadata),
        int_or_string(spec.min_available.as_ref()).into(),
        int_or_string(spec.max_unavailable.as_ref()).into(),
        allowed.into(),
        age(&budget.metadata, now),
    ]
}
