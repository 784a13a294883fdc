//! The nouns of nf_tables: tables, chains, sets and maps, their elements, verdicts, rules.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use super::expr::Expr;

/// The address family of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    /// IPv4 and IPv6 in one table.
    Inet = 1,
    Ipv4 = 2,
    Bridge = 7,
    Ipv6 = 10,
}

impl Family {
    /// As `nft` writes it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Inet => "inet",
            Self::Ipv4 => "ip",
            Self::Bridge => "bridge",
            Self::Ipv6 => "ip6",
        }
    }
}

/// A table: everything else lives in one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Table {
    pub family: Family,
    pub name: Arc<str>,
}

impl Table {
    pub fn new(family: Family, name: &str) -> Self {
        Self { family, name: name.into() }
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{} {}", self.family.word(), self.name)
    }
}

/// What a base chain does: NAT chains see only the first packet of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChainKind {
    Filter,
    Nat,
    Route,
}

impl ChainKind {
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Filter => "filter",
            Self::Nat => "nat",
            Self::Route => "route",
        }
    }
}

/// Where on a packet's way a base chain is called (families ip, ip6, inet and bridge).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    Prerouting = 0,
    Input = 1,
    Forward = 2,
    Output = 3,
    Postrouting = 4,
}

/// What becomes of a packet that no rule of a base chain decided about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    Drop = 0,
    Accept = 1,
}

/// The order of base chains at one hook: lower comes first.
pub mod priority {
    pub const RAW: i32 = -300;
    pub const MANGLE: i32 = -150;
    pub const DSTNAT: i32 = -100;
    pub const FILTER: i32 = 0;
    pub const SRCNAT: i32 = 100;
}

/// What makes a chain a base chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Base {
    pub kind: ChainKind,
    pub hook: Hook,
    pub priority: i32,
    pub policy: Policy,
}

impl Base {
    /// A base chain that accepts what its rules do not decide about.
    pub const fn accepting(kind: ChainKind, hook: Hook, priority: i32) -> Self {
        Self { kind, hook, priority, policy: Policy::Accept }
    }
}

/// A type of a key or a value: its width, and how `nft list` shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    Ipv4Addr,
    Ipv6Addr,
    /// A protocol of layer 4 (one byte).
    InetProto,
    /// A port, in network order (two bytes).
    InetService,
    /// A number in the machine's order (four bytes); also what `numgen` and `jhash` give.
    Mark,
    /// An interface's name (16 bytes).
    IfName,
    /// An interface's index (four bytes, the machine's order).
    IfIndex,
    /// As `fib` gives (four bytes, the machine's order).
    FibAddrType,
}

impl Type {
    /// nft's number of the type, for listings.
    pub(super) const fn number(self) -> u32 {
        match self {
            Self::Ipv4Addr => 7,
            Self::Ipv6Addr => 8,
            Self::InetProto => 12,
            Self::InetService => 13,
            Self::Mark => 19,
            Self::IfIndex => 20,
            Self::FibAddrType => 38,
            Self::IfName => 41,
        }
    }

    /// Bytes of the value.
    pub const fn bytes(self) -> usize {
        match self {
            Self::InetProto => 1,
            Self::InetService => 2,
            Self::Ipv4Addr | Self::Mark | Self::IfIndex | Self::FibAddrType => 4,
            Self::Ipv6Addr | Self::IfName => 16,
        }
    }

    /// Bytes of the value in a register or as a part of a concatenation.
    pub const fn padded_bytes(self) -> usize {
        self.bytes().next_multiple_of(4)
    }
}

/// What the elements of a map give.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MapTo {
    Verdict,
    /// One value, or several, concatenated.
    Value(Vec<Type>),
}

/// A named set, map or verdict map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set {
    pub name: Arc<str>,
    /// One type, or several, concatenated.
    pub key: Vec<Type>,
    /// `None`: a set.
    pub to: Option<MapTo>,
    /// Elements are ranges. They must not overlap.
    pub interval: bool,
    /// Elements can have a time-out; with `Some` it is what those get that name none.
    pub timeout: Option<Option<Duration>>,
    /// Rules add elements ([`Expr::Dynset`]).
    pub dynamic: bool,
    /// Most elements; needed where rules add them, or a flood of packets fills the memory.
    pub size: Option<u32>,
    pub comment: Option<String>,
}

impl Set {
    /// A set with these key types.
    pub fn of(name: &str, key: &[Type]) -> Self {
        let key = key.to_vec();
        Self { name: name.into(), key, to: None, interval: false, timeout: None, dynamic: false, size: None, comment: None }
    }

    /// A map to verdicts.
    pub fn verdict_map(name: &str, key: &[Type]) -> Self {
        Self { to: Some(MapTo::Verdict), ..Self::of(name, key) }
    }

    /// A map to values.
    pub fn map(name: &str, key: &[Type], to: &[Type]) -> Self {
        Self { to: Some(MapTo::Value(to.to_vec())), ..Self::of(name, key) }
    }

    /// With elements that are ranges ([`Element::range`]).
    #[must_use]
    pub fn interval(self) -> Self {
        Self { interval: true, ..self }
    }

    /// Filled by rules, with at most `size` elements that go after a time.
    #[must_use]
    pub fn dynamic(self, size: u32) -> Self {
        Self { dynamic: true, size: Some(size), timeout: Some(None), ..self }
    }

    /// Bytes of a key as [`Key`] builds it.
    pub fn key_bytes(&self) -> usize {
        self.key.iter().map(|part| part.padded_bytes()).sum()
    }

    /// A set whose ranges are ranges in each part of the key (the kernel's `pipapo`).
    pub(super) fn is_concatenated_interval(&self) -> bool {
        self.interval && self.key.len() > 1
    }
}

/// The bytes of a key or a value, built part by part.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(pub(super) Vec<u8>);

impl Key {
    pub fn new() -> Self {
        Self(Vec::with_capacity(16))
    }

    #[must_use]
    pub fn ipv4(mut self, address: Ipv4Addr) -> Self {
        self.0.extend_from_slice(&address.octets());
        self
    }

    #[must_use]
    pub fn ipv6(mut self, address: Ipv6Addr) -> Self {
        self.0.extend_from_slice(&address.octets());
        self
    }

    /// A protocol of layer 4: 6 is TCP, 17 UDP, 132 SCTP.
    #[must_use]
    pub fn proto(mut self, number: u8) -> Self {
        self.0.extend_from_slice(&[number, 0, 0, 0]);
        self
    }

    #[must_use]
    pub fn port(mut self, port: u16) -> Self {
        self.0.extend_from_slice(&port.to_be_bytes());
        self.0.extend_from_slice(&[0, 0]);
        self
    }

    /// A number in the machine's order.
    #[must_use]
    pub fn mark(mut self, number: u32) -> Self {
        self.0.extend_from_slice(&number.to_ne_bytes());
        self
    }

    /// An interface's name; cut after 15 bytes, as the kernel's are.
    #[must_use]
    pub fn interface(mut self, name: &str) -> Self {
        let mut bytes = [0; 16];
        for (place, byte) in bytes[..15].iter_mut().zip(name.bytes()) {
            *place = byte;
        }
        self.0.extend_from_slice(&bytes);
        self
    }

    /// The bytes as the kernel sees them: every part padded to four bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// The bytes for a set with these key types: a key of a single part is not padded.
    pub(super) fn exact(&self, types: &[Type]) -> &[u8] {
        match types {
            [only] => self.0.get(..only.bytes()).unwrap_or(&self.0),
            _ => &self.0,
        }
    }
}

/// What becomes of a packet.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Verdict {
    Drop,
    Accept,
    /// On with the next rule.
    Continue,
    /// Back to the calling chain.
    Return,
    /// Into a chain, and back after it.
    Jump(Arc<str>),
    /// Into a chain, and not back.
    Goto(Arc<str>),
}

impl Verdict {
    pub fn jump(chain: &str) -> Self {
        Self::Jump(chain.into())
    }

    pub fn goto(chain: &str) -> Self {
        Self::Goto(chain.into())
    }

    pub(super) const fn code(&self) -> i32 {
        match self {
            Self::Drop => 0,
            Self::Accept => 1,
            Self::Continue => -1,
            Self::Jump(_) => -3,
            Self::Goto(_) => -4,
            Self::Return => -5,
        }
    }
}

/// What an element of a map gives.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Data {
    Verdict(Verdict),
    Value(Key),
}

/// An element of a set or map.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Element {
    pub key: Key,
    /// The last key of a range, for interval sets.
    pub last: Option<Key>,
    pub to: Option<Data>,
    pub timeout: Option<Duration>,
    pub comment: Option<String>,
}

impl Element {
    /// An element of a set. In an interval set it is a range of one.
    pub const fn new(key: Key) -> Self {
        Self { key, last: None, to: None, timeout: None, comment: None }
    }

    /// All keys from `first` to `last`, both included. In a concatenation that holds for each part by itself.
    pub const fn range(first: Key, last: Key) -> Self {
        Self { key: first, last: Some(last), to: None, timeout: None, comment: None }
    }

    /// The addresses of a network, for an interval set of [`Type::Ipv4Addr`].
    pub fn network(network: ipnet::Ipv4Net) -> Self {
        Self::range(Key::new().ipv4(network.network()), Key::new().ipv4(network.broadcast()))
    }

    /// With a verdict, for a verdict map.
    #[must_use]
    pub fn verdict(self, verdict: Verdict) -> Self {
        Self { to: Some(Data::Verdict(verdict)), ..self }
    }

    /// With a value, for a map.
    #[must_use]
    pub fn value(self, value: Key) -> Self {
        Self { to: Some(Data::Value(value)), ..self }
    }

    /// With a comment; at most 127 bytes of it are kept.
    #[must_use]
    pub fn comment(self, comment: impl Into<String>) -> Self {
        Self { comment: Some(comment.into()), ..self }
    }
}

/// A rule: expressions one after the other, until one of them ends it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rule {
    pub expressions: Vec<Expr>,
    pub comment: Option<String>,
}

impl Rule {
    pub fn new(expressions: impl IntoIterator<Item = Expr>) -> Self {
        Self { expressions: expressions.into_iter().collect(), comment: None }
    }

    /// A rule of several pieces, such as those of [`super::expr`].
    pub fn of(pieces: impl IntoIterator<Item = Vec<Expr>>) -> Self {
        Self::new(pieces.into_iter().flatten())
    }

    /// With a comment; at most 127 bytes of it are kept.
    #[must_use]
    pub fn comment(self, comment: impl Into<String>) -> Self {
        Self { comment: Some(comment.into()), ..self }
    }
}
