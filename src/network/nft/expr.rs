//! The expressions of a rule, and pieces of rules that are often needed.
//!
//! A rule computes in sixteen registers of four bytes ([`Reg`]); a value of eight bytes fills two that follow each other, a
//! concatenated key as many as it has parts (an IPv6 address is four). Registers hold nothing at the beginning of a rule.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::Ipv4Net;

use super::types::{Family, Verdict};

/// A register of four bytes, 0 to 15.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reg(pub u8);

/// Which header a payload is counted from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Header {
    Network = 1,
    Transport = 2,
}

/// What `meta` reads or sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meta {
    Mark = 3,
    IifIndex = 4,
    OifIndex = 5,
    IifName = 6,
    OifName = 7,
    NfProto = 15,
    L4Proto = 16,
    /// The group of the interface that a packet came in by.
    IifGroup = 21,
}

/// What `ct` reads or sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ct {
    /// Bits: see [`state`].
    State = 0,
    Direction = 1,
    /// Bits: see [`status`].
    Status = 2,
    Mark = 3,
    /// Of a [`CtDirection`].
    Protocol = 10,
    ProtoSrc = 11,
    ProtoDst = 12,
    SrcIp = 19,
    DstIp = 20,
}

/// Which of the two tuples of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CtDirection {
    Original = 0,
    Reply = 1,
}

/// Bits of [`Ct::State`].
pub mod state {
    pub const INVALID: u32 = 1;
    pub const ESTABLISHED: u32 = 2;
    pub const RELATED: u32 = 4;
    pub const NEW: u32 = 8;
    pub const UNTRACKED: u32 = 64;
}

/// Bits of [`Ct::Status`].
pub mod status {
    pub const SNAT: u32 = 1 << 4;
    pub const DNAT: u32 = 1 << 5;
}

/// How two values are compared; order is the order of the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cmp {
    Eq = 0,
    Neq = 1,
    Lt = 2,
    Lte = 3,
    Gt = 4,
    Gte = 5,
}

/// Where a lookup puts what it found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// A set: the rule goes on if the key is in it.
    Match,
    /// A set: the rule goes on if the key is not in it.
    NoMatch,
    /// A map: the value.
    Value(Reg),
    /// A verdict map: the verdict is carried out.
    Verdict,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NatKind {
    Snat = 0,
    Dnat = 1,
}

/// How NAT picks a port of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PortChoice {
    /// The old one where it is free.
    #[default]
    Keep,
    Random,
    FullyRandom,
}

impl PortChoice {
    pub(super) const fn flags(self) -> u32 {
        match self {
            Self::Keep => 0,
            Self::Random => 1 << 2,
            Self::FullyRandom => 1 << 4,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Numbers {
    /// 0, 1, 2, … round and round.
    Incremental = 0,
    Random = 1,
}

/// What a look into the routing table gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FibResult {
    OifIndex = 1,
    OifName = 2,
    /// A number: [`FIB_LOCAL`] and others.
    AddressType = 3,
}

/// Whose route [`Expr::Fib`] looks up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FibAddress {
    Source = 1,
    Destination = 2,
    /// Only routes by the interface that the packet came in by count.
    SourceByInterface = 1 | 8,
}

/// An address of this host, as [`FibResult::AddressType`].
pub const FIB_LOCAL: u32 = 2;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DynsetOp {
    /// Adds the element if it is not there.
    Add = 0,
    /// Adds it, or starts its time anew.
    Update = 1,
    Delete = 2,
}

/// How a packet is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reject {
    /// ICMP in the family of the table; 3 is "port unreachable", 13 "administratively prohibited" for IPv4.
    Icmp(u8),
    TcpReset,
    /// "Port unreachable" in whichever family the packet is (tables of family inet).
    PortUnreachable,
    /// "Administratively prohibited" in whichever family the packet is (tables of family inet).
    AdminProhibited,
}

/// One step of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expr {
    /// Bytes of the packet into registers.
    Payload {
        to: Reg,
        header: Header,
        offset: u32,
        len: u32,
    },
    Meta {
        to: Reg,
        key: Meta,
    },
    SetMeta {
        from: Reg,
        key: Meta,
    },
    /// `direction` is needed for what the two tuples of a connection hold.
    Ct {
        to: Reg,
        key: Ct,
        direction: Option<CtDirection>,
    },
    SetCt {
        from: Reg,
        key: Ct,
    },
    /// Ends the rule unless the comparison holds.
    Cmp {
        reg: Reg,
        op: Cmp,
        value: Vec<u8>,
    },
    /// Ends the rule unless the value is in the range (or, with `outside`, is not).
    Range {
        reg: Reg,
        first: Vec<u8>,
        last: Vec<u8>,
        outside: bool,
    },
    /// `to = (from & mask) ^ xor`.
    Bitwise {
        from: Reg,
        to: Reg,
        mask: Vec<u8>,
        xor: Vec<u8>,
    },
    /// Looks a key up in a set or map of the same table. Ends the rule if a map has no such key.
    Lookup {
        set: Arc<str>,
        key: Reg,
        found: Found,
    },
    /// Bytes into registers.
    Immediate {
        to: Reg,
        value: Vec<u8>,
    },
    Verdict(Verdict),
    /// New address and port from registers.
    Nat {
        kind: NatKind,
        family: Family,
        addr: Option<Reg>,
        port: Option<Reg>,
        choice: PortChoice,
    },
    Masquerade {
        choice: PortChoice,
    },
    /// To this host, at the port in a register.
    Redirect {
        port: Option<Reg>,
    },
    /// A number below `modulus`, plus `offset`, in the machine's byte order.
    Numgen {
        to: Reg,
        numbers: Numbers,
        modulus: u32,
        offset: u32,
    },
    /// A hash of registers, below `modulus`, plus `offset`, in the machine's byte order.
    Jhash {
        from: Reg,
        len: u32,
        to: Reg,
        modulus: u32,
        seed: u32,
        offset: u32,
    },
    Fib {
        to: Reg,
        result: FibResult,
        address: FibAddress,
    },
    /// The largest segment of TCP that fits the routes to the packet's destination and back to its source, in the machine's order.
    RouteMss {
        to: Reg,
    },
    /// Two bytes from the machine's order into that of the network.
    ToNetworkOrder {
        from: Reg,
        to: Reg,
    },
    /// Makes the largest segment that a SYN announces smaller, never larger; ends the rule if it announces none.
    LowerMss {
        from: Reg,
    },
    /// Changes an element of a dynamic set or map of the same table. A full set ends the rule.
    Dynset {
        set: Arc<str>,
        op: DynsetOp,
        key: Reg,
        data: Option<Reg>,
        timeout: Option<Duration>,
    },
    Counter,
    Reject(Reject),
    /// Ends the rule above (or, with `over`, below) so many packets a second.
    Limit {
        packets_per_second: u64,
        burst: u32,
        over: bool,
    },
    /// The connection of this packet is not tracked (hooks before tracking only).
    Notrack,
}

/// The packet's source address (IPv4).
pub const fn ip_saddr(to: Reg) -> Expr {
    Expr::Payload { to, header: Header::Network, offset: 12, len: 4 }
}

/// The packet's destination address (IPv4).
pub const fn ip_daddr(to: Reg) -> Expr {
    Expr::Payload { to, header: Header::Network, offset: 16, len: 4 }
}

/// The packet's protocol of layer 4.
pub const fn l4proto(to: Reg) -> Expr {
    Expr::Meta { to, key: Meta::L4Proto }
}

/// The packet's source port (TCP, UDP, SCTP).
pub const fn sport(to: Reg) -> Expr {
    Expr::Payload { to, header: Header::Transport, offset: 0, len: 2 }
}

/// The packet's destination port (TCP, UDP, SCTP).
pub const fn dport(to: Reg) -> Expr {
    Expr::Payload { to, header: Header::Transport, offset: 2, len: 2 }
}

/// Ends the rule unless the register holds these bytes.
pub const fn is(reg: Reg, value: Vec<u8>) -> Expr {
    Expr::Cmp { reg, op: Cmp::Eq, value }
}

/// Ends the rule if the register holds these bytes.
pub const fn is_not(reg: Reg, value: Vec<u8>) -> Expr {
    Expr::Cmp { reg, op: Cmp::Neq, value }
}

const SCRATCH: Reg = Reg(0);

/// `meta l4proto P`. Uses register 0, as all the pieces below.
pub fn match_l4proto(number: u8) -> Vec<Expr> {
    vec![l4proto(SCRATCH), is(SCRATCH, vec![number])]
}

/// `ip saddr A/n`, or `!=` with `inside` false.
pub fn match_saddr(network: Ipv4Net, inside: bool) -> Vec<Expr> {
    match_network(ip_saddr(SCRATCH), network, inside)
}

/// `ip daddr A/n`, or `!=` with `inside` false.
pub fn match_daddr(network: Ipv4Net, inside: bool) -> Vec<Expr> {
    match_network(ip_daddr(SCRATCH), network, inside)
}

fn match_network(load: Expr, network: Ipv4Net, inside: bool) -> Vec<Expr> {
    let op = if inside { Cmp::Eq } else { Cmp::Neq };
    let compare = Expr::Cmp { reg: SCRATCH, op, value: network.network().octets().to_vec() };
    let mask = network.netmask().octets().to_vec();
    let cut = Expr::Bitwise { from: SCRATCH, to: SCRATCH, mask, xor: vec![0; 4] };
    if network.prefix_len() == 32 { vec![load, compare] } else { vec![load, cut, compare] }
}

/// `ct state S`: the connection is in one of the states of these bits ([`state`]).
pub fn match_ct_state(bits: u32) -> Vec<Expr> {
    match_bits(Expr::Ct { to: SCRATCH, key: Ct::State, direction: None }, bits)
}

/// `ct status S`: the connection has one of these bits ([`status`]).
pub fn match_ct_status(bits: u32) -> Vec<Expr> {
    match_bits(Expr::Ct { to: SCRATCH, key: Ct::Status, direction: None }, bits)
}

/// `meta mark & bits != 0`.
pub fn match_mark(bits: u32) -> Vec<Expr> {
    match_bits(Expr::Meta { to: SCRATCH, key: Meta::Mark }, bits)
}

fn match_bits(load: Expr, bits: u32) -> Vec<Expr> {
    let mask = bits.to_ne_bytes().to_vec();
    vec![load, Expr::Bitwise { from: SCRATCH, to: SCRATCH, mask, xor: vec![0; 4] }, is_not(SCRATCH, vec![0; 4])]
}

/// `meta mark set (meta mark & !bits) | set`, for the bits of a mask.
pub fn set_mark(bits: u32, set: u32) -> Vec<Expr> {
    let (mask, xor) = ((!bits).to_ne_bytes().to_vec(), (set & bits).to_ne_bytes().to_vec());
    vec![
        Expr::Meta { to: SCRATCH, key: Meta::Mark },
        Expr::Bitwise { from: SCRATCH, to: SCRATCH, mask, xor },
        Expr::SetMeta { from: SCRATCH, key: Meta::Mark },
    ]
}

/// `fib daddr type local`: the destination is an address of this host.
pub fn match_local(address: FibAddress) -> Vec<Expr> {
    vec![Expr::Fib { to: SCRATCH, result: FibResult::AddressType, address }, is(SCRATCH, FIB_LOCAL.to_ne_bytes().to_vec())]
}

/// `fib saddr . iif oif missing`: the way back to the packet's source is not the interface that it came in by. Prerouting only.
pub fn match_spoofed() -> Vec<Expr> {
    let back = Expr::Fib { to: SCRATCH, result: FibResult::OifIndex, address: FibAddress::SourceByInterface };
    vec![back, is(SCRATCH, vec![0; 4])]
}

/// `meta iifgroup N`, or `!=` with `inside` false.
pub fn match_group(group: u32, inside: bool) -> Vec<Expr> {
    let op = if inside { Cmp::Eq } else { Cmp::Neq };
    let compare = Expr::Cmp { reg: SCRATCH, op, value: group.to_ne_bytes().to_vec() };
    vec![Expr::Meta { to: SCRATCH, key: Meta::IifGroup }, compare]
}

/// `udp dport P`.
pub fn match_udp(port: u16) -> Vec<Expr> {
    [match_l4proto(17), vec![dport(SCRATCH), is(SCRATCH, port.to_be_bytes().to_vec())]].concat()
}

/// `tcp flags & (syn | rst) == syn`: a connection is offered or taken.
pub fn match_syn() -> Vec<Expr> {
    const SYN: u8 = 2;
    const RST: u8 = 4;
    let flags = Expr::Payload { to: SCRATCH, header: Header::Transport, offset: 13, len: 1 };
    let cut = Expr::Bitwise { from: SCRATCH, to: SCRATCH, mask: vec![SYN | RST], xor: vec![0] };
    [match_l4proto(6), vec![flags, cut, is(SCRATCH, vec![SYN])]].concat()
}

/// `tcp option maxseg size set rt mtu`. Forward, output and postrouting only.
pub fn clamp_mss() -> Vec<Expr> {
    vec![Expr::RouteMss { to: SCRATCH }, Expr::ToNetworkOrder { from: SCRATCH, to: SCRATCH }, Expr::LowerMss { from: SCRATCH }]
}

/// `iifname N` or `oifname N`; a name that ends in `*` stands for all that begin so.
pub fn match_interface(key: Meta, name: &str) -> Vec<Expr> {
    let value = match name.strip_suffix('*') {
        Some(prefix) => prefix.as_bytes().to_vec(),
        None => {
            let mut bytes = name.as_bytes().to_vec();
            bytes.resize(16, 0);
            bytes
        }
    };
    vec![Expr::Meta { to: SCRATCH, key }, is(SCRATCH, value)]
}

/// `dnat to A:P`, fixed.
pub fn dnat_to(address: Ipv4Addr, port: u16) -> Vec<Expr> {
    vec![
        Expr::Immediate { to: Reg(0), value: address.octets().to_vec() },
        Expr::Immediate { to: Reg(1), value: port.to_be_bytes().to_vec() },
        Expr::Nat { kind: NatKind::Dnat, family: Family::Ipv4, addr: Some(Reg(0)), port: Some(Reg(1)), choice: PortChoice::Keep },
    ]
}

/// A lookup in a set: the rule goes on if the key is (or, with `inside` false, is not) in it.
pub fn in_set(set: &str, key: Reg, inside: bool) -> Expr {
    Expr::Lookup { set: set.into(), key, found: if inside { Found::Match } else { Found::NoMatch } }
}

/// A lookup in a verdict map.
pub fn vmap(set: &str, key: Reg) -> Expr {
    Expr::Lookup { set: set.into(), key, found: Found::Verdict }
}
