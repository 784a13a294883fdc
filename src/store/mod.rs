//! The store: revisions, bytes and watch. It knows no kinds.
//!
//! # The contract (what `store/suite.rs` checks on every implementation)
//!
//! - A key is `bucket/…`, where a bucket is `group/plural`. Values are JSON bytes into which the store splices the revision.
//! - [`Store::commit`] is all or nothing: every guard holds at the instant of the commit, or nothing is written. Each write of a
//!   transaction gets a revision of its own, one more than the last; so a revision names one write.
//! - When `commit` returns `Ok`, the writes are durable (unless the transaction is [`Durability::Relaxed`]), visible in
//!   [`Store::snapshot`], and on their way to every watcher. When it returns an error other than [`CommitError::Unknown`],
//!   nothing was written.
//! - Revisions grow across restarts, and are never used twice, not even for writes that were lost because they were relaxed.
//! - A [`Snapshot`] is immutable and costs O(1). [`Store::snapshot_at`] answers for every revision in the history window,
//!   [`Expired`] before it.
//! - [`Store::watch`] from revision r yields every later event in the prefix exactly once and in order, or ends with [`Expired`].

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::rt::limits;

pub mod memory;
mod metrics;
pub mod raft;
pub mod sqlite;
pub mod state;
#[cfg(test)]
pub mod suite;
pub mod watch;

pub use state::{Mark, Snapshot};
pub use watch::{Indexed, Watch};

/// Position in the one total order of writes; 0 is the empty store.
pub type Revision = u64;

/// What is indexed beside the bytes of an object: labels, and the values of the kind's selectable fields.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Index {
    /// Sorted by key.
    pub labels: Vec<(Arc<str>, Arc<str>)>,
    /// Sorted by key: `spec.nodeName` and the like.
    pub fields: Vec<(Arc<str>, Arc<str>)>,
}

/// A value to be written: JSON with an empty revision string that the store fills in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Draft {
    /// The JSON, with `"resourceVersion":""` in its metadata.
    pub body: Bytes,
    /// Offset in `body` between those two quotes.
    pub revision_at: u32,
    pub index: Index,
}

/// A stored value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub key: Arc<str>,
    /// The write that made this value.
    pub revision: Revision,
    /// The write that made the key.
    pub created: Revision,
    /// The JSON with the revision in it.
    pub bytes: Bytes,
    /// Where the digits of the revision start in `bytes`.
    pub revision_at: u32,
    pub index: Index,
}

/// What must hold for a transaction to be written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Guard {
    /// The key is not there.
    Absent { key: Arc<str> },
    /// The key is there, with this revision.
    Unchanged { key: Arc<str>, revision: Revision },
    /// The key is there.
    Present { key: Arc<str> },
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Write {
    Put {
        key: Arc<str>,
        draft: Draft,
    },
    /// Removes the key if it is there; nothing happens, and no revision is used, if it is not.
    Delete {
        key: Arc<str>,
    },
}

/// Whether an acknowledgement waits for the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Durability {
    /// On disk, on a majority, before the acknowledgement.
    Synced,
    /// For Lease renewals and Events: reaches the disk with the next synced write, or soon after; may be lost in a power cut.
    Relaxed,
}

/// Guards and writes that happen together or not at all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transaction {
    pub guards: Vec<Guard>,
    pub writes: Vec<Write>,
    pub durability: Durability,
}

/// The outcome of one write, in the order of the transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Written {
    Put(Arc<Entry>),
    /// The last value, with the revision of the deletion spliced in; `None` if the key was not there.
    Deleted(Option<Arc<Entry>>),
}

/// Why a transaction was not written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommitError {
    /// A guard did not hold; `current` is what stands at its key.
    #[error("guard {index} does not hold")]
    Guard { index: usize, current: Option<Arc<Entry>> },
    /// Too many writes are waiting: try again after a second.
    #[error("too many writes are waiting")]
    Busy,
    /// The disk is full: reads go on, and writes when there is space again.
    #[error("the disk that holds {path} is full; free space there and writes go on by themselves")]
    DiskFull { path: String },
    /// The transaction is malformed (a key without a bucket, a draft without a place for its revision, or too large).
    #[error("invalid transaction: {0}")]
    Invalid(String),
    /// There is no leader: try again.
    #[error("no leader: {0}")]
    NoLeader(String),
    /// The outcome is not known (the server was stopped, or lost its leadership, while the write was on its way).
    #[error("the outcome of the write is unknown: {0}")]
    Unknown(String),
}

/// A revision that is older than the history window; list again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("revision {revision} is gone; the oldest is {oldest}")]
pub struct Expired {
    pub revision: Revision,
    pub oldest: Revision,
}

/// One change as a watcher sees it. Encoded bytes are shared by all watchers.
#[derive(Debug, Clone)]
pub struct Event {
    pub revision: Revision,
    pub change: Change,
}

/// What happened to a key.
#[derive(Debug, Clone)]
pub enum Change {
    /// Written; `previous` is the value before, `None` if the key is new.
    Put { entry: Arc<Entry>, previous: Option<Arc<Entry>> },
    /// Removed; `last` is the last value with the revision of the deletion spliced in, and its old index.
    Delete { last: Arc<Entry> },
}

impl Event {
    /// The key that changed.
    pub fn key(&self) -> &Arc<str> {
        match &self.change {
            Change::Put { entry, .. } => &entry.key,
            Change::Delete { last } => &last.key,
        }
    }
}

impl Transaction {
    /// Checks the form, before anything is replicated.
    ///
    /// # Errors
    /// [`CommitError::Invalid`] with what is wrong.
    fn check(&self) -> Result<(), CommitError> {
        let invalid = |key: &str, why: &str| Err(CommitError::Invalid(format!("{key:?} {why}")));
        for write in &self.writes {
            let (Write::Put { key, .. } | Write::Delete { key }) = write;
            if bucket(key).len() == key.len() {
                return invalid(key, "has no bucket");
            }
            let Write::Put { draft, .. } = write else { continue };
            let at = draft.revision_at as usize;
            if at == 0 || draft.body.get(at - 1..=at) != Some(b"\"\"".as_slice()) {
                return invalid(key, "has no place for its revision");
            }
            if draft.body.len() > limits::OBJECT_BYTES {
                return invalid(key, "is larger than the limit of an object");
            }
        }
        Ok(())
    }
}

/// The store.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// The newest state on this server.
    fn snapshot(&self) -> Snapshot;

    /// The state as it was at `revision`. A revision from the future waits for nothing: the newest state is returned.
    ///
    /// # Errors
    /// [`Expired`] if the revision is before the history window.
    fn snapshot_at(&self, revision: Revision) -> Result<Snapshot, Expired>;

    /// Writes all of a transaction or nothing. A call that is dropped half-way may still be written.
    ///
    /// # Errors
    /// [`CommitError`]; only `Busy`, `NoLeader` and `DiskFull` are worth the same try again.
    async fn commit(&self, transaction: Transaction) -> Result<Vec<Written>, CommitError>;

    /// Events after revision `from` under `prefix` (`bucket/` or `bucket/namespace/`).
    ///
    /// # Errors
    /// [`Expired`] if events after `from` are no longer held.
    fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, Expired>;

    /// Waits until this server's state holds every write that was acknowledged before the call.
    ///
    /// # Errors
    /// [`CommitError::NoLeader`].
    async fn barrier(&self) -> Result<(), CommitError>;

    /// Whether this server is the leader now, and news of it.
    fn leadership(&self) -> tokio::sync::watch::Receiver<bool>;
}

/// The bucket of a key or prefix: its first two segments.
pub fn bucket(key: &str) -> &str {
    let mut slashes = key.match_indices('/').map(|(at, _)| at);
    slashes.next();
    slashes.next().map_or(key, |second| &key[..second])
}
