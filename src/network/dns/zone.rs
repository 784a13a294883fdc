//! The cluster's zone and the reverse names of its ranges, as the Kubernetes DNS specification (1.1.0) has them and CoreDNS's plugin
//! `kubernetes` answers them: which names there are, which are only between others (no data), and which are not there.

use std::net::IpAddr;

use ipnet::Ipv4Net;

use super::entry::{Port, ServiceEntry, Target, undashed};
use super::index::Index;
use super::message::{HEADER, Query, rcode, rtype};
use super::name::Name;
use super::reply::{Owner, Reply, Section};
use super::reverse;

/// Seconds that an answer about the cluster may be kept; CoreDNS's default.
pub(super) const TTL: u32 = 5;
/// Most names that lead to one another.
const MAX_CHAIN: usize = 8;
/// The version of the specification.
const SCHEMA: &[u8] = b"\x051.1.0";

/// What came of a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The records are written.
    Done(u8),
    /// The aliases are written; the name that they lead to is not the cluster's.
    Chase(Box<Name>),
    /// The question is about nothing of ours.
    Foreign,
}

/// What one name has.
enum Found {
    /// Its records are written.
    Records,
    /// The name is there, but has nothing of that type.
    NoData,
    Nothing,
    Alias(Box<[u8]>),
}

/// Where the zone is.
pub(super) struct Zone {
    pub(super) domain: Name,
    /// The server's own address.
    pub(super) server: IpAddr,
    /// Ranges that nobody else answers for.
    pub(super) ranges: Vec<Ipv4Net>,
}

/// What answering needs again and again.
pub(super) struct Scratch {
    addresses: Vec<IpAddr>,
    random: u64,
}

impl Scratch {
    pub(super) fn new(seed: u64) -> Self {
        Self { addresses: Vec::new(), random: seed | 1 }
    }

    /// Puts the addresses of a family in a random order, each once.
    fn shuffle(&mut self, qtype: u16) {
        self.addresses.retain(|ip| is_of(qtype, *ip));
        self.addresses.sort_unstable();
        self.addresses.dedup();
        for last in (1..self.addresses.len()).rev() {
            // xorshift: spread, not secrecy.
            self.random ^= self.random << 13;
            self.random ^= self.random >> 7;
            self.random ^= self.random << 17;
            self.addresses.swap(last, (self.random % (last as u64 + 1)) as usize);
        }
    }
}

fn is_of(qtype: u16, ip: IpAddr) -> bool {
    qtype == rtype::A && ip.is_ipv4() || qtype == rtype::AAAA && ip.is_ipv6()
}

/// One question on its way.
struct Asked<'a> {
    index: &'a Index,
    name: &'a Name,
    /// Labels before the zone's.
    rel: usize,
    owner: Owner<'a>,
    qtype: u16,
}

impl Asked<'_> {
    /// The name from one of its labels on, as an owner.
    fn owner_from(&self, label: usize) -> Owner<'_> {
        self.owner.skip(self.name.start(label))
    }
}

impl Zone {
    /// Answers a question; records go into `reply`.
    pub(super) fn answer(&self, index: &Index, query: &Query<'_>, reply: &mut Reply<'_>, scratch: &mut Scratch) -> Outcome {
        if let Some(rel) = query.name.below(&self.domain) {
            let owner = Owner::At(HEADER);
            let asked = Asked { index, name: &query.name, rel, owner, qtype: query.qtype };
            return match self.look(&asked, reply, scratch) {
                Found::Alias(target) => self.follow(&asked, target, reply, scratch),
                found => self.conclude(&asked, &found, owner.skip(query.name.start(rel)), reply),
            };
        }
        reverse::answer(self, index, query, reply)
    }

    /// Writes the aliases one after the other until a name has something else.
    fn follow(&self, first: &Asked<'_>, target: Box<[u8]>, reply: &mut Reply<'_>, scratch: &mut Scratch) -> Outcome {
        reply.record(Section::Answer, first.owner, rtype::CNAME, TTL, &[&target]);
        if first.qtype == rtype::CNAME {
            return Outcome::Done(rcode::NO_ERROR);
        }
        let (mut target, mut passed) = (target, vec![Box::from(first.name.wire())]);
        while passed.len() < MAX_CHAIN && !passed.contains(&target) {
            let Some((name, _)) = Name::parse_wire(&target) else { break };
            let Some(rel) = name.below(&self.domain) else { return Outcome::Chase(Box::new(name)) };
            let asked = Asked { index: first.index, name: &name, rel, owner: Owner::Name(name.wire()), qtype: first.qtype };
            match self.look(&asked, reply, scratch) {
                Found::Alias(next) => {
                    reply.record(Section::Answer, asked.owner, rtype::CNAME, TTL, &[&next]);
                    passed.push(std::mem::replace(&mut target, next));
                }
                found => return self.conclude(&asked, &found, Owner::Name(self.domain.wire()), reply),
            }
        }
        Outcome::Done(rcode::SERV_FAIL)
    }

    fn conclude(&self, asked: &Asked<'_>, found: &Found, zone: Owner<'_>, reply: &mut Reply<'_>) -> Outcome {
        let code = match found {
            Found::Records | Found::Alias(_) => return Outcome::Done(rcode::NO_ERROR),
            // What is not known yet must not be denied.
            _ if !asked.index.is_complete() => return Outcome::Done(rcode::SERV_FAIL),
            Found::NoData => rcode::NO_ERROR,
            Found::Nothing => rcode::NX_DOMAIN,
        };
        self.start_of_authority(asked.index, Section::Authority, zone, reply);
        Outcome::Done(code)
    }

    /// The SOA, with CoreDNS's numbers.
    pub(super) fn start_of_authority(&self, index: &Index, section: Section, owner: Owner<'_>, reply: &mut Reply<'_>) {
        let numbers = [index.serial(), 7_200, 1_800, 86_400, TTL].map(u32::to_be_bytes).concat();
        let (primary, mailbox) = (b"\x02ns\x03dns", b"\x0ahostmaster");
        let domain = self.domain.wire();
        reply.record(section, owner, rtype::SOA, TTL, &[primary, domain, mailbox, domain, &numbers]);
    }

    fn look(&self, asked: &Asked<'_>, reply: &mut Reply<'_>, scratch: &mut Scratch) -> Found {
        let Asked { index, name, rel, owner, qtype } = *asked;
        let Some(last) = rel.checked_sub(1) else { return self.apex(asked, reply) };
        match name.label(last) {
            b"svc" => match last {
                0 => Found::NoData,
                1 => namespace(index, name.span(0, 1)),
                _ => self.service(asked, reply, scratch),
            },
            b"pod" => match last {
                0 => Found::NoData,
                1 => namespace(index, name.span(0, 1)),
                2 => pod(asked, reply),
                _ => Found::Nothing,
            },
            b"dns" if last == 0 => Found::NoData,
            b"dns" if last == 1 && name.label(0) == b"ns" => {
                if is_of(qtype, self.server) {
                    reply.address(Section::Answer, owner, TTL, self.server);
                    return Found::Records;
                }
                Found::NoData
            }
            b"dns-version" if last == 0 && qtype == rtype::TXT => {
                reply.record(Section::Answer, owner, rtype::TXT, TTL, &[SCHEMA]);
                Found::Records
            }
            b"dns-version" if last == 0 => Found::NoData,
            _ => Found::Nothing,
        }
    }

    fn apex(&self, asked: &Asked<'_>, reply: &mut Reply<'_>) -> Found {
        match asked.qtype {
            rtype::SOA => self.start_of_authority(asked.index, Section::Answer, asked.owner, reply),
            rtype::NS => {
                let server = [&b"\x02ns\x03dns"[..], self.domain.wire()].concat();
                reply.record(Section::Answer, asked.owner, rtype::NS, TTL, &[&server]);
                reply.address(Section::Additional, Owner::Name(&server), TTL, self.server);
            }
            _ => return Found::NoData,
        }
        Found::Records
    }

    /// `[_port._protocol.|endpoint.]service.namespace.svc`.
    fn service(&self, asked: &Asked<'_>, reply: &mut Reply<'_>, scratch: &mut Scratch) -> Found {
        let first = asked.rel - 3;
        let key = asked.name.span(first, first + 2);
        let Some(service) = asked.index.service(key) else { return Found::Nothing };
        let wanted = match first {
            0 => Wanted::ALL,
            1 => {
                return match endpoint(asked, service, key, reply, scratch) {
                    Found::Nothing if has_protocol(service, asked.name.label(0)) => Found::NoData,
                    found => found,
                };
            }
            2 => match (asked.name.label(0).strip_prefix(b"_"), asked.name.label(1).strip_prefix(b"_")) {
                (Some(port), Some(protocol)) => Wanted { port, protocol },
                _ => return Found::Nothing,
            },
            _ => return Found::Nothing,
        };
        match &service.target {
            Target::Alias(target) if first == 0 => Found::Alias(target.clone()),
            Target::Alias(_) | Target::Nothing => Found::Nothing,
            Target::Addresses(addresses) => of_addresses(asked, service, addresses, &wanted, reply, scratch),
            Target::Endpoints => of_endpoints(asked, key, &wanted, reply, scratch),
        }
    }
}

/// Which ports are asked for; "" is any.
struct Wanted<'a> {
    port: &'a [u8],
    protocol: &'a [u8],
}

impl Wanted<'_> {
    const ALL: Self = Self { port: b"", protocol: b"" };

    const fn is_all(&self) -> bool {
        self.port.is_empty() && self.protocol.is_empty()
    }

    fn has(&self, port: &Port) -> bool {
        self.is_all() || *port.name == *self.port && *port.protocol == *self.protocol
    }
}

fn namespace(index: &Index, label: &[u8]) -> Found {
    if index.has_namespace(label) { Found::NoData } else { Found::Nothing }
}

/// Whether names of ports stand below `_protocol.service`.
fn has_protocol(service: &ServiceEntry, label: &[u8]) -> bool {
    let Some(protocol) = label.strip_prefix(b"_") else { return false };
    !matches!(service.target, Target::Alias(_) | Target::Nothing)
        && service.ports.iter().any(|port| *port.protocol == *protocol && !port.name.is_empty())
}

/// `a-b-c-d.namespace.pod`: as CoreDNS's `pods insecure`, any address in a namespace that is there.
fn pod(asked: &Asked<'_>, reply: &mut Reply<'_>) -> Found {
    let ip = undashed(asked.name.label(0)).filter(|_| asked.index.has_namespace(asked.name.span(1, 2)));
    match ip {
        Some(ip) if is_of(asked.qtype, ip) => {
            reply.address(Section::Answer, asked.owner, TTL, ip);
            Found::Records
        }
        Some(_) => Found::NoData,
        None => Found::Nothing,
    }
}

fn write_addresses(asked: &Asked<'_>, reply: &mut Reply<'_>, scratch: &mut Scratch) -> Found {
    scratch.shuffle(asked.qtype);
    for ip in &scratch.addresses {
        reply.address(Section::Answer, asked.owner, TTL, *ip);
    }
    if scratch.addresses.is_empty() { Found::NoData } else { Found::Records }
}

/// Priority 0; the weights of all sum up to 100, as CoreDNS has it.
fn service_data(targets: usize, port: u16) -> [u8; 6] {
    let weight = (100_usize.checked_div(targets).unwrap_or(0).max(1) as u16).to_be_bytes();
    let port = port.to_be_bytes();
    [0, 0, weight[0], weight[1], port[0], port[1]]
}

/// A Service that has addresses of its own.
fn of_addresses(
    asked: &Asked<'_>,
    service: &ServiceEntry,
    addresses: &[IpAddr],
    wanted: &Wanted<'_>,
    reply: &mut Reply<'_>,
    scratch: &mut Scratch,
) -> Found {
    let matching = || service.ports.iter().filter(|port| wanted.has(port));
    if !wanted.is_all() && matching().next().is_none() {
        return Found::Nothing;
    }
    if asked.qtype != rtype::SRV {
        scratch.addresses.clear();
        scratch.addresses.extend_from_slice(addresses);
        return write_addresses(asked, reply, scratch);
    }
    let (first, targets) = (asked.rel - 3, matching().count());
    for port in matching() {
        let data = service_data(targets, port.number);
        reply.record(Section::Answer, asked.owner, rtype::SRV, TTL, &[&data, asked.name.suffix(first)]);
    }
    if targets == 0 {
        return Found::NoData;
    }
    for ip in addresses {
        reply.address(Section::Additional, asked.owner_from(first), TTL, *ip);
    }
    Found::Records
}

/// A headless Service.
fn of_endpoints(asked: &Asked<'_>, key: &[u8], wanted: &Wanted<'_>, reply: &mut Reply<'_>, scratch: &mut Scratch) -> Found {
    let slices = || asked.index.slices(key).filter(|slice| wanted.is_all() || slice.ports.iter().any(|port| wanted.has(port)));
    if slices().all(|slice| slice.endpoints.is_empty()) {
        return Found::Nothing;
    }
    if asked.qtype != rtype::SRV {
        scratch.addresses.clear();
        scratch.addresses.extend(slices().flat_map(|slice| slice.endpoints.iter().map(|endpoint| endpoint.ip)));
        return write_addresses(asked, reply, scratch);
    }
    let ports = || slices().flat_map(|slice| slice.ports.iter().filter(|port| wanted.has(port)).map(move |port| (slice, port)));
    let targets = ports().map(|(slice, _)| slice.endpoints.len()).sum();
    let service = asked.name.suffix(asked.rel - 3);
    for (slice, port) in ports() {
        let data = service_data(targets, port.number);
        for endpoint in &slice.endpoints {
            reply.record(Section::Answer, asked.owner, rtype::SRV, TTL, &[&data, &endpoint.label, service]);
        }
    }
    if targets == 0 {
        return Found::NoData;
    }
    for endpoint in slices().flat_map(|slice| slice.endpoints.iter()) {
        let name = [&*endpoint.label, service].concat();
        reply.address(Section::Additional, Owner::Name(&name), TTL, endpoint.ip);
    }
    Found::Records
}

/// `hostname.service.namespace.svc`, of Services with an address too.
fn endpoint(asked: &Asked<'_>, service: &ServiceEntry, key: &[u8], reply: &mut Reply<'_>, scratch: &mut Scratch) -> Found {
    if matches!(service.target, Target::Alias(_) | Target::Nothing) {
        return Found::Nothing;
    }
    let label = asked.name.span(0, 1);
    let of_label = asked.index.slices(key).flat_map(|slice| slice.endpoints.iter().map(move |one| (slice, one)));
    let of_label = of_label.filter(|(_, endpoint)| *endpoint.label == *label);
    scratch.addresses.clear();
    let mut ports: Vec<u16> = Vec::new();
    for (slice, endpoint) in of_label {
        scratch.addresses.push(endpoint.ip);
        ports.extend(slice.ports.iter().map(|port| port.number));
    }
    if scratch.addresses.is_empty() {
        return Found::Nothing;
    }
    if asked.qtype != rtype::SRV {
        return write_addresses(asked, reply, scratch);
    }
    ports.sort_unstable();
    ports.dedup();
    for port in &ports {
        let data = service_data(ports.len(), *port);
        reply.record(Section::Answer, asked.owner, rtype::SRV, TTL, &[&data, asked.name.wire()]);
    }
    if ports.is_empty() {
        return Found::NoData;
    }
    for ip in &scratch.addresses {
        reply.address(Section::Additional, asked.owner, TTL, *ip);
    }
    Found::Records
}
