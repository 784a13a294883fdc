//! Lease: who holds something, and until when.

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use serde_json::Value;

use crate::api::field::{FieldError, Path};
use crate::api::kind::Column;
use crate::kinds::check::maybe_not_negative;
use crate::kinds::print::{age, name};
use crate::kinds::typed::Definition;

/// The kind.
pub static LEASE: Definition<Lease> = Definition {
    columns: &[Column::NAME, Column::text("Holder"), Column::AGE],
    row: Some(row),
    validate: Some(validate),
    ..Definition::namespaced("io.k8s.api.coordination.v1.Lease", "coordination.k8s.io/leases", "lease")
};

fn validate(lease: &Lease) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let path = Path::new("spec");
    let spec = lease.spec.clone().unwrap_or_default();
    if let Some(seconds) = spec.lease_duration_seconds.filter(|seconds| *seconds <= 0) {
        errors.push(FieldError::invalid(path.child("leaseDurationSeconds"), seconds, "must be greater than 0"));
    }
    maybe_not_negative(&mut errors, &path.child("leaseTransitions"), spec.lease_transitions);
    errors
}

fn row(lease: &Lease, now: Timestamp) -> Vec<Value> {
    let holder = lease.spec.as_ref().and_then(|spec| spec.holder_identity.clone()).unwrap_or_default();
    vec![name(&lease.metadata), holder.into(), age(&lease.metadata, now)]
}
