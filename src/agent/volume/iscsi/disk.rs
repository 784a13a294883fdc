//! Which disk is meant, and as whom this node asks for it. It is noted beside the mount, so that it can be taken down without the API.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{ISCSIPersistentVolumeSource, ISCSIVolumeSource, SecretReference};
use serde::{Deserialize, Serialize};

const DEFAULT_PORT: &str = "3260";
const DEFAULT_INTERFACE: &str = "default";
/// The note: upstream's name.
const NOTE: &str = "iscsi.json";

/// A disk of a target. It knows no secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// `ADDRESS:PORT`, the first that was given first.
    pub portals: Vec<String>,
    pub iqn: String,
    pub lun: i32,
    /// The interface record that says how to log in.
    pub interface: String,
    /// The record that `interface` is a copy of, under another name of this node.
    pub cloned_from: Option<String>,
    pub initiator: Option<String>,
    pub fs_type: String,
    pub mount_options: Vec<String>,
    pub read_only: bool,
    pub is_block: bool,
    pub chap_discovery: bool,
    pub chap_session: bool,
    /// Namespace and name.
    pub secret: Option<(String, String)>,
}

impl Disk {
    /// The disk of a volume in a pod's own specification.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn of_pod(volume: &str, namespace: &str, source: &ISCSIVolumeSource) -> Result<Self, String> {
        let secret_ref = source
            .secret_ref
            .clone()
            .map(|secret| SecretReference { name: Some(secret.name), namespace: Some(namespace.to_owned()) });
        let same = ISCSIPersistentVolumeSource {
            chap_auth_discovery: source.chap_auth_discovery,
            chap_auth_session: source.chap_auth_session,
            fs_type: source.fs_type.clone(),
            initiator_name: source.initiator_name.clone(),
            iqn: source.iqn.clone(),
            iscsi_interface: source.iscsi_interface.clone(),
            lun: source.lun,
            portals: source.portals.clone(),
            read_only: source.read_only,
            secret_ref,
            target_portal: source.target_portal.clone(),
        };
        Self::of_volume(volume, namespace, &same)
    }

    /// The disk of a PersistentVolume.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn of_volume(volume: &str, namespace: &str, source: &ISCSIPersistentVolumeSource) -> Result<Self, String> {
        let secret = source.secret_ref.as_ref().map(|secret| {
            let own = secret.namespace.as_deref().filter(|own| !own.is_empty());
            (own.unwrap_or(namespace).to_owned(), text(secret.name.as_deref()))
        });
        let disk = Self {
            portals: portals(&source.target_portal, source.portals.as_deref()),
            iqn: source.iqn.clone(),
            lun: source.lun,
            interface: interface(source.iscsi_interface.as_deref()),
            cloned_from: None,
            initiator: source.initiator_name.clone(),
            fs_type: text(source.fs_type.as_deref()),
            mount_options: Vec::new(),
            read_only: source.read_only == Some(true),
            is_block: false,
            chap_discovery: source.chap_auth_discovery == Some(true),
            chap_session: source.chap_auth_session == Some(true),
            secret,
        };
        disk.with_own_interface(volume).checked()
    }

    /// Under a name of its own this node needs an interface record of its own.
    fn with_own_interface(self, volume: &str) -> Self {
        if self.initiator.is_none() {
            return self;
        }
        let own = format!("{}:{volume}", self.portal());
        Self { cloned_from: Some(self.interface), interface: own, ..self }
    }

    /// The parts become names of files.
    fn checked(self) -> Result<Self, String> {
        let parts = self.portals.iter().chain([&self.iqn, &self.interface]);
        let wrong = parts.into_iter().find(|part| part.is_empty() || part.starts_with('.') || part.contains(['/', '\0']));
        match wrong {
            Some(part) => Err(format!("{part:?} is no portal, target or interface")),
            None => Ok(self),
        }
    }

    /// The portal that the volume is named after.
    pub fn portal(&self) -> &str {
        self.portals.first().map_or("", String::as_str)
    }

    /// What upstream waits for; told where it does not come.
    pub fn by_path(&self, portal: &str) -> String {
        format!("/dev/disk/by-path/ip-{portal}-iscsi-{}-lun-{}", self.iqn, self.lun)
    }

    /// The folder of what this node keeps of the disk, below that of all disks.
    pub fn folder(&self, all: &Path) -> PathBuf {
        all.join(format!("iface-{}", self.interface)).join(format!("{}-{}-lun-{}", self.portal(), self.iqn, self.lun))
    }

    /// Writes the note.
    ///
    /// # Errors
    /// As the file system has it.
    pub fn note(&self, folder: &Path) -> io::Result<()> {
        let bytes = serde_json::to_vec(self)?;
        let path = folder.join(NOTE);
        if fs::read(&path).is_ok_and(|known| known == bytes) {
            return Ok(());
        }
        crate::rt::files::write(&path, &bytes, 0o600)
    }

    /// Reads the note; `None` where there is none.
    ///
    /// # Errors
    /// A note that cannot be read.
    pub fn noted(folder: &Path) -> io::Result<Option<Self>> {
        match fs::read(folder.join(NOTE)) {
            Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn text(text: Option<&str>) -> String {
    text.unwrap_or("").to_owned()
}

fn interface(name: Option<&str>) -> String {
    name.filter(|name| !name.is_empty()).unwrap_or(DEFAULT_INTERFACE).to_owned()
}

/// All portals, each once, with their ports.
fn portals(first: &str, others: Option<&[String]>) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    for portal in [first].into_iter().chain(others.into_iter().flatten().map(String::as_str)) {
        let portal = with_port(portal);
        if !all.contains(&portal) {
            all.push(portal);
        }
    }
    all
}

fn with_port(portal: &str) -> String {
    if portal.parse::<std::net::Ipv6Addr>().is_ok() {
        return format!("[{portal}]:{DEFAULT_PORT}");
    }
    let has_port = portal.rsplit_once(':').is_some_and(|(address, _)| !address.starts_with('[') || address.ends_with(']'));
    if has_port { portal.to_owned() } else { format!("{portal}:{DEFAULT_PORT}") }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn disk(value: Value) -> Result<Disk, String> {
        Disk::of_pod("v", "ns", &serde_json::from_value(value).unwrap())
    }

    #[test]
    fn portals_have_ports_and_come_once() {
        let all = ["10.0.0.2".to_owned(), "10.0.0.1:3260".to_owned(), "fd00::1".to_owned(), "[fd00::2]:860".to_owned()];
        assert_eq!(portals("10.0.0.1", Some(&all)), ["10.0.0.1:3260", "10.0.0.2:3260", "[fd00::1]:3260", "[fd00::2]:860"]);
    }

    #[test]
    fn disks_have_their_places() {
        let plain = disk(json!({"targetPortal": "10.0.0.1", "iqn": "iqn.2024-01.io:t", "lun": 3})).unwrap();
        assert_eq!(plain.folder(Path::new("/p")), Path::new("/p/iface-default/10.0.0.1:3260-iqn.2024-01.io:t-lun-3"));
        let named = json!({"targetPortal": "10.0.0.1", "iqn": "iqn.2024-01.io:t", "lun": 3, "initiatorName": "iqn.2024-01.io:me",
            "chapAuthSession": true, "secretRef": {"name": "s"}});
        let named = disk(named).unwrap();
        assert_eq!((named.interface.as_str(), named.cloned_from.as_deref()), ("10.0.0.1:3260:v", Some("default")));
        assert_eq!(named.secret, Some(("ns".to_owned(), "s".to_owned())));
        for wrong in ["../x", "a/b", ""] {
            assert!(disk(json!({"targetPortal": "10.0.0.1", "iqn": wrong, "lun": 0})).is_err(), "{wrong}");
        }
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Disk::noted(folder.path()).unwrap(), None);
        named.note(folder.path()).unwrap();
        assert_eq!(Disk::noted(folder.path()).unwrap(), Some(named));
    }
}
