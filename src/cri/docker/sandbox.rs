//! Sandboxes: the pause container that holds the namespaces of a pod.

use std::collections::HashMap;

use bollard::models::{ContainerCreateBody, HostConfig, HostConfigLogConfig};

use super::{Engine, image, pause};
use crate::cri::{RuntimeError, SandboxSpec};

/// The kernel kills everything of the pod before its sandbox, as the kubelet wants it.
const OOM_SCORE_ADJ: i64 = -998;
/// The least weight the kernel knows: a sandbox only sleeps.
const CPU_SHARES: i64 = 2;
/// Nobody in particular; upstream's pause runs as this user too.
const USER: &str = "65535:65535";

impl Engine {
    pub(super) async fn make_sandbox(&self, spec: &SandboxSpec) -> Result<String, RuntimeError> {
        let body = body(spec, self.can_lower_oom_score().await);
        match self.create_named(&spec.name, &spec.labels, body.clone()).await {
            Err(error) if image::is_missing_image(&error) => {
                self.ensure_pause_image().await?;
                self.create_named(&spec.name, &spec.labels, body).await
            }
            result => result,
        }
    }
}

fn body(spec: &SandboxSpec, can_lower_oom_score: bool) -> ContainerCreateBody {
    let mode = |host: bool, other: &str| Some(if host { "host" } else { other }.to_owned());
    let host_config = HostConfig {
        network_mode: mode(spec.host_network, "none"),
        ipc_mode: mode(spec.host_ipc, "shareable"),
        // The host's network comes with the host's name.
        uts_mode: spec.host_network.then(|| "host".to_owned()),
        pid_mode: spec.host_pid.then(|| "host".to_owned()),
        sysctls: Some(spec.sysctls.clone().into_iter().collect::<HashMap<_, _>>()),
        cgroup_parent: Some(spec.cgroup_parent.clone()),
        cpu_shares: Some(CPU_SHARES),
        oom_score_adj: can_lower_oom_score.then_some(OOM_SCORE_ADJ),
        readonly_rootfs: Some(true),
        cap_drop: Some(vec!["ALL".to_owned()]),
        security_opt: Some(
            ["no-new-privileges".to_owned(), "seccomp=unconfined".to_owned()]
                .into_iter()
                .chain(spec.selinux.iter().map(|label| format!("label={label}")))
                .collect(),
        ),
        runtime: (!spec.oci_runtime.is_empty()).then(|| spec.oci_runtime.clone()),
        log_config: Some(HostConfigLogConfig { typ: Some("none".to_owned()), config: None }),
        ..HostConfig::default()
    };
    ContainerCreateBody {
        image: Some(pause::IMAGE.to_owned()),
        hostname: (!spec.host_network && !spec.hostname.is_empty()).then(|| spec.hostname.clone()),
        user: Some(USER.to_owned()),
        labels: Some(spec.labels.clone().into_iter().collect()),
        host_config: Some(host_config),
        ..ContainerCreateBody::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespaces_follow_the_spec() {
        let pod = SandboxSpec { hostname: "web".to_owned(), ..SandboxSpec::default() };
        let host = SandboxSpec { host_network: true, host_ipc: true, host_pid: true, ..pod.clone() };
        for (spec, hostname, expected) in [
            (pod, Some("web"), (Some("none"), Some("shareable"), None)),
            (host, None, (Some("host"), Some("host"), Some("host"))),
        ] {
            let body = body(&spec, false);
            let config = body.host_config.unwrap();
            let modes = (config.network_mode.as_deref(), config.ipc_mode.as_deref(), config.pid_mode.as_deref());
            assert_eq!((body.hostname.as_deref(), modes), (hostname, expected));
            assert_eq!(config.oom_score_adj, None);
        }
    }
}
