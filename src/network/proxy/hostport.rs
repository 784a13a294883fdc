//! Host ports: ports of this node that lead to a pod of this node (`containers[*].ports[*].hostPort`).

use std::net::Ipv4Addr;

use serde::Deserialize;

use super::Protocol;
use super::endpoints::Target;
use crate::client::Cached;

/// A port of this node, and where it leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct HostPort {
    /// `None`: all addresses of this node.
    pub(super) ip: Option<Ipv4Addr>,
    pub(super) protocol: Protocol,
    pub(super) port: u16,
    pub(super) target: Target,
}

impl HostPort {
    /// What no two pods of a node can have both.
    pub(super) const fn key(&self) -> (Option<Ipv4Addr>, Protocol, u16) {
        (self.ip, self.protocol, self.port)
    }
}

/// What of a pod matters for its host ports; all else of it is not kept in memory.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
pub(super) struct PodPorts {
    metadata: PodMeta,
    #[serde(default)]
    spec: PodSpec,
    #[serde(default)]
    status: PodStatus,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PodMeta {
    namespace: String,
    name: String,
    uid: String,
    resource_version: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PodSpec {
    host_network: bool,
    containers: Vec<Container>,
    init_containers: Vec<Container>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
struct Container {
    ports: Vec<ContainerPort>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ContainerPort {
    container_port: u16,
    host_port: u16,
    #[serde(rename = "hostIP")]
    host_ip: String,
    protocol: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
struct PodStatus {
    phase: String,
    #[serde(rename = "podIP")]
    pod_ip: String,
}

impl Cached for PodPorts {
    fn namespace(&self) -> &str {
        &self.metadata.namespace
    }

    fn name(&self) -> &str {
        &self.metadata.name
    }

    fn uid(&self) -> &str {
        &self.metadata.uid
    }

    fn resource_version(&self) -> &str {
        &self.metadata.resource_version
    }
}

impl PodPorts {
    /// The host ports that lead to this pod now: none before it has an address and after it has ended.
    pub(super) fn host_ports(&self) -> Vec<HostPort> {
        let ended = matches!(self.status.phase.as_str(), "Succeeded" | "Failed");
        let Ok(pod_ip) = self.status.pod_ip.parse::<Ipv4Addr>() else { return Vec::new() };
        if ended || self.spec.host_network {
            return Vec::new();
        }
        let containers = self.spec.init_containers.iter().chain(&self.spec.containers);
        let ports = containers.flat_map(|container| &container.ports).filter(|port| port.host_port > 0);
        ports.filter_map(|port| host_port(port, pod_ip)).collect()
    }
}

fn host_port(port: &ContainerPort, pod_ip: Ipv4Addr) -> Option<HostPort> {
    let ip = match port.host_ip.as_str() {
        "" | "0.0.0.0" => None,
        address => Some(address.parse().ok()?),
    };
    let target = Target { ip: pod_ip, port: port.container_port };
    Some(HostPort { ip, protocol: Protocol::of(port.protocol.as_deref())?, port: port.host_port, target })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(spec: &str, status: &str, wanted: &[&str]) {
        let text = format!(r#"{{"metadata":{{"name":"p","namespace":"d"}},"spec":{spec},"status":{status}}}"#);
        let pod: PodPorts = serde_json::from_str(&text).unwrap();
        let show = |port: &HostPort| {
            format!("{:?} {:?} {} -> {}:{}", port.ip, port.protocol, port.port, port.target.ip, port.target.port)
        };
        assert_eq!(pod.host_ports().iter().map(show).collect::<Vec<_>>(), wanted, "{text}");
    }

    #[test]
    fn ports_of_running_pods_count() {
        let running = r#"{"phase":"Running","podIP":"10.1.0.4"}"#;
        let spec = r#"{"containers":[{"ports":[{"containerPort":80,"hostPort":8080},{"containerPort":53,"protocol":"UDP"},
            {"containerPort":53,"hostPort":54,"hostIP":"127.0.0.1","protocol":"UDP"}]}]}"#;
        check(spec, running, &["None Tcp 8080 -> 10.1.0.4:80", "Some(127.0.0.1) Udp 54 -> 10.1.0.4:53"]);
        check(spec, r#"{"phase":"Pending"}"#, &[]);
        check(spec, r#"{"phase":"Failed","podIP":"10.1.0.4"}"#, &[]);
        check(&spec.replacen('{', r#"{"hostNetwork":true,"#, 1), running, &[]);
        check("{}", "{}", &[]);
    }
}
