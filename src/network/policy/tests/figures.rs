//! What policies cost in a cluster of 1,000 pods and 200 policies. Times are printed; what is asserted is work, which is the same on
//! every machine: how much a change tells the kernel, and how many rules a packet meets.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::networking::v1::NetworkPolicy;
use serde_json::json;

use super::super::batch::Batch;
use super::super::facts::PodFacts;
use super::super::planner::Local;
use super::kernel::{Node, count, on_a_node, policy, run};

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

/// Time for one change, and the most that one told the kernel.
struct Cost {
    planned: Duration,
    told: Duration,
    items: usize,
}

impl std::fmt::Display for Cost {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { planned, told, items } = self;
        write!(formatter, "planned in {planned:?}, told in {told:?}, at most {items} items")
    }
}

/// Chains, sets and elements that come or go.
fn items(batch: &Batch) -> usize {
    let new = batch.sets.iter().map(|set| 1 + set.elements.len()).sum::<usize>();
    let changed = batch.set_changes.iter().map(|set| set.added.len() + set.removed.len()).sum::<usize>();
    let chains = batch.chains.len() + batch.chains_gone.len() + batch.sets_gone.len();
    let pods = batch.verdicts_added.len() + batch.verdicts_removed.len() + batch.selves_added.len() + batch.selves_removed.len();
    new + changed + chains + pods
}

async fn took(node: &mut Node, times: u32, mut change: impl FnMut(&mut Node, u32)) -> Cost {
    let (mut planned, mut told, mut most) = (Duration::ZERO, Duration::ZERO, 0);
    for time in 0..times {
        let started = Instant::now();
        change(node, time);
        let batch = node.planner.changes();
        planned += started.elapsed();
        most = most.max(items(&batch));
        let started = Instant::now();
        node.table.apply(&batch).await.unwrap();
        told += started.elapsed();
    }
    Cost { planned: planned / times, told: told / times, items: most }
}

/// Rules that a packet of a pod of this node meets at most, in both base chains.
fn rules_met() -> usize {
    let listing = run("nft list ruleset");
    let base = |name: &str| listing.split(&format!("chain {name} {{")).nth(1).unwrap().split('}').next().unwrap().lines().count();
    base("forward") + base("input")
}

#[test]
fn a_change_costs_what_it_touches() {
    on_a_node(|mut node| async move {
        let bare = packet_cost(&node).await;
        node.enforce("podSelector: {matchLabels: {app: b}}\ningress: [{from: [{podSelector: {matchLabels: {app: a}}}]}]").await;
        let (small, few) = (packet_cost(&node).await, rules_met());

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
        println!("a pod changes its label and address: {label}");
        println!("a policy changes: {policies}");
        println!("a namespace changes its labels: {namespace}");
        let (large, many) = (packet_cost(&node).await, rules_met());
        println!("a packet: {bare:?} without policies, {small:?} with one, {large:?} with {POLICIES} and {PODS} pods");
        println!("the whole: {} items", items(&whole));

        assert_eq!(many, few, "more policies, more rules for every packet");
        // Fifty pods of a namespace are in the sets that its labels choose; all else is a handful.
        let of_namespace = usize::from(PODS / NAMESPACES);
        assert!(label.items < of_namespace, "a pod: {label}");
        assert!(policies.items < of_namespace, "a policy: {policies}");
        assert!(namespace.items < of_namespace * 4, "a namespace: {namespace}");
        node.planner.remove_policy(&policy("podSelector: {}"));
        node.tasks.cancel();
    });
}
