//! Which addresses and ports stand behind a Service: pure functions of the Service and its pods.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    Container, EndpointAddress, EndpointPort, EndpointSubset, Endpoints, ObjectReference, Pod, Service, ServicePort,
};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort as SlicePort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::super::{owners, pods};

/// Endpoints in one slice.
const SLICE: usize = 100;
/// Addresses in one Endpoints object.
const ADDRESSES: usize = 1_000;
const HEADLESS: &str = "service.kubernetes.io/headless";
pub(super) const SERVICE_NAME: &str = "kubernetes.io/service-name";
pub(super) const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
pub(super) const MANAGER: &str = "endpointslice-controller.k8s.io";

/// A port as a pod serves it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Port {
    name: String,
    protocol: String,
    number: i32,
    app_protocol: Option<String>,
}

/// A pod behind a Service.
#[derive(Debug, Clone)]
pub(super) struct Backend {
    pod: Arc<Pod>,
    ip: String,
    is_ready: bool,
    is_serving: bool,
    is_terminating: bool,
    hostname: Option<String>,
    zone: Option<String>,
    ports: Vec<Port>,
}

fn is_headless(service: &Service) -> bool {
    service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref()) == Some("None")
}

/// The pods behind a Service; `zone` names the zone of a node. Pods without an address, and pods that ended, are not.
pub(super) fn backends(service: &Service, pods: &[Arc<Pod>], zone: impl Fn(&str) -> Option<String>) -> Vec<Backend> {
    let publish = service.spec.as_ref().and_then(|spec| spec.publish_not_ready_addresses).unwrap_or(false);
    let name = service.metadata.name.as_deref();
    let backend = |pod: &Arc<Pod>| {
        let ip = pod.status.as_ref()?.pod_ip.clone().filter(|ip| !ip.is_empty())?;
        let spec = pod.spec.as_ref()?;
        if pods::is_finished(pod) {
            return None;
        }
        let (is_serving, is_terminating) = (pods::is_ready(pod), pod.metadata.deletion_timestamp.is_some());
        Some(Backend {
            ip,
            is_ready: publish || (is_serving && !is_terminating),
            is_serving,
            is_terminating,
            hostname: spec.hostname.clone().filter(|_| spec.subdomain.as_deref() == name),
            zone: spec.node_name.as_deref().and_then(&zone),
            ports: ports(service, pod),
            pod: Arc::clone(pod),
        })
    };
    pods.iter().filter_map(backend).collect()
}

/// The ports of a Service on one pod; a named port that the pod does not have is left out.
fn ports(service: &Service, pod: &Pod) -> Vec<Port> {
    let wanted = service.spec.iter().filter_map(|spec| spec.ports.as_ref()).flatten();
    let mut ports: Vec<Port> = wanted
        .filter_map(|port| {
            Some(Port {
                name: port.name.clone().unwrap_or_default(),
                protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
                number: target(port, pod)?,
                app_protocol: port.app_protocol.clone(),
            })
        })
        .collect();
    ports.sort();
    ports
}

fn target(port: &ServicePort, pod: &Pod) -> Option<i32> {
    match &port.target_port {
        None => Some(port.port),
        Some(IntOrString::Int(0)) => Some(port.port),
        Some(IntOrString::Int(number)) => Some(*number),
        Some(IntOrString::String(name)) => {
            let spec = pod.spec.as_ref()?;
            let is_sidecar = |container: &&Container| container.restart_policy.as_deref() == Some("Always");
            let sidecars = spec.init_containers.iter().flatten().filter(is_sidecar);
            let all = spec.containers.iter().chain(sidecars).flat_map(|container| container.ports.iter().flatten());
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            let mut found = all.filter(|candidate| {
                candidate.name.as_ref() == Some(name) && candidate.protocol.as_deref().unwrap_or("TCP") == protocol
            });
            found.next().map(|found| found.container_port)
        }
    }
}

fn pod_reference(pod: &Pod) -> ObjectReference {
    ObjectReference {
        kind: Some("Pod".to_owned()),
        namespace: pod.metadata.namespace.clone(),
        name: pod.metadata.name.clone(),
        uid: pod.metadata.uid.clone(),
        ..ObjectReference::default()
    }
}

fn labels(service: &Service) -> BTreeMap<String, String> {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.remove(HEADLESS);
    if is_headless(service) {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    labels
}

/// The Endpoints object that a Service should have.
pub(super) fn endpoints(service: &Service, backends: &[Backend]) -> Endpoints {
    let mut subsets: BTreeMap<Vec<Port>, (Vec<EndpointAddress>, Vec<EndpointAddress>)> = BTreeMap::new();
    let publish = service.spec.as_ref().and_then(|spec| spec.publish_not_ready_addresses).unwrap_or(false);
    for backend in backends.iter().filter(|backend| publish || !backend.is_terminating).take(ADDRESSES) {
        let (ready, not_ready) = subsets.entry(backend.ports.clone()).or_default();
        let address = EndpointAddress {
            ip: backend.ip.clone(),
            hostname: backend.hostname.clone(),
            node_name: backend.pod.spec.as_ref().and_then(|spec| spec.node_name.clone()),
            target_ref: Some(pod_reference(&backend.pod)),
        };
        if backend.is_ready { ready.push(address) } else { not_ready.push(address) }
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
    let subsets: Vec<EndpointSubset> = subsets
        .into_iter()
        .map(|(ports, (ready, not_ready))| EndpointSubset {
            addresses: sorted(ready),
            not_ready_addresses: sorted(not_ready),
            ports: (!ports.is_empty()).then(|| ports.into_iter().map(port).collect()),
        })
        .collect();
    let mut labels = labels(service);
    labels.insert("endpoints.kubernetes.io/managed-by".to_owned(), "endpoint-controller".to_owned());
    let metadata = ObjectMeta {
        name: service.metadata.name.clone(),
        namespace: service.metadata.namespace.clone(),
        labels: Some(labels),
        ..ObjectMeta::default()
    };
    Endpoints { metadata, subsets: (!subsets.is_empty()).then_some(subsets) }
}

/// What is to be done with slices.
#[derive(Debug, Default)]
pub(super) struct Slices {
    pub(super) create: Vec<EndpointSlice>,
    pub(super) update: Vec<EndpointSlice>,
    pub(super) delete: Vec<Arc<EndpointSlice>>,
}

/// Compares the slices that a Service has with those that it should have. An endpoint stays in its slice, so that a change touches
/// few slices.
pub(super) fn slices(service: &Service, backends: &[Backend], existing: &[Arc<EndpointSlice>]) -> Slices {
    let mut wanted: BTreeMap<(String, Vec<Port>), HashMap<String, Endpoint>> = BTreeMap::new();
    for backend in backends {
        let group = (address_type(&backend.ip).to_owned(), backend.ports.clone());
        let uid = backend.pod.metadata.uid.clone().unwrap_or_default();
        wanted.entry(group).or_default().insert(uid, endpoint(backend));
    }
    if wanted.is_empty() {
        // A Service without endpoints still has a slice, which says so.
        wanted.insert((family(service).to_owned(), Vec::new()), HashMap::new());
    }
    let mut plan = Slices::default();
    for (group, mut endpoints) in wanted {
        let mut of_group: Vec<&Arc<EndpointSlice>> = existing.iter().filter(|slice| group_of(slice) == group).collect();
        of_group.sort_by_key(|slice| std::cmp::Reverse(slice.endpoints.as_ref().map_or(0, Vec::len)));
        let kept: Vec<Vec<Endpoint>> = of_group.iter().map(|slice| keep(slice, &mut endpoints)).collect();
        let mut rest: Vec<Endpoint> = endpoints.into_values().collect();
        rest.sort_by(|left, right| left.addresses.cmp(&right.addresses));
        let mut has_slice = false;
        for (slice, mut kept) in of_group.into_iter().zip(kept) {
            let room = SLICE.saturating_sub(kept.len()).min(rest.len());
            kept.extend(rest.drain(..room));
            if kept.is_empty() && (has_slice || !group.1.is_empty()) {
                plan.delete.push(Arc::clone(slice));
                continue;
            }
            has_slice = true;
            plan.update.extend(changed(service, slice, kept));
        }
        while !rest.is_empty() || !has_slice {
            let part = rest.drain(..SLICE.min(rest.len())).collect();
            plan.create.push(new_slice(service, &group, part));
            has_slice = true;
        }
    }
    let kept_groups: Vec<_> =
        backends.iter().map(|backend| (address_type(&backend.ip).to_owned(), backend.ports.clone())).collect();
    let is_stale = |slice: &&Arc<EndpointSlice>| {
        let group = group_of(slice);
        !(kept_groups.contains(&group) || kept_groups.is_empty() && group == (family(service).to_owned(), Vec::new()))
    };
    plan.delete.extend(existing.iter().filter(is_stale).cloned());
    plan
}

fn address_type(ip: &str) -> &'static str {
    if ip.contains(':') { "IPv6" } else { "IPv4" }
}

fn family(service: &Service) -> &str {
    let families = service.spec.as_ref().and_then(|spec| spec.ip_families.as_ref());
    families.and_then(|families| families.first()).map_or("IPv4", String::as_str)
}

fn endpoint(backend: &Backend) -> Endpoint {
    Endpoint {
        addresses: vec![backend.ip.clone()],
        conditions: Some(EndpointConditions {
            ready: Some(backend.is_ready),
            serving: Some(backend.is_serving),
            terminating: Some(backend.is_terminating),
        }),
        hostname: backend.hostname.clone(),
        node_name: backend.pod.spec.as_ref().and_then(|spec| spec.node_name.clone()),
        target_ref: Some(pod_reference(&backend.pod)),
        zone: backend.zone.clone(),
        ..Endpoint::default()
    }
}

fn group_of(slice: &EndpointSlice) -> (String, Vec<Port>) {
    let port = |port: &SlicePort| Port {
        name: port.name.clone().unwrap_or_default(),
        protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
        number: port.port.unwrap_or(0),
        app_protocol: port.app_protocol.clone(),
    };
    let mut ports: Vec<Port> = slice.ports.iter().flatten().map(port).collect();
    ports.sort();
    (slice.address_type.clone(), ports)
}

/// Takes out of `wanted`, in their new form, the endpoints that a slice has already.
fn keep(slice: &EndpointSlice, wanted: &mut HashMap<String, Endpoint>) -> Vec<Endpoint> {
    let uids = slice.endpoints.iter().flatten().filter_map(|endpoint| endpoint.target_ref.as_ref()?.uid.as_ref());
    uids.filter_map(|uid| wanted.remove(uid)).collect()
}

fn slice_labels(service: &Service) -> BTreeMap<String, String> {
    let mut labels = labels(service);
    labels.insert(SERVICE_NAME.to_owned(), service.metadata.name.clone().unwrap_or_default());
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    labels
}

fn changed(service: &Service, slice: &EndpointSlice, endpoints: Vec<Endpoint>) -> Option<EndpointSlice> {
    let labels = slice_labels(service);
    if slice.endpoints.as_deref().unwrap_or_default() == endpoints && slice.metadata.labels.as_ref() == Some(&labels) {
        return None;
    }
    let mut slice = slice.clone();
    (slice.endpoints, slice.metadata.labels) = (Some(endpoints), Some(labels));
    Some(slice)
}

fn new_slice(service: &Service, (address_type, ports): &(String, Vec<Port>), endpoints: Vec<Endpoint>) -> EndpointSlice {
    let port = |port: &Port| SlicePort {
        name: Some(port.name.clone()),
        port: Some(port.number),
        protocol: Some(port.protocol.clone()),
        app_protocol: port.app_protocol.clone(),
    };
    let metadata = ObjectMeta {
        generate_name: Some(format!("{}-", service.metadata.name.as_deref().unwrap_or(""))),
        namespace: service.metadata.namespace.clone(),
        labels: Some(slice_labels(service)),
        owner_references: Some(vec![owners::controller_reference(service)]),
        ..ObjectMeta::default()
    };
    let ports = (!ports.is_empty()).then(|| ports.iter().map(port).collect());
    EndpointSlice { address_type: address_type.clone(), endpoints: Some(endpoints), metadata, ports }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn service() -> Service {
        serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "a", "uid": "s", "labels": {"x": "y"}},
            "spec": {"clusterIP": "10.43.0.9", "ports": [{"name": "http", "port": 80, "targetPort": "web"}]}}))
        .unwrap()
    }

    fn pod(number: usize, ready: bool, extra: &serde_json::Value) -> Arc<Pod> {
        let status = if ready { "True" } else { "False" };
        let mut pod = json!({"metadata": {"name": format!("p{number}"), "uid": format!("u{number}"), "namespace": "a"},
            "spec": {"nodeName": "n1", "containers": [{"name": "c", "ports": [{"name": "web", "containerPort": 8080}]}]},
            "status": {"podIP": format!("10.42.{}.{}", number / 250, number % 250), "phase": "Running",
                "conditions": [{"type": "Ready", "status": status}]}});
        for (key, value) in extra.as_object().into_iter().flatten() {
            pod["metadata"][key] = value.clone();
        }
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    fn behind(pods: &[Arc<Pod>]) -> Vec<Backend> {
        backends(&service(), pods, |_| Some("z1".to_owned()))
    }

    #[test]
    fn ready_not_ready_and_terminating() {
        let gone = json!({"deletionTimestamp": "2026-01-01T00:00:00Z"});
        let backends = behind(&[pod(1, true, &json!({})), pod(2, false, &json!({})), pod(3, true, &gone)]);
        let object = endpoints(&service(), &backends);
        let subset = &object.subsets.as_ref().unwrap()[0];
        let ips =
            |addresses: &Option<Vec<EndpointAddress>>| addresses.iter().flatten().map(|one| one.ip.clone()).collect::<Vec<_>>();
        assert_eq!(
            (ips(&subset.addresses), ips(&subset.not_ready_addresses)),
            (vec!["10.42.0.1".into()], vec!["10.42.0.2".into()])
        );
        assert_eq!(subset.ports.as_ref().unwrap()[0].port, 8080);
        let plan = slices(&service(), &backends, &[]);
        let conditions: Vec<_> = plan.create[0].endpoints.iter().flatten().filter_map(|one| one.conditions.clone()).collect();
        let flags: Vec<_> = conditions.iter().map(|one| (one.ready, one.serving, one.terminating)).collect();
        let (yes, no) = (Some(true), Some(false));
        assert_eq!(flags, [(yes, yes, no), (no, no, no), (no, yes, yes)]);
    }

    #[test]
    fn slices_hold_a_hundred_and_change_little() {
        let mut pods: Vec<_> = (0..150).map(|number| pod(number, true, &json!({}))).collect();
        let first = slices(&service(), &behind(&pods), &[]);
        let sizes: Vec<usize> = first.create.iter().map(|slice| slice.endpoints.as_ref().unwrap().len()).collect();
        assert_eq!(sizes, [100, 50]);
        let existing: Vec<_> = first.create.into_iter().map(Arc::new).collect();
        assert!(slices(&service(), &behind(&pods), &existing).update.is_empty());
        pods.truncate(149);
        pods.push(pod(200, true, &json!({})));
        let second = slices(&service(), &behind(&pods), &existing);
        assert_eq!((second.create.len(), second.update.len(), second.delete.len()), (0, 1, 0));
        let none = slices(&service(), &[], &existing);
        assert_eq!((none.create.len(), none.delete.len()), (1, 2));
        assert!(slices(&service(), &[], &[Arc::new(none.create[0].clone())]).update.is_empty());
    }
}
