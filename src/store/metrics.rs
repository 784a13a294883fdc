//! The store's metrics, under the names that dashboards for Kubernetes and etcd know.

use std::sync::OnceLock;
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

use super::CommitError;
use super::state::Snapshot;
use crate::rt::metrics::register;

/// The outcome of a commit, as a label.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelValue)]
enum Outcome {
    Written,
    Guard,
    Busy,
    DiskFull,
    Failed,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Commits {
    operation: &'static str,
    outcome: Outcome,
}

struct Families {
    commits: Family<Commits, Histogram>,
    batch: Histogram,
    log_sync: Histogram,
    revision: Gauge,
    bytes: Gauge,
    has_leader: Gauge,
    checkpoints: Counter,
}

/// From a quarter of a millisecond to four seconds.
fn seconds() -> Histogram {
    Histogram::new(prometheus_client::metrics::histogram::exponential_buckets(0.000_25, 2.0, 15))
}

fn families() -> &'static Families {
    static FAMILIES: OnceLock<Families> = OnceLock::new();
    FAMILIES.get_or_init(|| Families {
        commits: register(
            "etcd_request_duration_seconds",
            "Time from a transaction's arrival at the store to its outcome",
            Family::new_with_constructor(seconds as fn() -> Histogram),
        ),
        batch: register(
            "etcd_server_proposal_batch_size",
            "Transactions in one entry of the log",
            Histogram::new(prometheus_client::metrics::histogram::exponential_buckets(1.0, 2.0, 10)),
        ),
        log_sync: register(
            "etcd_disk_wal_fsync_duration_seconds",
            "Time to write a group to the log and make it durable",
            seconds(),
        ),
        revision: register("etcd_mvcc_revision", "The newest revision", Gauge::default()),
        bytes: register("apiserver_storage_size_bytes", "Bytes of all objects", Gauge::default()),
        has_leader: register("etcd_server_has_leader", "Whether this server is the leader", Gauge::default()),
        checkpoints: register("etcd_disk_snapshots", "Checkpoints of the state written", Counter::default()),
    })
}

pub(super) fn committed<T>(result: &Result<T, CommitError>, took: Duration) {
    let outcome = match result {
        Ok(_) => Outcome::Written,
        Err(CommitError::Guard { .. }) => Outcome::Guard,
        Err(CommitError::Busy) => Outcome::Busy,
        Err(CommitError::DiskFull { .. }) => Outcome::DiskFull,
        Err(CommitError::Invalid(_) | CommitError::NoLeader(_) | CommitError::Unknown(_)) => Outcome::Failed,
    };
    families().commits.get_or_create(&Commits { operation: "commit", outcome }).observe(took.as_secs_f64());
}

pub(super) fn batched(transactions: usize) {
    families().batch.observe(transactions as f64);
}

pub(super) fn log_synced(took: Duration) {
    families().log_sync.observe(took.as_secs_f64());
}

pub(super) fn applied(snapshot: &Snapshot) {
    families().revision.set(i64::try_from(snapshot.revision()).unwrap_or(i64::MAX));
    families().bytes.set(i64::try_from(snapshot.bytes()).unwrap_or(i64::MAX));
}

pub(super) fn leader(is_leader: bool) {
    families().has_leader.set(i64::from(is_leader));
}

pub(super) fn checkpointed() {
    families().checkpoints.inc();
}
