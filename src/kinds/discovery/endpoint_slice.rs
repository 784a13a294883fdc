//! EndpointSlice: some of the addresses behind a Service.

use std::collections::HashSet;

use jiff::Timestamp;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use serde_json::Value;

use crate::api::field::{FieldError, Path};
use crate::api::kind::{Column, Subresource};
use crate::api::names;
use crate::kinds::check::{Errors, immutable, ip, port, required_one_of, rule, str_of};
use crate::kinds::core::pod_spec::defaults::{text, value};
use crate::kinds::print::{UNSET, age, name};
use crate::kinds::typed::Definition;

const ENDPOINTS_MAX: usize = 1_000;
const ADDRESSES_MAX: usize = 100;
/// How many ports and addresses a row shows.
const SHOWN: usize = 3;

/// The kind.
pub static ENDPOINT_SLICE: Definition<EndpointSlice> = Definition {
    columns: &[Column::NAME, Column::text("AddressType"), Column::text("Ports"), Column::text("Endpoints"), Column::AGE],
    row: Some(row),
    default: Some(default),
    validate: Some(validate),
    validate_update: Some(validate_update),
    generation: Some(true),
    ..Definition::namespaced("io.k8s.api.discovery.v1.EndpointSlice", "discovery.k8s.io/endpointslices", "endpointslice")
};

fn default(slice: &mut EndpointSlice) {
    for port in slice.ports.iter_mut().flatten() {
        value(&mut port.name, String::new());
        text(&mut port.protocol, "TCP");
    }
}

fn validate(slice: &EndpointSlice) -> Vec<FieldError> {
    let mut errors = Vec::new();
    required_one_of(&mut errors, &Path::new("addressType"), &slice.address_type, &["FQDN", "IPv4", "IPv6"]);
    let endpoints = slice.endpoints.as_deref().unwrap_or_default();
    let path = Path::new("endpoints");
    if endpoints.len() > ENDPOINTS_MAX {
        errors.push(FieldError::too_many(path.clone(), endpoints.len(), ENDPOINTS_MAX));
    }
    for (index, endpoint) in endpoints.iter().enumerate() {
        self::endpoint(&mut errors, &path.index(index), endpoint, &slice.address_type);
    }
    let mut seen = HashSet::new();
    for (index, each) in slice.ports.iter().flatten().enumerate() {
        let path = Path::new("ports").index(index);
        let name = str_of(&each.name);
        if !name.is_empty() {
            rule(&mut errors, &path.child("name"), name, names::dns1123_label);
        }
        if !seen.insert(name) {
            errors.push(FieldError::duplicate(path.child("name"), name));
        }
        required_one_of(&mut errors, &path.child("protocol"), str_of(&each.protocol), &["SCTP", "TCP", "UDP"]);
        if let Some(number) = each.port {
            port(&mut errors, &path.child("port"), i64::from(number));
        }
    }
    errors
}

fn endpoint(errors: &mut Errors, path: &Path, endpoint: &Endpoint, kind: &str) {
    let at = path.child("addresses");
    if endpoint.addresses.is_empty() {
        errors.push(FieldError::required(at.clone(), "must contain at least 1 address"));
    }
    if endpoint.addresses.len() > ADDRESSES_MAX {
        errors.push(FieldError::too_many(at.clone(), endpoint.addresses.len(), ADDRESSES_MAX));
    }
    for (index, address) in endpoint.addresses.iter().enumerate() {
        let at = at.index(index);
        match (kind, address.parse::<std::net::IpAddr>()) {
            ("IPv4", Ok(found)) if !found.is_ipv4() => {
                errors.push(FieldError::invalid(at, address.as_str(), "must be an IPv4 address"));
            }
            ("IPv6", Ok(found)) if !found.is_ipv6() => {
                errors.push(FieldError::invalid(at, address.as_str(), "must be an IPv6 address"));
            }
            ("IPv4" | "IPv6", Err(_)) => ip(errors, &at, address),
            ("FQDN", _) => rule(errors, &at, address, names::dns1123_subdomain),
            _ => {}
        }
    }
    if let Some(node) = &endpoint.node_name {
        rule(errors, &path.child("nodeName"), node, names::dns1123_subdomain);
    }
    if let Some(hostname) = &endpoint.hostname {
        rule(errors, &path.child("hostname"), hostname, names::dns1123_label);
    }
}

fn validate_update(new: &EndpointSlice, old: &EndpointSlice, _subresource: Option<Subresource>) -> Vec<FieldError> {
    let mut errors = validate(new);
    immutable(&mut errors, &Path::new("addressType"), &new.address_type, &old.address_type);
    errors
}

fn shortened(texts: &[String]) -> String {
    match texts.len() {
        0 => UNSET.to_owned(),
        count if count > SHOWN => format!("{} + {} more...", texts[..SHOWN].join(","), count - SHOWN),
        _ => texts.join(","),
    }
}

fn row(slice: &EndpointSlice, now: Timestamp) -> Vec<Value> {
    let ports: Vec<String> =
        slice.ports.iter().flatten().map(|port| port.port.map_or("*".to_owned(), |number| number.to_string())).collect();
    let addresses: Vec<String> =
        slice.endpoints.iter().flatten().flat_map(|endpoint| endpoint.addresses.iter().cloned()).collect();
    vec![
        name(&slice.metadata),
        slice.address_type.clone().into(),
        shortened(&ports).into(),
        shortened(&addresses).into(),
        age(&slice.metadata, now),
    ]
}
