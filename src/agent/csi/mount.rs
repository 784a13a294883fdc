//! A CSI volume in a pod: attached where its driver wants that, staged once a node, published once a pod.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{CSIPersistentVolumeSource, CSIVolumeSource, PersistentVolume, Pod, Secret, SecretReference};
use k8s_openapi::api::storage::v1::{CSIDriver, VolumeAttachment};
use parking_lot::Mutex;

use super::driver::{CsiVolume, Driver};
use super::registry::Drivers;
use crate::agent::pod::context::Context;
use crate::kinds::storage::binding;
use crate::rt::{Backoff, TaskGroup};

/// How long a mount waits for its volume to be attached before it says so and begins anew.
const ATTACHES: Duration = Duration::from_secs(20);

/// Mounts CSI volumes on this node.
pub struct CsiMounts {
    drivers: Arc<Drivers>,
    node: String,
    /// `DATA/agent/plugins/kubernetes.io/csi`.
    plugins: PathBuf,
    /// What was published since the agent started: it need not be published again.
    published: Mutex<BTreeSet<PathBuf>>,
}

/// Where a volume of a pod is published.
pub struct Published {
    pub path: PathBuf,
    /// Whether a pod's `fsGroup` is given what is in it.
    pub takes_group: bool,
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> Result<T, String> {
    TaskGroup::blocking(work).await.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl CsiMounts {
    /// Mounts by these drivers, on the node `node`.
    pub fn new(drivers: Arc<Drivers>, node: &str, data_dir: &Path) -> Self {
        Self { drivers, node: node.to_owned(), plugins: data_dir.join("plugins/kubernetes.io/csi"), published: Mutex::default() }
    }

    fn staging(&self, driver: &str, handle: &str) -> PathBuf {
        self.plugins.join(driver).join(hex(&binding::sha256(handle))).join("globalmount")
    }

    fn target(&self, pod_dir: &Path, volume: &str, is_block: bool) -> PathBuf {
        if is_block {
            let uid = pod_dir.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_else(String::new);
            return self.plugins.join("volumeDevices/publish").join(volume).join(uid);
        }
        pod_dir.join("volumes/kubernetes.io~csi").join(volume).join("mount")
    }

    /// Makes a persistent volume visible to a pod. Idempotent.
    ///
    /// # Errors
    /// The kubelet's or the driver's words.
    pub async fn set_up(
        &self,
        context: &Context,
        pod: &Pod,
        volume: &PersistentVolume,
        read_only: bool,
    ) -> Result<Published, String> {
        let spec = volume.spec.as_ref().ok_or("the volume has no specification")?;
        let source = spec.csi.as_ref().ok_or("the volume is no CSI volume")?;
        let name = volume.metadata.name.as_deref().unwrap_or("");
        let driver = self.drivers.get(&source.driver).await?;
        let object = csi_driver(context, &source.driver).await?;
        let is_block = spec.volume_mode.as_deref() == Some("Block");
        let target = self.target(&context.pod_dir(pod), name, is_block);
        if self.is_published(&target, object.as_ref()) {
            return Ok(Published { path: target, takes_group: false });
        }
        let mut wanted = CsiVolume {
            handle: source.volume_handle.clone(),
            context: source.volume_attributes.clone().unwrap_or_else(BTreeMap::new),
            publish_context: self.attachment(context, source, object.as_ref()).await?,
            is_block,
            fs_type: source.fs_type.clone().unwrap_or_else(String::new),
            mount_options: spec.mount_options.clone().unwrap_or_else(Vec::new),
            access_modes: spec.access_modes.clone().unwrap_or_else(Vec::new),
            stage_secrets: secret(context, source.node_stage_secret_ref.as_ref()).await?,
            publish_secrets: secret(context, source.node_publish_secret_ref.as_ref()).await?,
        };
        add_pod_info(&mut wanted.context, object.as_ref(), pod, false);
        let staging = self.staging(&driver.name, &wanted.handle);
        let rpc = self.drivers.rpc();
        if driver.stages {
            let made = staging.clone();
            blocking(move || fs::create_dir_all(made)).await?;
            driver.stage(rpc, &wanted, &staging).await.map_err(|error| error.to_string())?;
        }
        let read_only = read_only || source.read_only == Some(true);
        self.publish(&driver, &wanted, driver.stages.then_some(staging.as_path()), &target, read_only).await?;
        let policy = object.as_ref().and_then(|object| object.spec.fs_group_policy.as_deref());
        let takes_group = match policy.unwrap_or("ReadWriteOnceWithFSType") {
            "File" => true,
            "None" => false,
            _ => !wanted.fs_type.is_empty() && wanted.access_modes.iter().any(|mode| mode.starts_with("ReadWriteOnce")),
        };
        Ok(Published { path: target, takes_group })
    }

    /// Makes a volume that lives as long as its pod. Idempotent.
    ///
    /// # Errors
    /// As [`set_up`](Self::set_up).
    pub async fn set_up_inline(
        &self,
        context: &Context,
        pod: &Pod,
        name: &str,
        source: &CSIVolumeSource,
    ) -> Result<PathBuf, String> {
        let driver = self.drivers.get(&source.driver).await?;
        let object = csi_driver(context, &source.driver).await?;
        let target = self.target(&context.pod_dir(pod), name, false);
        if self.is_published(&target, object.as_ref()) {
            return Ok(target);
        }
        let mut modes = object.iter().flat_map(|object| object.spec.volume_lifecycle_modes.iter().flatten());
        if !modes.any(|mode| mode == "Ephemeral") {
            return Err(format!("volume mode \"Ephemeral\" not supported by driver {} (no CSIDriver object)", source.driver));
        }
        let namespace = pod.metadata.namespace.as_deref().unwrap_or("");
        let reference = source
            .node_publish_secret_ref
            .as_ref()
            .map(|reference| SecretReference { name: Some(reference.name.clone()), namespace: Some(namespace.to_owned()) });
        let mut wanted = CsiVolume {
            handle: inline_handle(pod, name),
            context: source.volume_attributes.clone().unwrap_or_else(BTreeMap::new),
            fs_type: source.fs_type.clone().unwrap_or_else(String::new),
            publish_secrets: secret(context, reference.as_ref()).await?,
            ..CsiVolume::default()
        };
        add_pod_info(&mut wanted.context, object.as_ref(), pod, true);
        self.publish(&driver, &wanted, None, &target, source.read_only == Some(true)).await?;
        Ok(target)
    }

    async fn publish(
        &self,
        driver: &Driver,
        wanted: &CsiVolume,
        staged: Option<&Path>,
        target: &Path,
        read_only: bool,
    ) -> Result<(), String> {
        // The driver makes the target itself; its parent must be there.
        let (parent, note) = (target.parent().map(Path::to_owned), note(target));
        let text = format!("{}\n{}", driver.name, wanted.handle);
        blocking(move || {
            if let Some(parent) = parent {
                fs::create_dir_all(parent)?;
            }
            crate::rt::files::write(&note, text.as_bytes(), 0o600)
        })
        .await?;
        driver.publish(self.drivers.rpc(), wanted, staged, target, read_only).await.map_err(|error| error.to_string())?;
        self.published.lock().insert(target.to_owned());
        Ok(())
    }

    /// Whether a volume is there already and its driver does not ask to be told again and again.
    fn is_published(&self, target: &Path, object: Option<&CSIDriver>) -> bool {
        let again = object.is_some_and(|object| object.spec.requires_republish == Some(true));
        !again && self.published.lock().contains(target)
    }

    /// What the driver's attacher said of the attached volume; nothing for a driver that does not attach.
    async fn attachment(
        &self,
        context: &Context,
        source: &CSIPersistentVolumeSource,
        object: Option<&CSIDriver>,
    ) -> Result<BTreeMap<String, String>, String> {
        if object.is_some_and(|object| object.spec.attach_required == Some(false)) {
            return Ok(BTreeMap::new());
        }
        let name = binding::attachment_name(&source.volume_handle, &source.driver, &self.node);
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(2));
        let attached = async {
            loop {
                if let Ok(found) = context.client.get::<VolumeAttachment>("", &name).await
                    && let Some(status) = found.status.filter(|status| status.attached)
                {
                    return status.attachment_metadata.unwrap_or_else(BTreeMap::new);
                }
                tokio::time::sleep(backoff.next_delay()).await;
            }
        };
        let waited = tokio::time::timeout(ATTACHES, attached).await;
        waited.map_err(|_| {
            format!(
                "timed out waiting for external-attacher of {} CSI driver to attach volume {}",
                source.driver, source.volume_handle
            )
        })
    }

    /// Tells the drivers to take down what is published in a pod. Idempotent.
    ///
    /// # Errors
    /// The driver's words: try again.
    pub async fn unpublish(&self, pod_dir: &Path) -> Result<(), String> {
        let mut targets = published(&pod_dir.join("volumes/kubernetes.io~csi"));
        if let Some(uid) = pod_dir.file_name() {
            let devices = fs::read_dir(self.plugins.join("volumeDevices/publish")).into_iter().flatten().flatten();
            targets.extend(devices.map(|volume| volume.path().join(uid)).filter(|target| note(target).exists()));
        }
        for target in targets {
            let note = note(&target);
            let text = tokio::fs::read_to_string(&note).await.map_err(|error| error.to_string())?;
            let (name, handle) = text.split_once('\n').unwrap_or((&text, ""));
            let driver = self.drivers.get(name).await?;
            driver.unpublish(self.drivers.rpc(), handle, &target).await.map_err(|error| error.to_string())?;
            self.published.lock().remove(&target);
            blocking(move || fs::remove_file(note)).await?;
        }
        Ok(())
    }

    /// Tells the driver that no pod of this node uses a volume any more. Idempotent.
    ///
    /// # Errors
    /// The driver's words: try again.
    pub async fn unstage(&self, source: &CSIPersistentVolumeSource) -> Result<(), String> {
        let staging = self.staging(&source.driver, &source.volume_handle);
        if !staging.exists() {
            return Ok(());
        }
        let driver = self.drivers.get(&source.driver).await?;
        if driver.stages {
            let unstaged = driver.unstage(self.drivers.rpc(), &source.volume_handle, &staging).await;
            unstaged.map_err(|error| error.to_string())?;
        }
        blocking(move || {
            for folder in [Some(staging.as_path()), staging.parent()].into_iter().flatten() {
                match fs::remove_dir(folder) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
            }
            Ok(())
        })
        .await
    }

    /// Lets a volume grow to the size that its PersistentVolume has.
    ///
    /// # Errors
    /// The driver's words.
    pub async fn expand(&self, volume: &PersistentVolume, path: &Path) -> Result<(), String> {
        let Some(source) = volume.spec.as_ref().and_then(|spec| spec.csi.as_ref()) else { return Ok(()) };
        let driver = self.drivers.get(&source.driver).await?;
        if !driver.expands {
            return Ok(());
        }
        let bytes = u64::try_from(binding::capacity(volume).value()).unwrap_or(0);
        let wanted = CsiVolume {
            handle: source.volume_handle.clone(),
            fs_type: source.fs_type.clone().unwrap_or_else(String::new),
            ..CsiVolume::default()
        };
        let staging = self.staging(&driver.name, &wanted.handle);
        match driver.expand(self.drivers.rpc(), &wanted, path, &staging, bytes).await {
            Err(error) if !error.is_unimplemented() => Err(error.to_string()),
            _ => Ok(()),
        }
    }
}

/// Beside a target: the driver and the handle of what is published there.
fn note(target: &Path) -> PathBuf {
    target.with_extension("csi")
}

/// The targets in a pod's directory that have a note.
fn published(folder: &Path) -> Vec<PathBuf> {
    let volumes = fs::read_dir(folder).into_iter().flatten().flatten();
    volumes.map(|volume| volume.path().join("mount")).filter(|target| note(target).exists()).collect()
}

fn inline_handle(pod: &Pod, name: &str) -> String {
    let (namespace, uid) = (pod.metadata.namespace.as_deref().unwrap_or(""), pod.metadata.uid.as_deref().unwrap_or(""));
    format!("csi-{}", hex(&binding::sha256(&format!("{namespace}{uid}{name}"))))
}

/// The CSIDriver object of a driver, if there is one.
async fn csi_driver(context: &Context, name: &str) -> Result<Option<CSIDriver>, String> {
    match context.client.get::<CSIDriver>("", name).await {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(format!("CSIDriver {name}: {error}")),
    }
}

async fn secret(context: &Context, reference: Option<&SecretReference>) -> Result<BTreeMap<String, String>, String> {
    let Some(reference) = reference else { return Ok(BTreeMap::new()) };
    let (namespace, name) = (reference.namespace.as_deref().unwrap_or(""), reference.name.as_deref().unwrap_or(""));
    let found = context.client.get::<Secret>(namespace, name).await;
    let found = found.map_err(|error| format!("fetching secret {namespace}/{name} failed: {error}"))?;
    let data = found.data.into_iter().flatten();
    Ok(data.map(|(key, value)| (key, String::from_utf8_lossy(&value.0).into_owned())).collect())
}

/// Says who the pod is, if the driver wants to know.
fn add_pod_info(context: &mut BTreeMap<String, String>, object: Option<&CSIDriver>, pod: &Pod, is_ephemeral: bool) {
    if !object.is_some_and(|object| object.spec.pod_info_on_mount == Some(true)) {
        return;
    }
    let text = |value: &Option<String>| value.clone().unwrap_or_else(String::new);
    let account = pod.spec.as_ref().and_then(|spec| spec.service_account_name.clone());
    for (key, value) in [
        ("csi.storage.k8s.io/pod.name", text(&pod.metadata.name)),
        ("csi.storage.k8s.io/pod.namespace", text(&pod.metadata.namespace)),
        ("csi.storage.k8s.io/pod.uid", text(&pod.metadata.uid)),
        ("csi.storage.k8s.io/serviceAccount.name", text(&account)),
        ("csi.storage.k8s.io/ephemeral", is_ephemeral.to_string()),
    ] {
        context.insert(key.to_owned(), value);
    }
}
