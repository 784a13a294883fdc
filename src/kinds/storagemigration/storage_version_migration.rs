//! StorageVersionMigration: a resource whose objects are to be written anew in the version that is stored.

use k8s_openapi::api::storagemigration::v1beta1::StorageVersionMigration;

use crate::api::field::{FieldError, Path};
use crate::api::kind::{Column, Subresource};
use crate::kinds::check::{immutable, required};
use crate::kinds::print::name;
use crate::kinds::typed::Definition;

/// The kind.
pub static STORAGE_VERSION_MIGRATION: Definition<StorageVersionMigration> = Definition {
    subresources: &[Subresource::Status],
    columns: &[Column::NAME, Column::text("Resource")],
    row: Some(|migration, _now| vec![name(&migration.metadata), resource(migration).into()]),
    validate: Some(validate),
    validate_update: Some(validate_update),
    ..Definition::cluster(
        "io.k8s.api.storagemigration.v1.StorageVersionMigration",
        "storagemigration.k8s.io/storageversionmigrations",
        "storageversionmigration",
    )
    .promoted("v1")
};

/// `deployments.apps`, or `pods`.
fn resource(migration: &StorageVersionMigration) -> String {
    let Some(resource) = migration.spec.as_ref().map(|spec| &spec.resource) else { return String::new() };
    if resource.group.is_empty() { resource.resource.clone() } else { format!("{}.{}", resource.resource, resource.group) }
}

fn validate(migration: &StorageVersionMigration) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let name = migration.spec.as_ref().map_or("", |spec| spec.resource.resource.as_str());
    required(&mut errors, &Path::new("spec").child("resource").child("resource"), name);
    errors
}

fn validate_update(
    new: &StorageVersionMigration,
    old: &StorageVersionMigration,
    _subresource: Option<Subresource>,
) -> Vec<FieldError> {
    let mut errors = validate(new);
    immutable(&mut errors, &Path::new("spec"), &new.spec, &old.spec);
    errors
}
