//! Ownership of a volume by the pod's `fsGroup`, as the kubelet's `SetVolumeOwnership` gives it.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{PermissionsExt, lchown};
use std::path::Path;

/// What the group may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    ReadOnly,
    ReadWrite,
}

impl Access {
    /// The mode of a file that the group is given.
    pub const fn file_mode(self, mode: u32) -> u32 {
        mode | match self {
            Self::ReadOnly => 0o440,
            Self::ReadWrite => 0o660,
        }
    }

    const fn directory_mode(self, mode: u32) -> u32 {
        self.file_mode(mode) | 0o2110
    }
}

/// Gives a tree to a group; without a group it stays as it is. Links are not followed.
///
/// # Errors
/// As the file system has it.
pub fn give_to_group(path: &Path, group: Option<i64>, access: Access) -> io::Result<()> {
    let Some(gid) = group else { return Ok(()) };
    let gid =
        u32::try_from(gid).map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, format!("fsGroup {gid} is no group id")))?;
    tree(path, gid, access)
}

/// Whether the root of a tree is the group's already, so that what is below is taken to be so too: `OnRootMismatch`.
///
/// # Errors
/// As the file system has it.
pub fn is_given(path: &Path, group: Option<i64>) -> io::Result<bool> {
    let meta = fs::metadata(path)?;
    let mode = meta.permissions().mode() & 0o7777;
    let is_its = group.is_none_or(|group| i64::from(std::os::unix::fs::MetadataExt::gid(&meta)) == group);
    Ok(is_its && Access::ReadWrite.directory_mode(mode) == mode)
}

fn tree(path: &Path, gid: u32, access: Access) -> io::Result<()> {
    let meta = fs::symlink_metadata(path)?;
    lchown(path, None, Some(gid))?;
    if meta.is_symlink() {
        return Ok(());
    }
    let mode = meta.permissions().mode() & 0o7777;
    let mode = if meta.is_dir() { access.directory_mode(mode) } else { access.file_mode(mode) };
    fs::set_permissions(path, Permissions::from_mode(mode))?;
    if meta.is_dir() {
        for entry in fs::read_dir(path)? {
            tree(&entry?.path(), gid, access)?;
        }
    }
    Ok(())
}
