//! What engine this is, and what the kernel lets it do.

use std::os::fd::AsFd;
use std::time::Duration;

use bollard::models::{SystemInfoCgroupDriverEnum, SystemInfoCgroupVersionEnum};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use tokio::net::UnixStream;

use super::Engine;
use crate::cri::{CgroupDriver, RuntimeError, RuntimeInfo};

/// A health check must answer soon.
const DEADLINE: Duration = Duration::from_secs(20);
/// The bit of CAP_SYS_RESOURCE in a capability set.
const CAP_SYS_RESOURCE: u64 = 1 << 24;

impl Engine {
    pub(super) async fn engine_info(&self) -> Result<RuntimeInfo, RuntimeError> {
        let client = self.client()?;
        let negotiated = (*client).clone().negotiate_version();
        let client = self.within("version", DEADLINE, negotiated).await?;
        let version = self.within("version", DEADLINE, client.version()).await?;
        let info = self.within("info", DEADLINE, client.info()).await?;
        Ok(RuntimeInfo {
            name: "docker".to_owned(),
            version: version.version.unwrap_or_default(),
            api_version: version.api_version.unwrap_or_default(),
            kernel_version: info.kernel_version.unwrap_or_default(),
            os_image: info.operating_system.unwrap_or_default(),
            cgroup_driver: match info.cgroup_driver {
                Some(SystemInfoCgroupDriverEnum::SYSTEMD) => CgroupDriver::Systemd,
                _ => CgroupDriver::Cgroupfs,
            },
            cgroup_version: if info.cgroup_version == Some(SystemInfoCgroupVersionEnum::_2) { 2 } else { 1 },
            root_dir: info.docker_root_dir.unwrap_or_default().into(),
            can_lower_oom_score: self.can_lower_oom_score().await,
            has_apparmor: info.security_options.iter().flatten().any(|option| option.contains("name=apparmor")),
            runtimes: info.runtimes.unwrap_or_default().into_keys().collect(),
        })
    }

    /// Whether a container with a negative `oom_score_adj` would start. Found out once, by the capabilities of the engine's
    /// process: without CAP_SYS_RESOURCE in the first user namespace, runc fails with words that nobody understands.
    pub(super) async fn can_lower_oom_score(&self) -> bool {
        if let Some(known) = self.can_lower_oom_score.get() {
            return *known;
        }
        let Ok(pid) = self.engine_pid().await else { return false };
        let can = tokio::fs::read_to_string(format!("/proc/{pid}/status")).await.is_ok_and(|status| has_sys_resource(&status))
            && tokio::fs::read_to_string(format!("/proc/{pid}/uid_map")).await.is_ok_and(|map| is_first_user_namespace(&map));
        *self.can_lower_oom_score.get_or_init(|| can)
    }

    /// The process that listens on the socket; this process where it cannot be seen.
    async fn engine_pid(&self) -> std::io::Result<i32> {
        let stream = UnixStream::connect(&self.socket).await?;
        let pid = getsockopt(&stream.as_fd(), PeerCredentials)?.pid();
        Ok(if pid > 0 { pid } else { i32::try_from(std::process::id()).unwrap_or(1) })
    }
}

fn has_sys_resource(status: &str) -> bool {
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).is_some_and(|set| set & CAP_SYS_RESOURCE != 0)
}

fn is_first_user_namespace(uid_map: &str) -> bool {
    uid_map.split_whitespace().eq(["0", "0", "4294967295"])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_capabilities_and_user_namespaces() {
        assert!(has_sys_resource("Name:\tdockerd\nCapEff:\t000001ffffffffff\n"));
        assert!(!has_sys_resource("Name:\tdockerd\nCapEff:\t000001fffeffffff\n"));
        assert!(!has_sys_resource(""));
        assert!(is_first_user_namespace("         0          0 4294967295\n"));
        assert!(!is_first_user_namespace("         0     100000      65536\n"));
    }
}
