//! `subPath`: one file or directory of a volume, bound to a place of its own so that nothing in the volume can lead out of it. The
//! kernel resolves the path within the volume (`openat2` with `RESOLVE_IN_ROOT`); what was opened is what is bound.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};

use super::{is_local, mounting};
use crate::rt::TaskGroup;

/// Binds `sub` of the volume at `volume` to `target` and returns where it is. A directory that is missing is made, if that
/// is allowed.
///
/// # Errors
/// Why it is not possible, in words for the container's status.
pub async fn prepare(volume: PathBuf, sub: PathBuf, target: PathBuf, may_make: bool) -> Result<PathBuf, String> {
    if !is_local(&sub) {
        return Err(format!("subPath {} leads out of the volume", sub.display()));
    }
    let work = move || bind(&volume, &sub, &target, may_make).map(|()| target);
    let done = TaskGroup::blocking(work).await.map_err(|error| error.to_string())?;
    done.map_err(|error| error.to_string())
}

fn bind(volume: &Path, sub: &Path, target: &Path, may_make: bool) -> io::Result<()> {
    if mounting::is_mounted(target)? {
        return Ok(());
    }
    let root = fs::File::open(volume)?;
    let resolve = |path: &Path| {
        let how = OpenHow::new().flags(OFlag::O_PATH | OFlag::O_CLOEXEC).resolve(ResolveFlag::RESOLVE_IN_ROOT);
        openat2(&root, path, how).map_err(io::Error::from)
    };
    let opened = match resolve(sub) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && may_make => {
            make(volume, sub, &resolve)?;
            resolve(sub)?
        }
        other => other?,
    };
    let source = PathBuf::from(format!("/proc/self/fd/{}", opened.as_raw_fd()));
    if fs::metadata(&source)?.is_dir() {
        fs::create_dir_all(target)?;
    } else {
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::OpenOptions::new().create(true).append(true).open(target)?;
    }
    mounting::bind(&source, target)
}

/// Makes the missing directories one by one, each in what the kernel resolved for the ones before.
fn make(volume: &Path, sub: &Path, resolve: &dyn Fn(&Path) -> io::Result<std::os::fd::OwnedFd>) -> io::Result<()> {
    let mode = fs::metadata(volume)?.permissions().mode() & 0o777;
    let mut done = PathBuf::new();
    for part in sub.components() {
        let parent = if done.as_os_str().is_empty() { resolve(Path::new("."))? } else { resolve(&done)? };
        let path = PathBuf::from(format!("/proc/self/fd/{}", parent.as_raw_fd())).join(part);
        match fs::create_dir(&path) {
            Ok(()) => fs::set_permissions(&path, fs::Permissions::from_mode(mode))?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
        done.push(part);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nothing_leads_out_of_the_volume() {
        let directory = tempfile::tempdir().unwrap();
        let (volume, out) = (directory.path().join("v"), directory.path().join("out"));
        fs::create_dir_all(&volume).unwrap();
        fs::create_dir_all(&out).unwrap();
        std::os::unix::fs::symlink(&out, volume.join("link")).unwrap();
        assert!(prepare(volume.clone(), "../out".into(), directory.path().join("t0"), true).await.is_err());
        // Within the volume, the link leads to a path that is not there.
        let target = directory.path().join("t1");
        let bound = prepare(volume.clone(), "link/x".into(), target.clone(), true).await;
        assert!(bound.is_err() || !out.join("x").exists());
        let target = directory.path().join("t2");
        prepare(volume.clone(), "a/b".into(), target.clone(), true).await.unwrap();
        fs::write(volume.join("a/b/f"), "1").unwrap();
        assert_eq!(fs::read_to_string(target.join("f")).unwrap(), "1");
        mounting::unmount_below(directory.path()).unwrap();
        assert!(!target.join("f").exists());
    }
}
