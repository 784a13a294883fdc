//! The scheduler: binds pods to nodes. Runs on the leader.
//!
//! One loop owns the [`snapshot`] of all nodes and the [`queue`] of waiting pods; changes come from the shared informers, bindings
//! go out many at one time through [`bind`]. A placed pod counts on its node at once, before its binding is stored.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::StorageClass;
use tokio::sync::mpsc;

use crate::client::Client;
use crate::client::informer::{Change, Informers, Subscription};
use crate::kinds::core::pod::{has_ended, resources};
use crate::rt::TaskGroup;
use crate::rt::clock::{self, SharedClock};

mod bind;
pub mod filter;
pub mod pod_info;
pub mod queue;
pub mod score;
pub mod snapshot;
pub mod verdict;
pub mod volumes;

use bind::{Binder, Failed};
use filter::{Cycle, FILTERS, HelpedBy};
use pod_info::PodInfo;
use queue::{FilterSet, Queue};
use snapshot::Snapshot;
use verdict::{BY_VOLUMES, Verdict, set_of};
use volumes::{Storage, VolumePlan};

/// The name by which pods ask for this scheduler.
const NAME: &str = "default-scheduler";
/// Pods that are tried before changes are looked at again.
const BATCH: usize = 64;

/// What the scheduler is told by the composition root.
#[derive(Clone)]
pub struct SchedulerConfig {
    /// Shared with the controllers, so that each object is held once.
    pub informers: Informers,
    pub clock: SharedClock,
}

/// Starts the scheduler in `tasks`; it ends with its token. To be called on the leader only.
pub fn run(tasks: &TaskGroup, client: Client, config: SchedulerConfig) {
    let storage = Storage::new(&config.informers);
    let (binder, failed) = Binder::new(tasks, client.named("orch/scheduler"), config.clock, Arc::clone(&storage));
    let pods = config.informers.of::<Pod>().subscribe();
    let nodes = config.informers.of::<Node>().subscribe();
    let namespaces = config.informers.of::<Namespace>().subscribe();
    let changes = VolumeChanges::new(&storage);
    let scheduler =
        Scheduler { snapshot: Snapshot::with_storage(Arc::clone(&storage) as _), queue: Queue::default(), binder, start: 0 };
    let token = tasks.token();
    tasks.critical("scheduler", async move {
        let run = async {
            storage.synced().await;
            scheduler.run(pods, nodes, namespaces, changes, failed).await;
        };
        token.run_until_cancelled(run).await;
    });
}

/// The filters that a change of a node may let pods through: all.
const BY_NODE: FilterSet = FilterSet::MAX;

/// The filters that the end of a pod, or a new one, may let other pods through.
fn by_pods(what: HelpedBy) -> FilterSet {
    let dependent = FILTERS.iter().enumerate().filter(|(_, filter)| filter.helped_by >= what);
    dependent.fold(0, |set, (index, _)| set | 1 << index)
}

/// What changes of storage concern pods that wait.
struct VolumeChanges {
    storage: Arc<Storage>,
    claims: Subscription<PersistentVolumeClaim>,
    volumes: Subscription<PersistentVolume>,
    classes: Subscription<StorageClass>,
}

impl VolumeChanges {
    fn new(storage: &Arc<Storage>) -> Self {
        let (claims, volumes) = (storage.claims().subscribe(), storage.volumes_informer().subscribe());
        Self { claims, volumes, classes: storage.classes().subscribe(), storage: Arc::clone(storage) }
    }

    /// Takes what has changed; whether anything has.
    fn drain(&mut self) -> bool {
        let mut claims = false;
        while self.claims.try_next().is_some() {
            claims = true;
        }
        if claims {
            self.storage.tell();
        }
        let mut others = false;
        while self.volumes.try_next().is_some() {
            others = true;
        }
        while self.classes.try_next().is_some() {
            others = true;
        }
        claims || others
    }

    /// Waits for a change; false when the informers have ended. Cancel safe.
    async fn next(&mut self) -> bool {
        let is_claim = tokio::select! {
            change = self.claims.next() => change.map(|_| true),
            change = self.volumes.next() => change.map(|_| false),
            change = self.classes.next() => change.map(|_| false),
        };
        if is_claim == Some(true) {
            self.storage.tell();
        }
        is_claim.is_some()
    }
}

struct Scheduler {
    snapshot: Snapshot,
    queue: Queue,
    binder: Binder,
    /// Where the search for a node starts.
    start: usize,
}

impl Scheduler {
    async fn run(
        mut self,
        mut pods: Subscription<Pod>,
        mut nodes: Subscription<Node>,
        mut namespaces: Subscription<Namespace>,
        mut volumes: VolumeChanges,
        mut failed: mpsc::UnboundedReceiver<Failed>,
    ) {
        if !self.fill(&mut pods, &mut nodes, &mut namespaces).await {
            return;
        }
        loop {
            self.drain(&mut pods, &mut nodes, &mut failed);
            while let Some(change) = namespaces.try_next() {
                self.namespace_changed(change);
            }
            if volumes.drain() {
                self.queue.wake(set_of(BY_VOLUMES), clock::instant());
            }
            let mut tried = 0;
            while tried < BATCH && self.schedule_one() {
                tried += 1;
            }
            if tried > 0 {
                // Not faster than bindings go out, and changes are looked at in between.
                self.binder.ready().await;
                tokio::task::yield_now().await;
                continue;
            }
            let due = self.queue.next_due();
            tokio::select! {
                change = pods.next() => match change {
                    Some(change) => self.pod_changed(change),
                    None => return,
                },
                change = nodes.next() => match change {
                    Some(change) => self.node_changed(change),
                    None => return,
                },
                change = namespaces.next() => match change {
                    Some(change) => self.namespace_changed(change),
                    None => return,
                },
                is_news = volumes.next() => match is_news {
                    true => self.queue.wake(set_of(BY_VOLUMES), clock::instant()),
                    false => return,
                },
                Some(failed) = failed.recv() => self.binding_failed(failed),
                () = tokio::time::sleep_until(due.unwrap_or_else(clock::instant)), if due.is_some() => {}
            }
        }
    }

    /// Reads all nodes and pods before the first decision; whether the informers go on.
    async fn fill(
        &mut self,
        pods: &mut Subscription<Pod>,
        nodes: &mut Subscription<Node>,
        namespaces: &mut Subscription<Namespace>,
    ) -> bool {
        loop {
            match namespaces.next().await {
                None => return false,
                Some(Change::Synced) => break,
                Some(change) => self.namespace_changed(change),
            }
        }
        loop {
            match nodes.next().await {
                None => return false,
                Some(Change::Synced) => break,
                Some(change) => self.node_changed(change),
            }
        }
        loop {
            match pods.next().await {
                None => return false,
                Some(Change::Synced) => return true,
                Some(change) => self.pod_changed(change),
            }
        }
    }

    fn drain(
        &mut self,
        pods: &mut Subscription<Pod>,
        nodes: &mut Subscription<Node>,
        failed: &mut mpsc::UnboundedReceiver<Failed>,
    ) {
        while let Some(change) = nodes.try_next() {
            self.node_changed(change);
        }
        while let Some(change) = pods.try_next() {
            self.pod_changed(change);
        }
        while let Ok(failed) = failed.try_recv() {
            self.binding_failed(failed);
        }
    }

    /// Tries the next pod; whether there was one.
    fn schedule_one(&mut self) -> bool {
        let now = clock::instant();
        let Some((pod, attempts)) = self.queue.pop(now) else { return false };
        let attempts = attempts.saturating_add(1);
        let cycle = Cycle::new(&pod, &self.snapshot);
        match verdict::choose(&cycle, &self.snapshot, &mut self.start) {
            Verdict::Place(slot) => {
                let node = self.snapshot.node(slot).name.clone();
                let volumes = cycle.claims.plan(self.snapshot.node(slot)).unwrap_or_else(|_| VolumePlan::default());
                self.snapshot.place(Arc::clone(&pod), &node);
                self.binder.bind(pod, node, attempts, volumes);
            }
            Verdict::Unschedulable { message, filters } => {
                self.binder.report_unschedulable(&pod, message);
                self.queue.unschedulable(pod, attempts, filters, now);
            }
        }
        true
    }

    fn node_changed(&mut self, change: Change<Node>) {
        match change {
            Change::Applied { old, new } => {
                let matters = old.is_none_or(|old| matters_to_scheduling(&old, &new));
                self.snapshot.set_node(new);
                if matters {
                    self.queue.wake(BY_NODE, clock::instant());
                }
            }
            Change::Deleted(node) => self.snapshot.remove_node(node.metadata.name.as_deref().unwrap_or("")),
            Change::Synced => {}
        }
    }

    /// Labels of namespaces say which pods a term of affinity means.
    fn namespace_changed(&mut self, change: Change<Namespace>) {
        match change {
            Change::Applied { new, .. } => {
                let labels = new.metadata.labels.clone().unwrap_or_default();
                if self.snapshot.namespaces.set(new.metadata.name.as_deref().unwrap_or(""), labels) {
                    self.queue.wake(by_pods(HelpedBy::NewPods), clock::instant());
                }
            }
            Change::Deleted(namespace) => self.snapshot.namespaces.remove(namespace.metadata.name.as_deref().unwrap_or("")),
            Change::Synced => {}
        }
    }

    fn pod_changed(&mut self, change: Change<Pod>) {
        match change {
            Change::Applied { old, new } => {
                // Another pod of the same name took the place of the old one.
                if let Some(old) = old.filter(|old| old.metadata.uid != new.metadata.uid) {
                    self.pod_gone(old.metadata.uid.as_deref().unwrap_or(""));
                }
                self.pod_applied(new);
            }
            Change::Deleted(pod) => self.pod_gone(pod.metadata.uid.as_deref().unwrap_or("")),
            Change::Synced => {}
        }
    }

    fn pod_gone(&mut self, uid: &str) {
        self.queue.remove(uid);
        if self.snapshot.remove_pod(uid) {
            self.queue.wake(by_pods(HelpedBy::GonePods), clock::instant());
        }
    }

    fn pod_applied(&mut self, pod: Arc<Pod>) {
        let uid = pod.metadata.uid.as_deref().unwrap_or("");
        if has_ended(&pod) {
            return self.pod_gone(uid);
        }
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).filter(|node| !node.is_empty());
        if let Some(node) = node {
            self.queue.remove(uid);
            match self.snapshot.pod(uid) {
                Some(known) if known.node_name() == Some(&node) && is_same_to_scheduling(&known.pod, &pod) => return,
                Some(known) if known.node_name().is_some() => self.queue.wake(by_pods(HelpedBy::GonePods), clock::instant()),
                _ => self.queue.wake(by_pods(HelpedBy::NewPods), clock::instant()),
            }
            self.snapshot.place(Arc::new(PodInfo::new(pod)), &node);
            return;
        }
        if self.snapshot.pod(uid).is_some() {
            // Placed, and its binding is on the way.
            return;
        }
        if !is_ours(&pod) {
            return self.queue.remove(uid);
        }
        if self.queue.get(uid).is_none_or(|known| !is_same_to_scheduling(&known.pod, &pod)) {
            self.queue.add(Arc::new(PodInfo::new(pod)), clock::instant());
        }
    }

    fn binding_failed(&mut self, failed: Failed) {
        let Failed { pod, attempts, is_settled } = failed;
        // If the informer shows it bound or gone by now, that stands.
        let is_assumed = self.snapshot.pod(pod.uid()).is_some_and(|known| known.node_name().is_none());
        if is_assumed {
            self.snapshot.remove_pod(pod.uid());
            let now = clock::instant();
            if !is_settled {
                self.queue.back_off(pod, attempts, now);
            }
            self.queue.wake(by_pods(HelpedBy::GonePods), now);
        }
    }
}

/// Whether this scheduler is to place the pod now.
fn is_ours(pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else { return false };
    pod.metadata.deletion_timestamp.is_none()
        && spec.scheduler_name.as_deref().unwrap_or(NAME) == NAME
        && spec.scheduling_gates.as_ref().is_none_or(Vec::is_empty)
}

/// Whether the change of a pod is of no interest: only its status changed.
fn is_same_to_scheduling(old: &Pod, new: &Pod) -> bool {
    old.metadata.labels == new.metadata.labels
        && old.metadata.deletion_timestamp.is_some() == new.metadata.deletion_timestamp.is_some()
        && old.spec == new.spec
}

/// Whether the change of a node may let a pod through a filter.
fn matters_to_scheduling(old: &Node, new: &Node) -> bool {
    let allocatable = |node: &Node| node.status.as_ref().and_then(|status| status.allocatable.clone());
    old.metadata.labels != new.metadata.labels || old.spec != new.spec || allocatable(old) != allocatable(new)
}
