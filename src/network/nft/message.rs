//! Netlink framing: messages and attributes, written into one buffer and read from one.
//!
//! Lengths and types of netlink are in the machine's byte order; the numbers inside netfilter's attributes in the network's.

/// Marks an attribute that holds attributes.
const NESTED: u16 = 0x8000;
/// The bits of an attribute's type that are its type.
const TYPE_MASK: u16 = 0x3fff;
/// Bytes of `nlmsghdr`.
pub(super) const HEADER: usize = 16;
/// Bytes of `nfgenmsg`, which follows the header in every netfilter message.
pub(super) const GENERIC: usize = 4;

/// nf_tables, as subsystem of a message type.
pub(super) const SUBSYSTEM_NFTABLES: u16 = 10 << 8;
/// Connection tracking, as subsystem of a message type.
pub(super) const SUBSYSTEM_CONNTRACK: u16 = 1 << 8;

/// Flags of a message.
pub(super) mod flags {
    pub(in super::super) const REQUEST: u16 = 0x1;
    pub(in super::super) const ACK: u16 = 0x4;
    pub(in super::super) const DUMP: u16 = 0x300;
    pub(in super::super) const DUMP_INTERRUPTED: u16 = 0x10;
    pub(in super::super) const REPLACE: u16 = 0x100;
    pub(in super::super) const EXCLUSIVE: u16 = 0x200;
    pub(in super::super) const CREATE: u16 = 0x400;
    pub(in super::super) const APPEND: u16 = 0x800;
    /// In an answer: attributes follow the error.
    pub(in super::super) const HAS_ATTRIBUTES: u16 = 0x200;
    /// In an answer: the request is not repeated.
    pub(in super::super) const CAPPED: u16 = 0x100;
}

/// Types of netlink's own messages.
pub(super) const ERROR: u16 = 2;
pub(super) const DONE: u16 = 3;

/// Messages, one after the other.
#[derive(Debug, Default, Clone)]
pub(super) struct Writer(Vec<u8>);

/// Where a message or a nested attribute began.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mark(usize);

impl Writer {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Begins a message with its `nlmsghdr` and `nfgenmsg`.
    pub(super) fn begin(&mut self, kind: u16, flags: u16, sequence: u32, family: u8, resource: u16) -> Mark {
        let mark = Mark(self.0.len());
        self.0.extend_from_slice(&0_u32.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(&flags.to_ne_bytes());
        self.0.extend_from_slice(&sequence.to_ne_bytes());
        self.0.extend_from_slice(&0_u32.to_ne_bytes());
        self.0.extend_from_slice(&[family, 0]);
        self.0.extend_from_slice(&resource.to_be_bytes());
        mark
    }

    /// Ends a message: its length is known now.
    pub(super) fn end(&mut self, mark: Mark) {
        let length = u32::try_from(self.0.len() - mark.0).unwrap_or(u32::MAX);
        if let Some(place) = self.0.get_mut(mark.0..mark.0 + 4) {
            place.copy_from_slice(&length.to_ne_bytes());
        }
    }

    pub(super) fn attribute(&mut self, kind: u16, value: &[u8]) {
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.pad();
    }

    pub(super) fn u8(&mut self, kind: u16, value: u8) {
        self.attribute(kind, &[value]);
    }

    pub(super) fn u16(&mut self, kind: u16, value: u16) {
        self.attribute(kind, &value.to_be_bytes());
    }

    pub(super) fn u32(&mut self, kind: u16, value: u32) {
        self.attribute(kind, &value.to_be_bytes());
    }

    pub(super) fn u64(&mut self, kind: u16, value: u64) {
        self.attribute(kind, &value.to_be_bytes());
    }

    /// Text with a zero at its end.
    pub(super) fn text(&mut self, kind: u16, value: &str) {
        let length = u16::try_from(value.len() + 5).unwrap_or(u16::MAX);
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value.as_bytes());
        self.0.push(0);
        self.pad();
    }

    /// An attribute that holds what `fill` writes.
    pub(super) fn nested(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let mark = self.open(kind);
        fill(self);
        self.close(mark);
    }

    /// Begins an attribute that holds attributes.
    pub(super) fn open(&mut self, kind: u16) -> Mark {
        let mark = Mark(self.0.len());
        self.0.extend_from_slice(&0_u16.to_ne_bytes());
        self.0.extend_from_slice(&(kind | NESTED).to_ne_bytes());
        mark
    }

    /// Ends what [`open`](Self::open) began. It must be shorter than 64 KiB.
    pub(super) fn close(&mut self, mark: Mark) {
        let length = u16::try_from(self.0.len() - mark.0).unwrap_or(u16::MAX);
        if let Some(place) = self.0.get_mut(mark.0..mark.0 + 2) {
            place.copy_from_slice(&length.to_ne_bytes());
        }
    }

    fn pad(&mut self) {
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }
}

/// One message of a buffer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Message<'a> {
    pub(super) kind: u16,
    pub(super) flags: u16,
    pub(super) sequence: u32,
    /// The socket that sent it, or, for an event, whose request caused it.
    pub(super) port: u32,
    /// After the header.
    pub(super) payload: &'a [u8],
}

impl<'a> Message<'a> {
    /// The attributes of a netfilter message.
    pub(super) fn attributes(&self) -> Attributes<'a> {
        Attributes(self.payload.get(GENERIC..).unwrap_or(&[]))
    }

    /// The address family of a netfilter message.
    pub(super) fn family(&self) -> Option<u8> {
        self.payload.first().copied()
    }
}

/// The messages of a buffer; what is cut off is left out.
pub(super) fn messages(mut buffer: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let length = usize::try_from(u32_at(buffer, 0)?).ok()?;
        let message = Message {
            kind: u16_at(buffer, 4)?,
            flags: u16_at(buffer, 6)?,
            sequence: u32_at(buffer, 8)?,
            port: u32_at(buffer, 12)?,
            payload: buffer.get(HEADER..length)?,
        };
        buffer = buffer.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some(message)
    })
}

/// Attributes, one after the other: type and value.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attributes<'a>(pub(super) &'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::from(u16_at(self.0, 0)?);
        let kind = u16_at(self.0, 2)? & TYPE_MASK;
        let value = self.0.get(4..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some((kind, value))
    }
}

impl<'a> Attributes<'a> {
    /// The value of the first attribute of this type.
    pub(super) fn get(mut self, kind: u16) -> Option<&'a [u8]> {
        self.find(|(found, _)| *found == kind).map(|(_, value)| value)
    }

    /// The attributes within the first attribute of this type.
    pub(super) fn within(self, kind: u16) -> Option<Attributes<'a>> {
        self.get(kind).map(Attributes)
    }

    pub(super) fn text(self, kind: u16) -> Option<&'a str> {
        std::str::from_utf8(self.get(kind)?).ok().map(|text| text.trim_end_matches('\0'))
    }

    pub(super) fn u32(self, kind: u16) -> Option<u32> {
        self.get(kind)?.try_into().ok().map(u32::from_be_bytes)
    }

    pub(super) fn u64(self, kind: u16) -> Option<u64> {
        self.get(kind)?.try_into().ok().map(u64::from_be_bytes)
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes)
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let mut writer = Writer::default();
        for sequence in [7, 8] {
            let mark = writer.begin(SUBSYSTEM_NFTABLES, flags::REQUEST, sequence, 2, 0);
            writer.text(1, "abc");
            writer.nested(2, |writer| {
                writer.u32(1, 5);
                writer.u8(2, 9);
            });
            writer.end(mark);
        }
        let read: Vec<Message> = messages(writer.bytes()).collect();
        assert_eq!(read.iter().map(|message| message.sequence).collect::<Vec<_>>(), [7, 8]);
        let attributes = read[1].attributes();
        assert_eq!((read[1].family(), attributes.text(1)), (Some(2), Some("abc")));
        let inner = attributes.within(2).unwrap();
        assert_eq!((inner.u32(1), inner.get(2)), (Some(5), Some(&[9][..])));
    }

    #[test]
    fn damaged_bytes_end_the_reading() {
        let mut writer = Writer::default();
        let mark = writer.begin(1, 0, 1, 2, 0);
        writer.u32(1, 5);
        writer.end(mark);
        for cut in 0..writer.len() {
            assert_eq!(messages(&writer.bytes()[..cut]).count(), 0, "{cut} bytes");
        }
        assert_eq!(Attributes(&[0, 0, 1, 0]).count(), 0, "a length below the header's is not followed for ever");
    }
}
