//! Space set aside on the disk of the log. openraft takes a failed write for the end of the server; so when the disk is full, the
//! reserve is given back, the write that was under way goes through, and new ones are refused until the reserve can be made again.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use nix::fcntl::posix_fallocate;

/// Enough for the largest entry of the log several times over, with SQLite's write-ahead log.
const BYTES: i64 = 16 << 20;

/// A file that holds nothing but space.
#[derive(Debug)]
pub struct Reserve {
    path: PathBuf,
}

impl Reserve {
    /// The reserve in `dir`; it may not be there yet.
    pub fn new(dir: &Path) -> Self {
        Self { path: dir.join("reserve") }
    }

    /// Sets the space aside, if it is not yet.
    ///
    /// # Errors
    /// When there is no room for it.
    pub fn restore(&self) -> io::Result<()> {
        let file: File = OpenOptions::new().write(true).create(true).truncate(false).open(&self.path)?;
        let allocated = posix_fallocate(&file, 0, BYTES).map_err(io::Error::from);
        if allocated.is_err() {
            file.set_len(0)?;
        }
        allocated
    }

    /// Gives the space back.
    ///
    /// # Errors
    /// When the file is there and cannot be cut.
    pub fn release(&self) -> io::Result<()> {
        match OpenOptions::new().write(true).open(&self.path) {
            Ok(file) => file.set_len(0),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }
}
