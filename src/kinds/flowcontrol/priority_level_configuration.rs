//! PriorityLevelConfiguration: how many requests of a level run at a time.

use jiff::Timestamp;
use k8s_openapi::api::flowcontrol::v1::PriorityLevelConfiguration;
use serde_json::Value;

use crate::api::field::{FieldError, Path};
use crate::api::kind::{Column, Subresource};
use crate::kinds::check::required_one_of;
use crate::kinds::core::pod_spec::defaults::value;
use crate::kinds::print::{NONE, age, name};
use crate::kinds::typed::Definition;

/// The kind.
pub static PRIORITY_LEVEL_CONFIGURATION: Definition<PriorityLevelConfiguration> = Definition {
    subresources: &[Subresource::Status],
    columns: &[
        Column::NAME,
        Column::text("Type"),
        Column::text("NominalConcurrencyShares"),
        Column::text("Queues"),
        Column::text("HandSize"),
        Column::text("QueueLengthLimit"),
        Column::AGE,
    ],
    row: Some(row),
    default: Some(default),
    validate: Some(validate),
    ..Definition::cluster(
        "io.k8s.api.flowcontrol.v1.PriorityLevelConfiguration",
        "flowcontrol.apiserver.k8s.io/prioritylevelconfigurations",
        "prioritylevelconfiguration",
    )
};

fn default(level: &mut PriorityLevelConfiguration) {
    let spec = level.spec.get_or_insert_default();
    if let Some(limited) = &mut spec.limited {
        value(&mut limited.nominal_concurrency_shares, 30);
        value(&mut limited.lendable_percent, 0);
        if let Some(queuing) = limited.limit_response.as_mut().and_then(|response| response.queuing.as_mut()) {
            value(&mut queuing.hand_size, 8);
            value(&mut queuing.queues, 64);
            value(&mut queuing.queue_length_limit, 50);
        }
    }
    if let Some(exempt) = &mut spec.exempt {
        value(&mut exempt.nominal_concurrency_shares, 0);
        value(&mut exempt.lendable_percent, 0);
    }
}

fn validate(level: &PriorityLevelConfiguration) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let path = Path::new("spec");
    let spec = level.spec.clone().unwrap_or_default();
    required_one_of(&mut errors, &path.child("type"), &spec.type_, &["Exempt", "Limited"]);
    match (spec.type_.as_str(), spec.limited.is_some()) {
        ("Exempt", true) => {
            errors.push(FieldError::forbidden(path.child("limited"), "must be nil if the type is not Limited"));
        }
        ("Limited", false) => {
            errors.push(FieldError::required(path.child("limited"), "must not be empty when type is Limited"));
        }
        _ => {}
    }
    errors
}

fn row(level: &PriorityLevelConfiguration, now: Timestamp) -> Vec<Value> {
    let spec = level.spec.clone().unwrap_or_default();
    let limited = spec.limited.unwrap_or_default();
    let queuing = limited.limit_response.and_then(|response| response.queuing).unwrap_or_default();
    let or_none = |number: Option<i32>| number.map_or_else(|| Value::from(NONE), Value::from);
    vec![
        name(&level.metadata),
        spec.type_.into(),
        or_none(limited.nominal_concurrency_shares),
        or_none(queuing.queues),
        or_none(queuing.hand_size),
        or_none(queuing.queue_length_limit),
        age(&level.metadata, now),
    ]
}
