//! The desired content of the proxy's table, and the difference to what the kernel has.
//!
//! Each Service (and each pod with host ports) contributes to the table under its key. Where several want the same front, the one
//! whose key comes first has it. What changed since the last [`Desired::changes`] is known element by element, so the cost of a
//! change does not depend on how much there is.

use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;
use std::net::Ipv4Addr;

use super::endpoints::Target;
use super::hostport::HostPort;
use super::layout::{self, Keys, Layout, Map, REJECT, Shared};
use super::plan::{Frontend, Plan, Route};
use super::{Front, Protocol};
use crate::client::ObjectKey;
use crate::network::nft::{Batch, Data, Element, Key, Verdict};

/// What a map holds for a key: nothing in a set.
type Value = Option<Data>;

/// A front as it is in the table: its endpoints have places.
#[derive(Debug, Clone)]
struct Placed {
    frontend: Frontend,
    chains: Vec<Shared>,
}

/// The desired content, and what of it the kernel does not have yet.
#[derive(Default)]
pub(super) struct Desired {
    plans: HashMap<ObjectKey, Plan>,
    host_ports: HashMap<ObjectKey, Vec<HostPort>>,
    owners: HashMap<Front, BTreeSet<ObjectKey>>,
    host_port_owners: HashMap<(Option<Ipv4Addr>, Protocol, u16), BTreeSet<ObjectKey>>,
    placed: HashMap<Front, Placed>,
    cluster_ips: Counts<Ipv4Addr>,
    hairpin: Counts<Ipv4Addr>,
    chains: Counts<Shared>,
    elements: HashMap<(Map, Key), Value>,
    /// What each changed element was when the kernel was last told.
    changed: HashMap<(Map, Key), Option<Value>>,
    /// Whether each changed chain was there then.
    changed_chains: HashMap<Shared, bool>,
    /// Fronts that changed since the last [`Desired::take_changed_fronts`].
    changed_fronts: BTreeSet<Front>,
}

/// How often something is wanted.
struct Counts<T>(HashMap<T, usize>);

impl<T> Default for Counts<T> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<T: Eq + Hash> Counts<T> {
    /// Whether it is new.
    fn add(&mut self, what: T) -> bool {
        let count = self.0.entry(what).or_insert(0);
        *count += 1;
        *count == 1
    }

    /// Whether it was the last.
    fn remove(&mut self, what: &T) -> bool {
        let Some(count) = self.0.get_mut(what) else { return false };
        *count -= 1;
        if *count > 0 {
            return false;
        }
        self.0.remove(what);
        true
    }
}

impl Desired {
    /// Says what a Service means now; `None`: it is gone, or not for this proxy.
    pub(super) fn set_service(&mut self, service: &ObjectKey, plan: Option<Plan>) {
        let old = match &plan {
            Some(new) if self.plans.get(service) == Some(new) => return,
            Some(new) => self.plans.insert(service.clone(), new.clone()),
            None => self.plans.remove(service),
        };
        let (old, new) = (old.unwrap_or_default(), plan.unwrap_or_default());
        let mut fronts = BTreeSet::new();
        for frontend in &new.frontends {
            self.owners.entry(frontend.front).or_default().insert(service.clone());
            fronts.insert(frontend.front);
        }
        for frontend in &old.frontends {
            if !fronts.insert(frontend.front) {
                continue;
            }
            if let Some(owners) = self.owners.get_mut(&frontend.front) {
                owners.remove(service);
                if owners.is_empty() {
                    self.owners.remove(&frontend.front);
                }
            }
        }
        for front in fronts {
            self.place(front);
        }
        new.cluster_ips.iter().for_each(|ip| self.count_cluster_ip(*ip, true));
        old.cluster_ips.iter().for_each(|ip| self.count_cluster_ip(*ip, false));
        new.hairpin.iter().for_each(|ip| self.count_hairpin(*ip, true));
        old.hairpin.iter().for_each(|ip| self.count_hairpin(*ip, false));
    }

    /// Says which host ports a pod of this node has now.
    pub(super) fn set_host_ports(&mut self, pod: &ObjectKey, ports: Vec<HostPort>) {
        let old = if ports.is_empty() { self.host_ports.remove(pod) } else { self.host_ports.insert(pod.clone(), ports.clone()) };
        let old = old.unwrap_or_default();
        if old == ports {
            return;
        }
        for port in &ports {
            self.host_port_owners.entry(port.key()).or_default().insert(pod.clone());
            self.count_hairpin(port.target.ip, true);
        }
        let kept: BTreeSet<_> = ports.iter().map(HostPort::key).collect();
        for port in &old {
            if !kept.contains(&port.key())
                && let Some(owners) = self.host_port_owners.get_mut(&port.key())
            {
                owners.remove(pod);
                if owners.is_empty() {
                    self.host_port_owners.remove(&port.key());
                }
            }
            self.count_hairpin(port.target.ip, false);
        }
        for key in old.iter().chain(&ports).map(HostPort::key).collect::<BTreeSet<_>>() {
            self.place_host_port(key);
        }
    }

    fn place_host_port(&mut self, key: (Option<Ipv4Addr>, Protocol, u16)) {
        let owner = self.host_port_owners.get(&key).and_then(BTreeSet::first);
        let ports = owner.and_then(|owner| self.host_ports.get(owner));
        let target = ports.into_iter().flatten().find(|port| port.key() == key).map(|port| port.target);
        let (ip, protocol, port) = key;
        let (map, key) = match ip {
            Some(ip) => (Map::HostPorts, front_key(Front::Address { ip, protocol, port })),
            None => (Map::AnyHostPorts, front_key(Front::NodePort { protocol, port })),
        };
        self.set(map, key, target.map(|target| Some(target_data(target))));
    }

    fn count_cluster_ip(&mut self, ip: Ipv4Addr, more: bool) {
        if if more { self.cluster_ips.add(ip) } else { self.cluster_ips.remove(&ip) } {
            self.set(Map::ClusterIps, Key::new().ipv4(ip), more.then_some(None));
        }
    }

    fn count_hairpin(&mut self, ip: Ipv4Addr, more: bool) {
        if if more { self.hairpin.add(ip) } else { self.hairpin.remove(&ip) } {
            self.set(Map::Hairpin, Key::new().ipv4(ip).ipv4(ip), more.then_some(None));
        }
    }

    fn count_chain(&mut self, chain: &Shared, more: bool) {
        if if more { self.chains.add(chain.clone()) } else { self.chains.remove(chain) } {
            self.changed_chains.entry(chain.clone()).or_insert(!more);
        }
        if let Some(needed) = chain.needs() {
            self.count_chain(&needed, more);
        }
    }

    /// Puts a front into the table as its first owner wants it.
    fn place(&mut self, front: Front) {
        let owner = self.owners.get(&front).and_then(BTreeSet::first);
        let wanted = owner.and_then(|owner| self.plans.get(owner)?.frontends.iter().find(|one| one.front == front)).cloned();
        let old = self.placed.remove(&front);
        let new = wanted.map(|frontend| arranged(frontend, old.as_ref().map(|old| &old.frontend)));
        if old.as_ref().map(|old| &old.frontend) == new.as_ref() {
            if let Some(old) = old {
                self.placed.insert(front, old);
            }
            return;
        }
        self.changed_fronts.insert(front);
        let new = new.map(|frontend| Placed { chains: chains(&frontend), frontend });
        // New chains are counted first, so that a chain that both use stays.
        new.iter().flat_map(|new| &new.chains).for_each(|chain| self.count_chain(chain, true));
        if let Some(old) = &old {
            for (map, key, _) in elements(old) {
                self.set(map, key, None);
            }
            old.chains.iter().for_each(|chain| self.count_chain(chain, false));
        }
        if let Some(new) = new {
            for (map, key, value) in elements(&new) {
                self.set(map, key, Some(value));
            }
            self.placed.insert(front, new);
        }
    }

    /// Sets or removes an element, and notes what it was.
    fn set(&mut self, map: Map, key: Key, value: Option<Value>) {
        let at = (map, key);
        let old = match value {
            Some(value) => self.elements.insert(at.clone(), value),
            None => self.elements.remove(&at),
        };
        self.changed.entry(at).or_insert(old);
    }

    /// Fronts that changed, with every endpoint that their connections may go to.
    pub(super) fn take_changed_fronts(&mut self) -> Vec<(Front, Vec<Target>)> {
        let changed = std::mem::take(&mut self.changed_fronts);
        let targets = |front: &Front| self.placed.get(front).map(|placed| placed.frontend.route.all_targets().collect());
        changed.into_iter().map(|front| (front, targets(&front).unwrap_or_default())).collect()
    }

    /// The services' health checks.
    pub(super) fn health_checks(&self) -> impl Iterator<Item = (&ObjectKey, super::plan::HealthCheck)> {
        self.plans.iter().filter_map(|(service, plan)| plan.health.map(|health| (service, health)))
    }

    /// What makes the kernel's table as desired, from what it was at the last call. The caller must see to it that the batch is
    /// carried out, or have the table made anew ([`Desired::whole`]).
    pub(super) fn changes(&mut self, layout: &Layout) -> Batch {
        let table = &layout.table;
        let mut batch = Batch::new();
        let mut chains: Vec<(Shared, bool)> = std::mem::take(&mut self.changed_chains).into_iter().collect();
        chains.retain(|(chain, before)| self.chains.0.contains_key(chain) != *before);
        chains.sort();
        for (chain, _) in chains.iter().filter(|(_, before)| !before) {
            add_chain(&mut batch, layout, chain);
        }
        let mut gone: HashMap<Map, Vec<Element>> = HashMap::new();
        let mut new: HashMap<Map, Vec<Element>> = HashMap::new();
        for ((map, key), before) in std::mem::take(&mut self.changed) {
            let now = self.elements.get(&(map, key.clone()));
            if now == before.as_ref() {
                continue;
            }
            if before.is_some() {
                gone.entry(map).or_default().push(Element::new(key.clone()));
            }
            if let Some(value) = now {
                new.entry(map).or_default().push(element(key, value.clone()));
            }
        }
        for (map, elements) in &gone {
            batch.delete_elements(table, &map.set(), elements);
        }
        for (map, elements) in &new {
            batch.add_elements(table, &map.set(), elements);
        }
        // A chain that goes to another comes before it.
        for (chain, _) in chains.iter().rev().filter(|(_, before)| *before) {
            batch.delete_chain(table, &chain.name());
        }
        batch
    }

    /// What makes the table anew, with the given affinities in it. The changes until now are in it.
    pub(super) fn whole(&mut self, layout: &Layout, affinities: [Vec<Element>; 2]) -> Batch {
        self.changed.clear();
        self.changed_chains.clear();
        let table = &layout.table;
        let mut batch = Batch::new();
        batch.remove_table(table);
        batch.add_table(table);
        layout::skeleton(&mut batch, layout);
        let mut chains: Vec<&Shared> = self.chains.0.keys().collect();
        chains.sort();
        chains.iter().for_each(|chain| add_chain(&mut batch, layout, chain));
        let mut by_map: HashMap<Map, Vec<Element>> = HashMap::new();
        for ((map, key), value) in &self.elements {
            by_map.entry(*map).or_default().push(element(key.clone(), value.clone()));
        }
        for (map, elements) in &by_map {
            batch.add_elements(table, &map.set(), elements);
        }
        for (map, elements) in layout::affinity_maps().iter().zip(&affinities) {
            batch.add_elements(table, map, elements);
        }
        batch
    }
}

fn add_chain(batch: &mut Batch, layout: &Layout, chain: &Shared) {
    let name = chain.name();
    batch.add_chain(&layout.table, &name);
    chain.rules(layout).iter().for_each(|rule| batch.add_rule(&layout.table, &name, rule));
}

fn element(key: Key, value: Value) -> Element {
    Element { to: value, ..Element::new(key) }
}

/// A front with its endpoints at places: those that were there keep theirs as far as they can, so that few elements change.
fn arranged(frontend: Frontend, old: Option<&Frontend>) -> Frontend {
    let lists = |route: &Route| match route {
        Route::Balance { targets, .. } => (targets.clone(), Vec::new()),
        Route::External { targets, local, .. } => (targets.clone(), local.clone()),
        Route::Reject | Route::Drop => (Vec::new(), Vec::new()),
    };
    let (old_targets, old_local) = old.map(|old| lists(&old.route)).unwrap_or_default();
    let route = match frontend.route {
        Route::Balance { targets, affinity } => Route::Balance { targets: keep_places(targets, &old_targets), affinity },
        Route::External { targets, local, affinity } => {
            Route::External { targets: keep_places(targets, &old_targets), local: keep_places(local, &old_local), affinity }
        }
        route => route,
    };
    Frontend { route, ..frontend }
}

fn keep_places(new: Vec<Target>, old: &[Target]) -> Vec<Target> {
    let wanted: BTreeSet<Target> = new.iter().copied().collect();
    let count = wanted.len();
    let kept: Vec<Option<Target>> = (0..count).map(|at| old.get(at).copied().filter(|target| wanted.contains(target))).collect();
    let placed: BTreeSet<Target> = kept.iter().flatten().copied().collect();
    let mut others = wanted.difference(&placed).copied();
    kept.into_iter().filter_map(|place| place.or_else(|| others.next())).collect()
}

fn keys_of(front: Front) -> Keys {
    match front {
        Front::Address { .. } => Keys::Address,
        Front::NodePort { .. } => Keys::NodePort,
    }
}

fn front_key(front: Front) -> Key {
    match front {
        Front::Address { ip, protocol, port } => Key::new().ipv4(ip).proto(protocol as u8).port(port),
        Front::NodePort { protocol, port } => Key::new().proto(protocol as u8).port(port),
    }
}

fn target_data(target: Target) -> Data {
    Data::Value(Key::new().ipv4(target.ip).port(target.port))
}

fn size(targets: &[Target]) -> u32 {
    u32::try_from(targets.len()).unwrap_or(u32::MAX)
}

/// The shared chains that a front needs: the one that its connections go to first.
fn chains(frontend: &Frontend) -> Vec<Shared> {
    let keys = keys_of(frontend.front);
    let route = match &frontend.route {
        Route::Reject | Route::Drop => None,
        Route::Balance { targets, affinity } => Some(Shared::Balance { keys, count: size(targets), affinity: *affinity }),
        Route::External { targets, local, affinity } => {
            Some(Shared::External { keys, count: size(targets), local: size(local), affinity: *affinity })
        }
    };
    route.into_iter().chain(frontend.sources.clone().map(Shared::From)).collect()
}

/// The elements that a front is made of.
fn elements(placed: &Placed) -> Vec<(Map, Key, Value)> {
    let Placed { frontend, chains } = placed;
    let is_node_port = keys_of(frontend.front) == Keys::NodePort;
    let map = |address: Map, node_port: Map| if is_node_port { node_port } else { address };
    let key = front_key(frontend.front);
    let verdict = |verdict: Verdict| Some(Data::Verdict(verdict));
    let mut found = Vec::new();
    let mut unserved = |what: Verdict| found.push((map(Map::NoEndpoints, Map::NoEndpointNodePorts), key.clone(), verdict(what)));
    match &frontend.route {
        Route::Reject => unserved(Verdict::goto(REJECT)),
        Route::Drop => unserved(Verdict::Drop),
        Route::External { local, .. } if local.is_empty() => unserved(Verdict::Drop),
        Route::Balance { .. } | Route::External { .. } => {}
    }
    for chain in chains {
        let to = verdict(Verdict::goto(&chain.name()));
        match chain {
            Shared::From(_) => found.push((Map::Firewall, key.clone(), to)),
            _ => found.push((map(Map::Services, Map::NodePorts), key.clone(), to)),
        }
    }
    let (targets, local, affinity): (&[Target], &[Target], bool) = match &frontend.route {
        Route::Reject | Route::Drop => (&[], &[], false),
        Route::Balance { targets, affinity } => (targets, &[], affinity.is_some()),
        Route::External { targets, local, affinity } => (targets, local, affinity.is_some()),
    };
    let places = [
        (targets, map(Map::Endpoints, Map::NodePortEndpoints), map(Map::Sticky, Map::NodePortSticky)),
        (local, map(Map::LocalEndpoints, Map::NodePortLocalEndpoints), map(Map::LocalSticky, Map::NodePortLocalSticky)),
    ];
    for (targets, endpoints, sticky) in places {
        for (number, target) in (0..).zip(targets) {
            found.push((endpoints, key.clone().mark(number), Some(target_data(*target))));
            if affinity {
                found.push((sticky, key.clone().ipv4(target.ip).port(target.port), None));
            }
        }
    }
    found
}
