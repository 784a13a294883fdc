//! ReplicaSet: keeps a number of pods running.

use k8s_openapi::api::apps::v1::ReplicaSet;

use crate::api::kind::Subresource;
use crate::kinds::typed::Definition;

/// The kind.
pub static REPLICA_SET: Definition<ReplicaSet> = Definition {
    subresources: &[Subresource::Scale, Subresource::Status],
    ..Definition::namespaced("io.k8s.api.apps.v1.ReplicaSet", "apps/replicasets", "replicaset").short(&["rs"]).in_all()
};
