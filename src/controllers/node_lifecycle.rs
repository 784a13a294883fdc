//! Node lifecycle: a node whose agent went silent becomes Unknown, gets taints, and its pods stop being ready. It follows upstream's
//! `controller/nodelifecycle`.
//!
//! Silence is measured from when a renewal of the node's Lease was *seen* here, not by the clocks of nodes.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, NodeCondition, Pod, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use parking_lot::Mutex;
use serde_json::json;
use tokio::time::Instant;

use super::{Context, Controller, Error, Queue, Requeue, Seen, Watches, pods};
use crate::client::informer::{Informer, Scope};
use crate::client::recorder::{EventType, Recorder, reference};
use crate::client::{Cached, Client, ObjectKey, PatchKind};
use crate::rt::clock::{self, SharedClock};

/// Silence after which a node is Unknown.
const GRACE: Duration = Duration::from_secs(40);
const LEASES: &str = "kube-node-lease";
pub(super) const BY_NODE: &str = "node";
const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
/// Conditions that an agent reports, each with the taint that it brings when it is True.
const REPORTED: &[(&str, Option<&str>)] = &[
    ("Ready", None),
    ("MemoryPressure", Some("node.kubernetes.io/memory-pressure")),
    ("DiskPressure", Some("node.kubernetes.io/disk-pressure")),
    ("PIDPressure", Some("node.kubernetes.io/pid-pressure")),
    ("NetworkUnavailable", Some("node.kubernetes.io/network-unavailable")),
];

/// The controller of node health.
pub(super) fn node_lifecycle(context: &Context) -> Arc<dyn Controller> {
    let informers = &context.config.informers;
    let pods = informers.of::<Pod>();
    pods.add_index(BY_NODE, node_of);
    let client = context.client("node-lifecycle-controller");
    let scope = Scope { namespace: LEASES.to_owned(), query: String::new() };
    Arc::new(NodeLifecycle {
        nodes: informers.of(),
        leases: Informer::start(&context.tasks, client.clone(), scope),
        pods,
        client,
        recorder: context.recorder("node-controller"),
        clock: Arc::clone(&context.config.clock),
        heard: Arc::default(),
    })
}

/// The index value of a pod: its node.
pub(super) fn node_of(pod: &Pod) -> Vec<String> {
    pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).into_iter().collect()
}

struct NodeLifecycle {
    nodes: Arc<Informer<Node>>,
    leases: Arc<Informer<Lease>>,
    pods: Arc<Informer<Pod>>,
    client: Client,
    recorder: Recorder,
    clock: SharedClock,
    /// When each node was last heard of.
    heard: Arc<Mutex<HashMap<String, Instant>>>,
}

fn condition<'a>(node: &'a Node, kind: &str) -> Option<&'a NodeCondition> {
    node.status.as_ref()?.conditions.as_ref()?.iter().find(|condition| condition.type_ == kind)
}

fn ready_status(node: &Node) -> &str {
    condition(node, "Ready").map_or("Unknown", |ready| ready.status.as_str())
}

/// The conditions of a node that went silent, if they are not told already.
fn silent(node: &Node, now: Timestamp) -> Option<Vec<NodeCondition>> {
    if condition(node, "Ready").is_some_and(|ready| ready.status == "Unknown") {
        return None;
    }
    let told = REPORTED.iter().filter(|(kind, _)| *kind != "NetworkUnavailable");
    let unknown = told.map(|(kind, _)| {
        let before = condition(node, kind);
        let (reason, message) = match before {
            Some(_) => ("NodeStatusUnknown", "Kubelet stopped posting node status."),
            None => ("NodeStatusNeverUpdated", "Kubelet never posted node status."),
        };
        let heartbeat =
            before.map_or_else(|| node.metadata.creation_timestamp.clone(), |before| before.last_heartbeat_time.clone());
        NodeCondition {
            type_: (*kind).to_owned(),
            status: "Unknown".to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message.to_owned()),
            last_heartbeat_time: heartbeat,
            last_transition_time: Some(Time(now)),
        }
    });
    Some(unknown.collect())
}

/// The taints that a node should have; those of others stay, and a taint that stays keeps its time. `None` if nothing changes.
fn taints(node: &Node, now: Timestamp) -> Option<Vec<Taint>> {
    let present = node.spec.as_ref().and_then(|spec| spec.taints.clone()).unwrap_or_default();
    let mut wanted: Vec<(&str, &str)> = match condition(node, "Ready").map(|ready| ready.status.as_str()) {
        Some("True") => Vec::new(),
        Some("False") => vec![(NOT_READY, "NoSchedule"), (NOT_READY, "NoExecute")],
        Some(_) => vec![(UNREACHABLE, "NoSchedule"), (UNREACHABLE, "NoExecute")],
        // A node that was just made has said nothing yet: nothing is scheduled there, nothing evicted.
        None => vec![(NOT_READY, "NoSchedule")],
    };
    let pressed = REPORTED.iter().filter_map(|(kind, taint)| Some((condition(node, kind)?, (*taint)?)));
    wanted.extend(pressed.filter(|(condition, _)| condition.status == "True").map(|(_, taint)| (taint, "NoSchedule")));
    if node.spec.as_ref().and_then(|spec| spec.unschedulable).unwrap_or(false) {
        wanted.push((UNSCHEDULABLE, "NoSchedule"));
    }
    let ours = |taint: &Taint| {
        [NOT_READY, UNREACHABLE, UNSCHEDULABLE].contains(&taint.key.as_str())
            || REPORTED.iter().any(|(_, key)| *key == Some(taint.key.as_str()))
    };
    let is_wanted = |taint: &Taint| wanted.contains(&(taint.key.as_str(), taint.effect.as_str()));
    let mut taints: Vec<Taint> = present.iter().filter(|taint| !ours(taint) || is_wanted(taint)).cloned().collect();
    for (key, effect) in wanted {
        if !taints.iter().any(|taint| taint.key == key && taint.effect == effect) {
            let (key, effect) = (key.to_owned(), effect.to_owned());
            taints.push(Taint { key, effect, time_added: Some(Time(now)), value: None });
        }
    }
    (taints != present).then_some(taints)
}

impl NodeLifecycle {
    async fn mark_unknown(&self, node: &Node, conditions: &[NodeCondition]) -> Result<(), Error> {
        let patch = json!({"metadata": {"uid": node.metadata.uid}, "status": {"conditions": conditions}});
        self.client.patch::<Node>("", node.name(), Some("status"), PatchKind::Strategic, &patch).await?;
        let message = format!("Node {} status is now: NodeNotReady", node.name());
        self.recorder.event(&reference(node), EventType::Normal, "NodeNotReady", message);
        Ok(())
    }

    /// The pods of a node that is Unknown do not serve any more.
    async fn mark_pods(&self, node: &Node) -> Result<(), Error> {
        for pod in self.pods.by_index(BY_NODE, node.name()).into_iter().filter(|pod| pods::is_ready(pod)) {
            let ready = json!({"type": "Ready", "status": "False", "lastTransitionTime": Time(self.clock.now())});
            let patch = json!({"metadata": {"uid": pod.uid()}, "status": {"conditions": [ready]}});
            let patched =
                self.client.patch::<Pod>(pod.namespace(), pod.name(), Some("status"), PatchKind::Strategic, &patch).await;
            match patched {
                Err(error) if !error.is_not_found() => return Err(error.into()),
                _ => self.recorder.event(&reference(&*pod), EventType::Warning, "NodeNotReady", "Node is not ready"),
            }
        }
        Ok(())
    }

    /// How long until the node counts as silent; zero if it is.
    fn patience(&self, name: &str) -> Duration {
        let heard = *self.heard.lock().entry(name.to_owned()).or_insert_with(clock::instant);
        GRACE.saturating_sub(heard.elapsed())
    }
}

#[async_trait]
impl Controller for NodeLifecycle {
    fn name(&self) -> &'static str {
        "nodelifecycle"
    }

    fn watch(&self, watches: &mut Watches) {
        watches.after(&self.pods);
        let heard = Arc::clone(&self.heard);
        watches.on(&self.nodes, move |seen: Seen<'_, Node>, queue: &Queue| {
            let heartbeat = |node: &Node| condition(node, "Ready").and_then(|ready| ready.last_heartbeat_time.clone());
            match (seen.old, seen.new) {
                (old, Some(new)) => {
                    if old.is_none_or(|old| heartbeat(old) != heartbeat(new)) {
                        heard.lock().insert(new.name().to_owned(), clock::instant());
                    }
                    queue.add(ObjectKey::of(new));
                }
                (Some(old), None) => drop(heard.lock().remove(old.name())),
                (None, None) => {}
            }
        });
        let (heard, nodes) = (Arc::clone(&self.heard), Arc::clone(&self.nodes));
        watches.on(&self.leases, move |seen: Seen<'_, Lease>, _: &Queue| {
            // A renewal needs no work: whoever waits for the end of the node's grace looks at the time again.
            if let Some(lease) = seen.new.filter(|lease| nodes.get("", lease.name()).is_some()) {
                heard.lock().insert(lease.name().to_owned(), clock::instant());
            }
        });
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Requeue, Error> {
        let Some(node) = self.nodes.get("", &key.name) else { return Ok(Requeue::Done) };
        let patience = self.patience(&key.name);
        let now = self.clock.now();
        if patience.is_zero()
            && let Some(conditions) = silent(&node, now)
        {
            // The change of the node comes back here, for its taints.
            self.mark_unknown(&node, &conditions).await?;
            return Ok(Requeue::After(GRACE));
        }
        if let Some(taints) = taints(&node, now) {
            let meta = json!({"resourceVersion": node.metadata.resource_version, "uid": node.metadata.uid});
            let patch = json!({"metadata": meta, "spec": {"taints": taints}});
            self.client.patch::<Node>("", node.name(), None, PatchKind::Merge, &patch).await?;
        }
        if ready_status(&node) == "Unknown" && condition(&node, "Ready").is_some() {
            self.mark_pods(&node).await?;
        }
        Ok(Requeue::After(if patience.is_zero() { GRACE } else { patience }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(ready: Option<&str>, spec: &serde_json::Value) -> Node {
        let conditions: Vec<_> = ready.map(|status| json!({"type": "Ready", "status": status})).into_iter().collect();
        serde_json::from_value(json!({"metadata": {"name": "n1"}, "spec": spec, "status": {"conditions": conditions}})).unwrap()
    }

    #[test]
    fn taints_follow_conditions() {
        let now = Timestamp::UNIX_EPOCH;
        let other = json!({"taints": [{"key": "gpu", "effect": "NoSchedule"}]});
        let stale = json!({"taints": [{"key": NOT_READY, "effect": "NoExecute"}]});
        for (node, expected) in [
            (node(Some("True"), &json!({})), None),
            (node(Some("True"), &stale), Some(vec![])),
            (node(Some("False"), &other), Some(vec!["gpu:NoSchedule", "not-ready:NoSchedule", "not-ready:NoExecute"])),
            (node(Some("Unknown"), &stale), Some(vec!["unreachable:NoSchedule", "unreachable:NoExecute"])),
            (node(Some("True"), &json!({"unschedulable": true})), Some(vec!["unschedulable:NoSchedule"])),
            (node(None, &json!({})), Some(vec!["not-ready:NoSchedule"])),
        ] {
            let names = |taints: Vec<Taint>| -> Vec<String> {
                taints
                    .iter()
                    .map(|taint| format!("{}:{}", taint.key.trim_start_matches("node.kubernetes.io/"), taint.effect))
                    .collect()
            };
            let expected = expected.map(|names| names.into_iter().map(str::to_owned).collect::<Vec<_>>());
            assert_eq!(taints(&node, now).map(names), expected);
        }
    }

    #[test]
    fn silence_is_told_once() {
        let now = Timestamp::UNIX_EPOCH;
        let told = silent(&node(Some("True"), &json!({})), now).unwrap();
        assert_eq!(told.len(), 4);
        assert_eq!((told[0].status.as_str(), told[0].reason.as_deref()), ("Unknown", Some("NodeStatusUnknown")));
        assert_eq!(told[1].reason.as_deref(), Some("NodeStatusNeverUpdated"));
        assert!(silent(&node(Some("Unknown"), &json!({})), now).is_none());
    }
}
