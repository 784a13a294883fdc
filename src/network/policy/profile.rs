//! What the policies that select a pod allow it, in one direction: the content of a chain. Pods with equal content share a chain.

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;
use std::sync::Arc;

use super::compile::{Namespaces, Peers, PodPeers, Policy, Port, Ports, Rule};
use super::facts::{Labels, NamedPort, PodFacts, Protocol};
use super::ranges::{self, AddressRange};
use crate::api::selector::Values;
use crate::network::attach::hex;

/// The port of DNS.
pub(crate) const DNS_PORT: u16 = 53;
/// Where the cluster's DNS would run if it were pods.
pub(super) const DNS_NAMESPACE: &str = "kube-system";
const DNS_LABEL: (&str, &str) = ("k8s-app", "kube-dns");

/// Which way, seen from the pod that a policy selects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Direction {
    Ingress,
    Egress,
}

impl Direction {
    /// Both, in the order in which arrays of two hold them.
    pub(crate) const BOTH: [Self; 2] = [Self::Ingress, Self::Egress];
}

/// The name of a set or of a chain: a word for what it holds and a hash of its definition.
pub(crate) type Name = Arc<str>;

/// What a set of the kernel holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SetSpec {
    /// Addresses of the pods that are selected now.
    Pods(Arc<PodPeers>),
    /// Address, protocol and number of the named ports of the pods that are selected now.
    Endpoints(Arc<PodPeers>, Protocol, Box<str>),
    /// Ranges of addresses; they never change.
    Blocks(Arc<[AddressRange]>),
    /// Ranges of ports; they never change.
    Ports(Arc<[(u16, u16)]>),
}

impl fmt::Display for SetSpec {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pods(peers) => write!(formatter, "{peers}"),
            Self::Endpoints(peers, protocol, name) => write!(formatter, "{protocol:?} {name} of {peers}"),
            Self::Blocks(ranges) => write!(formatter, "{ranges:?}"),
            Self::Ports(ranges) => write!(formatter, "{ranges:?}"),
        }
    }
}

impl SetSpec {
    fn name(&self) -> Name {
        let word = match self {
            Self::Pods(_) => "pods",
            Self::Endpoints(..) => "endpoints",
            Self::Blocks(_) => "blocks",
            Self::Ports(_) => "ports",
        };
        format!("{word}-{}", hex(&self.to_string())).into()
    }
}

/// The other side's address.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum PeerMatch {
    Any,
    /// In a set of addresses, or of ranges of addresses.
    In(Name),
}

/// The port at the destination.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum PortMatch {
    Any,
    Every(Protocol),
    /// In a set of ranges of ports.
    In(Protocol, Name),
}

/// One thing that is allowed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Allow {
    Traffic {
        peers: PeerMatch,
        ports: PortMatch,
    },
    /// The destination's address, protocol and port are in a set.
    Endpoints(Name),
    /// The cluster's DNS.
    Dns(Protocol),
}

/// What a pod may do in one direction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Profile {
    /// Everything: no policy selects it, or one allows all.
    Open,
    /// Only this.
    Only(Content),
}

/// The content of a chain, and the sets that it looks into.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Content {
    pub(super) allows: Vec<Allow>,
    pub(super) sets: BTreeMap<Name, SetSpec>,
}

impl Content {
    /// The name of the chain that holds this.
    pub(super) fn name(&self, direction: Direction) -> Name {
        let word = match direction {
            Direction::Ingress => "ingress",
            Direction::Egress => "egress",
        };
        format!("{word}-{}", hex(&format!("{:?}", self.allows))).into()
    }

    fn set(&mut self, spec: SetSpec) -> Name {
        let name = spec.name();
        self.sets.entry(Arc::clone(&name)).or_insert(spec);
        name
    }
}

/// The labels of the namespace in which the cluster's DNS would run, if it is there.
pub(super) type DnsLabels<'a> = Option<&'a Labels>;

/// What a pod may do, from the policies of its namespace.
pub(super) fn resolve<'a>(
    direction: Direction,
    pod: &PodFacts,
    policies: impl Iterator<Item = &'a Policy>,
    dns: DnsLabels<'_>,
) -> Profile {
    let (mut content, mut is_isolated) = (Content::default(), false);
    for policy in policies.filter(|policy| policy.pods.matches(&pod.labels)) {
        let rules = match direction {
            Direction::Ingress => &policy.ingress,
            Direction::Egress => &policy.egress,
        };
        is_isolated |= rules.is_some();
        for rule in rules.iter().flatten() {
            if matches!((&rule.peers, &rule.ports), (Peers::All, Ports::All)) {
                return Profile::Open;
            }
            add(&mut content, direction, pod, rule, dns);
        }
    }
    if !is_isolated {
        return Profile::Open;
    }
    content.allows.sort();
    content.allows.dedup();
    Profile::Only(content)
}

fn add(content: &mut Content, direction: Direction, pod: &PodFacts, rule: &Rule, dns: DnsLabels<'_>) {
    let ports = port_matches(content, direction, pod, &rule.ports);
    if !ports.is_empty() {
        for peers in peer_matches(content, &rule.peers) {
            content.allows.extend(ports.iter().map(|ports| Allow::Traffic { peers: peers.clone(), ports: ports.clone() }));
        }
    }
    if direction == Direction::Ingress {
        return;
    }
    let (peers, hold_all_pods) = match &rule.peers {
        Peers::All => (Some(Arc::new(PodPeers::Every)), false),
        Peers::These { pods, hold_all_pods, .. } => (pods.clone(), *hold_all_pods),
    };
    if let (Some(peers), Ports::These(ports)) = (&peers, &rule.ports) {
        for port in ports {
            if let Port::Named(protocol, name) = port {
                let set = content.set(SetSpec::Endpoints(Arc::clone(peers), *protocol, name.clone()));
                content.allows.push(Allow::Endpoints(set));
            }
        }
    }
    if hold_all_pods || peers.is_some_and(|peers| selects_dns(&peers, dns)) {
        let protocols = [(Protocol::Udp, "dns"), (Protocol::Tcp, "dns-tcp")];
        let allowed = protocols.into_iter().filter(|(protocol, name)| includes(&rule.ports, *protocol, DNS_PORT, name));
        content.allows.extend(allowed.map(|(protocol, _)| Allow::Dns(protocol)));
    }
}

fn peer_matches(content: &mut Content, peers: &Peers) -> Vec<PeerMatch> {
    match peers {
        Peers::All => vec![PeerMatch::Any],
        Peers::These { pods, blocks, .. } => {
            let specs = pods.clone().map(SetSpec::Pods).into_iter().chain(blocks.clone().map(SetSpec::Blocks));
            specs.map(|spec| PeerMatch::In(content.set(spec))).collect()
        }
    }
}

/// At most one match a protocol. At ingress a name means the port of that name of the pod itself; at egress the peers' ports
/// count, and they are in sets of endpoints.
fn port_matches(content: &mut Content, direction: Direction, pod: &PodFacts, ports: &Ports) -> Vec<PortMatch> {
    let Ports::These(ports) = ports else { return vec![PortMatch::Any] };
    let mut matches = Vec::new();
    for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
        if ports.contains(&Port::Every(protocol)) {
            matches.push(PortMatch::Every(protocol));
            continue;
        }
        let mut numbers = Vec::new();
        for port in ports {
            match port {
                Port::Range(of, first, last) if *of == protocol => numbers.push((u32::from(*first), u32::from(*last))),
                Port::Named(of, name) if *of == protocol && direction == Direction::Ingress => {
                    numbers.extend(named(&pod.ports, protocol, name).map(|port| (u32::from(port), u32::from(port))));
                }
                _ => {}
            }
        }
        if !numbers.is_empty() {
            let port = |number: u32| u16::try_from(number).unwrap_or(u16::MAX);
            let ranges = ranges::join(numbers).into_iter().map(|(first, last)| (port(first), port(last)));
            let ranges = ranges.collect::<Vec<_>>().into();
            matches.push(PortMatch::In(protocol, content.set(SetSpec::Ports(ranges))));
        }
    }
    matches
}

/// The numbers of the ports of that name.
pub(super) fn named<'a>(ports: &'a [NamedPort], protocol: Protocol, name: &'a str) -> impl Iterator<Item = u16> + 'a {
    ports.iter().filter(move |port| port.protocol == protocol && &*port.name == name).map(|port| port.port)
}

fn includes(ports: &Ports, protocol: Protocol, number: u16, name: &str) -> bool {
    let Ports::These(ports) = ports else { return true };
    ports.iter().any(|port| match port {
        Port::Every(of) => *of == protocol,
        Port::Range(of, first, last) => *of == protocol && (*first..=*last).contains(&number),
        Port::Named(of, text) => *of == protocol && &**text == name,
    })
}

/// Whether peers would include the pods that answer DNS in other clusters.
fn selects_dns(peers: &PodPeers, labels: DnsLabels<'_>) -> bool {
    struct DnsPod;
    impl Values for DnsPod {
        fn value(&self, key: &str) -> Option<&str> {
            (key == DNS_LABEL.0).then_some(DNS_LABEL.1)
        }
    }
    selects(peers, DNS_NAMESPACE, labels, &DnsPod)
}

/// Whether peers include a pod of these labels in this namespace; its labels are `None` if there is no such namespace.
pub(super) fn selects(peers: &PodPeers, namespace: &str, of_namespace: Option<&Labels>, labels: &impl Values) -> bool {
    let PodPeers::Selected(peers) = peers else { return true };
    peers.iter().any(|peer| {
        let is_there = match &peer.namespaces {
            Namespaces::Own(own) => &**own == namespace,
            Namespaces::Selected(selector) => of_namespace.is_some_and(|labels| selector.matches(labels)),
        };
        is_there && peer.pods.matches(labels)
    })
}

/// An element of a set whose content follows the pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Element {
    Address(Ipv4Addr),
    Endpoint(Ipv4Addr, Protocol, u16),
}
