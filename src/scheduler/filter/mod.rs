//! The filters: where a pod can run. One file a filter, one line in [`FILTERS`].
//!
//! A filter answers fast, without allocating; only when a pod fits nowhere is it asked to explain itself, in upstream's words and
//! with what would help.

use super::pod_info::PodInfo;
use super::snapshot::{NodeInfo, Snapshot};
use super::volumes::Claims;

mod dynamic_resources;
mod inter_pod_affinity;
mod node_affinity;
mod node_name;
mod node_ports;
mod node_resources;
mod node_unschedulable;
mod pod_topology_spread;
mod taint_toleration;
mod volume_binding;
mod volume_restrictions;
mod volume_zone;

pub use node_affinity::{matches_required, term_matches};
pub use taint_toleration::tolerates;

/// Why a node does not do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reason {
    /// What is counted over all nodes, in upstream's words: `Insufficient cpu`.
    pub head: String,
    /// What this node lacks: `lacks 200m CPU`.
    pub detail: String,
}

impl Reason {
    fn new(head: impl Into<String>, detail: impl Into<String>) -> Vec<Self> {
        vec![Self { head: head.into(), detail: detail.into() }]
    }
}

/// A pod that is to be placed, with what the filters worked out of the snapshot for it.
pub struct Cycle<'a> {
    pub pod: &'a PodInfo,
    spread: Vec<pod_topology_spread::Domains<'a>>,
    pub(super) affinity: inter_pod_affinity::Pairs<'a>,
    /// The pod's claims and what they mean.
    pub claims: Claims,
    has_exclusive_conflict: bool,
}

impl<'a> Cycle<'a> {
    /// Prepares the filters for a pod.
    pub fn new(pod: &'a PodInfo, snapshot: &'a Snapshot) -> Self {
        let claims = snapshot.storage().map_or_else(Claims::default, |storage| Claims::of(&pod.pod, storage));
        Self {
            pod,
            spread: pod_topology_spread::domains(pod, snapshot),
            affinity: inter_pod_affinity::Pairs::new(pod, snapshot),
            has_exclusive_conflict: volume_restrictions::has_conflict(pod, &claims, snapshot),
            claims,
        }
    }

    /// For each soft spread constraint of the pod, how many matching pods are in the domain of a node.
    pub fn soft_counts<'b>(&'b self, node: &'b NodeInfo) -> impl Iterator<Item = Option<i64>> + 'b {
        self.spread.iter().filter(|domains| domains.is_soft()).map(|domains| domains.soft_count(node))
    }

    /// The first filter that the node does not pass, as an index into [`FILTERS`].
    pub fn fails(&self, node: &NodeInfo) -> Option<usize> {
        FILTERS.iter().position(|filter| !(filter.passes)(self, node))
    }
}

/// What can let a pod through a filter; each includes the ones before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum HelpedBy {
    /// A change of a node.
    Nodes,
    /// The end or change of another pod.
    GonePods,
    /// A pod that was placed.
    NewPods,
}

/// One filter.
pub struct Filter {
    pub name: &'static str,
    /// Whether the pod can run on the node.
    pub passes: fn(&Cycle<'_>, &NodeInfo) -> bool,
    /// Why not; called only if it cannot.
    pub explain: fn(&Cycle<'_>, &NodeInfo) -> Vec<Reason>,
    /// What can let a pod through that was refused.
    pub helped_by: HelpedBy,
}

/// Every filter, in the order in which they are asked; the cheap ones first.
pub const FILTERS: &[Filter] = &[
    node_unschedulable::FILTER,
    node_name::FILTER,
    dynamic_resources::FILTER,
    taint_toleration::FILTER,
    node_affinity::FILTER,
    node_ports::FILTER,
    node_resources::FILTER,
    volume_restrictions::FILTER,
    volume_binding::FILTER,
    volume_zone::FILTER,
    pod_topology_spread::FILTER,
    inter_pod_affinity::FILTER,
];

#[cfg(test)]
mod tests;
