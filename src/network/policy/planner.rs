//! The planner: from policies, namespaces, pods and this node's pods to what the kernel must hold. No IO.
//!
//! Every input is a single fact that changed; what it touches is marked, and [`Planner::changes`] gives the difference since the
//! last time. A pod costs one look at each set in use (a set is one distinct choice of peers, whatever the number of rules and
//! pods that use it); a policy costs the local pods of its namespace; only sets and chains that a local pod needs exist.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::Ipv4Addr;
use std::sync::Arc;

use ipnet::Ipv4Net;
use k8s_openapi::api::networking::v1::NetworkPolicy;

use super::batch::{Batch, NewChain, NewSet, SetChange};
use super::compile::Policy;
use super::facts::{Labels, PodFacts};
use super::profile::{Allow, Content, DNS_NAMESPACE, Direction, Name, Profile, resolve};
use super::sets::{Peer, SetState, elements_of};

/// A pod that has its address on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Local {
    pub(crate) ip: Ipv4Addr,
    /// What the agent said of it; absent for a pod that was there before the agent started.
    pub(crate) facts: Option<Arc<PodFacts>>,
}

/// What is known of a pod.
#[derive(Debug, Clone, Default)]
struct Known {
    /// From the API.
    listed: Option<Arc<PodFacts>>,
    local: Option<Local>,
}

impl Known {
    /// The newest facts.
    fn facts(&self) -> Option<&Arc<PodFacts>> {
        let said = self.local.as_ref().and_then(|local| local.facts.as_ref());
        match (self.listed.as_ref(), said) {
            (Some(listed), Some(said)) if said.is_newer_than(listed) => Some(said),
            (listed, said) => listed.or(said),
        }
    }

    fn is_same_to_policies(&self, other: &Self) -> bool {
        let same_facts = match (self.facts(), other.facts()) {
            (Some(one), Some(other)) => one.is_same_to_policies(other),
            (None, None) => true,
            _ => false,
        };
        same_facts && self.local.as_ref().map(|local| local.ip) == other.local.as_ref().map(|local| local.ip)
    }

    /// The pod as a peer: a local one as soon as it has its address, others when the API says so.
    fn peer(&self) -> Option<(&PodFacts, Ipv4Addr)> {
        let facts = self.facts()?;
        let ip = match &self.local {
            Some(local) => (!facts.host_network && !facts.finished).then_some(local.ip),
            None => facts.peer_ip(),
        };
        ip.map(|ip| (&**facts, ip))
    }
}

#[derive(Debug)]
struct ChainState {
    allows: Vec<Allow>,
    direction: Direction,
    sets: Vec<Name>,
    /// How many local pods have it.
    users: usize,
    is_told: bool,
}

/// What this node must enforce.
#[derive(Debug)]
pub(crate) struct Planner {
    cluster_cidr: Ipv4Net,
    namespaces: HashMap<Box<str>, Labels>,
    policies: HashMap<Box<str>, BTreeMap<Box<str>, Policy>>,
    pods: HashMap<Box<str>, Known>,
    /// The chains of each local pod.
    subjects: BTreeMap<Box<str>, Subject>,
    sets: HashMap<Name, SetState>,
    chains: HashMap<Name, ChainState>,
    /// Local pods whose chains may be others now.
    dirty: BTreeSet<Box<str>>,
    /// What the kernel holds: pod address to chain.
    verdicts: [BTreeMap<Ipv4Addr, Name>; 2],
}

#[derive(Debug, Default)]
struct Subject {
    ip: Option<Ipv4Addr>,
    chains: [Option<Name>; 2],
}

impl Planner {
    /// A planner that knows nothing yet. `cluster_cidr` is the range of all pods.
    pub(crate) fn new(cluster_cidr: Ipv4Net) -> Self {
        Self {
            cluster_cidr,
            namespaces: HashMap::new(),
            policies: HashMap::new(),
            pods: HashMap::new(),
            subjects: BTreeMap::new(),
            sets: HashMap::new(),
            chains: HashMap::new(),
            dirty: BTreeSet::new(),
            verdicts: [BTreeMap::new(), BTreeMap::new()],
        }
    }

    /// A policy is there as given.
    pub(crate) fn put_policy(&mut self, policy: &NetworkPolicy) {
        let (namespace, name) = policy_key(policy);
        let compiled = Policy::compile(policy, self.cluster_cidr);
        let policies = self.policies.entry(namespace.into()).or_default();
        if policies.get(name) == Some(&compiled) {
            return;
        }
        policies.insert(name.into(), compiled);
        self.touch_namespace(namespace);
    }

    /// A policy is gone.
    pub(crate) fn remove_policy(&mut self, policy: &NetworkPolicy) {
        let (namespace, name) = policy_key(policy);
        let Some(policies) = self.policies.get_mut(namespace) else { return };
        policies.remove(name);
        if policies.is_empty() {
            self.policies.remove(namespace);
        }
        self.touch_namespace(namespace);
    }

    /// A namespace has these labels; `None` if it is gone.
    pub(crate) fn set_namespace(&mut self, name: &str, labels: Option<Labels>) {
        if self.namespaces.get(name) == labels.as_ref() {
            return;
        }
        let of_namespace: Vec<Box<str>> = self
            .pods
            .iter()
            .filter(|(_, known)| known.facts().is_some_and(|facts| &*facts.namespace == name))
            .map(|(uid, _)| uid.clone())
            .collect();
        for uid in &of_namespace {
            self.withdraw(uid);
        }
        match labels {
            Some(labels) => self.namespaces.insert(name.into(), labels),
            None => self.namespaces.remove(name),
        };
        for uid in &of_namespace {
            self.enter(uid);
        }
        if name == DNS_NAMESPACE {
            self.dirty.extend(self.subjects.keys().cloned());
        }
    }

    /// The API has a pod as given.
    pub(crate) fn put_pod(&mut self, facts: &Arc<PodFacts>) {
        self.change(&facts.uid, |known| known.listed = Some(Arc::clone(facts)));
    }

    /// The API has a pod no longer.
    pub(crate) fn remove_pod(&mut self, uid: &str) {
        self.change(uid, |known| known.listed = None);
    }

    /// A pod has its address on this node, or has it no longer.
    pub(crate) fn set_local(&mut self, uid: &str, local: Option<Local>) {
        if local.is_some() {
            self.subjects.entry(uid.into()).or_default();
        }
        self.change(uid, |known| known.local = local);
    }

    fn change(&mut self, uid: &str, change: impl FnOnce(&mut Known)) {
        let mut next = self.pods.get(uid).cloned().unwrap_or_default();
        change(&mut next);
        let is_same = self.pods.get(uid).is_some_and(|known| known.is_same_to_policies(&next));
        if !is_same {
            self.withdraw(uid);
        }
        if next.listed.is_none() && next.local.is_none() {
            self.pods.remove(uid);
        } else {
            self.pods.insert(uid.into(), next);
        }
        if !is_same {
            self.enter(uid);
            if self.subjects.contains_key(uid) {
                self.dirty.insert(uid.into());
            }
        }
    }

    fn touch_namespace(&mut self, namespace: &str) {
        let is_of = |uid: &str| self.pods.get(uid).and_then(Known::facts).is_some_and(|facts| &*facts.namespace == namespace);
        self.dirty.extend(self.subjects.keys().filter(|uid| is_of(uid)).cloned());
    }

    fn withdraw(&mut self, uid: &str) {
        let Some(peer) = peer(&self.pods, &self.namespaces, uid) else { return };
        for set in self.sets.values_mut() {
            elements_of(&set.spec, peer).into_iter().for_each(|element| set.remove(element));
        }
    }

    fn enter(&mut self, uid: &str) {
        let Some(peer) = peer(&self.pods, &self.namespaces, uid) else { return };
        for set in self.sets.values_mut() {
            elements_of(&set.spec, peer).into_iter().for_each(|element| set.insert(element));
        }
    }

    /// Gives each pod that may need others its chains.
    fn settle(&mut self) {
        for uid in std::mem::take(&mut self.dirty) {
            let known = self.pods.get(&uid);
            let local = known.and_then(|known| known.local.as_ref()).map(|local| local.ip);
            let wanted = Direction::BOTH.map(|direction| match local {
                Some(_) => self.profile(direction, known.and_then(Known::facts)),
                None => Profile::Open,
            });
            let mut subject = self.subjects.remove(&uid).unwrap_or_default();
            for (direction, profile) in Direction::BOTH.into_iter().zip(wanted) {
                let chain = match profile {
                    Profile::Open => None,
                    Profile::Only(content) => Some(self.acquire(direction, content)),
                };
                let before = std::mem::replace(&mut subject.chains[direction as usize], chain);
                if let Some(state) = before.and_then(|name| self.chains.get_mut(&name)) {
                    state.users -= 1;
                }
            }
            subject.ip = local;
            if local.is_some() {
                self.subjects.insert(uid, subject);
            }
        }
    }

    /// A pod of which nothing is known gets nothing and sends nothing.
    fn profile(&self, direction: Direction, facts: Option<&Arc<PodFacts>>) -> Profile {
        let Some(facts) = facts else { return Profile::Only(Content::default()) };
        let policies = self.policies.get(&facts.namespace);
        resolve(direction, facts, policies.into_iter().flat_map(BTreeMap::values), self.namespaces.get(DNS_NAMESPACE))
    }

    /// The chain of that content, made if need be.
    fn acquire(&mut self, direction: Direction, content: Content) -> Name {
        let name = content.name(direction);
        if let Some(chain) = self.chains.get_mut(&name) {
            chain.users += 1;
            return name;
        }
        let Content { allows, sets } = content;
        let used = sets.keys().cloned().collect();
        for (set, spec) in sets {
            let (pods, namespaces) = (&self.pods, &self.namespaces);
            let state = self.sets.entry(set).or_insert_with(|| {
                let mut state = SetState::new(spec);
                if state.follows_pods() {
                    let peers = pods.keys().filter_map(|uid| peer(pods, namespaces, uid));
                    peers
                        .flat_map(|peer| elements_of(&state.spec, peer))
                        .collect::<Vec<_>>()
                        .into_iter()
                        .for_each(|element| state.insert(element));
                }
                state
            });
            state.users += 1;
        }
        self.chains.insert(Arc::clone(&name), ChainState { direction, allows, sets: used, users: 1, is_told: false });
        name
    }

    /// What must change in a kernel that holds what was planned before. Taken once; if it cannot be applied, what the kernel
    /// holds is unknown, and [`whole`](Self::whole) has to follow.
    pub(crate) fn changes(&mut self) -> Batch {
        self.settle();
        let mut batch = Batch::default();
        let unused = self.chains.extract_if(|_, chain| chain.users == 0).collect::<Vec<_>>();
        for (name, chain) in unused {
            for set in &chain.sets {
                if let Some(state) = self.sets.get_mut(set) {
                    state.users -= 1;
                }
            }
            batch.chains_gone.extend(chain.is_told.then_some(name));
        }
        let unused = self.sets.extract_if(|_, set| set.users == 0);
        batch.sets_gone.extend(unused.filter(|(_, set)| set.is_told).map(|(name, _)| name));
        for (name, set) in &mut self.sets {
            if !set.is_told {
                batch.sets.push(NewSet { name: Arc::clone(name), spec: set.spec.clone(), elements: set.elements() });
            } else if !set.added.is_empty() || !set.removed.is_empty() {
                let (added, removed) = (std::mem::take(&mut set.added), std::mem::take(&mut set.removed));
                batch.set_changes.push(SetChange { name: Arc::clone(name), added, removed });
            }
            set.told();
        }
        for (name, chain) in &mut self.chains {
            if !std::mem::replace(&mut chain.is_told, true) {
                batch.chains.push(NewChain { name: Arc::clone(name), direction: chain.direction, allows: chain.allows.clone() });
            }
        }
        let selves = self.selves();
        for direction in Direction::BOTH {
            let wanted = self.wanted(direction);
            let told = std::mem::replace(&mut self.verdicts[direction as usize], wanted);
            let wanted = &self.verdicts[direction as usize];
            let removed = told
                .iter()
                .filter(|(ip, chain)| wanted.get(ip) != Some(chain))
                .map(|(ip, chain)| (direction, *ip, Arc::clone(chain)));
            batch.verdicts_removed.extend(removed);
            let added = wanted
                .iter()
                .filter(|(ip, chain)| told.get(ip) != Some(chain))
                .map(|(ip, chain)| (direction, *ip, Arc::clone(chain)));
            batch.verdicts_added.extend(added);
        }
        let now = self.selves();
        batch.selves_removed.extend(selves.difference(&now));
        batch.selves_added.extend(now.difference(&selves));
        batch.sort();
        batch
    }

    /// Everything that the kernel must hold, for a table that is made anew.
    pub(crate) fn whole(&mut self) -> Batch {
        self.sets.values_mut().for_each(|set| set.is_told = false);
        self.chains.values_mut().for_each(|chain| chain.is_told = false);
        self.verdicts = [BTreeMap::new(), BTreeMap::new()];
        self.changes()
    }

    fn selves(&self) -> BTreeSet<Ipv4Addr> {
        self.verdicts.iter().flat_map(BTreeMap::keys).copied().collect()
    }

    fn wanted(&self, direction: Direction) -> BTreeMap<Ipv4Addr, Name> {
        let chain = |subject: &Subject| Some((subject.ip?, subject.chains[direction as usize].clone()?));
        self.subjects.values().filter_map(chain).collect()
    }
}

fn peer<'a>(pods: &'a HashMap<Box<str>, Known>, namespaces: &'a HashMap<Box<str>, Labels>, uid: &str) -> Option<Peer<'a>> {
    let (facts, ip) = pods.get(uid)?.peer()?;
    Some(Peer { facts, ip, of_namespace: namespaces.get(&facts.namespace) })
}

fn policy_key(policy: &NetworkPolicy) -> (&str, &str) {
    (policy.metadata.namespace.as_deref().unwrap_or(""), policy.metadata.name.as_deref().unwrap_or(""))
}
