//! Exec and attach: standard streams, the error stream on which the outcome is told, and the sizes of the terminal.

use std::future::Future;
use std::time::Duration;

use ::http::StatusCode;
use hyper::upgrade::OnUpgrade;
use tokio_util::sync::CancellationToken;

use super::{InStream, OutStream, STREAM_PROTOCOL, UpgradeError, asks_for, negotiate, spdy_response, tokens, upgraded};
use crate::http::spdy::{Accepted, Session};
use crate::http::{HttpRequest, HttpResponse, tunnel, websocket};
use crate::rt::TaskGroup;

/// Time that a client has to open its streams, as upstream's `streamCreationTimeout`.
const STREAM_CREATION: Duration = Duration::from_secs(30);
/// The protocols of SPDY streams; "" is the first, which had no name.
const SPDY_PROTOCOLS: [&str; 6] =
    ["v5.channel.k8s.io", "v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io", ""];

/// Which streams a request asks for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wanted {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub tty: bool,
}

/// How the outcome is written to the error stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamStatus {
    /// Before v4: the words of an error, nothing on success.
    Text,
    /// From v4 on: a Status object.
    Object,
}

/// The streams of a command; those that were not asked for are absent.
pub struct CommandStreams {
    pub stdin: Option<InStream>,
    pub stdout: Option<OutStream>,
    pub stderr: Option<OutStream>,
    pub error: OutStream,
    /// JSON objects `{"Width":…,"Height":…}`, one after the other.
    pub resize: Option<InStream>,
    pub status: StreamStatus,
    /// Is cancelled when the client has gone.
    pub closed: CancellationToken,
    /// Keeps a SPDY connection open.
    pub(crate) session: Option<Session>,
}

/// Upgrades a request of exec or attach to SPDY or WebSocket. The work runs in `tasks` when the streams are there; the
/// connection is closed when it has returned.
///
/// # Errors
/// When the request asks for no upgrade, or for protocols that are not known.
pub fn remote_command<W>(
    request: &mut HttpRequest,
    wanted: Wanted,
    tasks: &TaskGroup,
    work: impl FnOnce(CommandStreams) -> W + Send + 'static,
) -> Result<HttpResponse, UpgradeError>
where
    W: Future<Output = ()> + Send + 'static,
{
    let headers = request.headers();
    let missing = || {
        let text = "unable to upgrade: missing upgrade headers in request: Connection, Upgrade";
        UpgradeError::new(StatusCode::BAD_REQUEST, text)
    };
    if asks_for(headers, "websocket") {
        let (response, channels) = websocket::accept_command(headers)?;
        let on_upgrade = tunnel::upgrade_of(request).ok_or_else(missing)?;
        let group = tasks.clone();
        tasks.spawn(async move {
            let Some(connection) = upgraded(on_upgrade).await else { return };
            work(websocket::command_streams(connection, channels, wanted, &group).await).await;
        });
        return Ok(response);
    }
    if !asks_for(headers, "SPDY/3.1") {
        return Err(missing());
    }
    let protocol = negotiate(&tokens(headers, STREAM_PROTOCOL), &SPDY_PROTOCOLS)?;
    let on_upgrade = tunnel::upgrade_of(request).ok_or_else(missing)?;
    let (group, version) = (tasks.clone(), version_of(protocol));
    tasks.spawn(async move {
        let Some(streams) = spdy_streams(on_upgrade, wanted, version, &group).await else { return };
        work(streams).await;
    });
    Ok(spdy_response(protocol))
}

/// The number in `v4.channel.k8s.io`; the protocols without are the first.
fn version_of(protocol: &str) -> u8 {
    protocol.strip_prefix('v').and_then(|rest| rest.split('.').next()).and_then(|number| number.parse().ok()).unwrap_or(1)
}

async fn spdy_streams(on_upgrade: OnUpgrade, wanted: Wanted, version: u8, tasks: &TaskGroup) -> Option<CommandStreams> {
    let connection = upgraded(on_upgrade).await?;
    let session = Session::start(connection, tasks);
    let collected = tokio::time::timeout(STREAM_CREATION, collect(session, wanted, version)).await;
    if collected.is_err() {
        tracing::debug!("the client did not open its streams in time");
    }
    collected.ok().flatten()
}

/// Waits for the streams that the request announced.
async fn collect(mut session: Session, wanted: Wanted, version: u8) -> Option<CommandStreams> {
    let has_resize = wanted.tty && version >= 3;
    let mut missing = 1 + [wanted.stdin, wanted.stdout, wanted.stderr && !wanted.tty, has_resize].iter().filter(|x| **x).count();
    let (mut stdin, mut stdout, mut stderr, mut error, mut resize) = (None, None, None, None, None);
    while missing > 0 {
        let Accepted { headers, input, output } = session.accept().await?;
        let kind = headers.iter().find(|(name, _)| name == "streamtype").map_or("", |(_, value)| value.as_str());
        match kind {
            "error" if error.is_none() => error = Some(output),
            "stdin" if stdin.is_none() => stdin = Some(input),
            "stdout" if stdout.is_none() => stdout = Some(output),
            "stderr" if stderr.is_none() => stderr = Some(output),
            "resize" if resize.is_none() => resize = Some(input),
            other => {
                tracing::debug!(kind = other, "unexpected stream type");
                output.reset().await;
                continue;
            }
        }
        missing -= 1;
    }
    let status = if version >= 4 { StreamStatus::Object } else { StreamStatus::Text };
    let closed = session.closed();
    Some(CommandStreams { stdin, stdout, stderr, error: error?, resize, status, closed, session: Some(session) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_protocols() {
        let cases = [("v5.channel.k8s.io", 5), ("v4.base64.channel.k8s.io", 4), ("channel.k8s.io", 1), ("", 1)];
        for (protocol, version) in cases {
            assert_eq!(version_of(protocol), version, "{protocol}");
        }
    }
}
