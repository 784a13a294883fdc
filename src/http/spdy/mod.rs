//! The server's side of SPDY/3.1, as moby/spdystream (kubectl, client-go) speaks it: many streams in both directions over one
//! connection. There is no flow control: what a stream's reader has not taken yet stops the reading of the connection.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, BufWriter};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use self::frame::{Control, HEAD_BYTES, Head};
use self::headers::{HeaderDecoder, HeaderEncoder, Headers};
use super::streams::{InStream, OutStream, Outgoing};
use crate::rt::TaskGroup;

pub mod frame;
pub mod headers;

/// Streams open at one time on one connection.
const STREAMS: usize = 512;
/// Bytes handed to a stream's reader at once, and how many such parts wait for it.
const PART_BYTES: usize = 16 << 10;
const PARTS: usize = 16;
/// Frames that wait to be sent.
const OUTGOING: usize = 64;
/// New streams that wait to be accepted.
const ACCEPTS: usize = 16;
/// Time that the other side has to close a connection that is done.
const LINGER: Duration = Duration::from_secs(5);

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub enum SpdyError {
    /// What came is no SPDY/3.1.
    #[error("SPDY: {0}")]
    Protocol(&'static str),
    /// The connection broke.
    #[error("SPDY: the connection broke")]
    Io(#[from] std::io::Error),
}

/// A stream that the client opened.
pub struct Accepted {
    pub headers: Headers,
    pub input: InStream,
    pub output: OutStream,
}

impl Accepted {
    /// The value of a header; `name` is in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// A connection. It ends when the client closes it, or when it and all its [`OutStream`]s are dropped.
pub struct Session {
    accepted: mpsc::Receiver<Accepted>,
    /// Keeps the connection open while streams may come.
    _outgoing: mpsc::Sender<Outgoing>,
    closed: CancellationToken,
}

impl Session {
    /// Speaks SPDY over a connection, in tasks of `tasks`.
    pub fn start(connection: impl AsyncRead + AsyncWrite + Send + 'static, tasks: &TaskGroup) -> Self {
        let (reader, writer) = tokio::io::split(connection);
        let (outgoing, to_send) = mpsc::channel(OUTGOING);
        let (to_accept, accepted) = mpsc::channel(ACCEPTS);
        let (closed, sent) = (CancellationToken::new(), CancellationToken::new());
        let stop = tasks.token();
        let incoming = Incoming {
            reader: BufReader::new(reader),
            decoder: HeaderDecoder::default(),
            open: HashMap::new(),
            last_stream: 0,
            to_accept,
            outgoing: outgoing.downgrade(),
        };
        let (is_closed, is_sent) = (closed.clone(), sent.clone());
        tasks.spawn(async move {
            let lingering = async {
                is_sent.cancelled().await;
                tokio::time::sleep(LINGER).await;
            };
            tokio::select! {
                () = stop.cancelled() => {}
                () = lingering => {}
                ended = incoming.run() => if let Err(error) = ended {
                    tracing::debug!(%error, "a SPDY connection ended");
                }
            }
            is_closed.cancel();
        });
        let (stop, is_closed) = (tasks.token(), closed.clone());
        tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = is_closed.cancelled() => {}
                ended = send(writer, to_send) => if let Err(error) = ended {
                    tracing::debug!(%error, "cannot send on a SPDY connection");
                    is_closed.cancel();
                }
            }
            sent.cancel();
        });
        Self { accepted, _outgoing: outgoing, closed }
    }

    /// The next stream that the client opens; `None` when the connection has ended.
    pub async fn accept(&mut self) -> Option<Accepted> {
        self.accepted.recv().await
    }

    /// Is cancelled when the connection has ended.
    pub fn closed(&self) -> CancellationToken {
        self.closed.clone()
    }
}

/// What the reading task knows of a stream.
struct Open {
    input: Option<mpsc::Sender<Bytes>>,
    /// Held by the stream's [`OutStream`].
    reset: Weak<CancellationToken>,
}

impl Open {
    /// Whether nobody reads or writes the stream any more.
    fn is_over(&self) -> bool {
        self.reset.strong_count() == 0 && self.input.as_ref().is_none_or(mpsc::Sender::is_closed)
    }
}

struct Incoming<R> {
    reader: BufReader<R>,
    decoder: HeaderDecoder,
    open: HashMap<u32, Open>,
    last_stream: u32,
    to_accept: mpsc::Sender<Accepted>,
    outgoing: mpsc::WeakSender<Outgoing>,
}

impl<R: AsyncRead + Unpin> Incoming<R> {
    /// Reads frames until the connection ends.
    async fn run(mut self) -> Result<(), SpdyError> {
        let mut head = [0; HEAD_BYTES];
        loop {
            match self.reader.read_exact(&mut head).await {
                Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(()),
                result => result?,
            };
            match Head::parse(head)? {
                Head::Data { stream, is_last, length } => self.data(stream, is_last, length).await?,
                Head::Control { kind, flags, length } => {
                    let mut body = vec![0; length];
                    self.reader.read_exact(&mut body).await?;
                    let control = Control::parse(kind, flags, &body, &mut self.decoder)?;
                    self.control(control).await?;
                }
            }
        }
    }

    /// Passes the content of a data frame on in parts, as the stream's reader takes them.
    async fn data(&mut self, stream: u32, is_last: bool, length: usize) -> Result<(), SpdyError> {
        let mut left = length;
        while left > 0 {
            let mut part = vec![0; left.min(PART_BYTES)];
            self.reader.read_exact(&mut part).await?;
            left -= part.len();
            // Nobody reads a stream that is unknown, ended, or whose reader has gone: its bytes are dropped.
            if let Some(open) = self.open.get_mut(&stream)
                && let Some(input) = &open.input
                && input.send(part.into()).await.is_err()
            {
                open.input = None;
            }
        }
        if is_last {
            self.end_input(stream);
        }
        Ok(())
    }

    fn end_input(&mut self, stream: u32) {
        if let Some(open) = self.open.get_mut(&stream) {
            open.input = None;
        }
    }

    async fn control(&mut self, control: Control) -> Result<(), SpdyError> {
        match control {
            Control::SynStream { stream, is_last, headers } => return self.open(stream, is_last, headers).await,
            Control::Reset { stream, .. } => {
                if let Some(reset) = self.open.remove(&stream).and_then(|open| open.reset.upgrade()) {
                    reset.cancel();
                }
            }
            // The client's pings are odd; an even one would be the answer to ours, and we send none.
            Control::Ping(id) if id % 2 == 1 => reply(&self.outgoing, Outgoing::Pong(id)).await,
            Control::Headers { stream, is_last: true } => self.end_input(stream),
            Control::SynReply { .. }
            | Control::Ping(_)
            | Control::GoAway { .. }
            | Control::Headers { .. }
            | Control::Other(_) => {}
        }
        Ok(())
    }

    async fn open(&mut self, stream: u32, is_last: bool, headers: Headers) -> Result<(), SpdyError> {
        if stream.is_multiple_of(2) || stream <= self.last_stream {
            return Err(SpdyError::Protocol("a client's streams are odd and grow"));
        }
        self.last_stream = stream;
        self.open.retain(|_, open| !open.is_over());
        if self.open.len() >= STREAMS {
            reply(&self.outgoing, Outgoing::Reset(stream, frame::REFUSED_STREAM)).await;
            return Ok(());
        }
        let Some(outgoing) = self.outgoing.upgrade() else { return Ok(()) };
        let (input, parts) = mpsc::channel(PARTS);
        let reset = Arc::new(CancellationToken::new());
        reply(&self.outgoing, Outgoing::Reply(stream)).await;
        self.open.insert(stream, Open { input: (!is_last).then_some(input), reset: Arc::downgrade(&reset) });
        let accepted = Accepted { headers, input: InStream::new(parts), output: OutStream::new(stream, outgoing, reset) };
        // Nobody accepts any more: the stream is dropped, and the connection ends soon.
        drop(self.to_accept.send(accepted).await);
        Ok(())
    }
}

/// Lets the sending task send; once it has ended, the connection will too.
async fn reply(sender: &mpsc::WeakSender<Outgoing>, outgoing: Outgoing) {
    if let Some(sender) = sender.upgrade() {
        drop(sender.send(outgoing).await);
    }
}

/// Sends frames until all senders are gone, then says goodbye.
async fn send(writer: impl AsyncWrite + Unpin, mut outgoing: mpsc::Receiver<Outgoing>) -> Result<(), SpdyError> {
    let mut writer = BufWriter::with_capacity(PART_BYTES * 2, writer);
    let mut encoder = HeaderEncoder::new()?;
    let mut last_stream = 0;
    loop {
        let next = match outgoing.try_recv() {
            Ok(next) => next,
            Err(_) => {
                writer.flush().await?;
                match outgoing.recv().await {
                    Some(next) => next,
                    None => break,
                }
            }
        };
        match next {
            Outgoing::Data(stream, bytes) => {
                for part in bytes.chunks(frame::DATA_BYTES) {
                    writer.write_all(&frame::data_head(stream, false, part.len())).await?;
                    writer.write_all(part).await?;
                }
            }
            Outgoing::End(stream) => writer.write_all(&frame::data_head(stream, true, 0)).await?,
            Outgoing::Reply(stream) => {
                last_stream = stream;
                let reply = Control::SynReply { stream, is_last: false, headers: Headers::new() };
                writer.write_all(&reply.encode(&mut encoder)?).await?;
            }
            Outgoing::Reset(stream, status) => {
                writer.write_all(&Control::Reset { stream, status }.encode(&mut encoder)?).await?;
            }
            Outgoing::Pong(id) => writer.write_all(&Control::Ping(id).encode(&mut encoder)?).await?,
        }
    }
    writer.write_all(&Control::GoAway { last_stream }.encode(&mut encoder)?).await?;
    writer.shutdown().await?;
    Ok(())
}
