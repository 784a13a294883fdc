//! What the proxy's table is made of: its maps, its base chains, and the shared chains that pick an endpoint.

use std::net::Ipv4Addr;
use std::time::Duration;

use ipnet::Ipv4Net;

use super::endpoints::Target;
use super::plan::Sources;
use crate::network::attach::hex;
use crate::network::nft::expr::{
    DynsetOp, Expr, FibAddress, Found, Meta, NatKind, Numbers, PortChoice, Reg, Reject, dnat_to, dport, in_set, ip_daddr,
    ip_saddr, is, is_not, l4proto, match_ct_state, match_daddr, match_local, match_mark, match_saddr, set_mark, state, vmap,
};
use crate::network::nft::{Base, Batch, ChainKind, Family, Hook, Rule, Set, Table, Type, Verdict, priority};

/// Upstream's bit: a packet whose source is to be masqueraded.
const MASQUERADE_MARK: u32 = 0x4000;
/// Clients that are remembered for session affinity.
const AFFINITY_CLIENTS: u32 = 262_144;
/// The host's own addresses that nobody else may connect to.
const LOOPBACK: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8);

/// The names of one node's table, and the ranges that its rules mention.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    pub(super) table: Table,
    pub(super) pod_cidr: Ipv4Net,
    pub(super) service_cidr: Ipv4Net,
}

/// The table of a node's Services.
pub(super) fn table(node: &str) -> Table {
    Table::new(Family::Ipv4, &format!("orch-{}-proxy", &hex(node)[..8]))
}

impl Layout {
    pub(super) fn new(node: &str, pod_cidr: Ipv4Net, service_cidr: Ipv4Net) -> Self {
        Self { table: table(node), pod_cidr: pod_cidr.trunc(), service_cidr: service_cidr.trunc() }
    }
}

/// The maps and sets of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Map {
    /// Address, protocol, port: the chain that picks an endpoint.
    Services,
    NodePorts,
    /// With a number behind: the endpoint.
    Endpoints,
    NodePortEndpoints,
    /// The same, for clients from outside where the policy is Local.
    LocalEndpoints,
    NodePortLocalEndpoints,
    /// The same for Services with affinity: the chain that leads to the endpoint.
    Sticky,
    NodePortSticky,
    LocalSticky,
    NodePortLocalSticky,
    /// What has no endpoint: reject or drop.
    NoEndpoints,
    NoEndpointNodePorts,
    /// Who may use a load balancer's address.
    Firewall,
    ClusterIps,
    /// An endpoint of this node, twice: it is its own client.
    Hairpin,
    HostPorts,
    AnyHostPorts,
}

impl Map {
    pub(super) const ALL: [Self; 17] = [
        Self::Services,
        Self::NodePorts,
        Self::Endpoints,
        Self::NodePortEndpoints,
        Self::LocalEndpoints,
        Self::NodePortLocalEndpoints,
        Self::Sticky,
        Self::NodePortSticky,
        Self::LocalSticky,
        Self::NodePortLocalSticky,
        Self::NoEndpoints,
        Self::NoEndpointNodePorts,
        Self::Firewall,
        Self::ClusterIps,
        Self::Hairpin,
        Self::HostPorts,
        Self::AnyHostPorts,
    ];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Services => "services",
            Self::NodePorts => "nodeports",
            Self::Endpoints => "endpoints",
            Self::NodePortEndpoints => "nodeport-endpoints",
            Self::LocalEndpoints => "local-endpoints",
            Self::NodePortLocalEndpoints => "nodeport-local-endpoints",
            Self::Sticky => "sticky",
            Self::NodePortSticky => "nodeport-sticky",
            Self::LocalSticky => "local-sticky",
            Self::NodePortLocalSticky => "nodeport-local-sticky",
            Self::NoEndpoints => "no-endpoints",
            Self::NoEndpointNodePorts => "no-endpoint-nodeports",
            Self::Firewall => "firewall",
            Self::ClusterIps => "cluster-ips",
            Self::Hairpin => "hairpin",
            Self::HostPorts => "hostports",
            Self::AnyHostPorts => "any-hostports",
        }
    }

    pub(super) fn set(self) -> Set {
        const ADDRESS: [Type; 3] = [Type::Ipv4Addr, Type::InetProto, Type::InetService];
        const PORT: [Type; 2] = [Type::InetProto, Type::InetService];
        const TARGET: [Type; 2] = [Type::Ipv4Addr, Type::InetService];
        let with = |first: &[Type], second: &[Type]| [first, second].concat();
        let name = self.name();
        match self {
            Self::Services | Self::NoEndpoints | Self::Firewall => Set::verdict_map(name, &ADDRESS),
            Self::NodePorts | Self::NoEndpointNodePorts => Set::verdict_map(name, &PORT),
            Self::Endpoints | Self::LocalEndpoints => Set::map(name, &with(&ADDRESS, &[Type::Mark]), &TARGET),
            Self::NodePortEndpoints | Self::NodePortLocalEndpoints => Set::map(name, &with(&PORT, &[Type::Mark]), &TARGET),
            Self::Sticky | Self::LocalSticky => Set::verdict_map(name, &with(&ADDRESS, &[Type::Mark])),
            Self::NodePortSticky | Self::NodePortLocalSticky => Set::verdict_map(name, &with(&PORT, &[Type::Mark])),
            Self::ClusterIps => Set::of(name, &[Type::Ipv4Addr]),
            Self::Hairpin => Set::of(name, &[Type::Ipv4Addr, Type::Ipv4Addr]),
            Self::HostPorts => Set::map(name, &ADDRESS, &TARGET),
            Self::AnyHostPorts => Set::map(name, &PORT, &TARGET),
        }
    }
}

/// The sets that the kernel fills: which client (of which front) stays with which endpoint.
pub(super) fn affinity_sets() -> [Set; 2] {
    let addresses = [Type::Ipv4Addr, Type::Ipv4Addr, Type::InetProto, Type::InetService, Type::Ipv4Addr, Type::InetService];
    let ports = [Type::Ipv4Addr, Type::InetProto, Type::InetService, Type::Ipv4Addr, Type::InetService];
    [Set::of("affinity", &addresses), Set::of("nodeport-affinity", &ports)].map(|set| set.dynamic(AFFINITY_CLIENTS))
}

/// Whether keys begin with an address or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Keys {
    Address,
    NodePort,
}

impl Keys {
    const fn prefix(self) -> &'static str {
        match self {
            Self::Address => "",
            Self::NodePort => "nodeport-",
        }
    }

    /// The key into registers that follow each other, and the first register behind.
    fn load(self, first: u8) -> (Vec<Expr>, u8) {
        match self {
            Self::Address => (vec![ip_daddr(Reg(first)), l4proto(Reg(first + 1)), dport(Reg(first + 2))], first + 3),
            Self::NodePort => (vec![l4proto(Reg(first)), dport(Reg(first + 1))], first + 2),
        }
    }
}

/// Which list of endpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Which {
    /// All that the node may use.
    Cluster,
    /// This node's own, for clients from outside where the policy is Local.
    Local,
}

impl Which {
    const fn prefix(self) -> &'static str {
        match self {
            Self::Cluster => "",
            Self::Local => "local-",
        }
    }
}

/// A chain that Services share; what it does never changes. Those that others go to come first in order.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Shared {
    /// To this endpoint, and remembers that the client stays with it for so many seconds.
    To { keys: Keys, target: Target, seconds: u32 },
    /// Picks one of so many endpoints.
    Balance { keys: Keys, which: Which, count: u32 },
    /// To the endpoint that the client stays with, or picks one.
    Sticky { keys: Keys, which: Which, targets: Vec<Target>, seconds: u32 },
    /// Policy Local: `own` for this node and its pods, `strangers` for all others; there may be none for them.
    External { own: Box<Shared>, strangers: Option<Box<Shared>> },
    /// Lets these in and drops all others.
    From(Sources),
}

impl Shared {
    pub(super) fn name(&self) -> String {
        match self {
            Self::To { keys, target, seconds } => {
                format!("{}to-{}-{}-sticky-{seconds}s", keys.prefix(), target.ip, target.port)
            }
            Self::Balance { keys, which, count } => format!("{}{}balance-{count}", keys.prefix(), which.prefix()),
            Self::Sticky { keys, which, .. } => {
                format!("{}{}sticky-{}", keys.prefix(), which.prefix(), hex(&format!("{self:?}")))
            }
            Self::External { own, strangers } => {
                let strangers = strangers.as_ref().map_or_else(|| "none".to_owned(), |chain| chain.name());
                format!("external-{}-or-{strangers}", own.name())
            }
            Self::From(sources) => format!("from-{}", hex(&format!("{sources:?}"))),
        }
    }

    /// The chains that this one goes to.
    pub(super) fn needs(&self) -> Vec<Self> {
        match self {
            Self::Sticky { keys, targets, seconds, .. } => {
                targets.iter().map(|target| Self::To { keys: *keys, target: *target, seconds: *seconds }).collect()
            }
            Self::External { own, strangers } => std::iter::once(own).chain(strangers).map(|chain| (**chain).clone()).collect(),
            Self::To { .. } | Self::Balance { .. } | Self::From(_) => Vec::new(),
        }
    }

    pub(super) fn rules(&self, layout: &Layout) -> Vec<Rule> {
        match self {
            Self::To { keys, target, seconds } => to(*keys, *target, *seconds),
            Self::Balance { keys, which, count } => marking(*which, layout).chain([balance(*keys, *which, *count)]).collect(),
            Self::Sticky { keys, which, targets, .. } => {
                let chains = self.needs().into_iter().map(|chain| chain.name());
                let stays = targets.iter().zip(chains).map(|(target, chain)| stays(*keys, *target, &chain));
                let count = u32::try_from(targets.len()).unwrap_or(u32::MAX);
                marking(*which, layout).chain(stays).chain([balance_sticky(*keys, *which, count)]).collect()
            }
            Self::External { own, strangers } => {
                let goto = |chain: &Self| vec![Expr::Verdict(Verdict::goto(&chain.name()))];
                let mut rules = vec![
                    Rule::of([match_saddr(layout.pod_cidr, true), goto(own)]).comment("pods of this node"),
                    Rule::of([match_local(FibAddress::Source), goto(own)]).comment("this node"),
                ];
                rules.extend(strangers.iter().map(|chain| Rule::new(goto(chain))));
                rules
            }
            Self::From(sources) => {
                let back = || vec![Expr::Verdict(Verdict::Return)];
                let own = sources.own.map(Ipv4Net::from);
                let allowed = sources.ranges.iter().copied().chain(own);
                let mut rules: Vec<Rule> = allowed.map(|range| Rule::of([match_saddr(range, true), back()])).collect();
                rules.push(Rule::new([Expr::Verdict(Verdict::Drop)]));
                rules
            }
        }
    }
}

/// An endpoint of this node answers through this node: only for the others the source must be looked at.
fn marking(which: Which, layout: &Layout) -> impl Iterator<Item = Rule> {
    let mark = Rule::of([match_saddr(layout.pod_cidr, false), set_mark(MASQUERADE_MARK, MASQUERADE_MARK)]);
    (which == Which::Cluster).then(|| mark.comment("clients from elsewhere")).into_iter()
}

/// `dnat to` what two registers hold.
const fn dnat(first: u8) -> Expr {
    Expr::Nat {
        kind: NatKind::Dnat,
        family: Family::Ipv4,
        addr: Some(Reg(first)),
        port: Some(Reg(first + 1)),
        choice: PortChoice::Keep,
    }
}

/// The key and a number below `count` behind it, and the first register behind.
fn draw(keys: Keys, count: u32) -> (Vec<Expr>, u8) {
    let (mut load, number) = keys.load(0);
    load.push(Expr::Numgen { to: Reg(number), numbers: Numbers::Random, modulus: count, offset: 0 });
    (load, number + 1)
}

/// Translates to one of `count` endpoints.
fn balance(keys: Keys, which: Which, count: u32) -> Rule {
    let map = format!("{}{}endpoints", keys.prefix(), which.prefix());
    let (load, found) = draw(keys, count);
    let look = Expr::Lookup { set: map.into(), key: Reg(0), found: Found::Value(Reg(found)) };
    Rule::new(load.into_iter().chain([look, dnat(found)]))
}

/// Goes to the chain of one of `count` endpoints.
fn balance_sticky(keys: Keys, which: Which, count: u32) -> Rule {
    let (load, _) = draw(keys, count);
    let map = format!("{}{}sticky", keys.prefix(), which.prefix());
    Rule::new(load.into_iter().chain([vmap(&map, Reg(0))]))
}

/// The client, the key and an endpoint, as the affinity sets know them, and the register of the endpoint.
fn client_of(keys: Keys, target: Target) -> (Vec<Expr>, u8) {
    let (load, first) = keys.load(1);
    let endpoint = [
        Expr::Immediate { to: Reg(first), value: target.ip.octets().to_vec() },
        Expr::Immediate { to: Reg(first + 1), value: target.port.to_be_bytes().to_vec() },
    ];
    (std::iter::once(ip_saddr(Reg(0))).chain(load).chain(endpoint).collect(), first)
}

fn stays(keys: Keys, target: Target, chain: &str) -> Rule {
    let (load, _) = client_of(keys, target);
    let known = in_set(&format!("{}affinity", keys.prefix()), Reg(0), true);
    Rule::new(load.into_iter().chain([known, Expr::Verdict(Verdict::goto(chain))]))
}

/// Two rules: a set that is full ends the first.
fn to(keys: Keys, target: Target, seconds: u32) -> Vec<Rule> {
    let (load, _) = client_of(keys, target);
    let remember = Expr::Dynset {
        set: format!("{}affinity", keys.prefix()).into(),
        op: DynsetOp::Update,
        key: Reg(0),
        data: None,
        timeout: Some(Duration::from_secs(u64::from(seconds))),
    };
    vec![Rule::new(load.into_iter().chain([remember])), Rule::of([dnat_to(target.ip, target.port)])]
}

/// The sets, maps and chains that are always there, and their rules.
pub(super) fn skeleton(batch: &mut Batch, layout: &Layout) {
    let table = &layout.table;
    for map in Map::ALL {
        batch.add_set(table, &map.set());
    }
    for set in affinity_sets() {
        batch.add_set(table, &set);
    }
    for (chain, rules) in plain_chains(layout) {
        batch.add_chain(table, chain);
        rules.iter().for_each(|rule| batch.add_rule(table, chain, rule));
    }
    for (chain, base, rules) in base_chains(layout) {
        batch.add_base_chain(table, chain, base);
        rules.iter().for_each(|rule| batch.add_rule(table, chain, rule));
    }
}

/// Where nothing behind takes part in the decision: before Docker's and others' chains at the same place.
const EARLIER: i32 = 10;

pub(super) const REJECT: &str = "reject";

fn plain_chains(layout: &Layout) -> Vec<(&'static str, Vec<Rule>)> {
    let (key, _) = Keys::Address.load(0);
    let (node_key, _) = Keys::NodePort.load(0);
    let node = |last: Vec<Expr>| Rule::of([match_local(FibAddress::Destination), node_key.clone(), last]);
    let look = |map: Map| vmap(map.name(), Reg(0));
    let find = |map: Map, number: u8| Expr::Lookup { set: map.name().into(), key: Reg(0), found: Found::Value(Reg(number)) };
    let translate = vec![
        Rule::of([key.clone(), vec![look(Map::Services)]]),
        Rule::of([key.clone(), vec![find(Map::HostPorts, 3), dnat(3)]]),
        node(vec![look(Map::NodePorts)]),
        node(vec![find(Map::AnyHostPorts, 2), dnat(2)]),
    ];
    let refuse = vec![
        Rule::of([vec![l4proto(Reg(0)), is(Reg(0), vec![6])], vec![Expr::Reject(Reject::TcpReset)]]),
        Rule::new([Expr::Reject(Reject::Icmp(3))]),
    ];
    let unserved = vec![
        Rule::of([key, vec![look(Map::NoEndpoints)]]),
        node(vec![look(Map::NoEndpointNodePorts)]),
        Rule::of([match_local(FibAddress::Destination), vec![Expr::Verdict(Verdict::Return)]])
            .comment("what answers on the node itself, such as the cluster's DNS"),
        Rule::new([ip_daddr(Reg(0)), in_set(Map::ClusterIps.name(), Reg(0), true), Expr::Verdict(Verdict::goto(REJECT))])
            .comment("ports that a Service does not have"),
        Rule::of([match_daddr(layout.service_cidr, true), vec![Expr::Verdict(Verdict::Drop)]])
            .comment("addresses that no Service has"),
    ];
    vec![("translate", translate), (REJECT, refuse), ("unserved", unserved)]
}

fn base_chains(layout: &Layout) -> Vec<(&'static str, Base, Vec<Rule>)> {
    let new = |last: Expr| Rule::of([match_ct_state(state::NEW), vec![last]]);
    let jump = |chain: &str| Expr::Verdict(Verdict::jump(chain));
    let filter = |hook, priority| Base::accepting(ChainKind::Filter, hook, priority);
    let nat = |hook, priority| Base::accepting(ChainKind::Nat, hook, priority);
    let (key, _) = Keys::Address.load(0);
    let allowed = || vec![Rule::of([match_ct_state(state::NEW), key.clone(), vec![vmap(Map::Firewall.name(), Reg(0))]])];
    // Routing lets packets from and to loopback addresses pass (`route_localnet`): not those of others.
    let strangers = Rule::of([
        vec![Expr::Meta { to: Reg(0), key: Meta::IifName }, is_not(Reg(0), interface("lo"))],
        match_daddr(LOOPBACK, true),
        vec![Expr::Verdict(Verdict::Drop)],
    ]);
    let before = priority::DSTNAT - EARLIER;
    let after = priority::FILTER - EARLIER;
    vec![
        ("firewall-prerouting", filter(Hook::Prerouting, before), std::iter::once(strangers).chain(allowed()).collect()),
        ("firewall-output", filter(Hook::Output, before), allowed()),
        ("filter-input", filter(Hook::Input, after), vec![new(jump("unserved"))]),
        ("filter-forward", filter(Hook::Forward, after), vec![new(jump("unserved"))]),
        ("filter-output", filter(Hook::Output, after), vec![new(jump("unserved"))]),
        ("nat-prerouting", nat(Hook::Prerouting, priority::DSTNAT), vec![Rule::new([jump("translate")])]),
        ("nat-output", nat(Hook::Output, priority::DSTNAT), vec![Rule::new([jump("translate")])]),
        ("nat-postrouting", nat(Hook::Postrouting, priority::SRCNAT), masquerade(layout)),
    ]
}

/// An interface's name as the kernel compares it.
fn interface(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.resize(16, 0);
    bytes
}

fn masquerade(layout: &Layout) -> Vec<Rule> {
    let masquerade = || vec![Expr::Masquerade { choice: PortChoice::FullyRandom }];
    let back = || vec![Expr::Verdict(Verdict::Return)];
    let itself = vec![ip_saddr(Reg(0)), ip_daddr(Reg(1)), in_set(Map::Hairpin.name(), Reg(0), true)];
    let out = vec![Expr::Meta { to: Reg(0), key: Meta::OifName }, is_not(Reg(0), interface("lo"))];
    let unmarked = {
        let mut rule = match_mark(MASQUERADE_MARK);
        if let Some(last) = rule.last_mut() {
            *last = is(Reg(0), vec![0; 4]);
        }
        rule
    };
    vec![
        Rule::of([itself, masquerade()]).comment("an endpoint that is its own client"),
        Rule::of([match_saddr(LOOPBACK, true), out, masquerade()]).comment("this node, by localhost"),
        Rule::of([unmarked, back()]),
        Rule::of([set_mark(MASQUERADE_MARK, 0)]),
        Rule::of([match_daddr(layout.pod_cidr, true), back()]).comment("answers come through this node anyway"),
        Rule::of([match_local(FibAddress::Destination), back()]),
        Rule::of([masquerade()]),
    ]
}
