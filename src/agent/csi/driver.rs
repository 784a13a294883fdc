//! What is asked of a CSI driver on this node (CSI v1: `csi.proto`), and what it answers.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::proto::{Message, entry, fields};
use super::rpc::{Rpc, RpcError};

/// A driver that has registered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Driver {
    pub name: String,
    pub socket: PathBuf,
    pub stages: bool,
    pub expands: bool,
    /// Whether it tells several writers on one node apart.
    pub has_single_node_multi_writer: bool,
}

/// What a driver says of the node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeInfo {
    pub node_id: String,
    pub max_volumes: u64,
    pub topology: BTreeMap<String, String>,
}

/// What a registration socket says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PluginInfo {
    pub kind: String,
    pub name: String,
    pub endpoint: String,
}

/// A volume, in CSI's terms.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CsiVolume {
    pub handle: String,
    pub context: BTreeMap<String, String>,
    pub publish_context: BTreeMap<String, String>,
    pub is_block: bool,
    pub fs_type: String,
    pub mount_options: Vec<String>,
    pub access_modes: Vec<String>,
    pub stage_secrets: BTreeMap<String, String>,
    pub publish_secrets: BTreeMap<String, String>,
}

fn damaged(what: &str) -> RpcError {
    RpcError::Unavailable(format!("the answer of {what} is damaged"))
}

/// Asks a registration socket what is behind it.
///
/// # Errors
/// [`RpcError`].
pub async fn plugin_info(rpc: &Rpc, socket: &Path) -> Result<PluginInfo, RpcError> {
    let answer = rpc.call(socket, "/pluginregistration.Registration/GetInfo", Message::default()).await?;
    let mut info = PluginInfo::default();
    for (tag, field) in fields(&answer).ok_or_else(|| damaged("GetInfo"))? {
        match tag {
            1 => info.kind = field.text(),
            2 => info.name = field.text(),
            3 => info.endpoint = field.text(),
            _ => {}
        }
    }
    Ok(info)
}

/// Tells a registration socket whether it was taken in.
///
/// # Errors
/// [`RpcError`].
pub async fn notify(rpc: &Rpc, socket: &Path, error: Option<&str>) -> Result<(), RpcError> {
    let message = Message::default().number(1, u64::from(error.is_none())).text(2, error.unwrap_or(""));
    rpc.call(socket, "/pluginregistration.Registration/NotifyRegistrationStatus", message).await.map(drop)
}

/// Asks a driver what the node is to it.
///
/// # Errors
/// [`RpcError`].
pub async fn node_info(rpc: &Rpc, socket: &Path) -> Result<NodeInfo, RpcError> {
    let answer = rpc.call(socket, "/csi.v1.Node/NodeGetInfo", Message::default()).await?;
    let mut info = NodeInfo::default();
    for (tag, field) in fields(&answer).ok_or_else(|| damaged("NodeGetInfo"))? {
        match tag {
            1 => info.node_id = field.text(),
            2 => info.max_volumes = field.number(),
            3 => {
                let segments = fields(field.bytes()).ok_or_else(|| damaged("NodeGetInfo"))?;
                info.topology.extend(segments.into_iter().filter(|(tag, _)| *tag == 1).filter_map(|(_, one)| entry(one.bytes())));
            }
            _ => {}
        }
    }
    Ok(info)
}

/// The driver at a socket, with what it can do.
///
/// # Errors
/// [`RpcError`].
pub async fn describe(rpc: &Rpc, name: &str, socket: &Path) -> Result<Driver, RpcError> {
    const STAGE: u64 = 1;
    const EXPAND: u64 = 3;
    const SINGLE_NODE_MULTI_WRITER: u64 = 5;
    let answer = rpc.call(socket, "/csi.v1.Node/NodeGetCapabilities", Message::default()).await?;
    let mut can = Vec::new();
    for (_, capability) in fields(&answer).ok_or_else(|| damaged("NodeGetCapabilities"))? {
        for (tag, rpc) in fields(capability.bytes()).unwrap_or_else(Vec::new) {
            let kinds = if tag == 1 { fields(rpc.bytes()).unwrap_or_else(Vec::new) } else { Vec::new() };
            can.extend(kinds.into_iter().filter(|(tag, _)| *tag == 1).map(|(_, kind)| kind.number()));
        }
    }
    Ok(Driver {
        name: name.to_owned(),
        socket: socket.to_owned(),
        stages: can.contains(&STAGE),
        expands: can.contains(&EXPAND),
        has_single_node_multi_writer: can.contains(&SINGLE_NODE_MULTI_WRITER),
    })
}

impl Driver {
    fn capability(&self, volume: &CsiVolume) -> Message {
        let access = Message::default();
        let access = if volume.is_block {
            access.message(1, &Message::default())
        } else {
            let mount = Message::default().text(1, &volume.fs_type).texts(2, &volume.mount_options);
            access.message(2, &mount)
        };
        access.message(3, &Message::default().number(1, self.access_mode(&volume.access_modes)))
    }

    /// The one mode that covers all that are asked for, as upstream's `asCSIAccessMode` chooses it.
    fn access_mode(&self, modes: &[String]) -> u64 {
        let has = |wanted: &str| modes.iter().any(|mode| mode == wanted);
        match () {
            () if has("ReadWriteMany") => 5,
            () if has("ReadOnlyMany") && has("ReadWriteOnce") => 4,
            () if has("ReadOnlyMany") => 3,
            () if has("ReadWriteOncePod") && self.has_single_node_multi_writer => 6,
            () if has("ReadWriteOnce") && self.has_single_node_multi_writer => 7,
            () => 1,
        }
    }

    /// `NodeStageVolume`.
    ///
    /// # Errors
    /// [`RpcError`].
    pub async fn stage(&self, rpc: &Rpc, volume: &CsiVolume, target: &Path) -> Result<(), RpcError> {
        let message = Message::default()
            .text(1, &volume.handle)
            .map(2, &volume.publish_context)
            .text(3, &target.to_string_lossy())
            .message(4, &self.capability(volume))
            .map(5, &volume.stage_secrets)
            .map(6, &volume.context);
        rpc.call(&self.socket, "/csi.v1.Node/NodeStageVolume", message).await.map(drop)
    }

    /// `NodePublishVolume`.
    ///
    /// # Errors
    /// [`RpcError`].
    pub async fn publish(
        &self,
        rpc: &Rpc,
        volume: &CsiVolume,
        staged: Option<&Path>,
        target: &Path,
        read_only: bool,
    ) -> Result<(), RpcError> {
        let staged = staged.map(Path::to_string_lossy).unwrap_or_default();
        let message = Message::default()
            .text(1, &volume.handle)
            .map(2, &volume.publish_context)
            .text(3, &staged)
            .text(4, &target.to_string_lossy())
            .message(5, &self.capability(volume))
            .number(6, u64::from(read_only))
            .map(7, &volume.publish_secrets)
            .map(8, &volume.context);
        rpc.call(&self.socket, "/csi.v1.Node/NodePublishVolume", message).await.map(drop)
    }

    /// `NodeUnpublishVolume`.
    ///
    /// # Errors
    /// [`RpcError`].
    pub async fn unpublish(&self, rpc: &Rpc, handle: &str, target: &Path) -> Result<(), RpcError> {
        let message = Message::default().text(1, handle).text(2, &target.to_string_lossy());
        rpc.call(&self.socket, "/csi.v1.Node/NodeUnpublishVolume", message).await.map(drop)
    }

    /// `NodeUnstageVolume`.
    ///
    /// # Errors
    /// [`RpcError`].
    pub async fn unstage(&self, rpc: &Rpc, handle: &str, target: &Path) -> Result<(), RpcError> {
        let message = Message::default().text(1, handle).text(2, &target.to_string_lossy());
        rpc.call(&self.socket, "/csi.v1.Node/NodeUnstageVolume", message).await.map(drop)
    }

    /// `NodeExpandVolume`, to a size in bytes.
    ///
    /// # Errors
    /// [`RpcError`].
    pub async fn expand(&self, rpc: &Rpc, volume: &CsiVolume, path: &Path, staged: &Path, bytes: u64) -> Result<(), RpcError> {
        let message = Message::default()
            .text(1, &volume.handle)
            .text(2, &path.to_string_lossy())
            .message(3, &Message::default().number(1, bytes))
            .text(4, &staged.to_string_lossy())
            .message(5, &self.capability(volume));
        rpc.call(&self.socket, "/csi.v1.Node/NodeExpandVolume", message).await.map(drop)
    }
}
