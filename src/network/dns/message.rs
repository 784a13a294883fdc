//! Queries as they come in (RFC 1035 section 4, EDNS0 of RFC 6891): everything is checked before anything is used.

use super::name::Name;

/// Bytes of a message's header.
pub(super) const HEADER: usize = 12;
/// Bytes of our OPT record: root, type, size, flags, no options.
pub(super) const OPT: usize = 11;
/// Largest answer over UDP without EDNS0.
pub(super) const UDP_PLAIN: usize = 512;
/// Largest answer over UDP that is ever sent: a client that says more gets a truncated one and comes back over TCP.
pub(super) const UDP_LARGEST: usize = 4_096;

/// Types of records that something is done with.
pub(super) mod rtype {
    pub(in super::super) const A: u16 = 1;
    pub(in super::super) const NS: u16 = 2;
    pub(in super::super) const CNAME: u16 = 5;
    pub(in super::super) const SOA: u16 = 6;
    pub(in super::super) const PTR: u16 = 12;
    pub(in super::super) const MX: u16 = 15;
    pub(in super::super) const TXT: u16 = 16;
    pub(in super::super) const AAAA: u16 = 28;
    pub(in super::super) const SRV: u16 = 33;
    pub(in super::super) const DNAME: u16 = 39;
    pub(in super::super) const OPT: u16 = 41;
}

/// Response codes.
pub(super) mod rcode {
    pub(in super::super) const NO_ERROR: u8 = 0;
    pub(in super::super) const FORM_ERR: u8 = 1;
    pub(in super::super) const SERV_FAIL: u8 = 2;
    pub(in super::super) const NX_DOMAIN: u8 = 3;
    pub(in super::super) const NOT_IMP: u8 = 4;
    pub(in super::super) const REFUSED: u8 = 5;
}

/// What the client says by EDNS0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Edns {
    /// The largest answer that it takes over UDP.
    pub(super) size: u16,
    /// Whether it wants signatures.
    pub(super) dnssec_ok: bool,
    /// Only 0 is known.
    pub(super) version: u8,
}

/// A query with one question.
#[derive(Debug)]
pub(super) struct Query<'a> {
    pub(super) message: &'a [u8],
    /// Lower-cased; the answer repeats the question as it was asked.
    pub(super) name: Name,
    pub(super) qtype: u16,
    /// Where the question ends.
    pub(super) question_end: usize,
    pub(super) edns: Option<Edns>,
}

/// A message that gets no answer from the index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unusable {
    /// Nothing is said: it is no query.
    Silence,
    /// Only this code is said.
    Code(u8),
}

impl<'a> Query<'a> {
    /// Reads a message.
    ///
    /// # Errors
    /// [`Unusable`] with what to say.
    pub(super) fn parse(message: &'a [u8]) -> Result<Self, Unusable> {
        let header = message.first_chunk::<HEADER>().ok_or(Unusable::Silence)?;
        if header[2] & 0x80 != 0 {
            return Err(Unusable::Silence);
        }
        if header[2] & 0x78 != 0 {
            return Err(Unusable::Code(rcode::NOT_IMP));
        }
        let malformed = Unusable::Code(rcode::FORM_ERR);
        if u16::from_be_bytes([header[4], header[5]]) != 1 {
            return Err(malformed);
        }
        let (name, end) = Name::parse(message, HEADER).ok_or(malformed)?;
        let question_end = end + 4;
        let fixed = message.get(end..question_end).ok_or(malformed)?;
        let (qtype, class) = (u16::from_be_bytes([fixed[0], fixed[1]]), u16::from_be_bytes([fixed[2], fixed[3]]));
        if class != 1 {
            return Err(Unusable::Code(rcode::REFUSED));
        }
        let edns = edns(message, question_end, header).map_err(|()| malformed)?;
        Ok(Self { message, name, qtype, question_end, edns })
    }

    /// The question as it was asked.
    pub(super) fn question(&self) -> &'a [u8] {
        &self.message[HEADER..self.question_end]
    }

    /// Whether the client asks for no validation upstream.
    pub(super) fn checking_disabled(&self) -> bool {
        self.message[3] & 0x10 != 0
    }

    /// Whether signatures are wanted.
    pub(super) fn dnssec_ok(&self) -> bool {
        self.edns.is_some_and(|edns| edns.dnssec_ok)
    }

    /// Whether the client speaks a version of EDNS that is not known here.
    pub(super) fn is_of_another_version(&self) -> bool {
        self.edns.is_some_and(|edns| edns.version != 0)
    }

    /// The largest answer over UDP.
    pub(super) fn udp_limit(&self) -> usize {
        self.edns.map_or(UDP_PLAIN, |edns| usize::from(edns.size).clamp(UDP_PLAIN, UDP_LARGEST))
    }
}

/// The OPT record among those that follow the question.
fn edns(message: &[u8], from: usize, header: &[u8; HEADER]) -> Result<Option<Edns>, ()> {
    let count = |at: usize| usize::from(u16::from_be_bytes([header[at], header[at + 1]]));
    let (skipped, additional) = (count(6) + count(8), count(10));
    let (mut at, mut found) = (from, None);
    for number in 0..skipped + additional {
        let record = Record::parse(message, at).ok_or(())?;
        if number >= skipped && record.rtype == rtype::OPT {
            if found.is_some() {
                return Err(());
            }
            let version = record.ttl.to_be_bytes()[1];
            found = Some(Edns { size: record.class, dnssec_ok: record.ttl & 0x8000 != 0, version });
        }
        at = record.end;
    }
    Ok(found)
}

/// One resource record of a message.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) owner: Name,
    pub(super) rtype: u16,
    pub(super) class: u16,
    /// Where the TTL stands.
    pub(super) ttl_at: usize,
    pub(super) ttl: u32,
    pub(super) data: std::ops::Range<usize>,
    /// Where the next record begins.
    pub(super) end: usize,
}

impl Record {
    /// Reads the record at an offset.
    pub(super) fn parse(message: &[u8], at: usize) -> Option<Self> {
        let (owner, fixed) = Name::parse(message, at)?;
        let bytes = message.get(fixed..fixed + 10)?;
        let word = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
        let ttl = u32::from(word(4)) << 16 | u32::from(word(6));
        let data = fixed + 10..fixed + 10 + usize::from(word(8));
        message.get(data.clone())?;
        Some(Self { owner, rtype: word(0), class: word(2), ttl_at: fixed + 4, ttl, end: data.end, data })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A query as a client sends it; `edns` is its size.
    pub(in super::super) fn query(name: &str, qtype: u16, edns: Option<u16>) -> Vec<u8> {
        let mut message = vec![0xab, 0xcd, 0x01, 0, 0, 1, 0, 0, 0, 0, 0, u8::from(edns.is_some())];
        for label in name.split('.').filter(|label| !label.is_empty()) {
            message.push(u8::try_from(label.len()).unwrap());
            message.extend(label.as_bytes());
        }
        message.push(0);
        message.extend(qtype.to_be_bytes());
        message.extend([0, 1]);
        if let Some(size) = edns {
            message.extend([0, 0, 41]);
            message.extend(size.to_be_bytes());
            message.extend([0, 0, 0x80, 0, 0, 0]);
        }
        message
    }

    #[test]
    fn queries_are_checked() {
        let plain = query("A.b", rtype::A, None);
        let read = Query::parse(&plain).unwrap();
        assert_eq!((read.name.to_string().as_str(), read.qtype, read.udp_limit()), ("a.b.", 1, 512));
        let edns = query("a.b", rtype::A, Some(1_232));
        let read = Query::parse(&edns).unwrap();
        assert_eq!((read.edns, read.udp_limit()), (Some(Edns { size: 1_232, dnssec_ok: true, version: 0 }), 1_232));
        let with = |at: usize, value: u8| {
            let mut message = plain.clone();
            message[at] = value;
            Query::parse(&message).unwrap_err()
        };
        let table = [
            (with(2, 0x81), Unusable::Silence),
            (with(2, 0x28), Unusable::Code(rcode::NOT_IMP)),
            (with(5, 2), Unusable::Code(rcode::FORM_ERR)),
            (with(11, 1), Unusable::Code(rcode::FORM_ERR)),
            (with(plain.len() - 1, 3), Unusable::Code(rcode::REFUSED)),
            (Query::parse(&plain[..plain.len() - 1]).unwrap_err(), Unusable::Code(rcode::FORM_ERR)),
            (Query::parse(&plain[..11]).unwrap_err(), Unusable::Silence),
        ];
        for (got, expected) in table {
            assert_eq!(got, expected);
        }
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_break_the_parser(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..600)) {
            let mut message = query("a.b", 1, Some(512));
            let length = message.len().min(bytes.len());
            message[..length].copy_from_slice(&bytes[..length]);
            let _any = Query::parse(&message).is_ok();
            let _other = Query::parse(&bytes).is_ok();
        }
    }
}
