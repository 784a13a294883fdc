//! Mounts that the agent makes for volumes (tmpfs, binds for `subPath`), and their removal.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// Mounts a tmpfs on a directory, unless one is there; `size_bytes` bounds it.
///
/// # Errors
/// As [`memory`].
pub fn tmpfs(directory: &Path, size_bytes: Option<i64>) -> io::Result<()> {
    memory(directory, "tmpfs", "mode=0777", size_bytes)
}

/// Mounts a file system in memory (`tmpfs`, `hugetlbfs`) on a directory, unless one is there; `size_bytes` bounds it.
///
/// # Errors
/// As the kernel has it: root is needed.
pub fn memory(directory: &Path, kind: &str, options: &str, size_bytes: Option<i64>) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    if mounts_below(directory)?.iter().any(|mounted| mounted == directory) {
        return Ok(());
    }
    let options = size_bytes.map_or_else(|| options.to_owned(), |bytes| format!("{options},size={bytes}"));
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some(kind), directory, Some(kind), flags, Some(options.as_str())).map_err(io::Error::from)
}

/// Binds a file or directory to another place.
///
/// # Errors
/// As the kernel has it.
pub fn bind(source: &Path, target: &Path) -> io::Result<()> {
    mount(Some(source), target, None::<&str>, MsFlags::MS_BIND, None::<&str>).map_err(io::Error::from)
}

/// Mounts the file system of a block device, unless it is mounted there.
///
/// # Errors
/// As the kernel has it.
pub fn file_system(device: &Path, target: &Path, kind: &str) -> io::Result<()> {
    fs::create_dir_all(target)?;
    if mounts_below(target)?.iter().any(|mounted| mounted == target) {
        return Ok(());
    }
    mount(Some(device), target, Some(kind), MsFlags::empty(), None::<&str>).map_err(io::Error::from)
}

/// Unmounts everything at or below a directory, the deepest first.
///
/// # Errors
/// The mount that stays.
pub fn unmount_below(directory: &Path) -> io::Result<()> {
    let mut mounts = mounts_below(directory)?;
    mounts.sort_by_key(|path| std::cmp::Reverse(path.components().count()));
    for path in mounts {
        // Detached lazily: whoever still has a file open keeps it, nobody new finds it.
        umount2(&path, MntFlags::MNT_DETACH).map_err(|error| io::Error::other(format!("unmount {}: {error}", path.display())))?;
    }
    Ok(())
}

/// The mount points at or below a directory, once for each mount.
pub fn mounts_below(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    let directory = fs::canonicalize(directory).unwrap_or_else(|_| directory.to_owned());
    let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(unescape);
    Ok(points.filter(|point| point.starts_with(&directory)).collect())
}

/// The kernel writes blanks, tabs, newlines and backslashes in octal.
fn unescape(text: &str) -> PathBuf {
    let mut plain = text.to_owned();
    for (escaped, character) in [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")] {
        plain = plain.replace(escaped, character);
    }
    PathBuf::from(plain)
}
