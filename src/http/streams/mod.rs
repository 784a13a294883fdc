//! The streams of exec, attach and port-forward, whatever carries them: SPDY/3.1, WebSocket channels, or SPDY within WebSocket.
//!
//! [`remote_command`] upgrades a request of exec or attach, [`port_forward`] one of port-forward. Both answer at once and run the
//! caller's work in a task when the streams are there.

use std::sync::Arc;

use ::http::{HeaderMap, Response, StatusCode, header};
use bytes::Bytes;
use hyper::upgrade::OnUpgrade;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{HttpResponse, empty, is_upgrade};

mod command;
mod forward;

pub use command::{CommandStreams, StreamStatus, Wanted, remote_command};
pub use forward::{Forwarded, port_forward};

/// Bytes read at once from what is copied to a stream.
const COPY_BYTES: usize = 32 << 10;

/// What a connection sends.
#[derive(Debug)]
pub(super) enum Outgoing {
    Data(u32, Bytes),
    /// No more data on the stream.
    End(u32),
    /// A stream was taken (SPDY).
    Reply(u32),
    /// A stream is not wanted (SPDY): its status.
    Reset(u32, u32),
    /// The answer to a ping (SPDY), by its id.
    Pong(u32),
}

/// What the client sends on a stream.
#[derive(Debug)]
pub struct InStream {
    parts: mpsc::Receiver<Bytes>,
}

impl InStream {
    pub(super) fn new(parts: mpsc::Receiver<Bytes>) -> Self {
        Self { parts }
    }

    /// The next bytes; `None` when the client has closed the stream. Cancel safe.
    pub async fn read(&mut self) -> Option<Bytes> {
        self.parts.recv().await
    }

    /// Copies everything to a writer, and then shuts it down.
    ///
    /// # Errors
    /// When the writer fails.
    pub async fn copy_to(&mut self, writer: &mut (impl AsyncWrite + Unpin + ?Sized)) -> std::io::Result<()> {
        while let Some(bytes) = self.read().await {
            writer.write_all(&bytes).await?;
            writer.flush().await?;
        }
        writer.shutdown().await
    }
}

/// Where the client reads from a stream.
#[derive(Debug, Clone)]
pub struct OutStream {
    id: u32,
    outgoing: mpsc::Sender<Outgoing>,
    reset: Arc<CancellationToken>,
}

/// The client does not want more of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the client has closed the stream")]
pub struct StreamClosed;

impl OutStream {
    pub(super) fn new(id: u32, outgoing: mpsc::Sender<Outgoing>, reset: Arc<CancellationToken>) -> Self {
        Self { id, outgoing, reset }
    }

    /// Sends bytes; waits while the connection is slower.
    ///
    /// # Errors
    /// [`StreamClosed`].
    pub async fn write(&self, bytes: impl Into<Bytes>) -> Result<(), StreamClosed> {
        tokio::select! {
            biased;
            () = self.reset.cancelled() => Err(StreamClosed),
            sent = self.outgoing.send(Outgoing::Data(self.id, bytes.into())) => sent.map_err(|_| StreamClosed),
        }
    }

    /// Says that nothing follows.
    pub async fn end(self) {
        // A connection that has ended ends its streams.
        drop(self.outgoing.send(Outgoing::End(self.id)).await);
    }

    /// Ends the stream at once, in both directions.
    pub async fn reset(self) {
        drop(self.outgoing.send(Outgoing::Reset(self.id, super::spdy::frame::CANCEL)).await);
    }

    /// Waits until the client does not want more of the stream, or its connection has ended.
    pub async fn closed(&self) {
        tokio::select! {
            () = self.reset.cancelled() => {}
            () = self.outgoing.closed() => {}
        }
    }

    /// Copies everything from a reader, until it ends or the client does not want more.
    ///
    /// # Errors
    /// When the reader fails.
    pub async fn copy_from(&self, reader: &mut (impl AsyncRead + Unpin + ?Sized)) -> std::io::Result<()> {
        let mut buffer = bytes::BytesMut::with_capacity(COPY_BYTES);
        loop {
            buffer.reserve(COPY_BYTES);
            let read = tokio::select! {
                read = reader.read_buf(&mut buffer) => read?,
                () = self.closed() => return Ok(()),
            };
            if read == 0 || self.write(buffer.split().freeze()).await.is_err() {
                return Ok(());
            }
        }
    }
}

/// A request that cannot be upgraded: the answer's status and words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct UpgradeError {
    pub status: StatusCode,
    pub message: String,
    /// What the server would have taken, for the header `X-Accepted-Stream-Protocol-Versions`.
    pub accepted: Vec<&'static str>,
}

impl UpgradeError {
    fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), accepted: Vec::new() }
    }
}

/// The header in which SPDY clients name the protocols of their streams.
const STREAM_PROTOCOL: &str = "x-stream-protocol-version";

/// The values of a header that may be repeated or list several, split by commas.
pub(super) fn tokens<'a>(headers: &'a HeaderMap, name: &str) -> Vec<&'a str> {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim).filter(|token| !token.is_empty()).collect()
}

/// Whether a request asks for a protocol in its `Upgrade` header.
fn asks_for(headers: &HeaderMap, protocol: &str) -> bool {
    is_upgrade(headers) && tokens(headers, "upgrade").iter().any(|token| token.eq_ignore_ascii_case(protocol))
}

/// Chooses what both sides speak, by the client's preference; "" where the client names none and the server allows that.
pub(super) fn negotiate(client: &[&str], server: &[&'static str]) -> Result<&'static str, UpgradeError> {
    if client.is_empty() && server.contains(&"") {
        return Ok("");
    }
    let common = client.iter().find_map(|asked| server.iter().find(|known| *known == asked));
    common.copied().ok_or_else(|| UpgradeError {
        status: StatusCode::FORBIDDEN,
        message: format!(
            "unable to upgrade: unable to negotiate protocol: client supports [{}], server accepts [{}]",
            client.join(" "),
            server.join(" ").trim()
        ),
        accepted: server.to_vec(),
    })
}

/// `101 Switching Protocols` to SPDY.
fn spdy_response(protocol: &str) -> HttpResponse {
    let mut response = Response::new(empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, ::http::HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, ::http::HeaderValue::from_static("SPDY/3.1"));
    if let Ok(protocol) = ::http::HeaderValue::from_str(protocol)
        && !protocol.is_empty()
    {
        headers.insert(STREAM_PROTOCOL, protocol);
    }
    response
}

/// The connection of an upgraded request, once the answer is out.
async fn upgraded(on_upgrade: OnUpgrade) -> Option<hyper_util::rt::TokioIo<hyper::upgrade::Upgraded>> {
    match on_upgrade.await {
        Ok(connection) => Some(hyper_util::rt::TokioIo::new(connection)),
        Err(error) => {
            tracing::debug!(%error, "the client went away before the upgrade");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chooses_by_the_clients_preference() {
        let server = ["v5.channel.k8s.io", "v4.channel.k8s.io", ""];
        let cases: [(&[&str], Result<&str, ()>); 4] = [
            (&["v4.channel.k8s.io", "v5.channel.k8s.io"], Ok("v4.channel.k8s.io")),
            (&["v9", "v5.channel.k8s.io"], Ok("v5.channel.k8s.io")),
            (&[], Ok("")),
            (&["v9"], Err(())),
        ];
        for (client, expected) in cases {
            assert_eq!(negotiate(client, &server).map_err(|_| ()), expected, "{client:?}");
        }
        let error = negotiate(&["x"], &["a", "b"]).unwrap_err();
        assert_eq!(error.message, "unable to upgrade: unable to negotiate protocol: client supports [x], server accepts [a b]");
    }
}
