//! NodeResourcesFit (LeastAllocated) and NodeResourcesBalancedAllocation, over CPU and memory.

use super::{MAX, Scale, Score};
use crate::scheduler::filter::Cycle;
use crate::scheduler::snapshot::Snapshot;

pub(super) const LEAST_ALLOCATED: Score =
    Score { name: "NodeResourcesFit", weight: 1, scale: Scale::None, applies: |_, _| true, number: least_allocated };

pub(super) const BALANCED_ALLOCATION: Score = Score {
    name: "NodeResourcesBalancedAllocation",
    weight: 1,
    scale: Scale::None,
    // A pod that asks for nothing does not change the balance.
    applies: |cycle, _| cycle.pod.requests.cpu_millis > 0 || cycle.pod.requests.memory_bytes > 0,
    number: balanced_allocation,
};

fn least_allocated(cycle: &Cycle<'_>, snapshot: &Snapshot, slot: usize) -> i64 {
    let node = snapshot.node(slot);
    let (has, used, wanted) = (&node.allocatable, &node.scored, &cycle.pod.scored);
    let free = |has: i64, used: i64| (MAX * (has - used).max(0)).checked_div(has).unwrap_or(0);
    let cpu = free(has.cpu_millis, used.cpu_millis + wanted.cpu_millis);
    let memory = free(has.memory_bytes >> 10, (used.memory_bytes + wanted.memory_bytes) >> 10);
    (cpu + memory) / 2
}

fn balanced_allocation(cycle: &Cycle<'_>, snapshot: &Snapshot, slot: usize) -> i64 {
    let node = snapshot.node(slot);
    let (has, used, wanted) = (&node.allocatable, &node.requested, &cycle.pod.requests);
    let thousandths = |has: i64, used: i64| (1_000 * used.min(has)).checked_div(has).unwrap_or(1_000);
    let cpu = thousandths(has.cpu_millis, used.cpu_millis + wanted.cpu_millis);
    let memory = thousandths(has.memory_bytes >> 10, (used.memory_bytes + wanted.memory_bytes) >> 10);
    // The standard deviation of two numbers is half their distance.
    MAX - (cpu - memory).abs() / 20
}
