//! InterPodAffinity: required affinity and anti-affinity between pods; and where they would like to be, for the score of that name.

use std::collections::{HashMap, HashSet};

use super::{Cycle, Filter, HelpedBy, NodeInfo, Reason};
use crate::scheduler::pod_info::{AffinityTerm, PodInfo};
use crate::scheduler::snapshot::Snapshot;

pub(super) const FILTER: Filter = Filter { name: "InterPodAffinity", passes, explain, helped_by: HelpedBy::NewPods };

/// Topology keys with their values, worked out once a pod.
pub(in crate::scheduler) struct Pairs<'a> {
    /// Where pods with anti-affinity to this one run.
    guarded: HashSet<(&'a str, &'a str)>,
    /// Where pods run to which this one has anti-affinity.
    avoided: HashSet<(&'a str, &'a str)>,
    /// Where pods run that match a term of this pod's affinity, term by term.
    wanted: Vec<HashSet<&'a str>>,
    /// The pod is the first of a group that wants to be together: any node with the keys does.
    is_first: bool,
    /// How much this pod and others would like it to be there; below zero, not to be.
    liked: HashMap<(&'a str, &'a str), i64>,
}

/// What the required affinity of a placed pod counts in the scores of one that it is drawn to (upstream
/// `hardPodAffinityWeight`).
const REQUIRED_WEIGHT: i64 = 1;

impl<'a> Pairs<'a> {
    pub(super) fn new(pod: &'a PodInfo, snapshot: &'a Snapshot) -> Self {
        let mut guarded = HashSet::new();
        for (other, node) in snapshot.guarded() {
            for term in other.anti_affinity.iter().filter(|term| term.matches(pod, &snapshot.namespaces)) {
                guarded.extend(node.label(&term.topology_key).map(|value| (term.topology_key.as_str(), value)));
            }
        }
        let mut avoided = HashSet::new();
        for term in &pod.anti_affinity {
            avoided.extend(values(term, snapshot).into_iter().map(|value| (term.topology_key.as_str(), value)));
        }
        // All terms must match a pod for it to count, as upstream has it.
        let wanted: Vec<HashSet<&str>> = pod.affinity.iter().map(|term| values_of_all(term, pod, snapshot)).collect();
        let is_first =
            wanted.iter().all(HashSet::is_empty) && pod.affinity.iter().all(|term| term.matches(pod, &snapshot.namespaces));
        Self { guarded, avoided, wanted, is_first, liked: liked(pod, snapshot) }
    }

    /// Whether anybody would like the pod to be somewhere, or not to be.
    pub(in crate::scheduler) fn has_likes(&self) -> bool {
        !self.liked.is_empty()
    }

    /// How much the pod and others would like it to be on a node.
    pub(in crate::scheduler) fn likes(&self, node: &NodeInfo) -> i64 {
        let on_node = self.liked.iter().filter(|((key, value), _)| node.label(key) == Some(value));
        on_node.fold(0, |sum, (_, weight)| sum.saturating_add(*weight))
    }
}

/// What this pod prefers, and what placed pods that are drawn to it, or prefer to be away from it, do.
fn liked<'a>(pod: &'a PodInfo, snapshot: &'a Snapshot) -> HashMap<(&'a str, &'a str), i64> {
    let mut liked: HashMap<(&str, &str), i64> = HashMap::new();
    let mut add = |key: &'a str, node: &'a NodeInfo, weight: i64| {
        if let Some(value) = node.label(key) {
            *liked.entry((key, value)).or_default() += weight;
        }
    };
    for preferred in &pod.preferred {
        for node in snapshot.nodes() {
            let matching = node.pods.values().filter(|other| preferred.term.matches(other, &snapshot.namespaces)).count();
            if matching > 0 {
                let count = i64::try_from(matching).unwrap_or(i64::MAX);
                add(&preferred.term.topology_key, node, preferred.weight.saturating_mul(count));
            }
        }
    }
    for (other, node) in snapshot.drawn() {
        let required = other.affinity.iter().map(|term| (term, REQUIRED_WEIGHT));
        let preferred = other.preferred.iter().map(|preferred| (&preferred.term, preferred.weight));
        for (term, weight) in required.chain(preferred).filter(|(term, _)| term.matches(pod, &snapshot.namespaces)) {
            add(&term.topology_key, node, weight);
        }
    }
    liked
}

/// The values of the term's key where a pod runs that matches the term.
fn values<'a>(term: &AffinityTerm, snapshot: &'a Snapshot) -> HashSet<&'a str> {
    let has_match = |node: &&NodeInfo| node.pods.values().any(|other| term.matches(other, &snapshot.namespaces));
    snapshot.nodes().filter(has_match).filter_map(|node| node.label(&term.topology_key)).collect()
}

fn values_of_all<'a>(term: &AffinityTerm, pod: &PodInfo, snapshot: &'a Snapshot) -> HashSet<&'a str> {
    let matches_all = |other: &PodInfo| pod.affinity.iter().all(|term| term.matches(other, &snapshot.namespaces));
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
