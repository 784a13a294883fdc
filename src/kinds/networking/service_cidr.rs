//! ServiceCIDR: a range of Service addresses.

use jiff::Timestamp;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use serde_json::Value;

use crate::api::field::{FieldError, Path};
use crate::api::kind::{Column, Subresource};
use crate::kinds::check::{cidr, immutable};
use crate::kinds::print::{age, name};
use crate::kinds::typed::Definition;

/// The kind.
pub static SERVICE_CIDR: Definition<ServiceCIDR> = Definition {
    subresources: &[Subresource::Status],
    columns: &[Column::NAME, Column::text("CIDRs"), Column::AGE],
    row: Some(row),
    validate: Some(validate),
    validate_update: Some(validate_update),
    ..Definition::cluster("io.k8s.api.networking.v1.ServiceCIDR", "networking.k8s.io/servicecidrs", "servicecidr")
};

fn validate(service: &ServiceCIDR) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let path = Path::new("spec").child("cidrs");
    let ranges = service.spec.as_ref().and_then(|spec| spec.cidrs.clone()).unwrap_or_default();
    if ranges.is_empty() {
        errors.push(FieldError::required(path.clone(), "at least one CIDR required"));
    }
    if ranges.len() > 2 {
        let why = "may only hold up to 2 values";
        errors.push(FieldError::invalid(path.clone(), ranges.clone(), why));
    }
    for (index, range) in ranges.iter().enumerate() {
        cidr(&mut errors, &path.index(index), range);
    }
    errors
}

fn validate_update(new: &ServiceCIDR, old: &ServiceCIDR, _subresource: Option<Subresource>) -> Vec<FieldError> {
    let mut errors = validate(new);
    let ranges = |service: &ServiceCIDR| service.spec.as_ref().and_then(|spec| spec.cidrs.clone());
    immutable(&mut errors, &Path::new("spec").child("cidrs"), &ranges(new), &ranges(old));
    errors
}

fn row(service: &ServiceCIDR, now: Timestamp) -> Vec<Value> {
    let ranges = service.spec.as_ref().and_then(|spec| spec.cidrs.clone()).unwrap_or_default();
    vec![name(&service.metadata), ranges.join(",").into(), age(&service.metadata, now)]
}
