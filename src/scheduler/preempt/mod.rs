//! Preemption: a pod that fits nowhere takes the room of pods of lower priority. Decides only; what follows is written in
//! [`super::evict`]. Upstream's `scheduler/framework/preemption` and `plugins/defaultpreemption`.
//!
//! Nothing here has to survive the scheduler: that a node is kept for a pod, and that a pod makes room, the API says.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::filter::Cycle;
use super::nomination;
use super::pod_info::PodInfo;
use super::snapshot::Snapshot;

mod budget;
mod victims;

pub use budget::Budgets;
use victims::{NO_VICTIMS, Victims, best, select};

/// Candidates after which the search ends, as a part of the nodes that come into question and at least (upstream's
/// `minCandidateNodesPercentage` and `minCandidateNodesAbsolute`).
const CANDIDATES_PERCENT: usize = 10;
const CANDIDATES_MIN: usize = 100;

const NEVER: &str = "not eligible due to preemptionPolicy=Never.";
const UNDER_WAY: &str = "not eligible due to a terminating pod on the nominated node.";
const NOT_HELPFUL: &str = "Preemption is not helpful for scheduling";

/// What becomes of a pod that fits nowhere.
#[derive(Debug)]
pub enum Outcome {
    /// These pods leave the node in this slot, which is kept for it.
    Remove { slot: usize, victims: Vec<Arc<PodInfo>> },
    /// It waits, and a node that is kept for it stays so. Why.
    Wait(&'static str),
    /// Nobody's end would help, and no node is kept for it. Why, node by node.
    Useless(String),
}

/// Finds the pods that make room for others, and remembers those whose end is under way.
#[derive(Default)]
pub struct Preemptions {
    pub budgets: Budgets,
    /// For each pod that preempts, the uids of the pods that were chosen.
    under_way: HashMap<String, Vec<String>>,
    /// Where the search for candidates starts.
    start: usize,
}

impl Preemptions {
    /// Preemption that knows these budgets.
    pub fn new(budgets: Budgets) -> Self {
        Self { budgets, ..Self::default() }
    }

    /// Finds room for a pod that fits nowhere.
    pub fn find<'a>(&mut self, cycle: &mut Cycle<'a>, snapshot: &'a Snapshot) -> Outcome {
        let uid = cycle.pod.uid();
        let kept = snapshot.nominations.node_of(uid).and_then(|node| snapshot.find(node));
        if !cycle.pod.may_preempt() {
            return Outcome::Wait(NEVER);
        }
        let is_blocked = cycle.claims.blocked.is_some();
        if let Some(slot) = kept.filter(|_| !is_blocked)
            && nomination::yields(cycle, snapshot, slot)
            && self.is_under_way(cycle.pod, snapshot, slot)
        {
            return Outcome::Wait(UNDER_WAY);
        }
        self.forget(uid);
        self.budgets.refresh();
        let mut slots = Vec::new();
        if !is_blocked {
            slots.extend(snapshot.live().iter().copied().filter(|slot| nomination::yields(cycle, snapshot, *slot)));
        }
        let mut heads: BTreeMap<String, usize> = BTreeMap::new();
        let unhelpful = snapshot.live().len() - slots.len();
        if unhelpful > 0 {
            heads.insert(NOT_HELPFUL.to_owned(), unhelpful);
        }
        let candidates = self.candidates(cycle, snapshot, &slots, kept, &mut heads);
        match best(candidates, kept) {
            Some(Victims { slot, pods, .. }) => {
                pods.iter().for_each(|pod| self.budgets.spend(pod));
                self.under_way.insert(uid.to_owned(), pods.iter().map(|pod| pod.uid().to_owned()).collect());
                Outcome::Remove { slot, victims: pods }
            }
            None => Outcome::Useless(told(snapshot.live().len(), heads)),
        }
    }

    /// Looks at nodes, the one that was kept for the pod first and then from another start each time, until there are enough
    /// candidates, of which one breaks no budget.
    fn candidates<'a>(
        &mut self,
        cycle: &mut Cycle<'a>,
        snapshot: &'a Snapshot,
        slots: &[usize],
        kept: Option<usize>,
        heads: &mut BTreeMap<String, usize>,
    ) -> Vec<Victims> {
        let enough = (slots.len() * CANDIDATES_PERCENT / 100).max(CANDIDATES_MIN);
        let first = self.start.checked_rem(slots.len()).unwrap_or(0);
        let (before, after) = slots.split_at(first);
        let kept = kept.filter(|kept| slots.contains(kept));
        let others = after.iter().chain(before).copied().filter(|slot| Some(*slot) != kept);
        let (mut found, mut is_harmless, mut looked_at, mut nobody) = (Vec::new(), false, 0, 0);
        for slot in kept.into_iter().chain(others) {
            looked_at += 1;
            if snapshot.node(slot).lowest_priority().is_none_or(|lowest| lowest >= cycle.pod.priority) {
                nobody += 1;
                continue;
            }
            match select(cycle, snapshot, slot, &self.budgets) {
                Ok(victims) => {
                    is_harmless |= victims.violations == 0;
                    found.push(victims);
                }
                Err(reasons) => reasons.into_iter().for_each(|head| *heads.entry(head).or_default() += 1),
            }
            if is_harmless && found.len() >= enough {
                break;
            }
        }
        self.start = first + looked_at;
        if nobody > 0 {
            *heads.entry(NO_VICTIMS.to_owned()).or_default() += nobody;
        }
        found
    }

    /// Whether pods that this one preempted still end.
    fn is_under_way(&self, pod: &PodInfo, snapshot: &Snapshot, kept: usize) -> bool {
        let chosen = self.under_way.get(pod.uid()).into_iter().flatten();
        let ends = |other: &PodInfo| other.priority < pod.priority && other.is_terminating() && other.is_preempted;
        chosen.into_iter().any(|uid| snapshot.pod(uid).is_some()) || snapshot.node(kept).pods.values().any(|other| ends(other))
    }

    /// What a pod preempted is of no more concern: it is placed or gone, or its victims could not be removed.
    pub fn forget(&mut self, uid: &str) {
        self.under_way.remove(uid);
    }
}

/// `0/3 nodes are available: 1 No preemption victims found for incoming pod, 2 Preemption is not helpful for scheduling.`
fn told(nodes: usize, heads: BTreeMap<String, usize>) -> String {
    let mut counted: Vec<String> = heads.into_iter().map(|(head, count)| format!("{count} {head}")).collect();
    counted.sort();
    format!("0/{nodes} nodes are available: {}.", counted.join(", "))
}

#[cfg(test)]
mod tests;
