//! Each filter over a table of pods and nodes.

use serde_json::{Value, json};

use super::super::snapshot::tests::{node, pod};
use super::*;

/// The name of the filter that keeps the pod from the node, and the head of its reason.
fn verdict(snapshot: &Snapshot, pod: &PodInfo, name: &str) -> Option<(&'static str, String)> {
    let cycle = Cycle::new(pod, snapshot);
    let node = snapshot.node(snapshot.find(name).unwrap());
    let filter = &FILTERS[cycle.fails(node)?];
    Some((filter.name, (filter.explain)(&cycle, node).remove(0).head))
}

fn cluster() -> Snapshot {
    let mut snapshot = Snapshot::default();
    snapshot.set_node(node("n1", "1", &json!({"zone": "a", "cores": "8"})));
    let mut tainted = (*node("n2", "1", &json!({"zone": "b"}))).clone();
    tainted.spec = serde_json::from_value(json!({"taints": [{"key": "gpu", "value": "yes", "effect": "NoSchedule"}]})).unwrap();
    snapshot.set_node(tainted.into());
    let mut cordoned = (*node("n3", "1", &json!({"zone": "b"}))).clone();
    cordoned.spec = serde_json::from_value(json!({"unschedulable": true})).unwrap();
    snapshot.set_node(cordoned.into());
    let ports =
        json!([{"name": "c", "ports": [{"containerPort": 80, "hostPort": 80}], "resources": {"requests": {"cpu": "600m"}}}]);
    snapshot.place(pod("taken", "0", &json!({"containers": ports})), "n1");
    snapshot
}

fn affinity(operator: &str, values: &Value) -> Value {
    let requirement = json!({"key": "cores", "operator": operator, "values": values});
    json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
        {"nodeSelectorTerms": [{"matchExpressions": [requirement]}]}}}})
}

#[test]
fn nodes_are_refused_for_upstreams_reasons() {
    let port = |ip: &str| json!({"containers": [{"name": "c", "ports": [{"containerPort": 1, "hostPort": 80, "hostIP": ip}]}]});
    let tolerates = |extra: Value| json!({"tolerations": [extra]});
    let affinity_head = "node(s) didn't match Pod's node affinity/selector";
    let taint_head = "node(s) had untolerated taint {gpu: yes}";
    for (cpu, extra, node, expected) in [
        ("100m", json!({}), "n1", None),
        ("500m", json!({}), "n1", Some(("NodeResourcesFit", "Insufficient cpu"))),
        ("100m", json!({}), "n2", Some(("TaintToleration", taint_head))),
        ("100m", tolerates(json!({"key": "gpu", "operator": "Exists"})), "n2", None),
        ("100m", tolerates(json!({"key": "gpu", "value": "no"})), "n2", Some(("TaintToleration", taint_head))),
        ("100m", json!({}), "n3", Some(("NodeUnschedulable", "node(s) were unschedulable"))),
        ("100m", tolerates(json!({"operator": "Exists"})), "n3", None),
        ("100m", json!({"nodeSelector": {"zone": "b"}}), "n1", Some(("NodeAffinity", affinity_head))),
        ("100m", affinity("Gt", &json!(["4"])), "n1", None),
        ("100m", affinity("Lt", &json!(["4"])), "n1", Some(("NodeAffinity", affinity_head))),
        ("100m", port(""), "n1", Some(("NodePorts", "node(s) didn't have free ports for the requested pod ports"))),
    ] {
        let verdict = verdict(&cluster(), &pod("p", cpu, &extra), node);
        assert_eq!(verdict.as_ref().map(|(name, head)| (*name, head.as_str())), expected, "{cpu} {extra} {node}");
    }
}

#[test]
fn shortage_is_put_in_numbers() {
    let (snapshot, pod) = (cluster(), pod("p", "600m", &json!({})));
    let cycle = Cycle::new(&pod, &snapshot);
    let reasons = node_resources::FILTER.explain;
    assert_eq!(reasons(&cycle, snapshot.node(snapshot.find("n1").unwrap()))[0].detail, "lacks 200m CPU");
}

#[test]
fn spread_and_affinity() {
    let mut snapshot = Snapshot::default();
    for (name, zone) in [("a1", "a"), ("a2", "a"), ("b1", "b")] {
        snapshot.set_node(node(name, "8", &json!({"zone": zone})));
    }
    let selector = json!({"matchLabels": {"app": "web"}});
    let spread = json!({"topologySpreadConstraints":
        [{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule", "labelSelector": selector}]});
    let term = json!([{"topologyKey": "zone", "labelSelector": selector}]);
    let rule = |kind: &str| json!({"affinity": {kind: {"requiredDuringSchedulingIgnoredDuringExecution": term}}});
    let together = pod("p", "1", &rule("podAffinity"));
    assert_eq!(verdict(&snapshot, &together, "b1"), None, "the first of its group");
    snapshot.place(pod("one", "1", &json!({})), "a1");
    let name = |pod: &PodInfo, node: &str| verdict(&snapshot, pod, node).map(|(name, _)| name);
    let (spread, apart) = (pod("p", "1", &spread), pod("p", "1", &rule("podAntiAffinity")));
    for (pod, node, expected) in [
        (&spread, "a2", Some("PodTopologySpread")),
        (&spread, "b1", None),
        (&together, "a2", None),
        (&together, "b1", Some("InterPodAffinity")),
        (&apart, "a2", Some("InterPodAffinity")),
        (&apart, "b1", None),
    ] {
        assert_eq!(name(pod, node), expected, "{node}");
    }
    snapshot.place(pod("guard", "1", &rule("podAntiAffinity")), "b1");
    assert_eq!(verdict(&snapshot, &pod("p", "1", &json!({})), "b1").map(|(name, _)| name), Some("InterPodAffinity"));
}
