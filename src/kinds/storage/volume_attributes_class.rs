//! VolumeAttributesClass: changeable attributes of volumes.

use k8s_openapi::api::storage::v1::VolumeAttributesClass;

use crate::kinds::typed::Definition;

/// The kind.
pub static VOLUME_ATTRIBUTES_CLASS: Definition<VolumeAttributesClass> = Definition::cluster(
    "io.k8s.api.storage.v1.VolumeAttributesClass",
    "storage.k8s.io/volumeattributesclasses",
    "volumeattributesclass",
)
.short(&["vac"]);
