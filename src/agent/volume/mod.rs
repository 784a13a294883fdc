//! Volumes: the directories on the host that a pod's containers see. Each kind makes its directory under
//! `DATA/agent/pods/<uid>/volumes`, as the kubelet does; asked again, it brings it up to date.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, Volume};
use parking_lot::Mutex;
use std::net::IpAddr;

use super::csi::CsiMounts;
use super::pod::context::{Context, MountedVolumes};
use super::pod::resources::huge_pages;
use crate::rt::TaskGroup;

pub mod certificate;
pub mod iscsi;
pub mod mounting;
pub mod reclaim;
pub mod sub_path;
pub mod trust;

mod atomic;
mod claim;
mod empty_dir;
mod file_system;
mod gather;
mod host_path;
mod image;
mod local_path;
mod loop_device;
mod nfs;
mod ownership;
mod persistent;
mod promoted;
mod token;
mod tool;

use certificate::Certificates;
use gather::{GatherError, Gathered};
use image::ImageVolumes;
use local_path::LocalPaths;
use persistent::{Failure, Persistent};
use token::Tokens;

/// Why a pod's volumes are not there; the words are those of the kubelet's `FailedMount`.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// A volume could not be set up; the step has upstream's name.
    #[error("{step} failed for volume \"{volume}\" : {why}")]
    SetUp { step: &'static str, volume: String, why: String },
    /// Which volume is meant is not known.
    #[error(
        "Unable to attach or mount volumes: unmounted volumes=[{volume}], unattached volumes=[], \
         failed to process volumes=[{volume}]: {why}"
    )]
    Process { volume: String, why: String },
    /// What a pod had could not be taken down.
    #[error("UnmountVolume.TearDown failed for {}: {why}", path.display())]
    TearDown { path: PathBuf, why: String },
}

/// The step of most volumes.
const SET_UP: &str = "MountVolume.SetUp";

/// Sets up and takes down the volumes of the node's pods.
pub struct Volumes {
    tokens: Tokens,
    certificates: Certificates,
    persistent: Persistent,
    images: ImageVolumes,
    /// When a token or certificate in a pod's volumes must be renewed.
    renewals: Mutex<BTreeMap<String, Timestamp>>,
}

impl Volumes {
    /// Volumes of an agent whose state is below `data_dir`; local volumes are made in `storage_dir`.
    pub fn new(data_dir: &Path, storage_dir: PathBuf, csi: CsiMounts) -> Self {
        Self {
            tokens: Tokens::default(),
            certificates: Certificates::default(),
            persistent: Persistent::new(LocalPaths::new(storage_dir, data_dir), csi, data_dir),
            images: ImageVolumes::new(data_dir),
            renewals: Mutex::default(),
        }
    }

    /// Removes what a run that was cut off left half-done.
    ///
    /// # Errors
    /// As the file system has it.
    pub fn sweep(&self) -> std::io::Result<()> {
        self.images.sweep()
    }

    /// The node's volumes of the built-in provisioner.
    pub fn local_paths(&self) -> &LocalPaths {
        self.persistent.local_paths()
    }

    /// Makes all volumes of a pod. Idempotent.
    ///
    /// # Errors
    /// The first volume that failed; the others may be there. Try again.
    pub async fn set_up(&self, context: &Context, pod: &Pod, pod_ip: Option<IpAddr>) -> Result<MountedVolumes, VolumeError> {
        let volumes: Vec<&Volume> = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()).collect();
        let set_up = volumes.into_iter().map(|volume| async move {
            let name = volume.name.clone();
            if volume.persistent_volume_claim.is_some() || volume.ephemeral.is_some() {
                return match self.persistent.set_up(context, pod, volume).await {
                    Ok(mounted) => Ok((name, mounted)),
                    Err(Failure::Claim(why)) => Err(VolumeError::Process { volume: name, why }),
                    Err(Failure::SetUp { step, volume, why }) => Err(VolumeError::SetUp { step, volume, why }),
                };
            }
            let failed = |(step, why)| VolumeError::SetUp { step, volume: name.clone(), why };
            if let Some(source) = &volume.image {
                let mounted = self.images.set_up(context, pod, &name, source).await;
                return mounted.map(|mounted| (name.clone(), mounted)).map_err(|why| failed((SET_UP, why)));
            }
            if let Some(source) = &volume.iscsi {
                let path = self.persistent.iscsi().set_up_inline(context, pod, &name, source).await;
                return path.map(|path| (name.clone(), path.into())).map_err(|why| failed(why.into_step(false)));
            }
            let path = self.set_up_one(context, pod, volume, pod_ip).await;
            path.map(|path| (name.clone(), path.into())).map_err(|why| failed((SET_UP, why)))
        });
        futures_util::future::join_all(set_up).await.into_iter().collect()
    }

    /// Brings volumes whose content comes from the API up to date.
    ///
    /// # Errors
    /// As [`set_up`](Self::set_up).
    pub async fn refresh(&self, context: &Context, pod: &Pod, pod_ip: Option<IpAddr>) -> Result<(), VolumeError> {
        self.set_up(context, pod, pod_ip).await.map(drop)
    }

    /// When the pod's volumes must be refreshed although nothing changes: a token or certificate in them grows old.
    pub fn renew_at(&self, uid: &str) -> Option<Timestamp> {
        self.renewals.lock().get(uid).copied()
    }

    /// Removes all mounts and directories of a pod's volumes. Idempotent.
    ///
    /// # Errors
    /// What could not be unmounted or removed: try again.
    pub async fn tear_down(&self, context: &Context, uid: &str) -> Result<(), VolumeError> {
        self.renewals.lock().remove(uid);
        self.tokens.forget(uid);
        self.certificates.forget(uid);
        let pod_dir = context.pods_dir.join(uid);
        let failed = |why: String| VolumeError::TearDown { path: pod_dir.clone(), why };
        // Drivers unmount what they mounted before anything else is unmounted.
        self.persistent.csi().unpublish(&pod_dir).await.map_err(failed)?;
        mounting::unmount_all_below(&pod_dir).await.map_err(failed)?;
        let work = {
            let pod_dir = pod_dir.clone();
            move || {
                for name in ["volumes", "volume-subpaths"] {
                    match std::fs::remove_dir_all(pod_dir.join(name)) {
                        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
                        _ => {}
                    }
                }
                Ok(())
            }
        };
        let done = TaskGroup::blocking(work).await.map_err(|error| failed(error.to_string()))?;
        done.map_err(|error| failed(error.to_string()))?;
        self.images.tear_down(&context.pods_dir, uid).await.map_err(failed)?;
        self.persistent.tear_down(&context.pods_dir, uid).await.map_err(failed)
    }

    async fn set_up_one(&self, context: &Context, pod: &Pod, volume: &Volume, pod_ip: Option<IpAddr>) -> Result<PathBuf, String> {
        let fs_group = pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref()).and_then(|context| context.fs_group);
        let directory = |plugin: &str| context.pod_dir(pod).join("volumes").join(plugin).join(&volume.name);
        if let Some(empty_dir) = volume.empty_dir.clone() {
            let path = directory("kubernetes.io~empty-dir");
            let pages = pod.spec.iter().flat_map(huge_pages).map(|name| name.trim_start_matches("hugepages-").to_owned());
            let pages = pages.collect();
            return blocking(move || empty_dir::set_up(&empty_dir, &path, fs_group, &pages).map(|()| path)).await;
        }
        if let Some(host_path) = volume.host_path.clone() {
            return blocking(move || host_path::check(&host_path)).await;
        }
        if let Some(csi) = &volume.csi {
            return self.persistent.csi().set_up_inline(context, pod, &volume.name, csi).await;
        }
        if let Some(nfs) = &volume.nfs {
            let path = directory("kubernetes.io~nfs");
            return nfs::mount(nfs, &[], &path, false).await.map(|()| path);
        }
        let (plugin, gathered) = match gather::gather(self, context, pod, volume, pod_ip).await {
            Some((plugin, gathered)) => (plugin, gathered),
            None => return Err(unsupported(volume)),
        };
        let path = directory(plugin);
        let gathered: Gathered = match gathered {
            Ok(gathered) => gathered,
            // What is there from before goes on to serve while the API is away.
            Err(GatherError::Unavailable(why)) if atomic::is_written(&path) => {
                tracing::debug!(volume = volume.name, why, "the volume stays as it is");
                return Ok(path);
            }
            Err(error) => return Err(error.to_string()),
        };
        if let (Some(renew_at), Some(uid)) = (gathered.renew_at, &pod.metadata.uid) {
            let mut renewals = self.renewals.lock();
            let next = renewals
                .get(uid)
                .map_or(renew_at, |known| if *known > context.clock.now() { renew_at.min(*known) } else { renew_at });
            renewals.insert(uid.clone(), next);
        }
        blocking(move || {
            if gathered.on_tmpfs {
                mounting::tmpfs(&path, None)?;
            }
            atomic::write(&path, &gathered.files, fs_group)?;
            Ok(path)
        })
        .await
    }
}

/// Makes a directory whose files never touch the disk. It goes with the pod's other volumes.
///
/// # Errors
/// As the kernel has it: root is needed.
pub fn keep_in_memory(directory: &Path) -> std::io::Result<()> {
    mounting::tmpfs(directory, None)
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> std::io::Result<T> + Send + 'static) -> Result<T, String> {
    let done = TaskGroup::blocking(work).await.map_err(|error| error.to_string())?;
    done.map_err(|error| error.to_string())
}

fn unsupported(volume: &Volume) -> String {
    let value = serde_json::to_value(volume).unwrap_or_default();
    let mut kinds = value.as_object().into_iter().flat_map(serde_json::Map::keys);
    let kind = kinds.find(|key| *key != "name").cloned();
    match kind {
        Some(kind) => format!("volumes of type {kind} are not supported by this version"),
        None => "no volume source is given".to_owned(),
    }
}

/// How long before its end a token is renewed: at four fifths of its life, and after a day.
const LONGEST_TOKEN_USE: Duration = Duration::from_secs(24 * 3_600);

/// Whether a path stays below the directory that it is joined to.
fn is_local(path: &Path) -> bool {
    path.components().all(|part| matches!(part, std::path::Component::Normal(_)))
}
