//! The wire format of protobuf: tags, varints and lengths.

use super::ProtoError;

/// Reads the fields of a message.
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

/// The value of a field, as far as the wire tells.
#[derive(Debug, Clone, Copy)]
pub(super) enum Wire<'a> {
    Varint(u64),
    Fixed64(u64),
    Fixed32,
    Bytes(&'a [u8]),
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// The next field with its tag; `None` at the end.
    pub(super) fn next_field(&mut self) -> Result<Option<(u32, Wire<'a>)>, ProtoError> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let head = self.varint()?;
        let tag = u32::try_from(head >> 3).map_err(|_| ProtoError::Overflow)?;
        if tag == 0 {
            return Err(ProtoError::ZeroTag);
        }
        let field = match head & 7 {
            0 => Wire::Varint(self.varint()?),
            1 => Wire::Fixed64(u64::from_le_bytes(self.array()?)),
            2 => {
                let length = usize::try_from(self.varint()?).map_err(|_| ProtoError::Truncated)?;
                Wire::Bytes(self.take(length)?)
            }
            5 => {
                self.array::<4>()?;
                Wire::Fixed32
            }
            other => return Err(ProtoError::WireType(u8::try_from(other).unwrap_or(u8::MAX))),
        };
        Ok(Some((tag, field)))
    }

    /// Whether all was read.
    pub(super) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// The next varint, for packed lists.
    pub(super) fn varint(&mut self) -> Result<u64, ProtoError> {
        let mut value = 0_u64;
        for shift in (0..70).step_by(7) {
            let [byte] = self.array()?;
            if shift == 63 && byte > 1 {
                return Err(ProtoError::Overflow);
            }
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(ProtoError::Overflow)
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], ProtoError> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(ProtoError::Truncated)?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], ProtoError> {
        self.take(N)?.try_into().map_err(|_| ProtoError::Truncated)
    }
}

impl<'a> Wire<'a> {
    pub(super) fn bytes(self) -> Result<&'a [u8], ProtoError> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            Self::Varint(_) => Err(ProtoError::WireType(0)),
            Self::Fixed64(_) => Err(ProtoError::WireType(1)),
            Self::Fixed32 => Err(ProtoError::WireType(5)),
        }
    }

    pub(super) fn string(self) -> Result<&'a str, ProtoError> {
        std::str::from_utf8(self.bytes()?).map_err(|_| ProtoError::Utf8)
    }

    /// A signed integer, as protobuf's `int32` and `int64` are.
    pub(super) fn integer(self) -> Result<i64, ProtoError> {
        match self {
            Self::Varint(value) => Ok(value.cast_signed()),
            other => other.bytes().and(Err(ProtoError::WireType(2))),
        }
    }

    pub(super) fn double(self) -> Result<f64, ProtoError> {
        match self {
            Self::Fixed64(bits) => Ok(f64::from_bits(bits)),
            other => other.bytes().and(Err(ProtoError::WireType(2))),
        }
    }
}

/// Writes the fields of a message.
#[derive(Default)]
pub(crate) struct Writer {
    out: Vec<u8>,
}

impl Writer {
    pub(crate) fn integer(&mut self, tag: u32, value: i64) {
        self.varint(u64::from(tag) << 3);
        self.varint(value.cast_unsigned());
    }

    pub(crate) fn double(&mut self, tag: u32, value: f64) {
        self.varint(u64::from(tag) << 3 | 1);
        self.out.extend_from_slice(&value.to_bits().to_le_bytes());
    }

    pub(crate) fn bytes(&mut self, tag: u32, value: &[u8]) {
        self.varint(u64::from(tag) << 3 | 2);
        self.varint(value.len() as u64);
        self.out.extend_from_slice(value);
    }

    pub(crate) fn string(&mut self, tag: u32, value: &str) {
        self.bytes(tag, value.as_bytes());
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        self.out
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.out.push(value.to_le_bytes()[0] | 0x80);
            value >>= 7;
        }
        self.out.push(value.to_le_bytes()[0]);
    }
}
