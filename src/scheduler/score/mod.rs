//! The scores: where a pod runs best. One file a score, one line in [`SCORES`], with upstream's weights.

use super::filter::Cycle;
use super::snapshot::Snapshot;

mod image_locality;
mod inter_pod_affinity;
mod node_affinity;
mod node_resources;
mod pod_topology_spread;
mod taint_toleration;

/// The best score of a node in one plugin.
const MAX: i64 = 100;

/// How raw numbers become scores of 0 to 100.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// They are scores already.
    None,
    /// The biggest number is the best.
    Most,
    /// The smallest number is the best.
    Least,
    /// The smallest number is the best, the rest between it and the biggest.
    Between,
    /// The biggest number is the best and the smallest is 0, also below zero.
    Range,
}

/// One score.
pub struct Score {
    pub name: &'static str,
    pub weight: i64,
    pub scale: Scale,
    /// Whether the score says anything about this pod.
    pub applies: fn(&Cycle<'_>, &Snapshot) -> bool,
    /// The raw number of the node in a slot.
    pub number: fn(&Cycle<'_>, &Snapshot, usize) -> i64,
}

/// Every score.
pub const SCORES: &[Score] = &[
    taint_toleration::SCORE,
    node_affinity::SCORE,
    pod_topology_spread::SCORE,
    inter_pod_affinity::SCORE,
    node_resources::LEAST_ALLOCATED,
    node_resources::BALANCED_ALLOCATION,
    image_locality::SCORE,
];

/// The sum of all weighted scores of each slot.
pub fn total(cycle: &Cycle<'_>, snapshot: &Snapshot, slots: &[usize]) -> Vec<i64> {
    let mut totals = vec![0; slots.len()];
    let mut numbers = Vec::with_capacity(slots.len());
    for score in SCORES.iter().filter(|score| (score.applies)(cycle, snapshot)) {
        numbers.clear();
        numbers.extend(slots.iter().map(|slot| (score.number)(cycle, snapshot, *slot)));
        normalize(&mut numbers, score.scale);
        for (total, number) in totals.iter_mut().zip(&numbers) {
            *total += number * score.weight;
        }
    }
    totals
}

fn normalize(numbers: &mut [i64], scale: Scale) {
    let most = numbers.iter().copied().max().unwrap_or(0);
    let least = numbers.iter().copied().min().unwrap_or(0);
    for number in numbers {
        *number = match scale {
            Scale::None => *number,
            Scale::Most => (MAX * *number).checked_div(most).unwrap_or(0),
            Scale::Least => MAX - (MAX * *number).checked_div(most).unwrap_or(0),
            Scale::Range => (MAX * (*number - least)).checked_div(most - least).unwrap_or(0),
            Scale::Between => (MAX * (most + least - *number)).checked_div(most).unwrap_or(MAX),
        };
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::snapshot::tests::{node, pod};
    use super::*;

    #[test]
    fn numbers_scale() {
        for (scale, expected) in [
            (Scale::None, [1, 2, 4]),
            (Scale::Most, [25, 50, 100]),
            (Scale::Least, [75, 50, 0]),
            (Scale::Between, [100, 75, 25]),
            (Scale::Range, [0, 33, 100]),
        ] {
            let mut numbers = [1, 2, 4];
            normalize(&mut numbers, scale);
            assert_eq!(numbers, expected, "{scale:?}");
        }
    }

    #[test]
    fn the_emptier_node_and_the_one_without_the_owner_win() {
        let mut snapshot = Snapshot::default();
        for name in ["n1", "n2"] {
            snapshot.set_node(node(name, "4", &json!({})));
        }
        let slots = [snapshot.find("n1").unwrap(), snapshot.find("n2").unwrap()];
        snapshot.place(pod("big", "2", &json!({})), "n1");
        let next = pod("next", "100m", &json!({}));
        let totals = total(&Cycle::new(&next, &snapshot), &snapshot, &slots);
        assert!(totals[1] > totals[0], "{totals:?}");
    }
}
