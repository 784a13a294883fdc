//! The atomic writer: a volume's files appear, change and vanish together. As in the kubelet's `atomic_writer`, the files lie in a
//! directory of their own, `..data` is a link to it that is swapped by a rename, and what users see are links through `..data`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use super::ownership;
use crate::rt::random;

/// A file of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileContent {
    pub bytes: Vec<u8>,
    pub mode: u32,
}

/// Files by their relative paths.
pub type Files = BTreeMap<PathBuf, FileContent>;

const DATA: &str = "..data";
const DATA_TMP: &str = "..data_tmp";

/// Whether something was written there before.
pub fn is_written(directory: &Path) -> bool {
    directory.join(DATA).exists()
}

/// Makes the directory hold exactly these files; group ownership is set where a group is given. Does nothing if it does already.
///
/// # Errors
/// As the file system has it; the old content is then still there.
pub fn write(directory: &Path, files: &Files, group: Option<i64>) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    fs::set_permissions(directory, Permissions::from_mode(0o777))?;
    let old = fs::read_link(directory.join(DATA)).ok();
    if old.as_ref().is_some_and(|old| holds(&directory.join(old), files, group)) {
        return Ok(());
    }
    let name = format!("..{}", random::suffix(10));
    let fresh = directory.join(&name);
    fs::create_dir(&fresh)?;
    if let Err(error) = fill(&fresh, files, group) {
        // On a disk that is full each further try would leave some more.
        if let Err(left) = fs::remove_dir_all(&fresh) {
            tracing::warn!(path = %fresh.display(), error = %left, "what a volume was half written with stays");
        }
        return Err(error);
    }
    remove_link(&directory.join(DATA_TMP))?;
    symlink(&name, directory.join(DATA_TMP))?;
    fs::rename(directory.join(DATA_TMP), directory.join(DATA))?;
    links(directory, files)?;
    remove_others(directory, &name)
}

fn fill(fresh: &Path, files: &Files, group: Option<i64>) -> io::Result<()> {
    fs::set_permissions(fresh, Permissions::from_mode(0o755))?;
    for (path, content) in files {
        let path = fresh.join(path);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&path, &content.bytes)?;
        fs::set_permissions(&path, Permissions::from_mode(content.mode))?;
    }
    ownership::give_to_group(fresh, group, ownership::Access::ReadOnly)
}

fn holds(data: &Path, files: &Files, group: Option<i64>) -> bool {
    let Ok(present) = listing(data, Path::new("")) else { return false };
    let same = |(path, content): (&PathBuf, &FileContent)| {
        let full = data.join(path);
        let mode = fs::metadata(&full).map(|meta| meta.permissions().mode() & 0o7777);
        let wanted = group.map_or(content.mode, |_| ownership::Access::ReadOnly.file_mode(content.mode));
        mode.is_ok_and(|mode| mode == wanted) && fs::read(&full).is_ok_and(|bytes| bytes == content.bytes)
    };
    present.len() == files.len() && files.iter().all(same)
}

fn listing(root: &Path, below: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(root.join(below))? {
        let entry = entry?;
        let path = below.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            files.extend(listing(root, &path)?);
        } else {
            files.push(path);
        }
    }
    Ok(files)
}

/// The names that users see: links to the first part of each path, through `..data`.
fn links(directory: &Path, files: &Files) -> io::Result<()> {
    let wanted: BTreeSet<_> =
        files.keys().filter_map(|path| path.components().next()).map(|part| part.as_os_str().to_owned()).collect();
    for name in &wanted {
        let link = directory.join(name);
        let target = Path::new(DATA).join(name);
        if fs::read_link(&link).is_ok_and(|present| present == target) {
            continue;
        }
        remove_link(&link)?;
        symlink(target, link)?;
    }
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let is_internal = entry.file_name().to_string_lossy().starts_with("..");
        if !is_internal && !wanted.contains(&entry.file_name()) {
            remove_link(&entry.path())?;
        }
    }
    Ok(())
}

fn remove_others(directory: &Path, keep: &str) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("..") && name != DATA && name != keep && entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

fn remove_link(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(list: &[(&str, &str)]) -> Files {
        let content = |text: &str| FileContent { bytes: text.as_bytes().to_vec(), mode: 0o640 };
        list.iter().map(|(path, text)| (PathBuf::from(path), content(text))).collect()
    }

    #[test]
    fn what_cannot_be_written_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        write(directory.path(), &files(&[("a", "1")]), None).unwrap();
        let count = fs::read_dir(directory.path()).unwrap().count();
        write(directory.path(), &files(&[("a", "2"), ("a/b", "3")]), None).unwrap_err();
        assert_eq!(fs::read_to_string(directory.path().join("a")).unwrap(), "1");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), count);
    }

    #[test]
    fn swaps_all_files_together() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("volume");
        write(&root, &files(&[("a", "1"), ("d/b", "2")]), None).unwrap();
        assert_eq!(fs::read_to_string(root.join("a")).unwrap(), "1");
        assert_eq!(fs::read_to_string(root.join("d/b")).unwrap(), "2");
        assert_eq!(fs::metadata(root.join("a")).unwrap().permissions().mode() & 0o777, 0o640);
        let first = fs::read_link(root.join(DATA)).unwrap();
        write(&root, &files(&[("a", "1"), ("d/b", "2")]), None).unwrap();
        assert_eq!(fs::read_link(root.join(DATA)).unwrap(), first, "nothing changed, nothing is written");
        write(&root, &files(&[("a", "3")]), None).unwrap();
        assert_eq!(fs::read_to_string(root.join("a")).unwrap(), "3");
        assert!(!root.join("d").exists() && !root.join(first).exists());
        assert_eq!(fs::read_dir(&root).unwrap().count(), 3);
    }
}
