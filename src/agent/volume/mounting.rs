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
    mounts_below(directory)?.iter().try_for_each(|point| unmount(point))
}

/// Takes a mount away. It is detached lazily: whoever still has a file open keeps it, nobody new finds it.
///
/// # Errors
/// As the kernel has it.
pub fn unmount(point: &Path) -> io::Result<()> {
    umount2(point, MntFlags::MNT_DETACH).map_err(|error| io::Error::other(format!("unmount {}: {error}", point.display())))
}

/// The mount points at or below a directory, once for each mount, the deepest first.
///
/// # Errors
/// As the kernel has it.
pub fn mounts_below(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let directory = fs::canonicalize(directory).unwrap_or_else(|_| directory.to_owned());
    Ok(points_below(&fs::read_to_string("/proc/self/mountinfo")?, &directory))
}

fn points_below(table: &str, directory: &Path) -> Vec<PathBuf> {
    let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(unescape);
    let mut found: Vec<PathBuf> = points.filter(|point| point.starts_with(directory)).collect();
    found.sort_by_key(|point| std::cmp::Reverse(point.components().count()));
    found
}

/// The kernel writes blanks, tabs, newlines and backslashes in octal.
fn unescape(text: &str) -> PathBuf {
    let mut plain = text.to_owned();
    for (escaped, character) in [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")] {
        plain = plain.replace(escaped, character);
    }
    PathBuf::from(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_go_from_the_inside_out() {
        let table = "1 0 8:1 / / rw - ext4 a rw\n2 1 0:1 / /d/agent/pods/u/v rw - tmpfs t rw\n\
            3 2 0:1 / /d/agent/pods/u/v/a\\040b\\134 rw - tmpfs t rw\n4 1 0:1 / /d/agents rw - tmpfs t rw\n";
        let found = points_below(table, Path::new("/d/agent"));
        assert_eq!(found, [PathBuf::from("/d/agent/pods/u/v/a b\\"), PathBuf::from("/d/agent/pods/u/v")]);
    }
}
