//! What a Service means on this node: a pure function of the Service, its slices and the node. It follows upstream's
//! `proxy/serviceport.go` and `proxy/nftables`.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::api::discovery::v1::EndpointSlice;

use super::endpoints::{self, Candidate, NodeView, Policies, Target};
use super::{Front, Protocol};

/// Set by users who proxy a Service by themselves.
const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
/// Set on what need not be proxied.
const HEADLESS: &str = "service.kubernetes.io/headless";
/// Upstream's default of `sessionAffinityConfig.clientIP.timeoutSeconds`.
const AFFINITY_SECONDS: u32 = 10_800;

/// What becomes of a connection to a front.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Route {
    /// There is no endpoint.
    Reject,
    /// There is none on this node, and the policy is Local.
    Drop,
    /// To one of these.
    Balance { targets: Vec<Target>, affinity: Option<u32> },
    /// Policy Local, from outside: to one of `local`, source kept; from here: to one of `targets`.
    External { targets: Vec<Target>, local: Vec<Target>, affinity: Option<u32> },
}

impl Route {
    /// Every endpoint that connections may go to.
    pub(super) fn all_targets(&self) -> impl Iterator<Item = Target> {
        let (targets, local): (&[Target], &[Target]) = match self {
            Self::Reject | Self::Drop => (&[], &[]),
            Self::Balance { targets, .. } => (targets, &[]),
            Self::External { targets, local, .. } => (targets, local),
        };
        targets.iter().chain(local).copied()
    }
}

/// Who may use a load balancer's address.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Sources {
    pub(super) ranges: Vec<Ipv4Net>,
    /// The load balancer's address where this node may use it: a node that has it connects with it as its source.
    pub(super) own: Option<Ipv4Addr>,
}

/// An address and port that clients connect to, and what becomes of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Frontend {
    pub(super) front: Front,
    pub(super) route: Route,
    pub(super) sources: Option<Sources>,
}

/// `spec.healthCheckNodePort`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct HealthCheck {
    pub(super) port: u16,
    pub(super) local_endpoints: usize,
}

/// All that a Service means on this node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Plan {
    pub(super) frontends: Vec<Frontend>,
    /// What clients within the cluster connect to.
    pub(super) cluster_ips: Vec<Ipv4Addr>,
    /// Endpoints on this node: each may be a client of its own Service.
    pub(super) hairpin: Vec<Ipv4Addr>,
    pub(super) health: Option<HealthCheck>,
}

/// What a Service means on a node; `None` if it is not for this proxy.
pub(super) fn plan(service: &Service, slices: &[Arc<EndpointSlice>], node: &NodeView, node_ip: IpAddr) -> Option<Plan> {
    let spec = service.spec.as_ref().filter(|spec| spec.type_.as_deref() != Some("ExternalName"))?;
    let has = |label: &str| service.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(label));
    if has(PROXY_NAME) || has(HEADLESS) {
        return None;
    }
    let cluster_ip = cluster_ip(spec)?;
    let addresses = Addresses::of(service, spec, cluster_ip, node_ip);
    let mut plan = Plan { cluster_ips: vec![cluster_ip], ..Plan::default() };
    let (mut hairpin, mut healthy) = (BTreeSet::new(), BTreeSet::new());
    for port in spec.ports.iter().flatten() {
        let candidates = endpoints::candidates(port, slices, node);
        plan.frontends.extend(frontends(spec, port, &addresses, &candidates, node));
        hairpin.extend(endpoints::local(&candidates));
        healthy.extend(endpoints::local_ready(&candidates));
    }
    plan.hairpin = hairpin.into_iter().collect();
    let port = spec.health_check_node_port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port > 0);
    plan.health = port
        .filter(|_| is_load_balancer(spec) && is_local(spec.external_traffic_policy.as_deref()))
        .map(|port| HealthCheck { port, local_endpoints: healthy.len() });
    Some(plan)
}

fn cluster_ip(spec: &ServiceSpec) -> Option<Ipv4Addr> {
    let listed = spec.cluster_ips.iter().flatten();
    spec.cluster_ip.iter().chain(listed).find_map(|address| address.parse().ok())
}

fn is_local(policy: Option<&str>) -> bool {
    policy == Some("Local")
}

fn is_load_balancer(spec: &ServiceSpec) -> bool {
    spec.type_.as_deref() == Some("LoadBalancer")
}

/// The addresses of a Service.
struct Addresses {
    cluster: Ipv4Addr,
    external: Vec<Ipv4Addr>,
    load_balancer: Vec<Ipv4Addr>,
    /// Who may use the load balancer's; `None`: everybody.
    ranges: Option<Vec<Ipv4Net>>,
    /// Whether this node is among them.
    has_node: bool,
}

impl Addresses {
    fn of(service: &Service, spec: &ServiceSpec, cluster: Ipv4Addr, node_ip: IpAddr) -> Self {
        let external = spec.external_ips.iter().flatten().filter_map(|address| address.parse().ok()).collect();
        let ingress = service.status.as_ref().and_then(|status| status.load_balancer.as_ref()?.ingress.as_ref());
        // A load balancer of mode "Proxy" wants to see the connections itself.
        let ingress = ingress.into_iter().flatten().filter(|_| is_load_balancer(spec));
        let load_balancer = ingress.filter(|one| one.ip_mode.as_deref() != Some("Proxy"));
        let load_balancer = load_balancer.filter_map(|one| one.ip.as_deref()?.parse().ok()).collect();
        let ranges = spec.load_balancer_source_ranges.as_ref().filter(|ranges| !ranges.is_empty()).map(|ranges| {
            let ranges = ranges.iter().filter_map(|range| range.trim().parse::<Ipv4Net>().ok()).map(|range| range.trunc());
            ranges.collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>()
        });
        let has_node = ranges.iter().flatten().any(|range| matches!(node_ip, IpAddr::V4(ip) if range.contains(&ip)));
        Self { cluster, external, load_balancer, ranges, has_node }
    }

    fn sources(&self, address: Ipv4Addr) -> Option<Sources> {
        let ranges = self.ranges.clone()?;
        Some(Sources { ranges, own: self.has_node.then_some(address) })
    }
}

fn frontends(
    spec: &ServiceSpec,
    port: &ServicePort,
    addresses: &Addresses,
    candidates: &[Candidate],
    node: &NodeView,
) -> Vec<Frontend> {
    let (Some(protocol), Ok(number)) = (Protocol::of(port.protocol.as_deref()), u16::try_from(port.port)) else {
        return Vec::new();
    };
    let node_port = port.node_port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port > 0);
    let policies = Policies {
        internal_local: is_local(spec.internal_traffic_policy.as_deref()),
        external_local: is_local(spec.external_traffic_policy.as_deref()),
        is_external: node_port.is_some() || !addresses.external.is_empty() || !addresses.load_balancer.is_empty(),
    };
    let chosen = endpoints::choose(candidates, policies, node);
    let affinity = affinity(spec);
    let balance = |targets: &[Target]| Route::Balance { targets: targets.to_vec(), affinity };
    let internal = match (chosen.any, policies.internal_local) {
        (false, _) => Route::Reject,
        (true, true) if chosen.local.is_empty() => Route::Drop,
        (true, true) => balance(&chosen.local),
        (true, false) => balance(&chosen.cluster),
    };
    // With internal policy Local there may be endpoints elsewhere, none of which may be used.
    let external = match (chosen.cluster.is_empty(), policies.external_local) {
        (true, _) => Route::Reject,
        (false, true) => Route::External { targets: chosen.cluster.clone(), local: chosen.local.clone(), affinity },
        (false, false) => balance(&chosen.cluster),
    };
    let at = |ip| Front::Address { ip, protocol, port: number };
    let front = |front, route: &Route, sources| Frontend { front, route: route.clone(), sources };
    let mut found = vec![front(at(addresses.cluster), &internal, None)];
    found.extend(addresses.external.iter().map(|ip| front(at(*ip), &external, None)));
    found.extend(addresses.load_balancer.iter().map(|ip| front(at(*ip), &external, addresses.sources(*ip))));
    found.extend(node_port.map(|port| front(Front::NodePort { protocol, port }, &external, None)));
    found
}

/// Seconds that a client stays with an endpoint.
fn affinity(spec: &ServiceSpec) -> Option<u32> {
    if spec.session_affinity.as_deref() != Some("ClientIP") {
        return None;
    }
    let configured = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref()?.timeout_seconds);
    Some(configured.and_then(|seconds| u32::try_from(seconds).ok()).unwrap_or(AFFINITY_SECONDS))
}
