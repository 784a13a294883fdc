//! RuntimeClass: how the containers of a pod are run.

use k8s_openapi::api::node::v1::RuntimeClass;

use crate::kinds::typed::Definition;

/// The kind.
pub static RUNTIME_CLASS: Definition<RuntimeClass> =
    Definition::cluster("io.k8s.api.node.v1.RuntimeClass", "node.k8s.io/runtimeclasses", "runtimeclass");
