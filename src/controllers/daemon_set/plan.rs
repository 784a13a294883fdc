//! What a DaemonSet needs: a pure function of the set, the nodes and its pods, in the steps of upstream's `daemon_controller.go`.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetStatus};
use k8s_openapi::api::core::v1::{Node, Pod, PodSpec};

use super::super::history::name_of;
use super::super::pods::{self, until_available};
use super::super::status::count;
use super::pod::{self, Fit};
use super::rolling;

/// What the controller saw.
pub(super) struct Observed<'a> {
    pub(super) set: &'a DaemonSet,
    pub(super) nodes: Vec<Arc<Node>>,
    /// All pods of the set.
    pub(super) pods: Vec<Arc<Pod>>,
    /// The hash of the present template's revision.
    pub(super) hash: &'a str,
    /// Nodes whose failed pods are left alone, and for how long.
    pub(super) waiting: HashMap<String, Duration>,
    pub(super) now: Timestamp,
}

/// A pod that ended, which is deleted so that another comes.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Ended {
    pub(super) pod: Arc<Pod>,
    pub(super) node: String,
    /// Whether it failed; it succeeded otherwise.
    pub(super) has_failed: bool,
}

/// What is to be done: first creating, then deleting.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// The nodes that get a pod.
    pub(super) create: Vec<String>,
    pub(super) delete: Vec<Arc<Pod>>,
    /// Those of `delete` that ended by themselves.
    pub(super) ended: Vec<Ended>,
    pub(super) status: DaemonSetStatus,
    /// When to look again although nothing changed.
    pub(super) look_again: Option<Duration>,
}

/// The pods of a node.
pub(super) type OnNode = Vec<Arc<Pod>>;

/// What a plan is made from, sorted by node.
pub(super) struct World<'a> {
    pub(super) set: &'a DaemonSet,
    pub(super) hash: &'a str,
    pub(super) now: Timestamp,
    pub(super) fits: BTreeMap<&'a str, Fit>,
    /// The pods on, or meant for, each node, oldest first; only nodes that have some.
    pub(super) pods: BTreeMap<String, OnNode>,
}

impl World<'_> {
    pub(super) fn min_ready_seconds(&self) -> i32 {
        self.set.spec.as_ref().and_then(|spec| spec.min_ready_seconds).unwrap_or(0)
    }

    pub(super) fn is_available(&self, pod: &Pod) -> bool {
        until_available(pod, self.min_ready_seconds(), self.now) == Some(Duration::ZERO)
    }

    pub(super) fn fit(&self, node: &str) -> Fit {
        self.fits.get(node).copied().unwrap_or(Fit::Leave)
    }

    /// How many nodes want a pod.
    pub(super) fn desired(&self) -> usize {
        self.fits.values().filter(|fit| **fit == Fit::Run).count()
    }
}

/// Decides.
pub(super) fn plan(observed: &Observed<'_>) -> Plan {
    let spec = pod::spec(observed.set);
    let world = World {
        set: observed.set,
        hash: observed.hash,
        now: observed.now,
        fits: fits(&spec, &observed.nodes),
        pods: by_node(&observed.pods),
    };
    let mut plan = Plan { status: status(&world), ..Plan::default() };
    manage(&world, &observed.waiting, &mut plan);
    if plan.create.is_empty() && plan.delete.is_empty() && rolling::is_rolling(observed.set) {
        (plan.create, plan.delete) = rolling::step(&world);
    }
    let pods = observed.pods.iter().filter_map(|pod| until_available(pod, world.min_ready_seconds(), observed.now));
    plan.look_again = pods.filter(|wait| !wait.is_zero()).chain(plan.look_again).min();
    plan
}

fn fits<'a>(spec: &PodSpec, nodes: &'a [Arc<Node>]) -> BTreeMap<&'a str, Fit> {
    nodes.iter().map(|node| (name_of(&node.metadata), pod::fit(spec, node))).collect()
}

/// `getNodesToDaemonPods`: pods that ended and are on their way out count for nothing.
fn by_node(pods: &[Arc<Pod>]) -> BTreeMap<String, OnNode> {
    let mut found: BTreeMap<String, OnNode> = BTreeMap::new();
    for pod in pods.iter().filter(|pod| !(pods::has_ended(pod) && pod.metadata.deletion_timestamp.is_some())) {
        if let Some(node) = pod::target_node(pod) {
            found.entry(node.to_owned()).or_default().push(Arc::clone(pod));
        }
    }
    let is_unbound = |pod: &Pod| pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or("").is_empty();
    for pods in found.values_mut() {
        pods.sort_by_key(|pod| (is_unbound(pod), pod.metadata.creation_timestamp.clone(), pod.metadata.name.clone()));
    }
    found
}

/// `manage`: every node that wants a pod has one, and no other has.
fn manage(world: &World<'_>, waiting: &HashMap<String, Duration>, plan: &mut Plan) {
    for (node, fit) in &world.fits {
        match (world.pods.get(*node), fit) {
            (None, Fit::Run) => plan.create.push((*node).to_owned()),
            (None, _) => {}
            (Some(pods), Fit::Leave) => plan.delete.extend(living(pods).cloned()),
            (Some(pods), fit) => {
                let running = end_failed(node, pods, waiting.get(*node).copied(), plan);
                prune(world, node, *fit, &running, plan);
            }
        }
    }
    // Nobody else would take away a pod that waits for a node that is gone.
    for (_, pods) in world.pods.iter().filter(|(node, _)| !world.fits.contains_key(node.as_str())) {
        let is_unbound =
            |pod: &&Arc<Pod>| pod.spec.as_ref().is_none_or(|spec| spec.node_name.as_deref().unwrap_or("").is_empty());
        plan.delete.extend(living(pods).filter(is_unbound).cloned());
    }
}

fn living(pods: &[Arc<Pod>]) -> impl Iterator<Item = &Arc<Pod>> {
    pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none())
}

/// Deletes the pods of a node that ended; a failed one only when its node's delay has passed. Returns the others.
fn end_failed(node: &str, pods: &[Arc<Pod>], wait: Option<Duration>, plan: &mut Plan) -> OnNode {
    let (mut running, mut wait) = (Vec::new(), wait);
    for pod in living(pods) {
        let has_failed = pods::phase(pod) == "Failed";
        if !has_failed && !pods::has_ended(pod) {
            running.push(Arc::clone(pod));
        } else if let Some(wait) = wait.filter(|_| has_failed) {
            plan.look_again = Some(plan.look_again.map_or(wait, |before| before.min(wait)));
        } else {
            // One delay begins with each failed pod that is deleted.
            wait = has_failed.then_some(Duration::from_secs(1)).or(wait);
            plan.ended.push(Ended { pod: Arc::clone(pod), node: node.to_owned(), has_failed });
            plan.delete.push(Arc::clone(pod));
        }
    }
    running
}

/// Leaves one pod on a node, or with surge an old and a new one while the new one is not available yet.
fn prune(world: &World<'_>, node: &str, fit: Fit, running: &[Arc<Pod>], plan: &mut Plan) {
    if !rolling::allows_surge(world.set) {
        plan.delete.extend(running.iter().skip(1).cloned());
        return;
    }
    if running.is_empty() && fit == Fit::Run {
        plan.create.push(node.to_owned());
    }
    let (new, old): (Vec<&Arc<Pod>>, Vec<&Arc<Pod>>) = running.iter().partition(|pod| pod::hash_of(pod) == world.hash);
    plan.delete.extend(new.iter().skip(1).chain(old.iter().skip(1)).map(|pod| Arc::clone(pod)));
    if let (Some(new), Some(old)) = (new.first(), old.first())
        && (!pods::is_ready(old) || world.is_available(new))
    {
        plan.delete.push(Arc::clone(old));
    }
}

/// `updateDaemonSetStatus`: of each node the oldest pod counts.
fn status(world: &World<'_>) -> DaemonSetStatus {
    let (mut scheduled, mut misscheduled, mut ready, mut available, mut updated) = (0, 0, 0, 0, 0);
    for (node, fit) in &world.fits {
        let Some(pod) = world.pods.get(*node).and_then(|pods| pods.first()) else { continue };
        if *fit != Fit::Run {
            misscheduled += 1;
            continue;
        }
        scheduled += 1;
        ready += i32::from(pods::is_ready(pod));
        available += usize::from(world.is_available(pod));
        updated += usize::from(pod::is_updated(world.set, pod, world.hash));
    }
    let old = world.set.status.clone().unwrap_or_default();
    let desired = world.desired();
    DaemonSetStatus {
        desired_number_scheduled: i32::try_from(desired).unwrap_or(i32::MAX),
        current_number_scheduled: scheduled,
        number_misscheduled: misscheduled,
        number_ready: ready,
        updated_number_scheduled: count(updated),
        number_available: count(available),
        number_unavailable: count(desired.saturating_sub(available)),
        observed_generation: world.set.metadata.generation,
        collision_count: old.collision_count,
        conditions: old.conditions,
    }
}

#[cfg(test)]
mod tests;
