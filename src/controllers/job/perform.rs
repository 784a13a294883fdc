//! Creating and deleting the pods of a job, and removing their finalizers.

use std::collections::HashSet;
use std::sync::Arc;

use futures_util::stream::{self, StreamExt};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;

use super::super::replicaset::{is_namespace_terminating, slow_start};
use super::super::{Error, pods};
use super::plan::{self, Action, Sync};
use super::track::Outcome;
use super::{JobController, pod, untrack};
use crate::client::recorder::{EventType, reference};
use crate::client::{DeleteOptions, ObjectKey, Preconditions};

/// Requests of one reconcile that are on their way at one time.
const PARALLEL: usize = 64;

impl JobController {
    /// Does what the plan says; what was done is told even if something failed.
    pub(super) async fn perform(&self, key: &ObjectKey, job: &Job, sync: &Sync) -> (Outcome, Option<Error>) {
        match &sync.action {
            Action::Nothing => (Outcome::default(), None),
            Action::Create(indexes) => self.create(key, job, sync, indexes).await,
            Action::Delete(pods) => self.delete(key, job, pods, true).await,
            Action::End(pods) => self.delete(key, job, pods, false).await,
        }
    }

    async fn create(&self, key: &ObjectKey, job: &Job, sync: &Sync, indexes: &[Option<i32>]) -> (Outcome, Option<Error>) {
        let (mut outcome, mut left) = (Outcome::default(), indexes);
        for batch in slow_start(indexes.len()) {
            let (now, later) = left.split_at(batch);
            left = later;
            let new = |index: Option<i32>| {
                let delayed = sync.numbered.as_ref().zip(index);
                let replaced = delayed.and_then(|(numbered, index)| numbered.delayed.get(&index));
                pod::new(job, index, replaced.map(|pod| &**pod))
            };
            let calls = stream::iter(now.iter().copied()).map(|index| self.create_one(key, job, new(index)));
            let results: Vec<Result<usize, Error>> = calls.buffer_unordered(PARALLEL).collect().await;
            outcome.created += results.iter().flatten().sum::<usize>();
            if let Some(error) = results.into_iter().find_map(Result::err) {
                return (outcome, Some(error));
            }
        }
        (outcome, None)
    }

    async fn create_one(&self, key: &ObjectKey, job: &Job, pod: Pod) -> Result<usize, Error> {
        match self.client.create(&pod).await {
            Ok(created) => {
                self.expectations.created(key, &created);
                let message = format!("Created pod: {}", created.metadata.name.as_deref().unwrap_or(""));
                self.recorder.event(&reference(job), EventType::Normal, "SuccessfulCreate", message);
                Ok(1)
            }
            Err(error) if is_namespace_terminating(&error) => Ok(0),
            Err(error) => {
                self.recorder.event(&reference(job), EventType::Warning, "FailedCreate", format!("Error creating: {error}"));
                Err(error.into())
            }
        }
    }

    /// Deletes pods; `uncounted` ones lose their finalizer first.
    async fn delete(&self, key: &ObjectKey, job: &Job, pods: &[Arc<Pod>], uncounted: bool) -> (Outcome, Option<Error>) {
        let calls = stream::iter(pods.to_vec()).map(|pod| async move {
            if uncounted && pod::is_tracked(&pod) {
                self.patch_pod(&pod, &untrack(&pod)).await?;
            }
            self.delete_one(key, job, &pod).await.map(|()| pods::is_ready(&pod))
        });
        let results: Vec<Result<bool, Error>> = calls.buffer_unordered(PARALLEL).collect().await;
        let deleted = results.iter().filter(|result| result.is_ok()).count();
        let deleted_ready = results.iter().filter(|result| matches!(result, Ok(true))).count();
        (Outcome { created: 0, deleted, deleted_ready }, results.into_iter().find_map(Result::err))
    }

    async fn delete_one(&self, key: &ObjectKey, job: &Job, pod: &Pod) -> Result<(), Error> {
        let meta = &pod.metadata;
        let (namespace, name) = (meta.namespace.as_deref().unwrap_or(""), meta.name.as_deref().unwrap_or(""));
        let preconditions = Some(Preconditions { uid: meta.uid.clone(), resource_version: None });
        let options = DeleteOptions { preconditions, ..DeleteOptions::default() };
        match self.client.delete::<Pod>(namespace, name, &options).await {
            Ok(()) => {
                self.expectations.deleted(key, plan::uid(pod));
                self.recorder.event(&reference(job), EventType::Normal, "SuccessfulDelete", format!("Deleted pod: {name}"));
                Ok(())
            }
            Err(error) if error.is_not_found() || error.is_conflict() => Ok(()),
            Err(error) => {
                self.recorder.event(&reference(job), EventType::Warning, "FailedDelete", format!("Error deleting: {error}"));
                Err(error.into())
            }
        }
    }

    /// Removes the finalizers of pods. Returns the uids of those that have none now, and what failed.
    pub(super) async fn untrack(&self, pods: &[Arc<Pod>]) -> (HashSet<String>, Option<Error>) {
        let calls = stream::iter(pods.to_vec())
            .map(|pod| async move { self.patch_pod(&pod, &untrack(&pod)).await.map(|_| plan::uid(&pod).to_owned()) });
        let results: Vec<Result<String, Error>> = calls.buffer_unordered(PARALLEL).collect().await;
        let (mut untracked, mut failed) = (HashSet::new(), None);
        for result in results {
            match result {
                Ok(uid) => drop(untracked.insert(uid)),
                Err(error) => failed = Some(error),
            }
        }
        (untracked, failed)
    }
}
