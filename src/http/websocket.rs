//! The server's side of WebSocket: the handshake, the channel protocols of Kubernetes, and byte tunnels.
//!
//! In a channel protocol the first byte of a message says which stream it belongs to; `base64` variants write it as a digit and
//! the rest in base64. v5 adds the channel 255, by which the client closes another one.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use ::http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Message, Role, WebSocketConfig};
use tokio_util::sync::CancellationToken;

use super::streams::{CommandStreams, Forwarded, InStream, OutStream, Outgoing, StreamStatus, UpgradeError, Wanted};
use super::{HttpResponse, empty};
use crate::rt::TaskGroup;

pub mod reader;

/// What RFC 6455 (section 1.3) appends to the client's key.
const KEY_SUFFIX: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// Largest message; clients send at most 32 KiB and a channel number.
const MESSAGE_BYTES: usize = 4 << 20;
/// Messages that wait for a stream's reader, and to be sent.
const PARTS: usize = 16;
const OUTGOING: usize = 64;
/// Bytes in a tunnel that wait, in each direction.
const TUNNEL_BYTES: usize = 64 << 10;
/// While a slow reader holds the connection up, pings are not seen; this keeps the client from giving up.
const PONG_INTERVAL: Duration = Duration::from_secs(10);
/// Time that the client has to close a connection that is done.
const LINGER: Duration = Duration::from_secs(5);

const STDIN: u32 = 0;
const STDOUT: u32 = 1;
const STDERR: u32 = 2;
const ERROR: u32 = 3;
const RESIZE: u32 = 4;
const CLOSE: u8 = 255;

/// The channel protocols of exec and attach.
const COMMAND_PROTOCOLS: [&str; 8] = [
    "v5.channel.k8s.io",
    "v4.channel.k8s.io",
    "v5.base64.channel.k8s.io",
    "v4.base64.channel.k8s.io",
    "channel.k8s.io",
    "base64.channel.k8s.io",
    "v3.channel.k8s.io",
    "",
];
/// SPDY within binary messages, as kubectl has it from 1.30 on.
const TUNNEL_PROTOCOL: &str = "SPDY/3.1+portforward.k8s.io";
/// The channel protocols of port-forward, and the tunnel.
const FORWARD_PROTOCOLS: [&str; 6] =
    [TUNNEL_PROTOCOL, "v4.channel.k8s.io", "v4.base64.channel.k8s.io", "channel.k8s.io", "base64.channel.k8s.io", ""];

/// How channels are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Channels {
    is_base64: bool,
    /// Whether the client closes a channel by a message on channel 255.
    has_close: bool,
    status: StreamStatus,
}

impl Channels {
    fn of(protocol: &str) -> Self {
        let from_v4 = protocol.starts_with("v4.") || protocol.starts_with("v5.");
        Self {
            is_base64: protocol.contains("base64"),
            has_close: protocol.starts_with("v5."),
            status: if from_v4 { StreamStatus::Object } else { StreamStatus::Text },
        }
    }
}

/// How a port-forward comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForwardKind {
    Tunnel,
    Channels(Channels),
}

/// Answers a handshake for exec or attach.
///
/// # Errors
/// When it is no handshake of version 13, or names no known protocol.
pub fn accept_command(headers: &HeaderMap) -> Result<(HttpResponse, Channels), UpgradeError> {
    let (response, protocol) = handshake(headers, &COMMAND_PROTOCOLS)?;
    Ok((response, Channels::of(protocol)))
}

/// Answers a handshake for port-forward.
///
/// # Errors
/// As [`accept_command`].
pub fn accept_forward(headers: &HeaderMap) -> Result<(HttpResponse, ForwardKind), UpgradeError> {
    let (response, protocol) = handshake(headers, &FORWARD_PROTOCOLS)?;
    let kind = if protocol == TUNNEL_PROTOCOL { ForwardKind::Tunnel } else { ForwardKind::Channels(Channels::of(protocol)) };
    Ok((response, kind))
}

fn handshake(headers: &HeaderMap, protocols: &[&'static str]) -> Result<(HttpResponse, &'static str), UpgradeError> {
    let bad = |message: &str| UpgradeError { status: StatusCode::BAD_REQUEST, message: message.to_owned(), accepted: Vec::new() };
    let key = headers.get(header::SEC_WEBSOCKET_KEY).ok_or_else(|| bad("missing Sec-WebSocket-Key"))?;
    if headers.get(header::SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        return Err(bad("missing or bad WebSocket Version"));
    }
    let protocol = super::streams::negotiate(&super::streams::tokens(headers, "sec-websocket-protocol"), protocols)?;
    let accept = digest(&SHA1_FOR_LEGACY_USE_ONLY, &[key.as_bytes(), KEY_SUFFIX.as_bytes()].concat());
    let accept = HeaderValue::from_str(&STANDARD.encode(accept)).map_err(|_| bad("bad Sec-WebSocket-Key"))?;
    let mut response = Response::new(empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    if !protocol.is_empty() {
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
    }
    Ok((response, protocol))
}

async fn open<S: AsyncRead + AsyncWrite + Unpin>(connection: S) -> WebSocketStream<S> {
    let mut config = WebSocketConfig::default();
    config.read_buffer_size = 16 << 10;
    config.write_buffer_size = 16 << 10;
    config.max_write_buffer_size = 1 << 20;
    config.max_message_size = Some(MESSAGE_BYTES);
    config.max_frame_size = Some(MESSAGE_BYTES);
    WebSocketStream::from_raw_socket(connection, Role::Server, Some(config)).await
}

/// The streams of a command over an open connection, read and written by tasks of `tasks`.
pub(super) async fn command_streams<S>(connection: S, channels: Channels, wanted: Wanted, tasks: &TaskGroup) -> CommandStreams
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut inputs = HashMap::new();
    let mut input = |is_wanted: bool, channel: u32| {
        let (sender, parts) = mpsc::channel(PARTS);
        is_wanted.then(|| {
            inputs.insert(channel, sender);
            InStream::new(parts)
        })
    };
    let (stdin, resize) = (input(wanted.stdin, STDIN), input(wanted.tty, RESIZE));
    let (outgoing, closed) = run(open(connection).await, channels, inputs, tasks);
    let output = |channel| OutStream::new(channel, outgoing.clone(), Arc::default());
    let streams = CommandStreams {
        stdin,
        stdout: wanted.stdout.then(|| output(STDOUT)),
        stderr: (wanted.stderr && !wanted.tty).then(|| output(STDERR)),
        error: output(ERROR),
        resize,
        status: channels.status,
        closed,
        session: None,
    };
    // An empty message says that the connection stands, as upstream's server has it.
    let first = streams.stdout.as_ref().or(streams.stderr.as_ref()).unwrap_or(&streams.error);
    if first.write(Bytes::new()).await.is_err() {
        tracing::debug!("the client went away at once");
    }
    streams
}

/// The pairs of channels of old clients: for each port one of data and one of errors, both beginning with the port's number.
pub(super) async fn forward_streams<S>(connection: S, channels: Channels, ports: &[u16], tasks: &TaskGroup) -> Vec<Forwarded>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut inputs = HashMap::new();
    let mut readers = Vec::new();
    for (channel, port) in (0..).step_by(2).zip(ports) {
        let (sender, parts) = mpsc::channel(PARTS);
        inputs.insert(channel, sender);
        readers.push((channel, *port, InStream::new(parts)));
    }
    let (outgoing, _) = run(open(connection).await, channels, inputs, tasks);
    let output = |channel| OutStream::new(channel, outgoing.clone(), Arc::default());
    let mut forwarded = Vec::new();
    for (channel, port, input) in readers {
        let (data, error) = (output(channel), output(channel + 1));
        for stream in [&data, &error] {
            if stream.write(port.to_le_bytes().to_vec()).await.is_err() {
                tracing::debug!("the client went away at once");
            }
        }
        forwarded.push(Forwarded { port, input, output: data, error });
    }
    forwarded
}

/// The bytes within the binary messages of a connection, both ways.
pub(super) async fn tunnel<S>(connection: S, tasks: &TaskGroup) -> DuplexStream
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (ours, theirs) = tokio::io::duplex(TUNNEL_BYTES);
    let (mut sink, mut messages) = open(connection).await.split();
    let (mut reader, mut writer) = tokio::io::split(theirs);
    let token = tasks.token();
    tasks.spawn(async move {
        let inward = async {
            while let Some(Ok(message)) = messages.next().await {
                if message.is_close() || (message.is_binary() && writer.write_all(&message.into_data()).await.is_err()) {
                    break;
                }
            }
            // The session reads the end of its connection; that it has gone already is no failure.
            drop(writer.shutdown().await);
        };
        let outward = async {
            let mut buffer = BytesMut::new();
            loop {
                buffer.reserve(TUNNEL_BYTES / 2);
                match reader.read_buf(&mut buffer).await {
                    Ok(count) if count > 0 => {}
                    _ => break,
                }
                if sink.send(Message::Binary(buffer.split().freeze())).await.is_err() {
                    return;
                }
            }
            drop(sink.send(Message::Close(Some(normal()))).await);
        };
        tokio::select! {
            () = token.cancelled() => {}
            _ = async { tokio::join!(inward, outward) } => {}
        }
    });
    ours
}

fn normal() -> CloseFrame {
    CloseFrame { code: CloseCode::Normal, reason: "".into() }
}

/// Reads and writes the channels of a connection in tasks; it ends when the client closes it or all senders are gone.
fn run<S>(
    socket: WebSocketStream<S>,
    channels: Channels,
    inputs: HashMap<u32, mpsc::Sender<Bytes>>,
    tasks: &TaskGroup,
) -> (mpsc::Sender<Outgoing>, CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sink, messages) = socket.split();
    let (outgoing, to_send) = mpsc::channel(OUTGOING);
    let (closed, sent) = (CancellationToken::new(), CancellationToken::new());
    let (stop, is_closed, is_sent) = (tasks.token(), closed.clone(), sent.clone());
    tasks.spawn(async move {
        let lingering = async {
            is_sent.cancelled().await;
            tokio::time::sleep(LINGER).await;
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = lingering => {}
            () = receive(messages, channels, inputs) => {}
        }
        is_closed.cancel();
    });
    let (stop, is_closed) = (tasks.token(), closed.clone());
    tasks.spawn(async move {
        tokio::select! {
            () = stop.cancelled() => {}
            () = is_closed.cancelled() => {}
            ended = send(sink, channels, to_send) => if let Err(error) = ended {
                tracing::debug!(%error, "cannot send on a WebSocket");
                is_closed.cancel();
            }
        }
        sent.cancel();
    });
    (outgoing, closed)
}

/// Passes messages to their channels until the client closes the connection.
async fn receive<S>(
    mut messages: SplitStream<WebSocketStream<S>>,
    channels: Channels,
    mut inputs: HashMap<u32, mpsc::Sender<Bytes>>,
) where
    S: AsyncRead + AsyncWrite + Unpin,
{
    while let Some(Ok(message)) = messages.next().await {
        if message.is_close() {
            return;
        }
        if !(message.is_binary() || message.is_text()) {
            continue;
        }
        let Some((channel, content)) = decode(channels, message.into_data()) else { return };
        if channel == CLOSE && channels.has_close {
            if let [closed] = content[..] {
                inputs.remove(&u32::from(closed));
            }
            continue;
        }
        // Nobody reads the channel, or not any more: the bytes are dropped.
        if let Some(input) = inputs.get(&u32::from(channel))
            && input.send(content).await.is_err()
        {
            inputs.remove(&u32::from(channel));
        }
    }
}

fn decode(channels: Channels, message: Bytes) -> Option<(u8, Bytes)> {
    let channel = *message.first()?;
    let content = message.slice(1..);
    if !channels.is_base64 {
        return Some((channel, content));
    }
    let channel = if channel == b'c' { CLOSE } else { channel.checked_sub(b'0')? };
    STANDARD.decode(content).ok().map(|content| (channel, content.into()))
}

fn encode(channels: Channels, channel: u32, content: &[u8]) -> Message {
    let channel = channel as u8;
    if channels.is_base64 {
        return Message::text(format!("{}{}", char::from(b'0' + channel), STANDARD.encode(content)));
    }
    let mut message = BytesMut::with_capacity(content.len() + 1);
    message.extend_from_slice(&[channel]);
    message.extend_from_slice(content);
    Message::Binary(message.freeze())
}

/// Sends what the channels write until all are gone, then closes.
async fn send<S>(
    mut sink: SplitSink<WebSocketStream<S>, Message>,
    channels: Channels,
    mut outgoing: mpsc::Receiver<Outgoing>,
) -> Result<(), tokio_tungstenite::tungstenite::Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut pongs = tokio::time::interval(PONG_INTERVAL);
    loop {
        tokio::select! {
            next = outgoing.recv() => match next {
                Some(Outgoing::Data(channel, content)) => sink.send(encode(channels, channel, &content)).await?,
                // A channel cannot be ended alone: the end of the connection ends it.
                Some(_) => {}
                None => break,
            },
            _ = pongs.tick() => sink.send(Message::Pong(Bytes::new())).await?,
        }
    }
    sink.send(Message::Close(Some(normal()))).await?;
    sink.flush().await
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn answers_the_handshake_of_the_rfc() {
        let mut headers = HeaderMap::new();
        headers.insert("sec-websocket-key", HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ=="));
        assert!(accept_command(&headers).is_err(), "no version");
        headers.insert("sec-websocket-version", HeaderValue::from_static("13"));
        headers.insert("sec-websocket-protocol", HeaderValue::from_static("v9.channel.k8s.io, v5.channel.k8s.io"));
        let (response, channels) = accept_command(&headers).unwrap();
        assert_eq!(response.headers()["sec-websocket-accept"], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_eq!(response.headers()["sec-websocket-protocol"], "v5.channel.k8s.io");
        assert!(channels.has_close && !channels.is_base64);
        headers.insert("sec-websocket-protocol", HeaderValue::from_static("SPDY/3.1+portforward.k8s.io"));
        assert_eq!(accept_forward(&headers).unwrap().1, ForwardKind::Tunnel);
    }

    proptest! {
        #[test]
        fn channels_round_trip(channel in 0_u8..9, content in prop::collection::vec(any::<u8>(), 0..300), is_base64: bool) {
            let channels = Channels { is_base64, has_close: true, status: StreamStatus::Object };
            let message = encode(channels, u32::from(channel), &content);
            prop_assert_eq!(decode(channels, message.into_data()), Some((channel, content.into())));
        }

        #[test]
        fn garbage_is_none_not_a_panic(content in prop::collection::vec(any::<u8>(), 0..100), is_base64: bool) {
            let _outcome = decode(Channels { is_base64, has_close: true, status: StreamStatus::Text }, content.into());
        }
    }
}
