//! DaemonSet: a pod on every node that fits. It follows upstream's `controller/daemon`.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet};
use k8s_openapi::api::core::v1::{Node, Pod};

use super::history::{Histories, POD_HASH, name_of};
use super::pod_control::{PodControl, STALE};
use super::{Context, Controller, Error, Queue, Requeue, Seen, Watches, status};
use crate::api::selector::label::Selector;
use crate::client::informer::Informer;
use crate::client::recorder::{EventType, reference};
use crate::client::{Cached, ObjectKey};
use crate::rt::clock::{self, SharedClock};

mod backoff;
mod plan;
mod pod;
mod rolling;

use backoff::Backoff;
use plan::{Ended, Observed, Plan, plan};

const COMPONENT: &str = "daemonset-controller";
/// Most pods that one reconcile creates, and most that it deletes.
const BURST: usize = 250;

/// The controller of DaemonSets.
pub(super) fn daemon_set(context: &Context) -> Arc<dyn Controller> {
    Arc::new(DaemonSetController {
        sets: context.config.informers.of(),
        nodes: context.config.informers.of(),
        histories: Histories::new(context, COMPONENT),
        control: PodControl::new(context, COMPONENT),
        backoff: Backoff::default(),
        clock: Arc::clone(&context.config.clock),
    })
}

struct DaemonSetController {
    sets: Arc<Informer<DaemonSet>>,
    nodes: Arc<Informer<Node>>,
    histories: Histories,
    control: PodControl,
    backoff: Backoff,
    clock: SharedClock,
}

fn selector(set: &DaemonSet) -> Result<Selector, String> {
    Selector::from_typed(set.spec.as_ref().map(|spec| &spec.selector))
}

fn hash_of(revision: &ControllerRevision) -> &str {
    let label = revision.metadata.labels.as_ref().and_then(|labels| labels.get(POD_HASH));
    label.map_or_else(|| name_of(&revision.metadata), String::as_str)
}

/// Old revisions beyond the history limit that no pod is of: `cleanupHistory`.
fn surplus(
    set: &DaemonSet,
    revisions: Vec<Arc<ControllerRevision>>,
    present: &ControllerRevision,
    pods: &[Arc<Pod>],
) -> Vec<Arc<ControllerRevision>> {
    let live: HashSet<&str> = pods.iter().map(|pod| pod::hash_of(pod)).collect();
    let mut old = revisions;
    old.retain(|revision| revision.metadata.name != present.metadata.name);
    let limit = set.spec.as_ref().and_then(|spec| spec.revision_history_limit).unwrap_or(10);
    let excess = old.len().saturating_sub(usize::try_from(limit).unwrap_or(usize::MAX));
    old.retain(|revision| !live.contains(hash_of(revision)));
    old.truncate(excess);
    old
}

/// Adds the sets for which a change of a node matters.
fn on_node(sets: &Informer<DaemonSet>, seen: &Seen<'_, Node>, queue: &Queue) {
    let taints = |node: &Node| node.spec.as_ref().and_then(|spec| spec.taints.clone());
    if let (Some(old), Some(new)) = (seen.old, seen.new)
        && old.metadata.labels == new.metadata.labels
        && taints(old) == taints(new)
    {
        return;
    }
    for set in sets.list() {
        let spec = pod::spec(&set);
        let fit = |node: Option<&Node>| node.map_or(pod::Fit::Leave, |node| pod::fit(&spec, node));
        if fit(seen.old) != fit(seen.new) {
            queue.add(ObjectKey::of(&*set));
        }
    }
}

impl DaemonSetController {
    /// Makes sure that the present template has a revision; `None` if its name was taken and another will be tried.
    async fn establish(
        &self,
        set: &DaemonSet,
        revisions: &[Arc<ControllerRevision>],
    ) -> Result<Option<Arc<ControllerRevision>>, Error> {
        let template = set.spec.as_ref().map(|spec| spec.template.clone()).unwrap_or_default();
        let (status, of) = (set.status.as_ref(), (&template, POD_HASH));
        self.histories.establish(set, revisions, of, status, |status| &mut status.collision_count).await
    }

    /// Says what ended by itself, and lets the delay of its node begin.
    fn say_ended(&self, key: &ObjectKey, set: &DaemonSet, ended: &[Ended]) {
        let now = clock::instant();
        for Ended { pod, node, has_failed } in ended {
            let name = ObjectKey::of(&**pod);
            let (kind, reason, message) = if *has_failed {
                self.backoff.failed(key, set.uid(), observed_generation(set), node, now);
                let message = format!("Found failed daemon pod {name} on node {node}, will try to kill it");
                (EventType::Warning, "FailedDaemonPod", message)
            } else {
                let message = format!("Found succeeded daemon pod {name} on node {node}, will try to delete it");
                (EventType::Normal, "SucceededDaemonPod", message)
            };
            self.control.recorder.event(&reference(set), kind, reason, message);
        }
    }

    async fn perform(&self, key: &ObjectKey, set: &DaemonSet, hash: &str, plan: &Plan) -> Result<(), Error> {
        self.say_ended(key, set, &plan.ended);
        let spec = pod::spec(set);
        let pods: Vec<Pod> = plan.create.iter().take(BURST).map(|node| pod::new(set, &spec, hash, node)).collect();
        let created = self.control.create(key, set, &pods).await;
        let deleted = self.control.delete(key, set, &plan.delete[..plan.delete.len().min(BURST)]).await;
        created.and(deleted)
    }
}

fn observed_generation(set: &DaemonSet) -> i64 {
    set.status.as_ref().and_then(|status| status.observed_generation).unwrap_or(0)
}

#[async_trait]
impl Controller for DaemonSetController {
    fn name(&self) -> &'static str {
        "daemonset"
    }

    fn watch(&self, watches: &mut Watches) {
        watches.on(&self.sets, |seen: Seen<'_, DaemonSet>, queue: &Queue| {
            seen.newest().into_iter().for_each(|set| queue.add(ObjectKey::of(set)));
        });
        self.control.watch(watches, &self.sets, selector, Duration::ZERO);
        self.histories.watch(watches, "DaemonSet");
        let sets = Arc::clone(&self.sets);
        watches.on(&self.nodes, move |seen: Seen<'_, Node>, queue: &Queue| on_node(&sets, &seen, queue));
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Requeue, Error> {
        // The revision is read before the objects: they are at least as new.
        let cache_revision = self.control.pods.revision();
        let Some(set) = self.sets.get(&key.namespace, &key.name) else {
            self.control.expectations.forget(key);
            self.backoff.forget(key);
            return Ok(Requeue::Done);
        };
        // Whether its revisions are still there, nobody knows of a set that is being deleted.
        if set.metadata.deletion_timestamp.is_some() {
            return Ok(Requeue::Done);
        }
        let selector = selector(&set).map_err(|message| Error::Invalid { object: format!("DaemonSet {key}"), message })?;
        if selector.is_everything() {
            let message = "This daemon set is selecting all pods. A non-empty selector is required.";
            self.control.recorder.event(&reference(&*set), EventType::Warning, "SelectingAll", message);
            return Ok(Requeue::Done);
        }
        if !self.control.is_fresh(key, cache_revision, &*set) {
            return Ok(Requeue::After(STALE));
        }
        let revisions = self.histories.claim(&*set, &selector).await?;
        let pods = self.control.claim(&*set, &selector, |_| true).await?;
        let Some(present) = self.establish(&set, &revisions).await? else {
            return Err(Error::Incomplete(format!("the hash of the template of {key} is taken; trying another")));
        };
        let hash = hash_of(&present);
        let waiting = self.backoff.waiting(key, set.uid(), observed_generation(&set), clock::instant());
        let (nodes, now) = (self.nodes.list(), self.clock.now());
        let plan = plan(&Observed { set: &set, nodes, pods: pods.clone(), hash, waiting, now });
        let performed = self.perform(key, &set, hash, &plan).await;
        status::write(&self.control.client, &*set, set.status.as_ref(), &plan.status).await?;
        performed?;
        self.histories.delete(&surplus(&set, revisions, &present, &pods)).await?;
        Ok(plan.look_again.map_or(Requeue::Done, Requeue::After))
    }
}
