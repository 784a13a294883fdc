//! A naive reading of the API's words: no sets, no chains, nothing shared, straight from the typed objects.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::api::networking::v1::{NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::super::facts::Protocol;
use super::model::Packet;

pub(super) struct World {
    pub(super) policies: Vec<NetworkPolicy>,
    pub(super) namespaces: Vec<Namespace>,
    pub(super) pods: Vec<Pod>,
    /// The node whose kernel is asked.
    pub(super) node: String,
}

type Labels = Option<std::collections::BTreeMap<String, String>>;

fn selects(selector: &LabelSelector, labels: &Labels) -> bool {
    let value = |key: &str| labels.as_ref().and_then(|labels| labels.get(key));
    selector.match_labels.iter().flatten().all(|(key, wanted)| value(key) == Some(wanted))
        && selector.match_expressions.iter().flatten().all(|term| {
            let is_in = value(&term.key).is_some_and(|value| term.values.iter().flatten().any(|each| each == value));
            match term.operator.as_str() {
                "In" => is_in,
                "NotIn" => !is_in,
                "Exists" => value(&term.key).is_some(),
                "DoesNotExist" => value(&term.key).is_none(),
                other => panic!("{other}"),
            }
        })
}

fn ip_of(pod: &Pod) -> Option<Ipv4Addr> {
    let is_host = pod.spec.as_ref().unwrap().host_network == Some(true);
    let status = pod.status.as_ref()?;
    let is_finished = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
    status.pod_ip.as_ref().filter(|_| !is_host && !is_finished).map(|ip| ip.parse().unwrap())
}

impl World {
    fn pods_at(&self, ip: Ipv4Addr) -> impl Iterator<Item = &Pod> {
        self.pods.iter().filter(move |pod| ip_of(pod) == Some(ip))
    }

    /// Whether the node lets a packet pass that begins a connection.
    pub(super) fn lets(&self, packet: Packet) -> bool {
        let on_node = |pod: &&Pod| pod.spec.as_ref().unwrap().node_name.as_deref() == Some(&self.node);
        let mut senders = self.pods_at(packet.from).filter(on_node);
        let mut receivers = self.pods_at(packet.to).filter(on_node);
        packet.from == packet.to
            || (senders.all(|pod| self.may(pod, packet, false)) && receivers.all(|pod| self.may(pod, packet, true)))
    }

    fn may(&self, pod: &Pod, packet: Packet, ingress: bool) -> bool {
        let mut isolated = false;
        for policy in self.policies.iter().filter(|policy| policy.metadata.namespace == pod.metadata.namespace) {
            let spec = policy.spec.as_ref().unwrap();
            if !selects(spec.pod_selector.as_ref().unwrap(), &pod.metadata.labels) {
                continue;
            }
            let types = spec.policy_types.clone().unwrap_or_default();
            let applies = match (types.is_empty(), ingress) {
                (true, true) => true,
                (true, false) => spec.egress.as_ref().is_some_and(|rules| !rules.is_empty()),
                (false, _) => types.iter().any(|kind| kind == if ingress { "Ingress" } else { "Egress" }),
            };
            if !applies {
                continue;
            }
            isolated = true;
            let rules: Vec<_> = if ingress {
                spec.ingress.iter().flatten().map(|rule| (rule.from.clone(), rule.ports.clone())).collect()
            } else {
                spec.egress.iter().flatten().map(|rule| (rule.to.clone(), rule.ports.clone())).collect()
            };
            let peer = if ingress { packet.from } else { packet.to };
            for (peers, ports) in rules {
                let (peers, ports) = (peers.unwrap_or_default(), ports.unwrap_or_default());
                let by_peer = |each: Option<&NetworkPolicyPeer>| {
                    // A name means a port of the destination: of the pod itself, or of the peer that this entry selects.
                    let targets: Vec<&Pod> = if ingress { vec![pod] } else { self.matched(policy, each, peer) };
                    let is_peer = match each {
                        None => true,
                        Some(each) => match &each.ip_block {
                            Some(block) => in_block(&block.cidr, block.except.as_deref(), peer),
                            None => !self.matched(policy, Some(each), peer).is_empty(),
                        },
                    };
                    is_peer && (ports.is_empty() || ports.iter().any(|port| port_matches(port, packet.port, &targets)))
                };
                if (peers.is_empty() && by_peer(None)) || peers.iter().any(|each| by_peer(Some(each))) {
                    return true;
                }
            }
        }
        !isolated
    }

    /// The pods of an address that an entry selects; all for no entry, none for a block.
    fn matched(&self, policy: &NetworkPolicy, peer: Option<&NetworkPolicyPeer>, ip: Ipv4Addr) -> Vec<&Pod> {
        let Some(peer) = peer else { return self.pods_at(ip).collect() };
        if peer.ip_block.is_some() {
            return Vec::new();
        }
        let in_namespace = |pod: &Pod| match &peer.namespace_selector {
            None => pod.metadata.namespace == policy.metadata.namespace,
            Some(selector) => self.namespaces.iter().any(|namespace| {
                namespace.metadata.name == pod.metadata.namespace && selects(selector, &namespace.metadata.labels)
            }),
        };
        let selected = |pod: &Pod| peer.pod_selector.as_ref().is_none_or(|selector| selects(selector, &pod.metadata.labels));
        self.pods_at(ip).filter(|pod| in_namespace(pod) && selected(pod)).collect()
    }
}

fn in_block(cidr: &str, except: Option<&[String]>, ip: Ipv4Addr) -> bool {
    let within = |net: &str| net.parse::<Ipv4Net>().is_ok_and(|net| net.contains(&ip));
    within(cidr) && !except.unwrap_or_default().iter().any(|hole| within(hole))
}

fn port_matches(port: &NetworkPolicyPort, packet: Option<(Protocol, u16)>, targets: &[&Pod]) -> bool {
    let Some((protocol, number)) = packet else { return false };
    if Protocol::of(port.protocol.as_deref()) != Some(protocol) {
        return false;
    }
    match &port.port {
        None => true,
        Some(IntOrString::Int(first)) => (*first..=port.end_port.unwrap_or(*first)).contains(&i32::from(number)),
        Some(IntOrString::String(name)) => targets.iter().any(|pod| {
            let containers = &pod.spec.as_ref().unwrap().containers;
            containers.iter().flat_map(|container| container.ports.iter().flatten()).any(|each| {
                each.name.as_ref() == Some(name)
                    && Protocol::of(each.protocol.as_deref()) == Some(protocol)
                    && each.container_port == i32::from(number)
            })
        }),
    }
}
