//! Checks of volumes.

use std::collections::HashSet;

use k8s_openapi::api::core::v1::{
    ClusterTrustBundleProjection, DownwardAPIVolumeFile, EmptyDirVolumeSource, HostPathVolumeSource, KeyToPath, NFSVolumeSource,
    PersistentVolumeClaimTemplate, PodCertificateProjection, ProjectedVolumeSource, Volume, VolumeProjection,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::Value;

use super::env::{VOLUME_FIELDS, field_ref, pull_policy, resource_field_ref};
use super::{Holder, iscsi, unsupported};
use crate::api::field::{FieldError, Path};
use crate::api::names;
use crate::api::quantity::Quantity;
use crate::kinds::certificates::signer_name;
use crate::kinds::check::{Errors, annotations, label_selector, labels, one_of, required, required_rule, str_of, unique};
use crate::kinds::core::persistent_volume_claim;

const TWO_TYPES: &str = "may not specify more than 1 volume type";
const MODE: &str = "must be a number between 0 and 0777 (octal), both inclusive";
const KEY_TYPES: &[&str] = &["ECDSAP256", "ECDSAP384", "ECDSAP521", "ED25519", "RSA3072", "RSA4096"];
/// The shortest and the longest life of a pod's certificate.
const CERTIFICATE_SECONDS: (i32, i32) = (3_600, 91 * 24 * 3_600);
const HOST_PATH_TYPES: &[&str] =
    &["", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"];

/// Checks volumes and that their names are unique.
pub fn volumes(errors: &mut Errors, path: &Path, volumes: &[Volume], holder: Holder) {
    let mut seen = HashSet::new();
    for (index, volume) in volumes.iter().enumerate() {
        let path = path.index(index);
        let name = path.child("name");
        required_rule(errors, &name, &volume.name, names::dns1123_label);
        if !volume.name.is_empty() {
            unique(errors, &name, &mut seen, &volume.name);
        }
        source(errors, &path, volume, holder);
    }
}

/// The names of the sources that a volume has.
fn source_names(volume: &Volume) -> Vec<String> {
    match serde_json::to_value(volume) {
        Ok(Value::Object(map)) => map.into_iter().map(|(name, _)| name).filter(|name| name != "name").collect(),
        _ => Vec::new(),
    }
}

fn source(errors: &mut Errors, path: &Path, volume: &Volume, holder: Holder) {
    match source_names(volume).as_slice() {
        [] => errors.push(FieldError::required(path.clone(), "must specify a volume type")),
        [_] => {}
        [_, more @ ..] => errors.extend(more.iter().map(|name| FieldError::forbidden(path.child(name), TWO_TYPES))),
    }
    if let Some(dir) = &volume.empty_dir {
        empty_dir(errors, &path.child("emptyDir"), dir);
    }
    if let Some(host_path) = &volume.host_path {
        self::host_path(errors, &path.child("hostPath"), host_path);
    }
    if let Some(secret) = &volume.secret {
        let path = path.child("secret");
        required(errors, &path.child("secretName"), str_of(&secret.secret_name));
        mode(errors, &path.child("defaultMode"), secret.default_mode);
        items(errors, &path.child("items"), secret.items.as_deref());
    }
    if let Some(config) = &volume.config_map {
        let path = path.child("configMap");
        required(errors, &path.child("name"), &config.name);
        mode(errors, &path.child("defaultMode"), config.default_mode);
        items(errors, &path.child("items"), config.items.as_deref());
    }
    if let Some(downward) = &volume.downward_api {
        let path = path.child("downwardAPI");
        mode(errors, &path.child("defaultMode"), downward.default_mode);
        for file in downward.items.iter().flatten() {
            downward_file(errors, &path, file);
        }
    }
    if let Some(projected) = &volume.projected {
        self::projected(errors, &path.child("projected"), projected);
    }
    if let Some(claim) = &volume.persistent_volume_claim {
        required(errors, &path.child("persistentVolumeClaim").child("claimName"), &claim.claim_name);
    }
    if let Some(ephemeral) = &volume.ephemeral {
        let path = path.child("ephemeral").child("volumeClaimTemplate");
        match &ephemeral.volume_claim_template {
            Some(template) => claim_template(errors, &path, template),
            None => errors.push(FieldError::required(path, "")),
        }
    }
    storage(errors, path, volume, holder);
    unsupported::source(errors, path, volume);
}

/// A template is given labels and annotations; whatever else its metadata say would be lost.
fn claim_template(errors: &mut Errors, path: &Path, template: &PersistentVolumeClaimTemplate) {
    let (meta, at) = (template.metadata.clone().unwrap_or_default(), path.child("metadata"));
    labels(errors, &at.child("labels"), meta.labels.as_ref());
    annotations(errors, &at.child("annotations"), meta.annotations.as_ref());
    let others = ObjectMeta { labels: None, annotations: None, ..meta };
    for (name, _) in serde_json::to_value(others).iter().flat_map(Value::as_object).flatten() {
        errors.push(FieldError::forbidden(at.child(name), "cannot be set"));
    }
    persistent_volume_claim::spec(errors, &path.child("spec"), &template.spec);
}

fn storage(errors: &mut Errors, path: &Path, volume: &Volume, holder: Holder) {
    if let Some(nfs) = &volume.nfs {
        self::nfs(errors, &path.child("nfs"), nfs);
    }
    if let Some(csi) = &volume.csi {
        required(errors, &path.child("csi").child("driver"), &csi.driver);
    }
    if let Some(image) = &volume.image {
        let path = path.child("image");
        if holder == Holder::Pod {
            required(errors, &path.child("reference"), str_of(&image.reference));
        }
        pull_policy(errors, &path.child("pullPolicy"), str_of(&image.pull_policy));
    }
    if let Some(source) = &volume.iscsi {
        iscsi::of_pod(errors, &path.child("iscsi"), source);
    }
}

fn empty_dir(errors: &mut Errors, path: &Path, dir: &EmptyDirVolumeSource) {
    let limit = dir.size_limit.as_ref().map(Quantity::try_from);
    if limit.is_some_and(|limit| limit.is_ok_and(|limit| limit.is_negative())) {
        errors.push(FieldError::forbidden(path.child("sizeLimit"), "SizeLimit field must be a valid resource quantity"));
    }
}

/// Checks a path on the host: of a pod, or of a persistent volume.
pub fn host_path(errors: &mut Errors, path: &Path, source: &HostPathVolumeSource) {
    let at = path.child("path");
    if required(errors, &at, &source.path) {
        no_back_steps(errors, &at, &source.path);
    }
    if let Some(kind) = &source.type_ {
        one_of(errors, &path.child("type"), kind, HOST_PATH_TYPES);
    }
}

/// Checks a network file system: of a pod, or of a persistent volume.
pub fn nfs(errors: &mut Errors, path: &Path, nfs: &NFSVolumeSource) {
    required(errors, &path.child("server"), &nfs.server);
    required(errors, &path.child("path"), &nfs.path);
    if !nfs.path.starts_with('/') {
        errors.push(FieldError::invalid(path.child("path"), nfs.path.as_str(), "must be an absolute path"));
    }
}

fn mode(errors: &mut Errors, path: &Path, mode: Option<i32>) {
    if let Some(mode) = mode.filter(|mode| !(0..=0o777).contains(mode)) {
        errors.push(FieldError::invalid(path.clone(), mode, MODE));
    }
}

fn items(errors: &mut Errors, path: &Path, items: Option<&[KeyToPath]>) {
    for (index, item) in items.unwrap_or_default().iter().enumerate() {
        let path = path.index(index);
        required(errors, &path.child("key"), &item.key);
        file_path(errors, &path.child("path"), &item.path);
        mode(errors, &path.child("mode"), item.mode);
    }
}

fn file_path(errors: &mut Errors, path: &Path, file: &str) {
    if required(errors, path, file) {
        local_path(errors, path, file);
        if file.starts_with("..") && !file.starts_with("../") {
            errors.push(FieldError::invalid(path.clone(), file, "must not start with '..'"));
        }
    }
}

fn no_back_steps(errors: &mut Errors, path: &Path, text: &str) {
    if text.split('/').any(|part| part == "..") {
        errors.push(FieldError::invalid(path.clone(), text, "must not contain '..'"));
    }
}

/// A relative path that stays below where it starts.
pub(super) fn local_path(errors: &mut Errors, path: &Path, text: &str) {
    if text.starts_with('/') {
        errors.push(FieldError::invalid(path.clone(), text, "must be a relative path"));
    }
    no_back_steps(errors, path, text);
}

fn downward_file(errors: &mut Errors, path: &Path, file: &DownwardAPIVolumeFile) {
    file_path(errors, &path.child("path"), &file.path);
    match (&file.field_ref, &file.resource_field_ref) {
        (Some(field), other) => {
            field_ref(errors, &path.child("fieldRef"), field, VOLUME_FIELDS);
            if other.is_some() {
                let why = "fieldRef and resourceFieldRef can not be specified simultaneously";
                errors.push(FieldError::invalid(path.clone(), "resource", why));
            }
        }
        (None, Some(field)) => resource_field_ref(errors, &path.child("resourceFieldRef"), field, true),
        (None, None) => errors.push(FieldError::required(path.clone(), "one of fieldRef and resourceFieldRef is required")),
    }
    mode(errors, &path.child("mode"), file.mode);
}

fn projected(errors: &mut Errors, path: &Path, projected: &ProjectedVolumeSource) {
    mode(errors, &path.child("defaultMode"), projected.default_mode);
    let mut paths = HashSet::new();
    for (index, source) in projected.sources.iter().flatten().enumerate() {
        let path = path.child("sources").index(index);
        let given = [
            source.secret.is_some(),
            source.config_map.is_some(),
            source.downward_api.is_some(),
            source.service_account_token.is_some(),
            source.cluster_trust_bundle.is_some(),
            source.pod_certificate.is_some(),
        ];
        match given.into_iter().filter(|is_given| *is_given).count() {
            1 => {}
            0 => errors.push(FieldError::required(path.clone(), "must specify a volume projection type")),
            _ => errors.push(FieldError::forbidden(path.clone(), TWO_TYPES)),
        }
        for file in projection(errors, &path, source) {
            if !paths.insert(file) {
                errors.push(FieldError::invalid(path.clone(), file, "conflicting duplicate paths"));
            }
        }
    }
}

/// Checks one source of a projected volume; returns the paths that it says it writes.
fn projection<'a>(errors: &mut Errors, path: &Path, source: &'a VolumeProjection) -> Vec<&'a str> {
    let mut paths = Vec::new();
    for (name, map, keys) in [
        ("secret", source.secret.as_ref().map(|map| &map.name), source.secret.as_ref().and_then(|map| map.items.as_deref())),
        (
            "configMap",
            source.config_map.as_ref().map(|map| &map.name),
            source.config_map.as_ref().and_then(|map| map.items.as_deref()),
        ),
    ] {
        if let Some(map) = map {
            required(errors, &path.child(name).child("name"), map);
            items(errors, &path.child(name).child("items"), keys);
            paths.extend(keys.unwrap_or_default().iter().map(|item| item.path.as_str()));
        }
    }
    for file in source.downward_api.iter().flat_map(|downward| downward.items.iter().flatten()) {
        downward_file(errors, &path.child("downwardAPI"), file);
        paths.push(&file.path);
    }
    if let Some(token) = &source.service_account_token {
        let path = path.child("serviceAccountToken");
        let at = path.child("expirationSeconds");
        match token.expiration_seconds {
            Some(seconds) if seconds < 600 => {
                errors.push(FieldError::invalid(at, seconds, "may not specify a duration less than 10 minutes"));
            }
            Some(seconds) if seconds > 1 << 32 => {
                errors.push(FieldError::invalid(at, seconds, "may not specify a duration larger than 2^32 seconds"));
            }
            _ => {}
        }
        file_path(errors, &path.child("path"), &token.path);
        paths.push(&token.path);
    }
    if let Some(bundle) = &source.cluster_trust_bundle {
        trust_bundle(errors, &path.child("clusterTrustBundle"), bundle);
        paths.push(&bundle.path);
    }
    if let Some(certificate) = &source.pod_certificate {
        pod_certificate(errors, &path.child("podCertificate"), certificate);
        let files = [&certificate.credential_bundle_path, &certificate.key_path, &certificate.certificate_chain_path];
        paths.extend(files.into_iter().flatten().map(String::as_str).filter(|file| !file.is_empty()));
    }
    paths
}

/// A key and the certificate for it, as upstream's `validatePodCertificateProjection`.
fn pod_certificate(errors: &mut Errors, path: &Path, certificate: &PodCertificateProjection) {
    signer_name(errors, &path.child("signerName"), &certificate.signer_name);
    one_of(errors, &path.child("keyType"), &certificate.key_type, KEY_TYPES);
    let at = path.child("maxExpirationSeconds");
    match certificate.max_expiration_seconds {
        Some(seconds) if seconds < CERTIFICATE_SECONDS.0 => {
            let why = format!("if provided, maxExpirationSeconds must be >= {}", CERTIFICATE_SECONDS.0);
            errors.push(FieldError::invalid(at, seconds, why));
        }
        Some(seconds) if seconds > CERTIFICATE_SECONDS.1 => {
            let why = format!("if provided, maxExpirationSeconds must be <= {}", CERTIFICATE_SECONDS.1);
            errors.push(FieldError::invalid(at, seconds, why));
        }
        _ => {}
    }
    let files = [
        ("credentialBundlePath", &certificate.credential_bundle_path),
        ("keyPath", &certificate.key_path),
        ("certificateChainPath", &certificate.certificate_chain_path),
    ];
    let given = files.into_iter().filter_map(|(name, file)| Some((name, file.as_ref()?))).filter(|(_, file)| !file.is_empty());
    let given: Vec<_> = given.collect();
    if given.is_empty() {
        let why = "specify at least one of credentialBundlePath, keyPath, and certificateChainPath";
        errors.push(FieldError::required(path.clone(), why));
    }
    given.into_iter().for_each(|(name, file)| file_path(errors, &path.child(name), file));
}

/// A bundle by its name, or those of a signer that labels select.
fn trust_bundle(errors: &mut Errors, path: &Path, bundle: &ClusterTrustBundleProjection) {
    match (&bundle.name, &bundle.signer_name) {
        (None, None) => errors.push(FieldError::required(path.clone(), "either name or signerName must be specified")),
        (Some(_), Some(_)) => {
            errors.push(FieldError::invalid(path.clone(), Value::Null, "only one of name and signerName may be used"))
        }
        (Some(name), None) => {
            required(errors, &path.child("name"), name);
            if bundle.label_selector.is_some() {
                errors.push(FieldError::invalid(
                    path.child("labelSelector"),
                    Value::Null,
                    "labelSelector must be unset if signerName is not set",
                ));
            }
        }
        (None, Some(signer)) => {
            required(errors, &path.child("signerName"), signer);
            if let Some(selector) = &bundle.label_selector {
                label_selector(errors, &path.child("labelSelector"), selector);
            }
        }
    }
    file_path(errors, &path.child("path"), &bundle.path);
}
