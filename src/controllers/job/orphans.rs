//! Takes the tracking finalizer from pods whose job is gone or has ended, so that they can be deleted: upstream's
//! `syncOrphanPod`.

use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

use super::super::{Context, Controller, Error, Queue, Requeue, Seen, Watches, owners};
use super::{COMPONENT, conditions, is_managed_elsewhere, job_of, pod, untrack};
use crate::client::informer::{BY_CONTROLLER, Informer, by_controller};
use crate::client::{Client, ObjectKey};

/// The controller of pods that no job counts any more.
pub(in super::super) fn orphans(context: &Context) -> Arc<dyn Controller> {
    let pods = context.config.informers.of::<Pod>();
    pods.add_index(BY_CONTROLLER, by_controller);
    Arc::new(Orphans { jobs: context.config.informers.of(), pods, client: context.client(COMPONENT) })
}

struct Orphans {
    jobs: Arc<Informer<Job>>,
    pods: Arc<Informer<Pod>>,
    client: Client,
}

/// Whether the job still counts its pods, or another controller does.
fn counts(job: &Job) -> bool {
    is_managed_elsewhere(job) || conditions::ending(job).is_none()
}

fn is_of(job: &Job, owner: &OwnerReference) -> bool {
    job.metadata.uid.as_ref() == Some(&owner.uid)
}

/// The job that controls a pod, as the cache has it.
fn cached(jobs: &Informer<Job>, pod: &Pod) -> Option<Arc<Job>> {
    let owner = owners::controller_of(&pod.metadata)?;
    jobs.get(pod.metadata.namespace.as_deref().unwrap_or(""), &owner.name).filter(|job| is_of(job, owner))
}

impl Orphans {
    /// Whether the job that controls a pod is there and counts it; the API is asked if the cache does not have it.
    async fn is_counted(&self, pod: &Pod, owner: &OwnerReference) -> Result<bool, Error> {
        if let Some(job) = cached(&self.jobs, pod) {
            return Ok(counts(&job));
        }
        match self.client.get::<Job>(pod.metadata.namespace.as_deref().unwrap_or(""), &owner.name).await {
            Ok(job) => Ok(is_of(&job, owner) && counts(&job)),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

#[async_trait]
impl Controller for Orphans {
    fn name(&self) -> &'static str {
        "joborphan"
    }

    fn watch(&self, watches: &mut Watches) {
        let pods = Arc::clone(&self.pods);
        watches.on(&self.jobs, move |seen: Seen<'_, Job>, queue: &Queue| {
            if seen.new.is_some_and(counts) {
                return;
            }
            let uid = seen.newest().and_then(|job| job.metadata.uid.as_deref()).unwrap_or("");
            let left = pods.by_index(BY_CONTROLLER, uid).into_iter().filter(|pod| pod::is_tracked(pod));
            left.for_each(|pod| queue.add(ObjectKey::of(&*pod)));
        });
        let jobs = Arc::clone(&self.jobs);
        watches.on(&self.pods, move |seen: Seen<'_, Pod>, queue: &Queue| {
            let Some(pod) = seen.new.filter(|pod| pod::is_tracked(pod)) else { return };
            if !cached(&jobs, pod).is_some_and(|job| counts(&job)) {
                queue.add(ObjectKey::of(pod));
            }
        });
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Requeue, Error> {
        let Some(pod) = self.pods.get(&key.namespace, &key.name).filter(|pod| pod::is_tracked(pod)) else {
            return Ok(Requeue::Done);
        };
        let is_kept = match owners::controller_of(&pod.metadata) {
            Some(_) if job_of(&pod).is_none() => true,
            Some(owner) => self.is_counted(&pod, owner).await?,
            None => false,
        };
        if !is_kept {
            untrack(&self.client, &pod).await?;
        }
        Ok(Requeue::Done)
    }
}
