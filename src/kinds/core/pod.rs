//! Pod: containers that run together on a node.

use k8s_openapi::api::core::v1::Pod;

use crate::api::kind::Subresource;
use crate::kinds::typed::Definition;

/// The kind.
pub static POD: Definition<Pod> = Definition {
    subresources: &[
        Subresource::Attach,
        Subresource::Binding,
        Subresource::EphemeralContainers,
        Subresource::Eviction,
        Subresource::Exec,
        Subresource::Log,
        Subresource::PortForward,
        Subresource::Proxy,
        Subresource::Resize,
        Subresource::Status,
    ],
    ..Definition::namespaced("io.k8s.api.core.v1.Pod", "core/pods", "pod").short(&["po"]).in_all()
};
