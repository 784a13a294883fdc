//! ResourceQuota: limits what a namespace may use.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ResourceQuota;
use serde_json::Value;

use super::pod_spec::defaults::quantities;
use super::pod_spec::resources;
use crate::api::field::{FieldError, Path};
use crate::api::kind::{Column, Subresource};
use crate::api::names;
use crate::kinds::check::{immutable, one_of, rule};
use crate::kinds::print::{age, name};
use crate::kinds::typed::Definition;

const SCOPES: &[&str] = &[
    "BestEffort",
    "CrossNamespacePodAffinity",
    "NotBestEffort",
    "NotTerminating",
    "PriorityClass",
    "Terminating",
    "VolumeAttributesClass",
];

/// The kind.
pub static RESOURCE_QUOTA: Definition<ResourceQuota> = Definition {
    subresources: &[Subresource::Status],
    columns: &[Column::NAME, Column::text("Request"), Column::text("Limit"), Column::AGE],
    row: Some(row),
    default: Some(|quota| {
        quantities(&mut quota.spec.get_or_insert_default().hard);
        quota.status.get_or_insert_default();
    }),
    validate: Some(validate),
    validate_update: Some(validate_update),
    generation: Some(false),
    ..Definition::namespaced("io.k8s.api.core.v1.ResourceQuota", "core/resourcequotas", "resourcequota").short(&["quota"])
};

fn validate(quota: &ResourceQuota) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let path = Path::new("spec");
    let spec = quota.spec.clone().unwrap_or_default();
    for (resource, amount) in spec.hard.iter().flatten() {
        let path = path.child("hard").key(resource);
        rule(&mut errors, &path, resource, names::qualified_name);
        resources::amount(&mut errors, &path, amount);
    }
    for scope in spec.scopes.iter().flatten() {
        one_of(&mut errors, &path.child("scopes"), scope, SCOPES);
    }
    errors
}

fn validate_update(new: &ResourceQuota, old: &ResourceQuota, subresource: Option<Subresource>) -> Vec<FieldError> {
    if subresource == Some(Subresource::Status) {
        return Vec::new();
    }
    let mut errors = validate(new);
    let scopes = |quota: &ResourceQuota| quota.spec.as_ref().and_then(|spec| spec.scopes.clone());
    immutable(&mut errors, &Path::new("spec").child("scopes"), &scopes(new), &scopes(old));
    errors
}

fn row(quota: &ResourceQuota, now: Timestamp) -> Vec<Value> {
    let status = quota.status.clone().unwrap_or_default();
    let used = status.used.unwrap_or_default();
    let (mut requests, mut limits) = (Vec::new(), Vec::new());
    for (resource, hard) in status.hard.iter().flatten() {
        let taken = used.get(resource).map_or("0", |amount| amount.0.as_str());
        let text = format!("{resource}: {taken}/{}", hard.0);
        if resource.starts_with("limits.") { limits.push(text) } else { requests.push(text) }
    }
    vec![name(&quota.metadata), requests.join(", ").into(), limits.join(", ").into(), age(&quota.metadata, now)]
}
