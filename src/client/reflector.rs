//! The reflector: list, then watch, for ever. It follows `client-go/tools/cache.Reflector`.
//!
//! A named state machine: [`Phase::List`] reads all pages of one consistent list, [`Phase::Watch`] follows from its revision and
//! resumes exactly where a broken watch stopped; 410 leads back to the list. Errors back off with jitter.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use ::http::Method;
use bytes::Bytes;
use http_body_util::BodyExt;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::cache::{Cached, ObjectKey};
use super::informer::Shared;
use super::watch::{WatchEvent, WatchStream};
use super::{Client, ClientError, ListMeta, error_of};
use crate::rt::{Backoff, clock, limits, random};

const PAGE: usize = 500;
/// A watch is asked for 5 to 10 minutes at random, as upstream's reflector does.
const WATCH_SECONDS_MIN: u64 = 300;
/// Time beyond its end after which a silent watch counts as broken.
const WATCH_SLACK: Duration = Duration::from_secs(30);
/// A watch that ends sooner than this without an event counts as a failure.
const WATCH_TOO_SHORT: Duration = Duration::from_secs(1);
const BACKOFF_BASE: Duration = Duration::from_millis(800);
const BACKOFF_CAP: Duration = Duration::from_secs(30);

/// What to list and watch.
#[derive(Debug, Clone)]
pub struct Source {
    /// `/api/v1/pods`.
    pub path: String,
    /// Selectors: `fieldSelector=spec.nodeName%3Dn1`, or "".
    pub query: String,
    /// The media type of the list.
    pub accept: String,
    /// The media type of the watch.
    pub accept_watch: String,
}

/// Where the reflector is.
enum Phase {
    /// Read everything.
    List,
    /// Follow from this revision.
    Watch { revision: String },
}

/// Why a phase ended before its time.
enum Interrupted {
    Failed(ClientError),
    /// The watch stream ended; resume.
    Ended,
}

impl From<ClientError> for Interrupted {
    fn from(error: ClientError) -> Self {
        Self::Failed(error)
    }
}

pub(super) struct Reflector<T> {
    pub(super) client: Client,
    pub(super) source: Source,
    pub(super) shared: Arc<Shared<T>>,
}

impl<T: Cached> Reflector<T> {
    /// Runs until it is dropped.
    pub(super) async fn run(self) {
        let mut backoff = Backoff::new(BACKOFF_BASE, BACKOFF_CAP);
        let mut phase = Phase::List;
        loop {
            phase = match phase {
                Phase::List => match self.list().await {
                    Ok(revision) => {
                        backoff.reset();
                        Phase::Watch { revision }
                    }
                    Err(error) => {
                        self.pause(&mut backoff, "list", &error).await;
                        Phase::List
                    }
                },
                Phase::Watch { mut revision } => {
                    self.follow(&mut revision, &mut backoff).await.unwrap_or(Phase::Watch { revision })
                }
            };
        }
    }

    /// One watch from its opening to its end; the next phase if it is not a watch from `revision` again.
    async fn follow(&self, revision: &mut String, backoff: &mut Backoff) -> Option<Phase> {
        let (from, started) = (revision.clone(), clock::instant());
        match self.watch(revision).await {
            Interrupted::Failed(error) if error.is_expired() => {
                tracing::debug!(path = self.source.path, revision = *revision, "the revision is gone: listing again");
                return Some(Phase::List);
            }
            Interrupted::Failed(error) => self.pause(backoff, "watch", &error).await,
            Interrupted::Ended if *revision == from && started.elapsed() < WATCH_TOO_SHORT => {
                tokio::time::sleep(backoff.next_delay()).await;
            }
            Interrupted::Ended => backoff.reset(),
        }
        None
    }

    async fn pause(&self, backoff: &mut Backoff, verb: &'static str, error: &ClientError) {
        let delay = backoff.next_delay();
        let cause = std::error::Error::source(error).map(ToString::to_string);
        tracing::warn!(verb, path = self.source.path, %error, cause, delay_ms = delay.as_millis(), "reflector: trying again");
        tokio::time::sleep(delay).await;
    }

    /// Reads every page and replaces the cache; returns the revision of the list.
    async fn list(&self) -> Result<String, ClientError> {
        let (mut objects, mut next) = (Vec::new(), String::new());
        loop {
            let path = self.url(&[("limit", &PAGE.to_string()), ("continue", &next)]);
            let body = tokio::time::timeout(limits::REQUEST_TIMEOUT, self.read(&path)).await;
            let body = body.map_err(|elapsed| transport(&path, elapsed.into()))??;
            let page: Page<'_> = serde_json::from_slice(&body).map_err(|source| ClientError::Decode {
                method: Method::GET,
                path: path.clone(),
                source,
            })?;
            objects.extend(page.items.iter().filter_map(|item| self.decode(item)));
            if page.metadata.r#continue.is_empty() {
                self.shared.replace(objects, &page.metadata.resource_version);
                return Ok(page.metadata.resource_version);
            }
            next = encode(&page.metadata.r#continue);
        }
    }

    fn decode(&self, item: &RawValue) -> Option<T> {
        serde_json::from_str(item.get()).inspect_err(|error| self.skipped(&error.to_string())).ok()
    }

    fn skipped(&self, error: &str) {
        tracing::error!(path = self.source.path, error, "an object does not decode and is left out");
    }

    async fn read(&self, path: &str) -> Result<Bytes, ClientError> {
        let response = self.client.stream_as(Method::GET, path, &self.source.accept, "", None).await?;
        let status = response.status();
        let body = response.into_body().collect().await.map_err(|source| transport(path, source))?.to_bytes();
        if status.is_success() { Ok(body) } else { Err(error_of(status, &body).into()) }
    }

    /// Follows the watch, moving `revision` with it.
    async fn watch(&self, revision: &mut String) -> Interrupted {
        let seconds = WATCH_SECONDS_MIN + random::below(WATCH_SECONDS_MIN);
        let timeout = seconds.to_string();
        let path = self.url(&[
            ("watch", "1"),
            ("allowWatchBookmarks", "true"),
            ("resourceVersion", revision),
            ("timeoutSeconds", &timeout),
        ]);
        let deadline = Duration::from_secs(seconds) + WATCH_SLACK;
        match tokio::time::timeout(deadline, self.apply_events(&path, revision)).await {
            Ok(Ok(never)) => match never {},
            Ok(Err(interrupted)) => interrupted,
            Err(_) => Interrupted::Ended,
        }
    }

    async fn apply_events(&self, path: &str, revision: &mut String) -> Result<std::convert::Infallible, Interrupted> {
        let mut stream = WatchStream::open(&self.client, path, &self.source.accept_watch).await?;
        loop {
            match stream.next::<T>().await?.ok_or(Interrupted::Ended)? {
                WatchEvent::Applied(object) => {
                    object.resource_version().clone_into(revision);
                    self.shared.apply(object, revision);
                }
                WatchEvent::Deleted(object) => {
                    object.resource_version().clone_into(revision);
                    self.shared.delete(&ObjectKey::of(&object), revision);
                }
                WatchEvent::Bookmark(at) => {
                    self.shared.reached(&at);
                    *revision = at;
                }
                WatchEvent::Undecodable(why) => self.skipped(&why),
            }
        }
    }

    fn url(&self, parameters: &[(&str, &str)]) -> String {
        let mut url = self.source.path.clone();
        let mut separator = '?';
        let mut push = |part: &str| {
            url.push(separator);
            url.push_str(part);
            separator = '&';
        };
        if !self.source.query.is_empty() {
            push(&self.source.query);
        }
        for (name, value) in parameters.iter().filter(|(_, value)| !value.is_empty()) {
            push(&format!("{name}={value}"));
        }
        url
    }
}

/// One page of a list, its items not yet decoded: one object that does not decode must not hide the others.
#[derive(Deserialize)]
struct Page<'a> {
    #[serde(default)]
    metadata: ListMeta,
    #[serde(borrow, default)]
    items: Vec<&'a RawValue>,
}

fn transport(path: &str, source: crate::http::BoxError) -> ClientError {
    ClientError::Transport { method: Method::GET, path: path.to_owned(), source }
}

/// Percent-encodes a query value.
pub fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~') {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// The keys of `known` that are not among `listed`.
pub(super) fn vanished<T: Cached>(known: impl Iterator<Item = ObjectKey>, listed: &[T]) -> Vec<ObjectKey> {
    let listed: HashSet<(&str, &str)> = listed.iter().map(|object| (object.namespace(), object.name())).collect();
    known.filter(|key| !listed.contains(&(&*key.namespace, &*key.name))).collect()
}
