//! Binding: ties a pod to a node; only ever posted.

use k8s_openapi::api::core::v1::Binding;

use crate::kinds::typed::Definition;

/// The kind.
pub static BINDING: Definition<Binding> =
    Definition::namespaced("io.k8s.api.core.v1.Binding", "core/bindings", "binding").create_only();
