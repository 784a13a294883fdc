//! The batcher in front of the log: what waits at the same time becomes one entry, so that one fsync carries it all.
//!
//! One batch is on its way at a time. So the batcher knows the revisions that the next one can use, and more in flight was slower.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use openraft::BasicNode;
use openraft::error::{ClientWriteError, RaftError};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::machine::Machine;
use super::types::{Batch, Command, Raft};
use crate::rt::clock::SharedClock;
use crate::rt::limits;
use crate::store::sqlite::log::Health;
use crate::store::{CommitError, Transaction, Written, metrics};

/// Revisions that are set aside for relaxed writes at one time.
const CEILING_STEP: u64 = 10_000;
/// Revisions below the ceiling at which a batch that is synced anyway raises it.
const CEILING_MARGIN: u64 = 2_000;

type Outcome = Result<Vec<Written>, CommitError>;

/// A transaction that waits.
struct Proposal {
    transaction: Transaction,
    weight: usize,
    reply: oneshot::Sender<Outcome>,
}

/// The bounded queue of transactions.
pub(super) struct Queue {
    sender: mpsc::Sender<Proposal>,
    bytes: Arc<AtomicUsize>,
}

/// Takes transactions from the queue and proposes them.
pub(super) struct Batcher {
    queue: mpsc::Receiver<Proposal>,
    bytes: Arc<AtomicUsize>,
    pub(super) raft: Raft,
    pub(super) machine: Machine,
    pub(super) clock: SharedClock,
    pub(super) health: Arc<Health>,
    pub(super) data_dir: PathBuf,
}

impl Queue {
    /// A queue, and the batcher that empties it.
    pub(super) fn new(
        raft: Raft,
        machine: Machine,
        clock: SharedClock,
        health: Arc<Health>,
        data_dir: PathBuf,
    ) -> (Self, Batcher) {
        let (sender, queue) = mpsc::channel(limits::WRITE_QUEUE);
        let bytes = Arc::new(AtomicUsize::new(0));
        (Self { sender, bytes: Arc::clone(&bytes) }, Batcher { queue, bytes, raft, machine, clock, health, data_dir })
    }

    /// Transactions that wait.
    pub(super) fn len(&self) -> usize {
        self.sender.max_capacity() - self.sender.capacity()
    }

    /// Puts a transaction into the queue and waits for its outcome.
    pub(super) async fn commit(&self, transaction: Transaction) -> Outcome {
        let weight = transaction.weight();
        if self.bytes.load(Ordering::Relaxed) > limits::WRITE_QUEUE_BYTES {
            return Err(CommitError::Busy);
        }
        let (reply, outcome) = oneshot::channel();
        self.bytes.fetch_add(weight, Ordering::Relaxed);
        if let Err(error) = self.sender.try_send(Proposal { transaction, weight, reply }) {
            self.bytes.fetch_sub(weight, Ordering::Relaxed);
            return Err(match error {
                mpsc::error::TrySendError::Full(_) => CommitError::Busy,
                mpsc::error::TrySendError::Closed(_) => CommitError::NoLeader("the server is stopping".to_owned()),
            });
        }
        outcome.await.unwrap_or_else(|_| Err(CommitError::Unknown("the server stopped".to_owned())))
    }
}

impl Batcher {
    /// Runs until `token` is cancelled and the queue is empty.
    pub(super) async fn run(mut self, token: CancellationToken) {
        let mut left_over = None;
        loop {
            let first = match left_over.take() {
                Some(first) => Some(first),
                None => tokio::select! {
                    biased;
                    first = self.queue.recv() => first,
                    () = token.cancelled(), if !self.queue.is_closed() => {
                        self.queue.close();
                        continue;
                    }
                },
            };
            let Some(first) = first else { return };
            let proposals;
            (proposals, left_over) = self.collect(first);
            self.propose(proposals).await;
        }
    }

    /// What is waiting, up to the limits of a batch; the second part did not fit.
    fn collect(&mut self, first: Proposal) -> (Vec<Proposal>, Option<Proposal>) {
        let mut weight = first.weight;
        let mut proposals = vec![first];
        while proposals.len() < limits::BATCH_WRITES {
            let Ok(next) = self.queue.try_recv() else { break };
            weight += next.weight;
            if weight > limits::BATCH_BYTES {
                return (proposals, Some(next));
            }
            proposals.push(next);
        }
        (proposals, None)
    }

    async fn propose(&self, proposals: Vec<Proposal>) {
        let weight: usize = proposals.iter().map(|proposal| proposal.weight).sum();
        self.bytes.fetch_sub(weight, Ordering::Relaxed);
        let (transactions, replies): (Vec<_>, Vec<_>) =
            proposals.into_iter().map(|proposal| (proposal.transaction, proposal.reply)).unzip();
        let outcomes = if self.health.is_full() {
            Err(CommitError::DiskFull { path: self.data_dir.display().to_string() })
        } else {
            metrics::batched(transactions.len());
            write(&self.raft, self.batch(transactions)).await
        };
        let mut outcomes = match outcomes {
            Ok(outcomes) => outcomes.into_iter().map(Some).collect(),
            Err(error) => vec![Some(Err(error)); replies.len()],
        };
        for (index, reply) in replies.into_iter().enumerate() {
            let outcome = outcomes.get_mut(index).and_then(Option::take);
            let outcome = outcome.unwrap_or_else(|| Err(CommitError::Unknown("the log gave no outcome".to_owned())));
            // Whoever asked may have gone away; the write stands.
            drop(reply.send(outcome));
        }
    }

    fn batch(&self, transactions: Vec<Transaction>) -> Batch {
        let mut batch = Batch { time_ms: self.clock.now().as_millisecond(), jump: false, ceiling: None, transactions };
        let (revision, ceiling) = self.machine.revisions();
        let next = revision + batch.writes();
        // A synced batch raises the ceiling on the way, if relaxed writes are in use at all.
        let must_raise = if batch.must_sync() { ceiling > 0 && next + CEILING_MARGIN > ceiling } else { next > ceiling };
        if must_raise {
            batch.ceiling = Some(next + CEILING_STEP);
        }
        batch
    }
}

/// Proposes one batch and waits until it is applied.
pub(super) async fn write(raft: &Raft, batch: Batch) -> Result<Vec<Outcome>, CommitError> {
    raft.client_write(Command(Arc::new(batch))).await.map(|response| response.data.outcomes).map_err(refused)
}

/// What an error of openraft means for a write.
pub(super) fn refused(error: RaftError<u64, ClientWriteError<u64, BasicNode>>) -> CommitError {
    match error {
        RaftError::APIError(ClientWriteError::ForwardToLeader(forward)) => CommitError::NoLeader(match forward.leader_id {
            Some(id) => format!("server {id} is the leader"),
            None => "an election is under way".to_owned(),
        }),
        RaftError::APIError(ClientWriteError::ChangeMembershipError(error)) => CommitError::Invalid(error.to_string()),
        RaftError::Fatal(error) => CommitError::Unknown(error.to_string()),
    }
}
