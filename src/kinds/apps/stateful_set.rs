//! StatefulSet: pods with stable names and storage.

use k8s_openapi::api::apps::v1::StatefulSet;

use crate::api::kind::Subresource;
use crate::kinds::typed::Definition;

/// The kind.
pub static STATEFUL_SET: Definition<StatefulSet> = Definition {
    subresources: &[Subresource::Scale, Subresource::Status],
    ..Definition::namespaced("io.k8s.api.apps.v1.StatefulSet", "apps/statefulsets", "statefulset").short(&["sts"]).in_all()
};
