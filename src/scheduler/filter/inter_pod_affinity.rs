//! InterPodAffinity: required affinity and anti-affinity between pods.

use std::collections::HashSet;

use super::{Cycle, Filter, HelpedBy, NodeInfo, Reason};
use crate::scheduler::pod_info::{AffinityTerm, PodInfo};
use crate::scheduler::snapshot::Snapshot;

pub(super) const FILTER: Filter = Filter { name: "InterPodAffinity", passes, explain, helped_by: HelpedBy::NewPods };

/// Topology keys with their values, worked out once a pod.
pub(super) struct Pairs<'a> {
    /// Where pods with anti-affinity to this one run.
    guarded: HashSet<(&'a str, &'a str)>,
    /// Where pods run to which this one has anti-affinity.
    avoided: HashSet<(&'a str, &'a str)>,
    /// Where pods run that match a term of this pod's affinity, term by term.
    wanted: Vec<HashSet<&'a str>>,
    /// The pod is the first of a group that wants to be together: any node with the keys does.
    is_first: bool,
}

impl<'a> Pairs<'a> {
    pub(super) fn new(pod: &'a PodInfo, snapshot: &'a Snapshot) -> Self {
        let mut guarded = HashSet::new();
        for (other, node) in snapshot.guarded() {
            for term in other.anti_affinity.iter().filter(|term| term.matches(pod)) {
                guarded.extend(node.label(&term.topology_key).map(|value| (term.topology_key.as_str(), value)));
            }
        }
        let mut avoided = HashSet::new();
        for term in &pod.anti_affinity {
            avoided.extend(values(term, snapshot).into_iter().map(|value| (term.topology_key.as_str(), value)));
        }
        // All terms must match a pod for it to count, as upstream has it.
        let wanted: Vec<HashSet<&str>> = pod.affinity.iter().map(|term| values_of_all(term, pod, snapshot)).collect();
        let is_first = wanted.iter().all(HashSet::is_empty) && pod.affinity.iter().all(|term| term.matches(pod));
        Self { guarded, avoided, wanted, is_first }
    }
}

/// The values of the term's key where a pod runs that matches the term.
fn values<'a>(term: &AffinityTerm, snapshot: &'a Snapshot) -> HashSet<&'a str> {
    let has_match = |node: &&NodeInfo| node.pods.values().any(|other| term.matches(other));
    snapshot.nodes().filter(has_match).filter_map(|node| node.label(&term.topology_key)).collect()
}

fn values_of_all<'a>(term: &AffinityTerm, pod: &PodInfo, snapshot: &'a Snapshot) -> HashSet<&'a str> {
    let matches_all = |other: &PodInfo| pod.affinity.iter().all(|term| term.matches(other));
    let has_match = |node: &&NodeInfo| node.pods.values().any(|other| matches_all(other));
    snapshot.nodes().filter(has_match).filter_map(|node| node.label(&term.topology_key)).collect()
}

/// Which of the three rules a node breaks.
enum Broken {
    Affinity,
    AntiAffinity,
    Guarded,
}

fn broken(cycle: &Cycle<'_>, node: &NodeInfo) -> Option<Broken> {
    let (pairs, pod) = (&cycle.affinity, cycle.pod);
    let on = |set: &HashSet<(&str, &str)>| set.iter().any(|(key, value)| node.label(key) == Some(value));
    for (term, values) in pod.affinity.iter().zip(&pairs.wanted) {
        match node.label(&term.topology_key) {
            Some(value) if pairs.is_first || values.contains(value) => {}
            _ => return Some(Broken::Affinity),
        }
    }
    if on(&pairs.avoided) {
        return Some(Broken::AntiAffinity);
    }
    on(&pairs.guarded).then_some(Broken::Guarded)
}

fn passes(cycle: &Cycle<'_>, node: &NodeInfo) -> bool {
    broken(cycle, node).is_none()
}

fn explain(cycle: &Cycle<'_>, node: &NodeInfo) -> Vec<Reason> {
    match broken(cycle, node) {
        None => Vec::new(),
        Some(Broken::Affinity) => {
            Reason::new("node(s) didn't match pod affinity rules", "runs no pod that the pod's affinity asks for")
        }
        Some(Broken::AntiAffinity) => {
            Reason::new("node(s) didn't match pod anti-affinity rules", "is in the domain of a pod that the pod avoids")
        }
        Some(Broken::Guarded) => Reason::new(
            "node(s) didn't satisfy existing pods anti-affinity rules",
            "is in the domain of a pod that avoids this one",
        ),
    }
}
