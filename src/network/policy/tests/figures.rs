//! What policies cost in a cluster of 1,000 pods and 200 policies: printed, and held below bounds that only a change of kind passes
//! (the machine may be busy, and this is not the optimised build).

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::networking::v1::NetworkPolicy;
use serde_json::json;

use super::super::facts::PodFacts;
use super::super::planner::Local;
use super::kernel::{Node, count, on_a_node, policy};

const PODS: u16 = 1_000;
const POLICIES: u16 = 200;
const NAMESPACES: u16 = 20;
const LOCAL: u16 = 100;
const FLOOD: u32 = 20_000;

fn pod(number: u16, revision: u32, label: &str) -> Arc<PodFacts> {
    let [high, low] = number.to_be_bytes();
    let namespace = format!("ns{}", number % NAMESPACES);
    Arc::new(
        serde_json::from_value(json!({
            "metadata": {
                "namespace": namespace, "name": format!("p{number}"), "uid": format!("u{number}"), "resourceVersion": revision.to_string(),
                "labels": { "app": format!("app{}", number % 50), "tier": label, "pod-template-hash": "6f7d8c9b5d" },
            },
            "spec": { "containers": [{ "ports": [{ "name": "http", "containerPort": 8080 }] }] },
            "status": { "podIP": Ipv4Addr::new(10, 205, high + 1, low).to_string() },
        }))
        .unwrap(),
    )
}

fn big_policy(number: u16) -> NetworkPolicy {
    serde_json::from_value(json!({
        "metadata": { "namespace": format!("ns{}", number % NAMESPACES), "name": format!("policy{number}") },
        "spec": {
            "podSelector": { "matchLabels": { "app": format!("app{}", number % 50) } },
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{ "from": [{ "namespaceSelector": { "matchLabels": { "team": format!("t{}", number % 4) } }, "podSelector": { "matchLabels": { "app": format!("app{}", number % 49) } } }], "ports": [{ "port": 8080 }] }],
            "egress": [{ "to": [{ "podSelector": {} }], "ports": [{ "port": "http" }] }, { "ports": [{ "port": 53, "protocol": "UDP" }] }],
        },
    }))
    .unwrap()
}

/// Time for one packet of a connection that is never answered, so that the policy looks at each.
async fn packet_cost(node: &Node) -> Duration {
    let (from, to) = (node.pods[0].udp(0).await, node.pods[1].udp(0).await);
    let address = (node.pods[1].ip, to.local_addr().unwrap().port());
    let started = Instant::now();
    for _ in 0..FLOOD {
        from.send_to(b"x", address).unwrap();
    }
    let cost = started.elapsed() / FLOOD;
    let another = node.pods[1].udp(0).await;
    assert_eq!(count(&node.pods[0].udp(0).await, &another, node.pods[1].ip), 5);
    cost
}

async fn took(node: &mut Node, times: u32, mut change: impl FnMut(&mut Node, u32)) -> (Duration, Duration) {
    let (mut planned, mut told) = (Duration::ZERO, Duration::ZERO);
    for time in 0..times {
        let started = Instant::now();
        change(node, time);
        let batch = node.planner.changes();
        planned += started.elapsed();
        let started = Instant::now();
        node.table.apply(&batch).await.unwrap();
        told += started.elapsed();
    }
    (planned / times, told / times)
}

#[test]
fn a_change_costs_what_it_touches() {
    on_a_node(|mut node| async move {
        let bare = packet_cost(&node).await;
        node.enforce("podSelector: {matchLabels: {app: b}}\ningress: [{from: [{podSelector: {matchLabels: {app: a}}}]}]").await;
        let small = packet_cost(&node).await;

        let started = Instant::now();
        for number in 0..NAMESPACES {
            let labels = std::collections::BTreeMap::from([("team".to_owned(), format!("t{}", number % 4))]);
            node.planner.set_namespace(&format!("ns{number}"), Some(labels.into()));
        }
        for number in 0..PODS {
            let facts = pod(number, 1, "x");
            node.planner.put_pod(&facts);
            if number < LOCAL {
                let local = Local { ip: facts.peer_ip().unwrap(), facts: None };
                node.planner.set_local(&facts.uid, Some(local));
            }
        }
        (0..POLICIES).for_each(|number| node.planner.put_policy(&big_policy(number)));
        let whole = node.planner.whole();
        let planned = started.elapsed();
        let started = Instant::now();
        node.table.replace(&whole).await.unwrap();
        println!(
            "everything: planned in {planned:?}, {} sets and {} chains told in {:?}",
            whole.sets.len(),
            whole.chains.len(),
            started.elapsed()
        );

        let label = took(&mut node, 100, |node, time| {
            let number = u16::try_from(time * 9).unwrap();
            node.planner.put_pod(&pod(number, 2, "y"));
            let mut moved = (*pod(number, 3, "y")).clone();
            moved.ip = Some(Ipv4Addr::new(10, 205, 99, u8::try_from(time).unwrap()));
            node.planner.put_pod(&Arc::new(moved));
        })
        .await;
        let policies = took(&mut node, 50, |node, time| {
            let mut changed = big_policy(u16::try_from(time).unwrap());
            changed.spec.as_mut().unwrap().egress = None;
            node.planner.put_policy(&changed);
        })
        .await;
        let namespace = took(&mut node, 20, |node, time| {
            let labels = std::collections::BTreeMap::from([("team".to_owned(), "t9".to_owned())]);
            node.planner.set_namespace(&format!("ns{time}"), Some(labels.into()));
        })
        .await;
        println!("a pod changes its label and address: planned in {:?}, told in {:?}", label.0, label.1);
        println!("a policy changes: planned in {:?}, told in {:?}", policies.0, policies.1);
        println!("a namespace changes its labels: planned in {:?}, told in {:?}", namespace.0, namespace.1);
        let large = packet_cost(&node).await;
        println!("a packet: {bare:?} without policies, {small:?} with one, {large:?} with {POLICIES} and {PODS} pods");

        for (what, (planned, told)) in [("pod", label), ("policy", policies), ("namespace", namespace)] {
            assert!(planned + told < Duration::from_millis(200), "{what}: {planned:?} and {told:?}");
        }
        assert!(large < small * 3, "the cost of a packet grows: {small:?}, {large:?}");
        node.planner.remove_policy(&policy("podSelector: {}"));
        node.tasks.cancel();
    });
}
