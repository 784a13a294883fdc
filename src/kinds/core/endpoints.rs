//! Endpoints: the addresses behind a Service, in the oldest form.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort, EndpointSubset, Endpoints};
use serde_json::Value;

use super::pod_spec::defaults::text;
use crate::api::field::{FieldError, Path};
use crate::api::kind::Column;
use crate::api::names;
use crate::kinds::check::{Errors, ip, port, required_one_of, rule, str_of};
use crate::kinds::print::{NONE, age, name};
use crate::kinds::typed::Definition;

/// How many addresses a row shows.
const SHOWN: usize = 3;

/// The kind.
pub static ENDPOINTS: Definition<Endpoints> = Definition {
    columns: &[Column::NAME, Column::text("Endpoints"), Column::AGE],
    row: Some(row),
    default: Some(default),
    validate: Some(validate),
    warnings: Some(|_| vec!["v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice".to_owned()]),
    ..Definition::namespaced("io.k8s.api.core.v1.Endpoints", "core/endpoints", "endpoints").short(&["ep"])
};

fn default(endpoints: &mut Endpoints) {
    for port in endpoints.subsets.iter_mut().flatten().flat_map(|subset| subset.ports.iter_mut().flatten()) {
        text(&mut port.protocol, "TCP");
    }
}

fn validate(endpoints: &Endpoints) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (index, subset) in endpoints.subsets.iter().flatten().enumerate() {
        self::subset(&mut errors, &Path::new("subsets").index(index), subset);
    }
    errors
}

fn subset(errors: &mut Errors, path: &Path, subset: &EndpointSubset) {
    let ready = subset.addresses.as_deref().unwrap_or_default();
    let other = subset.not_ready_addresses.as_deref().unwrap_or_default();
    if ready.is_empty() && other.is_empty() {
        errors.push(FieldError::required(path.clone(), "must specify `addresses` or `notReadyAddresses`"));
    }
    for (field, addresses) in [("addresses", ready), ("notReadyAddresses", other)] {
        for (index, address) in addresses.iter().enumerate() {
            self::address(errors, &path.child(field).index(index), address);
        }
    }
    let ports = subset.ports.as_deref().unwrap_or_default();
    for (index, each) in ports.iter().enumerate() {
        self::endpoint_port(errors, &path.child("ports").index(index), each, ports.len() > 1);
    }
}

fn address(errors: &mut Errors, path: &Path, address: &EndpointAddress) {
    ip(errors, &path.child("ip"), &address.ip);
    if let Some(hostname) = address.hostname.as_deref().filter(|hostname| !hostname.is_empty()) {
        rule(errors, &path.child("hostname"), hostname, names::dns1123_label);
    }
    if let Some(node) = &address.node_name {
        rule(errors, &path.child("nodeName"), node, names::dns1123_subdomain);
    }
}

fn endpoint_port(errors: &mut Errors, path: &Path, each: &EndpointPort, needs_name: bool) {
    let name = str_of(&each.name);
    if needs_name && name.is_empty() {
        errors.push(FieldError::required(path.child("name"), ""));
    } else if !name.is_empty() {
        rule(errors, &path.child("name"), name, names::dns1123_label);
    }
    port(errors, &path.child("port"), i64::from(each.port));
    required_one_of(errors, &path.child("protocol"), str_of(&each.protocol), &["SCTP", "TCP", "UDP"]);
}

fn join(ip: &str, port: i32) -> String {
    if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") }
}

fn row(endpoints: &Endpoints, now: Timestamp) -> Vec<Value> {
    let mut texts = Vec::new();
    for subset in endpoints.subsets.iter().flatten() {
        let addresses = subset.addresses.as_deref().unwrap_or_default();
        let ports = subset.ports.as_deref().unwrap_or_default();
        if ports.is_empty() {
            texts.extend(addresses.iter().map(|address| address.ip.clone()));
        }
        for port in ports {
            texts.extend(addresses.iter().map(|address| join(&address.ip, port.port)));
        }
    }
    let text = match texts.len() {
        0 => NONE.to_owned(),
        count if count > SHOWN => format!("{} + {} more...", texts[..SHOWN].join(","), count - SHOWN),
        _ => texts.join(","),
    };
    vec![name(&endpoints.metadata), text.into(), age(&endpoints.metadata, now)]
}
