//! Port-forward: for each connection that the client takes, a stream of data and one for an error, over SPDY or over SPDY within
//! WebSocket; or, as old WebSocket clients have it, one fixed pair of channels for each port.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;

use ::http::StatusCode;

use super::{InStream, OutStream, STREAM_PROTOCOL, UpgradeError, asks_for, negotiate, spdy_response, tokens, upgraded};
use crate::http::spdy::{Accepted, Session};
use crate::http::{HttpRequest, HttpResponse, tunnel, websocket};
use crate::rt::TaskGroup;

/// The protocol of SPDY streams.
const PROTOCOL: &str = "portforward.k8s.io";
/// Error streams that wait for their data stream.
const WAITING: usize = 64;

/// One forwarded connection.
pub struct Forwarded {
    pub port: u16,
    pub input: InStream,
    pub output: OutStream,
    /// Where the words of a failure go.
    pub error: OutStream,
}

/// Upgrades a request of port-forward. `work` runs in `tasks`, once for each connection. `ports` are those of the query, which
/// only old WebSocket clients send.
///
/// # Errors
/// When the request asks for no upgrade, or for protocols that are not known.
pub fn port_forward<W>(
    request: &mut HttpRequest,
    ports: &[u16],
    tasks: &TaskGroup,
    work: impl Fn(Forwarded) -> W + Send + Sync + 'static,
) -> Result<HttpResponse, UpgradeError>
where
    W: Future<Output = ()> + Send + 'static,
{
    let missing = || {
        let text = "unable to upgrade: missing upgrade headers in request: Connection, Upgrade";
        UpgradeError::new(StatusCode::BAD_REQUEST, text)
    };
    let (headers, work, group) = (request.headers(), Arc::new(work), tasks.clone());
    if asks_for(headers, "websocket") {
        let (response, kind) = websocket::accept_forward(headers)?;
        let on_upgrade = tunnel::upgrade_of(request).ok_or_else(missing)?;
        let ports = ports.to_vec();
        tasks.spawn(async move {
            let Some(connection) = upgraded(on_upgrade).await else { return };
            match kind {
                websocket::ForwardKind::Tunnel => {
                    let bytes = websocket::tunnel(connection, &group).await;
                    serve(Session::start(bytes, &group), work, &group).await;
                }
                websocket::ForwardKind::Channels(channels) => {
                    for forwarded in websocket::forward_streams(connection, channels, &ports, &group).await {
                        group.spawn(work(forwarded));
                    }
                }
            }
        });
        return Ok(response);
    }
    if !asks_for(headers, "SPDY/3.1") {
        return Err(missing());
    }
    let protocol = negotiate(&tokens(headers, STREAM_PROTOCOL), &[PROTOCOL])?;
    let on_upgrade = tunnel::upgrade_of(request).ok_or_else(missing)?;
    tasks.spawn(async move {
        let Some(connection) = upgraded(on_upgrade).await else { return };
        serve(Session::start(connection, &group), work, &group).await;
    });
    Ok(spdy_response(protocol))
}

/// Pairs the streams of a connection by their request id, until the client closes it.
async fn serve<W>(mut session: Session, work: Arc<impl Fn(Forwarded) -> W>, tasks: &TaskGroup)
where
    W: Future<Output = ()> + Send + 'static,
{
    let mut waiting: HashMap<String, Accepted> = HashMap::new();
    while let Some(stream) = session.accept().await {
        let port = stream.header("port").and_then(|port| port.parse::<u16>().ok()).filter(|port| *port != 0);
        // Clients that send no id send each pair under its port.
        let id = stream.header("requestid").or(stream.header("port")).unwrap_or_default().to_owned();
        let is_data = match stream.header("streamtype") {
            Some("data") => true,
            Some("error") => false,
            _ => {
                stream.output.reset().await;
                continue;
            }
        };
        let Some(port) = port else {
            stream.output.reset().await;
            continue;
        };
        let Some(other) = waiting.remove(&id) else {
            if waiting.len() < WAITING {
                waiting.insert(id, stream);
            } else {
                stream.output.reset().await;
            }
            continue;
        };
        let (data, error) = if is_data { (stream, other) } else { (other, stream) };
        tasks.spawn(work(Forwarded { port, input: data.input, output: data.output, error: error.output }));
    }
}
