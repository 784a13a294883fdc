//! Jobs: runs pods until enough of them succeeded. It follows upstream's `controller/job`.
//!
//! [`plan`] decides, [`track`] counts, this shell performs; [`orphans`] lets go of the pods of jobs that are gone, and [`ttl`]
//! deletes jobs some time after their end.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use k8s_openapi::api::batch::v1::{Job, JobCondition, JobSpec, JobStatus};
use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::expectations::Expectations;
use super::pod_control::{PodControl, STALE};
use super::{Context, Controller, Error, Queue, Requeue, Seen, Watches, owners, status};
use crate::api::selector::label::Selector;
use crate::client::informer::Informer;
use crate::client::recorder::{EventType, reference};
use crate::client::{Client, ObjectKey, PatchKind};
use crate::rt::clock::SharedClock;

mod backoff;
pub(super) mod conditions;
mod failure;
mod indexes;
mod orphans;
mod perform;
mod plan;
mod pod;
#[cfg(test)]
mod tests;
mod track;
mod ttl;

pub(super) use orphans::orphans;
pub(super) use ttl::ttl_after_finished;

use backoff::Failures;
use plan::View;
use track::Tracking;

const COMPONENT: &str = "job-controller";
/// What `spec.managedBy` says of a job that is this controller's.
const MANAGER: &str = "kubernetes.io/job-controller";
/// Changes of pods wait this long for others, so that a job of many pods is not looked at for each.
const BATCH: Duration = Duration::from_millis(100);

/// The controller of Jobs.
pub(super) fn job(context: &Context) -> Arc<dyn Controller> {
    Arc::new(JobController {
        jobs: context.config.informers.of::<Job>(),
        control: PodControl::new(context, COMPONENT),
        clock: Arc::clone(&context.config.clock),
        written: Expectations::default(),
        memory: Mutex::default(),
    })
}

/// What the controller remembers of a job beside what the API holds.
#[derive(Debug, Clone, Default)]
struct Memory {
    failures: Failures,
    /// Uids of pods whose finalizer it removed, though the cache may not show it yet.
    untracked: HashSet<String>,
}

struct JobController {
    jobs: Arc<Informer<Job>>,
    control: PodControl,
    clock: SharedClock,
    /// Statuses that were written: an older one would count pods wrongly.
    written: Expectations,
    memory: Mutex<HashMap<ObjectKey, Memory>>,
}

impl JobController {
    fn forget(&self, key: &ObjectKey) {
        self.control.expectations.forget(key);
        self.written.forget(key);
        self.memory.lock().remove(key);
    }

    /// What is remembered, without what the cache shows by now.
    fn remember(&self, key: &ObjectKey, pods: &[Arc<Pod>]) -> Memory {
        let mut all = self.memory.lock();
        let memory = all.entry(key.clone()).or_default();
        if !memory.untracked.is_empty() {
            let tracked: HashSet<&str> = pods.iter().filter(|pod| pod::is_tracked(pod)).map(|pod| plan::uid(pod)).collect();
            memory.untracked.retain(|uid| tracked.contains(uid.as_str()));
        }
        memory.clone()
    }

    /// Writes the status if it changed, and returns the job as it then is.
    async fn write(&self, key: &ObjectKey, job: Job, new: &JobStatus) -> Result<Job, Error> {
        let Some(mut patch) = status::difference(job.status.as_ref(), new) else { return Ok(job) };
        // A merge patch goes into objects: lists that are gone have to be said.
        if let Some(Value::Object(uncounted)) = patch.get_mut("uncountedTerminatedPods") {
            for list in ["succeeded", "failed"] {
                uncounted.entry(list).or_insert(Value::Null);
            }
        }
        let meta = &job.metadata;
        let patch = json!({"metadata": {"resourceVersion": meta.resource_version, "uid": meta.uid}, "status": patch});
        let written: Job = self.control.client.patch(&key.namespace, &key.name, Some("status"), PatchKind::Merge, &patch).await?;
        self.written.created(key, &written);
        Ok(written)
    }

    /// Counts pods: writes down which, removes their finalizers, and writes the counts.
    async fn count(&self, key: &ObjectKey, job: Job, mut tracking: Tracking, failures: Failures) -> Result<(), Error> {
        let job = self.write(key, job, &tracking.status).await?;
        let counted = std::mem::take(&mut tracking.counted);
        {
            let mut all = self.memory.lock();
            let memory = all.entry(key.clone()).or_default();
            memory.failures = failures;
            memory.untracked.extend(counted.iter().map(|pod| plan::uid(pod).to_owned()));
        }
        let (untracked, failed) = self.untrack(&counted).await;
        for pod in &counted {
            let uid = plan::uid(pod);
            if untracked.contains(uid) {
                tracking.tracked.remove(uid);
            } else if let Some(memory) = self.memory.lock().get_mut(key) {
                memory.untracked.remove(uid);
            }
        }
        if failed.is_some() {
            tracking.finished = None;
        }
        let written = job.status.clone().unwrap_or_default();
        let (new, finished) = track::finish(&tracking, &written, self.clock.now());
        let job = self.write(key, job, &new).await?;
        if let Some(condition) = finished {
            self.tell_end(&job, &condition);
        }
        failed.map_or(Ok(()), Err)
    }

    fn tell_end(&self, job: &Job, condition: &JobCondition) {
        let about = reference(job);
        if condition.type_ != conditions::COMPLETE {
            let (reason, message) = (condition.reason.as_deref().unwrap_or(""), condition.message.as_deref().unwrap_or(""));
            return self.control.recorder.event(&about, EventType::Warning, reason, message);
        }
        if track::is_exceeded(job) {
            let message = "Too many succeeded pods running after completion count reached";
            self.control.recorder.event(&about, EventType::Warning, "TooManySucceededPods", message);
        }
        self.control.recorder.event(&about, EventType::Normal, "Completed", "Job completed");
    }

    async fn sync(&self, key: &ObjectKey, job: &Job, spec: &JobSpec, revision: u64) -> Result<Requeue, Error> {
        let invalid = |message| Error::Invalid { object: format!("Job {key}"), message };
        let selector = selector(job).map_err(invalid)?;
        let is_fresh = self.control.is_fresh(key, revision, job);
        let is_meant = |pod: &Pod| selector.matches(&pod.metadata.labels);
        let control = &self.control;
        let pods = owners::claim_all(&control.client, job, &control.pods, is_meant, Some(pod::TRACKING)).await?;
        let memory = self.remember(key, &pods);
        let now = self.clock.now();
        let (failures, untracked) = (memory.failures, &memory.untracked);
        let view = View { job, spec, pods: &pods, untracked, failures, is_fresh, now };
        let sync = plan::observe(&view);
        let (again, failures) = (sync.again, sync.failures);
        let (outcome, failed) = self.perform(key, job, &sync).await;
        let tracking = track::track(&view, sync, &outcome);
        if let Some((reason, message)) = tracking.suspension {
            self.control.recorder.event(&reference(job), EventType::Normal, reason, message);
        }
        self.count(key, job.clone(), tracking, failures).await?;
        match (failed, again) {
            (Some(error), _) => Err(error),
            (None, Some(wait)) => Ok(Requeue::After(wait)),
            (None, None) if is_fresh => Ok(Requeue::Done),
            (None, None) => Ok(Requeue::After(STALE)),
        }
    }
}

/// Takes the finalizer from a pod, if it is still there.
async fn untrack(client: &Client, pod: &Pod) -> Result<(), Error> {
    owners::patch_meta(client, pod, json!({"$deleteFromPrimitiveList/finalizers": [pod::TRACKING]})).await.map(drop)
}

/// Whether another controller manages the job.
fn is_managed_elsewhere(job: &Job) -> bool {
    let manager = job.spec.as_ref().and_then(|spec| spec.managed_by.as_deref());
    manager.is_some_and(|manager| manager != MANAGER)
}

/// What the job's pods have; a job without a selector has none.
fn selector(job: &Job) -> Result<Selector, String> {
    Selector::from_typed(job.spec.as_ref().and_then(|spec| spec.selector.as_ref()))
}

/// The name of the job that controls a pod.
fn job_of(pod: &Pod) -> Option<&str> {
    let owner = owners::controller_of(&pod.metadata)?;
    (owner.kind == "Job" && owner.api_version == "batch/v1").then_some(&*owner.name)
}

/// Whether only the status changed.
fn is_status_only(seen: &Seen<'_, Job>) -> bool {
    let stands = |job: &Job| (job.metadata.generation, job.metadata.deletion_timestamp.is_some());
    matches!((seen.old, seen.new), (Some(old), Some(new)) if stands(old) == stands(new))
}

#[async_trait]
impl Controller for JobController {
    fn name(&self) -> &'static str {
        "job"
    }

    fn watch(&self, watches: &mut Watches) {
        watches.on(&self.jobs, |seen: Seen<'_, Job>, queue: &Queue| {
            let wait = if is_status_only(&seen) { BATCH } else { Duration::ZERO };
            seen.newest().into_iter().for_each(|job| queue.add_after(ObjectKey::of(job), wait));
        });
        self.control.watch(watches, &self.jobs, selector, BATCH);
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Requeue, Error> {
        // The revisions are read before the objects: they are at least as new.
        let (jobs, pods) = (self.jobs.revision(), self.control.pods.revision());
        let job = self.jobs.get(&key.namespace, &key.name);
        let is_open = |job: &Arc<Job>| conditions::ending(job).is_none() && !is_managed_elsewhere(job);
        let Some(job) = job.filter(is_open) else {
            self.forget(key);
            return Ok(Requeue::Done);
        };
        if !self.written.are_met(key, jobs, std::iter::empty()) {
            return Ok(Requeue::After(STALE));
        }
        match &job.spec {
            Some(spec) => self.sync(key, &job, spec, pods).await,
            None => Ok(Requeue::Done),
        }
    }
}
