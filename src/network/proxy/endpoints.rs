//! Which endpoints a port of a Service has, as seen from this node. It follows upstream's `proxy/topology.go` and
//! `proxy/endpointslicecache.go`.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::ServicePort;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};

use super::Protocol;

/// Where packets go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Target {
    pub(super) ip: Ipv4Addr,
    pub(super) port: u16,
}

/// What of this node matters for the choice.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct NodeView {
    pub(super) name: String,
    /// `topology.kubernetes.io/zone`.
    pub(super) zone: Option<String>,
}

/// An endpoint of one port, with the conditions as upstream's proxy reads them: what is not said is true, and not terminating.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) target: Target,
    is_ready: bool,
    is_serving: bool,
    is_terminating: bool,
    is_local: bool,
    for_nodes: Vec<String>,
    for_zones: Vec<String>,
}

/// The endpoints that each traffic policy uses.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Chosen {
    /// For policy Cluster.
    pub(super) cluster: Vec<Target>,
    /// For policy Local.
    pub(super) local: Vec<Target>,
    /// Whether there is any that could be used, on whatever node.
    pub(super) any: bool,
}

/// What of a Service's port matters for the choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Policies {
    pub(super) internal_local: bool,
    pub(super) external_local: bool,
    /// Has a NodePort, an external or a load balancer's address.
    pub(super) is_external: bool,
}

/// Endpoints of a port, from all slices of the Service; an address that stands in several is taken once.
pub(super) fn candidates(port: &ServicePort, slices: &[Arc<EndpointSlice>], node: &NodeView) -> Vec<Candidate> {
    let name = port.name.as_deref().unwrap_or("");
    let protocol = Protocol::of(port.protocol.as_deref());
    let mut found: BTreeMap<Target, Candidate> = BTreeMap::new();
    for slice in slices.iter().filter(|slice| slice.address_type == "IPv4") {
        let numbers = slice
            .ports
            .iter()
            .flatten()
            .filter(|port| port.name.as_deref().unwrap_or("") == name && Protocol::of(port.protocol.as_deref()) == protocol);
        let numbers: Vec<u16> = numbers.filter_map(|port| u16::try_from(port.port?).ok()).filter(|port| *port > 0).collect();
        for endpoint in slice.endpoints.iter().flatten() {
            let Some(ip) = endpoint.addresses.first().and_then(|address| address.parse().ok()) else { continue };
            for port in &numbers {
                let new = candidate(endpoint, Target { ip, port: *port }, node);
                let known = found.entry(new.target).or_insert_with(|| new.clone());
                if new.is_ready && !known.is_ready {
                    *known = new;
                }
            }
        }
    }
    found.into_values().collect()
}

fn candidate(endpoint: &Endpoint, target: Target, node: &NodeView) -> Candidate {
    let conditions = endpoint.conditions.as_ref();
    let hints = endpoint.hints.as_ref();
    Candidate {
        target,
        is_ready: conditions.and_then(|all| all.ready).unwrap_or(true),
        is_serving: conditions.and_then(|all| all.serving).unwrap_or(true),
        is_terminating: conditions.and_then(|all| all.terminating).unwrap_or(false),
        is_local: endpoint.node_name.as_deref() == Some(&node.name),
        for_nodes: hints.and_then(|all| all.for_nodes.as_ref()).into_iter().flatten().map(|hint| hint.name.clone()).collect(),
        for_zones: hints.and_then(|all| all.for_zones.as_ref()).into_iter().flatten().map(|hint| hint.name.clone()).collect(),
    }
}

impl Candidate {
    /// Serves, though it is on its way out: used when nothing is ready (KEP-1669).
    const fn is_last_resort(&self) -> bool {
        self.is_serving && self.is_terminating
    }
}

/// Sorts the endpoints of a port by what they are used for (upstream's `CategorizeEndpoints`).
pub(super) fn choose(candidates: &[Candidate], policies: Policies, node: &NodeView) -> Chosen {
    let uses_cluster = !policies.internal_local || policies.is_external;
    let uses_local = policies.internal_local || (policies.external_local && policies.is_external);
    let mut chosen = Chosen::default();
    if uses_cluster {
        let topology = Topology::of(candidates, node);
        chosen.cluster = targets(candidates, |one| one.is_ready && topology.allows(one, node));
        if chosen.cluster.is_empty() {
            chosen.cluster = targets(candidates, Candidate::is_last_resort);
        }
        chosen.any = !chosen.cluster.is_empty();
    }
    if uses_local {
        chosen.any |= candidates.iter().any(|one| one.is_ready || one.is_last_resort());
        chosen.local = targets(candidates, |one| one.is_local && one.is_ready);
        if chosen.local.is_empty() {
            chosen.local = targets(candidates, |one| one.is_local && one.is_last_resort());
        }
    }
    chosen
}

fn targets(candidates: &[Candidate], wanted: impl Fn(&Candidate) -> bool) -> Vec<Target> {
    candidates.iter().filter(|one| wanted(one)).map(|one| one.target).collect()
}

/// The addresses of ready endpoints on this node: what `healthCheckNodePort` counts.
pub(super) fn local_ready(candidates: &[Candidate]) -> impl Iterator<Item = Ipv4Addr> {
    candidates.iter().filter(|one| one.is_local && one.is_ready).map(|one| one.target.ip)
}

/// The addresses of this node's endpoints, whatever they are used for.
pub(super) fn local(candidates: &[Candidate]) -> impl Iterator<Item = Ipv4Addr> {
    candidates.iter().filter(|one| one.is_local).map(|one| one.target.ip)
}

/// Which endpoints the hints of the slices leave to this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Topology {
    All,
    Node,
    Zone,
}

impl Topology {
    /// Hints count only if every ready endpoint has them and one is for here (upstream's `topologyModeFromHints`).
    fn of(candidates: &[Candidate], node: &NodeView) -> Self {
        let ready = || candidates.iter().filter(|one| one.is_ready);
        if ready().all(|one| !one.for_nodes.is_empty()) && ready().any(|one| Self::Node.allows(one, node)) {
            return Self::Node;
        }
        if ready().all(|one| !one.for_zones.is_empty()) && ready().any(|one| Self::Zone.allows(one, node)) {
            return Self::Zone;
        }
        Self::All
    }

    fn allows(self, candidate: &Candidate, node: &NodeView) -> bool {
        match self {
            Self::All => true,
            Self::Node => candidate.for_nodes.contains(&node.name),
            Self::Zone => node.zone.as_ref().is_some_and(|zone| candidate.for_zones.contains(zone)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLUSTER: Policies = Policies { internal_local: false, external_local: false, is_external: false };

    /// `flags`: r(eady), s(erving), t(erminating), l(ocal).
    fn endpoint(last: u8, flags: &str, nodes: &[&str], zones: &[&str]) -> Candidate {
        let has = |flag| flags.contains(flag);
        let names = |all: &[&str]| all.iter().map(|name| (*name).to_owned()).collect();
        Candidate {
            target: Target { ip: Ipv4Addr::new(10, 0, 0, last), port: 80 },
            is_ready: has('r'),
            is_serving: has('s'),
            is_terminating: has('t'),
            is_local: has('l'),
            for_nodes: names(nodes),
            for_zones: names(zones),
        }
    }

    fn view() -> NodeView {
        NodeView { name: "n1".into(), zone: Some("z1".into()) }
    }

    #[track_caller]
    fn check(candidates: &[Candidate], policies: Policies, cluster: &[u8], local: &[u8], any: bool) {
        let chosen = choose(candidates, policies, &view());
        let last = |targets: &[Target]| targets.iter().map(|target| target.ip.octets()[3]).collect::<Vec<_>>();
        assert_eq!((last(&chosen.cluster), last(&chosen.local), chosen.any), (cluster.to_vec(), local.to_vec(), any));
    }

    #[test]
    fn ready_ones_get_traffic_and_terminating_ones_only_in_need() {
        let all = [endpoint(1, "rs", &[], &[]), endpoint(2, "", &[], &[]), endpoint(3, "st", &[], &[])];
        check(&all, CLUSTER, &[1], &[], true);
        check(&all[1..], CLUSTER, &[3], &[], true);
        check(&all[1..2], CLUSTER, &[], &[], false);
    }

    #[test]
    fn local_policies_choose_among_this_nodes() {
        let all = [endpoint(1, "rs", &[], &[]), endpoint(2, "rsl", &[], &[]), endpoint(3, "stl", &[], &[])];
        let internal = Policies { internal_local: true, ..CLUSTER };
        let external = Policies { external_local: true, is_external: true, ..CLUSTER };
        check(&all, internal, &[], &[2], true);
        check(&all[..1], internal, &[], &[], true);
        check(&all, external, &[1, 2], &[2], true);
        let without_ready = [all[0].clone(), all[2].clone()];
        check(&without_ready, external, &[1], &[3], true);
        let no_external_way = Policies { external_local: true, ..CLUSTER };
        check(&all, no_external_way, &[1, 2], &[], true);
    }

    #[test]
    fn hints_count_if_all_have_them_and_one_is_here() {
        let zoned = [endpoint(1, "rs", &[], &["z1"]), endpoint(2, "rs", &[], &["z2"])];
        check(&zoned, CLUSTER, &[1], &[], true);
        check(&zoned[1..], CLUSTER, &[2], &[], true);
        let one_without = [zoned[0].clone(), endpoint(3, "rs", &[], &[])];
        check(&one_without, CLUSTER, &[1, 3], &[], true);
        let noded = [endpoint(1, "rs", &["n1"], &["z1"]), endpoint(2, "rs", &["n2"], &["z1"])];
        check(&noded, CLUSTER, &[1], &[], true);
        check(&noded[1..], CLUSTER, &[2], &[], true);
        let unready_without = [zoned[0].clone(), endpoint(4, "", &[], &[])];
        check(&unready_without, CLUSTER, &[1], &[], true);
    }
}
