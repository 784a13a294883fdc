//! Taint eviction and pod garbage collection: pods leave nodes whose NoExecute taints they do not tolerate (any more), and pods of
//! nodes that are gone are deleted. It follows upstream's `controller/tainteviction` and `controller/podgc`.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Node, Pod, Taint, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::json;

use super::node_lifecycle::{BY_NODE, node_of};
use super::{Context, Controller, Error, Queue, Requeue, Seen, Watches, pods};
use crate::client::informer::Informer;
use crate::client::recorder::{EventType, Recorder, reference};
use crate::client::{Cached, Client, DeleteOptions, ObjectKey, PatchKind, Preconditions};
use crate::rt::clock::SharedClock;

/// Time that a node has to come (back) before its pods are deleted.
const QUARANTINE: Duration = Duration::from_secs(40);

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
    })
}

struct TaintEviction {
    nodes: Arc<Informer<Node>>,
    pods: Arc<Informer<Pod>>,
    client: Client,
    recorder: Recorder,
    clock: SharedClock,
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
    async fn remove(&self, pod: &Pod, (reason, message): (&str, &str), grace_period_seconds: Option<i64>) -> Result<(), Error> {
        let condition = json!({"type": "DisruptionTarget", "status": "True", "reason": reason, "message": message,
            "lastTransitionTime": Time(self.clock.now())});
        let patch = json!({"metadata": {"uid": pod.uid()}, "status": {"conditions": [condition]}});
        let patched = self.client.patch::<Pod>(pod.namespace(), pod.name(), Some("status"), PatchKind::Strategic, &patch).await;
        if let Err(error) = patched {
            return if error.is_not_found() { Ok(()) } else { Err(error.into()) };
        }
        let preconditions = Some(Preconditions { uid: pod.metadata.uid.clone(), resource_version: None });
        let options = DeleteOptions { grace_period_seconds, preconditions, ..DeleteOptions::default() };
        match self.client.delete::<Pod>(pod.namespace(), pod.name(), &options).await {
            Err(error) if !error.is_not_found() && !error.is_conflict() => Err(error.into()),
            _ => Ok(()),
        }
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
            let all = |name: &str| pods.by_index(BY_NODE, name).into_iter().map(|pod| ObjectKey::of(&*pod)).collect::<Vec<_>>();
            match (seen.old, seen.new) {
                (Some(gone), None) => all(gone.name()).into_iter().for_each(|key| queue.add_after(key, QUARANTINE)),
                (old, Some(new)) if !no_execute(new).is_empty() && old.is_none_or(|old| no_execute(old) != no_execute(new)) => {
                    all(new.name()).into_iter().for_each(|key| queue.add(key));
                }
                _ => {}
            }
        });
        let nodes = Arc::clone(&self.nodes);
        watches.on(&self.pods, move |seen: Seen<'_, Pod>, queue: &Queue| {
            let Some(pod) = seen.new else { return };
            let was_bound = seen.old.is_some_and(|old| node_of(old) == node_of(pod) && old.metadata.uid == pod.metadata.uid);
            if let Some(name) = node_of(pod).first().filter(|_| !was_bound) {
                match nodes.get("", name) {
                    None => queue.add_after(ObjectKey::of(pod), QUARANTINE),
                    Some(node) if !no_execute(&node).is_empty() => queue.add(ObjectKey::of(pod)),
                    Some(_) => {}
                }
            }
        });
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Requeue, Error> {
        let Some(pod) = self.pods.get(&key.namespace, &key.name) else { return Ok(Requeue::Done) };
        let Some(name) = node_of(&pod).pop() else { return Ok(Requeue::Done) };
        let Some(node) = self.nodes.get("", &name) else {
            return match self.client.get::<Node>("", &name).await {
                Err(error) if error.is_not_found() => {
                    // Nobody is left to stop it gently.
                    let why = ("DeletionByPodGC", "PodGC: node no longer exists");
                    self.remove(&pod, why, Some(0)).await.map(|()| Requeue::Done)
                }
                Err(error) => Err(error.into()),
                Ok(_) => Ok(Requeue::After(QUARANTINE)),
            };
        };
        if pod.metadata.deletion_timestamp.is_some() || pods::is_finished(&pod) {
            return Ok(Requeue::Done);
        }
        let tolerations = pod.spec.as_ref().and_then(|spec| spec.tolerations.as_deref()).unwrap_or_default();
        match time_left(&no_execute(&node), tolerations, self.clock.now()) {
            None => Ok(Requeue::Done),
            Some(Duration::ZERO) => {
                let message = format!("Marking for deletion Pod {key}");
                self.recorder.event(&reference(&*pod), EventType::Normal, "TaintManagerEviction", message);
                let why = ("DeletionByTaintManager", "Taint manager: deleting due to NoExecute taint");
                self.remove(&pod, why, None).await?;
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
