//! The few fields of pods and namespaces that are read of the API's JSON, and kept on disk.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::facts::{NamespaceFacts, PodFacts, is_finished, named_port};

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Meta {
    name: Box<str>,
    #[serde(default)]
    namespace: Box<str>,
    #[serde(default)]
    uid: Box<str>,
    #[serde(default)]
    resource_version: Box<str>,
    labels: Option<BTreeMap<String, String>>,
}

/// A Namespace.
#[derive(Serialize, Deserialize)]
pub(super) struct Namespace {
    metadata: Meta,
}

/// A Pod.
#[derive(Serialize, Deserialize)]
pub(super) struct Pod {
    metadata: Meta,
    #[serde(default)]
    spec: Spec,
    #[serde(default)]
    status: Status,
}

#[derive(Serialize, Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct Spec {
    #[serde(default)]
    host_network: bool,
    #[serde(default)]
    containers: Vec<Container>,
    init_containers: Option<Vec<Container>>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Container {
    restart_policy: Option<String>,
    ports: Option<Vec<Port>>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Port {
    name: Option<String>,
    protocol: Option<String>,
    container_port: i32,
}

#[derive(Serialize, Deserialize, Default)]
struct Status {
    phase: Option<String>,
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
}

impl From<Pod> for PodFacts {
    fn from(pod: Pod) -> Self {
        let Pod { metadata, spec, status } = pod;
        let is_sidecar = |container: &Container| container.restart_policy.as_deref() == Some("Always");
        let sidecars = spec.init_containers.into_iter().flatten().filter(is_sidecar);
        let ports = spec.containers.into_iter().chain(sidecars).flat_map(|container| container.ports.into_iter().flatten());
        Self {
            ports: ports.filter_map(|port| named_port(port.name?, port.protocol.as_deref(), port.container_port)).collect(),
            namespace: metadata.namespace,
            name: metadata.name,
            uid: metadata.uid,
            resource_version: metadata.resource_version,
            labels: metadata.labels.unwrap_or_default().into(),
            ip: status.pod_ip.and_then(|ip| ip.parse().ok()),
            host_network: spec.host_network,
            finished: is_finished(status.phase.as_deref()),
        }
    }
}

impl From<PodFacts> for Pod {
    fn from(facts: PodFacts) -> Self {
        let PodFacts { namespace, name, uid, resource_version, labels, ip, ports, host_network, finished } = facts;
        let ports = ports.into_iter().map(|port| Port {
            name: Some(port.name.into()),
            protocol: Some(port.protocol.word().to_owned()),
            container_port: port.port.into(),
        });
        Self {
            metadata: Meta { name, namespace, uid, resource_version, labels: Some(labels.into()) },
            spec: Spec {
                host_network,
                containers: vec![Container { restart_policy: None, ports: Some(ports.collect()) }],
                init_containers: None,
            },
            status: Status { phase: finished.then(|| "Succeeded".to_owned()), pod_ip: ip.map(|ip| ip.to_string()) },
        }
    }
}

impl From<Namespace> for NamespaceFacts {
    fn from(namespace: Namespace) -> Self {
        let Meta { name, uid, resource_version, labels, .. } = namespace.metadata;
        Self { name, uid, resource_version, labels: labels.unwrap_or_default().into() }
    }
}

impl From<NamespaceFacts> for Namespace {
    fn from(facts: NamespaceFacts) -> Self {
        let NamespaceFacts { name, uid, resource_version, labels } = facts;
        Self { metadata: Meta { name, namespace: "".into(), uid, resource_version, labels: Some(labels.into()) } }
    }
}
