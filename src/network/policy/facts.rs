//! What policies need to know of pods and namespaces, and nothing more: every pod of the cluster is held on every node that
//! enforces a policy, so a pod costs some hundred bytes instead of its whole spec and status.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use k8s_openapi::api::core::v1::{Container, Pod};
use serde::{Deserialize, Serialize};

use super::wire;
use crate::api::selector::Values;
use crate::client::Cached;

/// A transport protocol, as policies and ports name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    /// The protocol of that name; TCP if none is given.
    pub(super) fn of(name: Option<&str>) -> Option<Self> {
        match name {
            None | Some("" | "TCP") => Some(Self::Tcp),
            Some("UDP") => Some(Self::Udp),
            Some("SCTP") => Some(Self::Sctp),
            Some(_) => None,
        }
    }

    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        }
    }

    /// The number in the IP header.
    pub(crate) fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

/// Labels, sorted by key.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Labels(Box<[(Box<str>, Box<str>)]>);

impl Values for Labels {
    fn value(&self, key: &str) -> Option<&str> {
        let at = self.0.binary_search_by(|(candidate, _)| candidate.as_ref().cmp(key)).ok()?;
        self.0.get(at).map(|(_, value)| value.as_ref())
    }
}

impl From<BTreeMap<String, String>> for Labels {
    fn from(labels: BTreeMap<String, String>) -> Self {
        Self(labels.into_iter().map(|(key, value)| (key.into(), value.into())).collect())
    }
}

impl From<Labels> for BTreeMap<String, String> {
    fn from(labels: Labels) -> Self {
        labels.0.into_iter().map(|(key, value)| (key.into(), value.into())).collect()
    }
}

/// A container port that has a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NamedPort {
    pub(super) name: Box<str>,
    pub(super) protocol: Protocol,
    pub(super) port: u16,
}

/// What policies need to know of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "wire::Pod", into = "wire::Pod")]
pub(crate) struct PodFacts {
    pub(super) namespace: Box<str>,
    pub(super) name: Box<str>,
    pub(super) uid: Box<str>,
    pub(super) resource_version: Box<str>,
    pub(super) labels: Labels,
    pub(super) ip: Option<Ipv4Addr>,
    pub(super) ports: Box<[NamedPort]>,
    /// Its traffic is the node's: no policy is about it.
    pub(super) host_network: bool,
    /// Succeeded or failed: its address may be another's.
    pub(super) finished: bool,
}

impl PodFacts {
    /// The address under which the pod is a peer of others.
    pub(super) fn peer_ip(&self) -> Option<Ipv4Addr> {
        self.ip.filter(|_| !self.host_network && !self.finished)
    }

    /// Whether this is the newer state of the same pod.
    pub(super) fn is_newer_than(&self, other: &Self) -> bool {
        let revision = |facts: &Self| facts.resource_version.parse::<u64>().unwrap_or(0);
        revision(self) > revision(other)
    }

    /// Whether policies see a difference.
    pub(super) fn is_same_to_policies(&self, other: &Self) -> bool {
        self.uid == other.uid
            && self.labels == other.labels
            && self.peer_ip() == other.peer_ip()
            && self.ports == other.ports
            && self.host_network == other.host_network
    }
}

impl From<&Pod> for PodFacts {
    fn from(pod: &Pod) -> Self {
        let (meta, spec, status) = (&pod.metadata, pod.spec.as_ref(), pod.status.as_ref());
        let named = |container: &Container| {
            let ports = container.ports.clone().unwrap_or_default();
            ports.into_iter().filter_map(|port| named_port(port.name?, port.protocol.as_deref(), port.container_port))
        };
        let sidecars = spec.iter().flat_map(|spec| spec.init_containers.iter().flatten());
        let sidecars = sidecars.filter(|container| container.restart_policy.as_deref() == Some("Always"));
        let containers = spec.iter().flat_map(|spec| &spec.containers).chain(sidecars);
        let text = |field: &Option<String>| field.as_deref().unwrap_or("").into();
        Self {
            namespace: text(&meta.namespace),
            name: text(&meta.name),
            uid: text(&meta.uid),
            resource_version: text(&meta.resource_version),
            labels: meta.labels.clone().unwrap_or_default().into(),
            ip: status.and_then(|status| status.pod_ip.as_deref()?.parse().ok()),
            ports: containers.flat_map(named).collect(),
            host_network: spec.is_some_and(|spec| spec.host_network == Some(true)),
            finished: is_finished(status.and_then(|status| status.phase.as_deref())),
        }
    }
}

pub(super) fn is_finished(phase: Option<&str>) -> bool {
    matches!(phase, Some("Succeeded" | "Failed"))
}

pub(super) fn named_port(name: String, protocol: Option<&str>, port: i32) -> Option<NamedPort> {
    Some(NamedPort { name: name.into(), protocol: Protocol::of(protocol)?, port: u16::try_from(port).ok()? })
}

impl Cached for PodFacts {
    fn namespace(&self) -> &str {
        &self.namespace
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn uid(&self) -> &str {
        &self.uid
    }

    fn resource_version(&self) -> &str {
        &self.resource_version
    }
}

/// What policies need to know of a namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "wire::Namespace", into = "wire::Namespace")]
pub(super) struct NamespaceFacts {
    pub(super) name: Box<str>,
    pub(super) uid: Box<str>,
    pub(super) resource_version: Box<str>,
    pub(super) labels: Labels,
}

impl Cached for NamespaceFacts {
    fn namespace(&self) -> &str {
        ""
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn uid(&self) -> &str {
        &self.uid
    }

    fn resource_version(&self) -> &str {
        &self.resource_version
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_slim_view_and_the_typed_pod_agree() {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": "web", "namespace": "shop", "uid": "u", "resourceVersion": "7", "labels": { "b": "2", "a": "1" } },
            "spec": {
                "nodeName": "n1",
                "containers": [{ "name": "c", "ports": [{ "name": "http", "containerPort": 80 }, { "containerPort": 81 }] }],
                "initContainers": [
                    { "name": "s", "restartPolicy": "Always", "ports": [{ "name": "dns", "containerPort": 53, "protocol": "UDP" }] },
                    { "name": "i", "ports": [{ "name": "no", "containerPort": 1 }] },
                ],
            },
            "status": { "phase": "Running", "podIP": "10.42.0.7", "podIPs": [{ "ip": "10.42.0.7" }] },
        });
        let slim: PodFacts = serde_json::from_value(pod.clone()).unwrap();
        let typed: Pod = serde_json::from_value(pod).unwrap();
        assert_eq!(slim, PodFacts::from(&typed));
        assert_eq!(
            serde_json::from_value::<PodFacts>(serde_json::to_value(&slim).unwrap()).unwrap(),
            slim,
            "as it is kept on disk"
        );
        assert_eq!((slim.labels.value("a"), slim.labels.value("c")), (Some("1"), None));
        let ports: Vec<_> = slim.ports.iter().map(|port| (&*port.name, port.protocol, port.port)).collect();
        assert_eq!(ports, [("http", Protocol::Tcp, 80), ("dns", Protocol::Udp, 53)]);
        assert_eq!(slim.peer_ip(), Some(Ipv4Addr::new(10, 42, 0, 7)));
    }

    #[test]
    fn pods_that_are_no_peers() {
        for (field, value) in
            [("/spec", json!({ "hostNetwork": true })), ("/status", json!({ "phase": "Failed", "podIP": "1.2.3.4" }))]
        {
            let mut pod = json!({ "metadata": { "name": "x" }, "spec": {}, "status": { "podIP": "1.2.3.4" } });
            *pod.pointer_mut(field).unwrap() = value;
            let facts: PodFacts = serde_json::from_value(pod).unwrap();
            assert_eq!((facts.ip, facts.peer_ip()), (Some(Ipv4Addr::new(1, 2, 3, 4)), None));
        }
    }
}
