//! Pods of high priority take the room of others: the right ones, told as upstream tells them, and the same after a kill at any step.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::pods::{self, manifest, shell, with};
use crate::support::{Cluster, Kubectl, wait_for};

const TIME: Duration = Duration::from_secs(150);
const HELD: &str = "orch.test/held";
const NOMINATED: &str = "{.status.nominatedNodeName}";

struct World {
    kubectl: Kubectl,
    /// A quarter of the node's CPUs.
    quarter_millis: u64,
}

impl World {
    fn new(cluster: &Cluster) -> Self {
        let kubectl = cluster.kubectl("1.33");
        let cpus = kubectl.jsonpath(&["node", &cluster.node], "{.status.allocatable.cpu}");
        let millis =
            cpus.strip_suffix('m').map_or_else(|| cpus.parse::<u64>().unwrap() * 1_000, |millis| millis.parse().unwrap());
        for (name, value, policy) in [
            ("low", 10, "PreemptLowerPriority"),
            ("mid", 20, "PreemptLowerPriority"),
            ("high", 1_000, "PreemptLowerPriority"),
            ("polite", 1_000, "Never"),
        ] {
            let class = json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": name},
                "value": value, "preemptionPolicy": policy});
            kubectl.manifest(&["create"], &class.to_string()).unwrap();
        }
        Self { kubectl, quarter_millis: millis / 4 }
    }

    /// Makes a pod that asks for so many quarters of the node, and needs its time to end.
    fn make(&self, name: &str, class: &str, quarters: u64, metadata: serde_json::Value) {
        let mut container = shell("main", "trap '' TERM; while true; do sleep 1; done");
        container["resources"] = json!({"requests": {"cpu": format!("{}m", self.quarter_millis * quarters)}});
        let pod =
            manifest(name, json!({"priorityClassName": class, "terminationGracePeriodSeconds": 4, "containers": [container]}));
        let pod = with(pod, json!({"metadata": with(json!({"name": name}), metadata)}));
        wait_for(&format!("the pod {name} to be taken"), TIME, || self.kubectl.manifest(&["create"], &pod.to_string()));
    }

    fn get(&self, pod: &str, path: &str) -> String {
        pods::get(&self.kubectl, pod, path)
    }

    fn until(&self, pod: &str, path: &str, expected: &str) {
        pods::until_within(TIME, &self.kubectl, pod, path, expected);
    }

    fn until_ready(&self, pod: &str) {
        self.until(pod, "{.status.conditions[?(@.type==\"Ready\")].status}", "True");
    }

    /// The pods that run and are to go on.
    fn running(&self) -> String {
        let path = "{range .items[?(@.status.phase==\"Running\")]}{.metadata.name}{.metadata.deletionTimestamp} {end}";
        self.kubectl.jsonpath(&["pods"], path).trim().to_owned()
    }

    fn condition(&self, pod: &str, kind: &str, field: &str) -> String {
        self.get(pod, &format!("{{.status.conditions[?(@.type==\"{kind}\")].{field}}}"))
    }
}

#[test]
fn the_right_pods_make_room_and_are_told() {
    let mut cluster = Cluster::start();
    let world = World::new(&cluster);
    let kubectl = &world.kubectl;
    let guard = json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "guard"},
        "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "guarded"}}}});
    kubectl.manifest(&["create"], &guard.to_string()).unwrap();
    world.make("low-free", "low", 1, json!({"finalizers": [HELD]}));
    world.make("low-guarded", "low", 1, json!({"labels": {"app": "guarded"}}));
    world.make("mid-1", "mid", 1, json!({}));
    world.make("mid-2", "mid", 1, json!({}));
    ["low-free", "low-guarded", "mid-1", "mid-2"].iter().for_each(|pod| world.until_ready(pod));
    wait_for("the budget to count", TIME, || match kubectl.jsonpath(&["pdb", "guard"], "{.status.currentHealthy}").as_str() {
        "1" => Ok(()),
        other => Err(other.to_owned()),
    });

    one_that_does_not_preempt_waits(&world);
    one_pod_makes_room(&world, &cluster.node);
    goes_on_after_kills(&world, &mut cluster);
}

fn one_that_does_not_preempt_waits(world: &World) {
    world.make("polite", "polite", 1, json!({}));
    wait_for("the polite pod to be told", TIME, || {
        let message = world.condition("polite", "PodScheduled", "message");
        let is_told =
            message.contains("Insufficient cpu") && message.ends_with("preemption: not eligible due to preemptionPolicy=Never.");
        if is_told { Ok(()) } else { Err(message) }
    });
    // Neither does one of the same priority as everybody, who could be helped by nobody's end.
    world.make("lowest", "low", 1, json!({}));
    let tail = "preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod.";
    pods::until_event_within(TIME, &world.kubectl, "lowest", tail);
    assert_eq!(world.running(), "low-free low-guarded mid-1 mid-2");
    world.kubectl.run(["delete", "pod", "polite", "lowest", "--wait=true"]);
}

fn one_pod_makes_room(world: &World, node: &str) {
    let kubectl = &world.kubectl;
    world.make("high-1", "high", 1, json!({}));
    world.until("high-1", NOMINATED, node);
    world.until("low-free", "{.status.conditions[?(@.type==\"DisruptionTarget\")].reason}", "PreemptionByScheduler");
    assert_eq!(world.condition("low-free", "DisruptionTarget", "status"), "True");
    let words = "default-scheduler: preempting to accommodate a higher priority pod";
    assert_eq!(world.condition("low-free", "DisruptionTarget", "message"), words);
    let event = format!("Preempted: Preempted by pod {} on node {node}", world.get("high-1", "{.metadata.uid}"));
    pods::until_event_within(TIME, kubectl, "low-free", &event);
    world.until_ready("high-1");
    assert_eq!(world.get("high-1", NOMINATED), "", "the binding ends the nomination");
    assert_eq!(world.running(), "high-1 low-guarded mid-1 mid-2");
    kubectl.run(["patch", "pod", "low-free", "--type=json", "-p", r#"[{"op": "remove", "path": "/metadata/finalizers"}]"#]);
    // Nobody else was touched.
    for pod in ["low-guarded", "mid-1", "mid-2"] {
        assert_eq!(world.condition(pod, "DisruptionTarget", "reason"), "", "{pod}");
    }
}

/// Two more quarters: of the three pods of lower priority the one with the budget stays. The server is killed at once, then when the
/// node is kept for the pod, then when a victim is marked.
fn goes_on_after_kills(world: &World, cluster: &mut Cluster) {
    world.make("high-2", "high", 2, json!({}));
    cluster.kill();
    cluster.spawn();
    cluster.wait_ready();
    let deadline = Instant::now() + TIME;
    let seen = |what: &str, path: &str| world.kubectl.try_run(["get", "pod", what, "-o", &format!("jsonpath={path}")]);
    for (pod, path) in [("high-2", NOMINATED), ("mid-1", "{.metadata.deletionTimestamp}")] {
        // Each step may be over by the time the server is there again: then the victim is gone or the pod is bound.
        wait_for(&format!("{pod} to have {path}"), TIME, || {
            let is_bound = seen("high-2", "{.spec.nodeName}").is_ok_and(|node| !node.is_empty());
            match seen(pod, path) {
                Ok(value) if value.is_empty() && !is_bound => Err("not yet".to_owned()),
                _ => Ok(()),
            }
        });
        cluster.kill();
        cluster.spawn();
        cluster.wait_ready();
        assert!(Instant::now() < deadline);
    }
    world.until_ready("high-2");
    wait_for("the same pods as without a kill", TIME, || match world.running().as_str() {
        "high-1 high-2 low-guarded" => Ok(()),
        other => Err(other.to_owned()),
    });
    for pod in ["high-1", "low-guarded"] {
        assert_eq!(world.condition(pod, "DisruptionTarget", "reason"), "", "{pod}");
    }
    assert_eq!(world.get("high-2", NOMINATED), "");
}
