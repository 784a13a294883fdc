//! The log on disk: rows of bytes with consecutive indexes and a checksum each, and a few named values, in one SQLite file.
//!
//! One thread owns the connection. Everything that waits for it goes into one SQLite transaction, so that one fsync carries it all
//! (group commit). A transaction in which nothing must be durable does without the fsync.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;

use parking_lot::Mutex;
use rusqlite::{Connection, ErrorCode, OptionalExtension};
use tokio::sync::oneshot;

use super::reserve::Reserve;
use super::writer::{Job, Op, Write, Writer};
use super::{OpenError, crc};

/// One row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    pub index: u64,
    /// What the bytes are, for [`Log::last_of_kind`].
    pub kind: u8,
    pub bytes: Vec<u8>,
}

/// Why the log could not be read or written.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LogError {
    #[error("the disk is full")]
    Full,
    #[error("{} is damaged: {why}", path.display())]
    Corrupt { path: PathBuf, why: String },
    #[error("{}: {why}", path.display())]
    Sqlite { path: PathBuf, why: String },
    #[error("the log was closed")]
    Closed,
}

/// What is called when a write is done.
pub type Done = Box<dyn FnOnce(Result<(), LogError>) + Send>;

/// The log; clones share it.
#[derive(Clone)]
pub struct Log {
    path: Arc<Path>,
    jobs: mpsc::Sender<Job>,
    health: Arc<Health>,
    thread: Arc<Mutex<Option<JoinHandle<()>>>>,
}

/// What others may know of the writer thread at any time.
#[derive(Debug, Default)]
pub struct Health {
    pub(super) full: AtomicBool,
    pub(super) syncs: AtomicU64,
}

impl Health {
    /// Whether writes must be refused because there is no space.
    pub fn is_full(&self) -> bool {
        self.full.load(Ordering::Acquire)
    }

    /// How often the log was made durable.
    pub fn syncs(&self) -> u64 {
        self.syncs.load(Ordering::Relaxed)
    }
}

const SETUP: &str = "
    PRAGMA locking_mode = EXCLUSIVE;
    PRAGMA journal_mode = WAL;
    PRAGMA synchronous = FULL;
    PRAGMA wal_autocheckpoint = 2000;
    PRAGMA journal_size_limit = 16777216;
    PRAGMA cache_size = -2048;
    PRAGMA temp_store = MEMORY;
";

const SCHEMA: &str = "
    BEGIN IMMEDIATE;
    CREATE TABLE log (idx INTEGER PRIMARY KEY, kind INTEGER NOT NULL, crc INTEGER NOT NULL, bytes BLOB NOT NULL);
    CREATE TABLE meta (name TEXT PRIMARY KEY, crc INTEGER NOT NULL, value BLOB NOT NULL) WITHOUT ROWID;
    PRAGMA user_version = 1;
    COMMIT;
";

impl Log {
    /// Opens or makes the log in `dir`, and starts its writer thread.
    ///
    /// # Errors
    /// [`OpenError::Corrupt`] if the file is not what was written.
    pub fn open(dir: &Path) -> Result<Self, OpenError> {
        let path: Arc<Path> = dir.join("raft.db").into();
        let connection = connect(&path)?;
        let health = Arc::new(Health::default());
        let reserve = Reserve::new(dir);
        if let Err(error) = reserve.restore() {
            tracing::warn!(%error, dir = %dir.display(), "no space to set aside: writes wait until there is");
            health.full.store(true, Ordering::Release);
        }
        let (jobs, queue) = mpsc::channel();
        let writer = Writer::new(connection, Arc::clone(&path), queue, reserve, Arc::clone(&health));
        let thread = std::thread::Builder::new()
            .name("store-log".to_owned())
            .spawn(move || writer.run())
            .map_err(OpenError::io("start the writer of", &path))?;
        Ok(Self { path, jobs, health, thread: Arc::new(Mutex::new(Some(thread))) })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether there is space, and so on.
    pub fn health(&self) -> &Arc<Health> {
        &self.health
    }

    /// Appends rows; `done` is called when they are durable, or, without `sync`, when they are written.
    pub fn append(&self, rows: Vec<Row>, sync: bool, done: Done) {
        self.write(Op::Append(rows), sync, done);
    }

    /// Sets a named value, durably.
    ///
    /// # Errors
    /// [`LogError`], not for a full disk: that is waited for.
    pub async fn set(&self, name: &'static str, value: Vec<u8>) -> Result<(), LogError> {
        self.written(Op::Set(name, value), true).await
    }

    /// Removes rows from `index` on, durably.
    ///
    /// # Errors
    /// As [`set`](Self::set).
    pub async fn truncate(&self, index: u64) -> Result<(), LogError> {
        self.written(Op::Truncate(index), true).await
    }

    /// Removes rows up to `index`, bit by bit when the writer has nothing else to do, and sets a named value beforehand.
    ///
    /// # Errors
    /// As [`set`](Self::set).
    pub async fn purge(&self, index: u64, name: &'static str, value: Vec<u8>) -> Result<(), LogError> {
        self.written(Op::Set(name, value), false).await?;
        self.written(Op::Purge(index), false).await
    }

    /// Rows with `from <= index < to`, all of them or an error.
    ///
    /// # Errors
    /// [`LogError::Corrupt`] if a checksum is wrong.
    pub async fn read(&self, from: u64, to: u64) -> Result<Vec<Row>, LogError> {
        self.ask(move |connection, path| read(connection, path, from, to)).await
    }

    /// The first and the last index above `purged`, if there are such rows. Rows up to it may still wait for their removal, and
    /// there may be a gap behind them.
    ///
    /// # Errors
    /// [`LogError::Corrupt`] if rows are missing in between.
    pub async fn bounds(&self, purged: Option<u64>) -> Result<Option<(u64, u64)>, LogError> {
        self.ask(move |connection, path| bounds(connection, path, purged)).await
    }

    /// Whether rows up to `index` are still there.
    ///
    /// # Errors
    /// [`LogError`].
    pub async fn reaches_back_to(&self, index: u64) -> Result<bool, LogError> {
        self.ask(move |connection, path| {
            let found = connection.query_row("SELECT EXISTS(SELECT 1 FROM log WHERE idx <= ?1)", [sql(index)], |row| row.get(0));
            found.map_err(|error| LogError::of(path, &error))
        })
        .await
    }

    /// The last row of a kind.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub async fn last_of_kind(&self, kind: u8) -> Result<Option<Row>, LogError> {
        self.ask(move |connection, path| {
            let found: Option<i64> = connection
                .query_row("SELECT max(idx) FROM log WHERE kind = ?1", [kind], |row| row.get(0))
                .map_err(|error| LogError::of(path, &error))?;
            let Some(index) = found.map(i64::cast_unsigned) else { return Ok(None) };
            Ok(read(connection, path, index, index + 1)?.pop())
        })
        .await
    }

    /// A named value.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub async fn get(&self, name: &'static str) -> Result<Option<Vec<u8>>, LogError> {
        self.ask(move |connection, path| {
            let row = connection
                .query_row("SELECT crc, value FROM meta WHERE name = ?1", [name], |row| {
                    Ok((row.get::<_, u32>(0)?, row.get::<_, Vec<u8>>(1)?))
                })
                .optional()
                .map_err(|error| LogError::of(path, &error))?;
            match row {
                Some((sum, value)) if sum != crc(&[name.as_bytes(), &value]) => {
                    Err(LogError::corrupt(path, format!("the checksum of {name} is wrong")))
                }
                row => Ok(row.map(|(_, value)| value)),
            }
        })
        .await
    }

    /// Writes what is waiting, makes it durable and ends the thread.
    pub async fn close(&self) {
        let (reply, closed) = oneshot::channel();
        if self.jobs.send(Job::Close(reply)).is_ok() && closed.await.is_err() {
            tracing::error!(path = %self.path.display(), "the writer of the log ended before it was closed");
        }
        let thread = self.thread.lock().take();
        let panicked = thread.filter(JoinHandle::is_finished).is_some_and(|thread| thread.join().is_err());
        if panicked {
            tracing::error!(path = %self.path.display(), "the writer of the log panicked");
        }
    }

    fn write(&self, op: Op, sync: bool, done: Done) {
        if let Err(mpsc::SendError(Job::Write(write))) = self.jobs.send(Job::Write(Write { op, sync, done })) {
            (write.done)(Err(LogError::Closed));
        }
    }

    async fn written(&self, op: Op, sync: bool) -> Result<(), LogError> {
        let (reply, written) = oneshot::channel();
        // A reply that nobody waits for any more is of no use to anybody.
        self.write(op, sync, Box::new(move |result| drop(reply.send(result))));
        written.await.unwrap_or(Err(LogError::Closed))
    }

    async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Connection, &Path) -> Result<T, LogError> + Send + 'static,
    ) -> Result<T, LogError> {
        let (reply, answer) = oneshot::channel();
        let path = Arc::clone(&self.path);
        let job = Job::Read(Box::new(move |connection| drop(reply.send(question(connection, &path)))));
        self.jobs.send(job).map_err(|_| LogError::Closed)?;
        answer.await.unwrap_or(Err(LogError::Closed))
    }
}

fn connect(path: &Path) -> Result<Connection, OpenError> {
    let open = || -> Result<Connection, rusqlite::Error> {
        let connection = Connection::open(path)?;
        connection.execute_batch(SETUP)?;
        let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
        if version == 0 {
            connection.execute_batch(SCHEMA)?;
        }
        Ok(connection)
    };
    open().map_err(|error| match LogError::of(path, &error) {
        LogError::Corrupt { why, .. } => OpenError::corrupt(path, why),
        other => OpenError::Io { action: "open", path: path.to_owned(), source: std::io::Error::other(other.to_string()) },
    })
}

fn bounds(connection: &Connection, path: &Path, purged: Option<u64>) -> Result<Option<(u64, u64)>, LogError> {
    let from = purged.map_or(0, |purged| purged.saturating_add(1));
    let (first, last, count): (Option<i64>, Option<i64>, i64) = connection
        .query_row("SELECT min(idx), max(idx), count(*) FROM log WHERE idx >= ?1", [sql(from)], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?))
        })
        .map_err(|error| LogError::of(path, &error))?;
    let Some((first, last)) = first.zip(last) else { return Ok(None) };
    if last - first + 1 != count {
        return Err(LogError::corrupt(path, format!("it has {count} entries from {first} to {last}")));
    }
    Ok(Some((first.cast_unsigned(), last.cast_unsigned())))
}

fn read(connection: &Connection, path: &Path, from: u64, to: u64) -> Result<Vec<Row>, LogError> {
    let query = |from: u64, to: u64| -> Result<Vec<(u32, Row)>, rusqlite::Error> {
        let mut statement =
            connection.prepare_cached("SELECT idx, kind, crc, bytes FROM log WHERE idx >= ?1 AND idx < ?2 ORDER BY idx")?;
        let rows = statement.query_map([sql(from), sql(to)], |row| {
            Ok((row.get(2)?, Row { index: row.get::<_, i64>(0)?.cast_unsigned(), kind: row.get(1)?, bytes: row.get(3)? }))
        })?;
        rows.collect()
    };
    let rows = query(from, to).map_err(|error| LogError::of(path, &error))?;
    rows.into_iter()
        .map(|(sum, row)| match row.checksum() == sum {
            true => Ok(row),
            false => Err(LogError::corrupt(path, format!("the checksum of entry {} is wrong", row.index))),
        })
        .collect()
}

/// SQLite's integers are signed. No log grows to 2^63 entries, but a reader may ask for "all up to `u64::MAX`".
pub(super) fn sql(index: u64) -> i64 {
    i64::try_from(index).unwrap_or(i64::MAX)
}

impl Row {
    pub(super) fn checksum(&self) -> u32 {
        crc(&[&self.index.to_le_bytes(), &[self.kind], &self.bytes])
    }
}

impl LogError {
    pub(in crate::store) fn corrupt(path: &Path, why: impl Into<String>) -> Self {
        Self::Corrupt { path: path.to_owned(), why: why.into() }
    }

    pub(super) fn of(path: &Path, error: &rusqlite::Error) -> Self {
        let (path, why) = (path.to_owned(), error.to_string());
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => Self::Full,
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Self::Corrupt { path, why },
            _ => Self::Sqlite { path, why },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(index: u64) -> Row {
        Row { index, kind: (index % 3) as u8, bytes: format!("entry {index}").into_bytes() }
    }

    async fn append(log: &Log, rows: Vec<Row>, sync: bool) {
        log.written(Op::Append(rows), sync).await.unwrap();
    }

    #[tokio::test]
    async fn keeps_rows_across_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let log = Log::open(dir.path()).unwrap();
        assert_eq!(log.bounds(None).await.unwrap(), None);
        append(&log, (0..10).map(row).collect(), true).await;
        append(&log, (10..20).map(row).collect(), false).await;
        log.set("vote", b"me".to_vec()).await.unwrap();
        log.truncate(18).await.unwrap();
        log.purge(4, "purged", b"4".to_vec()).await.unwrap();
        log.close().await;
        assert!(matches!(log.get("vote").await, Err(LogError::Closed)));

        let log = Log::open(dir.path()).unwrap();
        assert_eq!(log.get("vote").await.unwrap(), Some(b"me".to_vec()));
        assert_eq!(log.get("purged").await.unwrap(), Some(b"4".to_vec()));
        assert_eq!(log.bounds(None).await.unwrap(), Some((5, 17)));
        assert_eq!(log.read(6, 9).await.unwrap(), (6..9).map(row).collect::<Vec<_>>());
        assert_eq!(log.read(5, u64::MAX).await.unwrap().len(), 13);
        assert_eq!(log.last_of_kind(2).await.unwrap(), Some(row(17)));
        log.close().await;
    }

    #[tokio::test]
    async fn what_waits_for_its_removal_is_no_damage() {
        let dir = tempfile::tempdir().unwrap();
        let log = Log::open(dir.path()).unwrap();
        // A checkpoint that was received covers entry 2, and 1 is still there.
        append(&log, vec![row(1), row(3), row(4)], true).await;
        assert!(log.bounds(None).await.is_err());
        assert_eq!(log.bounds(Some(2)).await.unwrap(), Some((3, 4)));
        assert_eq!((log.reaches_back_to(2).await.unwrap(), log.reaches_back_to(0).await.unwrap()), (true, false));
        log.close().await;
    }

    #[tokio::test]
    async fn damage_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let log = Log::open(dir.path()).unwrap();
        append(&log, (0..10).map(row).collect(), true).await;
        log.close().await;
        let path = dir.path().join("raft.db");
        let mut bytes = std::fs::read(&path).unwrap();
        let at = bytes.windows(7).position(|part| part == b"entry 7").unwrap();
        bytes[at] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        let log = Log::open(dir.path()).unwrap();
        assert_eq!(log.read(0, 7).await.unwrap().len(), 7);
        let error = log.read(0, 10).await.unwrap_err().to_string();
        assert!(error.contains("raft.db is damaged: the checksum of entry 7 is wrong"), "{error}");
        log.close().await;

        bytes[..16].fill(7);
        std::fs::write(&path, &bytes).unwrap();
        let Err(error) = Log::open(dir.path()) else { panic!("opened") };
        assert!(matches!(error, OpenError::Corrupt { .. }), "{error}");
    }
}
