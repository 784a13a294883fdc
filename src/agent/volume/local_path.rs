//! Volumes of the built-in provisioner on this node: their directories, or files with a file system of their own size, are made when
//! they are first mounted, and removed when nobody needs them (see `kinds::storage::local_path`).

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::PersistentVolume;

use super::{loop_device, mounting, tool};
use crate::kinds::storage::{binding, local_path as names};
use crate::rt::TaskGroup;

/// The file in a volume's directory that holds its file system or is its raw device.
const IMAGE: &str = "volume.img";
/// Is there while the file system is smaller than its file.
const GROWING: &str = "growing";
/// Where the file system in that file is mounted, in the volume's directory.
const MOUNTED: &str = "mounted";

/// The directories of this node.
#[derive(Debug, Clone)]
pub struct LocalPaths {
    /// Where the volumes are.
    directory: PathBuf,
    /// Which volumes were made here, by name: one that is gone although it was made is an error, not an empty volume.
    made: PathBuf,
}

impl LocalPaths {
    /// Volumes in `directory`; what was made is noted below `data_dir`.
    pub fn new(directory: PathBuf, data_dir: &Path) -> Self {
        Self { directory, made: data_dir.join("local-path") }
    }

    /// The path of a volume of ours on this node; `None` for any other volume.
    pub fn path_of(&self, volume: &PersistentVolume) -> Option<PathBuf> {
        if binding::annotation(&volume.metadata, binding::PROVISIONED_BY) != Some(names::PROVISIONER) {
            return None;
        }
        let path = PathBuf::from(&volume.spec.as_ref()?.local.as_ref()?.path);
        // Whatever the API says, nothing outside of the directory is made or removed.
        let name = format!("{}_", volume.metadata.name.as_deref()?);
        let is_own = path.file_name()?.to_str()?.starts_with(&name);
        (path.parent()? == self.directory && is_own).then_some(path)
    }

    /// Whether a volume has a file system of its own.
    pub fn is_loop(volume: &PersistentVolume) -> bool {
        binding::annotation(&volume.metadata, names::TYPE) == Some(names::LOOP)
    }

    /// Whether the file system at a path has not grown yet to its volume's size.
    pub fn is_growing(path: &Path) -> bool {
        path.join(GROWING).exists()
    }

    /// Makes the directory of a volume, once.
    fn make(&self, volume: &PersistentVolume, path: &Path) -> io::Result<()> {
        let note = self.made.join(volume.metadata.name.as_deref().unwrap_or(""));
        if path.is_dir() {
            return Ok(());
        }
        if note.exists() {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                format!("path {:?} does not exist: its data are gone", path.display()),
            ));
        }
        fs::create_dir_all(&self.directory)?;
        fs::create_dir(path)?;
        let mode = if Self::is_loop(volume) { 0o700 } else { 0o777 };
        fs::set_permissions(path, Permissions::from_mode(mode))?;
        fs::create_dir_all(&self.made)?;
        crate::rt::files::write(&note, path.as_os_str().as_encoded_bytes(), 0o600)
    }

    /// Brings a volume up: the directory that pods see, or the device.
    ///
    /// # Errors
    /// What is not possible, in words for an event.
    pub async fn set_up(&self, volume: &PersistentVolume, path: &Path, is_block: bool) -> Result<PathBuf, String> {
        let (this, own, of) = (self.clone(), volume.clone(), path.to_owned());
        blocking(move || this.make(&own, &of)).await?;
        if !Self::is_loop(volume) {
            return Ok(path.to_owned());
        }
        let image = path.join(IMAGE);
        let size_bytes = u64::try_from(binding::capacity(volume).value()).unwrap_or(0);
        make_image(&image, size_bytes, is_block).await?;
        let device = loop_device::attach(&image).await?;
        grow(path, &device, size_bytes, is_block).await?;
        if is_block {
            return Ok(device);
        }
        let growing = path.join(GROWING);
        let target = path.join(MOUNTED);
        let at = target.clone();
        let is_mounted = blocking(move || mounting::is_mounted(&at)).await?;
        if growing.exists() {
            match resize(&device, is_mounted).await {
                Ok(()) => blocking(move || fs::remove_file(growing)).await?,
                // A kernel that does not let it grow while it is in use lets it grow when the next pod starts.
                Err(why) if is_mounted => tracing::info!(path = %path.display(), why, "the volume grows when it is mounted next"),
                Err(why) => return Err(why),
            }
        }
        let (from, to) = (device, target.clone());
        blocking(move || mounting::file_system(&from, &to, "ext4")).await?;
        Ok(target)
    }

    /// Takes down what is mounted of a volume; its data stay.
    ///
    /// # Errors
    /// What stays mounted.
    pub async fn tear_down(&self, path: &Path) -> Result<(), String> {
        let target = path.join(MOUNTED);
        blocking(move || mounting::unmount_below(&target)).await?;
        loop_device::detach(&path.join(IMAGE)).await
    }

    /// Removes a volume and all that is in it. Can be done again.
    ///
    /// # Errors
    /// What could not be removed.
    pub async fn remove(&self, volume: &PersistentVolume, path: &Path) -> Result<(), String> {
        self.tear_down(path).await?;
        let (path, note) = (path.to_owned(), self.made.join(volume.metadata.name.as_deref().unwrap_or("")));
        blocking(move || {
            let missing_is_fine = |removed: io::Result<()>| match removed {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            };
            if !mounting::mounts_below(&path)?.is_empty() {
                return Err(io::Error::other(format!("something is mounted below {}", path.display())));
            }
            missing_is_fine(fs::remove_dir_all(&path))?;
            missing_is_fine(fs::remove_file(&note))
        })
        .await
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> Result<T, String> {
    TaskGroup::blocking(work).await.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
}

/// Makes the file, sparse, with an empty file system unless it is a raw device. It gets its name when it is complete.
async fn make_image(image: &Path, size_bytes: u64, is_block: bool) -> Result<(), String> {
    if image.exists() {
        return Ok(());
    }
    let half = image.with_extension("half");
    let path = half.clone();
    blocking(move || {
        let file = fs::File::create(&path)?;
        file.set_len(size_bytes)?;
        fs::set_permissions(&path, Permissions::from_mode(0o600))
    })
    .await?;
    if !is_block {
        // No space is kept back for root, and the owner may be anybody.
        let arguments = ["-q", "-F", "-m", "0", "-E", "root_owner=0:0,lazy_itable_init=1"].map(std::ffi::OsStr::new);
        let all: Vec<_> = arguments.into_iter().chain([half.as_os_str()]).collect();
        tool::run("mkfs.ext4", &all).await?;
    }
    let image = image.to_owned();
    blocking(move || fs::rename(&half, &image)).await
}

/// Makes the file as big as the volume is to be, if it is smaller; its file system is then to follow.
async fn grow(path: &Path, device: &Path, size_bytes: u64, is_block: bool) -> Result<(), String> {
    let (image, growing) = (path.join(IMAGE), path.join(GROWING));
    let has_grown = blocking(move || {
        let file = fs::OpenOptions::new().write(true).open(&image)?;
        let is_smaller = file.metadata()?.len() < size_bytes;
        if is_smaller {
            if !is_block {
                crate::rt::files::write(&growing, b"", 0o600)?;
            }
            file.set_len(size_bytes)?;
        }
        Ok(is_smaller)
    })
    .await?;
    if has_grown {
        loop_device::resize(device).await?;
    }
    Ok(())
}

/// Makes the file system as big as its device.
async fn resize(device: &Path, is_mounted: bool) -> Result<(), String> {
    if !is_mounted {
        let check = ["-f".as_ref(), "-p".as_ref(), device.as_os_str()];
        // It fails too when it has repaired something; then the second run finds nothing.
        if tool::run("e2fsck", &check).await.is_err() {
            tool::run("e2fsck", &check).await?;
        }
    }
    tool::run("resize2fs", &[device]).await.map(drop)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn volume(path: &str, by: &str, kind: &str) -> PersistentVolume {
        let annotations: Value = json!({binding::PROVISIONED_BY: by, names::TYPE: kind});
        serde_json::from_value(json!({"metadata": {"name": "pvc-1", "annotations": annotations},
            "spec": {"local": {"path": path}, "capacity": {"storage": "16Mi"}}}))
        .unwrap()
    }

    #[test]
    fn only_what_is_ours_is_touched() {
        let paths = LocalPaths::new("/data/storage".into(), Path::new("/data/agent"));
        for (path, by, expected) in [
            ("/data/storage/pvc-1_ns_c", names::PROVISIONER, true),
            ("/data/storage/pvc-1_ns_c", "x.io/y", false),
            ("/etc", names::PROVISIONER, false),
            ("/data/storage/pvc-2_ns_c", names::PROVISIONER, false),
            ("/data/storage/../pvc-1_ns_c", names::PROVISIONER, false),
            ("/data/storage", names::PROVISIONER, false),
        ] {
            assert_eq!(paths.path_of(&volume(path, by, "directory")).is_some(), expected, "{path} {by}");
        }
    }

    #[tokio::test]
    async fn data_that_are_gone_are_not_replaced_by_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let storage = folder.path().join("storage");
        let paths = LocalPaths::new(storage.clone(), &folder.path().join("agent"));
        let path = storage.join("pvc-1_ns_c");
        let volume = volume(path.to_str().unwrap(), names::PROVISIONER, "directory");
        assert_eq!(paths.set_up(&volume, &path, false).await.unwrap(), path);
        fs::write(path.join("f"), "1").unwrap();
        paths.set_up(&volume, &path, false).await.unwrap();
        assert!(path.join("f").exists());
        fs::remove_dir_all(&path).unwrap();
        assert!(paths.set_up(&volume, &path, false).await.unwrap_err().contains("data are gone"));
        paths.remove(&volume, &path).await.unwrap();
        paths.set_up(&volume, &path, false).await.unwrap();
    }

    #[tokio::test]
    async fn a_loop_volume_has_its_size_and_grows() {
        let folder = tempfile::tempdir().unwrap();
        let storage = folder.path().join("storage");
        let paths = LocalPaths::new(storage.clone(), &folder.path().join("agent"));
        let path = storage.join("pvc-1_ns_c");
        let mut volume = volume(path.to_str().unwrap(), names::PROVISIONER, "loop");
        let target = paths.set_up(&volume, &path, false).await.unwrap();
        let total = |target: &Path| nix::sys::statvfs::statvfs(target).map(|stat| stat.blocks() * stat.fragment_size()).unwrap();
        let small = total(&target);
        assert!((8 << 20..=16 << 20).contains(&small), "{small}");
        fs::write(target.join("f"), "1").unwrap();
        volume.spec.as_mut().unwrap().capacity = serde_json::from_value(json!({"storage": "64Mi"})).unwrap();
        paths.set_up(&volume, &path, false).await.unwrap();
        if LocalPaths::is_growing(&path) {
            // This kernel lets nobody grow a file system that is in use.
            paths.tear_down(&path).await.unwrap();
            paths.set_up(&volume, &path, false).await.unwrap();
        }
        assert!(!LocalPaths::is_growing(&path));
        assert!(total(&target) > 48 << 20, "{}", total(&target));
        assert!(target.join("f").exists());
        paths.tear_down(&path).await.unwrap();
        assert!(loop_device::find(&path.join(IMAGE)).is_none() && !target.join("f").exists());
        paths.remove(&volume, &path).await.unwrap();
        assert!(!path.exists());
    }
}
