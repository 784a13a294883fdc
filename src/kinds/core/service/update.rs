//! What an update of a Service carries over (upstream `pkg/registry/core/service`).

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};

use super::is_external;
use crate::api::kind::Subresource;
use crate::kinds::check::str_of;

fn has_address(spec: &ServiceSpec) -> bool {
    str_of(&spec.type_) != "ExternalName"
}

fn has_node_ports(spec: &ServiceSpec) -> bool {
    str_of(&spec.type_) == "NodePort"
        || (str_of(&spec.type_) == "LoadBalancer" && spec.allocate_load_balancer_node_ports != Some(false))
}

fn has_health_port(spec: &ServiceSpec) -> bool {
    str_of(&spec.type_) == "LoadBalancer" && str_of(&spec.external_traffic_policy) == "Local"
}

/// Makes `clusterIP` and `clusterIPs` agree where a client gave one of them.
pub fn addresses(spec: &mut ServiceSpec) {
    let one = spec.cluster_ip.clone().filter(|address| !address.is_empty());
    let first = spec.cluster_ips.iter().flatten().next().cloned();
    match (one, first) {
        (Some(one), None) => spec.cluster_ips = Some(vec![one]),
        (None, Some(first)) => spec.cluster_ip = Some(first),
        _ => {}
    }
}

/// Keeps what was allocated, and drops what the new type does not have.
pub fn prepare(service: &mut Service, old: &Service, subresource: Option<Subresource>) {
    if subresource.is_some() {
        return;
    }
    if service.spec.as_ref().is_some_and(|spec| str_of(&spec.type_) != "LoadBalancer")
        && let Some(balancer) = service.status.as_mut().and_then(|status| status.load_balancer.as_mut())
    {
        balancer.ingress = None;
    }
    let (Some(new), Some(old)) = (&mut service.spec, &old.spec) else { return };
    follow_one_address(new, old);
    drop_by_type(new, old);
    if has_address(new) && has_address(old) {
        if str_of(&new.cluster_ip).is_empty() {
            new.cluster_ip.clone_from(&old.cluster_ip);
        }
        if new.cluster_ips.as_ref().is_none_or(Vec::is_empty) && new.cluster_ip == old.cluster_ip {
            new.cluster_ips.clone_from(&old.cluster_ips);
        }
        if new.ip_families.is_none() {
            new.ip_families.clone_from(&old.ip_families);
        }
        if new.ip_family_policy.is_none() {
            new.ip_family_policy.clone_from(&old.ip_family_policy);
        }
    }
    addresses(new);
    if has_node_ports(new) && has_node_ports(old) {
        keep_node_ports(new, old.ports.as_deref().unwrap_or_default());
    }
    if has_health_port(new) && has_health_port(old) && new.health_check_node_port.unwrap_or(0) == 0 {
        new.health_check_node_port = old.health_check_node_port;
    }
}

/// A client that knows only `clusterIP` and changes it means `clusterIPs` too.
fn follow_one_address(new: &mut ServiceSpec, old: &ServiceSpec) {
    if new.cluster_ip != old.cluster_ip && new.cluster_ips == old.cluster_ips {
        new.cluster_ips = new.cluster_ip.clone().filter(|address| !address.is_empty()).map(|address| vec![address]);
    }
}

fn drop_by_type(new: &mut ServiceSpec, old: &ServiceSpec) {
    let same_ports = |new: &ServiceSpec| {
        let node_ports = |spec: &ServiceSpec| spec.ports.iter().flatten().map(|port| port.node_port).collect::<Vec<_>>();
        node_ports(new) == node_ports(old)
    };
    if has_address(old) && !has_address(new) {
        if new.cluster_ip == old.cluster_ip {
            new.cluster_ip = None;
            new.cluster_ips = None;
        }
        new.ip_families.take_if(|families| Some(&*families) == old.ip_families.as_ref());
        new.ip_family_policy.take_if(|policy| Some(&*policy) == old.ip_family_policy.as_ref());
        new.internal_traffic_policy.take_if(|policy| Some(&*policy) == old.internal_traffic_policy.as_ref());
    }
    if has_node_ports(old) && !has_node_ports(new) && same_ports(new) {
        for port in new.ports.iter_mut().flatten() {
            port.node_port = None;
        }
    }
    if has_health_port(old) && !has_health_port(new) {
        new.health_check_node_port = None;
    }
    if str_of(&old.type_) == "LoadBalancer" && str_of(&new.type_) != "LoadBalancer" {
        new.allocate_load_balancer_node_ports = None;
        new.load_balancer_class = None;
    }
    if is_external(old) && !is_external(new) {
        new.external_traffic_policy = None;
    }
}

/// Node ports follow the port's number and protocol.
fn keep_node_ports(new: &mut ServiceSpec, old: &[ServicePort]) {
    let mut used: Vec<i32> = new.ports.iter().flatten().filter_map(|port| port.node_port).collect();
    for port in new.ports.iter_mut().flatten().filter(|port| port.node_port.unwrap_or(0) == 0) {
        let before = old.iter().find(|before| before.port == port.port && before.protocol == port.protocol);
        if let Some(node_port) = before.and_then(|before| before.node_port).filter(|number| !used.contains(number)) {
            port.node_port = Some(node_port);
            used.push(node_port);
        }
    }
}
