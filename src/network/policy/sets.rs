//! Sets whose content follows the pods: which elements they hold, and what has changed since the kernel was last told.

use std::collections::{BTreeSet, HashMap};
use std::net::Ipv4Addr;

use super::facts::{Labels, PodFacts};
use super::profile::{Element, SetSpec, named, selects};

/// A pod as a peer of others.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer<'a> {
    pub(super) facts: &'a PodFacts,
    pub(super) ip: Ipv4Addr,
    pub(super) of_namespace: Option<&'a Labels>,
}

/// A set and what the kernel knows of it.
#[derive(Debug)]
pub(super) struct SetState {
    pub(super) spec: SetSpec,
    /// How many chains look into it.
    pub(super) users: usize,
    /// Whether the kernel has it.
    pub(super) is_told: bool,
    /// How many pods stand behind each element: for a moment two may have the same address.
    members: HashMap<Element, u32>,
    pub(super) added: BTreeSet<Element>,
    pub(super) removed: BTreeSet<Element>,
}

impl SetState {
    pub(super) fn new(spec: SetSpec) -> Self {
        Self { spec, users: 0, is_told: false, members: HashMap::new(), added: BTreeSet::new(), removed: BTreeSet::new() }
    }

    /// Whether pods can change it.
    pub(super) fn follows_pods(&self) -> bool {
        matches!(self.spec, SetSpec::Pods(_) | SetSpec::Endpoints(..))
    }

    /// What it holds, in order.
    pub(super) fn elements(&self) -> BTreeSet<Element> {
        self.members.keys().copied().collect()
    }

    pub(super) fn insert(&mut self, element: Element) {
        let count = self.members.entry(element).or_insert(0);
        *count += 1;
        if *count == 1 && !self.removed.remove(&element) {
            self.added.insert(element);
        }
    }

    pub(super) fn remove(&mut self, element: Element) {
        let Some(count) = self.members.get_mut(&element) else { return };
        *count -= 1;
        if *count == 0 {
            self.members.remove(&element);
            if !self.added.remove(&element) {
                self.removed.insert(element);
            }
        }
    }

    /// The kernel has been told everything.
    pub(super) fn told(&mut self) {
        self.is_told = true;
        self.added.clear();
        self.removed.clear();
    }
}

/// The elements of a set that come from one pod.
pub(super) fn elements_of(spec: &SetSpec, peer: Peer<'_>) -> Vec<Element> {
    let selected = |peers| selects(peers, &peer.facts.namespace, peer.of_namespace, &peer.facts.labels);
    match spec {
        SetSpec::Pods(peers) if selected(peers) => vec![Element::Address(peer.ip)],
        SetSpec::Endpoints(peers, protocol, name) if selected(peers) => {
            let mut ports: Vec<u16> = named(&peer.facts.ports, *protocol, name).collect();
            ports.sort_unstable();
            ports.dedup();
            ports.into_iter().map(|port| Element::Endpoint(peer.ip, *protocol, port)).collect()
        }
        _ => Vec::new(),
    }
}
