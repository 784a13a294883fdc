//! Which CSI drivers are on the node: a driver puts a socket into `plugins_registry`, is asked what it is, and appears in the node's
//! CSINode, as the kubelet's plugin watcher does it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use inotify::{Inotify, WatchMask};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::storage::v1::{CSINode, CSINodeDriver, CSINodeSpec, VolumeNodeResources};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::watch;

use super::driver::{self, Driver, NodeInfo};
use super::rpc::Rpc;
use crate::client::{Client, ClientError, PatchKind};
use crate::rt::{Backoff, TaskGroup};

/// How long a mount waits for its driver to register, at the agent's start above all.
const APPEARS: Duration = Duration::from_secs(10);

/// The drivers of this node.
pub struct Drivers {
    directory: PathBuf,
    node: String,
    client: Client,
    rpc: Rpc,
    known: Mutex<BTreeMap<PathBuf, Driver>>,
    news: watch::Sender<()>,
}

impl Drivers {
    /// Drivers whose registration sockets are in `data_dir/plugins_registry`.
    pub fn new(data_dir: &Path, node: &str, client: Client, tasks: &TaskGroup) -> Arc<Self> {
        Arc::new(Self {
            directory: data_dir.join("plugins_registry"),
            node: node.to_owned(),
            client,
            rpc: Rpc::new(tasks),
            known: Mutex::default(),
            news: watch::Sender::new(()),
        })
    }

    /// What calls go through.
    pub fn rpc(&self) -> &Rpc {
        &self.rpc
    }

    /// A driver by its name, waiting a little for it to register.
    ///
    /// # Errors
    /// The kubelet's words.
    pub async fn get(&self, name: &str) -> Result<Driver, String> {
        let find = || self.known.lock().values().find(|driver| driver.name == name).cloned();
        let mut news = self.news.subscribe();
        let found = async {
            loop {
                news.borrow_and_update();
                if let Some(found) = find() {
                    return Some(found);
                }
                if news.changed().await.is_err() {
                    return None;
                }
            }
        };
        let found = tokio::time::timeout(APPEARS, found).await.ok().flatten();
        found.ok_or_else(|| format!("driver name {name} not found in the list of registered CSI drivers"))
    }

    /// Registers what is in the directory and what comes and goes, for ever.
    pub async fn run(self: Arc<Self>) {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));
        loop {
            if let Err(error) = self.watch(&mut backoff).await {
                tracing::warn!(directory = %self.directory.display(), %error, "CSI drivers cannot register; trying again");
            }
            tokio::time::sleep(backoff.next_delay()).await;
        }
    }

    async fn watch(&self, backoff: &mut Backoff) -> std::io::Result<()> {
        tokio::fs::create_dir_all(&self.directory).await?;
        let inotify = Inotify::init()?;
        inotify
            .watches()
            .add(&self.directory, WatchMask::CREATE | WatchMask::DELETE | WatchMask::MOVED_TO | WatchMask::DELETE_SELF)?;
        let mut changes = inotify.into_event_stream([0_u8; 1_024])?;
        loop {
            let all_done = self.look().await?;
            if all_done {
                backoff.reset();
            }
            tokio::select! {
                change = changes.next() => match change {
                    Some(change) => drop(change?),
                    None => return Ok(()),
                },
                // A socket is there before anybody listens on it.
                () = tokio::time::sleep(backoff.next_delay()), if !all_done => {}
            }
        }
    }

    /// Brings the known drivers to what is in the directory; whether all could be registered.
    async fn look(&self) -> std::io::Result<bool> {
        let mut sockets = Vec::new();
        let mut entries = tokio::fs::read_dir(&self.directory).await?;
        while let Some(entry) = entries.next_entry().await? {
            if std::os::unix::fs::FileTypeExt::is_socket(&entry.file_type().await?) {
                sockets.push(entry.path());
            }
        }
        let gone: Vec<Driver> =
            self.known.lock().extract_if(.., |socket, _| !sockets.contains(socket)).map(|(_, gone)| gone).collect();
        let mut all_done = true;
        for driver in gone {
            all_done &= self.withdraw(&driver).await;
        }
        for socket in sockets {
            if !self.known.lock().contains_key(&socket) {
                all_done &= self.register(&socket).await;
            }
        }
        Ok(all_done)
    }

    async fn register(&self, socket: &Path) -> bool {
        let outcome = self.try_register(socket).await;
        let told = driver::notify(&self.rpc, socket, outcome.as_ref().err().map(String::as_str)).await;
        if let Err(error) = told {
            tracing::debug!(socket = %socket.display(), %error, "the driver was not told how its registration went");
        }
        match outcome {
            Ok(driver) => {
                tracing::info!(driver = driver.name, "a CSI driver has registered");
                self.known.lock().insert(socket.to_owned(), driver);
                self.news.send_replace(());
                true
            }
            Err(why) => {
                tracing::warn!(socket = %socket.display(), why, "a CSI driver did not register");
                false
            }
        }
    }

    async fn try_register(&self, socket: &Path) -> Result<Driver, String> {
        let info = driver::plugin_info(&self.rpc, socket).await.map_err(|error| error.to_string())?;
        if info.kind != "CSIPlugin" {
            return Err(format!("plugins of type {:?} are not supported", info.kind));
        }
        let endpoint = PathBuf::from(info.endpoint.trim_start_matches("unix://"));
        let endpoint = if endpoint.as_os_str().is_empty() { socket.to_owned() } else { endpoint };
        let driver = driver::describe(&self.rpc, &info.name, &endpoint).await.map_err(|error| error.to_string())?;
        let node = driver::node_info(&self.rpc, &endpoint).await.map_err(|error| error.to_string())?;
        self.announce(&driver.name, Some(&node)).await.map_err(|error| format!("CSINode: {error}"))?;
        if !node.topology.is_empty() {
            let patch = json!({"metadata": {"labels": node.topology}});
            let patched = self.client.patch::<Node>("", &self.node, None, PatchKind::Strategic, &patch).await;
            patched.map_err(|error| format!("labels of the node: {error}"))?;
        }
        Ok(driver)
    }

    async fn withdraw(&self, driver: &Driver) -> bool {
        tracing::info!(driver = driver.name, "a CSI driver is gone");
        match self.announce(&driver.name, None).await {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(driver = driver.name, %error, "the driver stays in the node's CSINode");
                true
            }
        }
    }

    /// Puts a driver into the node's CSINode, or takes it out.
    async fn announce(&self, name: &str, info: Option<&NodeInfo>) -> Result<(), ClientError> {
        let entry = info.map(|info| csi_node_driver(name, info));
        let mut present = match self.client.get::<CSINode>("", &self.node).await {
            Ok(present) => present,
            Err(error) if error.is_not_found() => self.create().await?,
            Err(error) => return Err(error),
        };
        let others = present.spec.drivers.iter().filter(|driver| driver.name != name).cloned();
        let drivers: Vec<CSINodeDriver> = others.chain(entry).collect();
        if drivers == present.spec.drivers {
            return Ok(());
        }
        present.spec.drivers = drivers;
        self.client.update(&present).await.map(drop)
    }

    async fn create(&self) -> Result<CSINode, ClientError> {
        let node = self.client.get::<Node>("", &self.node).await?;
        let owner = OwnerReference {
            api_version: "v1".to_owned(),
            kind: "Node".to_owned(),
            name: self.node.clone(),
            uid: node.metadata.uid.unwrap_or_else(String::new),
            ..OwnerReference::default()
        };
        let metadata = ObjectMeta { name: Some(self.node.clone()), owner_references: Some(vec![owner]), ..ObjectMeta::default() };
        self.client.create(&CSINode { metadata, spec: CSINodeSpec { drivers: Vec::new() } }).await
    }
}

fn csi_node_driver(name: &str, info: &NodeInfo) -> CSINodeDriver {
    let count = i32::try_from(info.max_volumes).ok().filter(|count| *count > 0);
    CSINodeDriver {
        name: name.to_owned(),
        node_id: info.node_id.clone(),
        topology_keys: Some(info.topology.keys().cloned().collect()),
        allocatable: count.map(|count| VolumeNodeResources { count: Some(count) }),
    }
}
