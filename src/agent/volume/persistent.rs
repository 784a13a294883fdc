//! Persistent volumes on this node: each source is made visible as a directory or device for the pods that claim it, and taken down
//! when the last of them is gone.

use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{LocalVolumeSource, PersistentVolumeClaim, Pod};
use serde_json::json;

use super::claim::{self, Claimed};
use super::file_system::{self, Wanted};
use super::iscsi::Iscsi;
use super::local_path::LocalPaths;
use super::{SET_UP, blocking, host_path, loop_device, mounting, nfs, ownership};
use crate::agent::csi::CsiMounts;
use crate::agent::pod::context::{Context, MountedVolume};
use crate::client::PatchKind;
use crate::rt::gates::Gates;

/// The node's persistent volumes. Each is set up or taken down for one pod at a time, so that who takes it down sees who still uses it.
pub struct Persistent {
    local_paths: LocalPaths,
    csi: CsiMounts,
    iscsi: Iscsi,
    /// Where file systems of devices are mounted (`DATA/agent/plugins`).
    plugins: PathBuf,
    gates: Gates,
}

/// Why a volume is not there.
pub enum Failure {
    /// Its claim does not tell.
    Claim(String),
    /// This volume failed, in this step.
    SetUp { step: &'static str, volume: String, why: String },
}

impl Persistent {
    /// Volumes whose own state is below `data_dir`.
    pub fn new(local_paths: LocalPaths, csi: CsiMounts, data_dir: &Path) -> Self {
        Self { local_paths, csi, iscsi: Iscsi::new(data_dir), plugins: data_dir.join("plugins"), gates: Gates::default() }
    }

    /// The node's volumes of the built-in provisioner.
    pub fn local_paths(&self) -> &LocalPaths {
        &self.local_paths
    }

    /// The node's CSI volumes.
    pub fn csi(&self) -> &CsiMounts {
        &self.csi
    }

    /// The node's iSCSI disks.
    pub fn iscsi(&self) -> &Iscsi {
        &self.iscsi
    }

    /// Makes the volume of a claim visible to a pod. Idempotent.
    ///
    /// # Errors
    /// [`Failure`], in the kubelet's words.
    pub async fn set_up(
        &self,
        context: &Context,
        pod: &Pod,
        volume: &k8s_openapi::api::core::v1::Volume,
    ) -> Result<MountedVolume, Failure> {
        let mut claimed = claim::resolve(context, pod, volume).await.map_err(Failure::Claim)?;
        let pod_dir = context.pod_dir(pod);
        let failed_in = |(step, why)| Failure::SetUp { step, volume: claimed.volume_name().to_owned(), why };
        let failed = |why: String| failed_in((SET_UP, why));
        let _one = self.gates.enter(claimed.volume_name()).await;
        // Noted first: whoever takes the volume down for another pod must see this one.
        let (note, folder) = (claimed.clone(), pod_dir.clone());
        blocking(move || note.note(&folder)).await.map_err(failed)?;
        let spec = claimed.volume.spec.as_ref();
        let is_csi = spec.is_some_and(|spec| spec.csi.is_some());
        let (path, takes_group) = if is_csi {
            let published = self.csi.set_up(context, pod, &claimed.volume, claimed.read_only).await.map_err(failed)?;
            (published.path, published.takes_group)
        } else if let Some(source) = spec.and_then(|spec| spec.iscsi.as_ref()) {
            let path = self.iscsi.set_up_volume(context, pod, &claimed.volume, source).await;
            (path.map_err(|why| failed_in(why.into_step(claimed.is_block())))?, source.read_only != Some(true))
        } else {
            self.source(&claimed, &pod_dir).await.map_err(failed)?
        };
        let is_growing = self.local_paths.path_of(&claimed.volume).is_some_and(|path| LocalPaths::is_growing(&path));
        if claimed.has_grown && !is_growing && (is_csi || LocalPaths::is_loop(&claimed.volume)) {
            self.csi.expand(&claimed.volume, &path).await.map_err(failed)?;
            say_grown(context, pod, &claimed).await.map_err(failed)?;
        }
        let mounted = MountedVolume { path, read_only: claimed.read_only, is_device: claimed.is_block() };
        let security = pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref());
        let group = security.and_then(|security| security.fs_group);
        if group.is_some() && takes_group && !claimed.is_owned && !mounted.is_device && !mounted.read_only {
            let policy = security.and_then(|security| security.fs_group_change_policy.as_deref()) == Some("OnRootMismatch");
            let path = mounted.path.clone();
            let given = blocking(move || {
                if policy && ownership::is_given(&path, group)? {
                    return Ok(());
                }
                ownership::give_to_group(&path, group, ownership::Access::ReadWrite)
            });
            given.await.map_err(failed)?;
        }
        if !claimed.is_owned {
            claimed.is_owned = true;
            let volume = claimed.volume_name().to_owned();
            blocking(move || claimed.note(&pod_dir)).await.map_err(|why| Failure::SetUp { step: SET_UP, volume, why })?;
        }
        Ok(mounted)
    }

    /// Where the volume's source is, and whether a pod's `fsGroup` is given what is in it.
    async fn source(&self, claimed: &Claimed, pod_dir: &Path) -> Result<(PathBuf, bool), String> {
        let volume = &claimed.volume;
        let spec = volume.spec.as_ref().ok_or("the volume has no specification")?;
        if let Some(path) = self.local_paths.path_of(volume) {
            return self.local_paths.set_up(volume, &path, claimed.is_block()).await.map(|path| (path, true));
        }
        if let Some(source) = spec.host_path.clone() {
            return blocking(move || host_path::check(&source)).await.map(|path| (path, false));
        }
        if let Some(source) = &spec.local {
            return self.local(claimed, source).await.map(|path| (path, true));
        }
        if let Some(source) = &spec.nfs {
            let target = pod_dir.join("volumes/kubernetes.io~nfs").join(claimed.volume_name());
            let options = spec.mount_options.as_deref().unwrap_or(&[]);
            nfs::mount(source, options, &target, claimed.read_only).await?;
            return Ok((target, false));
        }
        Err("no volume plugin matched".to_owned())
    }

    /// A path of this node: a directory, a device with a file system, or a raw device.
    async fn local(&self, claimed: &Claimed, source: &LocalVolumeSource) -> Result<PathBuf, String> {
        let path = PathBuf::from(&source.path);
        let meta = match fs::metadata(&path) {
            Ok(meta) => meta,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(format!("path {:?} does not exist", source.path));
            }
            Err(error) => return Err(format!("path {:?}: {error}", source.path)),
        };
        if claimed.is_block() {
            return match meta {
                meta if meta.file_type().is_block_device() => Ok(path),
                meta if meta.is_file() => loop_device::attach(&path).await,
                _ => Err(format!("path {:?} is neither a block device nor a file", source.path)),
            };
        }
        if meta.is_dir() {
            return Ok(path);
        }
        if !meta.file_type().is_block_device() {
            return Err(format!("path {:?} is neither a directory nor a block device", source.path));
        }
        let options = claimed.volume.spec.as_ref().and_then(|spec| spec.mount_options.as_deref()).unwrap_or(&[]);
        let target = self.device_mount(claimed.volume_name());
        // Pods that may only read share the mount with those that write.
        let wanted = Wanted { kind: source.fs_type.as_deref().unwrap_or(""), options, read_only: false };
        file_system::format_and_mount(&path, &target, wanted).await?;
        Ok(target)
    }

    fn device_mount(&self, volume: &str) -> PathBuf {
        self.plugins.join("kubernetes.io~local-volume/mounts").join(volume)
    }

    /// Takes down what a pod claimed and no other pod of this node uses. The pod's own directory is unmounted by then. Idempotent.
    ///
    /// # Errors
    /// What stays.
    pub async fn tear_down(&self, pods_dir: &Path, uid: &str) -> Result<(), String> {
        self.iscsi.tear_down(pods_dir, uid).await?;
        let pod_dir = pods_dir.join(uid);
        let claims = claim::noted(&pod_dir);
        if claims.is_empty() {
            return Ok(());
        }
        for claimed in claims {
            let _one = self.gates.enter(claimed.volume_name()).await;
            if !claim::is_used(pods_dir, claimed.volume_name(), uid) {
                self.take_down(&claimed).await?;
            }
        }
        blocking(move || match fs::remove_dir_all(pod_dir.join("claims")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        })
        .await
    }

    async fn take_down(&self, claimed: &Claimed) -> Result<(), String> {
        if let Some(path) = self.local_paths.path_of(&claimed.volume) {
            return if LocalPaths::is_loop(&claimed.volume) { self.local_paths.tear_down(&path).await } else { Ok(()) };
        }
        if let Some(source) = claimed.volume.spec.as_ref().and_then(|spec| spec.csi.as_ref()) {
            return self.csi.unstage(source).await;
        }
        let Some(source) = claimed.volume.spec.as_ref().and_then(|spec| spec.local.as_ref()) else { return Ok(()) };
        let path = PathBuf::from(&source.path);
        if claimed.is_block() && path.is_file() {
            return loop_device::detach(&path).await;
        }
        let target = self.device_mount(claimed.volume_name());
        if !target.exists() {
            return Ok(());
        }
        blocking(move || {
            mounting::unmount_below(&target)?;
            fs::remove_dir(&target)
        })
        .await
    }
}

/// Says on the claim that the file system has the size that was asked for.
async fn say_grown(context: &Context, pod: &Pod, claimed: &Claimed) -> Result<(), String> {
    let capacity = claimed.volume.spec.as_ref().and_then(|spec| spec.capacity.clone());
    let patch = json!({"status": {"capacity": capacity, "conditions": null}});
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("");
    let client = &context.client;
    let patched =
        client.patch::<PersistentVolumeClaim>(namespace, &claimed.claim, Some("status"), PatchKind::Merge, &patch).await;
    patched.map_err(|error| format!("the new size was not written: {error}"))?;
    let message = "MountVolume.NodeExpandVolume succeeded for volume";
    context.event(pod, None, false, "FileSystemResizeSuccessful", &format!("{message} {:?}", claimed.volume_name()));
    Ok(())
}
