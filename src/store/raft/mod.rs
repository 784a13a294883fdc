//! The store as it runs: every write is one entry of a log that openraft replicates; one server is a voter set of one.
//!
//! `commit -> batch.rs -> openraft -> log.rs (SQLite, fsync) -> machine.rs (state, watch) -> the answer`. A checkpoint of the state
//! is written now and then, and the log before it removed. At the start the checkpoint is read and the log after it applied.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use openraft::{BasicNode, ChangeMembers, ServerState, SnapshotPolicy};
use tokio::sync::{oneshot, watch};

mod batch;
mod log;
mod machine;
mod network;
mod types;

pub use network::{Call, NoTransport, Transport, TransportError};

use self::batch::{Batcher, Queue};
use self::log::{LogStore, is_alone};
use self::machine::Machine;
use self::network::Network;
use self::types::{Batch, Raft};
use super::sqlite::lock::DataDirLock;
use super::sqlite::log::Log;
use super::sqlite::{checkpoint, create_dir};
use super::watch::Window;
use super::{CommitError, Expired, Revision, Snapshot, Store, Transaction, Watch, Written, metrics};
use crate::rt::clock::{self, SharedClock};
use crate::rt::{TaskGroup, limits};

pub use super::sqlite::OpenError;

/// How a store is opened.
pub struct OpenOptions {
    /// The server's data directory; it is locked, and the store's files are in `store/` below it.
    pub data_dir: PathBuf,
    /// This server's number in the consensus group.
    pub node_id: u64,
    /// Where other members reach this server.
    pub address: String,
    pub clock: SharedClock,
    /// Owns the store's tasks. Shut it down last: what is still waiting is written first.
    pub tasks: TaskGroup,
    pub window: Window,
    pub transport: Arc<dyn Transport>,
    /// Whether an empty directory begins a group of its own. If not, the server waits until a leader adds it.
    pub bootstrap: bool,
}

impl OpenOptions {
    /// A group of one.
    pub fn new(data_dir: impl Into<PathBuf>, clock: SharedClock, tasks: TaskGroup) -> Self {
        Self {
            data_dir: data_dir.into(),
            node_id: 1,
            address: String::new(),
            clock,
            tasks,
            window: Window::default(),
            transport: Arc::new(NoTransport),
            bootstrap: true,
        }
    }
}

/// The replicated store on disk.
pub struct RaftStore {
    raft: Raft,
    machine: Machine,
    log: Log,
    queue: Queue,
    data_dir: PathBuf,
    leadership: watch::Receiver<bool>,
}

/// Figures for a human: `orch db status`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Stats {
    pub revision: Revision,
    /// The oldest revision that LIST and WATCH can go back to.
    pub oldest_revision: Revision,
    pub objects: usize,
    pub object_bytes: u64,
    /// Number of objects by bucket.
    pub buckets: Vec<(String, usize)>,
    pub waiting_transactions: usize,
    pub log_index: u64,
    pub log_syncs: u64,
    /// Bytes of log that no checkpoint covers.
    pub unsaved_log_bytes: usize,
    pub disk_full: bool,
    pub term: u64,
    pub leader: Option<u64>,
    pub members: Vec<(u64, String)>,
}

/// The folder of the store in the data directory.
const FILES: &str = "store";
/// How long opening waits for the leadership of a group of one.
const LEADERSHIP_WAIT: Duration = Duration::from_secs(5);

impl RaftStore {
    /// Opens the store in a data directory, or makes one. A group of one is its own leader before this returns.
    ///
    /// # Errors
    /// [`OpenError`], in words for the user: the directory is in use, a file is damaged, or cannot be read or written.
    pub async fn open(options: OpenOptions) -> Result<Arc<Self>, OpenError> {
        let lock = DataDirLock::acquire(&options.data_dir)?;
        let dir = options.data_dir.join(FILES);
        create_dir(&dir)?;
        let (log, machine) = load(&dir, &options).await?;
        match start(&options, log.clone(), machine, lock).await {
            Ok(store) => Ok(store),
            Err(error) => {
                log.close().await;
                Err(error)
            }
        }
    }

    /// Figures about the store at this moment.
    pub fn stats(&self) -> Stats {
        let snapshot = self.snapshot();
        let metrics = self.raft.metrics().borrow().clone();
        let member = |(id, node): (&u64, &BasicNode)| (*id, node.addr.clone());
        Stats {
            revision: snapshot.revision(),
            oldest_revision: self.machine.timeline().held().0,
            objects: snapshot.len(),
            object_bytes: snapshot.bytes(),
            buckets: snapshot.buckets().map(|(name, count)| (name.to_owned(), count)).collect(),
            waiting_transactions: self.queue.len(),
            log_index: metrics.last_log_index.unwrap_or(0),
            log_syncs: self.log.health().syncs(),
            unsaved_log_bytes: self.unsaved_log_bytes(),
            disk_full: self.log.health().is_full(),
            term: metrics.current_term,
            leader: metrics.current_leader,
            members: metrics.membership_config.nodes().map(member).collect(),
        }
    }

    /// Bytes of log that no checkpoint covers.
    pub fn unsaved_log_bytes(&self) -> usize {
        self.machine.unsaved_bytes()
    }

    /// Answers a call that another member's [`Transport`] sent.
    ///
    /// # Errors
    /// [`TransportError::Malformed`].
    pub async fn answer(&self, call: Call, body: &[u8]) -> Result<Bytes, TransportError> {
        network::answer(&self.raft, call, body).await
    }

    /// Makes a server a member: first it catches up, then it votes. Waits for both.
    ///
    /// # Errors
    /// [`CommitError::NoLeader`] if this server does not lead; [`CommitError::Unknown`] if it lost its leadership meanwhile.
    pub async fn add_member(&self, id: u64, address: &str) -> Result<(), CommitError> {
        self.raft.add_learner(id, BasicNode::new(address), true).await.map_err(batch::refused)?;
        self.change_members(ChangeMembers::AddVoterIds([id].into())).await
    }

    /// Takes a server out of the group.
    ///
    /// # Errors
    /// As [`add_member`](Self::add_member).
    pub async fn remove_member(&self, id: u64) -> Result<(), CommitError> {
        self.change_members(ChangeMembers::RemoveVoters([id].into())).await
    }

    async fn change_members(&self, change: ChangeMembers<u64, BasicNode>) -> Result<(), CommitError> {
        self.raft.change_membership(change, false).await.map(drop).map_err(batch::refused)
    }

    /// Writes a checkpoint of the state soon.
    ///
    /// # Errors
    /// [`CommitError::Unknown`] if the store was stopped.
    pub async fn checkpoint(&self) -> Result<(), CommitError> {
        self.raft.trigger().snapshot().await.map_err(|error| CommitError::Unknown(error.to_string()))
    }
}

/// Reads what is on disk, and checks that its parts fit together.
async fn load(dir: &Path, options: &OpenOptions) -> Result<(Log, Machine), OpenError> {
    let is_new = !dir.join("raft.db").exists();
    let (from, window, closing) = (dir.to_owned(), options.window, options.tasks.token());
    let machine = TaskGroup::blocking(move || Machine::open(&from, window, closing))
        .await
        .map_err(|error| OpenError::Consensus(error.to_string()))??;
    let applied = machine.position().last;
    if is_new && applied.is_some() {
        return Err(OpenError::corrupt(&dir.join("raft.db"), "it is missing, but there is a checkpoint"));
    }
    Ok((Log::open(dir)?, machine))
}

/// The membership that the files tell of, after a check that log and checkpoint fit together.
async fn membership(dir: &Path, log: &Log, machine: &Machine) -> Result<openraft::Membership<u64, BasicNode>, OpenError> {
    let purged = LogStore::purged(log).await.map_err(|error| unreadable(log, error.to_string()))?;
    let position = machine.position();
    if purged.map(|id| id.index) > position.last.map(|id| id.index) {
        return Err(OpenError::corrupt(&checkpoint::path(dir), "it is missing, or older than the log that needs it"));
    }
    let in_log = LogStore::last_membership(log).await.map_err(|error| unreadable(log, error.to_string()))?;
    Ok(in_log.unwrap_or_else(|| position.membership.membership().clone()))
}

fn unreadable(log: &Log, why: String) -> OpenError {
    OpenError::corrupt(log.path(), why)
}

fn config() -> openraft::Config {
    openraft::Config {
        cluster_name: "orch".to_owned(),
        heartbeat_interval: 500,
        election_timeout_min: 1_500,
        election_timeout_max: 3_000,
        install_snapshot_timeout: 30_000,
        max_payload_entries: 16,
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: 64,
        ..openraft::Config::default()
    }
}

async fn start(options: &OpenOptions, log: Log, machine: Machine, lock: DataDirLock) -> Result<Arc<RaftStore>, OpenError> {
    let membership = membership(&options.data_dir.join(FILES), &log, &machine).await?;
    let is_new = membership.nodes().next().is_none();
    if !is_new && membership.get_node(&options.node_id).is_none() {
        let members: Vec<u64> = membership.nodes().map(|(id, _)| *id).collect();
        return Err(OpenError::Consensus(format!("the data directory belongs to {members:?}, not to {}", options.node_id)));
    }
    let alone = if is_new { options.bootstrap } else { is_alone(&membership) };
    let config = config().validate().map_err(|error| OpenError::Consensus(error.to_string()))?;
    let log_store = LogStore::new(log.clone(), alone);
    let network = Network(Arc::clone(&options.transport));
    let raft = Raft::new(options.node_id, Arc::new(config), network, log_store, machine.clone())
        .await
        .map_err(|error| unreadable(&log, error.to_string()))?;
    let consensus = |error: &dyn std::error::Error| OpenError::Consensus(error.to_string());
    if is_new && options.bootstrap {
        let members = [(options.node_id, BasicNode::new(&options.address))];
        raft.initialize(std::collections::BTreeMap::from(members)).await.map_err(|error| consensus(&error))?;
    } else if alone {
        raft.trigger().elect().await.map_err(|error| consensus(&error))?;
    }
    let (queue, batcher) =
        Queue::new(raft.clone(), machine.clone(), Arc::clone(&options.clock), Arc::clone(log.health()), options.data_dir.clone());
    let (leads, mut leadership) = watch::channel(false);
    let store = RaftStore {
        raft: raft.clone(),
        machine: machine.clone(),
        log: log.clone(),
        queue,
        data_dir: options.data_dir.clone(),
        leadership: leadership.clone(),
    };
    run(&options.tasks, Parts { raft, machine, log, lock }, batcher, leads, Arc::clone(&options.clock));
    if alone && tokio::time::timeout(LEADERSHIP_WAIT, leadership.wait_for(|leads| *leads)).await.is_err() {
        tracing::warn!("the store answers reads, but cannot write yet");
    }
    Ok(Arc::new(store))
}

/// What must be stopped in order.
struct Parts {
    raft: Raft,
    machine: Machine,
    log: Log,
    lock: DataDirLock,
}

fn run(tasks: &TaskGroup, parts: Parts, batcher: Batcher, leads: watch::Sender<bool>, clock: SharedClock) {
    let token = tasks.token();
    let (drained, is_drained) = oneshot::channel();
    tasks.critical("store batcher", async move {
        batcher.run(token).await;
        // The supervisor waits for this; it is gone only after a failure.
        let _drained = drained.send(());
    });
    let (raft, machine, token) = (parts.raft.clone(), parts.machine.clone(), tasks.token());
    tasks.critical("store checkpoints", async move {
        loop {
            tokio::select! {
                () = token.cancelled() => return,
                () = machine.due() => {}
            }
            if let Err(error) = raft.trigger().snapshot().await {
                tracing::error!(%error, "no checkpoint can be written");
                return;
            }
        }
    });
    let token = tasks.token();
    tasks.critical("store", async move {
        tokio::select! {
            () = token.cancelled() => {}
            () = lead(&parts.raft, &parts.machine, leads, clock) => {}
        }
        stop(parts, is_drained, token.is_cancelled()).await;
    });
}

/// Follows the elections. A leader goes on above the ceiling of relaxed writes before it says that it leads. Ends with the raft core.
async fn lead(raft: &Raft, machine: &Machine, leads: watch::Sender<bool>, clock: SharedClock) {
    let mut server = raft.server_metrics();
    loop {
        let (is_leader, alone) = {
            let server = server.borrow_and_update();
            (server.state == ServerState::Leader, is_alone(server.membership_config.membership()))
        };
        // Alone, there is nobody to send a heartbeat to, and nobody to be elected by.
        raft.runtime_config().tick(!(is_leader && alone));
        let was_leader = *leads.borrow();
        if is_leader && !was_leader {
            let (revision, ceiling) = machine.revisions();
            let batch = Batch { time_ms: clock.now().as_millisecond(), jump: true, ceiling: None, transactions: vec![] };
            let jumped = if ceiling > revision { batch::write(raft, batch).await.map(drop) } else { raft_barrier(raft).await };
            match jumped {
                Ok(()) => drop(leads.send_replace(true)),
                Err(error) => tracing::warn!(%error, "elected, but not leading yet"),
            }
        } else if !is_leader && was_leader {
            leads.send_replace(false);
        }
        metrics::leader(*leads.borrow());
        if server.changed().await.is_err() {
            tracing::error!("the replicated log has stopped");
            return;
        }
    }
}

/// Writes what waits, stops openraft, closes the files, and gives the directory back.
async fn stop(parts: Parts, is_drained: oneshot::Receiver<()>, is_orderly: bool) {
    let Parts { raft, machine, log, lock } = parts;
    if is_orderly && is_drained.await.is_err() {
        tracing::error!("the batcher ended before its queue was empty");
    }
    if let Err(error) = raft.shutdown().await {
        tracing::error!(%error, "the replicated log did not stop in order");
    }
    machine.idle().await;
    log.close().await;
    machine.timeline().close();
    drop(lock);
}

async fn raft_barrier(raft: &Raft) -> Result<(), CommitError> {
    raft.ensure_linearizable().await.map(drop).map_err(|error| CommitError::NoLeader(error.to_string()))
}

#[async_trait]
impl Store for RaftStore {
    fn snapshot(&self) -> Snapshot {
        self.machine.timeline().snapshot()
    }

    fn snapshot_at(&self, revision: Revision) -> Result<Snapshot, Expired> {
        self.machine.timeline().snapshot_at(revision)
    }

    async fn commit(&self, transaction: Transaction) -> Result<Vec<Written>, CommitError> {
        let started = clock::instant();
        let result = match transaction.check() {
            Err(error) => Err(error),
            Ok(()) if !*self.leadership.borrow() => Err(CommitError::NoLeader("this server does not lead".to_owned())),
            Ok(()) if self.log.health().is_full() => Err(CommitError::DiskFull { path: self.data_dir.display().to_string() }),
            Ok(()) => self.queue.commit(transaction).await,
        };
        metrics::committed(&result, started.elapsed());
        result
    }

    fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, Expired> {
        self.machine.timeline().watch(prefix, from)
    }

    async fn barrier(&self) -> Result<(), CommitError> {
        match tokio::time::timeout(limits::BARRIER_TIMEOUT, raft_barrier(&self.raft)).await {
            Ok(result) => result,
            Err(_) => Err(CommitError::NoLeader("no majority answers".to_owned())),
        }
    }

    fn leadership(&self) -> watch::Receiver<bool> {
        self.leadership.clone()
    }
}

#[cfg(test)]
mod tests;
