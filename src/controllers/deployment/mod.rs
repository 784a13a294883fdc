//! Deployment: rolls ReplicaSets. It follows upstream's `controller/deployment`.

use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use serde_json::json;

use super::{Context, Controller, Error, Queue, Requeue, Seen, Watches, owners, pods, status};
use crate::api::selector::label::Selector;
use crate::client::informer::{BY_CONTROLLER, Informer, by_controller};
use crate::client::recorder::{EventType, Recorder, reference};
use crate::client::{Client, DeleteOptions, ObjectKey, PatchKind, Preconditions};
use crate::rt::clock::SharedClock;

mod conditions;
mod plan;
mod sets;
mod strategy;

use conditions::{Conditions, PROGRESSING};
use plan::{Observed, plan};
use sets::Set;

const COMPONENT: &str = "deployment-controller";

/// The controller of Deployments.
pub(super) fn deployment(context: &Context) -> Arc<dyn Controller> {
    let informers = &context.config.informers;
    let (sets, pods) = (informers.of::<ReplicaSet>(), informers.of::<Pod>());
    sets.add_index(BY_CONTROLLER, by_controller);
    pods.add_index(BY_CONTROLLER, by_controller);
    Arc::new(DeploymentController {
        deployments: informers.of(),
        sets,
        pods,
        client: context.client(COMPONENT),
        recorder: context.recorder(COMPONENT),
        clock: Arc::clone(&context.config.clock),
    })
}

struct DeploymentController {
    deployments: Arc<Informer<Deployment>>,
    sets: Arc<Informer<ReplicaSet>>,
    pods: Arc<Informer<Pod>>,
    client: Client,
    recorder: Recorder,
    clock: SharedClock,
}

impl DeploymentController {
    /// The sets that the Deployment owns after adopting and releasing.
    async fn claim(&self, deployment: &Deployment, selector: &Selector) -> Result<Vec<Arc<ReplicaSet>>, Error> {
        let is_meant = |set: &ReplicaSet| selector.matches(&set.metadata.labels);
        owners::claim_all(&self.client, deployment, &self.sets, is_meant, None).await
    }

    /// Whether pods run that belong to another set than the one with the present template.
    fn old_pods_run(&self, deployment: &Deployment, owned: &[Arc<ReplicaSet>]) -> bool {
        let (new, _) = sets::split(deployment, owned.to_vec());
        let new_uid = new.as_ref().and_then(|set| set.object.metadata.uid.as_deref());
        let old = owned.iter().filter_map(|set| set.metadata.uid.as_deref()).filter(|uid| Some(*uid) != new_uid);
        old.flat_map(|uid| self.pods.by_index(BY_CONTROLLER, uid)).any(|pod| !pods::has_ended(&pod))
    }

    async fn create_set(&self, deployment: &Deployment, set: &Set, status: &mut DeploymentStatus) -> Result<(), Error> {
        let object = set.to_object();
        match self.client.create(&object).await {
            Ok(_) => {
                self.say_scaled(deployment, set);
                Ok(())
            }
            Err(error) if error.is_already_exists() => self.resolve_collision(deployment, &object).await,
            Err(error) => {
                let message = format!("Failed to create new replica set {:?}: {error}", set.name());
                self.recorder.event(&reference(deployment), EventType::Warning, "ReplicaSetCreateError", message.clone());
                let mut conditions = Conditions { status: std::mem::take(status), now: self.clock.now() };
                if conditions::deadline(deployment).is_some() {
                    conditions.set(PROGRESSING, "False", "ReplicaSetCreateError", message);
                }
                *status = conditions.status;
                Err(error.into())
            }
        }
    }

    /// The name is taken: by the very set that is wanted (the cache was stale), or by another, and the hash must change.
    async fn resolve_collision(&self, deployment: &Deployment, wanted: &ReplicaSet) -> Result<(), Error> {
        let (namespace, name) =
            (wanted.metadata.namespace.as_deref().unwrap_or(""), wanted.metadata.name.as_deref().unwrap_or(""));
        let live: ReplicaSet = self.client.get(namespace, name).await?;
        let is_ours = owners::controller_of(&live.metadata).map(|owner| &owner.uid) == deployment.metadata.uid.as_ref();
        let template = |set: &ReplicaSet| set.spec.as_ref().and_then(|spec| spec.template.clone()).unwrap_or_default();
        if is_ours && sets::same_template(&template(&live), &template(wanted)) {
            return Ok(());
        }
        let mut status = deployment.status.clone().unwrap_or_default();
        status.collision_count = Some(status.collision_count.unwrap_or(0) + 1);
        status::write(&self.client, deployment, deployment.status.as_ref(), &status).await?;
        Err(Error::Incomplete(format!("the hash of the template of {namespace}/{name} is taken; trying another")))
    }

    async fn change_set(&self, deployment: &Deployment, set: &Set) -> Result<(), Error> {
        let Some(patch) = set.patch() else { return Ok(()) };
        let namespace = set.object.metadata.namespace.as_deref().unwrap_or("");
        self.client.patch::<ReplicaSet>(namespace, set.name(), None, PatchKind::Merge, &patch).await?;
        self.say_scaled(deployment, set);
        Ok(())
    }

    fn say_scaled(&self, deployment: &Deployment, set: &Set) {
        let (from, to) = (set.replicas_before(), set.replicas);
        if from != to {
            let direction = if to > from { "up" } else { "down" };
            let message = format!("Scaled {direction} replica set {} from {from} to {to}", set.name());
            self.recorder.event(&reference(deployment), EventType::Normal, "ScalingReplicaSet", message);
        }
    }

    async fn delete_set(&self, set: &ReplicaSet) -> Result<(), Error> {
        let meta = &set.metadata;
        let (namespace, name) = (meta.namespace.as_deref().unwrap_or(""), meta.name.as_deref().unwrap_or(""));
        let preconditions = Preconditions { uid: meta.uid.clone(), resource_version: meta.resource_version.clone() };
        let options = DeleteOptions { preconditions: Some(preconditions), ..DeleteOptions::default() };
        match self.client.delete::<ReplicaSet>(namespace, name, &options).await {
            Err(error) if !error.is_not_found() => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Shows the revision in the Deployment's annotation; the object as it then stands.
    async fn annotate(&self, deployment: &Arc<Deployment>, revision: Option<i64>) -> Result<Arc<Deployment>, Error> {
        let meta = &deployment.metadata;
        let shown = meta.annotations.as_ref().and_then(|annotations| annotations.get(sets::REVISION));
        let Some(revision) = revision.map(|revision| revision.to_string()).filter(|revision| Some(revision) != shown) else {
            return Ok(Arc::clone(deployment));
        };
        let annotations = json!({sets::REVISION: revision});
        let patch = json!({"metadata": {"resourceVersion": meta.resource_version, "annotations": annotations}});
        let (namespace, name) = (meta.namespace.as_deref().unwrap_or(""), meta.name.as_deref().unwrap_or(""));
        Ok(Arc::new(self.client.patch(namespace, name, None, PatchKind::Merge, &patch).await?))
    }
}

#[async_trait]
impl Controller for DeploymentController {
    fn name(&self) -> &'static str {
        "deployment"
    }

    fn watch(&self, watches: &mut Watches) {
        watches.on(&self.deployments, |seen: Seen<'_, Deployment>, queue: &Queue| {
            seen.newest().into_iter().for_each(|deployment| queue.add(ObjectKey::of(deployment)));
        });
        let deployments = Arc::clone(&self.deployments);
        watches.on(&self.sets, move |seen: Seen<'_, ReplicaSet>, queue: &Queue| {
            for set in seen.states() {
                let namespace = set.metadata.namespace.as_deref().unwrap_or("");
                if let Some(owner) = owners::controller_of(&set.metadata).filter(|owner| owner.kind == "Deployment") {
                    queue.add(ObjectKey::new(namespace, &owner.name));
                }
            }
            let orphan = seen.new.filter(|set| owners::controller_of(&set.metadata).is_none());
            for deployment in orphan.into_iter().flat_map(|set| would_adopt(&deployments, set)) {
                queue.add(ObjectKey::of(&*deployment));
            }
        });
        let (deployments, sets) = (Arc::clone(&self.deployments), Arc::clone(&self.sets));
        watches.on(&self.pods, move |seen: Seen<'_, Pod>, queue: &Queue| {
            let Some(pod) = seen.newest().filter(|pod| seen.new.is_none() || pods::has_ended(pod)) else { return };
            let namespace = pod.metadata.namespace.as_deref().unwrap_or("");
            let set = owners::controller_of(&pod.metadata).and_then(|owner| sets.get(namespace, &owner.name));
            let owner = set.as_ref().and_then(|set| owners::controller_of(&set.metadata));
            if let Some(deployment) = owner.and_then(|owner| deployments.get(namespace, &owner.name))
                && strategy::is_recreate(&deployment)
            {
                queue.add(ObjectKey::of(&*deployment));
            }
        });
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Requeue, Error> {
        let Some(deployment) = self.deployments.get(&key.namespace, &key.name) else { return Ok(Requeue::Done) };
        let invalid = |message| Error::Invalid { object: format!("Deployment {key}"), message };
        let selector = Selector::from_typed(deployment.spec.as_ref().map(|spec| &spec.selector)).map_err(invalid)?;
        if selector.is_everything() {
            let message = "This deployment is selecting all pods. A non-empty selector is required.";
            self.recorder.event(&reference(&*deployment), EventType::Warning, "SelectingAll", message);
            return Ok(Requeue::Done);
        }
        let owned = self.claim(&deployment, &selector).await?;
        let old_pods_run = strategy::is_recreate(&deployment) && self.old_pods_run(&deployment, &owned);
        let mut plan = plan(Observed { deployment: &deployment, sets: owned, old_pods_run, now: self.clock.now() });
        let created = match &plan.create {
            Some(set) => self.create_set(&deployment, set, &mut plan.status).await,
            None => Ok(()),
        };
        if created.is_ok() {
            for set in &plan.change {
                self.change_set(&deployment, set).await?;
            }
            for set in &plan.delete {
                self.delete_set(set).await?;
            }
        }
        let present = self.annotate(&deployment, plan.revision).await?;
        status::write(&self.client, &*present, deployment.status.as_ref(), &plan.status).await?;
        created?;
        Ok(plan.look_again.map_or(Requeue::Done, Requeue::After))
    }
}

/// The Deployments of the set's namespace whose selectors match it.
fn would_adopt(deployments: &Informer<Deployment>, set: &ReplicaSet) -> Vec<Arc<Deployment>> {
    let mut found = deployments.in_namespace(set.metadata.namespace.as_deref().unwrap_or(""));
    found.retain(|deployment| {
        let selector = Selector::from_typed(deployment.spec.as_ref().map(|spec| &spec.selector));
        selector.is_ok_and(|selector| !selector.is_everything() && selector.matches(&set.metadata.labels))
    });
    found
}
