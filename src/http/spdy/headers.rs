//! Header blocks of SPDY/3: names and values, compressed with zlib in one context a direction, which begins with a dictionary.

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};

use super::SpdyError;

/// Largest header block, decompressed.
const BLOCK_BYTES: usize = 64 << 10;
/// Most headers in a block.
const PAIRS: usize = 256;

/// Names and values, in order; names are in lower case.
pub type Headers = Vec<(String, String)>;

/// The words that the dictionary begins with, each behind its length.
#[rustfmt::skip]
const WORDS: [&str; 65] = [
    "options", "head", "post", "put", "delete", "trace", "accept", "accept-charset", "accept-encoding", "accept-language",
    "accept-ranges", "age", "allow", "authorization", "cache-control", "connection", "content-base", "content-encoding",
    "content-language", "content-length", "content-location", "content-md5", "content-range", "content-type", "date", "etag",
    "expect", "expires", "from", "host", "if-match", "if-modified-since", "if-none-match", "if-range", "if-unmodified-since",
    "last-modified", "location", "max-forwards", "pragma", "proxy-authenticate", "proxy-authorization", "range", "referer",
    "retry-after", "server", "te", "trailer", "transfer-encoding", "upgrade", "user-agent", "vary", "via", "warning",
    "www-authenticate", "method", "get", "status", "200 OK", "version", "HTTP/1.1", "url", "public", "set-cookie",
    "keep-alive", "origin",
];
/// How the dictionary goes on.
const TAIL: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505\
203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden\
404 Not Found500 Internal Server Error501 Not Implemented503 Service Unavailable\
Jan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMT\
chunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,text/javascript,public\
privatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";

/// The dictionary of SPDY/3 (draft 3, section 2.6.10.1).
fn dictionary() -> Vec<u8> {
    let mut bytes = Vec::with_capacity(1423);
    for word in WORDS {
        bytes.extend((word.len() as u32).to_be_bytes());
        bytes.extend(word.as_bytes());
    }
    bytes.extend(TAIL.as_bytes());
    bytes
}

/// Compresses the header blocks of one direction.
pub struct HeaderEncoder {
    zlib: Compress,
}

impl HeaderEncoder {
    /// The context at the begin of a connection.
    ///
    /// # Errors
    /// When zlib refuses the dictionary, which it does not.
    pub fn new() -> Result<Self, SpdyError> {
        let mut zlib = Compress::new(Compression::fast(), true);
        zlib.set_dictionary(&dictionary()).map_err(|_| SpdyError::Protocol("zlib refuses the dictionary"))?;
        Ok(Self { zlib })
    }

    /// One block.
    ///
    /// # Errors
    /// When zlib fails.
    pub fn encode(&mut self, headers: &[(String, String)]) -> Result<Vec<u8>, SpdyError> {
        let mut plain = Vec::new();
        plain.extend((headers.len() as u32).to_be_bytes());
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            plain.extend((text.len() as u32).to_be_bytes());
            plain.extend(text.as_bytes());
        }
        let mut block = Vec::with_capacity(plain.len() + 64);
        let before = self.zlib.total_in();
        loop {
            block.reserve(256);
            let done = (self.zlib.total_in() - before) as usize;
            let failed = |_| SpdyError::Protocol("cannot compress headers");
            self.zlib.compress_vec(&plain[done..], &mut block, FlushCompress::Sync).map_err(failed)?;
            // Room that was left means that everything, the flush too, is out.
            if block.len() < block.capacity() {
                return Ok(block);
            }
        }
    }
}

/// Decompresses the header blocks of one direction. Every block must pass through it, also those that nobody wants.
pub struct HeaderDecoder {
    zlib: Decompress,
}

impl Default for HeaderDecoder {
    fn default() -> Self {
        Self { zlib: Decompress::new(true) }
    }
}

impl HeaderDecoder {
    /// One block.
    ///
    /// # Errors
    /// [`SpdyError::Protocol`] when it is no block; the connection cannot go on then.
    pub fn decode(&mut self, block: &[u8]) -> Result<Headers, SpdyError> {
        let plain = self.inflate(block)?;
        parse(&plain).ok_or(SpdyError::Protocol("malformed header block"))
    }

    fn inflate(&mut self, block: &[u8]) -> Result<Vec<u8>, SpdyError> {
        let mut plain = Vec::new();
        let begin = self.zlib.total_in();
        loop {
            let done = (self.zlib.total_in() - begin) as usize;
            let input = block.get(done..).unwrap_or_default();
            if plain.len() == plain.capacity() {
                if plain.len() >= BLOCK_BYTES {
                    return Err(SpdyError::Protocol("header block too large"));
                }
                plain.reserve((plain.capacity() * 2).clamp(1 << 10, BLOCK_BYTES));
            }
            let (before_in, before_out) = (self.zlib.total_in(), plain.len());
            match self.zlib.decompress_vec(input, &mut plain, FlushDecompress::Sync) {
                Ok(_) => {
                    let stuck = self.zlib.total_in() == before_in && plain.len() == before_out;
                    let consumed = (self.zlib.total_in() - begin) as usize >= block.len();
                    if stuck || (consumed && plain.len() < plain.capacity()) {
                        return Ok(plain);
                    }
                }
                Err(error) if error.needs_dictionary().is_some() => {
                    let refused = |_| SpdyError::Protocol("unknown header dictionary");
                    self.zlib.set_dictionary(&dictionary()).map_err(refused)?;
                }
                Err(_) => return Err(SpdyError::Protocol("cannot decompress headers")),
            }
        }
    }
}

fn parse(mut plain: &[u8]) -> Option<Headers> {
    let count = take_length(&mut plain)?;
    if count > PAIRS {
        return None;
    }
    let mut headers = Headers::with_capacity(count);
    for _ in 0..count {
        let name = take_text(&mut plain)?.to_ascii_lowercase();
        headers.push((name, take_text(&mut plain)?));
    }
    plain.is_empty().then_some(headers)
}

fn take_length(plain: &mut &[u8]) -> Option<usize> {
    let (length, rest) = plain.split_first_chunk::<4>()?;
    *plain = rest;
    usize::try_from(u32::from_be_bytes(*length)).ok()
}

fn take_text(plain: &mut &[u8]) -> Option<String> {
    let length = take_length(plain)?;
    let (text, rest) = plain.split_at_checked(length)?;
    *plain = rest;
    String::from_utf8(text.to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn adler32(bytes: &[u8]) -> u32 {
        let (a, b) = bytes.iter().fold((1_u32, 0_u32), |(a, b), byte| {
            let a = (a + u32::from(*byte)) % 65_521;
            (a, (b + a) % 65_521)
        });
        b << 16 | a
    }

    #[test]
    fn the_dictionary_is_that_of_spdy_3() {
        let dictionary = dictionary();
        assert_eq!((dictionary.len(), adler32(&dictionary)), (1423, 0xe3c6_a7c2));
    }

    #[test]
    fn refuses_what_would_grow_without_bound() {
        let mut encoder = HeaderEncoder::new().unwrap();
        let bomb = encoder.encode(&[("a".to_owned(), "0".repeat(10 << 20))]).unwrap();
        assert!(HeaderDecoder::default().decode(&bomb).is_err());
    }

    proptest! {
        #[test]
        fn blocks_pass_in_one_context(
            blocks in prop::collection::vec(prop::collection::vec(("[a-z-]{0,20}", ".{0,200}"), 0..8), 1..8)
        ) {
            let (mut encoder, mut decoder) = (HeaderEncoder::new().unwrap(), HeaderDecoder::default());
            for headers in blocks {
                let block = encoder.encode(&headers).unwrap();
                prop_assert_eq!(decoder.decode(&block).unwrap(), headers);
            }
        }

        #[test]
        fn garbage_is_an_error_not_a_panic(block in prop::collection::vec(any::<u8>(), 0..600)) {
            let _outcome = HeaderDecoder::default().decode(&block);
        }

        #[test]
        fn plain_garbage_is_none_not_a_panic(plain in prop::collection::vec(any::<u8>(), 0..100)) {
            let _outcome = parse(&plain);
        }
    }
}
