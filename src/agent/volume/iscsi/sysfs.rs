//! What the kernel knows of iSCSI: sessions and their disks. Levels, not memory: what a restarted agent finds is what is there.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// A session with a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// The number of its SCSI host.
    pub host: u32,
    /// Where the kernel shows its disks.
    folder: PathBuf,
}

/// The kernel's files.
#[derive(Debug, Clone)]
pub struct Sysfs {
    root: PathBuf,
}

impl Default for Sysfs {
    fn default() -> Self {
        Self { root: PathBuf::from("/sys") }
    }
}

impl Sysfs {
    /// The session with a target through one of its portals, as it was asked for on an interface.
    pub fn session(&self, iqn: &str, portal: &str, interface: &str) -> Option<Session> {
        let sessions = fs::read_dir(self.root.join("class/iscsi_session")).into_iter().flatten().flatten();
        sessions.into_iter().find_map(|entry| {
            let of = |name: &str| read(&entry.path().join(name));
            if of("targetname")? != iqn || of("ifacename").is_some_and(|name| name != interface) {
                return None;
            }
            let folder = fs::canonicalize(entry.path().join("device")).ok()?;
            is_through(&folder, portal).then_some(())?;
            let host = folder.parent()?.file_name()?.to_str()?.strip_prefix("host")?.parse().ok()?;
            Some(Session { host, folder })
        })
    }

    /// Asks the kernel to look for one disk of a session.
    ///
    /// # Errors
    /// As the kernel has it.
    pub fn scan(&self, session: &Session, lun: i32) -> io::Result<()> {
        let file = self.root.join(format!("class/scsi_host/host{}/scan", session.host));
        fs::write(file, format!("0 0 {lun}"))
    }

    /// The name of a session's disk (`sda`), if it is there.
    pub fn disk(&self, session: &Session, lun: i32) -> Option<String> {
        disks(session).into_iter().find(|(known, _)| *known == lun).map(|(_, name)| name)
    }

    /// Whether a session has a disk other than this one.
    pub fn has_others(&self, session: &Session, lun: i32) -> bool {
        disks(session).iter().any(|(known, _)| *known != lun)
    }

    /// What multipathd has put over a disk (`dm-0`).
    pub fn multipath(&self, disk: &str) -> Option<String> {
        let holders = fs::read_dir(self.root.join("class/block").join(disk).join("holders")).ok()?.flatten();
        let mut names = holders.map(|holder| holder.file_name().to_string_lossy().into_owned());
        names.find(|name| {
            read(&self.root.join("class/block").join(name).join("dm/uuid")).is_some_and(|uuid| uuid.starts_with("mpath-"))
        })
    }

    /// The name of a multipath device for those who administer it.
    pub fn multipath_name(&self, device: &str) -> Option<String> {
        read(&self.root.join("class/block").join(device).join("dm/name"))
    }

    /// Takes a disk out of the kernel.
    ///
    /// # Errors
    /// As the kernel has it.
    pub fn remove(&self, disk: &str) -> io::Result<()> {
        match fs::write(self.root.join("class/block").join(disk).join("device/delete"), "1") {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

/// Whether one of a session's connections goes to a portal.
fn is_through(session: &Path, portal: &str) -> bool {
    let wanted = plain(portal);
    let connections = fs::read_dir(session).into_iter().flatten().flatten();
    let mut names = connections.map(|entry| entry.file_name()).filter(|name| name.to_string_lossy().starts_with("connection"));
    names.any(|name| {
        let folder = session.join(&name).join("iscsi_connection").join(&name);
        [("persistent_address", "persistent_port"), ("address", "port")].iter().any(|(address, port)| {
            let both = read(&folder.join(address)).zip(read(&folder.join(port)));
            both.is_some_and(|(address, port)| plain(&format!("{address}:{port}")) == wanted)
        })
    })
}

fn plain(portal: &str) -> String {
    portal.replace(['[', ']'], "")
}

/// Number and name of each disk: `targetH:C:T/H:C:T:LUN/block/NAME`.
fn disks(session: &Session) -> Vec<(i32, String)> {
    let mut found = Vec::new();
    for target in starting_with(&session.folder, "target") {
        for unit in fs::read_dir(target).into_iter().flatten().flatten() {
            let name = unit.file_name().to_string_lossy().into_owned();
            let Some(lun) = name.rsplit(':').next().filter(|_| name.matches(':').count() == 3) else { continue };
            let Ok(lun) = lun.parse() else { continue };
            let blocks = fs::read_dir(unit.path().join("block")).into_iter().flatten().flatten();
            found.extend(blocks.map(|block| (lun, block.file_name().to_string_lossy().into_owned())));
        }
    }
    found
}

fn starting_with(folder: &Path, start: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(start)).map(|entry| entry.path()).collect()
}

fn read(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_and_their_disks() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let make = |path: &str, text: &str| {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let session = "devices/platform/host7/session1";
        make(&format!("{session}/connection1:0/iscsi_connection/connection1:0/persistent_address"), "10.0.0.1\n");
        make(&format!("{session}/connection1:0/iscsi_connection/connection1:0/persistent_port"), "3260\n");
        make(&format!("{session}/target7:0:0/7:0:0:2/block/sdb/size"), "1");
        make("class/iscsi_session/session1/targetname", "iqn.2024-01.io:t\n");
        make("class/iscsi_session/session1/ifacename", "default\n");
        make("class/block/dm-3/dm/uuid", "mpath-1\n");
        make("class/block/sdb/holders/dm-3", "");
        make("class/scsi_host/host7/scan", "");
        std::os::unix::fs::symlink(root.join(session), root.join("class/iscsi_session/session1/device")).unwrap();
        let sysfs = Sysfs { root: root.to_owned() };
        let iqn = "iqn.2024-01.io:t";
        assert_eq!(sysfs.session(iqn, "10.0.0.2:3260", "default"), None);
        assert_eq!(sysfs.session(iqn, "10.0.0.1:3260", "other"), None);
        assert_eq!(sysfs.session("iqn.2024-01.io:u", "10.0.0.1:3260", "default"), None);
        let found = sysfs.session(iqn, "10.0.0.1:3260", "default").unwrap();
        assert_eq!(found.host, 7);
        assert_eq!((sysfs.disk(&found, 2).as_deref(), sysfs.disk(&found, 0)), (Some("sdb"), None));
        assert!(sysfs.has_others(&found, 0) && !sysfs.has_others(&found, 2));
        assert_eq!(sysfs.multipath("sdb").as_deref(), Some("dm-3"));
        sysfs.scan(&found, 5).unwrap();
        assert_eq!(fs::read_to_string(root.join("class/scsi_host/host7/scan")).unwrap(), "0 0 5");
    }
}
