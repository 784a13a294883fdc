//! openraft's state machine: applies batches to the state, publishes it, and writes checkpoints of it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use openraft::storage::{RaftStateMachine, Snapshot as RaftSnapshot};
use openraft::{AnyError, EntryPayload, RaftSnapshotBuilder, StorageIOError};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::types::{Answers, Batch, Entry, LogId, SnapshotMeta, StorageError, StoredMembership, TypeConfig};
use crate::rt::TaskGroup;
use crate::store::metrics;
use crate::store::sqlite::{OpenError, checkpoint};
use crate::store::state::{Record, Snapshot, State};
use crate::store::watch::{Timeline, Window};

/// Bytes of log after which a checkpoint is due at once, if they are also half of the bytes of the state: to read a checkpoint and
/// apply the log after it must be quick, and yet a busy server must not write its whole state all the time.
const CHECKPOINT_BYTES: usize = 64 << 20;
/// Bytes of log after which a checkpoint is due if the last one is [`CHECKPOINT_AGE_MS`] old.
const CHECKPOINT_BYTES_MIN: usize = 4 << 20;
const CHECKPOINT_AGE_MS: i64 = 60_000;
/// How long a checkpoint that could not be written waits for its next try.
const CHECKPOINT_RETRY: Duration = Duration::from_secs(10);

/// Where in the log a state stands.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Position {
    pub(super) last: Option<LogId>,
    pub(super) membership: StoredMembership,
}

/// The state machine; clones share it.
#[derive(Clone)]
pub(super) struct Machine(Arc<Inner>);

struct Inner {
    dir: PathBuf,
    applied: Mutex<Applied>,
    timeline: Arc<Timeline>,
    /// The checkpoint on disk.
    checkpoint: Mutex<Option<SnapshotMeta>>,
    /// Held while a checkpoint is written.
    writing: tokio::sync::Mutex<()>,
    due: Notify,
    closing: CancellationToken,
}

struct Applied {
    state: State,
    position: Position,
    /// The clock of the leader at the last batch.
    time_ms: i64,
    checkpoint_ms: i64,
    /// Bytes of log since the last checkpoint.
    unsaved: usize,
}

impl Machine {
    /// Reads the checkpoint in `dir`.
    pub(super) fn open(dir: &Path, window: Window, closing: CancellationToken) -> Result<Self, OpenError> {
        checkpoint::remove_temporaries(dir).map_err(|source| OpenError::Io {
            action: "remove old files in",
            path: dir.to_owned(),
            source,
        })?;
        let path = checkpoint::path(dir);
        let (snapshot, position, time_ms) = match checkpoint::read(&path)? {
            Some((header, snapshot)) => (snapshot, decode(&path, &header.position)?, header.time_ms),
            None => (Snapshot::default(), Position::default(), 0),
        };
        let applied =
            Applied { state: snapshot.state().clone(), time_ms, checkpoint_ms: time_ms, unsaved: 0, position: position.clone() };
        Ok(Self(Arc::new(Inner {
            dir: dir.to_owned(),
            applied: Mutex::new(applied),
            timeline: Timeline::new(snapshot, window),
            checkpoint: Mutex::new(position.last.map(|_| meta(&position))),
            writing: tokio::sync::Mutex::default(),
            due: Notify::new(),
            closing,
        })))
    }

    pub(super) fn timeline(&self) -> &Arc<Timeline> {
        &self.0.timeline
    }

    pub(super) fn position(&self) -> Position {
        self.0.applied.lock().position.clone()
    }

    /// The newest revision and the ceiling.
    pub(super) fn revisions(&self) -> (u64, u64) {
        let applied = self.0.applied.lock();
        (applied.state.revision, applied.state.ceiling)
    }

    /// Bytes of log that no checkpoint covers.
    pub(super) fn unsaved_bytes(&self) -> usize {
        self.0.applied.lock().unsaved
    }

    /// Waits until a checkpoint is due.
    pub(super) async fn due(&self) {
        self.0.due.notified().await;
    }

    /// Waits until no checkpoint is being written.
    pub(super) async fn idle(&self) {
        drop(self.0.writing.lock().await);
    }

    fn apply_all(&self, entries: impl IntoIterator<Item = Entry>) -> Vec<Answers> {
        let mut applied = self.0.applied.lock();
        let (mut records, before) = (Vec::new(), applied.state.revision);
        let answers = entries.into_iter().map(|entry| applied.apply(entry, &mut records)).collect();
        if applied.state.revision != before {
            let snapshot = Snapshot::new(applied.state.clone());
            metrics::applied(&snapshot);
            self.0.timeline.publish(snapshot, records, applied.time_ms);
        }
        if applied.is_checkpoint_due() {
            self.0.due.notify_one();
        }
        answers
    }

    /// Writes the state as it is now.
    async fn save(&self) -> io::Result<SnapshotMeta> {
        let _writing = self.0.writing.lock().await;
        let (snapshot, position, time_ms, unsaved) = {
            let applied = self.0.applied.lock();
            (Snapshot::new(applied.state.clone()), applied.position.clone(), applied.time_ms, applied.unsaved)
        };
        let (dir, bytes) = (self.0.dir.clone(), postcard::to_stdvec(&position).map_err(io::Error::other)?);
        TaskGroup::blocking(move || checkpoint::write(&dir, &snapshot, time_ms, bytes)).await.map_err(io::Error::other)??;
        let mut applied = self.0.applied.lock();
        applied.unsaved = applied.unsaved.saturating_sub(unsaved);
        applied.checkpoint_ms = time_ms;
        let meta = meta(&position);
        *self.0.checkpoint.lock() = Some(meta.clone());
        metrics::checkpointed();
        Ok(meta)
    }

    /// Takes over a checkpoint that the leader sent.
    async fn install(&self, meta: &SnapshotMeta, file: tokio::fs::File) -> io::Result<()> {
        let _writing = self.0.writing.lock().await;
        let (dir, file) = (self.0.dir.clone(), file.into_std().await);
        let load = move || -> io::Result<(checkpoint::Header, Snapshot)> {
            let (header, snapshot) = checkpoint::read_from(&checkpoint::path(&dir), file).map_err(io::Error::other)?;
            checkpoint::write(&dir, &snapshot, header.time_ms, header.position.clone())?;
            Ok((header, snapshot))
        };
        let (header, snapshot) = TaskGroup::blocking(load).await.map_err(io::Error::other)??;
        let mut applied = self.0.applied.lock();
        *applied = Applied {
            state: snapshot.state().clone(),
            position: Position { last: meta.last_log_id, membership: meta.last_membership.clone() },
            time_ms: header.time_ms,
            checkpoint_ms: header.time_ms,
            unsaved: 0,
        };
        self.0.timeline.reset(snapshot);
        *self.0.checkpoint.lock() = Some(meta.clone());
        Ok(())
    }

    async fn file(&self) -> io::Result<Option<RaftSnapshot<TypeConfig>>> {
        let Some(meta) = self.0.checkpoint.lock().clone() else { return Ok(None) };
        let file = tokio::fs::File::open(checkpoint::path(&self.0.dir)).await?;
        Ok(Some(RaftSnapshot { meta, snapshot: Box::new(file) }))
    }
}

impl Applied {
    fn apply(&mut self, entry: Entry, records: &mut Vec<Record>) -> Answers {
        self.position.last = Some(entry.log_id);
        match entry.payload {
            EntryPayload::Blank => Answers::default(),
            EntryPayload::Membership(membership) => {
                self.position.membership = StoredMembership::new(Some(entry.log_id), membership);
                Answers::default()
            }
            EntryPayload::Normal(command) => self.apply_batch(&command.0, records),
        }
    }

    fn apply_batch(&mut self, batch: &Batch, records: &mut Vec<Record>) -> Answers {
        self.time_ms = self.time_ms.max(batch.time_ms);
        self.unsaved += batch.weight();
        if batch.jump {
            self.state.revision = self.state.revision.max(self.state.ceiling);
        }
        if let Some(ceiling) = batch.ceiling {
            self.state.ceiling = self.state.ceiling.max(ceiling);
        }
        Answers { outcomes: batch.transactions.iter().map(|transaction| self.state.apply(transaction, records)).collect() }
    }

    fn is_checkpoint_due(&self) -> bool {
        let is_old = self.time_ms.saturating_sub(self.checkpoint_ms) >= CHECKPOINT_AGE_MS;
        let many = CHECKPOINT_BYTES.max(usize::try_from(self.state.bytes() / 2).unwrap_or(usize::MAX));
        self.unsaved >= many || (self.unsaved >= CHECKPOINT_BYTES_MIN && is_old)
    }
}

fn meta(position: &Position) -> SnapshotMeta {
    let id = position.last.map_or_else(|| "0".to_owned(), |last| format!("{}-{}", last.leader_id.term, last.index));
    SnapshotMeta { last_log_id: position.last, last_membership: position.membership.clone(), snapshot_id: id }
}

fn decode(path: &Path, bytes: &[u8]) -> Result<Position, OpenError> {
    postcard::from_bytes(bytes).map_err(|error| OpenError::corrupt(path, error.to_string()))
}

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), StorageError> {
        let position = self.position();
        Ok((position.last, position.membership))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Answers>, StorageError>
    where
        I: IntoIterator<Item = Entry> + Send,
        I::IntoIter: Send,
    {
        Ok(self.apply_all(entries))
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<tokio::fs::File>, StorageError> {
        let failed = |error: io::Error| StorageIOError::write_snapshot(None, AnyError::new(&error));
        let file = checkpoint::unnamed(&self.0.dir).map_err(failed)?;
        Ok(Box::new(tokio::fs::File::from_std(file)))
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, file: Box<tokio::fs::File>) -> Result<(), StorageError> {
        let failed = |error: io::Error| StorageIOError::write_snapshot(Some(meta.signature()), AnyError::new(&error));
        Ok(self.install(meta, *file).await.map_err(failed)?)
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<RaftSnapshot<TypeConfig>>, StorageError> {
        Ok(self.file().await.map_err(|error| StorageIOError::read_snapshot(None, AnyError::new(&error)))?)
    }
}

impl RaftSnapshotBuilder<TypeConfig> for Machine {
    /// Tries until it works: openraft takes an error for the end, but a full disk is not.
    async fn build_snapshot(&mut self) -> Result<RaftSnapshot<TypeConfig>, StorageError> {
        let failed = |error: io::Error| StorageIOError::write_snapshot(None, AnyError::new(&error));
        loop {
            let error = match self.save().await {
                Ok(meta) => {
                    let file = tokio::fs::File::open(checkpoint::path(&self.0.dir)).await.map_err(failed)?;
                    return Ok(RaftSnapshot { meta, snapshot: Box::new(file) });
                }
                Err(error) => error,
            };
            tracing::warn!(%error, dir = %self.0.dir.display(), "the checkpoint could not be written; trying again");
            tokio::select! {
                () = self.0.closing.cancelled() => return Err(failed(error).into()),
                () = tokio::time::sleep(CHECKPOINT_RETRY) => {}
            }
        }
    }
}
