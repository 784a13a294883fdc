//! The Endpoints object of a Service (upstream's `controller/endpoint` and `RepackSubsets`).

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::backend::{Backend, Port, families, is_headless, pod_reference, publishes_not_ready};
use super::trigger::{self, HEADLESS};

/// Addresses in one Endpoints object.
const ADDRESSES: usize = 1_000;
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
/// Says whose Endpoints these are, since Kubernetes 1.33.
pub(super) const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
pub(super) const MANAGER: &str = "endpoint-controller";

/// The Endpoints object that a Service should have, made of the present one; `None` if that is right already.
pub(super) fn endpoints(
    service: &Service,
    backends: &[Backend],
    present: Option<&Endpoints>,
    trigger: Option<&str>,
) -> Option<Endpoints> {
    let mut subsets = subsets(service, backends);
    let is_truncated = truncate(&mut subsets);
    let subsets = (!subsets.is_empty()).then_some(subsets);
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.remove(HEADLESS);
    if is_headless(service) {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    let annotations = present.and_then(|present| present.metadata.annotations.clone()).unwrap_or_default();
    let was_truncated = annotations.get(OVER_CAPACITY).is_some_and(|value| value == "truncated");
    let same = |present: &Endpoints| present.subsets == subsets && present.metadata.labels.as_ref() == Some(&labels);
    if was_truncated == is_truncated && present.is_some_and(same) {
        return None;
    }
    let mut annotations = trigger::annotate(annotations, trigger);
    annotations.remove(OVER_CAPACITY);
    if is_truncated {
        annotations.insert(OVER_CAPACITY.to_owned(), "truncated".to_owned());
    }
    let new = ObjectMeta {
        name: service.metadata.name.clone(),
        namespace: service.metadata.namespace.clone(),
        ..ObjectMeta::default()
    };
    let metadata = ObjectMeta {
        labels: Some(labels),
        annotations: (!annotations.is_empty()).then_some(annotations),
        ..present.map_or(new, |present| present.metadata.clone())
    };
    Some(Endpoints { metadata, subsets })
}

fn subsets(service: &Service, backends: &[Backend]) -> Vec<EndpointSubset> {
    let publish = publishes_not_ready(service);
    let has_ports = service.spec.as_ref().and_then(|spec| spec.ports.as_ref()).is_some_and(|ports| !ports.is_empty());
    let families = families(service);
    let family = families.first().copied().unwrap_or("IPv4");
    let mut groups: BTreeMap<Vec<Port>, (Vec<EndpointAddress>, Vec<EndpointAddress>)> = BTreeMap::new();
    for backend in backends.iter().filter(|backend| publish || !backend.is_terminating) {
        let Some(ip) = backend.ip(family) else { continue };
        let mut ports = backend.ports.clone();
        ports.sort();
        // A headless Service may do without ports; elsewhere a pod that serves none is no endpoint.
        if ports.is_empty() && (has_ports || !is_headless(service)) {
            continue;
        }
        let (ready, not_ready) = groups.entry(ports).or_default();
        let address = EndpointAddress {
            ip: ip.to_owned(),
            hostname: backend.hostname.clone(),
            node_name: backend.node_name().map(str::to_owned),
            target_ref: Some(pod_reference(&backend.pod)),
        };
        if publish || backend.is_serving { ready.push(address) } else { not_ready.push(address) }
    }
    let port = |port: Port| EndpointPort {
        name: Some(port.name).filter(|name| !name.is_empty()),
        port: port.number,
        protocol: Some(port.protocol),
        app_protocol: port.app_protocol,
    };
    let sorted = |mut addresses: Vec<EndpointAddress>| {
        addresses.sort_by(|left, right| left.ip.cmp(&right.ip));
        (!addresses.is_empty()).then_some(addresses)
    };
    let subset = |(ports, (ready, not_ready)): (Vec<Port>, (Vec<_>, Vec<_>))| EndpointSubset {
        addresses: sorted(ready),
        not_ready_addresses: sorted(not_ready),
        ports: (!ports.is_empty()).then(|| ports.into_iter().map(port).collect()),
    };
    groups.into_iter().map(subset).collect()
}

/// Cuts to what fits, each subset in proportion and ready addresses first. Returns whether anything was cut.
fn truncate(subsets: &mut Vec<EndpointSubset>) -> bool {
    let count = |list: &Option<Vec<EndpointAddress>>| list.as_ref().map_or(0, Vec::len);
    let ready: usize = subsets.iter().map(|subset| count(&subset.addresses)).sum();
    let not_ready: usize = subsets.iter().map(|subset| count(&subset.not_ready_addresses)).sum();
    if ready + not_ready <= ADDRESSES {
        return false;
    }
    let cuts_ready = ready > ADDRESSES;
    let (room, total) = if cuts_ready { (ADDRESSES, ready) } else { (ADDRESSES - ready, not_ready) };
    let mut left = room;
    for subset in subsets.iter_mut() {
        let list = if cuts_ready { &mut subset.addresses } else { &mut subset.not_ready_addresses };
        let share = (list.as_ref().map_or(0, Vec::len) * room).div_ceil(total).min(left);
        if let Some(list) = list {
            list.truncate(share);
        }
        left -= share;
        if cuts_ready {
            subset.not_ready_addresses = None;
        }
        for list in [&mut subset.addresses, &mut subset.not_ready_addresses] {
            *list = list.take().filter(|list| !list.is_empty());
        }
    }
    subsets.retain(|subset| subset.addresses.is_some() || subset.not_ready_addresses.is_some());
    true
}
