//! Node: a machine that runs pods.

use k8s_openapi::api::core::v1::Node;

use crate::api::kind::Subresource;
use crate::kinds::typed::Definition;

/// The kind.
pub static NODE: Definition<Node> = Definition {
    subresources: &[Subresource::Proxy, Subresource::Status],
    ..Definition::cluster("io.k8s.api.core.v1.Node", "core/nodes", "node").short(&["no"])
};
