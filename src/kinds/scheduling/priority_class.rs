//! PriorityClass: a name for a priority.

use jiff::Timestamp;
use k8s_openapi::api::scheduling::v1::PriorityClass;
use serde_json::Value;

use crate::api::field::{FieldError, Path};
use crate::api::kind::{Column, Subresource};
use crate::kinds::check::one_of;
use crate::kinds::core::pod_spec::defaults::text;
use crate::kinds::print::{age, name};
use crate::kinds::typed::Definition;

/// The highest priority that users may give.
const USER_MAX: i32 = 1_000_000_000;
/// The classes that Kubernetes itself makes.
const SYSTEM: [(&str, i32); 2] = [("system-cluster-critical", 2_000_000_000), ("system-node-critical", 2_000_001_000)];

/// The kind.
pub static PRIORITY_CLASS: Definition<PriorityClass> = Definition {
    columns: &[
        Column::NAME,
        Column::integer("Value"),
        Column { kind: "boolean", ..Column::text("Global-Default") },
        Column::AGE,
        Column::text("PreemptionPolicy"),
    ],
    row: Some(row),
    default: Some(|class| text(&mut class.preemption_policy, "PreemptLowerPriority")),
    validate: Some(validate),
    validate_update: Some(validate_update),
    generation: Some(true),
    ..Definition::cluster("io.k8s.api.scheduling.v1.PriorityClass", "scheduling.k8s.io/priorityclasses", "priorityclass")
        .short(&["pc"])
};

fn validate(class: &PriorityClass) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let name = class.metadata.name.as_deref().unwrap_or("");
    let value = class.value.unwrap_or(0);
    let is_system = SYSTEM.contains(&(name, value)) && class.global_default != Some(true);
    if name.starts_with("system-") && !is_system {
        let why =
            "priority class names with 'system-' prefix are reserved for system use only. error: unknown system priority class";
        errors.push(FieldError::forbidden(Path::new("metadata").child("name"), why));
    } else if value > USER_MAX && !is_system {
        let why = format!("maximum allowed value of a user defined priority is {USER_MAX}");
        errors.push(FieldError::forbidden(Path::new("value"), why));
    }
    if let Some(policy) = &class.preemption_policy {
        one_of(&mut errors, &Path::new("preemptionPolicy"), policy, &["Never", "PreemptLowerPriority"]);
    }
    errors
}

fn validate_update(new: &PriorityClass, old: &PriorityClass, _subresource: Option<Subresource>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if new.value.unwrap_or(0) != old.value.unwrap_or(0) {
        errors.push(FieldError::forbidden(Path::new("value"), "may not be changed in an update."));
    }
    if new.preemption_policy != old.preemption_policy {
        errors.push(FieldError::invalid(Path::new("preemptionPolicy"), new.preemption_policy.clone(), "field is immutable"));
    }
    errors
}

fn row(class: &PriorityClass, now: Timestamp) -> Vec<Value> {
    vec![
        name(&class.metadata),
        class.value.unwrap_or(0).into(),
        class.global_default.unwrap_or(false).into(),
        age(&class.metadata, now),
        class.preemption_policy.clone().unwrap_or_default().into(),
    ]
}
