//! openraft's log store over the [`Log`] on disk, with the newest entries in memory.

use std::collections::VecDeque;
use std::fmt::Debug;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use openraft::storage::{LogFlushed, LogState, RaftLogStorage};
use openraft::{AnyError, EntryPayload, Membership, RaftLogReader, StorageIOError, Vote};
use parking_lot::Mutex;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::types::{Entry, LogId, StorageError, TypeConfig};
use crate::store::sqlite::log::{Log, LogError, Row};

/// Bytes of entries that are kept in memory for the state machine and for followers.
const CACHE_BYTES: usize = 4 << 20;

const VOTE: &str = "vote";
const PURGED: &str = "purged";

const BLANK: u8 = 0;
const NORMAL: u8 = 1;
const MEMBERSHIP: u8 = 2;

/// The log; clones share it, and read it too.
#[derive(Clone)]
pub(super) struct LogStore {
    log: Log,
    cache: Arc<Mutex<Cache>>,
    /// Whether this server is the only member. Only then may an entry that need not be durable go without an fsync: among
    /// several, a server that forgot entries it had confirmed could elect a leader that lacks them.
    alone: Arc<AtomicBool>,
}

/// The newest entries, without a gap, with the bytes that each takes on disk.
#[derive(Default)]
struct Cache {
    entries: VecDeque<(Entry, usize)>,
    bytes: usize,
}

impl LogStore {
    pub(super) fn new(log: Log, alone: bool) -> Self {
        Self { log, cache: Arc::default(), alone: Arc::new(AtomicBool::new(alone)) }
    }

    /// The last membership in the log.
    pub(super) async fn last_membership(log: &Log) -> Result<Option<Membership<u64, openraft::BasicNode>>, LogError> {
        let Some(row) = log.last_of_kind(MEMBERSHIP).await? else { return Ok(None) };
        match decode::<Entry>(log, &row.bytes)?.payload {
            EntryPayload::Membership(membership) => Ok(Some(membership)),
            EntryPayload::Blank | EntryPayload::Normal(_) => {
                Err(LogError::corrupt(log.path(), format!("entry {} is not what it says", row.index)))
            }
        }
    }

    /// The last entry that was removed because a checkpoint covers it.
    pub(super) async fn purged(log: &Log) -> Result<Option<LogId>, LogError> {
        log.get(PURGED).await?.map(|bytes| decode(log, &bytes)).transpose()
    }

    async fn state(&self) -> Result<LogState<TypeConfig>, LogError> {
        let last_purged_log_id = Self::purged(&self.log).await?;
        let purged = last_purged_log_id.map(|id| id.index);
        let mut last_log_id = last_purged_log_id;
        if let Some((_, last)) = self.log.bounds(purged).await? {
            let row = self.log.read(last, last + 1).await?.pop();
            last_log_id = row.map(|row| decode::<Entry>(&self.log, &row.bytes)).transpose()?.map(|entry| entry.log_id);
        }
        // The process ended before all of them were removed.
        if let Some(purged) = last_purged_log_id
            && self.log.reaches_back_to(purged.index).await?
        {
            self.log.purge(purged.index, PURGED, encode(&purged)?).await?;
        }
        Ok(LogState { last_purged_log_id, last_log_id })
    }

    async fn entries(&self, from: u64, to: u64) -> Result<Vec<Entry>, LogError> {
        if let Some(cached) = self.cache.lock().range(from, to) {
            return Ok(cached);
        }
        let rows = self.log.read(from, to).await?;
        rows.iter().map(|row| decode(&self.log, &row.bytes)).collect()
    }

    /// Makes rows of entries and puts the entries into the cache. Returns the rows, and whether they must be durable.
    fn take(&self, entries: impl IntoIterator<Item = Entry>) -> Result<(Vec<Row>, bool), LogError> {
        let (mut rows, mut sync) = (Vec::new(), false);
        let mut cache = self.cache.lock();
        for entry in entries {
            let kind = match &entry.payload {
                EntryPayload::Blank => BLANK,
                EntryPayload::Normal(_) => NORMAL,
                EntryPayload::Membership(_) => MEMBERSHIP,
            };
            sync |= match &entry.payload {
                EntryPayload::Normal(command) => command.0.must_sync(),
                EntryPayload::Blank | EntryPayload::Membership(_) => true,
            };
            if let EntryPayload::Membership(membership) = &entry.payload {
                self.alone.store(is_alone(membership), Ordering::Release);
            }
            let bytes = encode(&entry)?;
            let (index, weight) = (entry.log_id.index, bytes.len());
            cache.push(entry, weight);
            rows.push(Row { index, kind, bytes });
        }
        Ok((rows, sync || !self.alone.load(Ordering::Acquire)))
    }
}

/// Whether a membership has one node only.
pub(super) fn is_alone(membership: &Membership<u64, openraft::BasicNode>) -> bool {
    membership.nodes().count() == 1
}

impl Cache {
    /// Adds an entry after the last, or in place of it and all after it; an entry beyond a gap begins anew.
    fn push(&mut self, entry: Entry, weight: usize) {
        self.truncate(entry.log_id.index);
        if self.entries.back().is_some_and(|(last, _)| last.log_id.index + 1 < entry.log_id.index) {
            *self = Self::default();
        }
        self.bytes += weight;
        self.entries.push_back((entry, weight));
        while self.bytes > CACHE_BYTES && self.entries.len() > 1 {
            self.pop_front();
        }
    }

    fn pop_front(&mut self) {
        self.bytes -= self.entries.pop_front().map_or(0, |(_, weight)| weight);
    }

    fn first(&self) -> Option<u64> {
        self.entries.front().map(|(entry, _)| entry.log_id.index)
    }

    /// Entries with `from <= index < to`, if the cache reaches back to `from`.
    fn range(&self, from: u64, to: u64) -> Option<Vec<Entry>> {
        let skip = usize::try_from(from.checked_sub(self.first()?)?).ok()?;
        let entries = self.entries.iter().skip(skip).map(|(entry, _)| entry);
        Some(entries.take_while(|entry| entry.log_id.index < to).cloned().collect())
    }

    fn truncate(&mut self, index: u64) {
        while self.entries.back().is_some_and(|(entry, _)| entry.log_id.index >= index) {
            self.bytes -= self.entries.pop_back().map_or(0, |(_, weight)| weight);
        }
    }

    fn purge(&mut self, index: u64) {
        while self.first().is_some_and(|first| first <= index) {
            self.pop_front();
        }
    }
}

fn encode(value: &impl Serialize) -> Result<Vec<u8>, LogError> {
    // Only a type that postcard cannot hold fails here, and none of ours is one.
    postcard::to_stdvec(value).map_err(|error| LogError::Sqlite { path: "raft.db".into(), why: error.to_string() })
}

fn decode<T: DeserializeOwned>(log: &Log, bytes: &[u8]) -> Result<T, LogError> {
    postcard::from_bytes(bytes).map_err(|error| LogError::corrupt(log.path(), error.to_string()))
}

fn reading(error: LogError) -> StorageError {
    StorageIOError::read_logs(AnyError::new(&error)).into()
}

fn writing(error: LogError) -> StorageError {
    StorageIOError::write_logs(AnyError::new(&error)).into()
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<R: RangeBounds<u64> + Clone + Debug + Send>(
        &mut self,
        range: R,
    ) -> Result<Vec<Entry>, StorageError> {
        let from = match range.start_bound() {
            Bound::Included(from) => *from,
            Bound::Excluded(from) => from + 1,
            Bound::Unbounded => 0,
        };
        let to = match range.end_bound() {
            Bound::Included(to) => to.saturating_add(1),
            Bound::Excluded(to) => *to,
            Bound::Unbounded => u64::MAX,
        };
        self.entries(from, to).await.map_err(reading)
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, StorageError> {
        self.state().await.map_err(reading)
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote<u64>) -> Result<(), StorageError> {
        let bytes = encode(vote).map_err(writing)?;
        self.log.set(VOTE, bytes).await.map_err(|error| StorageIOError::write_vote(AnyError::new(&error)).into())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote<u64>>, StorageError> {
        let bytes = self.log.get(VOTE).await.map_err(reading)?;
        bytes.map(|bytes| decode(&self.log, &bytes)).transpose().map_err(reading)
    }

    /// Alone, what is in the log is committed: it is applied before the server starts, and in small portions.
    async fn read_committed(&mut self) -> Result<Option<LogId>, StorageError> {
        if !self.alone.load(Ordering::Acquire) {
            return Ok(None);
        }
        Ok(self.state().await.map_err(reading)?.last_log_id)
    }

    async fn append<I>(&mut self, entries: I, callback: LogFlushed<TypeConfig>) -> Result<(), StorageError>
    where
        I: IntoIterator<Item = Entry> + Send,
        I::IntoIter: Send,
    {
        let (rows, sync) = self.take(entries).map_err(writing)?;
        let done = move |result: Result<(), LogError>| callback.log_io_completed(result.map_err(std::io::Error::other));
        self.log.append(rows, sync, Box::new(done));
        Ok(())
    }

    async fn truncate(&mut self, log_id: LogId) -> Result<(), StorageError> {
        self.cache.lock().truncate(log_id.index);
        self.log.truncate(log_id.index).await.map_err(writing)
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), StorageError> {
        self.cache.lock().purge(log_id.index);
        let bytes = encode(&log_id).map_err(writing)?;
        self.log.purge(log_id.index, PURGED, bytes).await.map_err(writing)
    }
}
