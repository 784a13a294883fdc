//! APIService: who serves a group and version.

use jiff::Timestamp;
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::APIService;
use serde_json::Value;

use crate::api::field::{FieldError, Path};
use crate::api::kind::{Column, Subresource};
use crate::kinds::check::{required, str_of};
use crate::kinds::core::pod_spec::defaults::value;
use crate::kinds::print::{age, name};
use crate::kinds::typed::Definition;

/// The kind.
pub static API_SERVICE: Definition<APIService> = Definition {
    subresources: &[Subresource::Status],
    columns: &[Column::NAME, Column::text("Service"), Column::text("Available"), Column::AGE],
    row: Some(row),
    default: Some(|service| {
        if let Some(service) = service.spec.as_mut().and_then(|spec| spec.service.as_mut()) {
            value(&mut service.port, 443);
        }
    }),
    validate: Some(validate),
    generation: Some(false),
    ..Definition::cluster(
        "io.k8s.kube-aggregator.pkg.apis.apiregistration.v1.APIService",
        "apiregistration.k8s.io/apiservices",
        "apiservice",
    )
    .in_api_extensions()
};

fn validate(service: &APIService) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let path = Path::new("spec");
    let spec = service.spec.clone().unwrap_or_default();
    let name = service.metadata.name.as_deref().unwrap_or("");
    let (group, version) = (str_of(&spec.group), str_of(&spec.version));
    let expected = format!("{version}.{group}");
    if name != expected.trim_end_matches('.') && name != expected {
        let why = format!("must be `spec.version+\".\"+spec.group`: {expected:?}");
        errors.push(FieldError::invalid(Path::new("metadata").child("name"), name, why));
    }
    if group.is_empty() && version != "v1" {
        errors.push(FieldError::required(path.child("group"), "only v1 may have an empty group and it better be legacy kube"));
    }
    required(&mut errors, &path.child("version"), version);
    for (field, number, max) in
        [("groupPriorityMinimum", spec.group_priority_minimum, 20_000), ("versionPriority", spec.version_priority, 1_000)]
    {
        if number <= 0 || number > max {
            let why = format!("must be positive and less than {max}");
            errors.push(FieldError::invalid(path.child(field), number, why));
        }
    }
    match &spec.service {
        None => {
            let has_bundle = spec.ca_bundle.as_ref().is_some_and(|bundle| !bundle.0.is_empty());
            if has_bundle {
                let why = "local APIServices may not have a caBundle";
                errors.push(FieldError::invalid(path.child("caBundle"), "<redacted>", why));
            }
            if spec.insecure_skip_tls_verify == Some(true) {
                let why = "local APIServices may not have insecureSkipTLSVerify";
                errors.push(FieldError::invalid(path.child("insecureSkipTLSVerify"), true, why));
            }
        }
        Some(service) => {
            required(&mut errors, &path.child("service").child("namespace"), str_of(&service.namespace));
            required(&mut errors, &path.child("service").child("name"), str_of(&service.name));
        }
    }
    errors
}

fn row(service: &APIService, now: Timestamp) -> Vec<Value> {
    let spec = service.spec.clone().unwrap_or_default();
    let target = spec
        .service
        .map_or_else(|| "Local".to_owned(), |service| format!("{}/{}", str_of(&service.namespace), str_of(&service.name)));
    let conditions = service.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let available = conditions.into_iter().find(|condition| condition.type_ == "Available");
    let available = available.map_or_else(
        || "Unknown".to_owned(),
        |condition| match (condition.status.as_str(), str_of(&condition.reason)) {
            ("True", _) | (_, "") => condition.status.clone(),
            (status, reason) => format!("{status} ({reason})"),
        },
    );
    vec![name(&service.metadata), target.into(), available.into(), age(&service.metadata, now)]
}
