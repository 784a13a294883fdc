//! The kernel's switch that lets connections to 127.0.0.1 leave to a pod, for NodePorts. It is the whole host's, so it is put back as it
//! was when the node is taken away: with it on, only our rules keep others on the link from what listens on loopback addresses.

use std::path::Path;

use crate::network::nft::{Family, Nft, NftError};
use crate::rt::files;

const SWITCH: &str = "/proc/sys/net/ipv4/conf/all/route_localnet";
/// Notes that the switch was off before.
const NOTE: &str = "route-localnet";

/// Switches it on. The table drops what others send to loopback addresses, so this comes after it. Without it only that one way is
/// missing.
pub(super) async fn open(data_dir: &Path) {
    if tokio::fs::read_to_string(SWITCH).await.is_ok_and(|text| text.trim() == "1") {
        return;
    }
    let noted = files::write(&data_dir.join(NOTE), b"0\n", 0o600);
    let opened = match noted {
        Ok(()) => tokio::fs::write(SWITCH, "1").await,
        Err(error) => Err(error),
    };
    if let Err(error) = opened {
        tracing::warn!(%error, "NodePorts do not answer at 127.0.0.1");
    }
}

/// Puts the switch back as it was, unless another node on this machine needs it: for uninstalling, after its rules have gone.
///
/// # Errors
/// When the kernel refuses.
pub async fn close_localhost(data_dir: &Path) -> std::io::Result<()> {
    let note = data_dir.join(NOTE);
    if !note.exists() || others_need_it().await {
        return Ok(());
    }
    tokio::fs::write(SWITCH, "0").await?;
    tokio::fs::remove_file(note).await
}

async fn others_need_it() -> bool {
    let tables: Result<Vec<String>, NftError> = async { Nft::open()?.tables(Family::Ipv4).await }.await;
    tables.is_ok_and(|tables| tables.iter().any(|table| table.starts_with("orch-") && table.ends_with("-proxy")))
}
