//! Namespace: a scope for names.

use k8s_openapi::api::core::v1::Namespace;

use crate::api::kind::Subresource;
use crate::kinds::typed::{Definition, NO_DELETE_COLLECTION};

/// The kind.
pub static NAMESPACE: Definition<Namespace> = Definition {
    verbs: NO_DELETE_COLLECTION,
    subresources: &[Subresource::Finalize, Subresource::Status],
    ..Definition::cluster("io.k8s.api.core.v1.Namespace", "core/namespaces", "namespace").short(&["ns"])
};
