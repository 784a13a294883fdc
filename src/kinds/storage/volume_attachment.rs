//! VolumeAttachment: a volume that is to be attached to a node.

use k8s_openapi::api::storage::v1::VolumeAttachment;

use crate::api::kind::Subresource;
use crate::kinds::typed::Definition;

/// The kind.
pub static VOLUME_ATTACHMENT: Definition<VolumeAttachment> = Definition {
    subresources: &[Subresource::Status],
    ..Definition::cluster("io.k8s.api.storage.v1.VolumeAttachment", "storage.k8s.io/volumeattachments", "volumeattachment")
};
