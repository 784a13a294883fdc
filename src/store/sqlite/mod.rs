//! What is on disk: the log in SQLite with one writer thread, the checkpoint of the state beside it, and the lock of the directory.
//!
//! ```text
//! DATA/lock               held by the server that uses DATA, with its process id in it
//! DATA/store/raft.db      the log and the vote, synchronous=FULL
//! DATA/store/checkpoint   the state at one log position; the log goes on from there
//! DATA/store/reserve      space that is given back to the log when the disk is full
//! ```

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

pub(super) mod checkpoint;
pub(super) mod lock;
pub(super) mod log;
pub(super) mod reserve;
mod writer;

/// Why a store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another server runs on the directory.
    #[error(
        "the data directory {} is in use by process {pid}; stop that server, or give this one a --data-dir of its own",
        dir.display()
    )]
    Locked { dir: PathBuf, pid: String },
    /// A file could not be read or written.
    #[error("cannot {action} {}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    /// A file does not hold what was written to it. Nothing was changed.
    #[error(
        "{} is damaged: {why}; restore the data directory from a backup, or move it away to start an empty cluster \
         (containers go on running)",
        path.display()
    )]
    Corrupt { path: PathBuf, why: String },
    /// The consensus layer did not start.
    #[error("the replicated log did not start: {0}")]
    Consensus(String),
}

impl OpenError {
    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, path: path.to_owned(), source }
    }

    pub(super) fn corrupt(path: &Path, why: impl Into<String>) -> Self {
        Self::Corrupt { path: path.to_owned(), why: why.into() }
    }
}

/// Makes a directory that only its owner may enter, durably.
pub(super) fn create_dir(dir: &Path) -> Result<(), OpenError> {
    use std::os::unix::fs::DirBuilderExt;
    if dir.is_dir() {
        return Ok(());
    }
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(OpenError::io("create", dir))?;
    dir.parent().map_or(Ok(()), sync_dir).map_err(OpenError::io("sync the parent of", dir))
}

/// Makes the names in a directory durable.
fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(if dir.as_os_str().is_empty() { Path::new(".") } else { dir })?.sync_all()
}

/// The checksum of everything on disk.
fn crc(parts: &[&[u8]]) -> u32 {
    let mut crc = flate2::Crc::new();
    parts.iter().for_each(|part| crc.update(part));
    crc.sum()
}
