//! The thread that owns the connection of the [`Log`](super::log::Log).

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use rusqlite::{Connection, Transaction, TransactionBehavior, params};
use tokio::sync::oneshot;

use super::crc;
use super::log::{Done, Health, LogError, Row, sql};
use super::reserve::Reserve;
use crate::rt::clock;
use crate::store::metrics;

/// What the thread is asked to do.
pub(super) enum Job {
    Write(Write),
    Read(Box<dyn FnOnce(&Connection) + Send>),
    Close(oneshot::Sender<()>),
}

/// A change, whether it must be durable, and who waits for it.
pub(super) struct Write {
    pub(super) op: Op,
    pub(super) sync: bool,
    pub(super) done: Done,
}

pub(super) enum Op {
    Append(Vec<Row>),
    Set(&'static str, Vec<u8>),
    Truncate(u64),
    Purge(u64),
}

/// Writes that go into one SQLite transaction at most.
const GROUP: usize = 64;
/// Rows that are purged at one time.
const PURGE_ROWS: u32 = 16;
/// How often a full disk is looked at again.
const FULL_RETRY: Duration = Duration::from_millis(500);

pub(super) struct Writer {
    connection: Connection,
    path: Arc<Path>,
    queue: Receiver<Job>,
    reserve: Reserve,
    health: Arc<Health>,
    /// What `PRAGMA synchronous` is set to.
    synced: bool,
    /// Rows up to here can go.
    purge_upto: Option<u64>,
}

impl Writer {
    pub(super) fn new(
        connection: Connection,
        path: Arc<Path>,
        queue: Receiver<Job>,
        reserve: Reserve,
        health: Arc<Health>,
    ) -> Self {
        Self { connection, path, queue, reserve, health, synced: true, purge_upto: None }
    }

    pub(super) fn run(mut self) {
        while let Some(first) = self.next() {
            let mut group = Vec::new();
            let mut job = Some(first);
            while let Some(current) = job {
                match current {
                    Job::Write(write) => group.push(write),
                    Job::Read(question) => {
                        self.write(std::mem::take(&mut group));
                        question(&self.connection);
                    }
                    Job::Close(reply) => {
                        self.write(std::mem::take(&mut group));
                        self.close(reply);
                        return;
                    }
                }
                job = if group.len() < GROUP { self.queue.try_recv().ok() } else { None };
            }
            self.write(group);
        }
    }

    /// The next job; meanwhile purges what can go, and looks after a full disk.
    fn next(&mut self) -> Option<Job> {
        loop {
            if self.health.is_full() {
                match self.queue.recv_timeout(FULL_RETRY) {
                    Ok(job) => return Some(job),
                    Err(RecvTimeoutError::Timeout) => self.try_restore(),
                    Err(RecvTimeoutError::Disconnected) => return None,
                }
            } else if let Some(upto) = self.purge_upto {
                if let Ok(job) = self.queue.try_recv() {
                    return Some(job);
                }
                self.purge_some(upto);
            } else {
                return self.queue.recv().ok();
            }
        }
    }

    fn try_restore(&mut self) {
        if self.reserve.restore().is_ok() {
            tracing::info!(path = %self.path.display(), "there is space on the disk again: writes go on");
            self.health.full.store(false, Ordering::Release);
        }
    }

    /// Writes a group in one transaction. A full disk is waited for: the consensus layer takes an error for the end.
    fn write(&mut self, group: Vec<Write>) {
        if group.is_empty() {
            return;
        }
        let sync = group.iter().any(|write| write.sync);
        let started = clock::instant();
        let mut result = self.transact(&group, sync);
        while let Err(LogError::Full) = result {
            self.make_space();
            result = self.transact(&group, sync);
        }
        if sync && result.is_ok() {
            self.health.syncs.fetch_add(1, Ordering::Relaxed);
            metrics::log_synced(started.elapsed());
        }
        if let Err(error) = &result {
            tracing::error!(%error, "the log could not be written");
        }
        for write in group {
            (write.done)(result.clone());
        }
    }

    fn make_space(&mut self) {
        let was_full = self.health.full.swap(true, Ordering::AcqRel);
        if !was_full {
            tracing::error!(path = %self.path.display(), "the disk is full: writes are refused until there is space");
        }
        let released = self.reserve.release();
        if was_full || released.is_err() {
            // The reserve was used up: nothing is left but to wait.
            std::thread::park_timeout(FULL_RETRY);
        }
    }

    fn transact(&mut self, group: &[Write], sync: bool) -> Result<(), LogError> {
        let mut purge_upto = self.purge_upto;
        let mut transact = || -> Result<(), rusqlite::Error> {
            if self.synced != sync {
                self.connection.pragma_update(None, "synchronous", if sync { "FULL" } else { "NORMAL" })?;
                self.synced = sync;
            }
            let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            for write in group {
                match &write.op {
                    Op::Append(rows) => append(&transaction, rows)?,
                    Op::Set(name, value) => {
                        let sum = crc(&[name.as_bytes(), value]);
                        let mut statement =
                            transaction.prepare_cached("INSERT OR REPLACE INTO meta (name, crc, value) VALUES (?1, ?2, ?3)")?;
                        statement.execute(params![name, sum, value])?;
                    }
                    Op::Truncate(index) => drop(transaction.execute("DELETE FROM log WHERE idx >= ?1", [sql(*index)])?),
                    Op::Purge(index) => purge_upto = purge_upto.max(Some(*index)),
                }
            }
            transaction.commit()
        };
        let result = transact().map_err(|error| LogError::of(&self.path, &error));
        if result.is_ok() {
            self.purge_upto = purge_upto;
        }
        result
    }

    fn purge_some(&mut self, upto: u64) {
        let purge = || -> Result<usize, rusqlite::Error> {
            if self.synced {
                self.connection.pragma_update(None, "synchronous", "NORMAL")?;
            }
            let mut statement = self
                .connection
                .prepare_cached("DELETE FROM log WHERE idx IN (SELECT idx FROM log WHERE idx <= ?1 ORDER BY idx LIMIT ?2)")?;
            statement.execute(params![sql(upto), PURGE_ROWS])
        };
        let purged = purge();
        self.synced = false;
        match purged {
            Ok(0) => self.purge_upto = None,
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(%error, path = %self.path.display(), "entries that are no longer needed could not be removed");
                self.purge_upto = None;
            }
        }
    }

    fn close(mut self, reply: oneshot::Sender<()>) {
        while let Some(upto) = self.purge_upto {
            self.purge_some(upto);
        }
        // Closing moves SQLite's write-ahead log into the file; this makes it do so durably.
        let synced = self.connection.pragma_update(None, "synchronous", "FULL");
        let closed = self.connection.close().map_err(|(_, error)| error);
        if let Err(error) = synced.and(closed) {
            tracing::error!(%error, path = %self.path.display(), "the log could not be closed; it is read again at the next start");
        }
        // The caller may have gone away.
        let _gone = reply.send(());
    }
}

fn append(transaction: &Transaction<'_>, rows: &[Row]) -> Result<(), rusqlite::Error> {
    let mut statement =
        transaction.prepare_cached("INSERT OR REPLACE INTO log (idx, kind, crc, bytes) VALUES (?1, ?2, ?3, ?4)")?;
    for row in rows {
        statement.execute(params![sql(row.index), row.kind, row.checksum(), row.bytes])?;
    }
    Ok(())
}
