//! Node lifecycle: a node whose agent went silent becomes Unknown, gets taints, and its pods stop being ready. It follows upstream's
//! `controller/nodelifecycle`.
//!
//! Silence is measured from when a renewal of the node's Lease was *seen* here, not by the clocks of nodes, and only over time in
//! which this process ran and the API took writes: a controller that was frozen, or whose store had no quorum, blames no node.
//! How many nodes may lose their pods, and how fast, is in [`disruption`].

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::{StreamExt, TryStreamExt, stream};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, NodeCondition, Pod, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use parking_lot::Mutex;
use serde_json::json;
use tokio::time::Instant;

use super::disruption::Disruption;
use super::{Context, Controller, Error, Queue, Requeue, Seen, Watches, pods};
use crate::client::informer::{Informer, Scope};
use crate::client::recorder::{EventType, Recorder, reference};
use crate::client::{Cached, Client, ObjectKey, PatchKind};
use crate::rt::clock::{self, SharedClock};

/// How often the controller looks whether it was frozen.
const TICK: Duration = Duration::from_secs(5);
/// How late a look may be before it counts as frozen.
const LATE: Duration = Duration::from_secs(3);
/// Pods whose condition is written at one time.
const AT_ONCE: usize = 64;
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
        grace: context.config.node_grace,
        heard: Arc::default(),
        disruption: Mutex::default(),
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
    /// Silence after which a node is Unknown.
    grace: Duration,
    heard: Arc<Mutex<Heard>>,
    disruption: Mutex<Disruption>,
}

/// When each node was last heard of.
#[derive(Default)]
struct Heard {
    nodes: HashMap<String, Instant>,
    ticked: Option<Instant>,
}

impl Heard {
    fn hear(&mut self, node: &str, now: Instant) {
        self.nodes.insert(node.to_owned(), now);
    }

    /// Time in which nobody could be heard does not count.
    fn excuse(&mut self, time: Duration, now: Instant) {
        for heard in self.nodes.values_mut() {
            *heard = (*heard + time).min(now);
        }
    }

    /// A look at the time; returns how long the controller was frozen, if it was.
    fn tick(&mut self, now: Instant) -> Option<Duration> {
        let since = now.duration_since(self.ticked.replace(now)?);
        let frozen = since.checked_sub(TICK).filter(|late| *late >= LATE)?;
        self.excuse(frozen, now);
        Some(frozen)
    }
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

/// Whether pods are to leave the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Evict {
    /// Yes, if its state says so.
    Yes,
    /// Not now; what was decided before stays.
    Later,
    /// No: all nodes seem to be lost, and so it is more likely that this controller is.
    No,
}

/// Whether the state of a node says that its pods are to leave.
fn is_lost(node: &Node) -> bool {
    condition(node, "Ready").is_some_and(|ready| ready.status != "True")
}

fn has_no_execute(node: &Node) -> bool {
    let mut taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    taints.any(|taint| taint.effect == "NoExecute" && [NOT_READY, UNREACHABLE].contains(&taint.key.as_str()))
}

/// The taints that a node should have; those of others stay, and a taint that stays keeps its time. `None` if nothing changes.
fn taints(node: &Node, evict: Evict, now: Timestamp) -> Option<Vec<Taint>> {
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
    let evicts = evict == Evict::Yes || (evict == Evict::Later && has_no_execute(node));
    wanted.retain(|(_, effect)| *effect != "NoExecute" || evicts);
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
        let patched = self.client.patch::<Node>("", node.name(), Some("status"), PatchKind::Strategic, &patch).await;
        if let Err(error) = patched {
            if !error.is_not_found() && !error.is_conflict() {
                // While the API takes no writes, nodes cannot report either.
                let now = clock::instant();
                self.heard.lock().excuse(self.grace, now);
            }
            return Err(error.into());
        }
        let message = format!("Node {} status is now: NodeNotReady", node.name());
        self.recorder.event(&reference(node), EventType::Normal, "NodeNotReady", message);
        Ok(())
    }

    /// The pods of a node that is Unknown do not serve any more: all in one go.
    async fn mark_pods(&self, node: &Node) -> Result<(), Error> {
        let ready = json!({"type": "Ready", "status": "False", "lastTransitionTime": Time(self.clock.now())});
        let pods = self.pods.by_index(BY_NODE, node.name()).into_iter().filter(|pod| pods::is_ready(pod));
        let marked = stream::iter(pods).map(|pod| {
            let patch = json!({"metadata": {"uid": pod.uid()}, "status": {"conditions": [ready]}});
            async move {
                let (namespace, name) = (pod.namespace(), pod.name());
                match self.client.patch::<Pod>(namespace, name, Some("status"), PatchKind::Strategic, &patch).await {
                    Err(error) if !error.is_not_found() => return Err(Error::from(error)),
                    _ => self.recorder.event(&reference(&*pod), EventType::Warning, "NodeNotReady", "Node is not ready"),
                }
                Ok(())
            }
        });
        marked.buffer_unordered(AT_ONCE).try_collect().await
    }

    /// How long until the node counts as silent; zero if it is.
    fn patience(&self, name: &str) -> Duration {
        let heard = *self.heard.lock().nodes.entry(name.to_owned()).or_insert_with(clock::instant);
        self.grace.saturating_sub(heard.elapsed())
    }

    /// Whether the node's pods are to leave now, and else when to look again.
    fn evict(&self, node: &Node) -> (Evict, Option<Duration>) {
        let nodes = self.nodes.list();
        let mut disruption = self.disruption.lock();
        let now = clock::instant();
        disruption.observe(nodes.iter().map(|node| &**node), self.grace, now);
        if disruption.is_total() {
            (Evict::No, None)
        } else if !is_lost(node) || has_no_execute(node) {
            (Evict::Yes, None)
        } else {
            match disruption.take(node, now) {
                None => (Evict::Yes, None),
                Some(wait) => (Evict::Later, Some(wait)),
            }
        }
    }

    /// Looks whether this process was frozen. It must be asked before a node is blamed: after a freeze all timers end at once.
    /// Returns when to look again.
    fn look_at_time(&self) -> Duration {
        let now = clock::instant();
        let mut heard = self.heard.lock();
        if heard.ticked.is_none_or(|ticked| now.duration_since(ticked) >= TICK)
            && let Some(frozen) = heard.tick(now)
        {
            tracing::warn!(frozen_ms = frozen.as_millis(), "this process did not run for a while; nodes get that time");
        }
        heard.ticked.map_or(TICK, |ticked| TICK.saturating_sub(now.duration_since(ticked)))
    }
}

#[async_trait]
impl Controller for NodeLifecycle {
    fn name(&self) -> &'static str {
        "nodelifecycle"
    }

    fn watch(&self, watches: &mut Watches) {
        watches.after(&self.pods);
        watches.queue().add(ObjectKey::new("", ""));
        let (heard, recorder) = (Arc::clone(&self.heard), self.recorder.clone());
        watches.on(&self.nodes, move |seen: Seen<'_, Node>, queue: &Queue| {
            let heartbeat = |node: &Node| condition(node, "Ready").and_then(|ready| ready.last_heartbeat_time.clone());
            let event = |node: &Node, reason: &str, what: &str| {
                let message = format!("Node {} event: {what}", node.name());
                recorder.event(&reference(node), EventType::Normal, reason, message);
            };
            match (seen.old, seen.new) {
                (old, Some(new)) => {
                    // What this controller wrote itself, that the node is Unknown, is no sign of life.
                    if old.is_none_or(|old| heartbeat(old) != heartbeat(new)) {
                        heard.lock().hear(new.name(), clock::instant());
                    }
                    if old.is_none() {
                        event(new, "RegisteredNode", &format!("Registered Node {} in Controller", new.name()));
                    }
                    queue.add(ObjectKey::of(new));
                }
                (Some(old), None) => {
                    heard.lock().nodes.remove(old.name());
                    event(old, "RemovingNode", &format!("Removing Node {} from Controller", old.name()));
                }
                (None, None) => {}
            }
        });
        let (heard, nodes) = (Arc::clone(&self.heard), Arc::clone(&self.nodes));
        watches.on(&self.leases, move |seen: Seen<'_, Lease>, _: &Queue| {
            // A renewal needs no work: whoever waits for the end of the node's grace looks at the time again.
            if let Some(lease) = seen.new.filter(|lease| nodes.get("", lease.name()).is_some()) {
                heard.lock().hear(lease.name(), clock::instant());
            }
        });
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Requeue, Error> {
        if key.name.is_empty() {
            return Ok(Requeue::After(self.look_at_time()));
        }
        let Some(node) = self.nodes.get("", &key.name) else { return Ok(Requeue::Done) };
        self.look_at_time();
        let patience = self.patience(&key.name);
        let now = self.clock.now();
        if patience.is_zero()
            && let Some(conditions) = silent(&node, now)
        {
            // The change of the node comes back here, for its taints.
            self.mark_unknown(&node, &conditions).await?;
            return Ok(Requeue::After(self.grace));
        }
        // Its pods stop serving first; that they leave has time.
        if ready_status(&node) == "Unknown" && condition(&node, "Ready").is_some() {
            self.mark_pods(&node).await?;
        }
        let (evict, wait) = self.evict(&node);
        if let Some(taints) = taints(&node, evict, now) {
            let meta = json!({"resourceVersion": node.metadata.resource_version, "uid": node.metadata.uid});
            let patch = json!({"metadata": meta, "spec": {"taints": (!taints.is_empty()).then_some(taints)}});
            self.client.patch::<Node>("", node.name(), None, PatchKind::Merge, &patch).await?;
        }
        let again = if patience.is_zero() { self.grace } else { patience };
        Ok(Requeue::After(wait.map_or(again, |wait| wait.min(again))))
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
            assert_eq!(taints(&node, Evict::Yes, now).map(names), expected);
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

    #[test]
    fn pods_stay_where_they_are_when_all_seems_lost() {
        let now = Timestamp::UNIX_EPOCH;
        let tainted =
            json!({"taints": [{"key": UNREACHABLE, "effect": "NoSchedule"}, {"key": UNREACHABLE, "effect": "NoExecute"}]});
        for (spec, evict, expected) in [
            (json!({}), Evict::Later, Some(vec!["NoSchedule"])),
            (json!({}), Evict::No, Some(vec!["NoSchedule"])),
            (tainted.clone(), Evict::Later, None),
            (tainted, Evict::No, Some(vec!["NoSchedule"])),
        ] {
            let found = taints(&node(Some("Unknown"), &spec), evict, now);
            let effects = found.map(|taints| taints.into_iter().map(|taint| taint.effect).collect::<Vec<_>>());
            assert_eq!(effects, expected.map(|list| list.into_iter().map(str::to_owned).collect()), "{spec} {evict:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_frozen_controller_blames_nobody() {
        let (start, mut heard) = (clock::instant(), Heard::default());
        heard.hear("n1", start);
        assert_eq!(heard.tick(start), None);
        let at = start + TICK;
        assert_eq!((heard.tick(at), heard.nodes["n1"]), (None, start), "a look in time");
        let late = at + Duration::from_secs(65);
        assert_eq!(heard.tick(late), Some(Duration::from_secs(60)));
        assert_eq!(late.duration_since(heard.nodes["n1"]), TICK * 2, "only the time it ran counts");
        heard.excuse(Duration::from_secs(3_600), late);
        assert_eq!(heard.nodes["n1"], late, "never in the future");
    }
}
