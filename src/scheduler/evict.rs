//! What preemption writes: the nomination of the pod, then for each victim the condition DisruptionTarget, its deletion and an
//! event. The nomination comes first: whoever finds it goes on from there.

use std::sync::Arc;

use futures_util::stream::{self, StreamExt};
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::bind::{Binder, Report, WriteError};
use super::pod_info::{PREEMPTED, PodInfo};
use crate::client::recorder::{EventType, reference};
use crate::client::{DeleteOptions, Preconditions};

/// Victims of one pod that are removed at one time.
const PARALLEL: usize = 16;

impl Binder {
    /// Makes room on a node for a pod, in a task of its own: says that the node is kept for it, takes that from pods of lower
    /// priority, and removes the victims.
    pub fn preempt(&self, pod: Arc<PodInfo>, node: String, victims: Vec<Arc<PodInfo>>, status: Option<Value>) {
        let binder = self.clone();
        self.spawn(async move {
            if let Some(status) = status
                && let Err(error) = binder.patch_status(&pod, &status).await
            {
                tracing::warn!(pod = pod.name(), namespace = pod.namespace(), node, %error, "the nomination was not written");
                return binder.tell(Report::NotPreempted { uid: pod.uid().to_owned() });
            }
            let removals = stream::iter(victims).map(|victim| {
                let (binder, pod, node) = (binder.clone(), Arc::clone(&pod), node.clone());
                async move {
                    binder.remove(&victim, &pod, &node).await.inspect_err(|error| {
                        tracing::warn!(victim = victim.name(), namespace = victim.namespace(), node, %error, "preemption failed");
                    })
                }
            });
            let outcomes: Vec<_> = removals.buffer_unordered(PARALLEL).collect().await;
            if outcomes.iter().any(Result::is_err) {
                binder.tell(Report::NotPreempted { uid: pod.uid().to_owned() });
            }
        });
    }

    /// Says that no node is kept for a pod any more.
    pub fn clear_nomination(&self, pod: &Arc<PodInfo>) {
        let (binder, pod) = (self.clone(), Arc::clone(pod));
        self.spawn(async move {
            if let Err(error) = binder.patch_status(&pod, &json!({"nominatedNodeName": null})).await {
                tracing::debug!(pod = pod.name(), %error, "the nomination was not cleared");
            }
        });
    }

    async fn remove(&self, victim: &PodInfo, pod: &PodInfo, node: &str) -> Result<(), WriteError> {
        if victim.is_terminating() {
            return Ok(());
        }
        let scheduler = pod.spec().and_then(|spec| spec.scheduler_name.as_deref()).unwrap_or(super::NAME);
        let condition = json!({"type": "DisruptionTarget", "status": "True", "reason": PREEMPTED,
            "message": format!("{scheduler}: preempting to accommodate a higher priority pod"),
            "lastTransitionTime": self.now()});
        if !victim.is_preempted && !is_written(self.patch_status(victim, &json!({"conditions": [condition]})).await)? {
            return Ok(());
        }
        let preconditions = Some(Preconditions { uid: victim.pod.metadata.uid.clone(), resource_version: None });
        let options = DeleteOptions { preconditions, ..DeleteOptions::default() };
        let deletion = self.client().delete::<Pod>(victim.namespace(), victim.name(), &options);
        if is_written(self.call(deletion).await)? {
            let message = format!("Preempted by pod {} on node {node}", pod.uid());
            self.recorder().event(&reference(&*victim.pod), EventType::Normal, "Preempted", message);
        }
        Ok(())
    }
}

/// Whether it was done; it was not if the pod is gone or another one took its name.
fn is_written(outcome: Result<(), WriteError>) -> Result<bool, WriteError> {
    match outcome {
        Ok(()) => Ok(true),
        Err(error) if error.is_gone() => Ok(false),
        Err(error) => Err(error),
    }
}
