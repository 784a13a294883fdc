//! Reverse names: of Services, of endpoints that have a name, and, so that private addresses are asked of nobody outside, of all
//! that is in the cluster's ranges.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::Ipv4Net;

use super::index::Index;
use super::message::{HEADER, Query, rcode, rtype};
use super::name::Name;
use super::reply::{Owner, Reply, Section};
use super::zone::{Outcome, TTL, Zone};

/// Answers a reverse question that is the cluster's to answer.
pub(super) fn answer(zone: &Zone, index: &Index, query: &Query<'_>, reply: &mut Reply<'_>) -> Outcome {
    let Some(asked) = Asked::of(&query.name) else { return Outcome::Foreign };
    let is_known = match asked {
        Asked::Address(ip) => write(zone, index, ip, query.qtype, reply),
        Asked::Range(_) => false,
    };
    if reply.count(Section::Answer) > 0 {
        return Outcome::Done(rcode::NO_ERROR);
    }
    let is_ours = |range: &Ipv4Net| match asked {
        Asked::Address(IpAddr::V4(ip)) => range.contains(&ip),
        Asked::Address(IpAddr::V6(_)) => false,
        Asked::Range(asked) => range.contains(&asked),
    };
    if !is_known && !zone.ranges.iter().any(is_ours) {
        return Outcome::Foreign;
    }
    if !index.is_complete() {
        return Outcome::Done(rcode::SERV_FAIL);
    }
    // The SOA stands at `in-addr.arpa` or `ip6.arpa`, as CoreDNS has it.
    let apex = query.name.start(query.name.labels() - 2);
    zone.start_of_authority(index, Section::Authority, Owner::At(HEADER + apex), reply);
    let is_between = matches!(asked, Asked::Range(_));
    Outcome::Done(if is_known || is_between { rcode::NO_ERROR } else { rcode::NX_DOMAIN })
}

/// Writes the names of an address; whether it has any.
fn write(zone: &Zone, index: &Index, ip: IpAddr, qtype: u16, reply: &mut Reply<'_>) -> bool {
    let domain = [b"\x03svc", zone.domain.wire()].concat();
    let mut is_known = false;
    let mut name = |pieces: &[&[u8]]| {
        is_known = true;
        if qtype == rtype::PTR {
            reply.record(Section::Answer, Owner::At(HEADER), rtype::PTR, TTL, pieces);
        }
    };
    if let Some(key) = index.services_at(ip).next() {
        name(&[key, &domain]);
        return is_known;
    }
    // A name that was given comes before one that is made from the address.
    let has_given = index.endpoints_at(ip).any(|(_, endpoint)| endpoint.is_named);
    for (key, endpoint) in index.endpoints_at(ip).filter(|(_, endpoint)| endpoint.is_named == has_given) {
        name(&[&endpoint.label, key, &domain]);
    }
    is_known
}

/// What a reverse name is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    Address(IpAddr),
    /// A name between: the addresses below it.
    Range(Ipv4Net),
}

impl Asked {
    fn of(name: &Name) -> Option<Self> {
        let own = name.labels().checked_sub(2)?;
        match (name.label(own), name.label(own + 1)) {
            (b"in-addr", b"arpa") => Self::v4(name, own),
            (b"ip6", b"arpa") => v6(name, own).map(|ip| Self::Address(ip.into())),
            _ => None,
        }
    }

    fn v4(name: &Name, labels: usize) -> Option<Self> {
        if labels == 0 || labels > 4 {
            return None;
        }
        let mut octets = [0; 4];
        for (octet, label) in octets.iter_mut().zip((0..labels).rev()) {
            *octet = std::str::from_utf8(name.label(label)).ok()?.parse().ok()?;
        }
        let ip = Ipv4Addr::from(octets);
        let prefix = u8::try_from(labels * 8).ok()?;
        if labels == 4 { Some(Self::Address(ip.into())) } else { Ipv4Net::new(ip, prefix).ok().map(Self::Range) }
    }
}

fn v6(name: &Name, labels: usize) -> Option<Ipv6Addr> {
    if labels != 32 {
        return None;
    }
    let digit = |label: usize| match name.label(label) {
        [digit] => char::from(*digit).to_digit(16),
        _ => None,
    };
    (0..32).rev().try_fold(0_u128, |bits, label| Some(bits << 4 | u128::from(digit(label)?))).map(Ipv6Addr::from)
}

/// The address that a whole reverse name is about.
pub(super) fn address_of(name: &Name) -> Option<IpAddr> {
    match Asked::of(name)? {
        Asked::Address(ip) => Some(ip),
        Asked::Range(_) => None,
    }
}
