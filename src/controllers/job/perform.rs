//! Creating and deleting the pods of a job, and removing their finalizers.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::stream::{self, StreamExt};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;

use super::super::pod_control::{PARALLEL, slow_start};
use super::super::{Error, pods};
use super::plan::{self, Action, Sync};
use super::track::Outcome;
use super::{JobController, pod, untrack};
use crate::client::ObjectKey;

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
        let created = AtomicUsize::new(0);
        let new = |index: Option<i32>| {
            let delayed = sync.numbered.as_ref().zip(index);
            let replaced = delayed.and_then(|(numbered, index)| numbered.delayed.get(&index));
            pod::new(job, index, replaced.map(|pod| &**pod))
        };
        let create = |pod: Pod| {
            let created = &created;
            async move {
                self.control.create_one(key, job, &pod).await?;
                created.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
        };
        let calls: Vec<_> = indexes.iter().map(|index| create(new(*index))).collect();
        let failed = slow_start(calls).await.err();
        (Outcome { created: created.into_inner(), ..Outcome::default() }, failed)
    }

    /// Deletes pods; `uncounted` ones lose their finalizer first.
    async fn delete(&self, key: &ObjectKey, job: &Job, pods: &[Arc<Pod>], uncounted: bool) -> (Outcome, Option<Error>) {
        let calls = stream::iter(pods.to_vec()).map(|pod| async move {
            if uncounted && pod::is_tracked(&pod) {
                untrack(&self.control.client, &pod).await?;
            }
            self.control.delete_and_say(key, job, &pod).await.map(|()| pods::is_ready(&pod))
        });
        let results: Vec<Result<bool, Error>> = calls.buffer_unordered(PARALLEL).collect().await;
        let deleted = results.iter().filter(|result| result.is_ok()).count();
        let deleted_ready = results.iter().filter(|result| matches!(result, Ok(true))).count();
        (Outcome { created: 0, deleted, deleted_ready }, results.into_iter().find_map(Result::err))
    }

    /// Removes the finalizers of pods. Returns the uids of those that have none now, and what failed.
    pub(super) async fn untrack(&self, pods: &[Arc<Pod>]) -> (HashSet<String>, Option<Error>) {
        let calls = stream::iter(pods.to_vec())
            .map(|pod| async move { untrack(&self.control.client, &pod).await.map(|()| plan::uid(&pod).to_owned()) });
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
