//! The reference implementation: the contract without a disk, for tests and as a model of the others.

use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::state::{Snapshot, State};
use super::watch::{Timeline, Watch, Window};
use super::{CommitError, Expired, Revision, Store, Transaction, Written};
use crate::rt::clock::SharedClock;

/// A store that forgets everything when it is dropped.
pub struct MemoryStore {
    state: Mutex<State>,
    timeline: Arc<Timeline>,
    clock: SharedClock,
    leadership: watch::Sender<bool>,
}

impl MemoryStore {
    /// An empty store with the usual window of history.
    pub fn new(clock: SharedClock) -> Arc<Self> {
        Self::with_window(clock, Window::default())
    }

    /// An empty store with a window of history of its own.
    pub fn with_window(clock: SharedClock, window: Window) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::default(),
            timeline: Timeline::new(Snapshot::default(), window),
            clock,
            leadership: watch::Sender::new(true),
        })
    }
}

#[async_trait]
impl Store for MemoryStore {
    fn snapshot(&self) -> Snapshot {
        self.timeline.snapshot()
    }

    fn snapshot_at(&self, revision: Revision) -> Result<Snapshot, Expired> {
        self.timeline.snapshot_at(revision)
    }

    async fn commit(&self, transaction: Transaction) -> Result<Vec<Written>, CommitError> {
        transaction.check()?;
        let mut state = self.state.lock();
        let mut records = Vec::new();
        let written = state.apply(&transaction, &mut records)?;
        self.timeline.publish(Snapshot::new(state.clone()), records, self.clock.now().as_millisecond());
        Ok(written)
    }

    fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, Expired> {
        self.timeline.watch(prefix, from)
    }

    async fn barrier(&self) -> Result<(), CommitError> {
        Ok(())
    }

    fn leadership(&self) -> watch::Receiver<bool> {
        self.leadership.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rt::clock::FakeClock;
    use crate::store::suite::{self, Subject};

    #[tokio::test]
    async fn keeps_the_contract() {
        suite::run(async |window| {
            let clock = FakeClock::new(jiff::Timestamp::UNIX_EPOCH);
            Subject { store: MemoryStore::with_window(clock.clone(), window), clock }
        })
        .await;
    }
}
