//! PodTopologySpread: required spread constraints.

use std::collections::HashMap;

use super::{Cycle, Filter, HelpedBy, NodeInfo, Reason, matches_required, tolerates};
use crate::scheduler::pod_info::{PodInfo, SpreadConstraint};
use crate::scheduler::snapshot::Snapshot;

pub(super) const FILTER: Filter =
    Filter { name: "PodTopologySpread", passes, explain, helped_by: HelpedBy::NewPods, yields_to_removal };

/// One constraint with the matching pods counted in each domain.
pub(super) struct Domains<'a> {
    constraint: &'a SpreadConstraint,
    counts: HashMap<&'a str, i64>,
    least: i64,
    /// 1 if the pod matches its own constraint.
    own: i64,
}

impl<'a> Domains<'a> {
    /// Takes note of a pod that would come to the node (`by` 1) or leave it (-1).
    pub(super) fn shift(&mut self, pod: &PodInfo, other: &PodInfo, node: &'a NodeInfo, by: i64) {
        let Some(value) = node.label(&self.constraint.topology_key) else { return };
        if is_counted(pod, self.constraint, other)
            && has_all_keys(pod, node)
            && is_eligible(pod, self.constraint, node)
            && let Some(count) = self.counts.get_mut(value)
        {
            *count += by;
            self.least = least(&self.counts, self.constraint);
        }
    }

    /// How many matching pods are in the domain of a node, for a constraint that only counts in scores; `None` if the node has
    /// no such label.
    pub(super) fn soft_count(&self, node: &NodeInfo) -> Option<i64> {
        let value = node.label(&self.constraint.topology_key)?;
        Some(self.counts.get(value).copied().unwrap_or(0))
    }

    pub(super) fn is_soft(&self) -> bool {
        !self.constraint.is_required
    }
}

/// Counts the domains of each constraint of a pod.
pub(super) fn domains<'a>(pod: &'a PodInfo, snapshot: &'a Snapshot) -> Vec<Domains<'a>> {
    pod.spread.iter().map(|constraint| count(pod, constraint, snapshot)).collect()
}

fn has_all_keys(pod: &PodInfo, node: &NodeInfo) -> bool {
    let mut required = pod.spread.iter().filter(|constraint| constraint.is_required);
    required.all(|constraint| node.label(&constraint.topology_key).is_some())
}

/// The pods in the domain that has the fewest.
fn least(counts: &HashMap<&str, i64>, constraint: &SpreadConstraint) -> i64 {
    let domains = i64::try_from(counts.len()).unwrap_or(i64::MAX);
    if domains < constraint.min_domains { 0 } else { counts.values().min().copied().unwrap_or(0) }
}

fn count<'a>(pod: &PodInfo, constraint: &'a SpreadConstraint, snapshot: &'a Snapshot) -> Domains<'a> {
    let mut counts: HashMap<&str, i64> = HashMap::new();
    for node in snapshot.nodes().filter(|node| has_all_keys(pod, node) && is_eligible(pod, constraint, node)) {
        if let Some(value) = node.label(&constraint.topology_key) {
            *counts.entry(value).or_default() += matching(pod, constraint, node);
        }
    }
    Domains { constraint, least: least(&counts, constraint), counts, own: i64::from(constraint.selector.matches(pod.labels())) }
}

fn is_eligible(pod: &PodInfo, constraint: &SpreadConstraint, node: &NodeInfo) -> bool {
    let hard = |effect: &str| matches!(effect, "NoSchedule" | "NoExecute");
    (!constraint.honors_affinity || matches_required(pod, node))
        && (!constraint.honors_taints
            || node.taints.iter().all(|taint| !hard(&taint.effect) || tolerates(pod.tolerations(), taint)))
}

/// How many pods on the node a constraint counts.
pub(super) fn matching(pod: &PodInfo, constraint: &SpreadConstraint, node: &NodeInfo) -> i64 {
    let counted = node.pods.values().filter(|other| is_counted(pod, constraint, other));
    i64::try_from(counted.count()).unwrap_or(i64::MAX)
}

fn is_counted(pod: &PodInfo, constraint: &SpreadConstraint, other: &PodInfo) -> bool {
    other.namespace() == pod.namespace() && !other.is_terminating() && constraint.selector.matches(other.labels())
}

fn violated<'a>(cycle: &'a Cycle<'_>, node: &NodeInfo) -> Option<(&'a Domains<'a>, Option<i64>)> {
    cycle.spread.iter().filter(|domains| !domains.is_soft()).find_map(|domains| {
        let Some(value) = node.label(&domains.constraint.topology_key) else { return Some((domains, None)) };
        let skew = domains.counts.get(value).copied().unwrap_or(0) + domains.own - domains.least;
        (skew > domains.constraint.max_skew).then_some((domains, Some(skew)))
    })
}

fn passes(cycle: &Cycle<'_>, node: &NodeInfo) -> bool {
    cycle.spread.is_empty() || violated(cycle, node).is_none()
}

/// Others may leave a crowded domain; a missing label stays missing.
fn yields_to_removal(cycle: &Cycle<'_>, node: &NodeInfo) -> bool {
    !matches!(violated(cycle, node), Some((_, None)))
}

fn explain(cycle: &Cycle<'_>, node: &NodeInfo) -> Vec<Reason> {
    let head = "node(s) didn't match pod topology spread constraints";
    match violated(cycle, node) {
        None => Vec::new(),
        Some((domains, None)) => {
            let key = &domains.constraint.topology_key;
            Reason::new(format!("{head} (missing required label)"), format!("does not have the label {key}"))
        }
        Some((domains, Some(skew))) => {
            let SpreadConstraint { topology_key, max_skew, .. } = domains.constraint;
            Reason::new(head, format!("would have a skew of {skew} over {topology_key}, of which {max_skew} is allowed"))
        }
    }
}
