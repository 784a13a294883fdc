//! Expressions, verdicts and elements as netlink attributes (`linux/netfilter/nf_tables.h`).

use super::expr::{Expr, Found, NatKind, PortChoice, Reg, Reject};
use super::message::Writer;
use super::types::{Data, Element, Family, Key, MapTo, Rule, Set, Type, Verdict};

/// Where verdicts go.
const VERDICT_REGISTER: u32 = 0;
/// The first register of four bytes.
const FIRST_REGISTER: u32 = 8;
/// The type of the data of verdict maps.
const DATA_VERDICT: u32 = 0xffff_ff00;
/// Marks the end of a range, which is no longer in it.
const INTERVAL_END: u32 = 1;
/// A comment, with its zero, in user data: type, length, text.
const MAX_COMMENT: usize = 127;

/// Types of nft's user data that hold a comment.
pub(super) mod comments {
    pub(in super::super) const RULE: u8 = 0;
    pub(super) const ELEMENT: u8 = 0;
    pub(super) const SET: u8 = 7;
}
/// The type of nft's user data that tells the byte order of an interval set's key, and its value for the network's order.
const KEY_BYTE_ORDER: (u8, u32) = (0, 2);

mod set_flags {
    pub(super) const INTERVAL: u32 = 0x4;
    pub(super) const MAP: u32 = 0x8;
    pub(super) const TIMEOUT: u32 = 0x10;
    pub(super) const EVAL: u32 = 0x20;
    pub(super) const CONCAT: u32 = 0x80;
}

fn number(reg: Reg) -> u32 {
    FIRST_REGISTER + u32::from(reg.0)
}

/// `NFTA_DATA_VALUE` in an attribute.
fn value(writer: &mut Writer, kind: u16, bytes: &[u8]) {
    writer.nested(kind, |writer| writer.attribute(1, bytes));
}

/// `NFTA_DATA_VERDICT` in an attribute.
fn verdict(writer: &mut Writer, kind: u16, verdict: &Verdict) {
    writer.nested(kind, |writer| {
        writer.nested(2, |writer| {
            writer.attribute(1, &verdict.code().to_be_bytes());
            if let Verdict::Jump(chain) | Verdict::Goto(chain) = verdict {
                writer.text(2, chain);
            }
        });
    });
}

/// Type, length and value, as nft writes user data.
fn user_data(bytes: &mut Vec<u8>, kind: u8, value: &[u8]) {
    bytes.push(kind);
    bytes.push(u8::try_from(value.len()).unwrap_or(u8::MAX));
    bytes.extend_from_slice(value);
}

/// A comment as user data: cut at a character's border, with a zero.
pub(super) fn comment_data(kind: u8, text: &str) -> Vec<u8> {
    let cut = (0..=text.len().min(MAX_COMMENT)).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    let mut value = text.as_bytes().get(..cut).unwrap_or(&[]).to_vec();
    value.push(0);
    let mut bytes = Vec::with_capacity(value.len() + 2);
    user_data(&mut bytes, kind, &value);
    bytes
}

/// The expressions of a rule (`NFTA_RULE_EXPRESSIONS`) and its comment.
pub(super) fn rule(writer: &mut Writer, rule: &Rule) {
    writer.nested(4, |writer| {
        for step in &rule.expressions {
            expression(writer, step);
        }
    });
    if let Some(comment) = &rule.comment {
        writer.attribute(7, &comment_data(comments::RULE, comment));
    }
}

/// A list element that holds the expression's name and its attributes.
fn expression(writer: &mut Writer, step: &Expr) {
    writer.nested(1, |writer| {
        writer.text(1, name(step));
        writer.nested(2, |writer| attributes(writer, step));
    });
}

const fn name(step: &Expr) -> &'static str {
    match step {
        Expr::Payload { .. } => "payload",
        Expr::Meta { .. } | Expr::SetMeta { .. } => "meta",
        Expr::Ct { .. } | Expr::SetCt { .. } => "ct",
        Expr::Cmp { .. } => "cmp",
        Expr::Range { .. } => "range",
        Expr::Bitwise { .. } => "bitwise",
        Expr::Lookup { .. } => "lookup",
        Expr::Immediate { .. } | Expr::Verdict(_) => "immediate",
        Expr::Nat { .. } => "nat",
        Expr::Masquerade { .. } => "masq",
        Expr::Redirect { .. } => "redir",
        Expr::Numgen { .. } => "numgen",
        Expr::Jhash { .. } => "hash",
        Expr::Fib { .. } => "fib",
        Expr::RouteMss { .. } => "rt",
        Expr::ToNetworkOrder { .. } => "byteorder",
        Expr::LowerMss { .. } => "exthdr",
        Expr::Dynset { .. } => "dynset",
        Expr::Counter => "counter",
        Expr::Reject(_) => "reject",
        Expr::Limit { .. } => "limit",
        Expr::Notrack => "notrack",
    }
}

fn attributes(writer: &mut Writer, step: &Expr) {
    match step {
        Expr::Payload { .. } | Expr::Meta { .. } | Expr::SetMeta { .. } | Expr::Ct { .. } | Expr::SetCt { .. } => {
            load(writer, step);
        }
        Expr::Cmp { .. } | Expr::Range { .. } | Expr::Bitwise { .. } | Expr::Immediate { .. } => compute(writer, step),
        Expr::Lookup { set, key, found } => lookup(writer, set, *key, *found),
        Expr::Verdict(what) => {
            writer.u32(1, VERDICT_REGISTER);
            verdict(writer, 2, what);
        }
        Expr::Nat { .. } | Expr::Masquerade { .. } | Expr::Redirect { .. } => translate(writer, step),
        Expr::Numgen { .. } | Expr::Jhash { .. } | Expr::Fib { .. } => generate(writer, step),
        Expr::RouteMss { .. } | Expr::ToNetworkOrder { .. } | Expr::LowerMss { .. } => segment_size(writer, step),
        Expr::Dynset { set, op, key, data, timeout } => {
            writer.text(1, set);
            writer.u32(3, *op as u32);
            writer.u32(4, number(*key));
            if let Some(data) = data {
                writer.u32(5, number(*data));
            }
            if let Some(timeout) = timeout {
                writer.u64(6, milliseconds(*timeout));
            }
        }
        Expr::Counter => {
            writer.u64(1, 0);
            writer.u64(2, 0);
        }
        Expr::Reject(how) => reject(writer, *how),
        Expr::Limit { packets_per_second, burst, over } => {
            writer.u64(1, *packets_per_second);
            writer.u64(2, 1);
            writer.u32(3, *burst);
            writer.u32(4, 0);
            writer.u32(5, u32::from(*over));
        }
        Expr::Notrack => {}
    }
}

fn load(writer: &mut Writer, step: &Expr) {
    match step {
        Expr::Payload { to, header, offset, len } => {
            writer.u32(1, number(*to));
            writer.u32(2, *header as u32);
            writer.u32(3, *offset);
            writer.u32(4, *len);
        }
        Expr::Meta { to, key } => {
            writer.u32(1, number(*to));
            writer.u32(2, *key as u32);
        }
        Expr::SetMeta { from, key } => {
            writer.u32(2, *key as u32);
            writer.u32(3, number(*from));
        }
        Expr::Ct { to, key, direction } => {
            writer.u32(1, number(*to));
            writer.u32(2, *key as u32);
            if let Some(direction) = direction {
                writer.u8(3, *direction as u8);
            }
        }
        Expr::SetCt { from, key } => {
            writer.u32(2, *key as u32);
            writer.u32(4, number(*from));
        }
        _ => {}
    }
}

fn compute(writer: &mut Writer, step: &Expr) {
    match step {
        Expr::Cmp { reg, op, value: bytes } => {
            writer.u32(1, number(*reg));
            writer.u32(2, *op as u32);
            value(writer, 3, bytes);
        }
        Expr::Range { reg, first, last, outside } => {
            writer.u32(1, number(*reg));
            writer.u32(2, u32::from(*outside));
            value(writer, 3, first);
            value(writer, 4, last);
        }
        Expr::Bitwise { from, to, mask, xor } => {
            writer.u32(1, number(*from));
            writer.u32(2, number(*to));
            writer.u32(3, u32::try_from(mask.len()).unwrap_or(u32::MAX));
            value(writer, 4, mask);
            value(writer, 5, xor);
        }
        Expr::Immediate { to, value: bytes } => {
            writer.u32(1, number(*to));
            value(writer, 2, bytes);
        }
        _ => {}
    }
}

fn lookup(writer: &mut Writer, set: &str, key: Reg, found: Found) {
    writer.text(1, set);
    writer.u32(2, number(key));
    match found {
        Found::Match => {}
        Found::NoMatch => writer.u32(5, 1),
        Found::Value(to) => writer.u32(3, number(to)),
        Found::Verdict => writer.u32(3, VERDICT_REGISTER),
    }
}

fn translate(writer: &mut Writer, step: &Expr) {
    let flags = |writer: &mut Writer, kind: u16, choice: &PortChoice| {
        if choice.flags() != 0 {
            writer.u32(kind, choice.flags());
        }
    };
    match step {
        Expr::Nat { kind, family, addr, port, choice } => {
            writer.u32(1, if *kind == NatKind::Snat { 0 } else { 1 });
            writer.u32(2, *family as u32);
            if let Some(addr) = addr {
                writer.u32(3, number(*addr));
            }
            if let Some(port) = port {
                writer.u32(5, number(*port));
            }
            flags(writer, 7, choice);
        }
        Expr::Masquerade { choice } => flags(writer, 1, choice),
        Expr::Redirect { port: Some(port) } => writer.u32(1, number(*port)),
        _ => {}
    }
}

fn generate(writer: &mut Writer, step: &Expr) {
    match step {
        Expr::Numgen { to, numbers, modulus, offset } => {
            writer.u32(1, number(*to));
            writer.u32(2, *modulus);
            writer.u32(3, *numbers as u32);
            writer.u32(4, *offset);
        }
        Expr::Jhash { from, len, to, modulus, seed, offset } => {
            writer.u32(1, number(*from));
            writer.u32(2, number(*to));
            writer.u32(3, *len);
            writer.u32(4, *modulus);
            writer.u32(5, *seed);
            writer.u32(6, *offset);
            writer.u32(7, 0);
        }
        Expr::Fib { to, result, address } => {
            writer.u32(1, number(*to));
            writer.u32(2, *result as u32);
            writer.u32(3, *address as u32);
        }
        _ => {}
    }
}

fn segment_size(writer: &mut Writer, step: &Expr) {
    /// `NFT_RT_TCPMSS`.
    const TCP_MSS: u32 = 3;
    /// `TCPOPT_MAXSEG`: kind, length, and two bytes of size.
    const MAXSEG: u8 = 2;
    match step {
        Expr::RouteMss { to } => {
            writer.u32(1, number(*to));
            writer.u32(2, TCP_MSS);
        }
        Expr::ToNetworkOrder { from, to } => {
            writer.u32(1, number(*from));
            writer.u32(2, number(*to));
            writer.u32(3, 1);
            writer.u32(4, 2);
            writer.u32(5, 2);
        }
        Expr::LowerMss { from } => {
            writer.u8(2, MAXSEG);
            writer.u32(3, 2);
            writer.u32(4, 2);
            writer.u32(6, 1);
            writer.u32(7, number(*from));
        }
        _ => {}
    }
}

fn reject(writer: &mut Writer, how: Reject) {
    let (kind, code) = match how {
        Reject::Icmp(code) => (0, Some(code)),
        Reject::TcpReset => (1, None),
        Reject::PortUnreachable => (2, Some(1)),
        Reject::AdminProhibited => (2, Some(3)),
    };
    writer.u32(1, kind);
    if let Some(code) = code {
        writer.u8(2, code);
    }
}

/// What makes a set, after the names of its table and itself.
pub(super) fn set(writer: &mut Writer, set: &Set, id: u32) {
    let is_map = set.to.is_some();
    let flags = [
        (set.interval, set_flags::INTERVAL),
        (set.is_concatenated_interval(), set_flags::CONCAT),
        (is_map, set_flags::MAP),
        (set.timeout.is_some(), set_flags::TIMEOUT),
        (set.dynamic, set_flags::EVAL),
    ];
    writer.u32(3, flags.iter().filter(|(on, _)| *on).map(|(_, bit)| bit).sum());
    let (number, length) = types(&set.key);
    writer.u32(4, number);
    writer.u32(5, length);
    match &set.to {
        Some(MapTo::Verdict) => writer.u32(6, DATA_VERDICT),
        Some(MapTo::Value(to)) => {
            let (number, length) = types(to);
            writer.u32(6, number);
            writer.u32(7, length);
        }
        None => {}
    }
    if set.size.is_some() || set.is_concatenated_interval() {
        writer.nested(9, |writer| description(writer, set));
    }
    writer.u32(10, id);
    if let Some(Some(timeout)) = set.timeout {
        writer.u64(11, milliseconds(timeout));
    }
    let mut data = Vec::new();
    if set.interval {
        user_data(&mut data, KEY_BYTE_ORDER.0, &KEY_BYTE_ORDER.1.to_ne_bytes());
    }
    if let Some(comment) = &set.comment {
        data.extend_from_slice(&comment_data(comments::SET, comment));
    }
    if !data.is_empty() {
        writer.attribute(13, &data);
    }
}

fn description(writer: &mut Writer, set: &Set) {
    if let Some(size) = set.size {
        writer.u32(1, size);
    }
    if set.is_concatenated_interval() {
        writer.nested(2, |writer| {
            for part in &set.key {
                writer.nested(1, |writer| writer.u32(1, u32::try_from(part.bytes()).unwrap_or(u32::MAX)));
            }
        });
    }
}

/// nft's number of a (concatenated) type, and its length in bytes.
fn types(types: &[Type]) -> (u32, u32) {
    let number = types.iter().fold(0, |number, part| number << 6 | part.number());
    let length = match types {
        [only] => only.bytes(),
        parts => parts.iter().map(|part| part.padded_bytes()).sum(),
    };
    (number, u32::try_from(length).unwrap_or(u32::MAX))
}

/// An element, as one or (a range) two list elements.
pub(super) fn element(writer: &mut Writer, set: &Set, element: &Element) {
    writer.nested(1, |writer| {
        value(writer, 1, element.key.exact(&set.key));
        if set.is_concatenated_interval() {
            value(writer, 10, element.last.as_ref().unwrap_or(&element.key).exact(&set.key));
        }
        match &element.to {
            Some(Data::Verdict(what)) => verdict(writer, 2, what),
            Some(Data::Value(key)) => {
                let types: &[Type] = if let Some(MapTo::Value(types)) = &set.to { types } else { &[] };
                value(writer, 2, key.exact(types));
            }
            None => {}
        }
        if let Some(timeout) = element.timeout {
            writer.u64(4, milliseconds(timeout));
        }
        if let Some(comment) = &element.comment {
            writer.attribute(6, &comment_data(comments::ELEMENT, comment));
        }
    });
    if set.interval && !set.is_concatenated_interval() {
        let last = element.last.as_ref().unwrap_or(&element.key).exact(&set.key);
        // What ends at the very last address has no end.
        if let Some(end) = successor(last) {
            writer.nested(1, |writer| {
                value(writer, 1, &end);
                writer.u32(3, INTERVAL_END);
            });
        }
    }
}

/// The number after this one, in the network's order.
fn successor(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut next = bytes.to_vec();
    for byte in next.iter_mut().rev() {
        let (sum, carries) = byte.overflowing_add(1);
        *byte = sum;
        if !carries {
            return Some(next);
        }
    }
    None
}

fn milliseconds(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The address family as a byte of the header.
pub(super) const fn family(family: Family) -> u8 {
    family as u8
}

/// A key from the kernel, padded as [`Key`] builds it.
pub(super) fn key_of(bytes: &[u8]) -> Key {
    let mut padded = bytes.to_vec();
    padded.resize(bytes.len().next_multiple_of(4), 0);
    Key(padded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_end_after_their_last() {
        assert_eq!(successor(&[10, 0, 0, 255]), Some(vec![10, 0, 1, 0]));
        assert_eq!(successor(&[255; 4]), None);
    }

    #[test]
    fn concatenated_types_are_numbered_as_nft_does() {
        assert_eq!(types(&[Type::InetService]), (13, 2));
        assert_eq!(types(&[Type::Ipv4Addr, Type::InetProto, Type::InetService]), ((7 << 12) | (12 << 6) | 13, 12));
    }

    #[test]
    fn comments_are_cut_at_a_character() {
        let long = "é".repeat(100);
        let data = comment_data(comments::RULE, &long);
        assert_eq!((data.len(), data[1]), (129, 127), "63 characters of two bytes and a zero");
    }
}
