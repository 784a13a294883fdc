//! What a start notes of itself for `orch uninstall`: where things are that lie outside of the data directory. The file is locked
//! while the process runs, so that nothing is removed under it.

use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::rt::files;

const FILE: &str = "installed.json";
const LOCK: &str = "node.lock";

/// What a node noted at its start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Installed {
    pub node: String,
    pub docker_host: String,
    /// The range of all pods of the cluster.
    pub cluster_cidr: String,
}

impl Installed {
    /// Notes it in `DATA/agent`.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn write(&self, data_dir: &Path) -> io::Result<()> {
        files::write(&data_dir.join(FILE), serde_json::to_string(self)?.as_bytes(), 0o644)
    }

    /// Reads it; `None` where no node ever started.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read(data_dir: &Path) -> io::Result<Option<Self>> {
        match std::fs::read_to_string(data_dir.join(FILE)) {
            Ok(text) => Ok(Some(serde_json::from_str(&text)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The range of all pods.
    pub fn cluster_cidr(&self) -> Option<Ipv4Net> {
        self.cluster_cidr.parse().ok()
    }
}

/// Holds the data directory of a node for as long as this lives; the kernel gives it back when the process ends, however it ends.
#[derive(Debug)]
pub struct NodeLock {
    _file: File,
}

impl NodeLock {
    /// Takes it; `Ok(None)` when another process holds it.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn take(data_dir: &Path) -> io::Result<Option<Self>> {
        std::fs::create_dir_all(data_dir)?;
        let file = File::options().create(true).truncate(false).write(true).open(Self::path(data_dir))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Self { _file: file })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    fn path(data_dir: &Path) -> PathBuf {
        data_dir.join(LOCK)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_node_a_folder() {
        let folder = tempfile::tempdir().unwrap();
        let held = NodeLock::take(folder.path()).unwrap().unwrap();
        assert!(NodeLock::take(folder.path()).unwrap().is_none());
        drop(held);
        assert!(NodeLock::take(folder.path()).unwrap().is_some());
    }

    #[test]
    fn what_is_noted_is_read() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Installed::read(folder.path()).unwrap(), None);
        let installed =
            Installed { node: "n".to_owned(), docker_host: "unix:///x".to_owned(), cluster_cidr: "10.1.0.0/16".to_owned() };
        installed.write(folder.path()).unwrap();
        assert_eq!(Installed::read(folder.path()).unwrap(), Some(installed));
    }
}
