//! ReplicationController: keeps a number of pods running, in the oldest form.

use k8s_openapi::api::core::v1::ReplicationController;

use crate::api::kind::Subresource;
use crate::kinds::typed::Definition;

/// The kind.
pub static REPLICATION_CONTROLLER: Definition<ReplicationController> = Definition {
    subresources: &[Subresource::Scale, Subresource::Status],
    ..Definition::namespaced("io.k8s.api.core.v1.ReplicationController", "core/replicationcontrollers", "replicationcontroller")
        .short(&["rc"])
        .in_all()
};
