//! What the scheduler writes: bindings, the condition PodScheduled, events. Many at one time, never waiting in the main loop.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Binding, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use serde::de::IgnoredAny;
use serde_json::{Value, json};
use tokio::sync::{Semaphore, mpsc};

use super::pod_info::PodInfo;
use super::volumes::{Storage, VolumePlan, pre_bind};
use crate::client::recorder::{EventType, Recorder, reference};
use crate::client::{Client, ClientError, PatchKind};
use crate::rt::TaskGroup;
use crate::rt::clock::SharedClock;

/// Bindings that are on their way at one time.
const PARALLEL: usize = 256;
const CALL: Duration = Duration::from_secs(60);

/// A binding that did not happen.
pub struct Failed {
    pub pod: Arc<PodInfo>,
    pub attempts: u32,
    /// The pod is gone: there is nothing more to do.
    pub is_settled: bool,
}

/// What node is kept for a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nomination<'a> {
    Kept(&'a str),
    None,
}

/// What the scheduler is told of its writes.
pub enum Report {
    NotBound(Failed),
    /// Not everything that makes room for this pod was written.
    NotPreempted {
        uid: String,
    },
}

/// Why a write did not happen.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("no answer in time")]
    TimedOut,
}

impl WriteError {
    /// Whether the object is gone, or another one took its name.
    pub fn is_gone(&self) -> bool {
        matches!(self, Self::Client(error) if error.is_not_found() || error.is_conflict())
    }
}

/// Writes bindings and verdicts.
#[derive(Clone)]
pub struct Binder {
    tasks: TaskGroup,
    client: Client,
    recorder: Recorder,
    clock: SharedClock,
    slots: Arc<Semaphore>,
    reports: mpsc::UnboundedSender<Report>,
    storage: Arc<Storage>,
}

impl Binder {
    /// A binder, and where it tells of writes that failed. At most one message a pod waits there.
    pub fn new(
        tasks: &TaskGroup,
        client: Client,
        clock: SharedClock,
        storage: Arc<Storage>,
    ) -> (Self, mpsc::UnboundedReceiver<Report>) {
        let recorder = Recorder::new(tasks, &client, "default-scheduler", "", &clock);
        let (reports, results) = mpsc::unbounded_channel();
        let slots = Arc::new(Semaphore::new(PARALLEL));
        (Self { tasks: tasks.clone(), client, recorder, clock, slots, reports, storage }, results)
    }

    /// Waits until one more binding may start. Cancel safe.
    pub async fn ready(&self) {
        // The semaphore is never closed.
        if self.slots.acquire().await.is_err() {
            tracing::debug!("the binder is closed");
        }
    }

    /// Binds a pod to a node, in a task of its own; first its volumes, as the plan says.
    pub fn bind(&self, pod: Arc<PodInfo>, node: String, attempts: u32, volumes: VolumePlan) {
        let binder = self.clone();
        self.storage.promise(&volumes, &node);
        self.tasks.spawn(async move {
            let bound = binder.bind_volumes(&volumes, &node).await;
            binder.storage.settle(&volumes);
            let outcome = match bound {
                Ok(()) => binder.bind_pod(&pod, &node).await,
                Err(why) => Err(Some(why)),
            };
            let Err(message) = outcome else { return };
            if let Some(message) = &message {
                tracing::warn!(pod = pod.name(), namespace = pod.namespace(), node, error = message, "binding failed");
                binder.recorder.event(&reference(&*pod.pod), EventType::Warning, "FailedScheduling", message.clone());
            }
            binder.tell(Report::NotBound(Failed { pod, attempts, is_settled: message.is_none() }));
        });
    }

    /// Tells the scheduler.
    pub fn tell(&self, report: Report) {
        // The receiver is gone only when the scheduler ends.
        if self.reports.send(report).is_err() {
            tracing::debug!("the scheduler has ended");
        }
    }

    /// Runs a task in the scheduler's group.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(task);
    }

    /// Makes one call, of which so many go out at one time.
    pub async fn call<T>(&self, call: impl Future<Output = Result<T, ClientError>>) -> Result<T, WriteError> {
        let Ok(_slot) = self.slots.acquire().await else { return Err(WriteError::TimedOut) };
        Ok(tokio::time::timeout(CALL, call).await.map_err(|_| WriteError::TimedOut)??)
    }

    /// Patches the status of a pod of this uid.
    pub async fn patch_status(&self, pod: &PodInfo, status: &Value) -> Result<(), WriteError> {
        let patch = json!({"metadata": {"uid": pod.uid()}, "status": status});
        let patched = self.client.patch::<Pod>(pod.namespace(), pod.name(), Some("status"), PatchKind::Strategic, &patch);
        self.call(patched).await.map(drop)
    }

    pub fn client(&self) -> &Client {
        &self.client
    }

    pub fn recorder(&self) -> &Recorder {
        &self.recorder
    }

    pub fn now(&self) -> Time {
        Time(self.clock.now())
    }

    async fn bind_volumes(&self, volumes: &VolumePlan, node: &str) -> Result<(), String> {
        if *volumes == VolumePlan::default() {
            return Ok(());
        }
        let bound = pre_bind(&self.storage, &self.client, volumes, node).await;
        bound.map_err(|error| format!("running PreBind plugin \"VolumeBinding\": binding volumes: {error}"))
    }

    /// Binds a pod; the error is what is to be said, or nothing if the pod is gone.
    async fn bind_pod(&self, pod: &PodInfo, node: &str) -> Result<(), Option<String>> {
        let Ok(_slot) = self.slots.acquire().await else { return Err(None) };
        match tokio::time::timeout(CALL, self.post(pod, node)).await {
            Ok(Ok(())) => {
                let message = format!("Successfully assigned {}/{} to {node}", pod.namespace(), pod.name());
                self.recorder.event(&reference(&*pod.pod), EventType::Normal, "Scheduled", message);
                Ok(())
            }
            Ok(Err(error)) if error.is_not_found() => Err(None),
            Ok(Err(error)) => Err(Some(format!("binding rejected: {error}"))),
            Err(_) => Err(Some("binding rejected: the binding took too long".to_owned())),
        }
    }

    async fn post(&self, pod: &PodInfo, node: &str) -> Result<(), ClientError> {
        let binding = Binding {
            metadata: ObjectMeta {
                name: pod.pod.metadata.name.clone(),
                namespace: pod.pod.metadata.namespace.clone(),
                uid: pod.pod.metadata.uid.clone(),
                ..ObjectMeta::default()
            },
            target: ObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Node".to_owned()),
                name: Some(node.to_owned()),
                ..ObjectReference::default()
            },
        };
        let path = format!("/api/v1/namespaces/{}/pods/{}/binding", pod.namespace(), pod.name());
        self.client.post::<_, IgnoredAny>(&path, &binding).await.map(drop)
    }

    /// Says in an Event and in the pod's status why it waits, and there what node is kept for it, if that changed.
    pub fn report_unschedulable(&self, pod: &Arc<PodInfo>, message: String, nomination: Option<Nomination<'_>>) {
        let Some(status) = self.unschedulable(pod, message, nomination) else { return };
        let (binder, pod) = (self.clone(), Arc::clone(pod));
        self.spawn(async move {
            match binder.patch_status(&pod, &status).await {
                Ok(()) => {}
                Err(WriteError::Client(error)) => {
                    tracing::debug!(pod = pod.name(), %error, "the condition PodScheduled was not written");
                }
                Err(WriteError::TimedOut) => tracing::warn!(pod = pod.name(), "writing the condition PodScheduled took too long"),
            }
        });
    }

    /// Says in an Event why a pod waits; returns what is to be patched into its status, if that does not say so yet.
    pub fn unschedulable(&self, pod: &PodInfo, message: String, nomination: Option<Nomination<'_>>) -> Option<Value> {
        self.recorder.event(&reference(&*pod.pod), EventType::Warning, "FailedScheduling", message.clone());
        let conditions = pod.pod.status.iter().filter_map(|status| status.conditions.as_ref()).flatten();
        let before = conditions.into_iter().find(|condition| condition.type_ == "PodScheduled");
        let is_told = before.is_some_and(|before| before.status == "False" && before.message.as_ref() == Some(&message));
        let nomination = nomination.map(|nomination| match nomination {
            Nomination::Kept(node) => Some(node),
            Nomination::None => None,
        });
        let nomination = nomination.filter(|node| *node != pod.nominated_node());
        if is_told && nomination.is_none() {
            return None;
        }
        let mut status = json!({});
        if let Some(node) = nomination {
            status["nominatedNodeName"] = json!(node);
        }
        if !is_told {
            let kept = before.filter(|before| before.status == "False").and_then(|before| before.last_transition_time.clone());
            status["conditions"] = json!([{
                "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message,
                "lastProbeTime": null, "lastTransitionTime": kept.unwrap_or_else(|| self.now()),
            }]);
        }
        Some(status)
    }
}
