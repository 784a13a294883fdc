//! Files and folders that appear whole or not at all, and reach the disk before they do.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::random;

fn beside(path: &Path) -> PathBuf {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    path.with_file_name(format!(".{name}.{}", random::suffix(8)))
}

fn sync_folder_of(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent)?.sync_all()
}

fn write_new(path: &Path, bytes: &[u8], mode: u32) -> io::Result<File> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(bytes)?;
    // The mode given to open passes through the umask; this one does not.
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    Ok(file)
}

/// Writes a file with these permissions, or leaves the old one as it was. Makes the folders above it.
///
/// # Errors
/// Those of the file system; nothing was changed then.
pub fn write(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    let draft = beside(path);
    let written = write_new(&draft, bytes, mode).and_then(|file| file.sync_all()).and_then(|()| fs::rename(&draft, path));
    if let Err(error) = written {
        // The first failure is the one to tell; a draft that stays behind is never read.
        fs::remove_file(&draft).ok();
        return Err(error);
    }
    sync_folder_of(path)
}

/// Makes a folder (mode 0700) with these files (mode 0600) in it; all of them appear at once.
///
/// # Errors
/// Those of the file system, also when the folder is already there; nothing was changed then.
pub fn write_folder(path: &Path, files: &[(&str, &[u8])]) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    let draft = beside(path);
    let made = fill_folder(&draft, files).and_then(|()| fs::rename(&draft, path));
    if let Err(error) = made {
        // As in `write`.
        fs::remove_dir_all(&draft).ok();
        return Err(error);
    }
    sync_folder_of(path)
}

fn fill_folder(folder: &Path, files: &[(&str, &[u8])]) -> io::Result<()> {
    fs::create_dir(folder)?;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o700))?;
    for (name, bytes) in files {
        write_new(&folder.join(name), bytes, 0o600)?;
    }
    // One syncfs instead of an fsync a file: this is on the path of the first start.
    nix::unistd::syncfs(File::open(folder)?).map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_and_folders_appear_with_their_mode() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a/b");
        write(&file, b"1", 0o600).unwrap();
        write(&file, b"2", 0o600).unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"2");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        let folder = dir.path().join("c");
        write_folder(&folder, &[("x", b"1"), ("y", b"2")]).unwrap();
        assert!(write_folder(&folder, &[("x", b"3")]).is_err());
        assert_eq!(fs::read(folder.join("x")).unwrap(), b"1");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }
}
