//! Random clusters and random events: the kernel holds what a naive reading of the policies says, and what a planner that
//! starts from nothing would put there.

use std::net::Ipv4Addr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::facts::{PodFacts, Protocol};
use super::super::planner::{Local, Planner};
use super::model::{Kernel, Packet};
use super::oracle::World;

const NODE: &str = "here";

fn address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 42, 0, number)
}

#[derive(Debug, Clone)]
enum Event {
    Policy(usize, Option<Value>),
    Namespace(usize, Option<u8>),
    Pod(usize, Option<Value>),
    Flush,
}

fn labels() -> impl Strategy<Value = Value> {
    (0_u8..3, 0_u8..3).prop_map(|(app, tier)| {
        let mut labels = json!({ "app": format!("a{app}") });
        if tier > 0 {
            labels["tier"] = format!("t{tier}").into();
        }
        labels
    })
}

fn selector() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(json!({})),
        (0_u8..3).prop_map(|app| json!({ "matchLabels": { "app": format!("a{app}") } })),
        (0_usize..4).prop_map(|at| {
            let operator = ["In", "NotIn", "Exists", "DoesNotExist"][at];
            let mut term = json!({ "key": "tier", "operator": operator });
            if at < 2 {
                term["values"] = json!(["t1"]);
            }
            json!({ "matchExpressions": [term] })
        }),
    ]
}

fn peer() -> impl Strategy<Value = Value> {
    prop_oneof![
        selector().prop_map(|pods| json!({ "podSelector": pods })),
        (0_u8..2).prop_map(|team| json!({ "namespaceSelector": { "matchLabels": { "team": format!("n{team}") } } })),
        (selector(), selector()).prop_map(|(pods, _)| json!({ "podSelector": pods, "namespaceSelector": {} })),
        (0_u8..8).prop_map(|number| {
            json!({ "ipBlock": { "cidr": "10.42.0.0/29", "except": [format!("{}/32", address(number))] } })
        }),
    ]
}

fn port() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(json!({ "protocol": "UDP" })),
        (79_u16..82).prop_map(|port| json!({ "port": port })),
        Just(json!({ "port": 80, "endPort": 81, "protocol": "TCP" })),
        Just(json!({ "port": "web", "protocol": "TCP" })),
        Just(json!({ "port": "web", "protocol": "UDP" })),
    ]
}

fn rules(direction: &'static str) -> impl Strategy<Value = Value> {
    let rule =
        (proptest::collection::vec(peer(), 0..3), proptest::collection::vec(port(), 0..3)).prop_map(move |(peers, ports)| {
            let mut rule = json!({});
            if !peers.is_empty() {
                rule[direction] = peers.into();
            }
            if !ports.is_empty() {
                rule["ports"] = ports.into();
            }
            rule
        });
    proptest::collection::vec(rule, 0..3).prop_map(Value::from)
}

fn policy() -> impl Strategy<Value = Value> {
    (selector(), rules("from"), rules("to"), 0_u8..4, 0_u8..2).prop_map(|(pods, ingress, egress, types, namespace)| {
        let types = [json!([]), json!(["Ingress"]), json!(["Egress"]), json!(["Ingress", "Egress"])][usize::from(types)].clone();
        json!({
            "metadata": { "namespace": format!("ns{namespace}") },
            "spec": { "podSelector": pods, "ingress": ingress, "egress": egress, "policyTypes": types },
        })
    })
}

fn pod() -> impl Strategy<Value = Value> {
    (labels(), 0_u8..2, 0_u8..6, 0_u8..8).prop_map(|(labels, namespace, kind, port)| {
        let ports = json!([{ "name": "web", "containerPort": 79 + u16::from(port % 3), "protocol": if port > 5 { "UDP" } else { "TCP" } }]);
        json!({
            "metadata": { "namespace": format!("ns{namespace}"), "labels": labels },
            "spec": { "hostNetwork": kind == 5, "containers": [{ "name": "c", "ports": ports }] },
            "status": { "phase": if kind == 4 { "Succeeded" } else { "Running" } },
        })
    })
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        3 => (0_usize..4, proptest::option::weighted(0.8, policy())).prop_map(|(at, policy)| Event::Policy(at, policy)),
        1 => (0_usize..2, proptest::option::weighted(0.9, 0_u8..3)).prop_map(|(at, team)| Event::Namespace(at, team)),
        5 => (0_usize..7, proptest::option::weighted(0.8, pod())).prop_map(|(at, pod)| Event::Pod(at, pod)),
        2 => Just(Event::Flush),
    ]
}

struct Run {
    planner: Planner,
    kernel: Kernel,
    policies: Vec<Option<NetworkPolicy>>,
    namespaces: Vec<Option<Namespace>>,
    pods: Vec<Option<Pod>>,
    revision: u32,
}

fn new_planner() -> Planner {
    Planner::new("10.42.0.0/16".parse().unwrap())
}

fn facts(pod: &Pod) -> Arc<PodFacts> {
    Arc::new(PodFacts::from(pod))
}

/// A pod of this node that is attached holds its address, whatever the API says yet.
fn local(pod: &Pod) -> Option<Local> {
    let spec = pod.spec.as_ref().unwrap();
    let ip = pod.status.as_ref().unwrap().pod_ip.as_ref().unwrap().parse().unwrap();
    let is_local = spec.node_name.as_deref() == Some(NODE) && spec.host_network != Some(true);
    let is_running = pod.status.as_ref().unwrap().phase.as_deref() == Some("Running");
    (is_local && is_running).then(|| Local { ip, facts: None })
}

impl Run {
    fn new() -> Self {
        Self {
            planner: new_planner(),
            kernel: Kernel::default(),
            policies: vec![None; 4],
            namespaces: vec![None; 2],
            pods: vec![None; 7],
            revision: 0,
        }
    }

    fn take(&mut self, event: Event) {
        self.revision += 1;
        match event {
            Event::Flush => self.flush(),
            Event::Policy(at, value) => {
                let new = value.map(|mut value| {
                    value["metadata"]["name"] = format!("p{at}").into();
                    serde_json::from_value::<NetworkPolicy>(value).unwrap()
                });
                let old = std::mem::replace(&mut self.policies[at], new.clone());
                let moved = old.filter(|old| new.as_ref().is_none_or(|new| new.metadata.namespace != old.metadata.namespace));
                if let Some(old) = moved {
                    self.planner.remove_policy(&old);
                }
                if let Some(new) = new {
                    self.planner.put_policy(&new);
                }
            }
            Event::Namespace(at, team) => {
                let new = team.map(|team| -> Namespace {
                    serde_json::from_value(
                        json!({ "metadata": { "name": format!("ns{at}"), "labels": { "team": format!("n{team}") } } }),
                    )
                    .unwrap()
                });
                self.planner.set_namespace(
                    &format!("ns{at}"),
                    new.as_ref().map(|namespace| namespace.metadata.labels.clone().unwrap().into()),
                );
                self.namespaces[at] = new;
            }
            Event::Pod(at, value) => self.take_pod(at, value),
        }
    }

    fn take_pod(&mut self, at: usize, value: Option<Value>) {
        let new = value.map(|mut value| {
            value["metadata"]["name"] = format!("pod{at}").into();
            // A pod that changes namespace is another pod.
            value["metadata"]["uid"] = format!("{at}-{}", value["metadata"]["namespace"]).into();
            value["metadata"]["resourceVersion"] = self.revision.to_string().into();
            value["spec"]["nodeName"] = if at < 4 { NODE } else { "there" }.into();
            value["status"]["podIP"] = address(u8::try_from(at).unwrap()).to_string().into();
            serde_json::from_value::<Pod>(value).unwrap()
        });
        let old = std::mem::replace(&mut self.pods[at], new.clone());
        let gone = old.filter(|old| new.as_ref().is_none_or(|new| new.metadata.uid != old.metadata.uid));
        if let Some(old) = gone {
            let uid = old.metadata.uid.unwrap();
            self.planner.set_local(&uid, None);
            self.planner.remove_pod(&uid);
        }
        if let Some(new) = new {
            self.planner.put_pod(&facts(&new));
            self.planner.set_local(new.metadata.uid.as_deref().unwrap(), local(&new));
        }
    }

    fn flush(&mut self) {
        self.kernel.apply(self.planner.changes());
        assert!(self.planner.changes().is_empty());
    }

    fn world(&self) -> World {
        World {
            policies: self.policies.iter().flatten().cloned().collect(),
            namespaces: self.namespaces.iter().flatten().cloned().collect(),
            pods: self.pods.iter().flatten().cloned().collect(),
            node: NODE.to_owned(),
        }
    }

    fn check(&mut self) {
        self.flush();
        let world = self.world();
        let mut ports = vec![None];
        for port in 79..83 {
            ports.extend([Some((Protocol::Tcp, port)), Some((Protocol::Udp, port))]);
        }
        for (from, to) in (0..9).flat_map(|from| (0..9).map(move |to| (from, to))) {
            for port in &ports {
                let packet = Packet { from: address(from), to: address(to), port: *port };
                assert_eq!(self.kernel.lets(packet), world.lets(packet), "{packet:?}\n{:#?}", self.kernel);
            }
        }
        let mut fresh = new_planner();
        for policy in &world.policies {
            fresh.put_policy(policy);
        }
        for pod in &world.pods {
            fresh.set_local(pod.metadata.uid.as_deref().unwrap(), local(pod));
            fresh.put_pod(&facts(pod));
        }
        for namespace in &world.namespaces {
            fresh.set_namespace(
                namespace.metadata.name.as_deref().unwrap(),
                Some(namespace.metadata.labels.clone().unwrap().into()),
            );
        }
        let mut anew = Kernel::default();
        anew.apply(fresh.changes());
        assert_eq!(self.kernel, anew);
        let mut whole = Kernel::default();
        whole.apply(self.planner.whole());
        assert_eq!(self.kernel, whole);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn the_kernel_holds_what_the_words_say(events in proptest::collection::vec(event(), 1..40)) {
        let mut run = Run::new();
        for event in events {
            run.take(event);
        }
        run.check();
        for at in 0..7 {
            run.take(Event::Pod(at, None));
        }
        run.flush();
        assert!(run.kernel.is_empty(), "nothing is left when the last pod has gone");
    }
}
