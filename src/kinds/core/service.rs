//! Service: one address for a set of pods.

use k8s_openapi::api::core::v1::Service;

use crate::api::kind::Subresource;
use crate::kinds::typed::Definition;

/// The kind.
pub static SERVICE: Definition<Service> = Definition {
    subresources: &[Subresource::Proxy, Subresource::Status],
    ..Definition::namespaced("io.k8s.api.core.v1.Service", "core/services", "service").short(&["svc"]).in_all()
};
