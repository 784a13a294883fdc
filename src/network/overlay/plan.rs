//! What the kernel has to hold so that the pods of all nodes reach each other, and how to get there from what it holds: pure functions.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use ring::digest::{SHA256, digest};

use super::peers::Peer;

/// The number by which our routes and rules are known (`ip route show proto 111`). Nobody has registered it.
pub(super) const PROTOCOL: u8 = 111;
/// The table that everybody's routes are in.
pub(super) const MAIN_TABLE: u32 = 254;
/// What VXLAN puts before a packet: the inner Ethernet header, VXLAN, UDP and IPv4.
pub(super) const OVERHEAD: u32 = 50;
/// The metric of the route that catches what no pod of this node has; everything comes before it.
const LAST_METRIC: u32 = 0x7fff_ffff;

/// How a peer is reached, as the kernel's routes say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Path {
    /// Another agent on this very machine: its pods' routes are here already.
    Local,
    /// It stands on the same Ethernet.
    OnLink { interface: u32 },
    /// Behind a gateway, or on a link that carries nobody else's addresses (a tunnel). With the MTU on the way, as far as is known.
    Routed { mtu: u32 },
    /// The kernel knows no way now: what is there stays.
    Unreachable,
}

/// Where a route leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Hop {
    Via {
        gateway: Ipv4Addr,
        interface: u32,
        onlink: bool,
        source: Option<Ipv4Addr>,
        mtu: Option<u32>,
    },
    Unreachable,
    /// Something that we never make, as `ip route` shows it.
    Other(String),
}

/// A route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Route {
    pub(super) table: u32,
    pub(super) destination: Ipv4Net,
    pub(super) metric: u32,
    pub(super) hop: Hop,
}

/// A route of the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SeenRoute {
    pub(super) route: Route,
    pub(super) protocol: u8,
    /// It leads to a pod of this machine.
    pub(super) is_pod: bool,
    /// As `ip route` shows it, for people.
    pub(super) text: String,
}

/// The neighbour on the VXLAN device that stands for a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Neighbour {
    pub(super) ip: Ipv4Addr,
    pub(super) mac: [u8; 6],
}

/// An entry of the VXLAN device's forwarding database: frames for `mac` go to `node`, which listens on the network `vni`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Forward {
    pub(super) mac: [u8; 6],
    pub(super) node: Ipv4Addr,
    pub(super) vni: u32,
}

/// A rule: what comes from `source` looks into `table` first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) source: Ipv4Net,
    pub(super) table: u32,
}

/// All that is to be in the kernel, or that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct State<R> {
    pub(super) routes: Vec<R>,
    pub(super) neighbours: Vec<Neighbour>,
    pub(super) forwards: Vec<Forward>,
    pub(super) rules: Vec<Rule>,
}

impl<R> Default for State<R> {
    fn default() -> Self {
        Self { routes: vec![], neighbours: vec![], forwards: vec![], rules: vec![] }
    }
}

/// One change of the kernel's state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Action {
    AddRoute(Route),
    /// In the place of ours with the same destination.
    ReplaceRoute(Route),
    RemoveRoute(Route),
    SetNeighbour(Neighbour),
    RemoveNeighbour(Neighbour),
    SetForward(Forward),
    RemoveForward(Forward),
    AddRule(Rule),
    RemoveRule(Rule),
}

/// Why the pods of a node cannot be reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Problem {
    pub(super) node: String,
    pub(super) destination: Ipv4Net,
    pub(super) why: String,
}

/// This node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Own {
    pub(super) name: String,
    pub(super) ip: Ipv4Addr,
    /// Whether an interface has that address: then packets of the node itself leave with it.
    pub(super) ip_is_local: bool,
    pub(super) pod_cidr: Ipv4Net,
    pub(super) cluster_cidr: Ipv4Net,
}

/// Digits of a name's hash: what other nodes need to know of a node follows from its name, so nothing has to be published.
fn hashed(purpose: &str, name: &str) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&digest(&SHA256, format!("{purpose}:{name}").as_bytes()).as_ref()[..8]);
    bytes
}

/// The address of a node's VXLAN device: locally administered.
pub(super) fn mac(node: &str) -> [u8; 6] {
    let mut mac = [0x0e; 6];
    mac[1..].copy_from_slice(&hashed("vtep", node)[..5]);
    mac
}

/// The network on which a node listens. Each has its own, so that several agents share a machine and the one UDP port.
pub(super) fn vni(node: &str) -> u32 {
    let [high, middle, low, ..] = hashed("vni", node);
    u32::from_be_bytes([0, high, middle, low]).max(1)
}

/// The table with this node's ways to other nodes' own addresses.
pub(super) fn table(node: &str) -> u32 {
    let [one, two, three, ..] = hashed("table", node);
    u32::from_be_bytes([PROTOCOL, one, two, three])
}

/// The MTU that a VXLAN device must have; `None` when none is needed. While a peer is unreachable the device that is there stays.
pub(super) fn vxlan_mtu(peers: &[(Peer, Path)], present: Option<u32>) -> Option<u32> {
    let routed = peers.iter().filter_map(|(_, path)| if let Path::Routed { mtu } = path { Some(*mtu) } else { None });
    let needed = routed.max().map(|mtu| mtu.saturating_sub(OVERHEAD));
    let is_kept = peers.iter().any(|(_, path)| *path == Path::Unreachable);
    needed.or(present.filter(|_| is_kept))
}

/// The nodes that pods reach with their own address: the way there is the way back.
pub(super) fn answering(peers: &[(Peer, Path)]) -> Vec<Ipv4Addr> {
    peers.iter().filter(|(_, path)| *path != Path::Local).map(|(peer, _)| peer.ip).collect()
}

/// What the kernel has to hold. `vxlan` is the index of the VXLAN device, when there is one.
pub(super) fn wanted(own: &Own, peers: &[(Peer, Path)], vxlan: Option<u32>) -> State<Route> {
    let source = own.ip_is_local.then_some(own.ip);
    let mut state = State::default();
    let catch = Route { table: MAIN_TABLE, destination: own.pod_cidr, metric: LAST_METRIC, hop: Hop::Unreachable };
    state.routes.push(catch);
    for (peer, path) in peers {
        let route = |hop| Route { table: MAIN_TABLE, destination: peer.pod_cidr, metric: 0, hop };
        match (*path, vxlan) {
            (Path::OnLink { interface }, _) => {
                state.routes.push(route(Hop::Via { gateway: peer.ip, interface, onlink: false, source, mtu: None }));
            }
            (Path::Routed { mtu }, Some(interface)) => {
                let (gateway, mtu) = (peer.pod_cidr.network(), Some(mtu.saturating_sub(OVERHEAD)));
                state.routes.push(route(Hop::Via { gateway, interface, onlink: true, source, mtu }));
                let to_node = Ipv4Net::from(peer.ip);
                let hop = Hop::Via { gateway, interface, onlink: true, source: None, mtu };
                state.routes.push(Route { table: table(&own.name), destination: to_node, metric: 0, hop });
            }
            (Path::Local | Path::Unreachable, _) | (Path::Routed { .. }, None) => {}
        }
        if vxlan.is_some() && matches!(path, Path::Routed { .. } | Path::Unreachable) {
            let mac = mac(&peer.name);
            state.neighbours.push(Neighbour { ip: peer.pod_cidr.network(), mac });
            state.forwards.push(Forward { mac, node: peer.ip, vni: vni(&peer.name) });
        }
    }
    if vxlan.is_some() {
        state.rules.push(Rule { source: own.pod_cidr, table: table(&own.name) });
    }
    state
}

/// Whether a route is one that this node may change: it carries our number, and is in the node's own table or within the cluster's
/// range (agents of other clusters on this machine have another).
pub(super) fn is_ours(own: &Own, seen: &SeenRoute) -> bool {
    let Route { table: its_table, destination, .. } = &seen.route;
    seen.protocol == PROTOCOL
        && (*its_table == table(&own.name) || (*its_table == MAIN_TABLE && own.cluster_cidr.contains(destination)))
}

/// Steps from what is there to what is wanted, and what stands in the way.
pub(super) fn plan(
    own: &Own,
    peers: &[(Peer, Path)],
    wanted: &State<Route>,
    seen: &State<SeenRoute>,
) -> (Vec<Action>, Vec<Problem>) {
    let mut actions = Vec::new();
    let ours: Vec<&Route> = seen.routes.iter().filter(|seen| is_ours(own, seen)).map(|seen| &seen.route).collect();
    let foreign: Vec<&SeenRoute> =
        seen.routes.iter().filter(|seen| !is_ours(own, seen) && !seen.is_pod && seen.route.table == MAIN_TABLE).collect();
    let key = |route: &Route| (route.table, route.destination, route.metric);
    let is_kept = |route: &Route| {
        peers.iter().any(|(peer, path)| match path {
            Path::Unreachable => route.destination == peer.pod_cidr || route.destination == Ipv4Net::from(peer.ip),
            // What catches the packets of that agent's range is its own.
            Path::Local => route.destination == peer.pod_cidr && route.hop == Hop::Unreachable,
            Path::OnLink { .. } | Path::Routed { .. } => false,
        })
    };
    let gone = ours.iter().filter(|route| !wanted.routes.iter().any(|wanted| key(wanted) == key(route)) && !is_kept(route));
    actions.extend(gone.map(|route| Action::RemoveRoute((*route).clone())));
    let neighbours = seen.neighbours.iter().filter(|seen| !wanted.neighbours.iter().any(|wanted| wanted.ip == seen.ip));
    actions.extend(neighbours.cloned().map(Action::RemoveNeighbour));
    let forwards = seen.forwards.iter().filter(|seen| !wanted.forwards.iter().any(|wanted| wanted.mac == seen.mac));
    actions.extend(forwards.cloned().map(Action::RemoveForward));
    // The ways first, then what leads onto them.
    let missing = |seen: &[Forward], wanted: &Forward| !seen.contains(wanted);
    actions.extend(wanted.forwards.iter().filter(|wanted| missing(&seen.forwards, wanted)).cloned().map(Action::SetForward));
    let neighbours = wanted.neighbours.iter().filter(|wanted| !seen.neighbours.contains(wanted));
    actions.extend(neighbours.cloned().map(Action::SetNeighbour));
    for route in &wanted.routes {
        let is_blocked = foreign.iter().any(|foreign| key(&foreign.route) == key(route));
        match ours.iter().find(|ours| key(ours) == key(route)) {
            Some(present) if *present == route => {}
            // Replacing takes the first that matches, which must not be another's.
            Some(_) if !is_blocked => actions.push(Action::ReplaceRoute(route.clone())),
            None if !is_blocked => actions.push(Action::AddRoute(route.clone())),
            _ => {}
        }
    }
    let rules = seen.rules.iter().filter(|seen| !wanted.rules.contains(seen));
    actions.extend(rules.cloned().map(Action::RemoveRule));
    actions.extend(wanted.rules.iter().filter(|wanted| !seen.rules.contains(wanted)).cloned().map(Action::AddRule));
    (actions, problems(own, peers, &foreign))
}

/// Routes of others that take packets which are for pods.
fn problems(own: &Own, peers: &[(Peer, Path)], foreign: &[&SeenRoute]) -> Vec<Problem> {
    let of_peers = peers.iter().filter(|(_, path)| *path != Path::Local).map(|(peer, _)| (&peer.name, peer.pod_cidr));
    let mut problems = Vec::new();
    for (node, cidr) in of_peers.chain([(&own.name, own.pod_cidr)]) {
        let takes = |seen: &&&SeenRoute| {
            let destination = seen.route.destination;
            let is_own = cidr == own.pod_cidr;
            let is_same = destination == cidr && (is_own || seen.route.metric == 0);
            // A pod's route is more special than anything in the node's own range.
            is_same || (cidr.contains(&destination) && destination != cidr)
        };
        problems.extend(foreign.iter().filter(takes).map(|seen| Problem {
            node: node.clone(),
            destination: cidr,
            why: format!("the route \"{}\" is in the way; remove it, or choose another --cluster-cidr", seen.text),
        }));
    }
    problems
}

#[cfg(test)]
mod tests;
