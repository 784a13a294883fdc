//! The pods of a workload: claiming them, and creating and deleting them so that a stale cache never makes it do so twice.

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, StreamExt};
use k8s_openapi::api::core::v1::Pod;

use super::expectations::Expectations;
use super::{Context, Error, Queue, Seen, Watches, owners};
use crate::api::selector::label::Selector;
use crate::client::informer::{BY_CONTROLLER, Informer, by_controller};
use crate::client::recorder::{EventType, Recorder, reference};
use crate::client::{ApiObject, Cached, Client, ClientError, DeleteOptions, ObjectKey, Preconditions};

/// Requests of one reconcile that are on their way at one time.
pub(super) const PARALLEL: usize = 64;
/// After this time a reconcile that waits for the cache looks again, whatever the watch says.
pub(super) const STALE: Duration = Duration::from_secs(300);

/// The pods as one controller reads and changes them.
pub(super) struct PodControl {
    pub(super) pods: Arc<Informer<Pod>>,
    pub(super) client: Client,
    pub(super) recorder: Recorder,
    pub(super) expectations: Expectations,
}

impl PodControl {
    /// For the controller of this component.
    pub(super) fn new(context: &Context, component: &str) -> Self {
        let pods = context.config.informers.of::<Pod>();
        pods.add_index(BY_CONTROLLER, by_controller);
        let (client, recorder) = (context.client(component), context.recorder(component));
        Self { pods, client, recorder, expectations: Expectations::default() }
    }

    /// Adds the owner of each pod that changes, and whoever would adopt it if it has none, after `wait`.
    pub(super) fn watch<K: ApiObject>(
        &self,
        watches: &mut Watches,
        sets: &Arc<Informer<K>>,
        selector_of: fn(&K) -> Result<Selector, String>,
        wait: Duration,
    ) {
        let sets = Arc::clone(sets);
        watches.on(&self.pods, move |seen: Seen<'_, Pod>, queue: &Queue| {
            for pod in seen.states() {
                let owner = owners::controller_of(&pod.metadata);
                if let Some(owner) = owner.filter(|owner| owner.kind == K::KIND && owner.api_version == K::API_VERSION) {
                    queue.add_after(ObjectKey::new(pod.namespace(), &owner.name), wait);
                }
            }
            let orphan = seen.new.filter(|pod| owners::controller_of(&pod.metadata).is_none());
            for pod in orphan.into_iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()) {
                let would_adopt = |set: &&Arc<K>| {
                    let selector = selector_of(set);
                    selector.is_ok_and(|selector| !selector.is_everything() && selector.matches(&pod.metadata.labels))
                };
                let all = sets.in_namespace(pod.namespace());
                all.iter().filter(would_adopt).for_each(|set| queue.add_after(ObjectKey::of(&**set), wait));
            }
        });
    }

    /// Whether the cache shows all that was written for this key. `revision` is the cache's, read before the workload.
    pub(super) fn is_fresh<K: ApiObject>(&self, key: &ObjectKey, revision: u64, set: &K) -> bool {
        let known = self.pods.by_index(BY_CONTROLLER, set.metadata().uid.as_deref().unwrap_or(""));
        self.expectations.are_met(key, revision, known.iter().map(|pod| &**pod))
    }

    /// The pods that the workload owns after adopting and releasing; `is_meant` says which pods may be its, beside the selector.
    ///
    /// # Errors
    /// [`Error::Client`], [`Error::Incomplete`]; to be tried again.
    pub(super) async fn claim<K: ApiObject>(
        &self,
        set: &K,
        selector: &Selector,
        is_meant: impl Fn(&Pod) -> bool + Sync + Send,
    ) -> Result<Vec<Arc<Pod>>, Error> {
        let is_meant = |pod: &Pod| selector.matches(&pod.metadata.labels) && is_meant(pod);
        owners::claim_all(&self.client, set, &self.pods, is_meant, None).await
    }

    /// Creates pods, in the batches of [`slow_start`].
    ///
    /// # Errors
    /// [`Error::Client`] of the first that failed; the batches after it are not tried.
    pub(super) async fn create<K: ApiObject>(&self, key: &ObjectKey, set: &K, pods: &[Pod]) -> Result<(), Error> {
        let calls = pods.iter().map(|pod| self.create_one(key, set, pod)).collect();
        slow_start(calls).await
    }

    /// Creates a pod, and says so.
    ///
    /// # Errors
    /// [`Error::Client`].
    pub(super) async fn create_one<K: ApiObject>(&self, key: &ObjectKey, set: &K, pod: &Pod) -> Result<(), Error> {
        match self.client.create(pod).await {
            Ok(created) => {
                self.expectations.created(key, &created);
                let message = format!("Created pod: {}", created.name());
                self.recorder.event(&reference(set), EventType::Normal, "SuccessfulCreate", message);
                Ok(())
            }
            Err(error) if is_namespace_terminating(&error) => Ok(()),
            Err(error) => {
                self.recorder.event(&reference(set), EventType::Warning, "FailedCreate", format!("Error creating: {error}"));
                Err(error.into())
            }
        }
    }

    /// Deletes pods, all at once.
    ///
    /// # Errors
    /// [`Error::Client`] of the first that failed; the others were tried too.
    pub(super) async fn delete<K: ApiObject>(&self, key: &ObjectKey, set: &K, pods: &[Arc<Pod>]) -> Result<(), Error> {
        let calls: Vec<_> = pods.iter().map(|pod| self.delete_and_say(key, set, pod)).collect();
        let results: Vec<Result<(), Error>> = stream::iter(calls).buffer_unordered(PARALLEL).collect().await;
        results.into_iter().collect()
    }

    /// Deletes a pod, and says so. That it was gone is no error.
    ///
    /// # Errors
    /// [`Error::Client`].
    pub(super) async fn delete_and_say<K: ApiObject>(&self, key: &ObjectKey, set: &K, pod: &Pod) -> Result<(), Error> {
        match self.delete_one(key, pod).await {
            Ok(true) => {
                let message = format!("Deleted pod: {}", pod.name());
                self.recorder.event(&reference(set), EventType::Normal, "SuccessfulDelete", message);
                Ok(())
            }
            Ok(false) => Ok(()),
            Err(error) => {
                self.recorder.event(&reference(set), EventType::Warning, "FailedDelete", format!("Error deleting: {error}"));
                Err(error)
            }
        }
    }

    /// Deletes a pod, and no other of its name. Whether it was there.
    ///
    /// # Errors
    /// [`Error::Client`].
    pub(super) async fn delete_one(&self, key: &ObjectKey, pod: &Pod) -> Result<bool, Error> {
        let preconditions = Some(Preconditions { uid: pod.metadata.uid.clone(), resource_version: None });
        let options = DeleteOptions { preconditions, ..DeleteOptions::default() };
        match self.client.delete::<Pod>(pod.namespace(), pod.name(), &options).await {
            Ok(()) => {
                self.expectations.deleted(key, pod.uid());
                Ok(true)
            }
            Err(error) if error.is_not_found() || error.is_conflict() => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

/// Makes calls in batches of 1, 2, 4, …, so that a workload whose pods are all refused does not flood the API.
///
/// # Errors
/// That of the first call that failed; the batches after it are not begun.
pub(super) async fn slow_start<F: Future<Output = Result<(), Error>>>(mut calls: Vec<F>) -> Result<(), Error> {
    let mut batch = 1;
    while !calls.is_empty() {
        let later = calls.split_off(batch.min(calls.len()));
        let results: Vec<Result<(), Error>> = stream::iter(calls).buffer_unordered(PARALLEL).collect().await;
        results.into_iter().collect::<Result<(), Error>>()?;
        (calls, batch) = (later, batch * 2);
    }
    Ok(())
}

/// Whether a create was refused because its namespace is going away.
pub(super) fn is_namespace_terminating(error: &ClientError) -> bool {
    error.api().is_some_and(|error| error.details.causes.iter().any(|cause| cause.reason == "NamespaceTerminating"))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn batches_double_until_one_fails() {
        let begun = AtomicUsize::new(0);
        let call = |fails: bool| {
            let begun = &begun;
            async move {
                begun.fetch_add(1, Ordering::Relaxed);
                if fails { Err(Error::TimedOut) } else { Ok(()) }
            }
        };
        assert!(slow_start((0..10).map(|_| call(false)).collect()).await.is_ok());
        assert_eq!(begun.swap(0, Ordering::Relaxed), 10);
        assert!(slow_start((0..10).map(|at| call(at == 1)).collect()).await.is_err());
        assert_eq!(begun.load(Ordering::Relaxed), 3, "the second batch had two, the third was not begun");
    }
}
