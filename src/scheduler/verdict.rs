//! Placing one pod: filter, score, choose; and saying why nothing fits.

use std::collections::BTreeMap;

use super::filter::{Cycle, FILTERS};
use super::nomination::{reasons, refuses};
use super::queue::FilterSet;
use super::score;
use super::snapshot::Snapshot;

/// Fitting nodes after which the search ends (upstream's smallest sample): a good one among these is good enough.
const ENOUGH: usize = 100;
/// Nodes whose lack is told one by one.
const TOLD: usize = 5;

/// Where a pod goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// To the node in this slot.
    Place(usize),
    /// Nowhere, as the message says; these filters stand in the way.
    Unschedulable { message: String, filters: FilterSet },
}

/// The filters that changes of claims, volumes and classes may let pods through.
pub const BY_VOLUMES: &[&str] = &["VolumeRestrictions", "VolumeBinding", "VolumeZone"];

/// Filters by their names.
pub fn set_of(names: &[&str]) -> FilterSet {
    let named = FILTERS.iter().enumerate().filter(|(_, filter)| names.contains(&filter.name));
    named.fold(0, |set, (index, _)| set | 1 << index)
}

/// Chooses a node. `start` is where the search begins among the nodes, and moves on, so that all nodes get their turn.
///
/// The node that is kept for the pod is taken if it does, without a look at the others.
pub fn choose<'a>(cycle: &mut Cycle<'a>, snapshot: &'a Snapshot, start: &mut usize) -> Verdict {
    let live = snapshot.live();
    if let Some(why) = cycle.claims.blocked.as_ref().filter(|_| !live.is_empty()) {
        let message = format!("0/{} nodes are available: {why}.", live.len());
        return Verdict::Unschedulable { message, filters: set_of(BY_VOLUMES) };
    }
    if let Some(kept) = snapshot.nominations.node_of(cycle.pod.uid()).and_then(|node| snapshot.find(node))
        && refuses(cycle, snapshot, kept).is_none()
    {
        return Verdict::Place(kept);
    }
    let mut fitting = Vec::with_capacity(ENOUGH.min(live.len()));
    let mut filters: FilterSet = 0;
    let first = start.checked_rem(live.len()).unwrap_or(0);
    let (before, after) = live.split_at(first);
    let mut looked_at = 0;
    for slot in after.iter().chain(before) {
        looked_at += 1;
        match refuses(cycle, snapshot, *slot) {
            Some(filter) => filters |= 1 << filter,
            None => fitting.push(*slot),
        }
        if fitting.len() == ENOUGH {
            break;
        }
    }
    *start = first + looked_at;
    match fitting.as_slice() {
        [] => Verdict::Unschedulable {
            message: explain(cycle, snapshot),
            filters: if live.is_empty() { FilterSet::MAX } else { filters },
        },
        [only] => Verdict::Place(*only),
        many => Verdict::Place(best(cycle, snapshot, many)),
    }
}

/// The slot with the highest score; of equal ones the first, and the search starts elsewhere each time.
fn best(cycle: &Cycle<'_>, snapshot: &Snapshot, slots: &[usize]) -> usize {
    let totals = score::total(cycle, snapshot, slots);
    let pairs = slots.iter().zip(totals);
    let best = pairs.reduce(|best, next| if next.1 > best.1 { next } else { best });
    best.map_or(0, |(slot, _)| *slot)
}

/// `0/3 nodes are available: 1 Insufficient cpu, 2 node(s) were unschedulable.`, and then node by node what is missing.
fn explain<'a>(cycle: &mut Cycle<'a>, snapshot: &'a Snapshot) -> String {
    let live = snapshot.live().len();
    if live == 0 {
        return "no nodes available to schedule pods".to_owned();
    }
    let mut heads: BTreeMap<String, usize> = BTreeMap::new();
    let mut details = Vec::new();
    for slot in snapshot.live() {
        let (node, reasons) = (snapshot.node(*slot), reasons(cycle, snapshot, *slot));
        if reasons.is_empty() {
            continue;
        }
        if details.len() < TOLD {
            let lacks: Vec<&str> = reasons.iter().map(|reason| reason.detail.as_str()).collect();
            details.push(format!("{} {}", node.name, lacks.join(" and ")));
        }
        for reason in reasons {
            *heads.entry(reason.head).or_default() += 1;
        }
    }
    let mut counted: Vec<String> = heads.into_iter().map(|(head, count)| format!("{count} {head}")).collect();
    counted.sort();
    let more = if live > details.len() { format!("; and {} more nodes", live - details.len()) } else { String::new() };
    format!("0/{live} nodes are available: {}. {}{more}.", counted.join(", "), details.join("; "))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::snapshot::tests::{node, pod};
    use super::*;

    #[test]
    fn the_message_counts_and_names() {
        let mut snapshot = Snapshot::default();
        let big = pod("big", "2", &json!({}));
        assert!(matches!(
            choose(&mut Cycle::new(&big, &snapshot), &snapshot, &mut 0),
            Verdict::Unschedulable { message, filters: FilterSet::MAX } if message == "no nodes available to schedule pods"
        ));
        snapshot.set_node(node("h1", "1800m", &json!({})));
        let mut tainted = (*node("h2", "4", &json!({}))).clone();
        tainted.spec =
            serde_json::from_value(json!({"taints": [{"key": "gpu", "value": "yes", "effect": "NoSchedule"}]})).unwrap();
        snapshot.set_node(tainted.into());
        let Verdict::Unschedulable { message, filters } = choose(&mut Cycle::new(&big, &snapshot), &snapshot, &mut 0) else {
            panic!("nothing fits")
        };
        assert_eq!(
            message,
            "0/2 nodes are available: 1 Insufficient cpu, 1 node(s) had untolerated taint {gpu: yes}. \
             h1 lacks 200m CPU; h2 has taint gpu=yes:NoSchedule that the pod does not tolerate."
        );
        assert_eq!(filters.count_ones(), 2);
    }

    #[test]
    fn pods_spread_over_equal_nodes() {
        let mut snapshot = Snapshot::default();
        for name in ["n1", "n2", "n3"] {
            snapshot.set_node(node(name, "4", &json!({})));
        }
        let mut start = 0;
        for number in 0..6 {
            let pod = pod(&number.to_string(), "100m", &json!({}));
            let Verdict::Place(slot) = choose(&mut Cycle::new(&pod, &snapshot), &snapshot, &mut start) else { panic!("fits") };
            let name = snapshot.node(slot).name.clone();
            snapshot.place(pod, &name);
        }
        assert!(snapshot.nodes().all(|node| node.pods.len() == 2));
    }
}
