//! Frames of SPDY/3.1 (draft 3.1, section 2.2), as moby/spdystream sends and expects them.

use super::SpdyError;
use super::headers::{HeaderDecoder, HeaderEncoder, Headers};

/// Bytes before the content of every frame.
pub const HEAD_BYTES: usize = 8;
/// Largest control frame: a compressed header block and a few numbers.
const CONTROL_BYTES: usize = 64 << 10;
/// Largest content of a frame: the length has 24 bits.
pub const DATA_BYTES: usize = (1 << 24) - 1;

const VERSION: u16 = 3;
const FIN: u8 = 0x01;

/// Status of a stream that was refused, as there are too many.
pub const REFUSED_STREAM: u32 = 3;
/// Status of a stream that was ended early.
pub const CANCEL: u32 = 5;

/// The begin of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Head {
    Data { stream: u32, is_last: bool, length: usize },
    Control { kind: u16, flags: u8, length: usize },
}

impl Head {
    /// Reads the first eight bytes of a frame.
    ///
    /// # Errors
    /// [`SpdyError::Protocol`] when it is of another version, or a control frame is too large.
    pub fn parse(bytes: [u8; HEAD_BYTES]) -> Result<Self, SpdyError> {
        let [a, b, c, d, flags, length @ ..] = bytes;
        let length = length.iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
        let first = u32::from_be_bytes([a, b, c, d]);
        if first >> 31 == 0 {
            return Ok(Self::Data { stream: first, is_last: flags & FIN != 0, length });
        }
        if (first >> 16) as u16 & 0x7fff != VERSION {
            return Err(SpdyError::Protocol("not SPDY/3"));
        }
        if length > CONTROL_BYTES {
            return Err(SpdyError::Protocol("control frame too large"));
        }
        Ok(Self::Control { kind: first as u16, flags, length })
    }
}

/// A control frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Control {
    SynStream {
        stream: u32,
        is_last: bool,
        headers: Headers,
    },
    SynReply {
        stream: u32,
        is_last: bool,
        headers: Headers,
    },
    Reset {
        stream: u32,
        status: u32,
    },
    Ping(u32),
    GoAway {
        last_stream: u32,
    },
    Headers {
        stream: u32,
        is_last: bool,
    },
    /// SETTINGS, WINDOW_UPDATE and what is not known: spdystream has no flow control.
    Other(u16),
}

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;

impl Control {
    /// Reads the content of a control frame.
    ///
    /// # Errors
    /// [`SpdyError::Protocol`]; the connection cannot go on then.
    pub fn parse(kind: u16, flags: u8, body: &[u8], decoder: &mut HeaderDecoder) -> Result<Self, SpdyError> {
        let is_last = flags & FIN != 0;
        let number = |at: usize| {
            let bytes = body.get(at..at + 4).and_then(|bytes| <[u8; 4]>::try_from(bytes).ok());
            bytes.map(u32::from_be_bytes).ok_or(SpdyError::Protocol("control frame too short"))
        };
        let stream = |at: usize| number(at).map(|number| number & 0x7fff_ffff);
        let block = |from: usize| body.get(from..).ok_or(SpdyError::Protocol("control frame too short"));
        Ok(match kind {
            // Stream, associated stream, priority and slot come before the headers.
            SYN_STREAM => Self::SynStream { stream: stream(0)?, is_last, headers: decoder.decode(block(10)?)? },
            SYN_REPLY => Self::SynReply { stream: stream(0)?, is_last, headers: decoder.decode(block(4)?)? },
            RST_STREAM => Self::Reset { stream: stream(0)?, status: number(4)? },
            PING => Self::Ping(number(0)?),
            GOAWAY => Self::GoAway { last_stream: stream(0)? },
            HEADERS => {
                decoder.decode(block(4)?)?;
                Self::Headers { stream: stream(0)?, is_last }
            }
            other => Self::Other(other),
        })
    }

    /// The whole frame.
    ///
    /// # Errors
    /// When the headers cannot be compressed.
    pub fn encode(&self, encoder: &mut HeaderEncoder) -> Result<Vec<u8>, SpdyError> {
        let (kind, is_last, body) = match self {
            Self::SynStream { stream, is_last, headers } => {
                let mut body = stream.to_be_bytes().to_vec();
                body.extend([0; 6]);
                body.extend(encoder.encode(headers)?);
                (SYN_STREAM, *is_last, body)
            }
            Self::SynReply { stream, is_last, headers } => {
                let mut body = stream.to_be_bytes().to_vec();
                body.extend(encoder.encode(headers)?);
                (SYN_REPLY, *is_last, body)
            }
            Self::Headers { stream, is_last } => {
                let mut body = stream.to_be_bytes().to_vec();
                body.extend(encoder.encode(&[])?);
                (HEADERS, *is_last, body)
            }
            Self::Reset { stream, status } => (RST_STREAM, false, [stream.to_be_bytes(), status.to_be_bytes()].concat()),
            Self::Ping(id) => (PING, false, id.to_be_bytes().to_vec()),
            Self::GoAway { last_stream } => (GOAWAY, false, [last_stream.to_be_bytes(), [0; 4]].concat()),
            Self::Other(kind) => (*kind, false, Vec::new()),
        };
        let first = 1 << 31 | u32::from(VERSION) << 16 | u32::from(kind);
        let mut frame = head(first, is_last, body.len()).to_vec();
        frame.extend(body);
        Ok(frame)
    }
}

/// The begin of a data frame; its content, at most [`DATA_BYTES`], follows.
pub fn data_head(stream: u32, is_last: bool, length: usize) -> [u8; HEAD_BYTES] {
    head(stream & 0x7fff_ffff, is_last, length)
}

fn head(first: u32, is_last: bool, length: usize) -> [u8; HEAD_BYTES] {
    let [a, b, c, d] = first.to_be_bytes();
    let [_, e, f, g] = (length as u32).to_be_bytes();
    [a, b, c, d, u8::from(is_last) * FIN, e, f, g]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(frame: &[u8], decoder: &mut HeaderDecoder) -> Result<Control, SpdyError> {
        let (head, body) = frame.split_first_chunk::<HEAD_BYTES>().unwrap();
        match Head::parse(*head)? {
            Head::Control { kind, flags, length } => {
                assert_eq!(length, body.len());
                Control::parse(kind, flags, body, decoder)
            }
            Head::Data { .. } => panic!("data"),
        }
    }

    #[test]
    fn known_bytes() {
        let mut encoder = HeaderEncoder::new().unwrap();
        let ping = Control::Ping(7).encode(&mut encoder).unwrap();
        assert_eq!(ping, [0x80, 3, 0, 6, 0, 0, 0, 4, 0, 0, 0, 7]);
        assert_eq!(data_head(5, true, 0x01_0203), [0, 0, 0, 5, 1, 1, 2, 3]);
        assert_eq!(Head::parse([0, 0, 0, 5, 1, 1, 2, 3]).unwrap(), Head::Data { stream: 5, is_last: true, length: 0x01_0203 });
        assert!(Head::parse([0x80, 2, 0, 6, 0, 0, 0, 4]).is_err(), "SPDY/2");
        assert!(Head::parse([0x80, 3, 0, 1, 0, 1, 0, 1]).is_err(), "too large");
    }

    fn control() -> impl Strategy<Value = Control> {
        let headers = prop::collection::vec(("[a-z]{1,10}", ".{0,40}"), 0..6);
        let stream = 1_u32..0x7fff_ffff;
        prop_oneof![
            (stream.clone(), any::<bool>(), headers.clone()).prop_map(|(stream, is_last, headers)| Control::SynStream {
                stream,
                is_last,
                headers
            }),
            (stream.clone(), any::<bool>(), headers).prop_map(|(stream, is_last, headers)| Control::SynReply {
                stream,
                is_last,
                headers
            }),
            (stream.clone(), any::<u32>()).prop_map(|(stream, status)| Control::Reset { stream, status }),
            any::<u32>().prop_map(Control::Ping),
            stream.clone().prop_map(|last_stream| Control::GoAway { last_stream }),
            (stream, any::<bool>()).prop_map(|(stream, is_last)| Control::Headers { stream, is_last }),
        ]
    }

    proptest! {
        #[test]
        fn control_frames_round_trip(frames in prop::collection::vec(control(), 1..10)) {
            let (mut encoder, mut decoder) = (HeaderEncoder::new().unwrap(), HeaderDecoder::default());
            for frame in frames {
                let bytes = frame.encode(&mut encoder).unwrap();
                prop_assert_eq!(parse(&bytes, &mut decoder).unwrap(), frame);
            }
        }

        #[test]
        fn garbage_is_an_error_not_a_panic(
            head in any::<[u8; HEAD_BYTES]>(), kind in 0_u16..12, body in prop::collection::vec(any::<u8>(), 0..200)
        ) {
            let _outcome = Head::parse(head);
            let _outcome = Control::parse(kind, 1, &body, &mut HeaderDecoder::default());
        }
    }
}
