//! For whom an endpoint is meant: hints by `spec.trafficDistribution` and by the annotation `service.kubernetes.io/topology-mode`
//! (upstream's `endpointslice/trafficdist` and `endpointslice/topologycache`, without its cache: hints are worked out anew each time).

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointHints, ForNode, ForZone};

use crate::api::quantity::Quantity;

pub(super) const ZONE: &str = "topology.kubernetes.io/zone";
/// How much more than its share of the traffic an endpoint may get.
const OVERLOAD: f64 = 0.2;

/// How a Service wants its traffic spread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    Anywhere,
    SameZone,
    SameNode,
    /// Zones get endpoints in proportion to their CPUs.
    Auto,
}

/// What a Service asks for; the annotation wins over the field.
pub(super) fn mode(service: &Service) -> Mode {
    let annotations = service.metadata.annotations.as_ref();
    let annotation = |name: &str| annotations.and_then(|all| all.get(name));
    let topology = annotation("service.kubernetes.io/topology-aware-hints").or(annotation("service.kubernetes.io/topology-mode"));
    if topology.is_some_and(|value| value == "Auto" || value == "auto") {
        return Mode::Auto;
    }
    match service.spec.as_ref().and_then(|spec| spec.traffic_distribution.as_deref()) {
        Some("PreferClose" | "PreferSameZone") => Mode::SameZone,
        Some("PreferSameNode") => Mode::SameNode,
        _ => Mode::Anywhere,
    }
}

/// The share of each zone in the CPUs of all ready nodes that run workloads; `None` if that cannot be told.
pub(super) fn cpu_shares<'a>(nodes: impl Iterator<Item = &'a Node>) -> Option<BTreeMap<String, f64>> {
    let mut zones: BTreeMap<String, f64> = BTreeMap::new();
    for node in nodes {
        let labels = node.metadata.labels.as_ref();
        let has = |label: &str| labels.is_some_and(|labels| labels.contains_key(label));
        let is_ready = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
        let is_ready = is_ready.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True");
        if !is_ready || has("node-role.kubernetes.io/control-plane") || has("node-role.kubernetes.io/master") {
            continue;
        }
        let zone = labels.and_then(|labels| labels.get(ZONE)).filter(|zone| !zone.is_empty())?;
        let cpu = node.status.as_ref()?.allocatable.as_ref()?.get("cpu")?.0.parse::<Quantity>().ok()?.to_f64();
        if cpu <= 0.0 {
            return None;
        }
        *zones.entry(zone.clone()).or_default() += cpu;
    }
    let total: f64 = zones.values().sum();
    (zones.len() > 1).then(|| zones.into_iter().map(|(zone, cpu)| (zone, cpu / total)).collect())
}

/// Sets the hints of all endpoints of one address type. The same endpoints in the same order get the same hints.
pub(super) fn apply(mode: Mode, endpoints: &mut [&mut Endpoint], shares: Option<&BTreeMap<String, f64>>) {
    for endpoint in endpoints.iter_mut() {
        endpoint.hints = None;
    }
    if mode == Mode::Anywhere {
        return;
    }
    let mut ready: Vec<&mut Endpoint> = endpoints
        .iter_mut()
        .map(|endpoint| &mut **endpoint)
        .filter(|endpoint| endpoint.conditions.as_ref().and_then(|conditions| conditions.ready) == Some(true))
        .collect();
    if mode == Mode::Auto {
        return spread(&mut ready, shares);
    }
    for endpoint in ready {
        let for_zones = endpoint.zone.clone().map(|name| vec![ForZone { name }]);
        let for_nodes = endpoint.node_name.clone().filter(|_| mode == Mode::SameNode).map(|name| vec![ForNode { name }]);
        if for_zones.is_some() || for_nodes.is_some() {
            endpoint.hints = Some(EndpointHints { for_nodes, for_zones });
        }
    }
}

/// No hints at all where a zone would get too few endpoints, or anything about zones is not known.
fn spread(ready: &mut [&mut Endpoint], shares: Option<&BTreeMap<String, f64>>) {
    let Some(shares) = shares.filter(|shares| shares.len() <= ready.len()) else { return };
    let Some(mut zones) = ready.iter().map(|endpoint| endpoint.zone.clone()).collect::<Option<Vec<String>>>() else { return };
    let total = u32::try_from(ready.len()).map_or(f64::INFINITY, f64::from);
    let least = |share: f64| (share * total / (1.0 + OVERLOAD)).ceil();
    if shares.values().map(|share| least(*share)).sum::<f64>() > total {
        return;
    }
    // Endpoints go from the zone that has most over its share to the one that lacks most, until none is below its least.
    loop {
        let has = |zone: &str| f64::from(u32::try_from(zones.iter().filter(|of| *of == zone).count()).unwrap_or(u32::MAX));
        let surplus = |zone: &str, share: f64| has(zone) - (share * total).max(least(share));
        let mut order: Vec<(&String, f64)> = shares.iter().map(|(zone, share)| (zone, surplus(zone, *share))).collect();
        order.sort_by(|left, right| left.1.total_cmp(&right.1).then_with(|| left.0.cmp(right.0)));
        let (Some((taker, _)), Some((giver, extra))) = (order.first(), order.last()) else { return };
        let is_fed = shares.get(*taker).is_none_or(|share| has(taker) >= least(*share));
        let Some(at) = zones.iter().position(|zone| zone == *giver).filter(|_| !is_fed && *extra >= 1.0) else { break };
        zones[at] = (*taker).clone();
    }
    for (endpoint, name) in ready.iter_mut().zip(zones) {
        endpoint.hints = Some(EndpointHints { for_nodes: None, for_zones: Some(vec![ForZone { name }]) });
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn hinted(mode: Mode, zones: &[&str], shares: Option<&[(&str, f64)]>) -> Vec<String> {
        let endpoint = |zone: &&str| -> Endpoint {
            let zone = (!zone.is_empty()).then_some(*zone);
            serde_json::from_value(
                json!({"addresses": ["10.0.0.1"], "conditions": {"ready": true}, "nodeName": "n", "zone": zone}),
            )
            .unwrap()
        };
        let mut endpoints: Vec<Endpoint> = zones.iter().map(endpoint).collect();
        let shares: Option<BTreeMap<String, f64>> =
            shares.map(|list| list.iter().map(|(zone, share)| ((*zone).to_owned(), *share)).collect());
        apply(mode, &mut endpoints.iter_mut().collect::<Vec<_>>(), shares.as_ref());
        let text = |endpoint: &Endpoint| {
            let hints = endpoint.hints.clone().unwrap_or_default();
            let zones = hints.for_zones.into_iter().flatten().map(|zone| zone.name);
            let nodes = hints.for_nodes.into_iter().flatten().map(|node| format!("@{}", node.name));
            zones.chain(nodes).collect::<String>()
        };
        endpoints.iter().map(text).collect()
    }

    #[test]
    fn by_traffic_distribution() {
        for (mode, expected) in
            [(Mode::Anywhere, ["", ""]), (Mode::SameZone, ["a", ""]), (Mode::SameNode, ["a@n", "@n"]), (Mode::Auto, ["", ""])]
        {
            assert_eq!(hinted(mode, &["a", ""], None), expected);
        }
    }

    #[test]
    fn by_share_of_the_cpus() {
        let even: &[(&str, f64)] = &[("a", 0.5), ("b", 0.5)];
        assert_eq!(hinted(Mode::Auto, &["a", "b"], Some(even)), ["a", "b"]);
        assert_eq!(hinted(Mode::Auto, &["a", "a", "a", "b"], Some(even)), ["b", "a", "a", "b"]);
        assert_eq!(hinted(Mode::Auto, &["a"], Some(even)), [""], "fewer endpoints than zones");
        assert_eq!(hinted(Mode::Auto, &["a", ""], Some(even)), ["", ""], "a zone is not known");
    }
}
