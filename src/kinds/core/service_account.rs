//! ServiceAccount: an identity for pods.

use k8s_openapi::api::core::v1::ServiceAccount;

use crate::api::kind::Subresource;
use crate::kinds::typed::Definition;

/// The kind.
pub static SERVICE_ACCOUNT: Definition<ServiceAccount> = Definition {
    subresources: &[Subresource::Token],
    ..Definition::namespaced("io.k8s.api.core.v1.ServiceAccount", "core/serviceaccounts", "serviceaccount").short(&["sa"])
};
