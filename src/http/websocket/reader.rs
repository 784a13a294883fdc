//! One stream of the server as WebSocket messages: a watch (an event a message) or a log (bytes as they come). It follows
//! upstream's `apimachinery/pkg/util/httpstream/wsstream` (`Reader`) and `endpoints/handlers/watch.go`.

use ::http::HeaderMap;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use futures_util::{SinkExt, StreamExt};
use http_body_util::BodyExt;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio_tungstenite::tungstenite::protocol::Message;

use super::{PONG_INTERVAL, handshake, normal, open};
use crate::http::streams::UpgradeError;
use crate::http::{Body, BoxError, HttpResponse};
use crate::rt::TaskGroup;

/// The protocols of a reader; without one the bytes are sent as they are.
const PROTOCOLS: [&str; 3] = ["", "binary.k8s.io", "base64.binary.k8s.io"];

/// How a stream is cut into messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// A text message a line: watch events.
    Lines,
    /// A message for what came at once: logs.
    Chunks,
}

/// Answers a handshake and sends `body` to the client in a task of `tasks`; the connection ends with it, or when the client closes.
///
/// # Errors
/// When it is no handshake of version 13, or names no known protocol.
pub fn send(
    headers: &HeaderMap,
    client: OnUpgrade,
    body: Body,
    framing: Framing,
    tasks: &TaskGroup,
) -> Result<HttpResponse, UpgradeError> {
    let (response, protocol) = handshake(headers, &PROTOCOLS)?;
    let token = tasks.token();
    tasks.spawn(async move {
        tokio::select! {
            () = token.cancelled() => {}
            ended = pump(client, body, framing, protocol.starts_with("base64")) => if let Err(error) = ended {
                tracing::debug!(%error, "a stream over WebSocket broke");
            }
        }
    });
    Ok(response)
}

async fn pump(client: OnUpgrade, mut body: Body, framing: Framing, is_base64: bool) -> Result<(), BoxError> {
    let (mut sink, mut messages) = open(TokioIo::new(client.await?)).await.split();
    let mut pongs = tokio::time::interval(PONG_INTERVAL);
    let mut rest = BytesMut::new();
    loop {
        tokio::select! {
            frame = body.frame() => {
                let Some(frame) = frame else { break };
                let Ok(data) = frame?.into_data() else { continue };
                match framing {
                    Framing::Chunks => sink.send(message(&data, is_base64, false)).await?,
                    Framing::Lines => {
                        for line in lines(&mut rest, &data) {
                            sink.feed(message(&line, is_base64, true)).await?;
                        }
                        sink.flush().await?;
                    }
                }
            }
            // The client has nothing to say but that it goes away.
            said = messages.next() => match said {
                Some(Ok(said)) if !said.is_close() => {}
                _ => return Ok(()),
            },
            _ = pongs.tick() => sink.send(Message::Pong(Bytes::new())).await?,
        }
    }
    sink.send(Message::Close(Some(normal()))).await?;
    Ok(())
}

fn message(content: &[u8], is_base64: bool, is_text: bool) -> Message {
    match (is_base64, is_text.then(|| std::str::from_utf8(content))) {
        (true, _) => Message::text(STANDARD.encode(content)),
        (false, Some(Ok(text))) => Message::text(text),
        _ => Message::Binary(Bytes::copy_from_slice(content)),
    }
}

/// The whole lines in what came so far, without their ends; the rest waits for more.
fn lines(rest: &mut BytesMut, data: &[u8]) -> Vec<Bytes> {
    rest.extend_from_slice(data);
    let mut lines = Vec::new();
    while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
        let line = rest.split_to(end + 1).freeze();
        lines.push(line.slice(..end));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_whole() {
        let mut rest = BytesMut::new();
        assert_eq!(lines(&mut rest, b"a\nb"), [Bytes::from("a")]);
        assert_eq!(lines(&mut rest, b""), Vec::<Bytes>::new());
        assert_eq!(lines(&mut rest, b"c\n\nd\n"), [Bytes::from("bc"), Bytes::new(), Bytes::from("d")]);
        assert_eq!(message(b"x", true, true), Message::text("eA=="));
        assert_eq!(message(b"x", false, true), Message::text("x"));
        assert!(message(b"x", false, false).is_binary());
    }
}
