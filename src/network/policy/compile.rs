//! A NetworkPolicy in the form in which it is evaluated. Semantics are those of `networking.k8s.io/v1`: absent and empty lists of
//! peers or ports mean "all", an empty list of rules means "none", a rule whose entries match nothing allows nothing.

use std::sync::Arc;

use ipnet::Ipv4Net;
use k8s_openapi::api::networking::v1::{IPBlock, NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::facts::Protocol;
use super::ranges::{self, AddressRange};
use crate::api::selector::label::Selector;

/// One policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Policy {
    /// The pods of the policy's namespace that it is about.
    pub(super) pods: Selector,
    /// What may come in; `None` if the policy is not about ingress.
    pub(super) ingress: Option<Vec<Rule>>,
    /// What may go out; `None` if the policy is not about egress.
    pub(super) egress: Option<Vec<Rule>>,
}

/// Peers and ports that are allowed together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) peers: Peers,
    pub(super) ports: Ports,
}

/// The other side of the traffic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Peers {
    /// Everybody.
    All,
    /// Pods or blocks of addresses; neither is nobody.
    These {
        pods: Option<Arc<PodPeers>>,
        blocks: Option<Arc<[AddressRange]>>,
        /// Whether the blocks hold the address of every pod, and so that of DNS, wherever it answers.
        hold_all_pods: bool,
    },
}

/// Pods by selector: one that any of the entries selects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum PodPeers {
    /// Every pod: for named ports of a rule that says nothing of peers.
    Every,
    Selected(Vec<PodPeer>),
}

/// An entry with selectors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PodPeer {
    pub(super) namespaces: Namespaces,
    pub(super) pods: Selector,
}

/// The namespaces of the peers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Namespaces {
    /// The policy's own.
    Own(Box<str>),
    Selected(Selector),
}

/// Ports at the destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Ports {
    /// Every port of every protocol, and what has no ports.
    All,
    These(Vec<Port>),
}

/// An entry of a list of ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Port {
    /// Every port of a protocol.
    Every(Protocol),
    /// First and last.
    Range(Protocol, u16, u16),
    /// The container port of that name at the destination pod.
    Named(Protocol, Box<str>),
}

impl Policy {
    /// What a policy means, where `cluster_cidr` is the range of all pods. What the API would have refused matches nothing.
    pub(super) fn compile(policy: &NetworkPolicy, cluster_cidr: Ipv4Net) -> Self {
        let namespace = policy.metadata.namespace.as_deref().unwrap_or("");
        let Some(spec) = &policy.spec else {
            return Self { pods: Selector::everything(), ingress: Some(Vec::new()), egress: None };
        };
        let types = spec.policy_types.as_deref().unwrap_or_default();
        let is_about = |name: &str, otherwise: bool| match types {
            [] => otherwise,
            types => types.iter().any(|kind| kind == name),
        };
        let has_egress = spec.egress.as_ref().is_some_and(|rules| !rules.is_empty());
        let ingress = is_about("Ingress", true).then(|| {
            let rules = spec.ingress.iter().flatten();
            rules.map(|rule| compile_rule(namespace, rule.from.as_deref(), rule.ports.as_deref(), cluster_cidr)).collect()
        });
        let egress = is_about("Egress", has_egress).then(|| {
            let rules = spec.egress.iter().flatten();
            rules.map(|rule| compile_rule(namespace, rule.to.as_deref(), rule.ports.as_deref(), cluster_cidr)).collect()
        });
        let pods = spec.pod_selector.as_ref().map_or_else(Selector::everything, selector);
        Self { pods, ingress, egress }
    }
}

fn selector(typed: &LabelSelector) -> Selector {
    Selector::try_from(typed).unwrap_or_else(|error| {
        tracing::warn!(error, "a selector of a network policy selects nothing");
        Selector::nothing()
    })
}

fn compile_rule(
    namespace: &str,
    peers: Option<&[NetworkPolicyPeer]>,
    ports: Option<&[NetworkPolicyPort]>,
    cluster_cidr: Ipv4Net,
) -> Rule {
    let peers = match peers.unwrap_or_default() {
        [] => Peers::All,
        peers => {
            let ranges = ranges::blocks(peers.iter().filter_map(|peer| ip_block(peer.ip_block.as_ref()?)));
            let hold_all_pods = ranges::hold(&ranges, cluster_cidr);
            let blocks = (!ranges.is_empty()).then(|| ranges.into());
            Peers::These { pods: pods(namespace, peers), blocks, hold_all_pods }
        }
    };
    let ports = match ports.unwrap_or_default() {
        [] => Ports::All,
        ports => Ports::These(ports.iter().filter_map(port).collect()),
    };
    Rule { peers, ports }
}

fn pods(namespace: &str, peers: &[NetworkPolicyPeer]) -> Option<Arc<PodPeers>> {
    let mut selected: Vec<PodPeer> = Vec::new();
    for peer in peers.iter().filter(|peer| peer.pod_selector.is_some() || peer.namespace_selector.is_some()) {
        let namespaces = match &peer.namespace_selector {
            Some(typed) => Namespaces::Selected(selector(typed)),
            None => Namespaces::Own(namespace.into()),
        };
        let pods = peer.pod_selector.as_ref().map_or_else(Selector::everything, selector);
        selected.push(PodPeer { namespaces, pods });
    }
    // Equal sets of peers of different rules are found to be equal.
    selected.sort_by_cached_key(ToString::to_string);
    selected.dedup();
    (!selected.is_empty()).then(|| Arc::new(PodPeers::Selected(selected)))
}

/// A block of IPv6 addresses holds no address that a pod has.
fn ip_block(block: &IPBlock) -> Option<(Ipv4Net, Vec<Ipv4Net>)> {
    let net: Ipv4Net = block.cidr.parse().ok()?;
    Some((net, block.except.iter().flatten().filter_map(|except| except.parse().ok()).collect()))
}

fn port(entry: &NetworkPolicyPort) -> Option<Port> {
    let protocol = Protocol::of(entry.protocol.as_deref())?;
    match &entry.port {
        None => Some(Port::Every(protocol)),
        Some(IntOrString::String(name)) => Some(Port::Named(protocol, name.as_str().into())),
        Some(IntOrString::Int(first)) => {
            let first = u16::try_from(*first).ok()?;
            let last = entry.end_port.map_or(Some(first), |end| u16::try_from(end).ok())?;
            (first <= last).then_some(Port::Range(protocol, first, last))
        }
    }
}

/// A selector as text that is unambiguous: "nothing" differs from "everything".
struct Text<'a>(&'a Selector);

impl std::fmt::Display for Text<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let is_nothing = self.0.requirements.is_empty() && !self.0.is_everything();
        if is_nothing { formatter.write_str("!") } else { write!(formatter, "{}", self.0) }
    }
}

impl std::fmt::Display for PodPeer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.namespaces {
            Namespaces::Own(name) => write!(formatter, "in {name}"),
            Namespaces::Selected(selector) => write!(formatter, "in [{}]", Text(selector)),
        }?;
        write!(formatter, " pods [{}]", Text(&self.pods))
    }
}

impl std::fmt::Display for PodPeers {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Every => formatter.write_str("every pod"),
            Self::Selected(peers) => peers.iter().try_for_each(|peer| write!(formatter, "{peer};")),
        }
    }
}
