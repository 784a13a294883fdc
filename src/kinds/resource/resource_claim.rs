//! ResourceClaim: devices that are asked for.

use k8s_openapi::api::resource::v1::ResourceClaim;

use crate::api::field::{FieldError, Path};
use crate::api::kind::{Column, Subresource};
use crate::kinds::check::{immutable, is_blank};
use crate::kinds::print::{age, name};
use crate::kinds::typed::Definition;

/// The kind.
pub static RESOURCE_CLAIM: Definition<ResourceClaim> = Definition {
    subresources: &[Subresource::Status],
    columns: &[Column::NAME, Column::text("State"), Column::AGE],
    row: Some(|claim, now| vec![name(&claim.metadata), state(claim).into(), age(&claim.metadata, now)]),
    validate_update: Some(validate_update),
    generation: Some(false),
    ..Definition::namespaced("io.k8s.api.resource.v1.ResourceClaim", "resource.k8s.io/resourceclaims", "resourceclaim")
};

fn validate_update(new: &ResourceClaim, old: &ResourceClaim, _subresource: Option<Subresource>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    immutable(&mut errors, &Path::new("spec"), &new.spec, &old.spec);
    errors
}

fn state(claim: &ResourceClaim) -> String {
    let status = claim.status.clone().unwrap_or_default();
    let is_deleting = claim.metadata.deletion_timestamp.is_some();
    let mut words = Vec::new();
    if is_deleting {
        words.push("deleted");
    }
    if status.allocation.is_some() {
        words.push("allocated");
    } else if !is_deleting {
        words.push("pending");
    }
    if status.allocation.is_some() && !is_blank(&status.reserved_for) {
        words.push("reserved");
    }
    words.join(",")
}
