//! What the proxy's table is made of: its maps, its base chains, and the shared chains that pick an endpoint.

use std::net::Ipv4Addr;
use std::time::Duration;

use ipnet::Ipv4Net;

use super::plan::Sources;
use crate::network::attach::hex;
use crate::network::nft::expr::{
    DynsetOp, Expr, FibAddress, Found, NatKind, Numbers, PortChoice, Reg, Reject, dport, in_set, ip_daddr, ip_saddr, l4proto,
    match_ct_state, match_daddr, match_local, match_mark, match_saddr, set_mark, state, vmap,
};
use crate::network::nft::{Base, Batch, ChainKind, Family, Hook, Rule, Set, Table, Type, Verdict, priority};

/// Upstream's bit: a packet whose source is to be masqueraded.
const MASQUERADE_MARK: u32 = 0x4000;
/// Clients that are remembered for session affinity.
const AFFINITY_CLIENTS: u32 = 262_144;
/// The local host's own addresses, which NodePorts are not at.
const LOOPBACK: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8);

/// The names of one node's table, and the ranges that its rules mention.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    pub(super) table: Table,
    pub(super) pod_cidr: Ipv4Net,
    pub(super) service_cidr: Ipv4Net,
}

impl Layout {
    pub(super) fn new(node: &str, pod_cidr: Ipv4Net, service_cidr: Ipv4Net) -> Self {
        let table = Table::new(Family::Ipv4, &format!("orch-{}-proxy", &hex(node)[..8]));
        Self { table, pod_cidr: pod_cidr.trunc(), service_cidr: service_cidr.trunc() }
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
    /// With the endpoint behind: may a client stay with it?
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
            Self::Sticky | Self::LocalSticky => Set::of(name, &with(&ADDRESS, &TARGET)),
            Self::NodePortSticky | Self::NodePortLocalSticky => Set::of(name, &with(&PORT, &TARGET)),
            Self::ClusterIps => Set::of(name, &[Type::Ipv4Addr]),
            Self::Hairpin => Set::of(name, &[Type::Ipv4Addr, Type::Ipv4Addr]),
            Self::HostPorts => Set::map(name, &ADDRESS, &TARGET),
            Self::AnyHostPorts => Set::map(name, &PORT, &TARGET),
        }
    }
}

/// The maps that the kernel fills: which client stays with which endpoint.
pub(super) fn affinity_maps() -> [Set; 2] {
    let target = [Type::Ipv4Addr, Type::InetService];
    let addresses = [Type::Ipv4Addr, Type::Ipv4Addr, Type::InetProto, Type::InetService];
    let ports = [Type::Ipv4Addr, Type::InetProto, Type::InetService];
    [Set::map("affinity", &addresses, &target), Set::map("nodeport-affinity", &ports, &target)]
        .map(|map| map.dynamic(AFFINITY_CLIENTS))
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

/// A chain that many Services share.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Shared {
    /// Picks one of so many endpoints; `affinity` in seconds.
    Balance { keys: Keys, count: u32, affinity: Option<u32> },
    /// Policy Local from outside: one of `local` for strangers, one of `count` for this node's own.
    External { keys: Keys, count: u32, local: u32, affinity: Option<u32> },
    /// Lets these in and drops all others.
    From(Sources),
}

impl Shared {
    pub(super) fn name(&self) -> String {
        let sticky = |affinity: &Option<u32>| affinity.map(|seconds| format!("-sticky-{seconds}s")).unwrap_or_default();
        match self {
            Self::Balance { keys, count, affinity } => format!("{}balance-{count}{}", keys.prefix(), sticky(affinity)),
            Self::External { keys, count, local, affinity } => {
                format!("{}external-{count}-local-{local}{}", keys.prefix(), sticky(affinity))
            }
            Self::From(sources) => format!("from-{}", hex(&format!("{sources:?}"))),
        }
    }

    /// The chain that this one goes to.
    pub(super) fn needs(&self) -> Option<Self> {
        match self {
            Self::External { keys, count, affinity, .. } => {
                Some(Self::Balance { keys: *keys, count: *count, affinity: *affinity })
            }
            Self::Balance { .. } | Self::From(_) => None,
        }
    }

    pub(super) fn rules(&self, layout: &Layout) -> Vec<Rule> {
        match self {
            Self::Balance { keys, count, affinity } => {
                let mark = Rule::of([match_saddr(layout.pod_cidr, false), set_mark(MASQUERADE_MARK, MASQUERADE_MARK)]);
                let mut rules = vec![mark.comment("clients from elsewhere")];
                rules.extend(pick(*keys, *count, *affinity, ""));
                rules
            }
            Self::External { keys, local, affinity, .. } => {
                let own = self.needs().map(|chain| chain.name()).unwrap_or_default();
                let goto = || vec![Expr::Verdict(Verdict::goto(&own))];
                let mut rules = vec![
                    Rule::of([match_saddr(layout.pod_cidr, true), goto()]).comment("pods of this node"),
                    Rule::of([match_local(FibAddress::Source), goto()]).comment("this node"),
                ];
                if *local > 0 {
                    rules.extend(pick(*keys, *local, *affinity, "local-"));
                }
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

/// The rules that translate to one of `count` endpoints of the map `WHICHendpoints`.
fn pick(keys: Keys, count: u32, affinity: Option<u32>, which: &str) -> Vec<Rule> {
    let endpoints = format!("{}{which}endpoints", keys.prefix());
    let draw = |number: u8, key: u8| {
        [
            Expr::Numgen { to: Reg(number), numbers: Numbers::Random, modulus: count, offset: 0 },
            Expr::Lookup { set: endpoints.as_str().into(), key: Reg(key), found: Found::Value(Reg(number + 1)) },
        ]
    };
    let (load, number) = keys.load(0);
    let plain = Rule::new(load.into_iter().chain(draw(number, 0)).chain([dnat(number + 1)]));
    let Some(seconds) = affinity else { return vec![plain] };
    let clients: std::sync::Arc<str> = format!("{}affinity", keys.prefix()).into();
    let sticky = format!("{}{which}sticky", keys.prefix());
    // The client first, then the key: the same key without the client begins one register later.
    let (load, behind) = keys.load(1);
    let load: Vec<Expr> = std::iter::once(ip_saddr(Reg(0))).chain(load).collect();
    let change = |op: DynsetOp, data: u8| Expr::Dynset {
        set: std::sync::Arc::clone(&clients),
        op,
        key: Reg(0),
        data: Some(Reg(data)),
        timeout: Some(Duration::from_secs(u64::from(seconds))),
    };
    let known = Rule::new(load.iter().cloned().chain([
        Expr::Lookup { set: std::sync::Arc::clone(&clients), key: Reg(0), found: Found::Value(Reg(behind)) },
        in_set(&sticky, Reg(1), true),
        change(DynsetOp::Update, behind),
        dnat(behind),
    ]));
    // What was known of the client is deleted first: an update changes only the time.
    let data = behind + 1;
    let moved = [change(DynsetOp::Delete, data), change(DynsetOp::Update, data), dnat(data)];
    let new = Rule::new(load.into_iter().chain(draw(behind, 1)).chain(moved));
    // The last is for when so many clients are remembered that there is no room.
    vec![known.comment("stays"), new.comment("new"), plain]
}

/// The sets, maps and chains that are always there, and their rules.
pub(super) fn skeleton(batch: &mut Batch, layout: &Layout) {
    let table = &layout.table;
    for map in Map::ALL {
        batch.add_set(table, &map.set());
    }
    for map in affinity_maps() {
        batch.add_set(table, &map);
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
    let at_node = || vec![match_local(FibAddress::Destination), match_daddr(LOOPBACK, false)];
    let node = |last: Vec<Expr>| Rule::of(at_node().into_iter().chain([node_key.clone(), last]));
    let look = |map: Map| vmap(map.name(), Reg(0));
    let find = |map: Map, number: u8| Expr::Lookup { set: map.name().into(), key: Reg(0), found: Found::Value(Reg(number)) };
    let translate = vec![
        Rule::of([key.clone(), vec![look(Map::Services)]]),
        Rule::of([key.clone(), vec![find(Map::HostPorts, 3), dnat(3)]]),
        node(vec![look(Map::NodePorts)]),
        node(vec![find(Map::AnyHostPorts, 2), dnat(2)]),
    ];
    let refuse = vec![
        Rule::of([vec![l4proto(Reg(0)), crate::network::nft::expr::is(Reg(0), vec![6])], vec![Expr::Reject(Reject::TcpReset)]]),
        Rule::new([Expr::Reject(Reject::Icmp(3))]),
    ];
    let unserved = vec![
        Rule::of([key, vec![look(Map::NoEndpoints)]]),
        node(vec![look(Map::NoEndpointNodePorts)]),
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
    let before = priority::DSTNAT - EARLIER;
    let after = priority::FILTER - EARLIER;
    vec![
        ("firewall-prerouting", filter(Hook::Prerouting, before), allowed()),
        ("firewall-output", filter(Hook::Output, before), allowed()),
        ("filter-input", filter(Hook::Input, after), vec![new(jump("unserved"))]),
        ("filter-forward", filter(Hook::Forward, after), vec![new(jump("unserved"))]),
        ("filter-output", filter(Hook::Output, after), vec![new(jump("unserved"))]),
        ("nat-prerouting", nat(Hook::Prerouting, priority::DSTNAT), vec![Rule::new([jump("translate")])]),
        ("nat-output", nat(Hook::Output, priority::DSTNAT), vec![Rule::new([jump("translate")])]),
        ("nat-postrouting", nat(Hook::Postrouting, priority::SRCNAT), masquerade(layout)),
    ]
}

fn masquerade(layout: &Layout) -> Vec<Rule> {
    let masquerade = || vec![Expr::Masquerade { choice: PortChoice::FullyRandom }];
    let back = || vec![Expr::Verdict(Verdict::Return)];
    let itself = vec![ip_saddr(Reg(0)), ip_daddr(Reg(1)), in_set(Map::Hairpin.name(), Reg(0), true)];
    let unmarked = {
        let mut rule = match_mark(MASQUERADE_MARK);
        if let Some(last) = rule.last_mut() {
            *last = crate::network::nft::expr::is(Reg(0), vec![0; 4]);
        }
        rule
    };
    vec![
        Rule::of([itself, masquerade()]).comment("an endpoint that is its own client"),
        Rule::of([unmarked, back()]),
        Rule::of([set_mark(MASQUERADE_MARK, 0)]),
        Rule::of([match_daddr(layout.pod_cidr, true), back()]).comment("answers come through this node anyway"),
        Rule::of([match_local(FibAddress::Destination), back()]),
        Rule::of([masquerade()]),
    ]
}
