//! A connection on which the roles turn round: the side that dialled serves, and the side that listened opens byte pipes on it.
//!
//! Pipes are HTTP/2 CONNECT streams (RFC 9113 section 8.5), so that any number of them share one connection, each with its own
//! flow control. What is spoken on a pipe is the business of its two ends.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use ::http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header};
use async_trait::async_trait;
use futures_util::future::BoxFuture;
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper::server;
use hyper::service::service_fn;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;

use super::listener::GroupExecutor;
use super::{Body, BoxError, HttpResponse, empty, full};
use crate::rt::TaskGroup;

/// The protocol that such a connection is upgraded to.
pub const PROTOCOL: &str = "orch-tunnel";
/// Both sides ask a quiet connection whether it still lives.
const PING_INTERVAL: Duration = Duration::from_secs(15);
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// Pipes on one connection; who wants more waits.
const PIPES: u32 = 1_000;
/// Bytes that may be sent ahead on a pipe and on all of them.
const PIPE_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;
/// Time for a pipe to be opened.
const OPEN: Duration = Duration::from_secs(10);
/// Time for pipes to end by themselves when the serving side goes down.
const DRAIN: Duration = Duration::from_secs(5);
/// Longest text of a refusal.
const REFUSAL_BYTES: usize = 4 << 10;

/// One end of a pipe.
pub type Pipe = TokioIo<Upgraded>;

/// What becomes of a pipe that was accepted.
pub type Serve = Box<dyn FnOnce(Pipe) -> BoxFuture<'static, ()> + Send>;

/// Why a pipe was not opened, in words for the side that asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    pub status: StatusCode,
    pub message: String,
}

impl Refusal {
    /// The target is not one that may be reached here.
    pub fn forbidden(message: impl Into<String>) -> Self {
        Self { status: StatusCode::FORBIDDEN, message: message.into() }
    }

    /// The target does not answer.
    pub fn bad_gateway(message: impl Into<String>) -> Self {
        Self { status: StatusCode::BAD_GATEWAY, message: message.into() }
    }
}

/// Why a pipe is not there.
#[derive(Debug, thiserror::Error)]
pub enum PipeError {
    /// The other side refused: what was asked for is not there.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The connection itself is broken.
    #[error("the tunnel is broken")]
    Broken(#[source] BoxError),
}

/// The serving side's decisions.
#[async_trait]
pub trait Targets: Send + Sync + 'static {
    /// Connects to a target (`host:port`), and says what to do with the pipe to it.
    ///
    /// # Errors
    /// [`Refusal`], which the other side is told.
    async fn connect(self: Arc<Self>, target: &str) -> Result<Serve, Refusal>;
}

/// The headers by which a connection is asked to turn round, and by which that is granted.
pub fn upgrade_headers() -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static(PROTOCOL));
    headers
}

/// Whether headers ask for, or grant, a connection that turns round.
pub fn is_upgrade(headers: &HeaderMap) -> bool {
    super::is_upgrade(headers) && headers.get(header::UPGRADE).is_some_and(|value| value == PROTOCOL)
}

/// Takes the future connection out of an answer that grants the upgrade.
pub fn granted(response: &mut HttpResponse) -> Option<OnUpgrade> {
    let is_granted = response.status() == StatusCode::SWITCHING_PROTOCOLS && is_upgrade(response.headers());
    response.extensions_mut().remove::<OnUpgrade>().filter(|_| is_granted)
}

/// The side that opens pipes. Clones share the connection, which ends when the last is dropped.
#[derive(Debug, Clone)]
pub struct Pipes {
    sender: http2::SendRequest<Body>,
}

impl Pipes {
    /// Turns a connection round; the future is the connection's life and must be run.
    ///
    /// # Errors
    /// When the other side does not speak HTTP/2.
    pub async fn over<S>(stream: S, tasks: &TaskGroup) -> Result<(Self, BoxFuture<'static, Result<(), BoxError>>), BoxError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let handshake = http2::Builder::new(GroupExecutor(tasks.clone()))
            .timer(TokioTimer::new())
            .initial_stream_window_size(PIPE_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT)
            .keep_alive_while_idle(true)
            .handshake(TokioIo::new(stream));
        let (sender, connection) = tokio::time::timeout(OPEN, handshake).await??;
        Ok((Self { sender }, Box::pin(async move { Ok(connection.await?) })))
    }

    /// Whether the connection has ended.
    pub fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    /// Opens a pipe to a target (`host:port`).
    ///
    /// # Errors
    /// [`PipeError`].
    pub async fn open(&self, target: &str) -> Result<Pipe, PipeError> {
        let broken = |error: BoxError| PipeError::Broken(error);
        let uri = Uri::builder().authority(target).build().map_err(|error| broken(error.into()))?;
        let mut request = Request::new(empty());
        *request.method_mut() = Method::CONNECT;
        *request.uri_mut() = uri;
        *request.version_mut() = Version::HTTP_2;
        let mut sender = self.sender.clone();
        let opening = async {
            sender.ready().await?;
            sender.send_request(request).await
        };
        let response = tokio::time::timeout(OPEN, opening).await;
        let response = response.map_err(|_| broken(format!("no answer within {} s", OPEN.as_secs()).into()))?;
        let response = response.map_err(|error| broken(error.into()))?;
        if !response.status().is_success() {
            return Err(refusal(response).await.into());
        }
        let upgraded = hyper::upgrade::on(response).await.map_err(|error| broken(error.into()))?;
        Ok(TokioIo::new(upgraded))
    }
}

async fn refusal(response: Response<Incoming>) -> Refusal {
    let status = response.status();
    let text = tokio::time::timeout(OPEN, Limited::new(response.into_body(), REFUSAL_BYTES).collect()).await;
    let message = match text {
        Ok(Ok(text)) => String::from_utf8_lossy(&text.to_bytes()).into_owned(),
        _ => status.to_string(),
    };
    Refusal { status, message }
}

/// Serves pipes on a connection until it ends, or until `tasks` is cancelled and the pipes have had time to end.
///
/// # Errors
/// When the connection breaks.
pub async fn serve<S>(stream: S, targets: Arc<dyn Targets>, tasks: &TaskGroup) -> Result<(), BoxError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let token = tasks.token();
    let (group, stopped) = (tasks.clone(), token.clone());
    let service = service_fn(move |request: Request<Incoming>| {
        let (targets, group, stopped) = (Arc::clone(&targets), group.clone(), stopped.clone());
        async move { Ok::<_, Infallible>(answer(request, targets, &group, stopped).await) }
    });
    let mut connection = pin!(
        server::conn::http2::Builder::new(GroupExecutor(tasks.clone()))
            .timer(TokioTimer::new())
            .max_concurrent_streams(PIPES)
            .initial_stream_window_size(PIPE_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT)
            .serve_connection(TokioIo::new(stream), service)
    );
    tokio::select! {
        ended = connection.as_mut() => Ok(ended?),
        () = token.cancelled() => {
            connection.as_mut().graceful_shutdown();
            match tokio::time::timeout(DRAIN, connection).await {
                Ok(ended) => Ok(ended?),
                Err(_) => Ok(()),
            }
        }
    }
}

async fn answer(
    request: Request<Incoming>,
    targets: Arc<dyn Targets>,
    tasks: &TaskGroup,
    stopped: CancellationToken,
) -> HttpResponse {
    let target = request.uri().authority().map(ToString::to_string).filter(|_| *request.method() == Method::CONNECT);
    let Some(target) = target else { return refused(&Refusal::forbidden("only pipes are opened here")) };
    let connected = tokio::time::timeout(OPEN, targets.connect(&target)).await;
    let connected = connected.unwrap_or_else(|_| Err(Refusal::bad_gateway(format!("{target}: i/o timeout"))));
    let serve = match connected {
        Ok(serve) => serve,
        Err(refusal) => {
            tracing::debug!(target, why = refusal.message, "no pipe");
            return refused(&refusal);
        }
    };
    let upgrade = hyper::upgrade::on(request);
    tasks.spawn(async move {
        let piped = async {
            match upgrade.await {
                Ok(pipe) => serve(TokioIo::new(pipe)).await,
                Err(error) => tracing::debug!(target, %error, "a pipe broke before it was open"),
            }
        };
        stopped.run_until_cancelled(piped).await;
    });
    Response::new(empty())
}

fn refused(refusal: &Refusal) -> HttpResponse {
    let mut response = Response::new(full(refusal.message.clone()));
    *response.status_mut() = refusal.status;
    response
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// Answers in upper case; knows one target only.
    struct Shout;

    #[async_trait]
    impl Targets for Shout {
        async fn connect(self: Arc<Self>, target: &str) -> Result<Serve, Refusal> {
            if target != "shout:1" {
                return Err(Refusal::bad_gateway(format!("{target}: no such place")));
            }
            Ok(Box::new(|mut pipe| {
                Box::pin(async move {
                    let mut text = String::new();
                    pipe.read_to_string(&mut text).await.unwrap();
                    pipe.write_all(text.to_uppercase().as_bytes()).await.unwrap();
                    pipe.shutdown().await.unwrap();
                })
            }))
        }
    }

    async fn pair() -> (Pipes, TaskGroup, TaskGroup) {
        let (dialler, listener) = tokio::io::duplex(64 << 10);
        let (serving, opening) = (TaskGroup::new(), TaskGroup::new());
        let tasks = serving.clone();
        serving.spawn(async move { serve(dialler, Arc::new(Shout), &tasks).await.unwrap() });
        let (pipes, life) = Pipes::over(listener, &opening).await.unwrap();
        opening.spawn(async move { drop(life.await) });
        (pipes, serving, opening)
    }

    #[tokio::test]
    async fn pipes_carry_bytes_both_ways_and_end_one_way_at_a_time() {
        let (pipes, ..) = pair().await;
        let shout = |text: String| {
            let pipes = pipes.clone();
            async move {
                let mut pipe = pipes.open("shout:1").await.unwrap();
                pipe.write_all(text.as_bytes()).await.unwrap();
                pipe.shutdown().await.unwrap();
                let mut answer = String::new();
                pipe.read_to_string(&mut answer).await.unwrap();
                assert_eq!(answer, text.to_uppercase());
            }
        };
        // More than the windows hold, on many pipes at a time.
        futures_util::future::join_all((0..40).map(|n| shout(format!("line {n};").repeat(20_000)))).await;
    }

    #[tokio::test]
    async fn refusals_say_why() {
        let (pipes, ..) = pair().await;
        match pipes.open("elsewhere:2").await {
            Err(PipeError::Refused(refusal)) => assert_eq!(refusal.message, "elsewhere:2: no such place"),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn the_serving_side_ends_in_order() {
        let (pipes, serving, _opening) = pair().await;
        pipes.open("shout:1").await.unwrap();
        assert!(serving.shutdown(Duration::from_secs(8)).await);
        assert!(matches!(pipes.open("shout:1").await, Err(PipeError::Broken(_))));
    }
}
