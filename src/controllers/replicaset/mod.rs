//! ReplicaSet and ReplicationController: keeps the wanted number of pods. It follows upstream's `controller/replicaset`.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::stream::{self, StreamExt};
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::{Pod, ReplicationController};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::expectations::Expectations;
use super::owners::{self, Claim};
use super::{Context, Controller, Error, Queue, Requeue, Seen, Watches, pods, status};
use crate::api::selector::label::Selector;
use crate::client::informer::{BY_CONTROLLER, Informer, by_controller, orphans};
use crate::client::recorder::{EventType, Recorder, reference};
use crate::client::{Client, ClientError, DeleteOptions, ObjectKey, Preconditions};
use crate::rt::clock::SharedClock;

mod kind;
mod plan;

use kind::{Failure, Replicated};
use plan::Action;
pub(super) use plan::slow_start;

/// Requests of one reconcile that are on their way at one time.
const PARALLEL: usize = 64;
/// After this time a reconcile that waits for the cache looks again, whatever the watch says.
const STALE: Duration = Duration::from_secs(300);

/// The controller of ReplicaSets.
pub(super) fn replica_set(context: &Context) -> Arc<dyn Controller> {
    Arc::new(ReplicaController::<ReplicaSet>::new(context))
}

/// The controller of ReplicationControllers.
pub(super) fn replication_controller(context: &Context) -> Arc<dyn Controller> {
    Arc::new(ReplicaController::<ReplicationController>::new(context))
}

struct ReplicaController<K> {
    sets: Arc<Informer<K>>,
    pods: Arc<Informer<Pod>>,
    client: Client,
    recorder: Recorder,
    clock: SharedClock,
    expectations: Expectations,
}

impl<K: Replicated> ReplicaController<K> {
    fn new(context: &Context) -> Self {
        let (sets, pods) = (context.config.informers.of::<K>(), context.config.informers.of::<Pod>());
        sets.add_index(BY_CONTROLLER, by_controller);
        pods.add_index(BY_CONTROLLER, by_controller);
        Self {
            sets,
            pods,
            client: context.client(K::COMPONENT),
            recorder: context.recorder(K::COMPONENT),
            clock: Arc::clone(&context.config.clock),
            expectations: Expectations::default(),
        }
    }

    /// The pods that the set owns after adopting and releasing.
    async fn claim(&self, set: &K, selector: &Selector) -> Result<Vec<Arc<Pod>>, Error> {
        let meta = set.metadata();
        let namespace = meta.namespace.as_deref().unwrap_or("");
        let mut candidates = self.pods.by_index(BY_CONTROLLER, meta.uid.as_deref().unwrap_or(""));
        candidates.extend(self.pods.by_index(BY_CONTROLLER, &orphans(namespace)).into_iter().filter(|pod| pods::is_active(pod)));
        let (mut owned, mut may_adopt) = (Vec::new(), false);
        for pod in candidates {
            match owners::claim(meta, &pod.metadata, selector.matches(&pod.metadata.labels)) {
                Claim::Keep => owned.push(pod),
                Claim::Release => owners::release(&self.client, set, &*pod).await?,
                Claim::Adopt => {
                    if !may_adopt {
                        owners::check_may_adopt(&self.client, set).await?;
                        may_adopt = true;
                    }
                    match owners::adopt(&self.client, set, &*pod).await {
                        Err(Error::Client(error)) if error.is_not_found() => {}
                        other => {
                            other?;
                            owned.push(pod);
                        }
                    }
                }
                Claim::Ignore => {}
            }
        }
        Ok(owned)
    }

    /// The active pods of all sets that have the same controller, a Deployment, as this one.
    fn related(&self, set: &K, active: &[Arc<Pod>]) -> Vec<Arc<Pod>> {
        let Some(owner) = owners::controller_of(set.metadata()) else { return active.to_vec() };
        let siblings = self.sets.by_index(BY_CONTROLLER, &owner.uid);
        let uids = siblings.iter().filter_map(|sibling| sibling.metadata().uid.as_deref());
        uids.flat_map(|uid| self.pods.by_index(BY_CONTROLLER, uid)).filter(|pod| pods::is_active(pod)).collect()
    }

    /// Creates and deletes pods; what fails is also said in the condition ReplicaFailure.
    async fn manage(&self, key: &ObjectKey, set: &K, owned: &[Arc<Pod>]) -> Result<(), (Failure, Error)> {
        let active: Vec<Arc<Pod>> = owned.iter().filter(|pod| pods::is_active(pod)).cloned().collect();
        let failure = |reason| move |error: Error| (Failure { reason, message: error.to_string() }, error);
        let action = plan::manage(set.replicas(), &active, &self.related(set, &active), self.clock.now());
        match action {
            Action::Nothing => Ok(()),
            Action::Create(count) => self.create(key, set, count).await.map_err(failure("FailedCreate")),
            Action::Delete(pods) => self.delete(key, set, pods).await.map_err(failure("FailedDelete")),
        }
    }

    async fn create(&self, key: &ObjectKey, set: &K, count: usize) -> Result<(), Error> {
        let Some(template) = set.template() else { return Ok(()) };
        let pod = plan::new_pod(set, template);
        for batch in plan::slow_start(count) {
            let calls = stream::iter(0..batch).map(|_| self.create_one(key, set, &pod));
            let results: Vec<Result<(), Error>> = calls.buffer_unordered(PARALLEL).collect().await;
            results.into_iter().collect::<Result<(), Error>>()?;
        }
        Ok(())
    }

    async fn create_one(&self, key: &ObjectKey, set: &K, pod: &Pod) -> Result<(), Error> {
        match self.client.create(pod).await {
            Ok(created) => {
                self.expectations.created(key, &created);
                let message = format!("Created pod: {}", created.metadata.name.as_deref().unwrap_or(""));
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

    async fn delete(&self, key: &ObjectKey, set: &K, pods: Vec<Arc<Pod>>) -> Result<(), Error> {
        let calls = stream::iter(pods).map(|pod| self.delete_one(key, set, pod));
        let results: Vec<Result<(), Error>> = calls.buffer_unordered(PARALLEL).collect().await;
        results.into_iter().collect()
    }

    async fn delete_one(&self, key: &ObjectKey, set: &K, pod: Arc<Pod>) -> Result<(), Error> {
        let meta = &pod.metadata;
        let (namespace, name) = (meta.namespace.as_deref().unwrap_or(""), meta.name.as_deref().unwrap_or(""));
        let preconditions = Some(Preconditions { uid: meta.uid.clone(), resource_version: None });
        let options = DeleteOptions { preconditions, ..DeleteOptions::default() };
        match self.client.delete::<Pod>(namespace, name, &options).await {
            Ok(()) => {
                self.expectations.deleted(key, meta.uid.as_deref().unwrap_or(""));
                self.recorder.event(&reference(set), EventType::Normal, "SuccessfulDelete", format!("Deleted pod: {name}"));
                Ok(())
            }
            Err(error) if error.is_not_found() || error.is_conflict() => Ok(()),
            Err(error) => {
                self.recorder.event(&reference(set), EventType::Warning, "FailedDelete", format!("Error deleting: {error}"));
                Err(error.into())
            }
        }
    }
}

/// Whether a create was refused because its namespace is going away.
pub(super) fn is_namespace_terminating(error: &ClientError) -> bool {
    error.api().is_some_and(|error| error.details.causes.iter().any(|cause| cause.reason == "NamespaceTerminating"))
}

#[async_trait]
impl<K: Replicated> Controller for ReplicaController<K> {
    fn name(&self) -> &'static str {
        K::NAME
    }

    fn watch(&self, watches: &mut Watches) {
        watches.on(&self.sets, |seen: Seen<'_, K>, queue: &Queue| {
            seen.newest().into_iter().for_each(|set| queue.add(ObjectKey::of(set)));
        });
        let sets = Arc::clone(&self.sets);
        watches.on(&self.pods, move |seen: Seen<'_, Pod>, queue: &Queue| {
            for pod in seen.states() {
                if let Some(owner) = owners::controller_of(&pod.metadata).filter(|owner| owner.kind == K::KIND) {
                    queue.add(ObjectKey::new(pod.metadata.namespace.as_deref().unwrap_or(""), &owner.name));
                }
            }
            let orphan = seen.new.filter(|pod| owners::controller_of(&pod.metadata).is_none() && pods::is_active(pod));
            for set in orphan.into_iter().flat_map(|pod| would_adopt(&sets, pod)) {
                queue.add(ObjectKey::of(&*set));
            }
        });
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Requeue, Error> {
        // The revision is read before the objects: they are at least as new.
        let revision = self.pods.revision();
        let Some(set) = self.sets.get(&key.namespace, &key.name) else {
            self.expectations.forget(key);
            return Ok(Requeue::Done);
        };
        let invalid = |message| Error::Invalid { object: format!("{} {key}", K::KIND), message };
        let selector = set.selector().map_err(invalid)?;
        let known = self.pods.by_index(BY_CONTROLLER, set.metadata().uid.as_deref().unwrap_or(""));
        let is_fresh = self.expectations.are_met(key, revision, known.iter().map(|pod| &**pod));
        let owned = self.claim(&set, &selector).await?;
        let managed = match (is_fresh, &set.metadata().deletion_timestamp) {
            (true, None) => self.manage(key, &set, &owned).await,
            _ => Ok(()),
        };
        let (failure, error) = managed.err().unzip();
        let now = self.clock.now();
        let (counts, next_available) = plan::count(&*set, &owned, now);
        let new_status = set.new_status(counts, failure, Time(now));
        status::write(&self.client, &*set, set.old_status(), &new_status).await?;
        match (error, next_available) {
            (Some(error), _) => Err(error),
            (None, Some(wait)) => Ok(Requeue::After(wait)),
            (None, None) if is_fresh => Ok(Requeue::Done),
            (None, None) => Ok(Requeue::After(STALE)),
        }
    }
}

/// The sets of the pod's namespace whose selectors match it.
fn would_adopt<K: Replicated>(sets: &Informer<K>, pod: &Pod) -> Vec<Arc<K>> {
    let mut found = sets.in_namespace(pod.metadata.namespace.as_deref().unwrap_or(""));
    found.retain(|set| set.selector().is_ok_and(|selector| !selector.is_everything() && selector.matches(&pod.metadata.labels)));
    found
}
