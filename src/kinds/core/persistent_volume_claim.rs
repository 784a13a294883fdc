//! PersistentVolumeClaim: a request for storage.

use k8s_openapi::api::core::v1::PersistentVolumeClaim;

use crate::api::kind::Subresource;
use crate::kinds::typed::Definition;

/// The kind.
pub static PERSISTENT_VOLUME_CLAIM: Definition<PersistentVolumeClaim> = Definition {
    subresources: &[Subresource::Status],
    ..Definition::namespaced("io.k8s.api.core.v1.PersistentVolumeClaim", "core/persistentvolumeclaims", "persistentvolumeclaim")
        .short(&["pvc"])
};
