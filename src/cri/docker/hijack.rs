//! Raw streams of exec and attach: the HTTP upgrade on the engine's Unix socket, then bytes in both directions.
//!
//! This is written out here because a terminal's bytes must not be taken for frames (bollard does where they look alike), and
//! because standard input must be closable while the outputs go on.

use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use super::error::by_status;
use crate::cri::RuntimeError;
use crate::rt::TaskGroup;

/// Largest header block of the answer, and largest error text behind it.
const ANSWER_BYTES: usize = 64 << 10;
/// Bytes of one output that wait for a slow reader.
const OUTPUT_BUFFER: usize = 64 << 10;

/// The outputs of a process, told apart: standard output and standard error.
type Outputs = (Pin<Box<dyn AsyncRead + Send>>, Option<Pin<Box<dyn AsyncRead + Send>>>);

/// A connection that the engine handed over.
#[derive(Debug)]
pub(super) struct Hijacked {
    /// Bytes that came with the answer's head.
    early: Vec<u8>,
    reader: OwnedReadHalf,
    writer: OwnedWriteHalf,
}

/// Posts `body` to `path` and takes the connection over.
///
/// # Errors
/// The engine's, in its words; [`RuntimeError::Failed`] where it does not speak HTTP.
pub(super) async fn hijack(socket: &Path, path: &str, body: &str) -> Result<Hijacked, RuntimeError> {
    let unreachable =
        |error: std::io::Error| RuntimeError::Unreachable { socket: socket.display().to_string(), why: error.to_string() };
    let mut stream = UnixStream::connect(socket).await.map_err(unreachable)?;
    let request = format!(
        "POST {path} HTTP/1.1\r\nHost: docker\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await.map_err(unreachable)?;
    let mut answer = Vec::new();
    let head = loop {
        if let Some(end) = find(&answer, b"\r\n\r\n") {
            break end + 4;
        }
        let count = stream.read_buf(&mut answer).await.map_err(unreachable)?;
        if count == 0 || answer.len() > ANSWER_BYTES {
            return Err(RuntimeError::Failed(format!("POST {path}: the engine's answer is no HTTP")));
        }
    };
    let status = status_of(&answer[..head]);
    if !matches!(status, 101 | 200) {
        let mut rest = stream.take(ANSWER_BYTES as u64);
        let length = content_length(&answer[..head]);
        while answer.len() < head.saturating_add(length) && rest.read_buf(&mut answer).await.map_err(unreachable)? > 0 {}
        return Err(by_status(status, message_of(&answer[head..])));
    }
    let early = answer.split_off(head);
    let (reader, writer) = stream.into_split();
    Ok(Hijacked { early, reader, writer })
}

impl Hijacked {
    /// The outputs: of a terminal the raw bytes, else the two streams that the engine's frames carry, taken apart by a task.
    pub(super) fn split(self, tty: bool, stdin: bool, tasks: &TaskGroup) -> (Outputs, Option<OwnedWriteHalf>) {
        let (kept, stdin) = if stdin { (None, Some(self.writer)) } else { (Some(self.writer), None) };
        // A writer that nobody wants is kept: dropping it would half-close the connection.
        let source = Source { early: std::io::Cursor::new(self.early), reader: self.reader, _writer: kept };
        if tty {
            return ((Box::pin(source), None), stdin);
        }
        let (stdout, stdout_writer) = tokio::io::duplex(OUTPUT_BUFFER);
        let (stderr, stderr_writer) = tokio::io::duplex(OUTPUT_BUFFER);
        let token = tasks.token();
        tasks.spawn(async move {
            tokio::select! {
                () = token.cancelled() => {}
                ended = demultiplex(source, stdout_writer, stderr_writer) => {
                    if let Err(error) = ended {
                        tracing::debug!(%error, "a stream of the engine broke");
                    }
                }
            }
        });
        ((Box::pin(stdout), Some(Box::pin(stderr))), stdin)
    }
}

/// The engine's bytes: first those that came early.
struct Source {
    early: std::io::Cursor<Vec<u8>>,
    reader: OwnedReadHalf,
    _writer: Option<OwnedWriteHalf>,
}

impl AsyncRead for Source {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        if (self.early.position() as usize) < self.early.get_ref().len() {
            return Pin::new(&mut self.early).poll_read(context, buffer);
        }
        Pin::new(&mut self.reader).poll_read(context, buffer)
    }
}

/// Takes the engine's frames apart: stream (1 out, 2 err), three zero bytes, length (big-endian), content.
async fn demultiplex(mut source: impl AsyncRead + Unpin, stdout: DuplexStream, stderr: DuplexStream) -> std::io::Result<()> {
    let (mut stdout, mut stderr) = (Some(stdout), Some(stderr));
    let mut header = [0_u8; 8];
    let mut buffer = vec![0_u8; 32 << 10];
    loop {
        match source.read_exact(&mut header).await {
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(()),
            result => result?,
        };
        let [stream, _, _, _, length @ ..] = header;
        let mut left = u32::from_be_bytes(length) as usize;
        let output = if stream == 2 { &mut stderr } else { &mut stdout };
        while left > 0 {
            let part = buffer.len().min(left);
            let count = source.read(&mut buffer[..part]).await?;
            if count == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            left -= count;
            forward(output, &buffer[..count]).await;
        }
    }
}

/// Passes bytes on; an output whose reader has gone is drained, so that the other one goes on.
async fn forward(output: &mut Option<DuplexStream>, bytes: &[u8]) {
    if let Some(writer) = output
        && writer.write_all(bytes).await.is_err()
    {
        *output = None;
    }
}

/// Closing standard input must not close the connection: this is what a session hands out.
pub(super) fn boxed_stdin(writer: OwnedWriteHalf) -> Pin<Box<dyn AsyncWrite + Send>> {
    Box::pin(writer)
}

fn status_of(head: &[u8]) -> u16 {
    let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    String::from_utf8_lossy(line).split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(502)
}

fn content_length(head: &[u8]) -> usize {
    let head = String::from_utf8_lossy(head).to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
    length.and_then(|length| length.trim().parse().ok()).unwrap_or(0)
}

/// The engine's words: `{"message": …}`, or the text as it is.
fn message_of(body: &[u8]) -> String {
    let value = serde_json::from_slice::<serde_json::Value>(body).ok();
    let message = value.as_ref().and_then(|value| value["message"].as_str());
    message.map_or_else(|| String::from_utf8_lossy(body).trim().to_owned(), str::to_owned)
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn takes_frames_apart_and_drains_what_nobody_reads() {
        let mut bytes = Vec::new();
        for (stream, text) in [(1_u8, "out1 "), (2, "err"), (1, ""), (1, "out2")] {
            bytes.extend([stream, 0, 0, 0]);
            bytes.extend(u32::try_from(text.len()).unwrap().to_be_bytes());
            bytes.extend(text.as_bytes());
        }
        let (mut stdout, writer) = tokio::io::duplex(64);
        let (stderr, stderr_writer) = tokio::io::duplex(1);
        drop(stderr);
        demultiplex(std::io::Cursor::new(bytes), writer, stderr_writer).await.unwrap();
        let mut text = String::new();
        stdout.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "out1 out2");
    }

    #[test]
    fn reads_the_head_of_an_answer() {
        let head = b"HTTP/1.1 409 Conflict\r\nContent-Length: 12\r\n\r\n";
        assert_eq!((status_of(head), content_length(head)), (409, 12));
        assert_eq!(message_of(br#"{"message":"Container x is not running"}"#), "Container x is not running");
        assert_eq!(message_of(b" plain \n"), "plain");
    }
}
