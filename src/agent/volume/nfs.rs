//! NFS: a directory of a server, mounted for one pod (upstream `pkg/volume/nfs`). A server that does not answer must not hold up anything
//! but the pods that use it: what is mounted is looked up in the kernel's table, and never touched.

use std::fs;
use std::io;
use std::path::Path;

use k8s_openapi::api::core::v1::NFSVolumeSource;

use super::{blocking, mounting, tool};

/// Mounts a directory of a server by the host's own program. Idempotent.
///
/// # Errors
/// What it says: the host may have none, the server may not answer.
pub async fn mount(source: &NFSVolumeSource, options: &[String], target: &Path, read_only: bool) -> Result<(), String> {
    let at = target.to_owned();
    let is_mounted = blocking(move || {
        if mounting::is_mounted(&at)? {
            return Ok(true);
        }
        fs::create_dir_all(&at).map(|()| false)
    });
    if is_mounted.await? {
        return Ok(());
    }
    let mut all = options.to_vec();
    all.extend((read_only || source.read_only == Some(true)).then(|| "ro".to_owned()));
    // The agent itself tries again, and says meanwhile what is wrong: `mount.nfs` would be silent for two minutes.
    if !all.iter().flat_map(|options| options.split(',')).any(|option| option.starts_with("retry=")) {
        all.push("retry=0".to_owned());
    }
    let mounted = tool::mount("nfs", &all, &address(source), target).await;
    if mounted.is_err() {
        let at = target.to_owned();
        blocking(move || match fs::remove_dir(&at) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        })
        .await?;
    }
    mounted.map_err(|why| if why.contains("bad option") { format!("{why}{MISSING}") } else { why })
}

/// What `mount` means when it has no helper.
const MISSING: &str = "(the host has no mount.nfs: install nfs-common, or nfs-utils)";

/// `SERVER:PATH`; a colon in the server's address must not look like the one behind it.
fn address(source: &NFSVolumeSource) -> String {
    let is_v6 = source.server.parse::<std::net::Ipv6Addr>().is_ok();
    if is_v6 { format!("[{}]:{}", source.server, source.path) } else { format!("{}:{}", source.server, source.path) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let source = |server: &str| NFSVolumeSource { server: server.to_owned(), path: "/data".to_owned(), read_only: None };
        assert_eq!(address(&source("nas.example")), "nas.example:/data");
        assert_eq!(address(&source("fd00::1")), "[fd00::1]:/data");
    }
}
