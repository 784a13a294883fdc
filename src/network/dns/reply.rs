//! Answers, written record by record into a buffer that is used again and again. What does not fit is left out and said so (TC).

use std::net::IpAddr;

use super::message::{HEADER, OPT, Query, rtype};

/// Where a record goes; sections are written in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Section {
    Answer,
    Authority,
    Additional,
}

/// The name that a record belongs to.
#[derive(Debug, Clone, Copy)]
pub(super) enum Owner<'a> {
    /// It stands at this offset of the message: in the question.
    At(usize),
    /// In wire form.
    Name(&'a [u8]),
}

impl<'a> Owner<'a> {
    /// The name without its first labels, which take `bytes`.
    pub(super) fn skip(self, bytes: usize) -> Self {
        match self {
            Self::At(offset) => Self::At(offset + bytes),
            Self::Name(wire) => Self::Name(&wire[bytes..]),
        }
    }
}

/// The answer to one query.
pub(super) struct Reply<'a> {
    out: &'a mut Vec<u8>,
    /// Bytes that records may take.
    limit: usize,
    counts: [u16; 3],
    is_truncated: bool,
    has_edns: bool,
}

impl<'a> Reply<'a> {
    /// Begins an answer of at most `limit` bytes; what is in `out` goes.
    pub(super) fn begin(query: &Query<'_>, limit: usize, out: &'a mut Vec<u8>) -> Self {
        out.clear();
        out.extend_from_slice(&query.message[..2]);
        // Response, recursion desired as asked; recursion available, checking disabled as asked.
        out.extend_from_slice(&[0x80 | query.message[2] & 0x01, 0x80 | query.message[3] & 0x10, 0, 1, 0, 0, 0, 0, 0, 0]);
        out.extend_from_slice(query.question());
        let has_edns = query.edns.is_some();
        Self { out, limit: limit - if has_edns { OPT } else { 0 }, counts: [0; 3], is_truncated: false, has_edns }
    }

    /// Adds a record whose data are these pieces.
    pub(super) fn record(&mut self, section: Section, owner: Owner<'_>, rtype: u16, ttl: u32, data: &[&[u8]]) {
        if self.is_truncated {
            return;
        }
        let before = self.out.len();
        match owner {
            // A pointer has 14 bits, and a question ends long before they do.
            Owner::At(offset) => self.out.extend_from_slice(&(0xc000 | offset as u16).to_be_bytes()),
            Owner::Name(wire) => self.out.extend_from_slice(wire),
        }
        let length = data.iter().map(|piece| piece.len()).sum::<usize>();
        self.out.extend_from_slice(&rtype.to_be_bytes());
        self.out.extend_from_slice(&[0, 1]);
        self.out.extend_from_slice(&ttl.to_be_bytes());
        self.out.extend_from_slice(&(length as u16).to_be_bytes());
        data.iter().for_each(|piece| self.out.extend_from_slice(piece));
        if self.out.len() > self.limit || length > usize::from(u16::MAX) {
            self.out.truncate(before);
            // Additional records are a courtesy: an answer without them is whole (RFC 2181 section 9).
            self.is_truncated = section != Section::Additional;
            return;
        }
        self.counts[section as usize] += 1;
    }

    /// Adds an address record.
    pub(super) fn address(&mut self, section: Section, owner: Owner<'_>, ttl: u32, ip: IpAddr) {
        match ip {
            IpAddr::V4(ip) => self.record(section, owner, rtype::A, ttl, &[&ip.octets()]),
            IpAddr::V6(ip) => self.record(section, owner, rtype::AAAA, ttl, &[&ip.octets()]),
        }
    }

    /// How many records a section has.
    pub(super) const fn count(&self, section: Section) -> u16 {
        self.counts[section as usize]
    }

    /// Ends the answer.
    pub(super) fn finish(self, rcode: u8, is_authoritative: bool) {
        let Self { out, counts, is_truncated, has_edns, .. } = self;
        out[2] |= u8::from(is_authoritative) << 2 | u8::from(is_truncated) << 1;
        out[3] |= rcode;
        for (section, count) in counts.iter().enumerate() {
            out[6 + 2 * section..8 + 2 * section].copy_from_slice(&count.to_be_bytes());
        }
        if has_edns {
            append_opt(out);
        }
    }
}

/// Makes an answer with an OPT record at its end one that says which version is known: 0 (RFC 6891 section 6.1.3, BADVERS).
pub(super) fn refuse_version(out: &mut [u8]) {
    // The upper bits of code 16 are the first byte of the record's TTL.
    if let Some(upper) = out.iter_mut().rev().nth(5) {
        *upper = 1;
    }
}

/// Adds an OPT record that says how much we take, to a message that is otherwise done.
pub(super) fn append_opt(out: &mut Vec<u8>) {
    const TAKES: [u8; 2] = 1_232_u16.to_be_bytes();
    out.extend_from_slice(&[0, 0, 41, TAKES[0], TAKES[1], 0, 0, 0, 0, 0, 0]);
    let count = u16::from_be_bytes([out[10], out[11]]).saturating_add(1);
    out[10..12].copy_from_slice(&count.to_be_bytes());
}

/// An answer of a code alone, to a message whose question was not understood. `message` has a whole header.
pub(super) fn refuse(message: &[u8], rcode: u8, out: &mut Vec<u8>) {
    out.clear();
    out.extend_from_slice(&message[..2]);
    out.extend_from_slice(&[0x80 | message[2] & 0x79, rcode]);
    out.resize(HEADER, 0);
}

#[cfg(test)]
mod tests {
    use super::super::message::tests::query;
    use super::*;

    #[test]
    fn what_does_not_fit_is_left_out_and_said() {
        let message = query("a.b", rtype::A, Some(512));
        let query = Query::parse(&message).unwrap();
        let mut out = Vec::new();
        for (records, truncated, counted) in [(3, false, 3), (60, true, 30)] {
            let mut reply = Reply::begin(&query, 512, &mut out);
            for number in 0..records {
                reply.address(Section::Answer, Owner::At(HEADER), 5, [10, 0, 0, number].into());
            }
            reply.finish(0, true);
            assert!(out.len() <= 512, "{}", out.len());
            assert_eq!((out[2] & 2 != 0, out[7], out[11]), (truncated, counted, 1));
        }
        let mut reply = Reply::begin(&query, 60, &mut out);
        reply.address(Section::Answer, Owner::At(HEADER), 5, [10, 0, 0, 1].into());
        reply.address(Section::Additional, Owner::At(HEADER), 5, [10, 0, 0, 2].into());
        reply.finish(0, true);
        assert_eq!((out[2] & 2, out[7], out[11]), (0, 1, 1));
    }
}
