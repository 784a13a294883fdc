//! Mounts that the agent makes for volumes (tmpfs, binds for `subPath`), and their removal.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::{blocking, tool};

/// How long a server may take to say that it has all that was written: upstream's `unMountTimeout`.
const UNMOUNT: Duration = Duration::from_secs(60);

/// A line of the kernel's table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mounted {
    pub point: PathBuf,
    /// `ext4`, `nfs4`, …
    pub kind: String,
}

impl Mounted {
    /// Whether a server far away answers for what is in it.
    fn is_remote(&self) -> bool {
        self.kind == "nfs" || self.kind == "nfs4"
    }
}

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
    if is_mounted(directory)? {
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
    if is_mounted(target)? {
        return Ok(());
    }
    mount(Some(device), target, Some(kind), MsFlags::empty(), None::<&str>).map_err(io::Error::from)
}

/// Unmounts everything at or below a directory, the deepest first.
///
/// # Errors
/// The mount that stays.
pub fn unmount_below(directory: &Path) -> io::Result<()> {
    below(directory)?.iter().try_for_each(|mounted| unmount(&mounted.point))
}

/// As [`unmount_below`], with a server that may not answer: it is waited for, for a while, and then what was not written is lost (upstream
/// `CleanupMountWithForce`).
///
/// # Errors
/// The mount that stays.
pub async fn unmount_all_below(directory: &Path) -> Result<(), String> {
    let of = directory.to_owned();
    for mounted in blocking(move || below(&of)).await? {
        if mounted.is_remote() {
            unmount_remote(&mounted.point).await;
        }
    }
    let of = directory.to_owned();
    blocking(move || unmount_below(&of)).await
}

async fn unmount_remote(point: &Path) {
    // A process of its own: the kernel may hold it as long as the server is silent.
    for flags in [&[][..], &["-f"][..]] {
        let all: Vec<_> = flags.iter().map(std::ffi::OsStr::new).chain([point.as_os_str()]).collect();
        match tool::end_of("umount", &all, UNMOUNT).await {
            Ok(ran) if ran.status.success() => return,
            Ok(ran) => tracing::info!(path = %point.display(), words = ran.words(), "the file system was not unmounted"),
            Err(why) => tracing::info!(path = %point.display(), why, "the file system was not unmounted"),
        }
    }
}

/// Takes a mount away. It is detached lazily: whoever still has a file open keeps it, nobody new finds it.
///
/// # Errors
/// As the kernel has it.
pub fn unmount(point: &Path) -> io::Result<()> {
    umount2(point, MntFlags::MNT_DETACH).map_err(|error| io::Error::other(format!("unmount {}: {error}", point.display())))
}

/// Whether something is mounted at a path.
///
/// # Errors
/// As the kernel has it.
pub fn is_mounted(path: &Path) -> io::Result<bool> {
    let path = real(path);
    Ok(below(&path)?.iter().any(|mounted| mounted.point == path))
}

/// The mount points at or below a directory, once for each mount, the deepest first.
///
/// # Errors
/// As the kernel has it.
pub fn mounts_below(directory: &Path) -> io::Result<Vec<PathBuf>> {
    Ok(below(directory)?.into_iter().map(|mounted| mounted.point).collect())
}

fn below(directory: &Path) -> io::Result<Vec<Mounted>> {
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    let directory = real(directory);
    let found = in_table(&table, &directory);
    if found.iter().any(|mounted| mounted.point == directory) {
        return Ok(found);
    }
    // No mount itself, it may be a link.
    Ok(in_table(&table, &fs::canonicalize(&directory).unwrap_or(directory)))
}

fn in_table(table: &str, directory: &Path) -> Vec<Mounted> {
    let all = table.lines().filter_map(parse);
    let mut found: Vec<Mounted> = all.filter(|mounted| mounted.point.starts_with(directory)).collect();
    found.sort_by_key(|mounted| std::cmp::Reverse(mounted.point.components().count()));
    found
}

/// The path as the kernel's table has it. Only the folder that it is in is looked at: what is mounted at the path may not answer.
fn real(path: &Path) -> PathBuf {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else { return path.to_owned() };
    fs::canonicalize(folder).map_or_else(|_| path.to_owned(), |folder| folder.join(name))
}

/// `36 35 98:0 /root /point options ... - kind source options`.
fn parse(line: &str) -> Option<Mounted> {
    let (place, what) = line.split_once(" - ")?;
    Some(Mounted { point: unescape(place.split(' ').nth(4)?), kind: what.split(' ').next()?.to_owned() })
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
        let found = in_table(table, Path::new("/d/agent"));
        let found: Vec<PathBuf> = found.into_iter().map(|mounted| mounted.point).collect();
        assert_eq!(found, [PathBuf::from("/d/agent/pods/u/v/a b\\"), PathBuf::from("/d/agent/pods/u/v")]);
    }

    #[test]
    fn the_kernels_table_is_read() {
        let line = "36 35 0:50 / /d/a\\040b rw,relatime shared:1 - nfs4 127.0.0.1:/data rw,vers=4.2";
        let mounted = parse(line).unwrap();
        assert_eq!((mounted.point.to_str(), mounted.is_remote()), (Some("/d/a b"), true));
        assert!(!parse("1 0 8:1 / / rw - ext4 /dev/sda rw").unwrap().is_remote());
        assert!(is_mounted(Path::new("/proc")).unwrap() && !is_mounted(Path::new("/proc/self")).unwrap());
    }
}
