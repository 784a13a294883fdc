//! StorageClass: how volumes are provisioned.

use jiff::Timestamp;
use k8s_openapi::api::storage::v1::StorageClass;
use serde_json::Value;

use crate::api::field::{FieldError, Path};
use crate::api::kind::{Column, Subresource};
use crate::api::names;
use crate::kinds::check::{immutable, one_of, required_rule, same, str_of};
use crate::kinds::core::pod_spec::defaults::text;
use crate::kinds::print::age;
use crate::kinds::typed::Definition;

const IS_DEFAULT: [&str; 2] = ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];

/// The kind.
pub static STORAGE_CLASS: Definition<StorageClass> = Definition {
    columns: &[
        Column::NAME,
        Column::text("Provisioner"),
        Column::text("ReclaimPolicy"),
        Column::text("VolumeBindingMode"),
        Column { kind: "boolean", ..Column::text("AllowVolumeExpansion") },
        Column::AGE,
    ],
    row: Some(row),
    default: Some(|class| {
        text(&mut class.reclaim_policy, "Delete");
        text(&mut class.volume_binding_mode, "Immediate");
    }),
    validate: Some(validate),
    validate_update: Some(validate_update),
    ..Definition::cluster("io.k8s.api.storage.v1.StorageClass", "storage.k8s.io/storageclasses", "storageclass").short(&["sc"])
};

fn validate(class: &StorageClass) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let lower = class.provisioner.to_lowercase();
    required_rule(&mut errors, &Path::new("provisioner"), &lower, names::qualified_name);
    one_of(&mut errors, &Path::new("reclaimPolicy"), str_of(&class.reclaim_policy), &["Delete", "Retain"]);
    let mode = str_of(&class.volume_binding_mode);
    one_of(&mut errors, &Path::new("volumeBindingMode"), mode, &["Immediate", "WaitForFirstConsumer"]);
    errors
}

fn validate_update(new: &StorageClass, old: &StorageClass, _subresource: Option<Subresource>) -> Vec<FieldError> {
    let mut errors = validate(new);
    if !same(&new.parameters, &old.parameters) {
        errors.push(FieldError::forbidden(Path::new("parameters"), "updates to parameters are forbidden."));
    }
    if new.provisioner != old.provisioner {
        errors.push(FieldError::forbidden(Path::new("provisioner"), "updates to provisioner are forbidden."));
    }
    if new.reclaim_policy != old.reclaim_policy {
        errors.push(FieldError::forbidden(Path::new("reclaimPolicy"), "updates to reclaimPolicy are forbidden."));
    }
    immutable(&mut errors, &Path::new("volumeBindingMode"), &new.volume_binding_mode, &old.volume_binding_mode);
    errors
}

fn row(class: &StorageClass, now: Timestamp) -> Vec<Value> {
    let annotations = class.metadata.annotations.as_ref();
    let is_default = IS_DEFAULT.iter().any(|key| annotations.and_then(|all| all.get(*key)).is_some_and(|value| value == "true"));
    let name = class.metadata.name.clone().unwrap_or_default();
    let name = if is_default { format!("{name} (default)") } else { name };
    vec![
        name.into(),
        class.provisioner.clone().into(),
        class.reclaim_policy.as_deref().unwrap_or("Delete").into(),
        class.volume_binding_mode.as_deref().unwrap_or("Immediate").into(),
        class.allow_volume_expansion.unwrap_or(false).into(),
        age(&class.metadata, now),
    ]
}
