//! PersistentVolumeClaim: a request for storage.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, PersistentVolumeClaimSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Typed;
use serde_json::{Value, json};

use super::pod_spec::defaults::{quantities, text};
use crate::api::field::{FieldError, Path};
use crate::api::kind::{Column, Subresource};
use crate::api::names;
use crate::api::quantity::Quantity;
use crate::kinds::check::{Errors, label_selector, one_of, rule, same, str_of};
use crate::kinds::print::{UNSET, age, name};
use crate::kinds::typed::Definition;

const BETA_CLASS: &str = "volume.beta.kubernetes.io/storage-class";
const IMMUTABLE: &str =
    "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims";

/// The kind.
pub static PERSISTENT_VOLUME_CLAIM: Definition<PersistentVolumeClaim> = Definition {
    subresources: &[Subresource::Status],
    columns: &[
        Column::NAME,
        Column::text("Status"),
        Column::text("Volume"),
        Column::text("Capacity"),
        Column::text("Access Modes"),
        Column::text("StorageClass"),
        Column::text("VolumeAttributesClass"),
        Column::AGE,
        Column::wide("VolumeMode"),
    ],
    row: Some(row),
    default: Some(default),
    initial_status: Some(|| json!({"phase": "Pending"})),
    validate: Some(validate),
    validate_update: Some(validate_update),
    generation: Some(false),
    ..Definition::namespaced("io.k8s.api.core.v1.PersistentVolumeClaim", "core/persistentvolumeclaims", "persistentvolumeclaim")
        .short(&["pvc"])
};

fn default(claim: &mut PersistentVolumeClaim) {
    let spec = claim.spec.get_or_insert_default();
    text(&mut spec.volume_mode, "Filesystem");
    if let Some(resources) = &mut spec.resources {
        quantities(&mut resources.requests);
        quantities(&mut resources.limits);
    }
    let status = claim.status.get_or_insert_default();
    text(&mut status.phase, "Pending");
}

fn validate(claim: &PersistentVolumeClaim) -> Vec<FieldError> {
    let mut errors = Vec::new();
    spec(&mut errors, &Path::new("spec"), &claim.spec.clone().unwrap_or_default());
    errors
}

fn validate_update(
    new: &PersistentVolumeClaim,
    old: &PersistentVolumeClaim,
    subresource: Option<Subresource>,
) -> Vec<FieldError> {
    if subresource == Some(Subresource::Status) {
        return Vec::new();
    }
    let mut errors = validate(new);
    let (spec, before) = (new.spec.clone().unwrap_or_default(), old.spec.clone().unwrap_or_default());
    let mut allowed = spec.clone();
    let is_bound = old.status.as_ref().is_some_and(|status| str_of(&status.phase) == "Bound");
    if is_bound {
        allowed.resources.clone_from(&before.resources);
        allowed.volume_attributes_class_name.clone_from(&before.volume_attributes_class_name);
    }
    if str_of(&before.volume_name).is_empty() {
        allowed.volume_name.clone_from(&before.volume_name);
    }
    if before.storage_class_name.is_none() {
        allowed.storage_class_name = None;
    }
    if !same(&allowed, &before) {
        errors.push(FieldError::forbidden(Path::new("spec"), IMMUTABLE));
    }
    let amount = |spec: &PersistentVolumeClaimSpec| {
        let requests = spec.resources.as_ref().and_then(|resources| resources.requests.as_ref());
        requests.and_then(|requests| requests.get("storage")).and_then(|amount| Quantity::try_from(amount).ok())
    };
    if is_bound && amount(&spec) < amount(&before) {
        let path = Path::new("spec").child("resources").child("requests").child("storage");
        errors.push(FieldError::forbidden(path, "field can not be less than status.capacity"));
    }
    errors
}

/// Access modes in their short form: `RWO,ROX`.
pub fn print_modes(modes: &[String]) -> String {
    let short = [("ReadWriteOnce", "RWO"), ("ReadOnlyMany", "ROX"), ("ReadWriteMany", "RWX"), ("ReadWriteOncePod", "RWOP")];
    let given = short.into_iter().filter(|(mode, _)| modes.iter().any(|given| given == mode)).map(|(_, short)| short);
    given.collect::<Vec<_>>().join(",")
}

fn row(claim: &PersistentVolumeClaim, now: Timestamp) -> Vec<Value> {
    let spec = claim.spec.clone().unwrap_or_default();
    let status = claim.status.clone().unwrap_or_default();
    let is_deleting = claim.metadata.deletion_timestamp.is_some();
    let phase = if is_deleting { "Terminating".to_owned() } else { status.phase.clone().unwrap_or_default() };
    let (mut modes, mut capacity) = (String::new(), String::new());
    if !str_of(&spec.volume_name).is_empty() {
        modes = print_modes(status.access_modes.as_deref().unwrap_or_default());
        capacity =
            status.capacity.as_ref().and_then(|amounts| amounts.get("storage")).map_or("0".to_owned(), |amount| amount.0.clone());
    }
    let annotation = claim.metadata.annotations.as_ref().and_then(|annotations| annotations.get(BETA_CLASS)).cloned();
    vec![
        name(&claim.metadata),
        phase.into(),
        spec.volume_name.unwrap_or_default().into(),
        capacity.into(),
        modes.into(),
        annotation.or(spec.storage_class_name).unwrap_or_default().into(),
        spec.volume_attributes_class_name.unwrap_or_else(|| UNSET.to_owned()).into(),
        age(&claim.metadata, now),
        spec.volume_mode.unwrap_or_else(|| UNSET.to_owned()).into(),
    ]
}

/// Checks the specification of a claim.
pub fn spec(errors: &mut Errors, path: &Path, spec: &PersistentVolumeClaimSpec) {
    let modes = spec.access_modes.as_deref().unwrap_or_default();
    if modes.is_empty() {
        errors.push(FieldError::required(path.child("accessModes"), "at least 1 access mode is required"));
    }
    access_modes(errors, &path.child("accessModes"), modes);
    if let Some(selector) = &spec.selector {
        label_selector(errors, &path.child("selector"), selector);
    }
    let storage = spec.resources.as_ref().and_then(|resources| resources.requests.as_ref()).and_then(|list| list.get("storage"));
    let at = path.child("resources").key("storage");
    match storage {
        None => errors.push(FieldError::required(at, "")),
        Some(amount) => {
            if !amount_is_positive(amount) {
                errors.push(FieldError::invalid(at, amount.0.as_str(), "must be greater than zero"));
            }
        }
    }
    for (name, text) in
        [("storageClassName", &spec.storage_class_name), ("volumeAttributesClassName", &spec.volume_attributes_class_name)]
    {
        if let Some(text) = text.as_deref().filter(|text| !text.is_empty()) {
            rule(errors, &path.child(name), text, names::dns1123_subdomain);
        }
    }
    if let Some(mode) = &spec.volume_mode {
        one_of(errors, &path.child("volumeMode"), mode, &["Block", "Filesystem"]);
    }
}

/// Checks the ways in which a volume is shared.
pub fn access_modes(errors: &mut Errors, path: &Path, modes: &[String]) {
    for mode in modes {
        one_of(errors, path, mode, &["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"]);
    }
    let is_exclusive = modes.iter().any(|mode| mode == "ReadWriteOncePod");
    if is_exclusive && modes.len() > 1 {
        errors.push(FieldError::forbidden(path.clone(), "may not use ReadWriteOncePod with other access modes"));
    }
}

/// Whether an amount is above zero; one that does not parse is not.
pub fn amount_is_positive(amount: &Typed) -> bool {
    Quantity::try_from(amount).is_ok_and(|amount| amount > Quantity::ZERO)
}
