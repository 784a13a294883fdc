//! InterPodAffinity: required affinity and anti-affinity between pods; and where they would like to be, for the score of that name.

use std::collections::HashMap;

use super::{Cycle, Filter, HelpedBy, NodeInfo, Reason};
use crate::scheduler::pod_info::{AffinityTerm, PodInfo};
use crate::scheduler::snapshot::{Namespaces, Snapshot};

pub(super) const FILTER: Filter =
    Filter { name: "InterPodAffinity", passes, explain, helped_by: HelpedBy::NewPods, yields_to_removal };

/// How many pods there are for each topology key and value.
type Counts<'a> = HashMap<(&'a str, &'a str), i64>;

/// Topology keys with their values, worked out once a pod.
pub(in crate::scheduler) struct Pairs<'a> {
    /// Where pods with anti-affinity to this one run.
    guarded: Counts<'a>,
    /// Where pods run to which this one has anti-affinity.
    avoided: Counts<'a>,
    /// Where pods run that match this pod's affinity.
    wanted: Counts<'a>,
    /// The pod may be the first of a group that wants to be together: any node with the keys does.
    may_be_first: bool,
    /// How much this pod and others would like it to be there; below zero, not to be.
    liked: Counts<'a>,
}

/// What the required affinity of a placed pod counts in the scores of one that it is drawn to (upstream
/// `hardPodAffinityWeight`).
const REQUIRED_WEIGHT: i64 = 1;

impl<'a> Pairs<'a> {
    pub(super) fn new(pod: &'a PodInfo, snapshot: &'a Snapshot) -> Self {
        let may_be_first = pod.affinity.iter().all(|term| term.matches(pod, &snapshot.namespaces));
        let (guarded, avoided, wanted) = (Counts::new(), Counts::new(), Counts::new());
        let mut pairs = Self { guarded, avoided, wanted, may_be_first, liked: liked(pod, snapshot) };
        for (other, node) in snapshot.guarded() {
            pairs.guard(pod, other, node, 1, &snapshot.namespaces);
        }
        if !pod.anti_affinity.is_empty() || !pod.affinity.is_empty() {
            for node in snapshot.nodes() {
                node.pods.values().for_each(|other| pairs.draw(pod, other, node, 1, &snapshot.namespaces));
            }
        }
        pairs
    }

    /// Takes note of a pod that would come to the node (`by` 1) or leave it (-1).
    pub(super) fn shift(&mut self, pod: &'a PodInfo, other: &'a PodInfo, node: &'a NodeInfo, by: i64, namespaces: &Namespaces) {
        self.guard(pod, other, node, by, namespaces);
        self.draw(pod, other, node, by, namespaces);
    }

    fn guard(&mut self, pod: &PodInfo, other: &'a PodInfo, node: &'a NodeInfo, by: i64, namespaces: &Namespaces) {
        for term in other.anti_affinity.iter().filter(|term| term.matches(pod, namespaces)) {
            count(&mut self.guarded, term, node, by);
        }
    }

    fn draw(&mut self, pod: &'a PodInfo, other: &PodInfo, node: &'a NodeInfo, by: i64, namespaces: &Namespaces) {
        for term in pod.anti_affinity.iter().filter(|term| term.matches(other, namespaces)) {
            count(&mut self.avoided, term, node, by);
        }
        // All terms must match a pod for it to count, as upstream has it.
        if !pod.affinity.is_empty() && pod.affinity.iter().all(|term| term.matches(other, namespaces)) {
            pod.affinity.iter().for_each(|term| count(&mut self.wanted, term, node, by));
        }
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
fn liked<'a>(pod: &'a PodInfo, snapshot: &'a Snapshot) -> Counts<'a> {
    let mut liked = Counts::new();
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

fn count<'a>(counts: &mut Counts<'a>, term: &'a AffinityTerm, node: &'a NodeInfo, by: i64) {
    let Some(value) = node.label(&term.topology_key) else { return };
    let pair = (term.topology_key.as_str(), value);
    let count = counts.entry(pair).or_default();
    *count += by;
    if *count <= 0 {
        counts.remove(&pair);
    }
}

/// Which of the three rules a node breaks.
enum Broken {
    Affinity,
    AntiAffinity,
    Guarded,
}

fn broken(cycle: &Cycle<'_>, node: &NodeInfo) -> Option<Broken> {
    let (pairs, pod) = (&cycle.affinity, cycle.pod);
    let on = |counts: &Counts<'_>| counts.keys().any(|(key, value)| node.label(key) == Some(value));
    let is_first = pairs.may_be_first && pairs.wanted.is_empty();
    for term in &pod.affinity {
        match node.label(&term.topology_key) {
            Some(value) if is_first || pairs.wanted.contains_key(&(term.topology_key.as_str(), value)) => {}
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

/// Who is avoided may leave; nobody comes because others go.
fn yields_to_removal(cycle: &Cycle<'_>, node: &NodeInfo) -> bool {
    !matches!(broken(cycle, node), Some(Broken::Affinity))
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
