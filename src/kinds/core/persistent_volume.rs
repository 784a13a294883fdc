//! PersistentVolume: a piece of storage.

use k8s_openapi::api::core::v1::PersistentVolume;

use crate::api::kind::Subresource;
use crate::kinds::typed::Definition;

/// The kind.
pub static PERSISTENT_VOLUME: Definition<PersistentVolume> = Definition {
    subresources: &[Subresource::Status],
    ..Definition::cluster("io.k8s.api.core.v1.PersistentVolume", "core/persistentvolumes", "persistentvolume").short(&["pv"])
};
