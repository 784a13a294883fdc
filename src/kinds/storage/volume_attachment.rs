//! VolumeAttachment: a volume that is to be attached to a node.

use jiff::Timestamp;
use k8s_openapi::api::storage::v1::{VolumeAttachment, VolumeAttachmentStatus};
use serde_json::Value;

use crate::api::field::{FieldError, Path};
use crate::api::kind::{Column, Subresource};
use crate::api::names;
use crate::kinds::check::{immutable, required_rule};
use crate::kinds::print::{age, name};
use crate::kinds::typed::{Definition, empty};

/// The kind.
pub static VOLUME_ATTACHMENT: Definition<VolumeAttachment> = Definition {
    subresources: &[Subresource::Status],
    columns: &[
        Column::NAME,
        Column { format: "name", ..Column::text("Attacher") },
        Column::text("PV"),
        Column::text("Node"),
        Column { kind: "boolean", ..Column::text("Attached") },
        Column::AGE,
    ],
    row: Some(row),
    initial_status: Some(empty::<VolumeAttachmentStatus>),
    validate: Some(validate),
    validate_update: Some(validate_update),
    ..Definition::cluster("io.k8s.api.storage.v1.VolumeAttachment", "storage.k8s.io/volumeattachments", "volumeattachment")
};

fn validate(attachment: &VolumeAttachment) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let path = Path::new("spec");
    let spec = &attachment.spec;
    required_rule(&mut errors, &path.child("attacher"), &spec.attacher, names::dns1123_subdomain);
    required_rule(&mut errors, &path.child("nodeName"), &spec.node_name, names::dns1123_subdomain);
    let at = path.child("source");
    match (&spec.source.persistent_volume_name, &spec.source.inline_volume_spec) {
        (None, None) => {
            errors.push(FieldError::required(at, "must specify exactly one of inlineVolumeSpec and persistentVolumeName"))
        }
        (Some(_), Some(_)) => {
            let why = "must specify exactly one of inlineVolumeSpec and persistentVolumeName";
            errors.push(FieldError::forbidden(at, why));
        }
        _ => {}
    }
    errors
}

fn validate_update(new: &VolumeAttachment, old: &VolumeAttachment, _subresource: Option<Subresource>) -> Vec<FieldError> {
    let mut errors = validate(new);
    immutable(&mut errors, &Path::new("spec"), &new.spec, &old.spec);
    errors
}

fn row(attachment: &VolumeAttachment, now: Timestamp) -> Vec<Value> {
    let spec = &attachment.spec;
    vec![
        name(&attachment.metadata),
        spec.attacher.clone().into(),
        spec.source.persistent_volume_name.clone().unwrap_or_default().into(),
        spec.node_name.clone().into(),
        attachment.status.as_ref().is_some_and(|status| status.attached).into(),
        age(&attachment.metadata, now),
    ]
}
