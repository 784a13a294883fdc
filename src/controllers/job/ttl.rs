//! Deletes jobs `ttlSecondsAfterFinished` after their end: upstream's `controller/ttlafterfinished`.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::Job;

use super::super::{Context, Controller, Error, Queue, Requeue, Seen, Watches};
use super::conditions;
use crate::client::informer::Informer;
use crate::client::{Client, DeleteOptions, ObjectKey, Preconditions};
use crate::rt::clock::SharedClock;

/// The controller that deletes jobs after their time.
pub(in super::super) fn ttl_after_finished(context: &Context) -> Arc<dyn Controller> {
    Arc::new(TtlAfterFinished {
        jobs: context.config.informers.of(),
        client: context.client("ttl-after-finished-controller"),
        clock: Arc::clone(&context.config.clock),
    })
}

struct TtlAfterFinished {
    jobs: Arc<Informer<Job>>,
    client: Client,
    clock: SharedClock,
}

/// When the job is to be deleted, if it has ended and its time is limited.
fn due(job: &Job) -> Option<Timestamp> {
    let ttl = job.spec.as_ref()?.ttl_seconds_after_finished?;
    let end = conditions::ending(job)?.last_transition_time.as_ref()?.0;
    let is_open = job.metadata.deletion_timestamp.is_none();
    is_open.then(|| end.saturating_add(SignedDuration::from_secs(i64::from(ttl))).unwrap_or(Timestamp::MAX))
}

fn wait(job: &Job, now: Timestamp) -> Option<Duration> {
    due(job).map(|due| Duration::try_from(due.duration_since(now)).unwrap_or(Duration::ZERO))
}

#[async_trait]
impl Controller for TtlAfterFinished {
    fn name(&self) -> &'static str {
        "ttlafterfinished"
    }

    fn watch(&self, watches: &mut Watches) {
        watches.on(&self.jobs, |seen: Seen<'_, Job>, queue: &Queue| {
            seen.new.filter(|job| due(job).is_some()).into_iter().for_each(|job| queue.add(ObjectKey::of(job)));
        });
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Requeue, Error> {
        let now = self.clock.now();
        match self.jobs.get(&key.namespace, &key.name).and_then(|job| wait(&job, now)) {
            None => return Ok(Requeue::Done),
            Some(Duration::ZERO) => {}
            Some(left) => return Ok(Requeue::After(left)),
        }
        // The time may have been changed since: what the API says counts.
        let job = match self.client.get::<Job>(&key.namespace, &key.name).await {
            Err(error) if error.is_not_found() => return Ok(Requeue::Done),
            other => other?,
        };
        match wait(&job, now) {
            None => Ok(Requeue::Done),
            Some(Duration::ZERO) => {
                let (uid, resource_version) = (job.metadata.uid, job.metadata.resource_version);
                let options = DeleteOptions {
                    propagation_policy: Some("Foreground"),
                    preconditions: Some(Preconditions { uid, resource_version }),
                    ..DeleteOptions::default()
                };
                match self.client.delete::<Job>(&key.namespace, &key.name, &options).await {
                    Err(error) if error.is_not_found() => Ok(Requeue::Done),
                    other => Ok(other.map(|()| Requeue::Done)?),
                }
            }
            Some(left) => Ok(Requeue::After(left)),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn due_after_its_end() {
        let end = "2026-01-01T00:00:00Z";
        let job = |ttl: Option<i32>, kind: &str, status: &str| -> Job {
            let condition = json!({"type": kind, "status": status, "lastTransitionTime": end});
            let template = json!({"spec": {"containers": []}});
            let job = json!({"metadata": {}, "spec": {"ttlSecondsAfterFinished": ttl, "template": template},
                "status": {"conditions": [condition]}});
            serde_json::from_value(job).unwrap()
        };
        let at = |text: &str| Some(text.parse::<Timestamp>().unwrap());
        for (ttl, kind, status, expected) in [
            (Some(30), "Complete", "True", at("2026-01-01T00:00:30Z")),
            (Some(0), "Failed", "True", at(end)),
            (Some(30), "Failed", "False", None),
            (Some(30), "FailureTarget", "True", None),
            (None, "Complete", "True", None),
        ] {
            assert_eq!(due(&job(ttl, kind, status)), expected, "{kind} {status}");
        }
    }
}
