//! The work queue: keys wait once, are worked on by one worker at a time, can be delayed, and back off when they fail.
//!
//! It follows `client-go/util/workqueue`: a key that is added while it is worked on is worked on again afterwards.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::time::Duration;

use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::metrics;
use crate::client::ObjectKey;
use crate::rt::{backoff, clock, random};

const RETRY_BASE: Duration = Duration::from_millis(5);
const RETRY_CAP: Duration = Duration::from_secs(60);

#[derive(Default)]
struct State {
    ready: VecDeque<(ObjectKey, Option<Instant>)>,
    /// Keys in `ready`, and keys that were added again while they are worked on.
    dirty: HashSet<ObjectKey>,
    working: HashSet<ObjectKey>,
    /// When each delayed key is due, by time and by key.
    due: BTreeSet<(Instant, ObjectKey)>,
    delayed: HashMap<ObjectKey, Instant>,
    failures: HashMap<ObjectKey, u32>,
}

impl State {
    fn add(&mut self, key: ObjectKey) -> bool {
        if !self.dirty.insert(key.clone()) {
            return false;
        }
        if !self.working.contains(&key) {
            self.ready.push_back((key, Some(clock::instant())));
        }
        true
    }

    /// Makes delayed keys ready whose time has come.
    fn promote(&mut self, now: Instant) {
        while let Some((at, _)) = self.due.first() {
            if *at > now {
                return;
            }
            if let Some((_, key)) = self.due.pop_first() {
                self.delayed.remove(&key);
                self.add(key);
            }
        }
    }
}

/// The keys of one controller that wait.
pub struct Queue {
    state: Mutex<State>,
    wake: Notify,
    depth: Gauge,
    adds: Counter,
    retries: Counter,
    waited: Histogram,
}

impl Queue {
    /// An empty queue; `name` is the controller's.
    pub fn new(name: &str) -> Self {
        let metrics = metrics::of(name);
        Self {
            state: Mutex::default(),
            wake: Notify::new(),
            depth: metrics.depth,
            adds: metrics.adds,
            retries: metrics.retries,
            waited: metrics.waited,
        }
    }

    /// Adds a key; nothing happens if it waits already.
    pub fn add(&self, key: ObjectKey) {
        let mut state = self.state.lock();
        if state.add(key) {
            self.adds.inc();
            self.update_depth(&state);
            drop(state);
            self.wake.notify_one();
        }
    }

    /// Adds a key after a delay; of several delays the earliest counts.
    pub fn add_after(&self, key: ObjectKey, delay: Duration) {
        if delay.is_zero() {
            return self.add(key);
        }
        let at = clock::instant() + delay;
        let mut state = self.state.lock();
        if let Some(before) = state.delayed.get(&key).copied() {
            if before <= at {
                return;
            }
            state.due.remove(&(before, key.clone()));
        }
        state.delayed.insert(key.clone(), at);
        state.due.insert((at, key));
        drop(state);
        self.wake.notify_one();
    }

    /// All keys that are delayed are due now: the clock that their delays were told by was set.
    pub fn hurry(&self) {
        let mut state = self.state.lock();
        while let Some((_, key)) = state.due.pop_first() {
            state.delayed.remove(&key);
            state.add(key);
        }
        self.update_depth(&state);
        drop(state);
        self.wake.notify_one();
    }

    /// Adds a key whose work failed, after a delay that doubles with every failure in a row. Returns the delay.
    pub fn retry(&self, key: ObjectKey) -> Duration {
        let mut state = self.state.lock();
        let failures = state.failures.entry(key.clone()).or_insert(0);
        let delay = random::jitter(backoff::exponential(RETRY_BASE, RETRY_CAP, *failures), 0.1);
        *failures = failures.saturating_add(1);
        drop(state);
        self.retries.inc();
        self.add_after(key, delay);
        delay
    }

    /// The work on a key succeeded: the next failure is the first again.
    pub fn forget(&self, key: &ObjectKey) {
        self.state.lock().failures.remove(key);
    }

    /// Takes the next key; [`done`](Self::done) must follow. Cancel safe.
    pub async fn next(&self) -> ObjectKey {
        loop {
            let due = {
                let mut state = self.state.lock();
                state.promote(clock::instant());
                if let Some((key, since)) = state.ready.pop_front() {
                    state.dirty.remove(&key);
                    state.working.insert(key.clone());
                    self.update_depth(&state);
                    let more = !state.ready.is_empty();
                    drop(state);
                    self.waited.observe(since.map_or(0.0, |since| since.elapsed().as_secs_f64()));
                    if more {
                        self.wake.notify_one();
                    }
                    return key;
                }
                state.due.first().map(|(at, _)| *at)
            };
            match due {
                Some(at) => tokio::select! {
                    () = self.wake.notified() => {}
                    () = tokio::time::sleep_until(at) => {}
                },
                None => self.wake.notified().await,
            }
        }
    }

    /// The work on a key has ended.
    pub fn done(&self, key: &ObjectKey) {
        let mut state = self.state.lock();
        state.working.remove(key);
        if state.dirty.contains(key) {
            state.ready.push_back((key.clone(), Some(clock::instant())));
            self.update_depth(&state);
        }
        drop(state);
        // Also wakes a worker for delayed keys, which this one may have been waiting for.
        self.wake.notify_one();
    }

    fn update_depth(&self, state: &State) {
        self.depth.set(i64::try_from(state.ready.len()).unwrap_or(i64::MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> ObjectKey {
        ObjectKey::new("", name)
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_waits_once_and_is_worked_on_alone() {
        let queue = Queue::new("test");
        for name in ["a", "b", "a"] {
            queue.add(key(name));
        }
        assert_eq!(queue.next().await, key("a"));
        queue.add(key("a"));
        assert_eq!(queue.next().await, key("b"));
        let again = tokio::time::timeout(Duration::from_secs(1), queue.next()).await;
        assert!(again.is_err(), "a is being worked on");
        queue.done(&key("a"));
        assert_eq!(queue.next().await, key("a"));
    }

    #[tokio::test(start_paused = true)]
    async fn delays_and_failures() {
        let (queue, start) = (Queue::new("test"), clock::instant());
        queue.add_after(key("a"), Duration::from_secs(60));
        queue.add_after(key("b"), Duration::from_secs(5));
        queue.add_after(key("a"), Duration::from_secs(1));
        assert_eq!(queue.next().await, key("a"));
        assert_eq!(queue.next().await, key("b"));
        assert_eq!(start.elapsed().as_secs(), 5);
        let delays: Vec<u128> = (0..3).map(|_| queue.retry(key("c")).as_millis()).collect();
        assert!(delays[0] >= 5 && delays[1] >= 10 && delays[2] >= 20 && delays[2] < 40, "{delays:?}");
        queue.forget(&key("c"));
        assert!(queue.retry(key("c")).as_millis() < 10);
        queue.add_after(key("d"), Duration::from_secs(3_600));
        queue.hurry();
        assert_eq!([queue.next().await, queue.next().await], [key("c"), key("d")]);
        assert!(start.elapsed().as_secs() < 10);
    }
}
