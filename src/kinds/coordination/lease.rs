//! Lease: who holds something, and until when.

use k8s_openapi::api::coordination::v1::Lease;

use crate::kinds::typed::Definition;

/// The kind.
pub static LEASE: Definition<Lease> =
    Definition::namespaced("io.k8s.api.coordination.v1.Lease", "coordination.k8s.io/leases", "lease");
