//! PodDisruptionBudget: how many pods may be evicted at a time.

use k8s_openapi::api::policy::v1::PodDisruptionBudget;

use crate::api::kind::Subresource;
use crate::kinds::typed::Definition;

/// The kind.
pub static POD_DISRUPTION_BUDGET: Definition<PodDisruptionBudget> = Definition {
    subresources: &[Subresource::Status],
    ..Definition::namespaced("io.k8s.api.policy.v1.PodDisruptionBudget", "policy/poddisruptionbudgets", "poddisruptionbudget")
        .short(&["pdb"])
};
