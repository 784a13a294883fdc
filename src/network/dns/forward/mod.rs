//! Names that are not the cluster's: asked of upstreams, each question once at a time, and remembered.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use super::metrics::metrics;
use crate::rt::{TaskGroup, clock};

mod cache;
mod exchange;
mod stored;
mod upstreams;

use cache::Cache;
pub(super) use exchange::Question;
use exchange::exchange;
pub(super) use stored::Stored;
pub(super) use upstreams::Routes;
use upstreams::Upstreams;

/// Questions that are asked at one time; more get SERVFAIL. CoreDNS's `max_concurrent`.
const FLIGHTS: usize = 1_000;
/// How long one server is waited for.
const PATIENCE: Duration = Duration::from_millis(1_500);
/// How long a client waits, at most: its own resolver gives up after five seconds.
const DEADLINE: Duration = Duration::from_millis(4_500);
/// How often all servers are tried.
const ROUNDS: usize = 2;

type Outcome = Option<Arc<Stored>>;
/// Who waits for an answer; the inner value is there once the question is settled.
type Flight = watch::Receiver<Option<Outcome>>;

/// Asks upstreams. One an agent.
pub(super) struct Forwarder {
    pub(super) routes: ArcSwap<Routes>,
    upstreams: Upstreams,
    cache: Mutex<Cache>,
    flights: Mutex<HashMap<Vec<u8>, Flight>>,
    tasks: TaskGroup,
}

impl Forwarder {
    /// A forwarder that reads the host's resolvers from `resolv_conf`; `own` is where we answer ourselves.
    pub(super) fn new(resolv_conf: PathBuf, own: SocketAddr, tasks: TaskGroup) -> Arc<Self> {
        Arc::new(Self {
            routes: ArcSwap::default(),
            upstreams: Upstreams::new(resolv_conf, own),
            cache: Mutex::default(),
            flights: Mutex::default(),
            tasks,
        })
    }

    /// An answer that is at hand.
    pub(super) fn cached(&self, key: &[u8], now: Instant) -> Outcome {
        let found = self.cache.lock().fresh(key, now)?;
        metrics().cache_hit(found.is_denial());
        Some(found)
    }

    /// Forgets all answers: the user says that others are to be asked.
    pub(super) fn reroute(&self, routes: Routes) {
        self.routes.store(Arc::new(routes));
        *self.cache.lock() = Cache::default();
    }

    /// The answer to a question, from the cache or from an upstream; `None` when nobody answers.
    pub(super) async fn resolve(self: &Arc<Self>, question: Question) -> Outcome {
        let key = question.key();
        if let Some(found) = self.cached(&key, clock::instant()) {
            return Some(found);
        }
        let mut flight = self.board(&key, question)?;
        match flight.wait_for(Option::is_some).await {
            Ok(outcome) => outcome.clone().flatten(),
            Err(_) => {
                self.flights.lock().remove(&key);
                None
            }
        }
    }

    /// Joins those who wait for the same answer, or asks for it.
    fn board(self: &Arc<Self>, key: &[u8], question: Question) -> Option<Flight> {
        let mut flights = self.flights.lock();
        if let Some(flight) = flights.get(key) {
            return Some(flight.clone());
        }
        if flights.len() >= FLIGHTS {
            metrics().rejects.inc();
            return None;
        }
        metrics().cache_misses.inc();
        let (sender, flight) = watch::channel(None);
        flights.insert(key.to_owned(), flight.clone());
        drop(flights);
        let (forwarder, key, token) = (Arc::clone(self), key.to_owned(), self.tasks.token());
        self.tasks.spawn(async move {
            let outcome = token.run_until_cancelled(forwarder.ask(&key, &question)).await.flatten();
            forwarder.flights.lock().remove(&key);
            sender.send_replace(Some(outcome));
        });
        Some(flight)
    }

    async fn ask(&self, key: &[u8], question: &Question) -> Outcome {
        let asked = tokio::time::timeout(DEADLINE, self.ask_all(question)).await.ok().flatten().map(Arc::new);
        let mut cache = self.cache.lock();
        if asked.as_ref().is_none_or(|stored| !stored.is_answer())
            && let Some(stale) = cache.stale(key, clock::instant())
        {
            metrics().served_stale.inc();
            return Some(stale);
        }
        if let Some(stored) = &asked {
            cache.insert(key, stored);
        }
        metrics().cache_entries.set(i64::try_from(cache.len()).unwrap_or(i64::MAX));
        asked
    }

    /// Asks one server after the other. A failure that a server tells is told only if no other does better.
    async fn ask_all(&self, question: &Question) -> Option<Stored> {
        let routes = self.routes.load_full();
        let servers = self.upstreams.of(&question.name, &routes, clock::instant()).await;
        let mut refused = None;
        for server in std::iter::repeat_n(&servers, ROUNDS).flatten() {
            let answer = exchange(*server, question, PATIENCE).await;
            let now = clock::instant();
            let stored = match answer {
                Ok(answer) => Stored::of(answer, now),
                Err(error) => {
                    tracing::debug!(%server, name = %question.name, %error, "an upstream does not answer");
                    None
                }
            };
            self.upstreams.judge(*server, stored.as_ref().is_some_and(Stored::is_answer), now);
            match stored {
                Some(stored) if stored.is_answer() => return Some(stored),
                Some(stored) if refused.is_some() && servers.len() == 1 => return Some(stored),
                other => refused = other.or(refused),
            }
        }
        refused
    }
}
