//! Protobuf as CSI's few messages need it, written by hand: strings, numbers, messages, maps. What is not known is skipped.

use std::collections::BTreeMap;

/// A message that is being written. Fields that are empty or 0 are left out, as proto3 has it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Message(Vec<u8>);

impl Message {
    /// The bytes.
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(u8::try_from(value & 0x7f).unwrap_or(0) | 0x80);
            value >>= 7;
        }
        self.0.push(u8::try_from(value).unwrap_or(0));
    }

    fn bytes(&mut self, tag: u64, bytes: &[u8]) {
        self.varint(tag << 3 | 2);
        self.varint(u64::try_from(bytes.len()).unwrap_or(0));
        self.0.extend_from_slice(bytes);
    }

    /// Adds a number, an enumeration or a bool.
    #[must_use]
    pub fn number(mut self, tag: u64, value: u64) -> Self {
        if value != 0 {
            self.varint(tag << 3);
            self.varint(value);
        }
        self
    }

    /// Adds a text.
    #[must_use]
    pub fn text(mut self, tag: u64, text: &str) -> Self {
        if !text.is_empty() {
            self.bytes(tag, text.as_bytes());
        }
        self
    }

    /// Adds a message, also an empty one: that it is there says something.
    #[must_use]
    pub fn message(mut self, tag: u64, message: &Self) -> Self {
        self.bytes(tag, &message.0);
        self
    }

    /// Adds a list of texts.
    #[must_use]
    pub fn texts(self, tag: u64, texts: &[String]) -> Self {
        texts.iter().fold(self, |message, text| message.text(tag, text))
    }

    /// Adds a map of texts.
    #[must_use]
    pub fn map(self, tag: u64, map: &BTreeMap<String, String>) -> Self {
        map.iter().fold(self, |message, (key, value)| message.message(tag, &Self::default().text(1, key).text(2, value)))
    }
}

/// The value of a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

impl<'a> Field<'a> {
    /// A text; "" if it is none.
    pub fn text(self) -> String {
        String::from_utf8_lossy(self.bytes()).into_owned()
    }

    /// The bytes of a text or message.
    pub fn bytes(self) -> &'a [u8] {
        if let Self::Bytes(bytes) = self { bytes } else { &[] }
    }

    /// A number; 0 if it is none.
    pub fn number(self) -> u64 {
        if let Self::Number(number) = self { number } else { 0 }
    }
}

fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (byte, after) = rest.split_first()?;
        *rest = after;
        value |= u64::from(byte & 0x7f).checked_shl(shift)?;
        if *byte < 0x80 {
            return Some(value);
        }
    }
    None
}

fn take<'a>(rest: &mut &'a [u8], length: u64) -> Option<&'a [u8]> {
    let (taken, after) = rest.split_at_checked(usize::try_from(length).ok()?)?;
    *rest = after;
    Some(taken)
}

/// The fields of a message with their tags; `None` if it is damaged.
pub fn fields(mut rest: &[u8]) -> Option<Vec<(u64, Field<'_>)>> {
    let mut all = Vec::new();
    while !rest.is_empty() {
        let head = varint(&mut rest)?;
        let field = match head & 7 {
            0 => Field::Number(varint(&mut rest)?),
            2 => {
                let length = varint(&mut rest)?;
                Field::Bytes(take(&mut rest, length)?)
            }
            1 => Field::Bytes(take(&mut rest, 8)?),
            5 => Field::Bytes(take(&mut rest, 4)?),
            _ => return None,
        };
        all.push((head >> 3, field));
    }
    Some(all)
}

/// A map of texts from one of its entries.
pub fn entry(bytes: &[u8]) -> Option<(String, String)> {
    let (mut key, mut value) = (String::new(), String::new());
    for (tag, field) in fields(bytes)? {
        match tag {
            1 => key = field.text(),
            2 => value = field.text(),
            _ => {}
        }
    }
    Some((key, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let map = BTreeMap::from([("k".to_owned(), "v".to_owned())]);
        let written = Message::default().text(1, "a").number(2, 300).message(3, &Message::default()).map(4, &map).number(5, 0);
        let bytes = written.into_bytes();
        assert_eq!(bytes, [0x0a, 1, b'a', 0x10, 0xac, 2, 0x1a, 0, 0x22, 6, 0x0a, 1, b'k', 0x12, 1, b'v']);
        let read = fields(&bytes).unwrap();
        assert_eq!(read[0], (1, Field::Bytes(b"a")));
        assert_eq!(read[1], (2, Field::Number(300)));
        assert_eq!(entry(read[3].1.bytes()).unwrap(), ("k".to_owned(), "v".to_owned()));
        assert!(fields(&[0x0a, 5, 1]).is_none());
    }
}
