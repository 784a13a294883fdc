//! StatefulSet: pods with names, and claims, that stay. It follows upstream's `controller/statefulset`.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Value, json};

use super::history::{self, Histories, REVISION_HASH, name_of};
use super::pod_control::{PodControl, STALE, is_namespace_terminating, slow_start};
use super::{Context, Controller, Error, Queue, Requeue, Seen, Watches, status};
use crate::api::selector::label::Selector;
use crate::client::informer::Informer;
use crate::client::recorder::{EventType, reference};
use crate::client::{ApiObject, ClientError, ObjectKey, PatchKind};
use crate::rt::clock::SharedClock;

mod claims;
mod plan;
mod pod;

use plan::{Observed, Plan, Revision, Step, Task, Why, plan};

const COMPONENT: &str = "statefulset-controller";

/// The controller of StatefulSets.
pub(super) fn stateful_set(context: &Context) -> Arc<dyn Controller> {
    Arc::new(StatefulSetController {
        sets: context.config.informers.of(),
        claims: context.config.informers.of(),
        histories: Histories::new(context, COMPONENT),
        control: PodControl::new(context, COMPONENT),
        clock: Arc::clone(&context.config.clock),
    })
}

struct StatefulSetController {
    sets: Arc<Informer<StatefulSet>>,
    claims: Arc<Informer<PersistentVolumeClaim>>,
    histories: Histories,
    control: PodControl,
    clock: SharedClock,
}

fn selector(set: &StatefulSet) -> Result<Selector, String> {
    Selector::from_typed(set.spec.as_ref().map(|spec| &spec.selector))
}

/// What a revision of the set stands for.
fn revision(of: &ControllerRevision) -> Result<Revision, Error> {
    let invalid = || Error::Invalid {
        object: format!("ControllerRevision {}", ObjectKey::of(of)),
        message: "holds no pod template".to_owned(),
    };
    Ok(Revision { name: name_of(&of.metadata).to_owned(), template: history::template_of(of).ok_or_else(invalid)? })
}

/// The revisions beyond the history limit that nothing is of: `truncateHistory`.
fn surplus(set: &StatefulSet, mut revisions: Vec<Arc<ControllerRevision>>, live: &HashSet<&str>) -> Vec<Arc<ControllerRevision>> {
    let limit = set.spec.as_ref().and_then(|spec| spec.revision_history_limit).unwrap_or(10);
    revisions.retain(|revision| !live.contains(name_of(&revision.metadata)));
    let excess = revisions.len().saturating_sub(usize::try_from(limit).unwrap_or(usize::MAX));
    revisions.truncate(excess);
    revisions
}

impl StatefulSetController {
    fn event(&self, set: &StatefulSet, kind: EventType, reason: &str, message: String) {
        self.control.recorder.event(&reference(set), kind, reason, message);
    }

    /// `recordPodEvent`.
    fn say(&self, set: &StatefulSet, verb: &str, pod: &str, outcome: Result<(), &dyn std::fmt::Display>) {
        let (mut reason, name) = (verb.to_owned(), name_of(&set.metadata));
        reason[..1].make_ascii_uppercase();
        let what = format!("{verb} Pod {pod} in StatefulSet {name}");
        match outcome {
            Ok(()) => self.event(set, EventType::Normal, &format!("Successful{reason}"), format!("{what} successful")),
            Err(error) => {
                self.event(set, EventType::Warning, &format!("Failed{reason}"), format!("{what} failed error: {error}"));
            }
        }
    }

    /// Makes sure that the present template has a revision; `None` if its name was taken and another will be tried.
    async fn establish(
        &self,
        set: &StatefulSet,
        revisions: &[Arc<ControllerRevision>],
    ) -> Result<Option<Arc<ControllerRevision>>, Error> {
        let template = set.spec.as_ref().map(|spec| spec.template.clone()).unwrap_or_default();
        let (status, of) = (set.status.as_ref(), (&template, REVISION_HASH));
        self.histories.establish(set, revisions, of, status, |status| &mut status.collision_count).await
    }

    async fn perform(&self, key: &ObjectKey, set: &StatefulSet, stages: Vec<Vec<Task>>) -> Result<(), Error> {
        for stage in stages {
            slow_start(stage.into_iter().map(|task| self.perform_task(key, set, task)).collect()).await?;
        }
        Ok(())
    }

    async fn perform_task(&self, key: &ObjectKey, set: &StatefulSet, task: Task) -> Result<(), Error> {
        for step in task {
            match step {
                Step::CreateClaim(pod, claim) => self.create_claim(set, &pod, &claim).await?,
                Step::AwaitClaim(pod, claim) => {
                    let message = format!("pvc {claim} is being deleted");
                    self.say(set, "create", &pod, Err(&message));
                    return Err(Error::Incomplete(message));
                }
                Step::OwnClaim(claim, owners) => {
                    let (uid, revision) = (&claim.metadata.uid, &claim.metadata.resource_version);
                    let meta = json!({"uid": uid, "resourceVersion": revision, "ownerReferences": owners});
                    let patch = json!({"metadata": meta});
                    self.patch::<PersistentVolumeClaim>(&claim.metadata, PatchKind::Merge, &patch).await?;
                }
                Step::CreatePod(pod) => self.create_pod(key, set, &pod).await?,
                Step::CorrectPod(pod, patch) => {
                    let corrected = self.patch::<Pod>(&pod.metadata, PatchKind::Strategic, &patch).await;
                    self.say(set, "update", name_of(&pod.metadata), corrected.as_ref().copied().map_err(|error| error as _));
                    corrected?;
                }
                Step::DeletePod(pod, why) => self.delete_pod(key, set, &pod, why).await?,
            }
        }
        Ok(())
    }

    async fn patch<K: ApiObject>(&self, meta: &ObjectMeta, kind: PatchKind, patch: &Value) -> Result<(), ClientError> {
        let namespace = meta.namespace.as_deref().unwrap_or("");
        self.control.client.patch::<K>(namespace, name_of(meta), None, kind, patch).await.map(drop)
    }

    async fn create_claim(&self, set: &StatefulSet, pod: &str, claim: &PersistentVolumeClaim) -> Result<(), Error> {
        let (of_set, name) = (name_of(&set.metadata), name_of(&claim.metadata));
        match self.control.client.create(claim).await {
            Ok(_) => {
                let message = format!("create Claim {name} Pod {pod} in StatefulSet {of_set} success");
                self.event(set, EventType::Normal, "SuccessfulCreate", message);
                Ok(())
            }
            // The cache does not show it yet, and the next try sees whether it can be used; or the set is about to go.
            Err(error) if error.is_already_exists() || is_namespace_terminating(&error) => Err(error.into()),
            Err(error) => {
                let message = format!("create Claim {name} for Pod {pod} in StatefulSet {of_set} failed error: {error}");
                self.event(set, EventType::Warning, "FailedCreate", message);
                self.say(set, "create", pod, Err(&format!("failed to create PVC {name}: {error}")));
                Err(error.into())
            }
        }
    }

    async fn create_pod(&self, key: &ObjectKey, set: &StatefulSet, pod: &Pod) -> Result<(), Error> {
        match self.control.client.create(pod).await {
            Ok(created) => {
                self.control.expectations.created(key, &created);
                self.say(set, "create", name_of(&pod.metadata), Ok(()));
                Ok(())
            }
            Err(error) if is_namespace_terminating(&error) => Ok(()),
            Err(error) => {
                if !error.is_already_exists() {
                    self.say(set, "create", name_of(&pod.metadata), Err(&error));
                }
                Err(error.into())
            }
        }
    }

    async fn delete_pod(&self, key: &ObjectKey, set: &StatefulSet, pod: &Pod, why: Why) -> Result<(), Error> {
        let name = name_of(&pod.metadata);
        let notice = match why {
            Why::Failed => Some((EventType::Warning, "RecreatingFailedPod", "failed")),
            Why::Succeeded => Some((EventType::Normal, "RecreatingTerminatedPod", "terminated")),
            Why::Unwanted => None,
        };
        if let Some((kind, reason, sort)) = notice {
            self.event(set, kind, reason, format!("StatefulSet {key} is recreating {sort} Pod {name}"));
        }
        match self.control.delete_one(key, pod).await {
            Ok(was_there) => {
                if was_there {
                    self.say(set, "delete", name, Ok(()));
                }
                Ok(())
            }
            Err(error) => {
                self.say(set, "delete", name, Err(&error));
                Err(error)
            }
        }
    }
}

#[async_trait]
impl Controller for StatefulSetController {
    fn name(&self) -> &'static str {
        "statefulset"
    }

    fn watch(&self, watches: &mut Watches) {
        watches.on(&self.sets, |seen: Seen<'_, StatefulSet>, queue: &Queue| {
            seen.newest().into_iter().for_each(|set| queue.add(ObjectKey::of(set)));
        });
        self.control.watch(watches, &self.sets, selector, Duration::ZERO);
        self.histories.watch(watches, "StatefulSet");
        let sets = Arc::clone(&self.sets);
        // A claim that is gone is made again, and may have been what a new pod waited for.
        watches.on(&self.claims, move |seen: Seen<'_, PersistentVolumeClaim>, queue: &Queue| {
            let Some(gone) = seen.old.filter(|_| seen.new.is_none()) else { return };
            let sets = sets.in_namespace(gone.metadata.namespace.as_deref().unwrap_or(""));
            let concerned = sets.iter().filter(|set| claims::may_be_of(set, name_of(&gone.metadata)));
            concerned.for_each(|set| queue.add(ObjectKey::of(&**set)));
        });
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Requeue, Error> {
        // The revision is read before the objects: they are at least as new.
        let cache_revision = self.control.pods.revision();
        let Some(set) = self.sets.get(&key.namespace, &key.name) else {
            self.control.expectations.forget(key);
            return Ok(Requeue::Done);
        };
        if set.metadata.deletion_timestamp.is_some() {
            return Ok(Requeue::Done);
        }
        let selector = selector(&set).map_err(|message| Error::Invalid { object: format!("StatefulSet {key}"), message })?;
        if !self.control.is_fresh(key, cache_revision, &*set) {
            return Ok(Requeue::After(STALE));
        }
        let revisions = self.histories.claim(&*set, &selector).await?;
        let pods = self.control.claim(&*set, &selector, |pod| pod::ordinal(&set, name_of(&pod.metadata)).is_some()).await?;
        let Some(update) = self.establish(&set, &revisions).await? else {
            return Err(Error::Incomplete(format!("the hash of the template of {key} is taken; trying another")));
        };
        let shown = set.status.as_ref().and_then(|status| status.current_revision.as_deref()).unwrap_or("");
        let current = revisions.iter().find(|revision| name_of(&revision.metadata) == shown).unwrap_or(&update);
        let (current, update) = (revision(current)?, revision(&update)?);
        let claim = |name: &str| self.claims.get(&key.namespace, name);
        let Plan { stages, status, look_again } = plan(&Observed {
            set: &set,
            current: &current,
            update: &update,
            pods: pods.clone(),
            claim: &claim,
            now: self.clock.now(),
        });
        let performed = self.perform(key, &set, stages).await;
        status::write(&self.control.client, &*set, set.status.as_ref(), &status).await?;
        performed?;
        let mut live: HashSet<&str> = pods.iter().map(|pod| pod::revision_of(pod)).collect();
        live.extend([current.name.as_str(), update.name.as_str()]);
        self.histories.delete(&surplus(&set, revisions, &live)).await?;
        Ok(look_again.map_or(Requeue::Done, Requeue::After))
    }
}
