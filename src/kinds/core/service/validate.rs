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
            let has_address =
                !str_of(&spec.cluster_ip).is_empty() || spec.cluster_ips.as_ref().is_some_and(|all| !all.is_empty());
            let has_families = spec.ip_families.as_ref().is_some_and(|all| !all.is_empty());
            let set =
                [("clusterIPs", has_address), ("ipFamilies", has_families), ("ipFamilyPolicy", spec.ip_family_policy.is_some())];
            for (field, _) in set.into_iter().filter(|(_, is_set)| *is_set) {
                errors.push(FieldError::forbidden(path.child(field), "may not be set for ExternalName services"));
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
        let path = path.child("externalIPs").index(index);
        ip(errors, &path, address);
        rule(errors, &path, address, special);
    }
    families(errors, path, spec);
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
    if spec.allocate_load_balancer_node_ports.is_some() && str_of(&spec.type_) != "LoadBalancer" {
        let why = "may only be used when `type` is 'LoadBalancer'";
        errors.push(FieldError::forbidden(path.child("allocateLoadBalancerNodePorts"), why));
    }
    if let Some(class) = spec.load_balancer_class.as_deref().filter(|_| is_balanced(spec)) {
        rule(errors, &path.child("loadBalancerClass"), class, names::qualified_name);
    }
    if spec.load_balancer_class.is_some() && str_of(&spec.type_) != "LoadBalancer" {
        errors.push(FieldError::forbidden(path.child("loadBalancerClass"), "may only be used when `type` is 'LoadBalancer'"));
    }
}

/// Upstream's `ValidateServiceClusterIPsRelatedFields`.
fn families(errors: &mut Errors, path: &Path, spec: &ServiceSpec) {
    let families = spec.ip_families.as_deref().unwrap_or_default();
    let at = path.child("ipFamilies");
    let mut seen = HashSet::new();
    for (index, family) in families.iter().enumerate() {
        one_of(errors, &at.index(index), family, &["IPv4", "IPv6"]);
        unique(errors, &at.index(index), &mut seen, family);
    }
    let addresses = spec.cluster_ips.as_deref().unwrap_or_default();
    for (index, (address, family)) in addresses.iter().zip(families).enumerate() {
        let is_other = match address.parse() {
            Ok(std::net::IpAddr::V4(_)) => family == "IPv6",
            Ok(std::net::IpAddr::V6(_)) => family == "IPv4",
            Err(_) => false,
        };
        if is_other {
            let why = format!("expected an {family} value as indicated by `ipFamilies[{index}]`");
            errors.push(FieldError::invalid(path.child("clusterIPs").index(index), address.as_str(), why));
        }
    }
}

/// Why an address can be no Service's: upstream's `ValidateNonSpecialIP`.
fn special(text: &str) -> Vec<String> {
    let Ok(address) = text.parse::<std::net::IpAddr>() else { return Vec::new() };
    let (link_local, local_group) = match address {
        std::net::IpAddr::V4(v4) => (v4.is_link_local(), v4.octets()[..3] == [224, 0, 0]),
        std::net::IpAddr::V6(v6) => (v6.segments()[0] & 0xffc0 == 0xfe80, v6.segments()[0] & 0xff0f == 0xff02),
    };
    let reasons = [
        (address.is_unspecified(), "may not be unspecified (0.0.0.0 or ::)"),
        (address.is_loopback(), "may not be in the loopback range (127.0.0.0/8, ::1/128)"),
        (link_local, "may not be in the link-local range (169.254.0.0/16, fe80::/10)"),
        (local_group, "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)"),
    ];
    reasons.into_iter().filter(|(applies, _)| *applies).map(|(_, why)| why.to_owned()).collect()
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
    let port = spec.health_check_node_port.unwrap_or(0);
    if port != 0 && !needs_health_check(spec) {
        let why = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
        errors.push(FieldError::invalid(path.child("healthCheckNodePort"), port, why));
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

/// Checks a changed Service: its address, families and class do not change while the type has them.
pub fn update(new: &Service, old: &Service, subresource: Option<Subresource>) -> Vec<FieldError> {
    if subresource == Some(Subresource::Status) {
        return status(new);
    }
    let mut errors = Vec::new();
    if let (Some(spec), Some(before)) = (&new.spec, &old.spec) {
        if has_address(before) && has_address(spec) {
            changed_address(&mut errors, spec, before);
            changed_families(&mut errors, spec, before);
        }
        let path = Path::new("spec");
        if is_balanced(spec) && is_balanced(before) && spec.load_balancer_class != before.load_balancer_class {
            let value = spec.load_balancer_class.clone();
            errors.push(FieldError::invalid(path.child("loadBalancerClass"), json!(value), "may not change once set"));
        }
        let (port, old_port) = (spec.health_check_node_port.unwrap_or(0), before.health_check_node_port.unwrap_or(0));
        if needs_health_check(spec) && needs_health_check(before) && port != old_port {
            errors.push(FieldError::invalid(path.child("healthCheckNodePort"), port, "field is immutable"));
        }
    }
    errors.extend(create(new));
    errors
}

fn has_address(spec: &ServiceSpec) -> bool {
    str_of(&spec.type_) != "ExternalName"
}

fn is_balanced(spec: &ServiceSpec) -> bool {
    str_of(&spec.type_) == "LoadBalancer"
}

fn needs_health_check(spec: &ServiceSpec) -> bool {
    is_balanced(spec) && str_of(&spec.external_traffic_policy) == "Local"
}

/// Upstream's `validateUpgradeDowngradeClusterIPs`.
fn changed_address(errors: &mut Errors, spec: &ServiceSpec, before: &ServiceSpec) {
    let (now, then) = (spec.cluster_ips.as_deref().unwrap_or_default(), before.cluster_ips.as_deref().unwrap_or_default());
    if now == ["None"] && then == ["None"] {
        return;
    }
    let path = Path::new("spec").child("clusterIPs");
    let mut changed = |index: usize, why: &str| errors.push(FieldError::invalid(path.index(index), json!(now), why));
    if !then.is_empty() && now.is_empty() {
        return changed(0, "primary clusterIP can not be unset");
    }
    for (index, _) in now.iter().zip(then).enumerate().filter(|(_, (new, old))| new != old) {
        changed(index, "may not change once set");
    }
}

/// Upstream's `validateUpgradeDowngradeIPFamilies`.
fn changed_families(errors: &mut Errors, spec: &ServiceSpec, before: &ServiceSpec) {
    let is_headless = |spec: &ServiceSpec| str_of(&spec.cluster_ip) == "None";
    if is_headless(spec) || is_headless(before) {
        return;
    }
    let (now, then) = (spec.ip_families.as_deref().unwrap_or_default(), before.ip_families.as_deref().unwrap_or_default());
    if now.iter().zip(then).any(|(new, old)| new != old) {
        let path = Path::new("spec").child("ipFamilies").index(0);
        errors.push(FieldError::invalid(path, json!(now), "may not change once set"));
    }
}

/// Upstream's `ValidateLoadBalancerStatus`.
fn status(service: &Service) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let balancer = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let ingress = balancer.and_then(|balancer| balancer.ingress.as_deref()).unwrap_or_default();
    let path = Path::new("status").child("loadBalancer").child("ingress");
    if !ingress.is_empty() && !service.spec.as_ref().is_some_and(is_balanced) {
        errors.push(FieldError::forbidden(path.clone(), "may only be used when `spec.type` is 'LoadBalancer'"));
        return errors;
    }
    for (index, each) in ingress.iter().enumerate() {
        let path = path.index(index);
        if !str_of(&each.ip).is_empty() {
            ip(&mut errors, &path.child("ip"), str_of(&each.ip));
        }
        match each.ip_mode.as_deref() {
            Some(_) if str_of(&each.ip).is_empty() => {
                errors.push(FieldError::forbidden(path.child("ipMode"), "may not be specified when `ip` is not set"));
            }
            Some(mode) => one_of(&mut errors, &path.child("ipMode"), mode, &["Proxy", "VIP"]),
            None => {}
        }
        if let Some(name) = each.hostname.as_deref().filter(|name| !name.is_empty()) {
            rule(&mut errors, &path.child("hostname"), name, names::dns1123_subdomain);
            if name.parse::<std::net::IpAddr>().is_ok() {
                let why = "must be a DNS name, not an IP address";
                errors.push(FieldError::invalid(path.child("hostname"), name, why));
            }
        }
    }
    errors
}
