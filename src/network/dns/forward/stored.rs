//! An upstream's answer as it is kept: its own bytes, with the places of the TTLs, so that repeating it copies and counts down.

use std::time::Duration;

use tokio::time::Instant;

use super::super::message::{HEADER, Query, Record, rcode, rtype};
use super::super::name::Name;
use super::super::reply::{Owner, Reply, Section, append_opt};

/// Longest that an answer is kept.
const LONGEST: u32 = 3_600;
/// Longest that a denial is kept; what kubeadm and k3s tell CoreDNS.
const LONGEST_DENIAL: u32 = 30;
/// How long an upstream's failure is repeated without asking it again.
const FAILURE: u32 = 5;
/// What an answer says that is older than it may be (RFC 8767 section 4).
const STALE_TTL: u32 = 30;

/// An answer without its OPT record.
#[derive(Debug)]
pub(in super::super) struct Stored {
    message: Vec<u8>,
    question_end: usize,
    /// Where TTLs stand.
    ttls: Vec<usize>,
    /// How long it may be kept.
    pub(super) lifetime: Duration,
    received: Instant,
}

impl Stored {
    /// Takes an answer in; `None` if it is malformed.
    pub(super) fn of(mut message: Vec<u8>, now: Instant) -> Option<Self> {
        let (_, name_end) = Name::parse(&message, HEADER)?;
        let question_end = name_end + 4;
        let count = |message: &[u8], at: usize| u16::from_be_bytes([message[at], message[at + 1]]);
        let (answers, authorities, additional) = (count(&message, 6), count(&message, 8), count(&message, 10));
        let (mut at, mut ttls, mut shortest, mut denial) = (question_end, Vec::new(), None::<u32>, None);
        let all = usize::from(answers) + usize::from(authorities) + usize::from(additional);
        for number in 0..all {
            let record = Record::parse(&message, at)?;
            if record.rtype == rtype::OPT {
                // Whatever follows an OPT record (a signature of the message) was for us alone.
                let left = additional - u16::try_from(all - number).ok()?;
                message[10..12].copy_from_slice(&left.to_be_bytes());
                message.truncate(at);
                break;
            }
            ttls.push(record.ttl_at);
            shortest = Some(shortest.map_or(record.ttl, |known| known.min(record.ttl)));
            if record.rtype == rtype::SOA && number >= usize::from(answers) {
                let minimum = message.get(record.data.end - 4..record.data.end)?;
                denial = Some(u32::from_be_bytes(minimum.try_into().ok()?).min(record.ttl));
            }
            at = record.end;
        }
        let code = message[3] & 0x0f;
        let seconds = match code {
            rcode::NO_ERROR if answers > 0 => shortest.unwrap_or(0).min(LONGEST),
            rcode::NO_ERROR | rcode::NX_DOMAIN => denial.unwrap_or(0).min(LONGEST_DENIAL),
            _ => FAILURE,
        };
        let lifetime = Duration::from_secs(seconds.into());
        Some(Self { message, question_end, ttls, lifetime, received: now })
    }

    /// The code of the answer.
    pub(in super::super) fn rcode(&self) -> u8 {
        self.message[3] & 0x0f
    }

    /// Whether the upstream answered the question, be it by a denial.
    pub(super) fn is_answer(&self) -> bool {
        matches!(self.rcode(), rcode::NO_ERROR | rcode::NX_DOMAIN)
    }

    /// Whether it says that the name, or the type, is not there.
    pub(super) fn is_denial(&self) -> bool {
        self.rcode() == rcode::NX_DOMAIN || self.message[6..8] == [0, 0]
    }

    /// Bytes that it takes.
    pub(super) fn size(&self) -> usize {
        self.message.len() + self.ttls.len() * size_of::<usize>()
    }

    /// When it must not be told any more without saying that it is old.
    pub(super) fn expires(&self) -> Instant {
        self.received + self.lifetime
    }

    fn ttl(&self, original: u32, now: Instant) -> u32 {
        let age = now.saturating_duration_since(self.received);
        if age > self.lifetime && self.is_answer() {
            return STALE_TTL;
        }
        original.saturating_sub(u32::try_from(age.as_secs()).unwrap_or(u32::MAX))
    }

    /// Answers a query of the same question with it.
    pub(in super::super) fn write(&self, query: &Query<'_>, now: Instant, limit: usize, out: &mut Vec<u8>) {
        out.clear();
        out.extend_from_slice(&self.message[..HEADER]);
        out[..2].copy_from_slice(&query.message[..2]);
        // Not authoritative, not truncated; recursion desired and checking disabled as asked, recursion available.
        out[2] = 0x80 | query.message[2] & 0x01;
        out[3] = 0x80 | query.message[3] & 0x10 | self.message[3] & 0x2f;
        // The same name takes the same bytes, so that pointers into the question stay right.
        out.extend_from_slice(query.question());
        out.extend_from_slice(&self.message[self.question_end..]);
        for at in &self.ttls {
            if let Some(bytes) = out.get_mut(*at..*at + 4) {
                let original = u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
                bytes.copy_from_slice(&self.ttl(original, now).to_be_bytes());
            }
        }
        let has_edns = query.edns.is_some();
        if out.len() + if has_edns { super::super::message::OPT } else { 0 } > limit {
            out.truncate(query.question_end);
            out[2] |= 0x02;
            out[6..12].fill(0);
        }
        if has_edns {
            append_opt(out);
        }
    }

    /// Adds its answers to an answer that led to its name.
    pub(in super::super) fn copy_answers(&self, now: Instant, reply: &mut Reply<'_>) {
        let answers = u16::from_be_bytes([self.message[6], self.message[7]]);
        let mut at = self.question_end;
        for _ in 0..answers {
            let Some(record) = Record::parse(&self.message, at) else { return };
            let Some(data) = self.unpacked(&record) else { return };
            let ttl = self.ttl(record.ttl, now);
            reply.record(Section::Answer, Owner::Name(record.owner.wire()), record.rtype, ttl, &[&data]);
            at = record.end;
        }
    }

    /// The data of a record, without pointers into this message.
    fn unpacked(&self, record: &Record) -> Option<Vec<u8>> {
        let before = match record.rtype {
            rtype::CNAME | rtype::NS | rtype::PTR | rtype::DNAME => 0,
            rtype::MX => 2,
            rtype::SRV => 6,
            rtype::SOA => return self.start_of_authority(record),
            _ => return Some(self.message[record.data.clone()].to_vec()),
        };
        let names = record.data.start + before;
        let (name, _) = Name::parse(&self.message, names)?;
        Some([&self.message[record.data.start..names], name.wire()].concat())
    }

    fn start_of_authority(&self, record: &Record) -> Option<Vec<u8>> {
        let (primary, at) = Name::parse(&self.message, record.data.start)?;
        let (mailbox, at) = Name::parse(&self.message, at)?;
        Some([primary.wire(), mailbox.wire(), self.message.get(at..record.data.end)?].concat())
    }
}
