//! The pods behind a Service, with the addresses and ports that they serve it on: pure functions of the Service and its pods.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, ObjectReference, Pod, Service, ServicePort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::super::pods;

/// A port as a pod serves it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Port {
    pub(super) name: String,
    pub(super) protocol: String,
    pub(super) number: i32,
    pub(super) app_protocol: Option<String>,
}

/// What a Service needs to know of the node of a pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct NodeView {
    pub(super) zone: Option<String>,
}

/// A pod behind a Service.
#[derive(Debug, Clone)]
pub(super) struct Backend {
    pub(super) pod: Arc<Pod>,
    /// All addresses of the pod, the primary one first.
    ips: Vec<String>,
    /// As EndpointSlices mean it: never while the pod terminates.
    pub(super) is_ready: bool,
    pub(super) is_serving: bool,
    pub(super) is_terminating: bool,
    pub(super) hostname: Option<String>,
    /// `None`: the node is gone, or was never there.
    pub(super) node: Option<NodeView>,
    /// In the order of the Service's ports.
    pub(super) ports: Vec<Port>,
}

impl Backend {
    /// The pod's address of a family, `IPv4` or `IPv6`.
    pub(super) fn ip(&self, family: &str) -> Option<&str> {
        self.ips.iter().map(String::as_str).find(|ip| address_type(ip) == family)
    }

    pub(super) fn node_name(&self) -> Option<&str> {
        self.pod.spec.as_ref()?.node_name.as_deref().filter(|name| !name.is_empty())
    }
}

/// `IPv4` or `IPv6`.
pub(super) fn address_type(ip: &str) -> &'static str {
    if ip.contains(':') { "IPv6" } else { "IPv4" }
}

/// The families of a Service, the primary one first.
pub(super) fn families(service: &Service) -> Vec<&str> {
    let families = service.spec.as_ref().and_then(|spec| spec.ip_families.as_ref());
    let families: Vec<&str> = families.into_iter().flatten().map(String::as_str).collect();
    if !families.is_empty() {
        return families;
    }
    let address = service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref()).unwrap_or("");
    vec![address_type(address)]
}

/// Whether the Service has no address of its own.
pub(super) fn is_headless(service: &Service) -> bool {
    let address = service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref());
    matches!(address, None | Some("" | "None"))
}

/// Whether pods that are not ready serve too.
pub(super) fn publishes_not_ready(service: &Service) -> bool {
    service.spec.as_ref().and_then(|spec| spec.publish_not_ready_addresses).unwrap_or(false)
}

/// The addresses of a pod, the primary one first.
pub(super) fn pod_ips(pod: &Pod) -> Vec<String> {
    let Some(status) = &pod.status else { return Vec::new() };
    let all = status.pod_ips.iter().flatten().map(|one| one.ip.clone());
    let mut ips: Vec<String> = status.pod_ip.iter().cloned().chain(all).filter(|ip| !ip.is_empty()).collect();
    let mut seen = std::collections::HashSet::new();
    ips.retain(|ip| seen.insert(ip.clone()));
    ips
}

/// The pods behind a Service; `node` tells of a node. Pods without an address, and pods that ended, are not.
pub(super) fn backends(service: &Service, pods: &[Arc<Pod>], node: impl Fn(&str) -> Option<NodeView>) -> Vec<Backend> {
    let publish = publishes_not_ready(service);
    let name = service.metadata.name.as_deref();
    let backend = |pod: &Arc<Pod>| {
        let (ips, spec) = (pod_ips(pod), pod.spec.as_ref()?);
        if pods::has_ended(pod) || ips.is_empty() {
            return None;
        }
        let (is_serving, is_terminating) = (pods::is_ready(pod), pod.metadata.deletion_timestamp.is_some());
        Some(Backend {
            ips,
            is_ready: publish || (is_serving && !is_terminating),
            is_serving,
            is_terminating,
            hostname: spec.hostname.clone().filter(|host| !host.is_empty() && spec.subdomain.as_deref() == name),
            node: spec.node_name.as_deref().and_then(&node),
            ports: ports(service, pod),
            pod: Arc::clone(pod),
        })
    };
    pods.iter().filter_map(backend).collect()
}

/// The ports of a Service on one pod; a named port that the pod does not have is left out.
fn ports(service: &Service, pod: &Pod) -> Vec<Port> {
    let wanted = service.spec.iter().filter_map(|spec| spec.ports.as_ref()).flatten();
    let port = |port: &ServicePort| {
        Some(Port {
            name: port.name.clone().unwrap_or_default(),
            protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
            number: target(port, pod)?,
            app_protocol: port.app_protocol.clone(),
        })
    };
    wanted.filter_map(port).collect()
}

fn target(port: &ServicePort, pod: &Pod) -> Option<i32> {
    match &port.target_port {
        None | Some(IntOrString::Int(0)) => Some(port.port),
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

/// The reference to a pod that its endpoint carries.
pub(super) fn pod_reference(pod: &Pod) -> ObjectReference {
    ObjectReference {
        kind: Some("Pod".to_owned()),
        namespace: pod.metadata.namespace.clone(),
        name: pod.metadata.name.clone(),
        uid: pod.metadata.uid.clone(),
        ..ObjectReference::default()
    }
}
