//! What a removed node still holds open is ended: its watches and its tunnel, as soon as its identity is gone from the store.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt;
use parking_lot::Mutex;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::Server;
use crate::api::ApiError;
use crate::api::status::Cause;
use crate::auth::{UserInfo, identity};
use crate::http::{Body, BoxError, HttpResponse};
use crate::store::Change;

/// The reason in the refusal of a removed node, and the header by which its agent knows it.
pub const REMOVED: &str = "NodeRemoved";
/// See [`REMOVED`].
pub const REMOVED_HEADER: &str = "orch-node-removed";
/// Pause before the store is watched again after the watch fell behind.
const PAUSE: Duration = Duration::from_millis(100);

/// What ends with each node's identity.
#[derive(Default)]
pub struct Identities(Mutex<HashMap<String, CancellationToken>>);

impl Identities {
    /// Cancelled when the identity of the user's node is gone; `None` for whoever is no node with one.
    pub fn end_of(&self, user: &UserInfo) -> Option<CancellationToken> {
        let node = user.node_name().filter(|_| !user.uid.is_empty())?;
        let mut all = self.0.lock();
        // The same node's earlier identity may have been cancelled.
        let token = all.entry(node.to_owned()).or_default();
        if token.is_cancelled() {
            *token = CancellationToken::new();
        }
        Some(token.child_token())
    }

    fn end(&self, node: &str) {
        if let Some(token) = self.0.lock().remove(node) {
            token.cancel();
        }
    }

    fn nodes(&self) -> Vec<String> {
        self.0.lock().keys().cloned().collect()
    }
}

/// What ends with the identity of a user who came over a connection; a node whose identity is gone is refused. A follower's state may lag, so the newest is asked before a refusal.
///
/// # Errors
/// 401 that says so; others when the newest state cannot be had.
pub(super) async fn check(server: &Server, user: &UserInfo) -> Result<Option<CancellationToken>, ApiError> {
    // Taken first: an identity that goes between the two ends it.
    let end = server.identities.end_of(user);
    if identity::stands(user, &server.registry.store().snapshot()) {
        return Ok(end);
    }
    server.registry.fresh().await?;
    if identity::stands(user, &server.registry.store().snapshot()) {
        return Ok(end);
    }
    tracing::info!(user = user.name, "a node whose identity is gone was refused");
    let mut error = ApiError::unauthorized();
    error.message = format!("the node {:?} was removed from the cluster", user.node_name().unwrap_or(""));
    let cause = Cause { reason: REMOVED.to_owned(), message: error.message.clone(), field: String::new() };
    error.details.causes.push(cause);
    Err(error)
}

/// Ends what nodes hold open when their identity goes, until the server stops.
pub async fn run(server: Arc<Server>) {
    let token = server.tasks.token();
    while !token.is_cancelled() {
        token.run_until_cancelled(follow(&server)).await;
        token.run_until_cancelled(tokio::time::sleep(PAUSE)).await;
    }
}

/// Follows the store until the watch falls behind.
async fn follow(server: &Server) {
    let store = server.registry.store();
    let snapshot = store.snapshot();
    let Ok(mut watch) = store.watch(&identity::prefix(), snapshot.revision()) else { return };
    // What was missed before the watch began.
    let gone = |node: &String| snapshot.get(&format!("{}{node}.node-password.orch", identity::prefix())).is_none();
    server.identities.nodes().iter().filter(|node| gone(node)).for_each(|node| end(server, node));
    while let Some(Ok(events)) = watch.next_batch().await {
        for event in events {
            if let (Change::Delete { .. }, Some(node)) = (&event.change, identity::node_of_key(event.key())) {
                end(server, node);
            }
        }
    }
}

fn end(server: &Server, node: &str) {
    tracing::info!(node, "the node's identity is gone; closing what it holds open");
    server.identities.end(node);
    server.tunnels.close(node);
}

/// An answer whose body ends when the token is cancelled.
pub(super) fn until(response: HttpResponse, token: CancellationToken) -> HttpResponse {
    response.map(|body| Ending { body, ended: Box::pin(token.cancelled_owned()) }.boxed_unsync())
}

struct Ending {
    body: Body,
    ended: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl HttpBody for Ending {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if Future::poll(self.ended.as_mut(), context).is_ready() {
            return Poll::Ready(None);
        }
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
