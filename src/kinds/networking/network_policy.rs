//! NetworkPolicy: which traffic pods may send and get.

use jiff::Timestamp;
use k8s_openapi::api::networking::v1::{NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::Value;

use crate::api::field::{FieldError, Path};
use crate::api::kind::Column;
use crate::kinds::check::{Errors, cidr, is_blank, label_selector, one_of, port, port_or_name, str_of};
use crate::kinds::core::pod_spec::defaults::text;
use crate::kinds::print::{age, name, selector};
use crate::kinds::typed::Definition;

/// The kind.
pub static NETWORK_POLICY: Definition<NetworkPolicy> = Definition {
    columns: &[Column::NAME, Column::text("Pod-Selector"), Column::AGE],
    row: Some(row),
    default: Some(default),
    validate: Some(validate),
    generation: Some(true),
    ..Definition::namespaced("io.k8s.api.networking.v1.NetworkPolicy", "networking.k8s.io/networkpolicies", "networkpolicy")
        .short(&["netpol"])
};

fn default(policy: &mut NetworkPolicy) {
    let spec = policy.spec.get_or_insert_default();
    spec.pod_selector.get_or_insert_default();
    if is_blank(&spec.policy_types) {
        let types = spec.policy_types.insert(vec!["Ingress".to_owned()]);
        if spec.egress.as_ref().is_some_and(|rules| !rules.is_empty()) {
            types.push("Egress".to_owned());
        }
    }
    let from = spec.ingress.iter_mut().flatten().flat_map(|rule| rule.ports.iter_mut().flatten());
    let to = spec.egress.iter_mut().flatten().flat_map(|rule| rule.ports.iter_mut().flatten());
    for port in from.chain(to) {
        text(&mut port.protocol, "TCP");
    }
}

fn validate(policy: &NetworkPolicy) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let path = Path::new("spec");
    let spec = policy.spec.clone().unwrap_or_default();
    label_selector(&mut errors, &path.child("podSelector"), &spec.pod_selector.unwrap_or_default());
    for (index, rule) in spec.ingress.iter().flatten().enumerate() {
        let path = path.child("ingress").index(index);
        self::rule(&mut errors, &path, "from", rule.ports.as_deref(), rule.from.as_deref());
    }
    for (index, rule) in spec.egress.iter().flatten().enumerate() {
        let path = path.child("egress").index(index);
        self::rule(&mut errors, &path, "to", rule.ports.as_deref(), rule.to.as_deref());
    }
    for (index, kind) in spec.policy_types.iter().flatten().enumerate() {
        one_of(&mut errors, &path.child("policyTypes").index(index), kind, &["Egress", "Ingress"]);
    }
    errors
}

fn rule(
    errors: &mut Errors,
    path: &Path,
    direction: &str,
    ports: Option<&[NetworkPolicyPort]>,
    peers: Option<&[NetworkPolicyPeer]>,
) {
    for (index, each) in ports.unwrap_or_default().iter().enumerate() {
        policy_port(errors, &path.child("ports").index(index), each);
    }
    for (index, each) in peers.unwrap_or_default().iter().enumerate() {
        peer(errors, &path.child(direction).index(index), each);
    }
}

fn policy_port(errors: &mut Errors, path: &Path, each: &NetworkPolicyPort) {
    one_of(errors, &path.child("protocol"), str_of(&each.protocol), &["SCTP", "TCP", "UDP"]);
    if let Some(number) = &each.port {
        port_or_name(errors, &path.child("port"), number);
    }
    let Some(end) = each.end_port else { return };
    let at = path.child("endPort");
    port(errors, &at, i64::from(end));
    match &each.port {
        Some(IntOrString::Int(start)) if end < *start => {
            errors.push(FieldError::invalid(at, end, "must be greater than or equal to `port`"));
        }
        Some(IntOrString::Int(_)) => {}
        Some(IntOrString::String(_)) => {
            errors.push(FieldError::invalid(at, end, "may not be specified when `port` is non-numeric"));
        }
        None => errors.push(FieldError::invalid(at, end, "may not be specified when `port` is not specified")),
    }
}

fn peer(errors: &mut Errors, path: &Path, peer: &NetworkPolicyPeer) {
    for (field, selector) in [("podSelector", &peer.pod_selector), ("namespaceSelector", &peer.namespace_selector)] {
        if let Some(selector) = selector {
            label_selector(errors, &path.child(field), selector);
        }
    }
    let has_selector = peer.pod_selector.is_some() || peer.namespace_selector.is_some();
    match &peer.ip_block {
        None if !has_selector => errors.push(FieldError::required(path.clone(), "must specify a peer")),
        Some(_) if has_selector => {
            errors.push(FieldError::forbidden(path.clone(), "may not specify both ipBlock and another peer"));
        }
        Some(block) => {
            let path = path.child("ipBlock");
            cidr(errors, &path.child("cidr"), &block.cidr);
            for (index, except) in block.except.iter().flatten().enumerate() {
                cidr(errors, &path.child("except").index(index), except);
            }
        }
        None => {}
    }
}

fn row(policy: &NetworkPolicy, now: Timestamp) -> Vec<Value> {
    let pods = policy.spec.as_ref().and_then(|spec| spec.pod_selector.as_ref());
    vec![name(&policy.metadata), selector(pods).into(), age(&policy.metadata, now)]
}
