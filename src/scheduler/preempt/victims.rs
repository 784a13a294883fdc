//! Whom a pod would send away from a node, and which node is the best for it.

use std::cmp::Reverse;
use std::sync::Arc;

use jiff::Timestamp;

use super::budget::Budgets;
use crate::scheduler::filter::{Cycle, FILTERS};
use crate::scheduler::nomination::beside_nominated;
use crate::scheduler::pod_info::PodInfo;
use crate::scheduler::snapshot::{NodeInfo, Snapshot};

/// The pods that would have to leave a node.
#[derive(Debug, Clone)]
pub struct Victims {
    pub slot: usize,
    /// The most important first.
    pub pods: Vec<Arc<PodInfo>>,
    /// Of these, how many break a budget.
    pub violations: usize,
}

/// What is counted of a node whose pods are all too important.
pub const NO_VICTIMS: &str = "No preemption victims found for incoming pod";

/// The smallest set of pods without which a pod fits on a node (upstream `SelectVictimsOnNode`): without all of lower priority it
/// must fit; then as many as possible stay, those first whose end would break a budget, then the most important.
///
/// # Errors
/// What is counted of the node, if that does not help.
pub fn select<'a>(cycle: &mut Cycle<'a>, snapshot: &'a Snapshot, slot: usize, budgets: &Budgets) -> Result<Victims, Vec<String>> {
    let node = snapshot.node(slot);
    let priority = cycle.pod.priority;
    let mut lower: Vec<&Arc<PodInfo>> = node.pods.values().filter(|pod| pod.priority < priority).collect();
    lower.sort_by(|one, other| importance(one).cmp(&importance(other)));
    let mut sketch = node.sketch();
    for pod in lower.iter().copied() {
        sketch.unload(pod);
        cycle.shift(pod, node, -1, &snapshot.namespaces);
    }
    let heads = |cycle: &Cycle<'_>, node: &NodeInfo| {
        let filter = cycle.fails(node)?;
        Some((FILTERS[filter].explain)(cycle, node).into_iter().map(|reason| reason.head).collect())
    };
    let refused = heads(cycle, &sketch).or_else(|| beside_nominated(cycle, snapshot, slot, &mut sketch, heads));
    if let Some(heads) = refused {
        lower.iter().copied().for_each(|pod| cycle.shift(pod, node, 1, &snapshot.namespaces));
        return Err(heads);
    }
    let (breaking, others) = budgets.split(lower);
    let mut victims = Victims { slot, pods: Vec::new(), violations: 0 };
    for (pods, is_breaking) in [(breaking, true), (others, false)] {
        for pod in pods {
            if !reprieve(cycle, snapshot, slot, &mut sketch, pod) {
                victims.violations += usize::from(is_breaking);
                victims.pods.push(Arc::clone(pod));
            }
        }
    }
    // Those that were not reprieved are back in what was worked out of the whole snapshot.
    let is_victim = |pod: &Arc<PodInfo>| victims.pods.iter().any(|victim| Arc::ptr_eq(victim, pod));
    node.pods.values().filter(|pod| is_victim(pod)).for_each(|pod| cycle.shift(pod, node, 1, &snapshot.namespaces));
    victims.pods.sort_by(|one, other| importance(one).cmp(&importance(other)));
    // It fits without anybody's end only if something has changed in between.
    if victims.pods.is_empty() { Err(vec![NO_VICTIMS.to_owned()]) } else { Ok(victims) }
}

/// Lets a pod stay if there is room for both; whether it stays.
fn reprieve<'a>(
    cycle: &mut Cycle<'a>,
    snapshot: &'a Snapshot,
    slot: usize,
    sketch: &mut NodeInfo,
    pod: &'a Arc<PodInfo>,
) -> bool {
    let node = snapshot.node(slot);
    sketch.load(pod);
    cycle.shift(pod, node, 1, &snapshot.namespaces);
    let stays = !cycle.is_crowded(sketch) && !beside_nominated(cycle, snapshot, slot, sketch, Cycle::is_crowded);
    if !stays {
        sketch.unload(pod);
        cycle.shift(pod, node, -1, &snapshot.namespaces);
    }
    stays
}

/// Orders the more important pod first: by priority, then the one that runs longer.
fn importance(pod: &PodInfo) -> impl Ord + '_ {
    (Reverse(pod.priority), started(pod), pod.uid())
}

fn started(pod: &PodInfo) -> Timestamp {
    pod.started.unwrap_or(Timestamp::MAX)
}

/// The node that loses least (upstream `pickOneNodeForPreemption`): the fewest broken budgets, then the lowest of the highest
/// priorities, then of their sums, then the fewest pods, then where the most important ones run the shortest.
///
/// A node that was chosen before, and one of whose pods was told already, comes before all others: a scheduler that was stopped in
/// between goes on where it was.
pub fn best(candidates: Vec<Victims>, begun: Option<usize>) -> Option<Victims> {
    let is_begun = |victims: &Victims| Some(victims.slot) == begun && victims.pods.iter().any(|pod| pod.is_preempted);
    candidates.into_iter().min_by_key(|victims| {
        let highest = victims.pods.first().map_or(i32::MIN, |pod| pod.priority);
        let sum: i64 = victims.pods.iter().map(|pod| i64::from(pod.priority) - i64::from(i32::MIN)).sum();
        let most_important = victims.pods.iter().filter(|pod| pod.priority == highest);
        let earliest = most_important.map(|pod| started(pod)).min();
        (!is_begun(victims), victims.violations, highest, sum, victims.pods.len(), Reverse(earliest))
    })
}
