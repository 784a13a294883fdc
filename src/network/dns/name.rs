//! A domain name in wire form (RFC 1035 section 3.1), lower-cased, with the places of its labels: on the stack, so that a look-up
//! allocates nothing.

/// Longest name on the wire, its root label included.
const MAX_BYTES: usize = 255;
/// Most labels: each takes two bytes at least.
const MAX_LABELS: usize = 127;
/// Longest label.
const MAX_LABEL: usize = 63;
/// Most compression pointers that are followed in one name.
const MAX_POINTERS: usize = 32;

/// A lower-cased name. Comparing the bytes compares the names.
#[derive(Clone)]
pub(super) struct Name {
    bytes: [u8; MAX_BYTES],
    len: u8,
    starts: [u8; MAX_LABELS + 1],
    labels: u8,
}

impl Name {
    /// The root.
    pub(super) const fn root() -> Self {
        let mut name = Self { bytes: [0; MAX_BYTES], len: 0, starts: [0; MAX_LABELS + 1], labels: 0 };
        name.len = 1;
        name
    }

    /// Reads a name at an offset of a message; also where the bytes after it begin. Pointers lead backwards only.
    pub(super) fn parse(message: &[u8], offset: usize) -> Option<(Self, usize)> {
        let mut name = Self::root();
        let (mut at, mut end, mut pointers) = (offset, None, 0);
        loop {
            let length = usize::from(*message.get(at)?);
            match length {
                0 => return Some((name, end.unwrap_or(at + 1))),
                1..=MAX_LABEL => {
                    name.push(message.get(at + 1..at + 1 + length)?)?;
                    at += 1 + length;
                }
                0xc0.. => {
                    let target = (length & 0x3f) << 8 | usize::from(*message.get(at + 1)?);
                    pointers += 1;
                    if target >= at || target < 12 || pointers > MAX_POINTERS {
                        return None;
                    }
                    end = end.or(Some(at + 2));
                    at = target;
                }
                _ => return None,
            }
        }
    }

    /// Reads a name in wire form without pointers; also where the bytes after it begin.
    pub(super) fn parse_wire(wire: &[u8]) -> Option<(Self, usize)> {
        let mut name = Self::root();
        let mut at = 0;
        loop {
            let length = usize::from(*wire.get(at)?);
            if length == 0 {
                return Some((name, at + 1));
            }
            name.push(wire.get(at + 1..at + 1 + length)?)?;
            at += 1 + length;
        }
    }

    /// A name from its text, absolute with or without the dot at its end.
    pub(super) fn from_text(text: &str) -> Option<Self> {
        let mut name = Self::root();
        let text = text.strip_suffix('.').unwrap_or(text);
        if text.is_empty() {
            return Some(name);
        }
        for label in text.split('.') {
            name.push(label.as_bytes())?;
        }
        Some(name)
    }

    /// Adds a label at the end.
    fn push(&mut self, label: &[u8]) -> Option<()> {
        let at = usize::from(self.len) - 1;
        let (end, count) = (at + 1 + label.len(), usize::from(self.labels));
        if label.is_empty() || label.len() > MAX_LABEL || end + 1 > MAX_BYTES || count >= MAX_LABELS {
            return None;
        }
        self.starts[count] = u8::try_from(at).ok()?;
        self.bytes[at] = u8::try_from(label.len()).ok()?;
        for (to, from) in self.bytes[at + 1..end].iter_mut().zip(label) {
            *to = from.to_ascii_lowercase();
        }
        self.bytes[end] = 0;
        self.len = u8::try_from(end + 1).ok()?;
        self.labels += 1;
        self.starts[count + 1] = u8::try_from(end).ok()?;
        Some(())
    }

    /// The whole name on the wire.
    pub(super) fn wire(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    /// How many labels there are; the root has none.
    pub(super) fn labels(&self) -> usize {
        usize::from(self.labels)
    }

    /// Where a label begins; for `labels()` the root.
    pub(super) fn start(&self, label: usize) -> usize {
        usize::from(self.starts[label.min(self.labels())])
    }

    /// The text of a label.
    pub(super) fn label(&self, label: usize) -> &[u8] {
        &self.bytes[self.start(label) + 1..self.start(label + 1)]
    }

    /// The wire form of the labels `from..to`, without a root.
    pub(super) fn span(&self, from: usize, to: usize) -> &[u8] {
        &self.bytes[self.start(from)..self.start(to)]
    }

    /// The wire form from a label to the root.
    pub(super) fn suffix(&self, from: usize) -> &[u8] {
        &self.bytes[self.start(from)..usize::from(self.len)]
    }

    /// How many labels stand before `zone`; `None` if the name is not in it.
    pub(super) fn below(&self, zone: &Self) -> Option<usize> {
        let before = self.labels().checked_sub(zone.labels())?;
        (self.suffix(before) == zone.wire()).then_some(before)
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for label in 0..self.labels() {
            write!(formatter, "{}.", self.label(label).escape_ascii())?;
        }
        if self.labels() == 0 { formatter.write_str(".") } else { Ok(()) }
    }
}

impl std::fmt::Debug for Name {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, formatter)
    }
}

impl PartialEq for Name {
    fn eq(&self, other: &Self) -> bool {
        self.wire() == other.wire()
    }
}
impl Eq for Name {}

/// The wire form of one label of an object's name, lower-cased; `None` if it cannot be one.
pub(super) fn label(text: &str) -> Option<Vec<u8>> {
    let length = u8::try_from(text.len()).ok().filter(|length| (1..=63).contains(length) && !text.contains('.'))?;
    Some(std::iter::once(length).chain(text.bytes().map(|byte| byte.to_ascii_lowercase())).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_lower_cased_and_cut() {
        let name = Name::from_text("_HTTP._tcp.Web.shop.svc.cluster.local.").unwrap();
        let zone = Name::from_text("cluster.local").unwrap();
        assert_eq!(name.to_string(), "_http._tcp.web.shop.svc.cluster.local.");
        assert_eq!(name.below(&zone), Some(5));
        assert_eq!(name.span(2, 4), b"\x03web\x04shop");
        assert_eq!((name.label(0), name.label(6)), (&b"_http"[..], &b"local"[..]));
        assert_eq!(Name::from_text("xcluster.local").unwrap().below(&zone), None);
        assert_eq!(Name::from_text("").unwrap(), Name::root());
        assert!(Name::from_text("a..b").is_none());
        assert!(Name::from_text(&"a".repeat(64)).is_none());
        assert!(Name::from_text(&"aaa.".repeat(63)).is_some());
        assert!(Name::from_text(&"aaa.".repeat(64)).is_none());
    }

    #[test]
    fn pointers_lead_backwards_only() {
        let mut message = vec![0; 12];
        message.extend(b"\x01b\x00\x01A\xc0\x0c\xc0\x0f\xc0\x15\xc0\x19");
        let read = |offset| Name::parse(&message, offset).map(|(name, end)| (name.to_string(), end));
        assert_eq!(read(15), Some(("a.b.".to_owned(), 19)));
        assert_eq!(read(19), Some(("a.b.".to_owned(), 21)));
        assert_eq!((read(21), read(23)), (None, None), "to itself, forward");
        for broken in [&b"\xc0\x0c"[..], b"\xc0\x00", b"\x40a\x00", b"\x05ab", b""] {
            let mut message = vec![0; 12];
            message.extend(broken);
            assert!(Name::parse(&message, 12).is_none(), "{broken:?}");
        }
    }
}
