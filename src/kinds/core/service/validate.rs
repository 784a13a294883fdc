//! Checks of Services (upstream `ValidateService`).

use std::collections::HashSet;

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use serde_json::json;

use super::is_external;
use crate::api::field::{FieldError, Path};
use crate::api::kind::Subresource;
use crate::api::names;
use crate::kinds::check::{
    Errors, cidr, ip, labels, one_of, port, port_or_name, required, required_one_of, required_rule, rule, str_of, unique,
};

/// Checks a new Service.
pub fn create(service: &Service) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let path = Path::new("spec");
    let spec = service.spec.clone().unwrap_or_default();
    by_type(&mut errors, &path, &spec);
    let ports = spec.ports.as_deref().unwrap_or_default();
    let is_headless = str_of(&spec.cluster_ip) == "None";
    if ports.is_empty() && !is_headless && str_of(&spec.type_) != "ExternalName" {
        errors.push(FieldError::required(path.child("ports"), ""));
    }
    self::ports(&mut errors, &path.child("ports"), ports, is_headless);
    labels(&mut errors, &path.child("selector"), spec.selector.as_ref());
    affinity(&mut errors, &path, &spec);
    addresses(&mut errors, &path, &spec);
    node_ports(&mut errors, &path.child("ports"), &spec);
    traffic(&mut errors, &path, &spec);
    errors
}

fn by_type(errors: &mut Errors, path: &Path, spec: &ServiceSpec) {
    let kind = str_of(&spec.type_);
    required_one_of(errors, &path.child("type"), kind, &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"]);
    let is_headless = str_of(&spec.cluster_ip) == "None";
    match kind {
        "LoadBalancer" | "NodePort" if is_headless => {
            let why = format!("may not be set to 'None' for {kind} services");
            errors.push(FieldError::invalid(path.child("clusterIPs").index(0), "None", why));
        }
        "ExternalName" => {
            if !str_of(&spec.cluster_ip).is_empty() {
                errors.push(FieldError::forbidden(path.child("clusterIPs"), "may not be set when `type` is 'ExternalName'"));
            }
            let name = str_of(&spec.external_name).trim_end_matches('.');
            required_rule(errors, &path.child("externalName"), name, names::dns1123_subdomain);
        }
        _ => {}
    }
}

fn ports(errors: &mut Errors, path: &Path, ports: &[ServicePort], is_headless: bool) {
    let mut seen = HashSet::new();
    let mut numbers = HashSet::new();
    for (index, each) in ports.iter().enumerate() {
        let path = path.index(index);
        let name = str_of(&each.name);
        if ports.len() > 1 && name.is_empty() {
            errors.push(FieldError::required(path.child("name"), ""));
        } else if !name.is_empty() {
            rule(errors, &path.child("name"), name, names::dns1123_label);
            unique(errors, &path.child("name"), &mut seen, name);
        }
        port(errors, &path.child("port"), i64::from(each.port));
        required_one_of(errors, &path.child("protocol"), str_of(&each.protocol), &["SCTP", "TCP", "UDP"]);
        if let Some(target) = &each.target_port {
            port_or_name(errors, &path.child("targetPort"), target);
        }
        if let Some(protocol) = each.app_protocol.as_deref() {
            rule(errors, &path.child("appProtocol"), protocol, names::qualified_name);
        }
        if !numbers.insert((each.port, str_of(&each.protocol))) && !is_headless {
            errors.push(FieldError::duplicate(path, json!({"port": each.port, "protocol": str_of(&each.protocol)})));
        }
    }
}

fn affinity(errors: &mut Errors, path: &Path, spec: &ServiceSpec) {
    let affinity = str_of(&spec.session_affinity);
    required_one_of(errors, &path.child("sessionAffinity"), affinity, &["ClientIP", "None"]);
    let at = path.child("sessionAffinityConfig");
    match (affinity, &spec.session_affinity_config) {
        ("None", Some(_)) => errors.push(FieldError::forbidden(at, "must not be set when session affinity is None")),
        ("ClientIP", None) => errors.push(FieldError::required(at, "when session affinity type is ClientIP")),
        ("ClientIP", Some(config)) => {
            let seconds = config.client_ip.as_ref().and_then(|client| client.timeout_seconds).unwrap_or(0);
            if !(1..=86_400).contains(&seconds) {
                let why = "must be greater than 0 and less than 86400";
                errors.push(FieldError::invalid(at.child("clientIP").child("timeoutSeconds"), seconds, why));
            }
        }
        _ => {}
    }
}

fn addresses(errors: &mut Errors, path: &Path, spec: &ServiceSpec) {
    let given = spec.cluster_ips.as_deref().unwrap_or_default();
    for (index, address) in given.iter().enumerate() {
        let path = path.child("clusterIPs").index(index);
        if address == "None" {
            if given.len() > 1 {
                let why = "'None' must be the first and only value";
                errors.push(FieldError::invalid(path, address.as_str(), why));
            }
        } else {
            ip(errors, &path, address);
        }
    }
    let first = given.first().map_or("", String::as_str);
    if !given.is_empty() && str_of(&spec.cluster_ip) != first {
        errors.push(FieldError::invalid(path.child("clusterIPs"), json!(given), "first value must match `clusterIP`"));
    }
    if given.len() > 2 {
        let why = "may only hold up to 2 values";
        errors.push(FieldError::invalid(path.child("clusterIPs"), json!(given), why));
    }
    for (index, address) in spec.external_ips.iter().flatten().enumerate() {
        ip(errors, &path.child("externalIPs").index(index), address);
    }
    for (index, family) in spec.ip_families.iter().flatten().enumerate() {
        one_of(errors, &path.child("ipFamilies").index(index), family, &["IPv4", "IPv6"]);
    }
    if let Some(policy) = &spec.ip_family_policy {
        one_of(errors, &path.child("ipFamilyPolicy"), policy, &["PreferDualStack", "RequireDualStack", "SingleStack"]);
    }
    let at = path.child("loadBalancerSourceRanges");
    for (index, range) in spec.load_balancer_source_ranges.iter().flatten().enumerate() {
        cidr(errors, &at.index(index), range.trim());
    }
    if spec.load_balancer_source_ranges.as_ref().is_some_and(|ranges| !ranges.is_empty()) && str_of(&spec.type_) != "LoadBalancer"
    {
        errors.push(FieldError::forbidden(at, "may only be used when `type` is 'LoadBalancer'"));
    }
    if spec.load_balancer_class.is_some() && str_of(&spec.type_) != "LoadBalancer" {
        errors.push(FieldError::forbidden(path.child("loadBalancerClass"), "may only be used when `type` is 'LoadBalancer'"));
    }
}

fn node_ports(errors: &mut Errors, path: &Path, spec: &ServiceSpec) {
    let mut seen = HashSet::new();
    for (index, each) in spec.ports.iter().flatten().enumerate() {
        let Some(number) = each.node_port.filter(|number| *number != 0) else { continue };
        let path = path.index(index).child("nodePort");
        if matches!(str_of(&spec.type_), "ClusterIP" | "ExternalName") {
            let why = format!("may not be used when `type` is '{}'", str_of(&spec.type_));
            errors.push(FieldError::forbidden(path, why));
        } else if !seen.insert((number, str_of(&each.protocol))) {
            errors.push(FieldError::duplicate(path, number));
        }
    }
}

fn traffic(errors: &mut Errors, path: &Path, spec: &ServiceSpec) {
    let at = path.child("externalTrafficPolicy");
    match (&spec.external_traffic_policy, is_external(spec)) {
        (Some(policy), true) => one_of(errors, &at, policy, &["Cluster", "Local"]),
        (Some(policy), false) if !policy.is_empty() => {
            let why = "may only be set for externally-accessible services";
            errors.push(FieldError::invalid(at, policy.as_str(), why));
        }
        _ => {}
    }
    if let Some(policy) = &spec.internal_traffic_policy {
        one_of(errors, &path.child("internalTrafficPolicy"), policy, &["Cluster", "Local"]);
    } else if matches!(str_of(&spec.type_), "ClusterIP" | "LoadBalancer" | "NodePort") {
        required(errors, &path.child("internalTrafficPolicy"), "");
    }
    if let Some(distribution) = &spec.traffic_distribution {
        let supported = ["PreferClose", "PreferSameNode", "PreferSameZone"];
        one_of(errors, &path.child("trafficDistribution"), distribution, &supported);
    }
}

/// Checks a changed Service: an address does not change while the type has one.
pub fn update(new: &Service, old: &Service, subresource: Option<Subresource>) -> Vec<FieldError> {
    if subresource.is_some() {
        return Vec::new();
    }
    let mut errors = create(new);
    let (Some(spec), Some(before)) = (&new.spec, &old.spec) else { return errors };
    let kept = str_of(&before.type_) != "ExternalName" && str_of(&spec.type_) != "ExternalName";
    let (address, old_address) = (str_of(&spec.cluster_ip), str_of(&before.cluster_ip));
    if kept && !old_address.is_empty() && address != old_address {
        let value = json!(spec.cluster_ips.clone().unwrap_or_default());
        errors.push(FieldError::invalid(Path::new("spec").child("clusterIPs").index(0), value, "may not change once set"));
    }
    errors
}
