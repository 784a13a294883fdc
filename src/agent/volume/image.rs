//! Image volumes: the files of an image, read-only. An image is unpacked once a node, into a directory that is named after its id and
//! that all pods share; it goes when the last of them is gone.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Container, ImageVolumeSource, Pod};
use tokio::sync::Mutex;

use super::blocking;
use crate::agent::pod::context::{Context, MountedVolume};
use crate::agent::pod::pull_secrets;
use crate::rt::random;

/// Directory in a pod's directory whose files are named after the images that the pod has as volumes.
const NOTES: &str = "image-volumes";

/// The unpacked images of a node.
pub struct ImageVolumes {
    directory: PathBuf,
    gate: Mutex<()>,
}

impl ImageVolumes {
    /// Images unpacked below `data_dir`.
    pub fn new(data_dir: &Path) -> Self {
        Self { directory: data_dir.join("image-volumes"), gate: Mutex::new(()) }
    }

    /// Makes an image visible to a pod. Idempotent.
    ///
    /// # Errors
    /// Why the image is not there.
    pub async fn set_up(
        &self,
        context: &Context,
        pod: &Pod,
        name: &str,
        source: &ImageVolumeSource,
    ) -> Result<MountedVolume, String> {
        let note = context.pod_dir(pod).join(NOTES).join(name);
        if let Ok(id) = tokio::fs::read_to_string(&note).await
            && self.directory.join(&id).is_dir()
        {
            // What a pod began with stays, whatever its tag means now.
            return Ok(MountedVolume { path: self.directory.join(id), read_only: true, is_device: false });
        }
        // The image manager knows images by the container that wants them.
        let wanted = Container {
            name: name.to_owned(),
            image: source.reference.clone(),
            image_pull_policy: source.pull_policy.clone(),
            ..Container::default()
        };
        let auths = pull_secrets(context, pod).await;
        let image = context.images.ensure(pod, &wanted, &auths).await.map_err(|failure| failure.message)?;
        let id = image.id.trim_start_matches("sha256:").to_owned();
        let path = self.directory.join(&id);
        let _one = self.gate.lock().await;
        let (folder, text) = (note.clone(), id.clone());
        blocking(move || {
            if let Some(folder) = folder.parent() {
                fs::create_dir_all(folder)?;
            }
            crate::rt::files::write(&folder, text.as_bytes(), 0o600)
        })
        .await?;
        if !path.is_dir() {
            self.unpack(context, &image.id, &path).await?;
        }
        Ok(MountedVolume { path, read_only: true, is_device: false })
    }

    /// Unpacks beside the place and moves it there when it is complete.
    async fn unpack(&self, context: &Context, image: &str, path: &Path) -> Result<(), String> {
        let half = self.directory.join(format!(".half-{}", random::suffix(8)));
        let made = half.clone();
        blocking(move || fs::create_dir_all(made)).await?;
        let unpacked = context.runtime.unpack_image(image, &half).await.map_err(|error| error.to_string());
        let to = path.to_owned();
        blocking(move || match &unpacked {
            Ok(()) => fs::rename(&half, &to),
            Err(why) => {
                fs::remove_dir_all(&half)?;
                Err(io::Error::other(why.clone()))
            }
        })
        .await
    }

    /// Removes the images that a pod had and no other pod has. Idempotent.
    ///
    /// # Errors
    /// As the file system has it.
    pub async fn tear_down(&self, pods_dir: &Path, uid: &str) -> Result<(), String> {
        let notes = pods_dir.join(uid).join(NOTES);
        if !notes.is_dir() {
            return Ok(());
        }
        let _one = self.gate.lock().await;
        let (pods_dir, directory) = (pods_dir.to_owned(), self.directory.clone());
        blocking(move || {
            let mine = noted(&notes);
            fs::remove_dir_all(&notes)?;
            let others = fs::read_dir(&pods_dir)?.flatten().flat_map(|pod| noted(&pod.path().join(NOTES))).collect::<Vec<_>>();
            for id in mine.iter().filter(|id| !others.contains(id)) {
                match fs::remove_dir_all(directory.join(id)) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
            }
            Ok(())
        })
        .await
    }

    /// Removes what a start that was cut off left behind.
    ///
    /// # Errors
    /// As the file system has it.
    pub fn sweep(&self) -> io::Result<()> {
        let Ok(entries) = fs::read_dir(&self.directory) else { return Ok(()) };
        for entry in entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(".half-")) {
            fs::remove_dir_all(entry.path())?;
        }
        Ok(())
    }
}

/// The ids of images that are noted, each as it can be a directory's name.
fn noted(notes: &Path) -> Vec<String> {
    let files = fs::read_dir(notes).into_iter().flatten().flatten();
    let ids = files.filter_map(|file| fs::read_to_string(file.path()).ok());
    ids.filter(|id| !id.is_empty() && id.chars().all(|letter| letter.is_ascii_alphanumeric())).collect()
}
