//! Taint eviction: pods leave nodes whose NoExecute taints they do not tolerate (any more). It follows upstream's
//! `controller/tainteviction`; how long a pod may still stay is measured by elapsed time, so that a step of the clock evicts nobody.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Node, Pod, Taint, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use parking_lot::Mutex;
use serde_json::json;
use tokio::time::Instant;

use super::node_lifecycle::{BY_NODE, node_of};
use super::{Context, Controller, Error, Queue, Requeue, Seen, Watches, pods};
use crate::client::informer::Informer;
use crate::client::recorder::{EventType, Recorder, reference};
use crate::client::{Cached, Client, DeleteOptions, ObjectKey, PatchKind, Preconditions};
use crate::rt::clock::{self, SharedClock};

/// The controller that takes pods off nodes. A key is a pod.
pub(super) fn taint_eviction(context: &Context) -> Arc<dyn Controller> {
    let pods = context.config.informers.of::<Pod>();
    pods.add_index(BY_NODE, node_of);
    Arc::new(TaintEviction {
        nodes: context.config.informers.of(),
        pods,
        client: context.client("taint-eviction-controller"),
        recorder: context.recorder("taint-eviction-controller"),
        clock: Arc::clone(&context.config.clock),
        scheduled: Mutex::default(),
    })
}

struct TaintEviction {
    nodes: Arc<Informer<Node>>,
    pods: Arc<Informer<Pod>>,
    client: Client,
    recorder: Recorder,
    clock: SharedClock,
    scheduled: Mutex<HashMap<ObjectKey, Scheduled>>,
}

/// A pod that has to leave when its tolerations end.
#[derive(Debug, Clone)]
struct Scheduled {
    uid: String,
    due: Instant,
    /// What it was worked out from.
    taints: Vec<Taint>,
}

fn covers(toleration: &Toleration, taint: &Taint) -> bool {
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    let (key, effect) = (text(&toleration.key), text(&toleration.effect));
    let is_named = (key.is_empty() || key == taint.key) && (effect.is_empty() || effect == taint.effect);
    let exists = toleration.operator.as_deref() == Some("Exists");
    is_named && (exists || (!key.is_empty() && text(&toleration.value) == text(&taint.value)))
}

/// After how long a pod has to leave; zero at once, `None` never.
fn time_left(taints: &[Taint], tolerations: &[Toleration], now: Timestamp) -> Option<Duration> {
    let mut due: Option<Timestamp> = None;
    for taint in taints.iter().filter(|taint| taint.effect == "NoExecute") {
        let covering: Vec<&Toleration> = tolerations.iter().filter(|toleration| covers(toleration, taint)).collect();
        if covering.is_empty() {
            return Some(Duration::ZERO);
        }
        let seconds = covering.iter().filter_map(|toleration| toleration.toleration_seconds).min();
        if let Some(seconds) = seconds {
            let since = taint.time_added.as_ref().map_or(now, |time| time.0);
            let at = since + SignedDuration::from_secs(seconds.max(0));
            due = Some(due.map_or(at, |due| due.min(at)));
        }
    }
    due.map(|due| Duration::try_from(due.duration_since(now)).unwrap_or(Duration::ZERO))
}

fn no_execute(node: &Node) -> Vec<Taint> {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.clone()).unwrap_or_default();
    taints.into_iter().filter(|taint| taint.effect == "NoExecute").collect()
}

impl TaintEviction {
    async fn remove(&self, pod: &Pod) -> Result<(), Error> {
        let condition = json!({"type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager",
            "message": "Taint manager: deleting due to NoExecute taint", "lastTransitionTime": Time(self.clock.now())});
        let patch = json!({"metadata": {"uid": pod.uid()}, "status": {"conditions": [condition]}});
        let patched = self.client.patch::<Pod>(pod.namespace(), pod.name(), Some("status"), PatchKind::Strategic, &patch).await;
        if let Err(error) = patched {
            return if error.is_not_found() { Ok(()) } else { Err(error.into()) };
        }
        let preconditions = Some(Preconditions { uid: pod.metadata.uid.clone(), resource_version: None });
        let options = DeleteOptions { preconditions, ..DeleteOptions::default() };
        match self.client.delete::<Pod>(pod.namespace(), pod.name(), &options).await {
            Err(error) if !error.is_not_found() && !error.is_conflict() => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// After how long the pod has to leave. The first answer stands while its taints are the same.
    fn time_left(&self, key: &ObjectKey, pod: &Pod, taints: Vec<Taint>) -> Option<Duration> {
        let mut scheduled = self.scheduled.lock();
        let known = scheduled.get(key).filter(|known| known.uid == pod.uid() && known.taints == taints);
        if let Some(known) = known {
            return Some(known.due.saturating_duration_since(clock::instant()));
        }
        let tolerations = pod.spec.as_ref().and_then(|spec| spec.tolerations.as_deref()).unwrap_or_default();
        let left = time_left(&taints, tolerations, self.clock.now());
        let was_scheduled = match left.filter(|left| !left.is_zero()) {
            None => scheduled.remove(key).is_some_and(|known| known.uid == pod.uid()),
            Some(left) => {
                let due = clock::instant() + left;
                scheduled.insert(key.clone(), Scheduled { uid: pod.uid().to_owned(), due, taints });
                false
            }
        };
        if left.is_none() && was_scheduled {
            let message = format!("Cancelling deletion of Pod {key}");
            self.recorder.event(&reference(pod), EventType::Normal, "TaintManagerEviction", message);
        }
        left
    }
}

#[async_trait]
impl Controller for TaintEviction {
    fn name(&self) -> &'static str {
        "tainteviction"
    }

    fn watch(&self, watches: &mut Watches) {
        let pods = Arc::clone(&self.pods);
        watches.on(&self.nodes, move |seen: Seen<'_, Node>, queue: &Queue| {
            let taints = |node: Option<&Node>| node.map(no_execute).unwrap_or_default();
            if let Some(node) = seen.new.filter(|_| taints(seen.old) != taints(seen.new)) {
                pods.by_index(BY_NODE, node.name()).iter().for_each(|pod| queue.add(ObjectKey::of(&**pod)));
            }
        });
        let nodes = Arc::clone(&self.nodes);
        watches.on(&self.pods, move |seen: Seen<'_, Pod>, queue: &Queue| {
            let Some(pod) = seen.new else {
                // What was scheduled for it is forgotten.
                return seen.old.into_iter().for_each(|pod| queue.add(ObjectKey::of(pod)));
            };
            let tolerations = |pod: &Pod| pod.spec.as_ref().and_then(|spec| spec.tolerations.clone());
            let is_known = seen.old.is_some_and(|old| {
                node_of(old) == node_of(pod) && old.metadata.uid == pod.metadata.uid && tolerations(old) == tolerations(pod)
            });
            let node = node_of(pod).first().filter(|_| !is_known).and_then(|name| nodes.get("", name));
            if node.is_some_and(|node| !no_execute(&node).is_empty()) {
                queue.add(ObjectKey::of(pod));
            }
        });
    }

    fn workers(&self) -> usize {
        16
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Requeue, Error> {
        let pod = self
            .pods
            .get(&key.namespace, &key.name)
            .filter(|pod| pod.metadata.deletion_timestamp.is_none() && !pods::has_ended(pod));
        let node = pod.as_ref().and_then(|pod| self.nodes.get("", node_of(pod).first()?));
        let (Some(pod), Some(node)) = (pod, node) else {
            self.scheduled.lock().remove(key);
            return Ok(Requeue::Done);
        };
        match self.time_left(key, &pod, no_execute(&node)) {
            None => Ok(Requeue::Done),
            Some(Duration::ZERO) => {
                let message = format!("Marking for deletion Pod {key}");
                self.recorder.event(&reference(&*pod), EventType::Normal, "TaintManagerEviction", message);
                self.remove(&pod).await?;
                Ok(Requeue::Done)
            }
            Some(wait) => Ok(Requeue::After(wait)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_leave_when_their_tolerations_end() {
        let now: Timestamp = "2026-01-01T00:01:00Z".parse().unwrap();
        let taint: Taint =
            serde_json::from_value(json!({"key": "k", "effect": "NoExecute", "timeAdded": "2026-01-01T00:00:00Z"})).unwrap();
        for (tolerations, expected) in [
            (json!([]), Some(0)),
            (json!([{"key": "k", "operator": "Exists"}]), None),
            (json!([{"operator": "Exists", "tolerationSeconds": 300}]), Some(240)),
            (json!([{"key": "k", "operator": "Exists", "tolerationSeconds": 30}]), Some(0)),
            (json!([{"key": "k", "value": "other"}]), Some(0)),
            (json!([{"key": "k", "operator": "Exists", "effect": "NoSchedule"}]), Some(0)),
        ] {
            let tolerations: Vec<Toleration> = serde_json::from_value(tolerations).unwrap();
            assert_eq!(time_left(std::slice::from_ref(&taint), &tolerations, now).map(|left| left.as_secs()), expected);
        }
        assert_eq!(time_left(&[], &[], now), None);
    }
}
