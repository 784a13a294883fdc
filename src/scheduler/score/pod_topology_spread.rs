//! PodTopologySpread: soft constraints, and where a pod has none, spreading the pods of one owner over nodes and zones.

use super::{Scale, Score};
use crate::scheduler::filter::Cycle;
use crate::scheduler::snapshot::Snapshot;

/// How much a pod in the same zone counts beside one on the same node, as the weights of upstream's default constraints do.
const ZONE_SHARE: i64 = 3;
const NODE_SHARE: i64 = 5;

pub(super) const SCORE: Score = Score {
    name: "PodTopologySpread",
    weight: 2,
    scale: Scale::Between,
    applies: |cycle, snapshot| match &cycle.pod.owner {
        _ if !cycle.pod.spread.is_empty() => cycle.pod.spread.iter().any(|constraint| !constraint.is_required),
        Some(owner) => snapshot.spread_of(owner).is_some(),
        None => false,
    },
    number: |cycle, snapshot, slot| {
        if cycle.pod.spread.is_empty() { of_owner(cycle, snapshot, slot) } else { of_constraints(cycle, snapshot, slot) }
    },
};

fn of_owner(cycle: &Cycle<'_>, snapshot: &Snapshot, slot: usize) -> i64 {
    let Some(spread) = cycle.pod.owner.as_ref().and_then(|owner| snapshot.spread_of(owner)) else { return 0 };
    let in_zone = snapshot.node(slot).zone.as_ref().and_then(|zone| spread.in_zone.get(zone)).copied().unwrap_or(0);
    spread.on_node.get(&slot).copied().unwrap_or(0) * NODE_SHARE + in_zone * ZONE_SHARE
}

fn of_constraints(cycle: &Cycle<'_>, snapshot: &Snapshot, slot: usize) -> i64 {
    // A node without the key is the worst.
    let counts = cycle.soft_counts(snapshot.node(slot)).map(|count| count.unwrap_or(i64::from(i32::MAX)));
    counts.fold(0, i64::saturating_add)
}
