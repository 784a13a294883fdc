//! PersistentVolume: a piece of storage.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeSpec};
use serde_json::{Map, Value, json};

use super::persistent_volume_claim::{access_modes, amount_is_positive, print_modes};
use super::pod_spec::defaults::{quantities, text, value};
use super::pod_spec::{affinity, iscsi, volume};
use crate::api::field::{FieldError, Path};
use crate::api::kind::{Column, Subresource};
use crate::kinds::check::{Errors, is_blank, one_of, required, same, str_of};
use crate::kinds::print::{UNSET, age, name};
use crate::kinds::typed::Definition;

const BETA_CLASS: &str = "volume.beta.kubernetes.io/storage-class";
/// The fields of the specification that are no source.
const PLAIN: [&str; 9] = [
    "accessModes",
    "capacity",
    "claimRef",
    "mountOptions",
    "nodeAffinity",
    "persistentVolumeReclaimPolicy",
    "storageClassName",
    "volumeAttributesClassName",
    "volumeMode",
];

/// The kind.
pub static PERSISTENT_VOLUME: Definition<PersistentVolume> = Definition {
    subresources: &[Subresource::Status],
    columns: &[
        Column::NAME,
        Column::text("Capacity"),
        Column::text("Access Modes"),
        Column::text("Reclaim Policy"),
        Column::text("Status"),
        Column::text("Claim"),
        Column::text("StorageClass"),
        Column::text("VolumeAttributesClass"),
        Column::text("Reason"),
        Column::AGE,
        Column::wide("VolumeMode"),
    ],
    row: Some(row),
    default: Some(default),
    initial_status: Some(|| json!({"phase": "Pending"})),
    validate: Some(validate),
    validate_update: Some(validate_update),
    generation: Some(false),
    ..Definition::cluster("io.k8s.api.core.v1.PersistentVolume", "core/persistentvolumes", "persistentvolume").short(&["pv"])
};

fn default(volume: &mut PersistentVolume) {
    let spec = volume.spec.get_or_insert_default();
    text(&mut spec.persistent_volume_reclaim_policy, "Retain");
    text(&mut spec.volume_mode, "Filesystem");
    quantities(&mut spec.capacity);
    if let Some(host_path) = &mut spec.host_path {
        value(&mut host_path.type_, String::new());
    }
    if let Some(iscsi) = &mut spec.iscsi {
        text(&mut iscsi.iscsi_interface, "default");
    }
    let status = volume.status.get_or_insert_default();
    text(&mut status.phase, "Pending");
}

fn source(spec: &PersistentVolumeSpec) -> Map<String, Value> {
    match serde_json::to_value(spec) {
        Ok(Value::Object(map)) => map.into_iter().filter(|(name, _)| !PLAIN.contains(&name.as_str())).collect(),
        _ => Map::new(),
    }
}

fn validate(volume: &PersistentVolume) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let path = Path::new("spec");
    let spec = volume.spec.clone().unwrap_or_default();
    if is_blank(&spec.access_modes) {
        errors.push(FieldError::required(path.child("accessModes"), ""));
    }
    access_modes(&mut errors, &path.child("accessModes"), spec.access_modes.as_deref().unwrap_or_default());
    capacity(&mut errors, &path.child("capacity"), &spec);
    let policy = str_of(&spec.persistent_volume_reclaim_policy);
    one_of(&mut errors, &path.child("persistentVolumeReclaimPolicy"), policy, &["Delete", "Recycle", "Retain"]);
    let sources = source(&spec);
    if sources.is_empty() {
        errors.push(FieldError::required(path.clone(), "must specify a volume type"));
    }
    for name in sources.keys().skip(1) {
        errors.push(FieldError::forbidden(path.child(name), "may not specify more than 1 volume type"));
    }
    if let Some(host_path) = &spec.host_path {
        volume::host_path(&mut errors, &path.child("hostPath"), host_path);
    }
    if let Some(nfs) = &spec.nfs {
        volume::nfs(&mut errors, &path.child("nfs"), nfs);
    }
    if let Some(iscsi) = &spec.iscsi {
        iscsi::of_volume(&mut errors, &path.child("iscsi"), iscsi);
    }
    if let Some(local) = &spec.local {
        required(&mut errors, &path.child("local").child("path"), &local.path);
        if spec.node_affinity.is_none() {
            errors.push(FieldError::required(path.child("nodeAffinity"), "Local volume requires node affinity"));
        }
    }
    if let Some(csi) = &spec.csi {
        required(&mut errors, &path.child("csi").child("driver"), &csi.driver);
        required(&mut errors, &path.child("csi").child("volumeHandle"), &csi.volume_handle);
    }
    if let Some(selector) = spec.node_affinity.as_ref().and_then(|affinity| affinity.required.as_ref()) {
        affinity::node_selector(&mut errors, &path.child("nodeAffinity").child("required"), selector);
    }
    if let Some(mode) = &spec.volume_mode {
        one_of(&mut errors, &path.child("volumeMode"), mode, &["Block", "Filesystem"]);
    }
    errors
}

fn capacity(errors: &mut Errors, path: &Path, spec: &PersistentVolumeSpec) {
    let amounts = spec.capacity.clone().unwrap_or_default();
    if amounts.is_empty() {
        errors.push(FieldError::required(path.clone(), ""));
        return;
    }
    if !amounts.contains_key("storage") || amounts.len() > 1 {
        let names: Vec<&str> = amounts.keys().map(String::as_str).collect();
        errors.push(FieldError::not_supported(path.clone(), names.join(","), &["storage"]));
    }
    for (resource, amount) in amounts.iter().filter(|(_, amount)| !amount_is_positive(amount)) {
        errors.push(FieldError::invalid(path.key(resource), amount.0.as_str(), "must be greater than zero"));
    }
}

fn validate_update(new: &PersistentVolume, old: &PersistentVolume, subresource: Option<Subresource>) -> Vec<FieldError> {
    if subresource == Some(Subresource::Status) {
        return Vec::new();
    }
    let mut errors = validate(new);
    let (spec, before) = (new.spec.clone().unwrap_or_default(), old.spec.clone().unwrap_or_default());
    if !same(&source(&spec), &source(&before)) {
        let why = "spec.persistentvolumesource is immutable after creation";
        errors.push(FieldError::forbidden(Path::new("spec").child("persistentvolumesource"), why));
    }
    crate::kinds::check::immutable(&mut errors, &Path::new("spec").child("volumeMode"), &spec.volume_mode, &before.volume_mode);
    errors
}

fn row(volume: &PersistentVolume, now: Timestamp) -> Vec<Value> {
    let spec = volume.spec.clone().unwrap_or_default();
    let status = volume.status.clone().unwrap_or_default();
    let claim =
        spec.claim_ref.as_ref().map_or_else(String::new, |claim| format!("{}/{}", str_of(&claim.namespace), str_of(&claim.name)));
    let is_deleting = volume.metadata.deletion_timestamp.is_some();
    let phase = if is_deleting { "Terminating".to_owned() } else { status.phase.unwrap_or_default() };
    let annotation = volume.metadata.annotations.as_ref().and_then(|annotations| annotations.get(BETA_CLASS)).cloned();
    vec![
        name(&volume.metadata),
        spec.capacity.as_ref().and_then(|amounts| amounts.get("storage")).map_or("0", |amount| amount.0.as_str()).into(),
        print_modes(spec.access_modes.as_deref().unwrap_or_default()).into(),
        spec.persistent_volume_reclaim_policy.clone().unwrap_or_default().into(),
        phase.into(),
        claim.into(),
        annotation.or(spec.storage_class_name).unwrap_or_default().into(),
        spec.volume_attributes_class_name.unwrap_or_else(|| UNSET.to_owned()).into(),
        status.reason.unwrap_or_default().into(),
        age(&volume.metadata, now),
        spec.volume_mode.unwrap_or_else(|| UNSET.to_owned()).into(),
    ]
}
