//! Loop devices: a file shown as a block device. One file has at most one, which is found again by the file's path.

use std::fs;
use std::path::{Path, PathBuf};

use super::tool;

/// The loop device of a file, if it has one.
pub fn find(file: &Path) -> Option<PathBuf> {
    let file = fs::canonicalize(file).ok()?;
    let devices = fs::read_dir("/sys/block").ok()?.flatten();
    let mut loops = devices.filter(|device| device.file_name().to_string_lossy().starts_with("loop"));
    let found = loops.find(|device| {
        let backing = fs::read_to_string(device.path().join("loop/backing_file"));
        backing.is_ok_and(|backing| Path::new(backing.trim_end_matches('\n')) == file)
    })?;
    Some(Path::new("/dev").join(found.file_name()))
}

/// Shows a file as a block device; the one that it has already is kept.
///
/// # Errors
/// What `losetup` says.
pub async fn attach(file: &Path) -> Result<PathBuf, String> {
    if let Some(known) = find(file) {
        return Ok(known);
    }
    let path = tool::run("losetup", &["--find".as_ref(), "--show".as_ref(), file.as_os_str()]).await?;
    Ok(PathBuf::from(path.trim()))
}

/// Takes the device of a file away, if it has one.
///
/// # Errors
/// What `losetup` says.
pub async fn detach(file: &Path) -> Result<(), String> {
    match find(file) {
        Some(device) => tool::run("losetup", &["--detach".as_ref(), device.as_os_str()]).await.map(drop),
        None => Ok(()),
    }
}

/// Makes a device as big as its file has become.
///
/// # Errors
/// What `losetup` says.
pub async fn resize(device: &Path) -> Result<(), String> {
    tool::run("losetup", &["--set-capacity".as_ref(), device.as_os_str()]).await.map(drop)
}
