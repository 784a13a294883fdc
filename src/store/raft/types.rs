//! The types that openraft is used with.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::store::{CommitError, Durability, Revision, Transaction, Write, Written};

openraft::declare_raft_types!(
    /// One voter or several, entries in postcard, snapshots as files.
    pub TypeConfig:
        D = Command,
        R = Answers,
        NodeId = u64,
        Node = openraft::BasicNode,
        Entry = openraft::Entry<TypeConfig>,
        SnapshotData = tokio::fs::File,
);

pub(super) type Raft = openraft::Raft<TypeConfig>;
pub(super) type LogId = openraft::LogId<u64>;
pub(super) type Entry = openraft::Entry<TypeConfig>;
pub(super) type StoredMembership = openraft::StoredMembership<u64, openraft::BasicNode>;
pub(super) type SnapshotMeta = openraft::SnapshotMeta<u64, openraft::BasicNode>;
pub(super) type StorageError = openraft::StorageError<u64>;

/// What an entry of the log says. Clones share it: the log's cache and the state machine hold the same.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Command(pub(super) Arc<Batch>);

/// Transactions that were waiting at the same time.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Batch {
    /// When the leader wrote it.
    pub time_ms: i64,
    /// Go on above the ceiling: writes up to there may have been acknowledged and then lost.
    pub jump: bool,
    /// From now on, revisions up to here may be given to relaxed writes.
    pub ceiling: Option<Revision>,
    pub transactions: Vec<Transaction>,
}

impl Batch {
    /// Whether it must be on disk before it counts.
    pub(super) fn must_sync(&self) -> bool {
        self.jump
            || self.ceiling.is_some()
            || self.transactions.iter().any(|transaction| transaction.durability == Durability::Synced)
    }

    /// About the bytes it takes in the log.
    pub(super) fn weight(&self) -> usize {
        self.transactions.iter().map(Transaction::weight).sum()
    }

    /// The revisions it uses at most.
    pub(super) fn writes(&self) -> u64 {
        self.transactions.iter().map(|transaction| transaction.writes.len() as u64).sum()
    }
}

impl Transaction {
    /// About the bytes it takes in the log and in memory.
    pub(super) fn weight(&self) -> usize {
        const OVERHEAD: usize = 128;
        let write = |write: &Write| match write {
            Write::Put { key, draft } => OVERHEAD + key.len() + draft.body.len(),
            Write::Delete { key } => OVERHEAD + key.len(),
        };
        OVERHEAD * (1 + self.guards.len()) + self.writes.iter().map(write).sum::<usize>()
    }
}

/// The outcomes of a batch, in its order. They are for the proposer on this server alone and never travel.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Answers {
    #[serde(skip)]
    pub(super) outcomes: Vec<Result<Vec<Written>, CommitError>>,
}
