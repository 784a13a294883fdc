//! How much space a file system has.

use std::path::Path;

/// Bytes and inodes of a file system; all zero when it cannot be asked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Space {
    pub capacity_bytes: u64,
    pub available_bytes: u64,
    pub used_bytes: u64,
    pub inodes: u64,
    pub inodes_free: u64,
}

impl Space {
    /// The space of the file system that holds a path.
    pub fn of(path: &Path) -> Self {
        let stat = match nix::sys::statvfs::statvfs(path) {
            Ok(stat) => stat,
            Err(error) => {
                tracing::debug!(path = %path.display(), %error, "the file system does not tell its space");
                return Self::default();
            }
        };
        let bytes = |blocks: u64| blocks.saturating_mul(stat.fragment_size());
        Self {
            capacity_bytes: bytes(stat.blocks()),
            available_bytes: bytes(stat.blocks_available()),
            used_bytes: bytes(stat.blocks().saturating_sub(stat.blocks_free())),
            inodes: stat.files(),
            inodes_free: stat.files_free(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_has_space_and_nowhere_has_none() {
        let root = Space::of(Path::new("/"));
        assert!(root.capacity_bytes >= root.used_bytes && root.used_bytes > 0);
        assert_eq!(Space::of(Path::new("/nowhere/at/all")), Space::default());
    }
}
