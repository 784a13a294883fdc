//! ControllerRevision: a snapshot of a template, for rollback.

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::ControllerRevision;
use serde_json::Value;

use crate::api::field::{FieldError, Path};
use crate::api::kind::{Column, Subresource};
use crate::kinds::check::{immutable, not_negative};
use crate::kinds::print::{NONE, age, name};
use crate::kinds::typed::Definition;

/// The kind.
pub static CONTROLLER_REVISION: Definition<ControllerRevision> = Definition {
    columns: &[Column::NAME, Column::text("Controller"), Column::integer("Revision"), Column::AGE],
    row: Some(row),
    validate: Some(validate),
    validate_update: Some(validate_update),
    ..Definition::namespaced("io.k8s.api.apps.v1.ControllerRevision", "apps/controllerrevisions", "controllerrevision")
};

fn validate(revision: &ControllerRevision) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if revision.data.is_none() {
        errors.push(FieldError::required(Path::new("data"), "data is mandatory"));
    }
    not_negative(&mut errors, &Path::new("revision"), revision.revision);
    errors
}

fn validate_update(new: &ControllerRevision, old: &ControllerRevision, _subresource: Option<Subresource>) -> Vec<FieldError> {
    let mut errors = validate(new);
    immutable(&mut errors, &Path::new("data"), &new.data, &old.data);
    errors
}

fn row(revision: &ControllerRevision, now: Timestamp) -> Vec<Value> {
    let owner = revision.metadata.owner_references.iter().flatten().find(|owner| owner.controller == Some(true));
    let controller = owner.map_or_else(
        || NONE.to_owned(),
        |owner| {
            let group = owner.api_version.split_once('/').map_or(String::new(), |(group, _)| format!(".{group}"));
            format!("{}{group}/{}", owner.kind.to_lowercase(), owner.name)
        },
    );
    vec![name(&revision.metadata), controller.into(), revision.revision.into(), age(&revision.metadata, now)]
}
