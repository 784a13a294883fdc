//! CronJobs: starts jobs on a schedule. It follows upstream's `controller/cronjob`.

use std::collections::HashSet;
use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::batch::v1::{CronJob, CronJobStatus, Job};
use k8s_openapi::api::core::v1::ObjectReference;

use super::pod_control::is_namespace_terminating;
use super::{Context, Controller, Error, Queue, Requeue, Seen, Watches, owners, status};
use crate::client::informer::{BY_CONTROLLER, Informer, by_controller};
use crate::client::recorder::{EventType, Recorder, reference};
use crate::client::{Client, DeleteOptions, ObjectKey, Preconditions};
use crate::rt::clock::{self, SharedClock};

mod plan;
#[cfg(test)]
mod tests;

use plan::{Start, View};

const COMPONENT: &str = "cronjob-controller";

/// The controller of CronJobs.
pub(super) fn cron_job(context: &Context) -> Arc<dyn Controller> {
    let (cron_jobs, jobs) = (context.config.informers.of::<CronJob>(), context.config.informers.of::<Job>());
    jobs.add_index(BY_CONTROLLER, by_controller);
    Arc::new(CronJobController {
        cron_jobs,
        jobs,
        client: context.client(COMPONENT),
        recorder: context.recorder(COMPONENT),
        clock: Arc::clone(&context.config.clock),
    })
}

struct CronJobController {
    cron_jobs: Arc<Informer<CronJob>>,
    jobs: Arc<Informer<Job>>,
    client: Client,
    recorder: Recorder,
    clock: SharedClock,
}

impl CronJobController {
    fn report(&self, cron_job: &CronJob, kind: EventType, reason: &str, message: impl Into<String>) {
        self.recorder.event(&reference(cron_job), kind, reason, message);
    }

    /// Asks the API which of the jobs that the cache does not have are gone.
    async fn gone(&self, namespace: &str, missing: Vec<ObjectReference>) -> Result<HashSet<String>, Error> {
        let mut gone = HashSet::new();
        for job in missing {
            match self.client.get::<Job>(namespace, job.name.as_deref().unwrap_or("")).await {
                Err(error) if error.is_not_found() => gone.extend(job.uid),
                other => drop(other?),
            }
        }
        Ok(gone)
    }

    /// Deletes a job with its pods.
    async fn delete(&self, cron_job: &CronJob, name: &str, uid: Option<String>) -> Result<(), Error> {
        let preconditions = Some(Preconditions { uid, resource_version: None });
        let options = DeleteOptions { propagation_policy: Some("Background"), preconditions, ..DeleteOptions::default() };
        let namespace = cron_job.metadata.namespace.as_deref().unwrap_or("");
        match self.client.delete::<Job>(namespace, name, &options).await {
            Ok(()) => {
                self.report(cron_job, EventType::Normal, "SuccessfulDelete", format!("Deleted job {name}"));
                Ok(())
            }
            Err(error) if error.is_not_found() || error.is_conflict() => Ok(()),
            Err(error) => {
                self.report(cron_job, EventType::Warning, "FailedDelete", format!("Deleted job: {error}"));
                Err(error.into())
            }
        }
    }

    /// Starts a job, and notes it in the status. That it is there already is no error: the note of it was lost.
    async fn start(&self, cron_job: &CronJob, status: &mut CronJobStatus, start: Start) -> Result<(), Error> {
        for job in start.replaced {
            self.delete(cron_job, job.name.as_deref().unwrap_or(""), job.uid.clone()).await?;
            plan::forget(status, job.uid.as_ref());
        }
        let (namespace, name) = (cron_job.metadata.namespace.as_deref().unwrap_or(""), start.job.metadata.name.clone());
        let job = match self.client.create(&start.job).await {
            Ok(job) => {
                let message = format!("Created job {}", name.as_deref().unwrap_or(""));
                self.report(cron_job, EventType::Normal, "SuccessfulCreate", message);
                job
            }
            Err(error) if error.is_already_exists() => {
                let job: Job = self.client.get(namespace, name.as_deref().unwrap_or("")).await?;
                let is_ours =
                    owners::controller_of(&job.metadata).is_some_and(|owner| Some(&owner.uid) == cron_job.metadata.uid.as_ref());
                if !is_ours {
                    return Ok(());
                }
                job
            }
            Err(error) => {
                if !is_namespace_terminating(&error) {
                    self.report(cron_job, EventType::Warning, "FailedCreate", format!("Error creating job: {error}"));
                }
                return Err(error.into());
            }
        };
        plan::started(status, &job, start.scheduled);
        Ok(())
    }

    /// Deletes jobs beyond the limits of the history; what fails is told in events, and tried again with the next change.
    async fn clean_up(&self, cron_job: &CronJob, status: &mut CronJobStatus, jobs: &[Arc<Job>]) {
        for job in plan::surplus(cron_job, jobs) {
            let (name, uid) = (job.metadata.name.as_deref().unwrap_or(""), job.metadata.uid.clone());
            match self.delete(cron_job, name, uid).await {
                Ok(()) => plan::forget(status, job.metadata.uid.as_ref()),
                Err(error) => tracing::debug!(%error, job = name, "the job stays for now"),
            }
        }
    }
}

#[async_trait]
impl Controller for CronJobController {
    fn name(&self) -> &'static str {
        "cronjob"
    }

    fn watch(&self, watches: &mut Watches) {
        watches.on(&self.cron_jobs, |seen: Seen<'_, CronJob>, queue: &Queue| {
            seen.new.into_iter().for_each(|cron_job| queue.add(ObjectKey::of(cron_job)));
        });
        watches.on(&self.jobs, |seen: Seen<'_, Job>, queue: &Queue| {
            for job in seen.states() {
                if let Some(owner) = owners::controller_of(&job.metadata).filter(|owner| owner.kind == "CronJob") {
                    queue.add(ObjectKey::new(job.metadata.namespace.as_deref().unwrap_or(""), &owner.name));
                }
            }
        });
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Requeue, Error> {
        let Some(mut cron_job) = self.cron_jobs.get(&key.namespace, &key.name) else { return Ok(Requeue::Done) };
        let jobs = self.jobs.by_index(BY_CONTROLLER, cron_job.metadata.uid.as_deref().unwrap_or(""));
        if plan::has_unexpected(&cron_job, &jobs) {
            let live: CronJob = match self.client.get(&key.namespace, &key.name).await {
                Err(error) if error.is_not_found() => return Ok(Requeue::Done),
                other => other?,
            };
            if live.metadata.uid != cron_job.metadata.uid {
                return Ok(Requeue::Done);
            }
            cron_job = Arc::new(live);
        }
        let gone = self.gone(&key.namespace, plan::missing(&cron_job, &jobs)).await?;
        let zone = clock::local_zone();
        let view = View { cron_job: &cron_job, jobs: &jobs, gone: &gone, zone: &zone, now: self.clock.now() };
        let mut plan = plan::plan(&view);
        for (kind, reason, message) in plan.reports {
            self.report(&cron_job, kind, reason, message);
        }
        let started = match plan.start {
            Some(start) => self.start(&cron_job, &mut plan.status, start).await,
            None => Ok(()),
        };
        self.clean_up(&cron_job, &mut plan.status, &jobs).await;
        status::write(&self.client, &*cron_job, cron_job.status.as_ref(), &plan.status).await?;
        started?;
        Ok(plan.again.map_or(Requeue::Done, Requeue::After))
    }
}
