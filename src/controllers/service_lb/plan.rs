//! Which nodes' addresses a load-balanced Service gets: a pure function of all such Services and all nodes.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Service, ServiceSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::ingress;
use crate::client::ObjectKey;

/// The class that asks for this load balancer by name.
const CLASS: &str = "orch.io/node";
/// A node with this label serves no load balancer.
const EXCLUDED: &str = "node.kubernetes.io/exclude-from-external-load-balancers";
/// As soon as a node has this label with the value `true`, only such nodes do.
const ENABLED: &str = "orch.io/enablelb";

/// An address of a node.
pub(super) type Address = IpAddr;

/// What of a node concerns load balancers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NodeView {
    name: String,
    /// The ExternalIPs, or the InternalIPs where there are none.
    addresses: Vec<Address>,
    is_ready: bool,
    is_excluded: bool,
    is_enabled: bool,
    /// Ports that the node itself listens on.
    own_port: Option<i32>,
}

/// What of a node concerns load balancers.
pub(super) fn view(node: &Node) -> NodeView {
    let labels = node.metadata.labels.as_ref();
    let label = |name: &str| labels.and_then(|labels| labels.get(name));
    let status = node.status.as_ref();
    let of_type = |kind: &str| -> Vec<Address> {
        let all = status.iter().flat_map(|status| status.addresses.iter().flatten());
        all.filter(|address| address.type_ == kind).filter_map(|address| address.address.parse().ok()).collect()
    };
    let external = of_type("ExternalIP");
    let mut conditions = status.iter().flat_map(|status| status.conditions.iter().flatten());
    let is_deleting = node.metadata.deletion_timestamp.is_some();
    NodeView {
        name: node.metadata.name.clone().unwrap_or_default(),
        addresses: if external.is_empty() { of_type("InternalIP") } else { external },
        is_ready: !is_deleting && conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True"),
        is_excluded: label(EXCLUDED).is_some(),
        is_enabled: label(ENABLED).is_some_and(|value| value == "true"),
        own_port: status
            .and_then(|status| status.daemon_endpoints.as_ref()?.kubelet_endpoint.as_ref())
            .map(|endpoint| endpoint.port),
    }
}

/// A Service that this load balancer serves.
pub(super) struct Balanced {
    pub(super) service: Arc<Service>,
    pub(super) key: ObjectKey,
    /// The nodes with ready endpoints, where only they may serve.
    pub(super) serving: Option<BTreeSet<String>>,
}

/// What a Service gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Outcome {
    pub(super) addresses: Vec<Address>,
    /// Why it does not get more.
    pub(super) refused: Option<String>,
    /// Whether it is a load balancer at all.
    pub(super) is_balanced: bool,
}

impl Outcome {
    /// That of a Service that is no load balancer any more.
    pub(super) fn none() -> Self {
        Self { addresses: Vec::new(), refused: None, is_balanced: false }
    }
}

fn spec(service: &Service) -> Option<&ServiceSpec> {
    service.spec.as_ref()
}

/// Whether this load balancer serves the Service.
pub(super) fn is_ours(service: &Service) -> bool {
    spec(service).is_some_and(|spec| {
        spec.type_.as_deref() == Some("LoadBalancer") && spec.load_balancer_class.as_deref().is_none_or(|class| class == CLASS)
    }) && service.metadata.deletion_timestamp.is_none()
}

/// Whether only nodes with endpoints take traffic.
pub(super) fn is_local(service: &Service) -> bool {
    spec(service).and_then(|spec| spec.external_traffic_policy.as_deref()) == Some("Local")
}

/// The number of the port that the first port of a Service leads to.
pub(super) fn target_of_first_port(service: &Service) -> Option<i32> {
    match spec(service)?.ports.as_ref()?.first()?.target_port.as_ref()? {
        IntOrString::Int(number) => Some(*number),
        IntOrString::String(_) => None,
    }
}

/// Works out what each Service gets, in their order; `None`: it keeps what it has, as no node is ready. `api_port` is the API
/// server's, which no Service may take.
pub(super) fn assign(services: &[Balanced], nodes: &[NodeView], api_port: Option<i32>) -> Vec<Option<Outcome>> {
    let mut usable: Vec<&NodeView> = nodes.iter().filter(|node| !node.is_excluded).collect();
    if usable.iter().any(|node| node.is_enabled) {
        usable.retain(|node| node.is_enabled);
    }
    let are_down = !usable.is_empty() && usable.iter().all(|node| !node.is_ready);
    usable.retain(|node| node.is_ready);
    if are_down {
        return vec![None; services.len()];
    }
    let mut taken: HashMap<(Address, i32, String), ObjectKey> = HashMap::new();
    let mut outcomes: BTreeMap<usize, Outcome> = BTreeMap::new();
    for at in order(services) {
        outcomes.insert(at, one(&services[at], &usable, api_port, &mut taken));
    }
    outcomes.into_values().map(Some).collect()
}

/// Who has addresses keeps them; then the older comes first.
fn order(services: &[Balanced]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..services.len()).collect();
    order.sort_by_key(|at| {
        let one = &services[*at];
        let created = one.service.metadata.creation_timestamp.as_ref().map(|time| time.0);
        (ingress(&one.service).is_empty(), created, one.key.clone())
    });
    order
}

fn one(
    balanced: &Balanced,
    nodes: &[&NodeView],
    api_port: Option<i32>,
    taken: &mut HashMap<(Address, i32, String), ObjectKey>,
) -> Outcome {
    let Some(spec) = spec(&balanced.service) else { return Outcome::none() };
    let protocol = |text: &Option<String>| text.clone().unwrap_or_else(|| "TCP".to_owned());
    let ports: Vec<(i32, String)> = spec.ports.iter().flatten().map(|port| (port.port, protocol(&port.protocol))).collect();
    let families: Vec<&str> = spec.ip_families.iter().flatten().map(String::as_str).collect();
    let wanted: Option<Result<Address, _>> = spec.load_balancer_ip.as_deref().filter(|text| !text.is_empty()).map(str::parse);
    let (mut addresses, mut refused, mut candidates) = (BTreeSet::new(), None, 0_usize);
    for node in nodes.iter().filter(|node| balanced.serving.as_ref().is_none_or(|serving| serving.contains(&node.name))) {
        for address in &node.addresses {
            let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
            let is_wanted = wanted.as_ref().is_none_or(|wanted| wanted.as_ref() == Ok(address));
            if !is_wanted || !(families.is_empty() || families.contains(&family)) {
                continue;
            }
            candidates += 1;
            let clash = ports.iter().find_map(|(port, protocol)| {
                let whose = taken.get(&(*address, *port, protocol.clone())).filter(|key| **key != balanced.key);
                let is_own = protocol == "TCP" && (node.own_port == Some(*port) || api_port == Some(*port));
                let whose = whose.map(|key| format!("service {key}")).or(is_own.then(|| "the node itself".to_owned()))?;
                Some(format!("port {port}/{protocol} of {address} (node {}) is in use by {whose}", node.name))
            });
            match clash {
                Some(clash) => refused = refused.or(Some(clash)),
                None => {
                    addresses.insert(*address);
                    taken
                        .extend(ports.iter().map(|(port, protocol)| ((*address, *port, protocol.clone()), balanced.key.clone())));
                }
            }
        }
    }
    if let (Some(address), 0) = (&spec.load_balancer_ip, candidates)
        && wanted.is_some()
    {
        refused = Some(format!("no node that serves load balancers has the address {address}"));
    }
    Outcome { addresses: addresses.into_iter().collect(), refused, is_balanced: true }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn node(name: &str, ip: &str, extra: &Value) -> NodeView {
        let mut node = json!({"metadata": {"name": name, "labels": {}}, "status": {
            "addresses": [{"type": "InternalIP", "address": ip}], "conditions": [{"type": "Ready", "status": "True"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": 10250}}}});
        for (key, value) in extra.as_object().into_iter().flatten() {
            match key.as_str() {
                "ready" => node["status"]["conditions"][0]["status"] = value.clone(),
                "external" => node["status"]["addresses"][0]["type"] = json!("ExternalIP"),
                label => node["metadata"]["labels"][label] = value.clone(),
            }
        }
        view(&serde_json::from_value::<Node>(node).unwrap())
    }

    fn service(name: &str, port: i32, extra: &Value, serving: Option<&[&str]>) -> Balanced {
        let mut service = json!({"metadata": {"namespace": "a", "name": name, "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"type": "LoadBalancer", "ipFamilies": ["IPv4"], "ports": [{"port": port, "protocol": "TCP"}]}, "status": {}});
        for (key, value) in extra.as_object().into_iter().flatten() {
            match key.as_str() {
                "ingress" => service["status"] = json!({"loadBalancer": {"ingress": [{"ip": value}]}}),
                field => service["spec"][field] = value.clone(),
            }
        }
        Balanced {
            service: Arc::new(serde_json::from_value(service).unwrap()),
            key: ObjectKey::new("a", name),
            serving: serving.map(|names| names.iter().map(|name| (*name).to_owned()).collect()),
        }
    }

    fn addresses(services: &[Balanced], nodes: &[NodeView]) -> Vec<String> {
        let text = |outcome: Option<Outcome>| match outcome {
            None => "as before".to_owned(),
            Some(outcome) => outcome.addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
        };
        assign(services, nodes, Some(6443)).into_iter().map(text).collect()
    }

    #[test]
    fn nodes_that_serve() {
        let plain = || [service("web", 80, &json!({}), None)];
        for (what, services, nodes, expected) in [
            (
                "all ready",
                plain(),
                vec![node("n1", "10.0.0.1", &json!({})), node("n2", "10.0.0.2", &json!({}))],
                "10.0.0.1,10.0.0.2",
            ),
            (
                "one is not ready",
                plain(),
                vec![node("n1", "10.0.0.1", &json!({"ready": "Unknown"})), node("n2", "10.0.0.2", &json!({}))],
                "10.0.0.2",
            ),
            ("none is ready", plain(), vec![node("n1", "10.0.0.1", &json!({"ready": "Unknown"}))], "as before"),
            ("excluded", plain(), vec![node("n1", "10.0.0.1", &json!({EXCLUDED: ""}))], ""),
            (
                "chosen",
                plain(),
                vec![node("n1", "10.0.0.1", &json!({ENABLED: "true"})), node("n2", "10.0.0.2", &json!({}))],
                "10.0.0.1",
            ),
            (
                "local",
                [service("web", 80, &json!({}), Some(&["n2"]))],
                vec![node("n1", "10.0.0.1", &json!({})), node("n2", "10.0.0.2", &json!({}))],
                "10.0.0.2",
            ),
            (
                "by address",
                [service("web", 80, &json!({"loadBalancerIP": "10.0.0.2"}), None)],
                vec![node("n1", "10.0.0.1", &json!({})), node("n2", "10.0.0.2", &json!({}))],
                "10.0.0.2",
            ),
            ("the node's port", [service("web", 10250, &json!({}), None)], vec![node("n1", "10.0.0.1", &json!({}))], ""),
            ("the API's port", [service("web", 6443, &json!({}), None)], vec![node("n1", "10.0.0.1", &json!({}))], ""),
            (
                "other family",
                [service("web", 80, &json!({"ipFamilies": ["IPv6"]}), None)],
                vec![node("n1", "10.0.0.1", &json!({}))],
                "",
            ),
        ] {
            assert_eq!(addresses(&services, &nodes), [expected], "{what}");
        }
        assert_eq!(node("n", "1.2.3.4", &json!({"external": true})).addresses, ["1.2.3.4".parse::<IpAddr>().unwrap()]);
    }

    #[test]
    fn the_second_waits_for_the_port() {
        let nodes = [node("n1", "10.0.0.1", &json!({}))];
        let services = [service("a", 80, &json!({}), None), service("b", 80, &json!({"ingress": "10.0.0.1"}), None)];
        assert_eq!(addresses(&services, &nodes), ["", "10.0.0.1"], "who has it keeps it");
        let outcome = assign(&services, &nodes, None)[0].clone().unwrap();
        let expected = "port 80/TCP of 10.0.0.1 (node n1) is in use by service a/b";
        assert_eq!(outcome.refused.as_deref(), Some(expected));
        let other = [service("a", 80, &json!({}), None), service("b", 81, &json!({}), None)];
        assert_eq!(addresses(&other, &nodes), ["10.0.0.1", "10.0.0.1"]);
        let missing = [service("a", 80, &json!({"loadBalancerIP": "10.9.9.9"}), None)];
        let outcome = assign(&missing, &nodes, None)[0].clone().unwrap();
        assert_eq!(outcome.refused.as_deref(), Some("no node that serves load balancers has the address 10.9.9.9"));
    }

    #[test]
    fn whose_it_is() {
        for (extra, expected) in [
            (json!({}), true),
            (json!({"loadBalancerClass": CLASS}), true),
            (json!({"loadBalancerClass": "metallb"}), false),
            (json!({"type": "NodePort"}), false),
        ] {
            assert_eq!(is_ours(&service("web", 80, &extra, None).service), expected, "{extra}");
        }
    }
}
