//! Every phrase of the API's documentation as a case: a policy, and which packets pass.

use std::net::Ipv4Addr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use serde_json::{Value, json};

use super::super::facts::{PodFacts, Protocol};
use super::super::planner::{Local, Planner};
use super::model::{DNS, Kernel, Packet};

/// All pods; those of the namespace `shop` are on this node.
const PODS: [(&str, &str, &str, &str); 7] = [
    ("shop", "web", "10.42.0.1", "app=web,tier=front"),
    ("shop", "db", "10.42.0.2", "app=db"),
    ("shop", "cache", "10.42.0.3", "app=cache,tier=back"),
    ("ops", "monitor", "10.42.1.1", "app=monitor"),
    ("ops", "web", "10.42.1.2", "app=web"),
    ("lost", "orphan", "10.42.1.3", "app=web"),
    ("kube-system", "agent", "10.42.1.4", "k8s-app=agent"),
];

const NAMESPACES: [(&str, &str); 3] =
    [("shop", "team=a"), ("ops", "team=b"), ("kube-system", "kubernetes.io/metadata.name=kube-system")];

fn labels(text: &str) -> std::collections::BTreeMap<String, String> {
    text.split(',').filter_map(|pair| pair.split_once('=')).map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

fn pod(namespace: &str, name: &str, ip: &str, text: &str) -> Value {
    // `http` means another port at each of them.
    let http = if name == "db" { 5432 } else { 80 };
    json!({
        "metadata": { "namespace": namespace, "name": name, "uid": format!("{namespace}-{name}"), "labels": labels(text), "resourceVersion": "5" },
        "spec": { "containers": [{ "name": "c", "ports": [
            { "name": "http", "containerPort": http }, { "name": "http", "containerPort": 8443, "protocol": "UDP" },
        ] }] },
        "status": { "phase": "Running", "podIP": ip },
    })
}

fn put(planner: &mut Planner, pod: &Value) {
    let pod: Pod = serde_json::from_value(pod.clone()).unwrap();
    planner.put_pod(&Arc::new(PodFacts::from(&pod)));
}

fn cluster() -> Planner {
    let mut planner = Planner::new("10.42.0.0/16".parse().unwrap());
    for (name, text) in NAMESPACES {
        planner.set_namespace(name, Some(labels(text).into()));
    }
    for (namespace, name, ip, text) in PODS {
        put(&mut planner, &pod(namespace, name, ip, text));
        if namespace == "shop" {
            planner.set_local(&format!("{namespace}-{name}"), Some(Local { ip: ip.parse().unwrap(), facts: None }));
        }
    }
    planner
}

fn policy(name: &str, spec: &str) -> NetworkPolicy {
    let spec: Value = serde_yaml::from_str(spec).unwrap();
    serde_json::from_value(json!({ "metadata": { "namespace": "shop", "name": name }, "spec": spec })).unwrap()
}

/// `ops/web`, an address, or `dns`.
fn address(text: &str) -> Ipv4Addr {
    let named = PODS.iter().find(|(namespace, name, ..)| text == format!("{namespace}/{name}"));
    named.map_or_else(|| if text == "dns" { DNS } else { text.parse().unwrap() }, |(_, _, ip, _)| ip.parse().unwrap())
}

/// `ops/web > shop/db tcp 80`
fn packet(text: &str) -> Packet {
    let words: Vec<&str> = text.split(' ').collect();
    let protocol = match words[3] {
        "tcp" => Some(Protocol::Tcp),
        "udp" => Some(Protocol::Udp),
        "sctp" => Some(Protocol::Sctp),
        _ => None,
    };
    let port = protocol.map(|protocol| (protocol, words[4].parse().unwrap()));
    Packet { from: address(words[0]), to: address(words[2]), port }
}

fn check_all(policies: &[&str], passes: &[&str], drops: &[&str]) {
    let mut planner = cluster();
    for (at, spec) in policies.iter().enumerate() {
        planner.put_policy(&policy(&format!("p{at}"), spec));
    }
    let mut kernel = Kernel::default();
    kernel.apply(planner.changes());
    for (expected, packets) in [(true, passes), (false, drops)] {
        for text in packets {
            assert_eq!(kernel.lets(packet(text)), expected, "{text}, with {policies:#?}\n{kernel:#?}");
        }
    }
}

fn check(spec: &str, passes: &[&str], drops: &[&str]) {
    check_all(&[spec], passes, drops);
}

#[test]
fn without_a_policy_everything_passes() {
    check_all(&[], &["ops/web > shop/db tcp 80", "shop/web > 9.9.9.9 udp 53", "ops/web > shop/db icmp"], &[]);
}

#[test]
fn an_empty_selector_is_all_pods_of_the_namespace_and_ingress_is_the_default() {
    let denied =
        ["shop/web > shop/db tcp 80", "ops/web > shop/web udp 1", "9.9.9.9 > shop/cache tcp 80", "ops/web > shop/db icmp"];
    let passes =
        ["shop/web > ops/web tcp 80", "shop/web > dns udp 53", "ops/web > ops/monitor tcp 80", "shop/db > shop/db tcp 80"];
    for spec in [
        "podSelector: {}",
        "podSelector: {}\ningress: []",
        "policyTypes: [Ingress]\npodSelector: {}",
        "podSelector: {}\negress: []",
    ] {
        check(spec, &passes, &denied);
    }
}

#[test]
fn egress_is_a_type_when_it_has_rules_or_is_named() {
    check(
        "podSelector: {}\npolicyTypes: [Egress]",
        &["ops/web > shop/db tcp 80", "shop/db > shop/db tcp 9"],
        &["shop/db > ops/web tcp 80", "shop/db > dns udp 53", "shop/db > ops/web icmp"],
    );
    check(
        "podSelector: {}\negress: [{ports: [{port: 80}]}]",
        &["shop/db > ops/web tcp 80"],
        &["shop/db > ops/web tcp 81", "ops/web > shop/db tcp 80"],
    );
    check(
        "podSelector: {}\npolicyTypes: [Ingress]\negress: [{ports: [{port: 80}]}]",
        &["shop/db > ops/web tcp 81"],
        &["ops/web > shop/db tcp 80"],
    );
}

#[test]
fn an_empty_rule_allows_all() {
    for rule in ["{}", "{from: []}", "{from: [], ports: []}", "{ports: []}"] {
        check(
            &format!("podSelector: {{}}\ningress: [{rule}]"),
            &["ops/web > shop/db tcp 80", "9.9.9.9 > shop/db sctp 7", "ops/web > shop/db icmp"],
            &[],
        );
    }
    check(
        "podSelector: {}\npolicyTypes: [Egress]\negress: [{}]",
        &["shop/db > ops/web tcp 1", "shop/db > 9.9.9.9 icmp", "shop/web > dns udp 53"],
        &[],
    );
}

#[test]
fn only_selected_pods_are_isolated() {
    let drops = ["shop/web > shop/db tcp 80"];
    let passes = ["shop/db > shop/web tcp 80", "shop/db > shop/cache tcp 80", "ops/monitor > ops/web tcp 80"];
    check("podSelector: {matchLabels: {app: db}}", &passes, &drops);
    check("podSelector: {matchExpressions: [{key: tier, operator: DoesNotExist}]}", &passes, &drops);
    check("podSelector: {matchExpressions: [{key: app, operator: NotIn, values: [web, cache]}]}", &passes, &drops);
}

#[test]
fn a_pod_selector_is_about_the_own_namespace() {
    check(
        "podSelector: {matchLabels: {app: db}}\ningress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]",
        &["shop/web > shop/db tcp 80", "shop/web > shop/db udp 9", "shop/web > shop/db icmp"],
        &["ops/web > shop/db tcp 80", "lost/orphan > shop/db tcp 80", "shop/cache > shop/db tcp 80", "9.9.9.9 > shop/db tcp 80"],
    );
    check(
        "podSelector: {}\ningress: [{from: [{podSelector: {}}]}]",
        &["shop/web > shop/db tcp 80", "shop/cache > shop/db tcp 80"],
        &["ops/web > shop/db tcp 80", "10.42.9.9 > shop/db tcp 80"],
    );
}

#[test]
fn a_namespace_selector_is_about_all_pods_of_the_namespaces() {
    check(
        "podSelector: {}\ningress: [{from: [{namespaceSelector: {matchLabels: {team: b}}}]}]",
        &["ops/web > shop/db tcp 80", "ops/monitor > shop/db tcp 80"],
        &["shop/web > shop/db tcp 80", "lost/orphan > shop/db tcp 80"],
    );
    // A namespace that is not known is selected by nothing.
    check(
        "podSelector: {}\ningress: [{from: [{namespaceSelector: {}}]}]",
        &["ops/web > shop/db tcp 80", "shop/web > shop/db tcp 80"],
        &["lost/orphan > shop/db tcp 80"],
    );
}

#[test]
fn both_selectors_in_one_entry_are_an_and_and_two_entries_an_or() {
    check(
        "podSelector: {}\ningress: [{from: [{namespaceSelector: {matchLabels: {team: b}}, podSelector: {matchLabels: {app: web}}}]}]",
        &["ops/web > shop/db tcp 80"],
        &["ops/monitor > shop/db tcp 80", "shop/web > shop/db tcp 80"],
    );
    check(
        "podSelector: {}\ningress: [{from: [{namespaceSelector: {matchLabels: {team: b}}}, {podSelector: {matchLabels: {app: web}}}]}]",
        &["ops/web > shop/db tcp 80", "ops/monitor > shop/db tcp 80", "shop/web > shop/db tcp 80"],
        &["shop/cache > shop/db tcp 80"],
    );
}

#[test]
fn a_block_without_its_exceptions() {
    let spec = "podSelector: {}\npolicyTypes: [Egress, Ingress]\n\
                egress: [{to: [{ipBlock: {cidr: 9.9.0.0/16, except: [9.9.9.0/24]}}]}]\n\
                ingress: [{from: [{ipBlock: {cidr: 10.42.1.0/24, except: [10.42.1.2/32]}}]}]";
    check(
        spec,
        &["shop/web > 9.9.8.255 tcp 80", "shop/web > 9.9.10.0 icmp", "ops/monitor > shop/db tcp 80"],
        &["shop/web > 9.9.9.9 tcp 80", "shop/web > 9.10.0.0 tcp 80", "ops/web > shop/db tcp 80", "9.9.8.1 > shop/db tcp 80"],
    );
    // One that holds no IPv4 address allows nobody, and not everybody.
    check("podSelector: {}\ningress: [{from: [{ipBlock: {cidr: 'fd00::/8'}}]}]", &[], &["ops/web > shop/db tcp 80"]);
}

#[test]
fn ports_by_number_range_and_protocol() {
    check(
        "podSelector: {}\ningress: [{ports: [{port: 80}, {port: 90, endPort: 92}, {protocol: UDP, port: 53}, {protocol: SCTP}]}]",
        &[
            "ops/web > shop/db tcp 80",
            "9.9.9.9 > shop/db tcp 90",
            "ops/web > shop/db tcp 92",
            "ops/web > shop/db udp 53",
            "ops/web > shop/db sctp 1",
        ],
        &[
            "ops/web > shop/db tcp 89",
            "ops/web > shop/db tcp 93",
            "ops/web > shop/db udp 80",
            "ops/web > shop/db tcp 53",
            "ops/web > shop/db icmp",
        ],
    );
    check(
        "podSelector: {}\ningress: [{ports: [{}]}]",
        &["ops/web > shop/db tcp 9"],
        &["ops/web > shop/db udp 9", "ops/web > shop/db icmp"],
    );
    check(
        "podSelector: {}\ningress: [{ports: [{port: 1, endPort: 65535}]}]",
        &["ops/web > shop/db tcp 65535"],
        &["ops/web > shop/db udp 9"],
    );
}

#[test]
fn a_named_port_is_that_of_the_destination() {
    check(
        "podSelector: {}\ningress: [{ports: [{port: http}]}]",
        &["ops/web > shop/db tcp 5432", "ops/web > shop/web tcp 80"],
        &["ops/web > shop/db tcp 80", "ops/web > shop/web tcp 5432", "ops/web > shop/db udp 8443"],
    );
    check("podSelector: {}\ningress: [{ports: [{port: none}]}]", &[], &["ops/web > shop/db tcp 80", "ops/web > shop/db icmp"]);
    check(
        "podSelector: {}\npolicyTypes: [Egress]\negress: [{to: [{podSelector: {}}], ports: [{port: http}, {protocol: UDP, port: http}]}]",
        &["shop/web > shop/db tcp 5432", "shop/db > shop/web tcp 80", "shop/web > shop/db udp 8443"],
        &["shop/web > shop/db tcp 80", "shop/web > ops/web tcp 80", "shop/web > 9.9.9.9 tcp 80"],
    );
    // Without peers it is the port of any pod; an address without a pod has no names.
    check(
        "podSelector: {}\npolicyTypes: [Egress]\negress: [{ports: [{port: http}]}]",
        &["shop/web > shop/db tcp 5432", "shop/web > ops/web tcp 80", "shop/web > lost/orphan tcp 80"],
        &["shop/web > 9.9.9.9 tcp 80", "shop/web > ops/web tcp 5432"],
    );
    check(
        "podSelector: {}\npolicyTypes: [Egress]\negress: [{to: [{ipBlock: {cidr: 0.0.0.0/0}}], ports: [{port: http}, {port: 81}]}]",
        &["shop/web > ops/web tcp 81"],
        &["shop/web > ops/web tcp 80"],
    );
    // At ingress it is the selected pod's own port, whoever comes.
    check(
        "podSelector: {}\ningress: [{from: [{ipBlock: {cidr: 9.9.9.0/24}}], ports: [{port: http}]}]",
        &["9.9.9.9 > shop/db tcp 5432", "9.9.9.9 > shop/web tcp 80"],
        &["9.9.9.9 > shop/db tcp 80", "ops/web > shop/db tcp 5432"],
    );
}

#[test]
fn peers_and_ports_of_a_rule_are_an_and_and_rules_an_or() {
    check(
        "podSelector: {}\ningress: [{from: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: 80}]}, {from: [{namespaceSelector: {matchLabels: {team: b}}}], ports: [{port: 81}]}]",
        &["shop/web > shop/db tcp 80", "ops/web > shop/db tcp 81"],
        &["shop/web > shop/db tcp 81", "ops/web > shop/db tcp 80"],
    );
}

#[test]
fn policies_add_up() {
    check_all(
        &[
            "podSelector: {}\npolicyTypes: [Ingress, Egress]",
            "podSelector: {matchLabels: {app: db}}\ningress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]",
            "podSelector: {matchLabels: {app: db}}\ningress: [{ports: [{port: 9}]}]",
            "podSelector: {matchLabels: {app: web}}\npolicyTypes: [Egress]\negress: [{to: [{podSelector: {matchLabels: {app: db}}}]}]",
        ],
        &["shop/web > shop/db tcp 80", "ops/web > shop/db tcp 9"],
        // Each side must allow.
        &["shop/cache > shop/db tcp 9", "shop/web > shop/cache tcp 80", "ops/web > shop/db tcp 80", "shop/db > shop/web tcp 80"],
    );
}

#[test]
fn dns_is_allowed_by_the_rules_that_allow_its_pods_elsewhere() {
    let egress = |rule: &str| format!("podSelector: {{}}\npolicyTypes: [Egress]\negress: [{rule}]");
    let (udp, tcp) = ("shop/web > dns udp 53", "shop/web > dns tcp 53");
    let kube_dns = "{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}, podSelector: {matchLabels: {k8s-app: kube-dns}}}";
    let other = "shop/web > dns tcp 6443";
    check(&egress(&format!("{{to: [{kube_dns}], ports: [{{port: 53, protocol: UDP}}]}}")), &[udp], &[tcp, other]);
    check(&egress(&format!("{{to: [{kube_dns}], ports: [{{port: 53}}, {{port: dns, protocol: UDP}}]}}")), &[udp, tcp], &[other]);
    check(&egress(&format!("{{to: [{kube_dns}]}}")), &[udp, tcp], &[other, "shop/web > kube-system/agent tcp 53"]);
    check(&egress("{to: [{namespaceSelector: {}}]}"), &[udp, tcp], &[other]);
    check(&egress("{ports: [{port: 53, protocol: UDP}]}"), &[udp], &[tcp]);
    check(&egress("{ports: [{port: dns-tcp}]}"), &[tcp], &[udp]);
    check(&egress("{to: [{ipBlock: {cidr: 10.43.0.10/32}}], ports: [{port: 53, protocol: UDP}]}"), &[udp], &[tcp]);
    check(&egress("{to: [{ipBlock: {cidr: 10.42.0.0/16}}]}"), &[udp, tcp], &[other]);
    check(&egress("{to: [{ipBlock: {cidr: 10.42.0.0/16, except: [10.42.1.0/24]}}]}"), &[], &[udp, tcp]);
    // These do not name the pods that DNS would be.
    check(&egress("{to: [{podSelector: {matchLabels: {k8s-app: kube-dns}}}]}"), &[], &[udp, tcp]);
    check(&egress("{to: [{namespaceSelector: {matchLabels: {team: b}}}]}"), &[], &[udp, tcp]);
    check(&egress(&format!("{{to: [{kube_dns}], ports: [{{port: 54, protocol: UDP}}]}}")), &[], &[udp, tcp]);
}

#[test]
fn dns_follows_the_labels_of_its_namespace() {
    let mut planner = cluster();
    planner.put_policy(&policy(
        "p",
        "podSelector: {}\npolicyTypes: [Egress]\negress: [{to: [{namespaceSelector: {matchLabels: {dns: here}}}]}]",
    ));
    let mut kernel = Kernel::default();
    kernel.apply(planner.changes());
    assert!(!kernel.lets(packet("shop/web > dns udp 53")));
    planner.set_namespace("kube-system", Some(labels("dns=here").into()));
    kernel.apply(planner.changes());
    assert!(kernel.lets(packet("shop/web > dns udp 53")));
}

#[test]
fn finished_pods_and_those_of_the_host_network_are_nobody() {
    for (field, value) in [
        ("status", json!({ "phase": "Succeeded", "podIP": "10.42.1.2" })),
        ("spec", json!({ "hostNetwork": true, "containers": [] })),
    ] {
        let mut planner = cluster();
        planner.put_policy(&policy("p", "podSelector: {}\ningress: [{from: [{namespaceSelector: {}}]}]"));
        let mut kernel = Kernel::default();
        kernel.apply(planner.changes());
        assert!(kernel.lets(packet("ops/web > shop/db tcp 80")));
        let mut pod = pod("ops", "web", "10.42.1.2", "app=web");
        pod[field] = value;
        put(&mut planner, &pod);
        kernel.apply(planner.changes());
        assert!(!kernel.lets(packet("ops/web > shop/db tcp 80")));
    }
}

#[test]
fn changes_touch_only_what_they_are_about() {
    let mut planner = cluster();
    planner.put_policy(&policy(
        "p",
        "podSelector: {matchLabels: {app: db}}\ningress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]",
    ));
    let mut kernel = Kernel::default();
    kernel.apply(planner.changes());
    // A label of a peer: one element.
    put(&mut planner, &pod("shop", "cache", "10.42.0.3", "app=web"));
    let batch = planner.changes();
    assert_eq!((batch.set_changes.len(), batch.set_changes[0].added.len()), (1, 1));
    assert!(batch.sets.is_empty() && batch.chains.is_empty() && batch.verdicts_added.is_empty());
    kernel.apply(batch);
    assert!(kernel.lets(packet("shop/cache > shop/db tcp 80")));
    // What policies do not see: nothing.
    let mut same = pod("shop", "cache", "10.42.0.3", "app=web");
    same["metadata"]["resourceVersion"] = "9".into();
    put(&mut planner, &same);
    assert!(planner.changes().is_empty());
    // The policy goes: nothing is left.
    planner.remove_policy(&policy("p", "podSelector: {}"));
    kernel.apply(planner.changes());
    assert!(kernel.is_empty() && kernel.lets(packet("9.9.9.9 > shop/db tcp 80")));
}

#[test]
fn a_pod_is_filtered_before_the_api_knows_its_address_and_when_nothing_is_known_of_it() {
    let mut planner = cluster();
    planner.put_policy(&policy(
        "p",
        "podSelector: {matchLabels: {app: new}}\ningress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]",
    ));
    planner.put_policy(&policy(
        "q",
        "podSelector: {matchLabels: {app: db}}\ningress: [{from: [{podSelector: {matchLabels: {app: new}}}]}]",
    ));
    let facts = |text: &str, revision: &str| {
        let mut pod = pod("shop", "new", "10.42.0.9", text);
        pod["status"] = json!({});
        pod["metadata"]["resourceVersion"] = revision.into();
        Arc::new(PodFacts::from(&serde_json::from_value::<Pod>(pod).unwrap()))
    };
    let ip = Ipv4Addr::new(10, 42, 0, 9);
    planner.set_local("shop-new", Some(Local { ip, facts: Some(facts("app=new", "7")) }));
    let mut kernel = Kernel::default();
    kernel.apply(planner.changes());
    assert!(kernel.lets(packet("shop/web > 10.42.0.9 tcp 80")) && !kernel.lets(packet("shop/db > 10.42.0.9 tcp 80")));
    assert!(kernel.lets(packet("10.42.0.9 > shop/db tcp 80")), "it is a peer at once");
    // What the API lists may be older than what the agent said, or newer.
    planner.put_pod(&facts("app=old", "6"));
    kernel.apply(planner.changes());
    assert!(!kernel.lets(packet("shop/db > 10.42.0.9 tcp 80")));
    planner.put_pod(&facts("app=old", "8"));
    kernel.apply(planner.changes());
    assert!(kernel.lets(packet("shop/db > 10.42.0.9 tcp 80")) && !kernel.lets(packet("10.42.0.9 > shop/db tcp 80")));
    planner.remove_pod("shop-new");
    planner.set_local("shop-new", Some(Local { ip, facts: None }));
    kernel.apply(planner.changes());
    assert!(!kernel.lets(packet("shop/web > 10.42.0.9 tcp 80")) && !kernel.lets(packet("10.42.0.9 > 9.9.9.9 tcp 80")));
    planner.set_local("shop-new", None);
    kernel.apply(planner.changes());
    assert!(kernel.lets(packet("shop/db > 10.42.0.9 tcp 80")));
}
