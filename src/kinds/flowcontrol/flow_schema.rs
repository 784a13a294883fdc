//! FlowSchema: which requests belong to which priority level.

use jiff::Timestamp;
use k8s_openapi::api::flowcontrol::v1::FlowSchema;
use serde_json::Value;

use crate::api::field::{FieldError, Path};
use crate::api::kind::{Column, Subresource};
use crate::kinds::check::required;
use crate::kinds::core::pod_spec::defaults::number;
use crate::kinds::print::{NONE, age, name};
use crate::kinds::typed::Definition;

/// The kind.
pub static FLOW_SCHEMA: Definition<FlowSchema> = Definition {
    subresources: &[Subresource::Status],
    columns: &[
        Column::NAME,
        Column::text("PriorityLevel"),
        Column::text("MatchingPrecedence"),
        Column::text("DistinguisherMethod"),
        Column::AGE,
        Column::text("MissingPL"),
    ],
    row: Some(row),
    default: Some(|schema| number(&mut schema.spec.get_or_insert_default().matching_precedence, 1_000)),
    validate: Some(validate),
    ..Definition::cluster("io.k8s.api.flowcontrol.v1.FlowSchema", "flowcontrol.apiserver.k8s.io/flowschemas", "flowschema")
};

fn validate(schema: &FlowSchema) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let path = Path::new("spec");
    let spec = schema.spec.clone().unwrap_or_default();
    let precedence = spec.matching_precedence.unwrap_or(0);
    if precedence <= 0 {
        errors.push(FieldError::invalid(path.child("matchingPrecedence"), precedence, "must be a positive value"));
    }
    if precedence > 10_000 {
        let why = "must not be greater than 10000";
        errors.push(FieldError::invalid(path.child("matchingPrecedence"), precedence, why));
    }
    let level = path.child("priorityLevelConfiguration").child("name");
    required(&mut errors, &level, &spec.priority_level_configuration.name);
    errors
}

fn row(schema: &FlowSchema, now: Timestamp) -> Vec<Value> {
    let spec = schema.spec.clone().unwrap_or_default();
    let status = schema.status.clone().unwrap_or_default();
    let dangling = status.conditions.iter().flatten().find(|condition| condition.type_.as_deref() == Some("Dangling"));
    vec![
        name(&schema.metadata),
        spec.priority_level_configuration.name.into(),
        spec.matching_precedence.unwrap_or(0).into(),
        spec.distinguisher_method.map_or_else(|| NONE.to_owned(), |method| method.type_).into(),
        age(&schema.metadata, now),
        dangling.and_then(|condition| condition.status.as_deref()).unwrap_or("?").into(),
    ]
}
