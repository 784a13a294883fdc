//! VolumeAttributesClass: changeable attributes of volumes.

use k8s_openapi::api::storage::v1::VolumeAttributesClass;

use crate::api::field::{FieldError, Path};
use crate::api::kind::{Column, Subresource};
use crate::api::names;
use crate::kinds::check::{required_rule, same};
use crate::kinds::print::{age, name};
use crate::kinds::typed::Definition;

/// The kind.
pub static VOLUME_ATTRIBUTES_CLASS: Definition<VolumeAttributesClass> = Definition {
    columns: &[Column::NAME, Column::text("DriverName"), Column::AGE],
    row: Some(|class, now| vec![name(&class.metadata), class.driver_name.clone().into(), age(&class.metadata, now)]),
    validate: Some(validate),
    validate_update: Some(validate_update),
    ..Definition::cluster(
        "io.k8s.api.storage.v1.VolumeAttributesClass",
        "storage.k8s.io/volumeattributesclasses",
        "volumeattributesclass",
    )
    .short(&["vac"])
};

fn validate(class: &VolumeAttributesClass) -> Vec<FieldError> {
    let mut errors = Vec::new();
    required_rule(&mut errors, &Path::new("driverName"), &class.driver_name.to_lowercase(), names::qualified_name);
    if class.parameters.as_ref().is_none_or(|parameters| parameters.is_empty()) {
        errors.push(FieldError::required(Path::new("parameters"), "must contain at least one key/value pair"));
    }
    errors
}

fn validate_update(
    new: &VolumeAttributesClass,
    old: &VolumeAttributesClass,
    _subresource: Option<Subresource>,
) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if new.driver_name != old.driver_name {
        errors.push(FieldError::forbidden(Path::new("driverName"), "updates to driverName are forbidden."));
    }
    if !same(&new.parameters, &old.parameters) {
        errors.push(FieldError::forbidden(Path::new("parameters"), "updates to parameters are forbidden."));
    }
    errors
}
