//! Checks of requests and limits.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ResourceRequirements;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Typed;

use crate::api::field::{FieldError, Path};
use crate::api::names;
use crate::api::quantity::Quantity;
use crate::kinds::check::{Errors, rule};

const STANDARD: &[&str] = &["cpu", "memory", "ephemeral-storage"];

/// Whether a resource is one that pods may use beyond their request: cpu, memory, local storage.
fn is_overcommittable(name: &str) -> bool {
    is_native(name) && !name.starts_with("hugepages-")
}

/// Whether a resource is Kubernetes' own.
pub fn is_native(name: &str) -> bool {
    !name.contains('/') || name.starts_with("kubernetes.io/")
}

fn is_integer_only(name: &str) -> bool {
    !is_native(name) || name.starts_with("hugepages-")
}

/// Checks an amount that must not be negative; returns it if it is one.
pub fn amount(errors: &mut Errors, path: &Path, typed: &Typed) -> Option<Quantity> {
    match Quantity::try_from(typed) {
        Ok(quantity) => {
            if quantity.is_negative() {
                errors.push(FieldError::invalid(path.clone(), typed.0.as_str(), "must be greater than or equal to 0"));
            }
            Some(quantity)
        }
        Err(error) => {
            errors.push(FieldError::invalid(path.clone(), typed.0.as_str(), error.to_string()));
            None
        }
    }
}

/// Checks the name of a resource and, for whole resources, that the amount is whole.
pub fn named_amount(errors: &mut Errors, path: &Path, name: &str, typed: &Typed) -> Option<Quantity> {
    let quantity = amount(errors, path, typed)?;
    if is_integer_only(name) && !quantity.is_whole() {
        errors.push(FieldError::invalid(path.clone(), typed.0.as_str(), "must be an integer"));
    }
    Some(quantity)
}

fn container_resource_name(errors: &mut Errors, path: &Path, name: &str) {
    rule(errors, path, name, names::qualified_name);
    if !name.contains('/') && !STANDARD.contains(&name) && !name.starts_with("hugepages-") {
        errors.push(FieldError::invalid(path.clone(), name, "must be a standard resource type or fully qualified"));
        errors.push(FieldError::invalid(path.clone(), name, "must be a standard resource for containers"));
    }
}

/// Checks the requests and limits of a container.
pub fn requirements(errors: &mut Errors, path: &Path, resources: &ResourceRequirements) {
    let empty = BTreeMap::new();
    let limits = resources.limits.as_ref().unwrap_or(&empty);
    let requests = resources.requests.as_ref().unwrap_or(&empty);
    let limits_path = path.child("limits");
    let requests_path = path.child("requests");
    for (name, limit) in limits {
        let path = limits_path.key(name);
        container_resource_name(errors, &path, name);
        named_amount(errors, &path, name, limit);
    }
    for (name, request) in requests {
        let path = requests_path.key(name);
        container_resource_name(errors, &path, name);
        let Some(request) = named_amount(errors, &path, name, request) else { continue };
        match limits.get(name).map(Quantity::try_from) {
            Some(Ok(limit)) if is_overcommittable(name) && request > limit => {
                let why = format!("must be less than or equal to {name} limit of {limit}");
                errors.push(FieldError::invalid(requests_path.clone(), request.to_string(), why));
            }
            Some(Ok(limit)) if !is_overcommittable(name) && request != limit => {
                let why = format!("must be equal to {name} limit of {limit}");
                errors.push(FieldError::invalid(requests_path.clone(), request.to_string(), why));
            }
            None if !is_overcommittable(name) => {
                errors.push(FieldError::required(limits_path.clone(), "Limit must be set for non overcommitable resources"));
            }
            _ => {}
        }
    }
    let claims = resources.claims.iter().flatten().enumerate();
    for (index, claim) in claims.filter(|(_, claim)| claim.name.is_empty()) {
        errors.push(FieldError::required(path.child("claims").index(index).child("name"), claim.name.as_str()));
    }
}
