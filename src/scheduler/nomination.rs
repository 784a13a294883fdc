//! Nominations: nodes that are kept for pods while the pods that they preempted end. A nominated pod counts on its node for pods of
//! its own or lower priority, and for the others the node is free. Upstream's `scheduler/backend/queue/nominator`.

use std::collections::HashMap;
use std::sync::Arc;

use super::filter::{Cycle, FILTERS, Reason};
use super::pod_info::PodInfo;
use super::snapshot::{NodeInfo, Snapshot};

/// Which pods are nominated to which nodes.
#[derive(Debug, Default)]
pub struct Nominations {
    nodes: HashMap<String, String>,
    pods: HashMap<String, Vec<Arc<PodInfo>>>,
}

impl Nominations {
    /// Keeps a node for a pod, and no other one.
    pub fn set(&mut self, pod: Arc<PodInfo>, node: &str) {
        self.remove(pod.uid());
        self.nodes.insert(pod.uid().to_owned(), node.to_owned());
        self.pods.entry(node.to_owned()).or_default().push(pod);
    }

    /// Ends the nomination of a pod; whether it had one.
    pub fn remove(&mut self, uid: &str) -> bool {
        let Some(node) = self.nodes.remove(uid) else { return false };
        if let Some(pods) = self.pods.get_mut(&node) {
            pods.retain(|pod| pod.uid() != uid);
            if pods.is_empty() {
                self.pods.remove(&node);
            }
        }
        true
    }

    /// The node that is kept for a pod.
    pub fn node_of(&self, uid: &str) -> Option<&str> {
        self.nodes.get(uid).map(String::as_str)
    }

    /// The pods that a node is kept for.
    pub fn on(&self, node: &str) -> &[Arc<PodInfo>] {
        self.pods.get(node).map_or(&[], Vec::as_slice)
    }

    /// The pods that a node is kept for, also from this one.
    fn before<'a>(&'a self, pod: &'a PodInfo, node: &str) -> impl Iterator<Item = &'a Arc<PodInfo>> + use<'a> {
        self.on(node).iter().filter(move |other| other.priority >= pod.priority && other.uid() != pod.uid())
    }
}

/// The first filter that a node does not pass, by itself or with the pods that are nominated to it.
pub fn refuses<'a>(cycle: &mut Cycle<'a>, snapshot: &'a Snapshot, slot: usize) -> Option<usize> {
    let node = snapshot.node(slot);
    cycle.fails(node).or_else(|| with_nominated(cycle, snapshot, slot, Cycle::fails).flatten())
}

/// As [`refuses`], and why.
pub fn reasons<'a>(cycle: &mut Cycle<'a>, snapshot: &'a Snapshot, slot: usize) -> Vec<Reason> {
    let explain = |cycle: &Cycle<'_>, node: &NodeInfo| cycle.fails(node).map(|filter| (FILTERS[filter].explain)(cycle, node));
    let reasons = explain(cycle, snapshot.node(slot));
    reasons.or_else(|| with_nominated(cycle, snapshot, slot, explain).flatten()).unwrap_or_default()
}

/// Whether a node that refuses the pod may do once pods are removed from it.
pub fn yields<'a>(cycle: &mut Cycle<'a>, snapshot: &'a Snapshot, slot: usize) -> bool {
    let yields =
        |cycle: &Cycle<'_>, node: &NodeInfo| cycle.fails(node).map(|filter| (FILTERS[filter].yields_to_removal)(cycle, node));
    let yielding = yields(cycle, snapshot.node(slot));
    yielding.or_else(|| with_nominated(cycle, snapshot, slot, yields).flatten()).unwrap_or(false)
}

/// Looks at a node as it will be with the pods that are nominated to it; `None` if there are none that matter to the pod.
pub fn with_nominated<'a, R>(
    cycle: &mut Cycle<'a>,
    snapshot: &'a Snapshot,
    slot: usize,
    look: impl FnOnce(&Cycle<'a>, &NodeInfo) -> R,
) -> Option<R> {
    let node = snapshot.node(slot);
    snapshot.nominations.before(cycle.pod, &node.name).next()?;
    let mut sketch = node.sketch();
    Some(beside_nominated(cycle, snapshot, slot, &mut sketch, look))
}

/// As [`with_nominated`], on a sketch of the node, which is the same afterwards.
pub fn beside_nominated<'a, R>(
    cycle: &mut Cycle<'a>,
    snapshot: &'a Snapshot,
    slot: usize,
    sketch: &mut NodeInfo,
    look: impl FnOnce(&Cycle<'a>, &NodeInfo) -> R,
) -> R {
    let (node, pod) = (snapshot.node(slot), cycle.pod);
    for other in snapshot.nominations.before(pod, &node.name) {
        sketch.load(other);
        cycle.shift(other, node, 1, &snapshot.namespaces);
    }
    let result = look(cycle, sketch);
    for other in snapshot.nominations.before(pod, &node.name) {
        sketch.unload(other);
        cycle.shift(other, node, -1, &snapshot.namespaces);
    }
    result
}
