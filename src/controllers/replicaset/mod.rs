//! ReplicaSet and ReplicationController: keeps the wanted number of pods. It follows upstream's `controller/replicaset`.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::{Pod, ReplicationController};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::owners;
use super::pod_control::{PodControl, STALE};
use super::{Context, Controller, Error, Queue, Requeue, Seen, Watches, pods, status};
use crate::client::ObjectKey;
use crate::client::informer::{BY_CONTROLLER, Informer, by_controller};
use crate::rt::clock::SharedClock;

mod kind;
mod plan;

use kind::{Failure, Replicated};
use plan::Action;

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
    control: PodControl,
    clock: SharedClock,
}

impl<K: Replicated> ReplicaController<K> {
    fn new(context: &Context) -> Self {
        let sets = context.config.informers.of::<K>();
        sets.add_index(BY_CONTROLLER, by_controller);
        Self { sets, control: PodControl::new(context, K::COMPONENT), clock: Arc::clone(&context.config.clock) }
    }

    /// The active pods of all sets that have the same controller, a Deployment, as this one.
    fn related(&self, set: &K, active: &[Arc<Pod>]) -> Vec<Arc<Pod>> {
        let Some(owner) = owners::controller_of(set.metadata()) else { return active.to_vec() };
        let siblings = self.sets.by_index(BY_CONTROLLER, &owner.uid);
        let uids = siblings.iter().filter_map(|sibling| sibling.metadata().uid.as_deref());
        uids.flat_map(|uid| self.control.pods.by_index(BY_CONTROLLER, uid)).filter(|pod| pods::is_active(pod)).collect()
    }

    /// Creates and deletes pods; what fails is also said in the condition ReplicaFailure.
    async fn manage(&self, key: &ObjectKey, set: &K, owned: &[Arc<Pod>]) -> Result<(), (Failure, Error)> {
        let active: Vec<Arc<Pod>> = owned.iter().filter(|pod| pods::is_active(pod)).cloned().collect();
        let failure = |reason| move |error: Error| (Failure { reason, message: error.to_string() }, error);
        let action = plan::manage(set.replicas(), &active, &self.related(set, &active), self.clock.now());
        match action {
            Action::Nothing => Ok(()),
            Action::Create(count) => self.create(key, set, count).await.map_err(failure("FailedCreate")),
            Action::Delete(pods) => self.control.delete(key, set, &pods).await.map_err(failure("FailedDelete")),
        }
    }

    async fn create(&self, key: &ObjectKey, set: &K, count: usize) -> Result<(), Error> {
        let Some(template) = set.template() else { return Ok(()) };
        let pods = vec![plan::new_pod(set, template); count];
        self.control.create(key, set, &pods).await
    }
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
        self.control.watch(watches, &self.sets, K::selector, Duration::ZERO);
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Requeue, Error> {
        // The revision is read before the objects: they are at least as new.
        let revision = self.control.pods.revision();
        let Some(set) = self.sets.get(&key.namespace, &key.name) else {
            self.control.expectations.forget(key);
            return Ok(Requeue::Done);
        };
        let invalid = |message| Error::Invalid { object: format!("{} {key}", K::KIND), message };
        let selector = set.selector().map_err(invalid)?;
        let is_fresh = self.control.is_fresh(key, revision, &*set);
        // A pod that ended already is not worth adopting.
        let is_meant = |pod: &Pod| owners::controller_of(&pod.metadata).is_some() || pods::is_active(pod);
        let owned = self.control.claim(&*set, &selector, is_meant).await?;
        let managed = match (is_fresh, &set.metadata().deletion_timestamp) {
            (true, None) => self.manage(key, &set, &owned).await,
            _ => Ok(()),
        };
        let (failure, error) = managed.err().unzip();
        let now = self.clock.now();
        let (counts, next_available) = plan::count(&*set, &owned, now);
        let new_status = set.new_status(counts, failure, Time(now));
        status::write(&self.control.client, &*set, set.old_status(), &new_status).await?;
        match (error, next_available) {
            (Some(error), _) => Err(error),
            (None, Some(wait)) => Ok(Requeue::After(wait)),
            (None, None) if is_fresh => Ok(Requeue::Done),
            (None, None) => Ok(Requeue::After(STALE)),
        }
    }
}
