//! The recorder: says in core/v1 Events what a component did, and never makes it wait.
//!
//! Reports go through a bounded queue to workers that write them; an object's reports stay in order. A report that finds the
//! queue full is dropped and counted in `orch_events_dropped_total`.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use prometheus_client::metrics::counter::Counter;
use serde_json::json;
use tokio::sync::mpsc;

use super::correlator::{Correlator, Report, Verdict};
use super::{ApiObject, Client, ClientError, PatchKind};
use crate::rt::clock::SharedClock;
use crate::rt::{Backoff, TaskGroup, metrics};

const WORKERS: usize = 4;
/// Reports that wait for one worker.
const QUEUE: usize = 1_024;
const TRIES: u32 = 5;
const CALL: Duration = Duration::from_secs(10);

/// `type` of an Event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventType {
    Normal,
    Warning,
}

impl EventType {
    /// The word on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

/// Records events of one component. Clones share the queue.
#[derive(Clone)]
pub struct Recorder {
    workers: Arc<[mpsc::Sender<Report>]>,
}

impl Recorder {
    /// A recorder whose events come from `component` (`deployment-controller`) on `host` ("" for the control plane).
    pub fn new(tasks: &TaskGroup, client: &Client, component: &str, host: &str, clock: &SharedClock) -> Self {
        let workers = (0..WORKERS).map(|_| {
            let (sender, reports) = mpsc::channel(QUEUE);
            let writer = Writer {
                client: client.clone(),
                component: component.to_owned(),
                host: host.to_owned(),
                clock: Arc::clone(clock),
                correlator: Correlator::default(),
            };
            let token = tasks.token();
            tasks.spawn(async move {
                token.run_until_cancelled(writer.run(reports)).await;
            });
            sender
        });
        Self { workers: workers.collect() }
    }

    /// Reports that something happened to `about`. Returns at once.
    pub fn event(&self, about: &ObjectReference, kind: EventType, reason: &str, message: impl Into<String>) {
        let report = Report { about: about.clone(), kind: kind.as_str(), reason: reason.to_owned(), message: message.into() };
        let name = about.name.as_deref().unwrap_or("").as_bytes();
        let worker = name.iter().fold(0_usize, |sum, byte| sum.wrapping_mul(31).wrapping_add(usize::from(*byte))) % WORKERS;
        if self.workers[worker].try_send(report).is_err() {
            dropped().inc();
        }
    }
}

/// The reference to an object that its events carry.
pub fn reference<K: ApiObject>(object: &K) -> ObjectReference {
    let meta = object.metadata();
    ObjectReference {
        api_version: Some(K::API_VERSION.to_owned()),
        kind: Some(K::KIND.to_owned()),
        namespace: meta.namespace.clone(),
        name: meta.name.clone(),
        uid: meta.uid.clone(),
        resource_version: meta.resource_version.clone(),
        field_path: None,
    }
}

fn dropped() -> &'static Counter {
    static DROPPED: OnceLock<Counter> = OnceLock::new();
    DROPPED.get_or_init(|| metrics::register("orch_events_dropped", "Events that found the queue full.", Counter::default()))
}

struct Writer {
    client: Client,
    component: String,
    host: String,
    clock: SharedClock,
    correlator: Correlator,
}

impl Writer {
    async fn run(mut self, mut reports: mpsc::Receiver<Report>) {
        while let Some(report) = reports.recv().await {
            let now = self.clock.now();
            let verdict = self.correlator.judge(&report, now);
            self.write_with_retries(&report, &verdict, now).await;
        }
    }

    async fn write_with_retries(&self, report: &Report, verdict: &Verdict, now: Timestamp) {
        let mut backoff = Backoff::new(Duration::from_millis(250), Duration::from_secs(10));
        loop {
            match tokio::time::timeout(CALL, self.write(report, verdict, now)).await {
                Ok(Ok(())) => return,
                Ok(Err(error @ (ClientError::Api(_) | ClientError::Decode { .. }))) => {
                    tracing::debug!(reason = report.reason, %error, "the event was refused");
                    return;
                }
                Ok(Err(ClientError::Transport { .. })) | Err(_) if backoff.attempts() < TRIES => {
                    tokio::time::sleep(backoff.next_delay()).await;
                }
                Ok(Err(ClientError::Transport { .. })) | Err(_) => {
                    dropped().inc();
                    return;
                }
            }
        }
    }

    async fn write(&self, report: &Report, verdict: &Verdict, now: Timestamp) -> Result<(), ClientError> {
        match verdict {
            Verdict::Drop => Ok(()),
            Verdict::Create { name, message } => self.create(report, name, message, 1, (now, now)).await,
            Verdict::Count { name, message, count, first } => {
                let patch = json!({"count": count, "lastTimestamp": Time(now), "message": message});
                let patched = self.client.patch::<Event>(namespace(report), name, None, PatchKind::Strategic, &patch).await;
                match patched {
                    Err(error) if error.is_not_found() => self.create(report, name, message, *count, (*first, now)).await,
                    other => other.map(drop),
                }
            }
        }
    }

    async fn create(
        &self,
        report: &Report,
        name: &str,
        message: &str,
        count: i32,
        (first, last): (Timestamp, Timestamp),
    ) -> Result<(), ClientError> {
        let metadata =
            ObjectMeta { name: Some(name.to_owned()), namespace: Some(namespace(report).to_owned()), ..ObjectMeta::default() };
        let host = (!self.host.is_empty()).then(|| self.host.clone());
        let event = Event {
            metadata,
            involved_object: report.about.clone(),
            type_: Some(report.kind.to_owned()),
            reason: Some(report.reason.clone()),
            message: Some(message.to_owned()),
            count: Some(count),
            first_timestamp: Some(Time(first)),
            last_timestamp: Some(Time(last)),
            source: Some(EventSource { component: Some(self.component.clone()), host: host.clone() }),
            reporting_component: Some(self.component.clone()),
            reporting_instance: Some(host.unwrap_or_default()),
            ..Event::default()
        };
        self.client.create(&event).await.map(drop)
    }
}

fn namespace(report: &Report) -> &str {
    report.about.namespace.as_deref().filter(|namespace| !namespace.is_empty()).unwrap_or("default")
}
