//! A difference that the kernel is told in one transaction.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use super::profile::{Allow, Direction, Element, Name, SetSpec};

/// A set that is new, with all that it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NewSet {
    pub(crate) name: Name,
    pub(crate) spec: SetSpec,
    /// Empty for the kinds whose content is in `spec`.
    pub(crate) elements: BTreeSet<Element>,
}

/// A set that is there and holds something else now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SetChange {
    pub(crate) name: Name,
    pub(crate) added: BTreeSet<Element>,
    pub(crate) removed: BTreeSet<Element>,
}

/// A chain that is new.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NewChain {
    pub(crate) name: Name,
    pub(crate) direction: Direction,
    pub(crate) allows: Vec<Allow>,
}

/// What changes. The order in which to apply is that of the fields.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Batch {
    pub(crate) sets: Vec<NewSet>,
    pub(crate) set_changes: Vec<SetChange>,
    pub(crate) chains: Vec<NewChain>,
    pub(crate) verdicts_removed: Vec<(Direction, Ipv4Addr, Name)>,
    pub(crate) verdicts_added: Vec<(Direction, Ipv4Addr, Name)>,
    /// Pods of this node that policies select: they reach themselves, also by way of a Service.
    pub(crate) selves_removed: Vec<Ipv4Addr>,
    pub(crate) selves_added: Vec<Ipv4Addr>,
    pub(crate) chains_gone: Vec<Name>,
    pub(crate) sets_gone: Vec<Name>,
}

impl Batch {
    /// Whether there is nothing to tell.
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The same difference always looks the same.
    pub(super) fn sort(&mut self) {
        self.sets.sort_by(|left, right| left.name.cmp(&right.name));
        self.set_changes.sort_by(|left, right| left.name.cmp(&right.name));
        self.chains.sort_by(|left, right| left.name.cmp(&right.name));
        self.chains_gone.sort();
        self.sets_gone.sort();
    }
}
