//! The API servers that an agent knows: in which order they are tried, and which of them do not answer at present.
//!
//! Each agent has an order of its own (rendezvous hashing over a seed), so that many agents spread over the servers. The first that
//! answers gets all requests; who comes back gets them again.

use std::time::Duration;

use parking_lot::Mutex;
use ring::digest::{SHA256, digest};
use tokio::sync::watch;

use crate::http::connector::Endpoint;
use crate::rt::Backoff;

/// Pauses between looks at a server that does not answer.
const PROBE_FIRST: Duration = Duration::from_millis(250);
const PROBE_CAP: Duration = Duration::from_secs(15);

/// The servers, in the order of this agent.
pub struct Servers {
    seed: String,
    state: Mutex<Vec<Known>>,
    all: watch::Sender<Vec<Endpoint>>,
}

#[derive(Debug)]
struct Known {
    endpoint: Endpoint,
    is_down: bool,
}

impl Servers {
    /// These servers; `seed` (the node's name) makes the order.
    pub fn new(seed: &str, endpoints: Vec<Endpoint>) -> Self {
        let servers = Self { seed: seed.to_owned(), state: Mutex::default(), all: watch::Sender::new(Vec::new()) };
        servers.replace(endpoints);
        servers
    }

    /// All servers, now and whenever that changes.
    pub fn watch(&self) -> watch::Receiver<Vec<Endpoint>> {
        self.all.subscribe()
    }

    /// Puts other servers in the place of those known; what is known of one that stays, stays.
    pub fn replace(&self, mut endpoints: Vec<Endpoint>) {
        endpoints.sort_by_cached_key(|endpoint| {
            let hash = digest(&SHA256, format!("{} {}", self.seed, endpoint.authority()).as_bytes());
            hash.as_ref().to_vec()
        });
        endpoints.dedup();
        let mut state = self.state.lock();
        let is_down = |endpoint: &Endpoint| state.iter().any(|known| known.endpoint == *endpoint && known.is_down);
        let known = endpoints.iter().map(|endpoint| Known { endpoint: endpoint.clone(), is_down: is_down(endpoint) }).collect();
        *state = known;
        self.all.send_if_modified(|all| {
            let is_news = *all != endpoints;
            *all = endpoints;
            is_news
        });
    }

    /// All servers in the order to try them: those that answer come first.
    pub(super) fn order(&self) -> Vec<Endpoint> {
        let state = self.state.lock();
        let (down, up): (Vec<&Known>, Vec<&Known>) = state.iter().partition(|known| known.is_down);
        up.into_iter().chain(down).map(|known| known.endpoint.clone()).collect()
    }

    /// Notes whether a server answers. Returns whether that is news.
    pub(super) fn note(&self, endpoint: &Endpoint, is_down: bool) -> bool {
        let mut state = self.state.lock();
        let Some(known) = state.iter_mut().find(|known| known.endpoint == *endpoint) else { return false };
        std::mem::replace(&mut known.is_down, is_down) != is_down
    }

    /// Whether a server is still one of them, and does not answer.
    pub(super) fn is_down(&self, endpoint: &Endpoint) -> bool {
        self.state.lock().iter().any(|known| known.endpoint == *endpoint && known.is_down)
    }

    /// Whether there is another to turn to.
    pub(super) fn has_several(&self) -> bool {
        self.state.lock().len() > 1
    }
}

/// The pauses between looks at a server that does not answer.
pub(super) const fn probes() -> Backoff {
    Backoff::new(PROBE_FIRST, PROBE_CAP)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoints(names: &[&str]) -> Vec<Endpoint> {
        names.iter().map(|name| Endpoint::new(true, *name, 6443)).collect()
    }

    #[test]
    fn agents_spread_and_come_back() {
        let all = endpoints(&["a", "b", "c"]);
        let first = |seed: &str| Servers::new(seed, all.clone()).order()[0].host.clone();
        let mut counts = std::collections::BTreeMap::new();
        for node in 0..90 {
            *counts.entry(first(&format!("node-{node}"))).or_insert(0) += 1;
        }
        assert!(counts.len() == 3 && counts.values().all(|count| *count > 15), "{counts:?}");

        let servers = Servers::new("n", all.clone());
        let order = servers.order();
        assert!(servers.note(&order[0], true) && !servers.note(&order[0], true));
        assert_eq!(servers.order(), [order[1].clone(), order[2].clone(), order[0].clone()]);
        servers.replace(all);
        assert!(servers.is_down(&order[0]), "what is known of a server outlives a new list");
        assert!(servers.note(&order[0], false));
        assert_eq!(servers.order(), order);
    }

    #[test]
    fn lists_are_told_once() {
        let servers = Servers::new("n", endpoints(&["a"]));
        let mut watch = servers.watch();
        assert_eq!(watch.borrow_and_update().len(), 1);
        servers.replace(endpoints(&["a", "a"]));
        assert!(!watch.has_changed().unwrap());
        servers.replace(endpoints(&["a", "b"]));
        assert!(watch.has_changed().unwrap());
    }
}
