//! iSCSI: disks of a target, by the host's own initiator (upstream `pkg/volume/iscsi`). A disk is mounted once on a node; which pods use it
//! is noted beside the mount, and with the last of them the disk goes, and with a target's last disk the session.

use std::fs;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::StreamExt;
use inotify::{Inotify, WatchMask};
use k8s_openapi::api::core::v1::{ISCSIPersistentVolumeSource, ISCSIVolumeSource, PersistentVolume, Pod, Secret};

mod admin;
mod disk;
mod sysfs;

use admin::Chap;
pub use disk::Disk;
use sysfs::Sysfs;

use super::file_system::{self, Wanted};
use super::{blocking, mounting, ownership, tool};
use crate::agent::pod::context::Context;
use crate::rt::gates::Gates;

/// How long a disk may take to appear: upstream's `multipathDeviceTimeout`.
const APPEARS: Duration = Duration::from_secs(10);
const UNMOUNT: Duration = Duration::from_secs(60);
/// Is there where paths are put together.
const MULTIPATHD: &str = "/run/multipathd.pid";
/// In the folder of a disk: its mount, and a file for each pod that uses it.
const MOUNT: &str = "mount";
const PODS: &str = "pods";

/// Why a disk is not there.
#[derive(Debug)]
pub enum Failure {
    /// The node has not got the disk.
    Attach(String),
    /// The disk has no file system that can be mounted.
    Mount(String),
}

impl Failure {
    /// The step of upstream's that failed, and why.
    pub fn into_step(self, is_block: bool) -> (&'static str, String) {
        match self {
            Self::Attach(why) if is_block => ("MapVolume.WaitForAttach", why),
            Self::Attach(why) => ("MountVolume.WaitForAttach", why),
            Self::Mount(why) => ("MountVolume.MountDevice", why),
        }
    }
}

/// What a pod's marker says once the pod has the disk.
const READY: &str = "ready";

/// The node's iSCSI disks.
#[derive(Debug)]
pub struct Iscsi {
    /// `DATA/agent/plugins/kubernetes.io/iscsi`.
    folder: PathBuf,
    sysfs: Sysfs,
    /// By target: a login and a logout of the same must not meet.
    gates: Gates,
}

impl Iscsi {
    /// Disks of an agent whose state is below `data_dir`.
    pub fn new(data_dir: &Path) -> Self {
        Self { folder: data_dir.join("plugins/kubernetes.io/iscsi"), sysfs: Sysfs::default(), gates: Gates::default() }
    }

    /// Makes the disk of a volume in a pod's own specification visible to the pod. Idempotent.
    ///
    /// # Errors
    /// [`Failure`], in upstream's words.
    pub async fn set_up_inline(
        &self,
        context: &Context,
        pod: &Pod,
        volume: &str,
        source: &ISCSIVolumeSource,
    ) -> Result<PathBuf, Failure> {
        let disk = Disk::of_pod(volume, pod.metadata.namespace.as_deref().unwrap_or(""), source).map_err(Failure::Attach)?;
        let security = pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref());
        let group = security.and_then(|security| security.fs_group).filter(|_| !disk.read_only);
        self.set_up(context, &context.pod_dir(pod), disk, group).await
    }

    /// Makes the disk of a PersistentVolume visible to a pod; whose files they are is the caller's business. Idempotent.
    ///
    /// # Errors
    /// [`Failure`], in upstream's words.
    pub async fn set_up_volume(
        &self,
        context: &Context,
        pod: &Pod,
        volume: &PersistentVolume,
        source: &ISCSIPersistentVolumeSource,
    ) -> Result<PathBuf, Failure> {
        let name = volume.metadata.name.as_deref().unwrap_or("");
        let namespace = pod.metadata.namespace.as_deref().unwrap_or("");
        let disk = Disk::of_volume(name, namespace, source).map_err(Failure::Attach)?;
        let spec = volume.spec.as_ref();
        let is_block = spec.is_some_and(|spec| spec.volume_mode.as_deref() == Some("Block"));
        let mount_options = spec.and_then(|spec| spec.mount_options.clone()).unwrap_or_default();
        self.set_up(context, &context.pod_dir(pod), Disk { is_block, mount_options, ..disk }, None).await
    }

    async fn set_up(&self, context: &Context, pod_dir: &Path, disk: Disk, group: Option<i64>) -> Result<PathBuf, Failure> {
        let _one = self.gates.enter(&disk.iqn).await;
        let folder = disk.folder(&self.folder);
        let marker = folder.join(PODS).join(pod_dir.file_name().unwrap_or_default());
        // Noted first: whoever takes the disk away must see this pod.
        let (at, of, note, pod_dir) = (folder.clone(), marker.clone(), disk.clone(), pod_dir.to_owned());
        let is_new = blocking(move || {
            fs::create_dir_all(pod_dir)?;
            fs::create_dir_all(at.join(PODS))?;
            note.note(&at)?;
            if fs::read_to_string(&of).is_ok_and(|text| text == READY) { Ok(false) } else { fs::write(&of, "").map(|()| true) }
        });
        let is_new = is_new.await.map_err(Failure::Attach)?;
        let path = self.make_ready(context, &disk, folder.join(MOUNT)).await?;
        if is_new {
            let (at, group) = (path.clone(), group.filter(|_| !disk.is_block));
            let given = blocking(move || {
                ownership::give_to_group(&at, group, ownership::Access::ReadWrite)?;
                fs::write(&marker, READY)
            });
            given.await.map_err(Failure::Mount)?;
        }
        Ok(path)
    }

    async fn make_ready(&self, context: &Context, disk: &Disk, target: PathBuf) -> Result<PathBuf, Failure> {
        let at = target.clone();
        if !disk.is_block && blocking(move || mounting::is_mounted(&at)).await.map_err(Failure::Mount)? {
            return Ok(target);
        }
        let device = match self.attach(context, disk).await {
            Ok(device) => device,
            Err(why) => {
                admin::remove_interface(disk).await;
                return Err(Failure::Attach(why));
            }
        };
        if disk.is_block {
            return Ok(device);
        }
        let wanted = Wanted { kind: &disk.fs_type, options: &disk.mount_options, read_only: disk.read_only };
        file_system::format_and_mount(&device, &target, wanted).await.map_err(Failure::Mount)?;
        Ok(target)
    }

    /// Brings the disk to this node, through each of its portals.
    async fn attach(&self, context: &Context, disk: &Disk) -> Result<PathBuf, String> {
        let mut chap = None;
        let (mut paths, mut last) = (Vec::new(), String::new());
        for portal in &disk.portals {
            if self.sysfs.session(&disk.iqn, portal, &disk.interface).is_none() {
                if chap.is_none() {
                    chap = Some(secret(context, disk).await?);
                    admin::ensure_interface(disk).await?;
                }
                if let Err(why) = admin::log_in(disk, portal, chap.as_ref().unwrap_or(&Chap::new())).await {
                    last = why;
                    continue;
                }
            }
            match self.wait_for_disk(disk, portal).await {
                Ok(name) => paths.push(name),
                Err(why) => last = why,
            }
        }
        let Some(first) = paths.first() else {
            return Err(format!("failed to get any path for iscsi disk, last err seen:\n{last}"));
        };
        let name = match self.multipath(&paths).await {
            Some(over) => over,
            None => first.clone(),
        };
        Ok(Path::new("/dev").join(name))
    }

    /// Has the kernel look for the disk behind a portal, and waits until it has a device.
    async fn wait_for_disk(&self, disk: &Disk, portal: &str) -> Result<String, String> {
        let session = self.sysfs.session(&disk.iqn, portal, &disk.interface);
        let session = session.ok_or_else(|| format!("iscsi: no session with {} through {portal} after the login", disk.iqn))?;
        let find = || self.sysfs.disk(&session, disk.lun).filter(|name| Path::new("/dev").join(name).exists());
        if let Some(name) = find() {
            return Ok(name);
        }
        let (sysfs, of, lun) = (self.sysfs.clone(), session.clone(), disk.lun);
        let scan = async { blocking(move || sysfs.scan(&of, lun)).await.map_err(|why| format!("iscsi: scan: {why}")) };
        let found = appears(scan, find).await?;
        found.ok_or_else(|| format!("Timed out waiting for device at path {} after {}s", disk.by_path(portal), APPEARS.as_secs()))
    }

    /// The device that multipathd puts over several paths.
    async fn multipath(&self, paths: &[String]) -> Option<String> {
        let find = || paths.iter().find_map(|path| self.sysfs.multipath(path));
        if let Some(found) = find() {
            return Some(found);
        }
        if paths.len() < 2 || !Path::new(MULTIPATHD).exists() {
            return None;
        }
        appears(async { Ok(()) }, find).await.ok().flatten()
    }

    /// Takes away the disks that no pod uses now that this one is gone. The pod's own directory is unmounted by then. Idempotent.
    ///
    /// # Errors
    /// What stays: try again.
    pub async fn tear_down(&self, pods_dir: &Path, uid: &str) -> Result<(), String> {
        let all = self.folder.clone();
        for folder in blocking(move || folders(&all)).await? {
            let Some(disk) = Disk::noted(&folder).map_err(|error| error.to_string())? else { continue };
            let marker = folder.join(PODS).join(uid);
            if !marker.exists() {
                continue;
            }
            let _one = self.gates.enter(&disk.iqn).await;
            let (pods, pods_dir, own) = (folder.join(PODS), pods_dir.to_owned(), uid.to_owned());
            let is_used = blocking(move || {
                let users = fs::read_dir(&pods)?.flatten();
                // A pod of which nothing is left uses nothing.
                Ok(users.filter(|user| pods_dir.join(user.file_name()).exists()).any(|user| user.file_name() != own.as_str()))
            });
            if !is_used.await? {
                self.detach(&disk, &folder).await?;
            }
            blocking(move || gone(fs::remove_file(&marker))).await?;
        }
        Ok(())
    }

    /// Takes away all disks of this node, for uninstalling; returns which they were.
    ///
    /// # Errors
    /// The first that stays.
    pub async fn clean_up(&self) -> Result<Vec<String>, String> {
        let all = self.folder.clone();
        let mut removed = Vec::new();
        for folder in blocking(move || folders(&all)).await? {
            if let Some(disk) = Disk::noted(&folder).map_err(|error| error.to_string())? {
                self.detach(&disk, &folder).await?;
                removed.push(format!("iSCSI disk {} of {}", disk.lun, disk.iqn));
            }
        }
        Ok(removed)
    }

    async fn detach(&self, disk: &Disk, folder: &Path) -> Result<(), String> {
        let target = folder.join(MOUNT);
        let at = target.clone();
        if blocking(move || mounting::is_mounted(&at)).await? {
            // Not lazily: what was written must be on the disk before the session ends.
            let ran = tool::end_of("umount", &[&target], UNMOUNT).await?;
            if !ran.status.success() {
                return Err(format!("unmount {}: {}", target.display(), ran.words()));
            }
        }
        let sessions =
            disk.portals.iter().filter_map(|portal| Some((portal, self.sysfs.session(&disk.iqn, portal, &disk.interface)?)));
        let sessions: Vec<_> = sessions.collect();
        let names: Vec<String> = sessions.iter().filter_map(|(_, session)| self.sysfs.disk(session, disk.lun)).collect();
        // Somebody who is not this agent may use the disk too.
        if !self.is_busy(&names) {
            self.flush_multipath(&names).await;
            for name in names {
                let sysfs = self.sysfs.clone();
                blocking(move || sysfs.remove(&name)).await?;
            }
            for (portal, session) in sessions {
                if !self.sysfs.has_others(&session, disk.lun) {
                    admin::log_out(disk, portal).await?;
                }
            }
            admin::remove_interface(disk).await;
        }
        let folder = folder.to_owned();
        blocking(move || gone(fs::remove_dir(folder.join(MOUNT))).and_then(|()| gone(fs::remove_dir_all(&folder)))).await
    }

    /// Whether a disk, or what lies over it, is mounted or held by somebody.
    fn is_busy(&self, names: &[String]) -> bool {
        let busy = |name: &String| {
            let over = self.sysfs.multipath(name);
            let device = Path::new("/dev").join(over.as_ref().unwrap_or(name));
            let opened = fs::OpenOptions::new().read(true).custom_flags(nix::libc::O_EXCL).open(device);
            opened.is_err_and(|error| error.raw_os_error() == Some(nix::libc::EBUSY))
        };
        names.iter().any(busy)
    }

    async fn flush_multipath(&self, names: &[String]) {
        let over = names.iter().find_map(|name| self.sysfs.multipath(name)).and_then(|over| self.sysfs.multipath_name(&over));
        let Some(name) = over else { return };
        match tool::end_of("multipath", &["-f", &name], UNMOUNT).await {
            Ok(ran) if ran.status.success() => {}
            Ok(ran) => tracing::info!(name, words = ran.words(), "the multipath device stays"),
            Err(why) => tracing::info!(name, why, "the multipath device stays"),
        }
    }
}

/// Does something that makes a device appear, and looks whenever /dev changes; `None` when it took too long.
async fn appears<T>(cause: impl Future<Output = Result<(), String>>, find: impl Fn() -> Option<T>) -> Result<Option<T>, String> {
    let failed = |error: io::Error| format!("watch /dev: {error}");
    let inotify = Inotify::init().map_err(failed)?;
    inotify.watches().add("/dev", WatchMask::CREATE | WatchMask::ATTRIB).map_err(failed)?;
    let mut changes = inotify.into_event_stream([0_u8; 1_024]).map_err(failed)?;
    cause.await?;
    let found = async {
        loop {
            if let Some(found) = find() {
                return Some(found);
            }
            if changes.next().await.is_none_or(|change| change.is_err()) {
                return None;
            }
        }
    };
    Ok(tokio::time::timeout(APPEARS, found).await.ok().flatten())
}

/// The folders of all disks.
fn folders(all: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for interface in entries(all)? {
        found.extend(entries(&interface)?);
    }
    Ok(found)
}

fn entries(folder: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(folder) {
        Ok(entries) => entries.map(|entry| entry.map(|entry| entry.path())).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

fn gone(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// What the disk's Secret holds, where CHAP is asked for.
async fn secret(context: &Context, disk: &Disk) -> Result<Chap, String> {
    if !disk.chap_discovery && !disk.chap_session {
        return Ok(Chap::new());
    }
    let Some((namespace, name)) = &disk.secret else {
        return Err("CHAP enabled but secret name or namespace is empty".to_owned());
    };
    let found = context.client.get::<Secret>(namespace, name).await;
    let found = found.map_err(|error| format!("couldn't get secret {namespace}/{name} error: {error}"))?;
    let data = found.data.into_iter().flatten();
    Ok(data.map(|(key, value)| (key, String::from_utf8_lossy(&value.0).into_owned())).collect())
}
