//! Pod garbage collection (upstream's `controller/podgc`): pods of nodes that are gone, pods that terminate and were never scheduled,
//! pods that terminate on a node which is out of service, and finished pods above a threshold are removed by force: nobody is left
//! to do it gently.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::json;

use super::node_lifecycle::{BY_NODE, node_of};
use super::{Context, Controller, Error, Queue, Requeue, Seen, Watches, pods};
use crate::client::informer::Informer;
use crate::client::{Cached, Client, DeleteOptions, ObjectKey, PatchKind, Preconditions};
use crate::rt::clock::SharedClock;

/// Time that a node has to come (back) before its pods are removed.
const QUARANTINE: Duration = Duration::from_secs(40);
/// Finished pods that are kept (`--terminated-pod-gc-threshold`).
const FINISHED_KEPT: usize = 12_500;
/// How often, at most, finished pods are counted.
const COUNT_EVERY: Duration = Duration::from_secs(20);
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

/// The garbage collector of pods. A key is a pod; the empty one stands for all finished pods.
pub(super) fn pod_gc(context: &Context) -> Arc<dyn Controller> {
    let pods = context.config.informers.of::<Pod>();
    pods.add_index(BY_NODE, node_of);
    Arc::new(PodGc {
        nodes: context.config.informers.of(),
        pods,
        client: context.client("pod-garbage-collector"),
        clock: Arc::clone(&context.config.clock),
    })
}

struct PodGc {
    nodes: Arc<Informer<Node>>,
    pods: Arc<Informer<Pod>>,
    client: Client,
    clock: SharedClock,
}

/// Whether an administrator said that nothing runs on this node any more.
fn is_out_of_service(node: &Node) -> bool {
    let mut conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let is_ready = conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True");
    let mut taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    !is_ready && taints.any(|taint| taint.key == OUT_OF_SERVICE)
}

fn is_evicted(pod: &Pod) -> bool {
    let status = pod.status.as_ref();
    pods::phase(pod) == "Failed" && status.and_then(|status| status.reason.as_deref()) == Some("Evicted")
}

/// The finished pods that are too many: evicted ones first, then the oldest.
fn surplus(mut finished: Vec<Arc<Pod>>, kept: usize) -> Vec<Arc<Pod>> {
    let count = finished.len().saturating_sub(kept);
    finished.sort_by_key(|pod| {
        let created = pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
        (!is_evicted(pod), created, pod.metadata.name.clone())
    });
    finished.truncate(count);
    finished
}

impl PodGc {
    async fn remove(&self, pod: &Pod, why: Option<(&str, &str)>) -> Result<(), Error> {
        if !pods::has_ended(pod) {
            // A pod that nobody runs would stay Running for ever in the eyes of those that count it.
            let condition = why.map(|(reason, message)| {
                json!([{"type": "DisruptionTarget", "status": "True", "reason": reason, "message": message,
                    "lastTransitionTime": Time(self.clock.now())}])
            });
            let mut status = json!({"phase": "Failed"});
            if let Some(condition) = condition {
                status["conditions"] = condition;
            }
            let patch = json!({"metadata": {"uid": pod.uid()}, "status": status});
            let patched =
                self.client.patch::<Pod>(pod.namespace(), pod.name(), Some("status"), PatchKind::Strategic, &patch).await;
            match patched {
                Err(error) if error.is_not_found() || error.is_conflict() => return Ok(()),
                other => drop(other?),
            }
        }
        tracing::info!(pod = %ObjectKey::of(pod), "pod garbage collection removes a pod by force");
        let preconditions = Some(Preconditions { uid: pod.metadata.uid.clone(), resource_version: None });
        let options = DeleteOptions { grace_period_seconds: Some(0), preconditions, ..DeleteOptions::default() };
        match self.client.delete::<Pod>(pod.namespace(), pod.name(), &options).await {
            Err(error) if !error.is_not_found() && !error.is_conflict() => Err(error.into()),
            _ => Ok(()),
        }
    }

    async fn remove_surplus(&self) -> Result<Requeue, Error> {
        if self.pods.len() > FINISHED_KEPT {
            let finished = self.pods.list().into_iter().filter(|pod| pods::has_ended(pod)).collect();
            for pod in surplus(finished, FINISHED_KEPT) {
                self.remove(&pod, None).await?;
            }
        }
        Ok(Requeue::Done)
    }
}

#[async_trait]
impl Controller for PodGc {
    fn name(&self) -> &'static str {
        "podgc"
    }

    fn watch(&self, watches: &mut Watches) {
        let pods = Arc::clone(&self.pods);
        watches.on(&self.nodes, move |seen: Seen<'_, Node>, queue: &Queue| {
            let keys = |name: &str| pods.by_index(BY_NODE, name).into_iter().map(|pod| ObjectKey::of(&*pod)).collect::<Vec<_>>();
            match (seen.old, seen.new) {
                (Some(gone), None) => keys(gone.name()).into_iter().for_each(|key| queue.add_after(key, QUARANTINE)),
                (old, Some(new)) if is_out_of_service(new) && !old.is_some_and(is_out_of_service) => {
                    keys(new.name()).into_iter().for_each(|key| queue.add(key));
                }
                _ => {}
            }
        });
        let (nodes, all) = (Arc::clone(&self.nodes), Arc::clone(&self.pods));
        watches.on(&self.pods, move |seen: Seen<'_, Pod>, queue: &Queue| {
            let Some(pod) = seen.new else { return };
            let is_deleting = pod.metadata.deletion_timestamp.is_some();
            match node_of(pod).first() {
                None if is_deleting => queue.add(ObjectKey::of(pod)),
                None => {}
                Some(name) => match nodes.get("", name) {
                    None if seen.old.is_none_or(|old| node_of(old) != node_of(pod)) => {
                        queue.add_after(ObjectKey::of(pod), QUARANTINE);
                    }
                    Some(node) if is_deleting && is_out_of_service(&node) => queue.add(ObjectKey::of(pod)),
                    _ => {}
                },
            }
            let finished_now = pods::has_ended(pod) && !seen.old.is_some_and(pods::has_ended);
            if finished_now && all.len() > FINISHED_KEPT {
                queue.add_after(ObjectKey::new("", ""), COUNT_EVERY);
            }
        });
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Requeue, Error> {
        if key.name.is_empty() {
            return self.remove_surplus().await;
        }
        let Some(pod) = self.pods.get(&key.namespace, &key.name) else { return Ok(Requeue::Done) };
        let is_deleting = pod.metadata.deletion_timestamp.is_some();
        let Some(name) = node_of(&pod).pop() else {
            if is_deleting {
                self.remove(&pod, None).await?;
            }
            return Ok(Requeue::Done);
        };
        if let Some(node) = self.nodes.get("", &name) {
            if is_deleting && is_out_of_service(&node) {
                self.remove(&pod, None).await?;
            }
            return Ok(Requeue::Done);
        }
        match self.client.get::<Node>("", &name).await {
            Err(error) if error.is_not_found() => {
                self.remove(&pod, Some(("DeletionByPodGC", "PodGC: node no longer exists"))).await.map(|()| Requeue::Done)
            }
            Err(error) => Err(error.into()),
            Ok(_) => Ok(Requeue::After(QUARANTINE)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, created: &str, reason: &str) -> Arc<Pod> {
        let pod =
            json!({"metadata": {"name": name, "creationTimestamp": created}, "status": {"phase": "Failed", "reason": reason}});
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    #[test]
    fn evicted_and_old_pods_go_first() {
        let finished = vec![
            pod("new", "2026-01-01T00:00:09Z", ""),
            pod("old", "2026-01-01T00:00:01Z", ""),
            pod("evicted", "2026-01-01T00:00:10Z", "Evicted"),
        ];
        let names = |kept| -> Vec<String> {
            surplus(finished.clone(), kept).iter().filter_map(|pod| pod.metadata.name.clone()).collect()
        };
        assert_eq!(names(3), Vec::<String>::new());
        assert_eq!(names(1), ["evicted", "old"]);
    }

    #[test]
    fn out_of_service() {
        for (status, taint, expected) in
            [("Unknown", OUT_OF_SERVICE, true), ("True", OUT_OF_SERVICE, false), ("Unknown", "other", false)]
        {
            let node = json!({"spec": {"taints": [{"key": taint, "effect": "NoExecute", "value": "nodeshutdown"}]},
                "status": {"conditions": [{"type": "Ready", "status": status}]}});
            assert_eq!(is_out_of_service(&serde_json::from_value(node).unwrap()), expected, "{status} {taint}");
        }
    }
}
