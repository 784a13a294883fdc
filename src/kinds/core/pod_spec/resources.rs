//! Checks of requests and limits.

use std::collections::{BTreeMap, HashSet};

use k8s_openapi::api::core::v1::{Container, PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Typed;

use crate::api::field::{FieldError, Path};
use crate::api::names;
use crate::api::quantity::Quantity;
use crate::kinds::check::{Errors, required_rule, rule, str_of, unique};

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
    let has = |kind: fn(&str) -> bool| limits.keys().chain(requests.keys()).any(|name| kind(name));
    if has(|name| name.starts_with("hugepages-")) && !has(|name| matches!(name, "cpu" | "memory")) {
        errors.push(FieldError::forbidden(path.clone(), "HugePages require cpu or memory"));
    }
}

/// Checks the claims of devices that a container uses: each is one of its pod's.
pub fn claims(errors: &mut Errors, path: &Path, resources: &ResourceRequirements, spec: &PodSpec) {
    let mut seen = HashSet::new();
    for (index, claim) in resources.claims.iter().flatten().enumerate() {
        let path = path.child("claims").index(index);
        if claim.name.is_empty() {
            errors.push(FieldError::required(path.child("name"), ""));
        } else if !spec.resource_claims.iter().flatten().any(|known| known.name == claim.name) {
            errors.push(FieldError::not_found(path.child("name"), claim.name.as_str()));
        }
        if !seen.insert((&claim.name, str_of(&claim.request))) {
            errors.push(FieldError::duplicate(path, claim.name.as_str()));
        }
    }
}

/// Checks the claims of devices of a pod (upstream `validatePodResourceClaims`).
pub fn claims_of_pod(errors: &mut Errors, path: &Path, spec: &PodSpec) {
    let mut seen = HashSet::new();
    for (index, claim) in spec.resource_claims.iter().flatten().enumerate() {
        let path = path.index(index);
        required_rule(errors, &path.child("name"), &claim.name, names::dns1123_label);
        unique(errors, &path.child("name"), &mut seen, &claim.name);
        let (name, template) = (str_of(&claim.resource_claim_name), str_of(&claim.resource_claim_template_name));
        let wrong = match (name.is_empty(), template.is_empty()) {
            (true, true) => "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`",
            (false, false) => "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified",
            _ => continue,
        };
        errors.push(FieldError::invalid(path, claim.name.as_str(), wrong));
    }
}

/// Checks the requests and limits of a whole pod against those of its containers (upstream `validatePodResources`).
pub fn of_pod(errors: &mut Errors, path: &Path, resources: &ResourceRequirements, spec: &PodSpec) {
    const OF_PODS: &[&str] = &["cpu", "memory"];
    requirements(errors, path, resources);
    if resources.claims.as_ref().is_some_and(|claims| !claims.is_empty()) {
        errors.push(FieldError::forbidden(path.child("claims"), "claims may not be set for Resources at pod-level"));
    }
    for (list, amounts) in [("limits", &resources.limits), ("requests", &resources.requests)] {
        for name in amounts.iter().flatten().map(|(name, _)| name).filter(|name| !is_of_pods(name)) {
            errors.push(FieldError::not_supported(path.child(list).key(name), name.as_str(), OF_PODS));
        }
    }
    let parse = |typed: &Typed| Quantity::try_from(typed).ok();
    for (name, requested) in resources.requests.iter().flatten() {
        let of = |container: &Container| parse(container.resources.as_ref()?.requests.as_ref()?.get(name)?);
        let sidecars = spec.init_containers.iter().flatten().filter(|container| super::is_sidecar(container));
        let sum: Quantity = spec.containers.iter().chain(sidecars).filter_map(of).sum();
        if parse(requested).is_some_and(|requested| requested < sum) {
            let why = format!("must be greater than or equal to aggregate container requests of {sum}");
            errors.push(FieldError::invalid(path.child("requests").key(name), requested.0.as_str(), why));
        }
    }
    for (index, container) in spec.containers.iter().enumerate() {
        let limits = container.resources.as_ref().and_then(|resources| resources.limits.as_ref());
        for (name, limit) in limits.into_iter().flatten() {
            let whole = resources.limits.as_ref().and_then(|limits| limits.get(name)).and_then(parse);
            if let (Some(whole), Some(own)) = (whole, parse(limit))
                && own > whole
            {
                let path = Path::new("spec").child("containers").index(index).child("resources").child("limits").key(name);
                let why = format!("must be less than or equal to pod limits of {whole}");
                errors.push(FieldError::invalid(path, limit.0.as_str(), why));
            }
        }
    }
}

fn is_of_pods(name: &str) -> bool {
    matches!(name, "cpu" | "memory") || name.starts_with("hugepages-")
}
