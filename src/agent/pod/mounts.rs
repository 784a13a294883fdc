//! The bind mounts of a container: its volumes (with `subPath`), and the agent's files.

use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Container, Pod, VolumeMount};

use super::context::{Context, MountedVolumes};
use super::env::expand;
use super::files;
use super::spec::bind;
use super::state::Member;
use crate::agent::volume::sub_path;
use crate::cri::{Mount, Propagation};

/// All mounts of a container; the files that the agent gives are made if they are missing.
///
/// # Errors
/// The kubelet's words, for `CreateContainerConfigError`.
pub async fn mounts(
    context: &Context,
    pod: &Pod,
    member: &Member,
    attempt: u32,
    volumes: &MountedVolumes,
    env: &[(String, String)],
) -> Result<Vec<Mount>, String> {
    let container = &member.spec;
    let pod_dir = context.pod_dir(pod);
    let mut mounts = Vec::new();
    for (index, mount) in container.volume_mounts.iter().flatten().enumerate() {
        let host_path = volumes.get(&mount.name).ok_or_else(|| format!("volume {:?} is not mounted", mount.name))?;
        let sub = sub_path_of(mount, env)?;
        let host_path = match sub {
            None => host_path.clone(),
            Some(sub) => {
                let target = pod_dir.join("volume-subpaths").join(&mount.name).join(&container.name).join(index.to_string());
                let failed = |why| {
                    format!(
                        "failed to prepare subPath for volumeMount \"{}\" of container \"{}\": {why}",
                        mount.name, container.name
                    )
                };
                sub_path::prepare(host_path.clone(), sub, target).await.map_err(failed)?
            }
        };
        mounts.push(Mount {
            host_path,
            container_path: absolute(&mount.mount_path),
            read_only: mount.read_only == Some(true),
            propagation: propagation(mount),
        });
    }
    agent_files(context, pod, container, attempt, &pod_dir, &mut mounts).await?;
    Ok(mounts)
}

fn absolute(path: &str) -> String {
    if path.starts_with('/') { path.to_owned() } else { format!("/{path}") }
}

fn propagation(mount: &VolumeMount) -> Propagation {
    match mount.mount_propagation.as_deref() {
        Some("HostToContainer") => Propagation::HostToContainer,
        Some("Bidirectional") => Propagation::Bidirectional,
        _ => Propagation::Private,
    }
}

fn sub_path_of(mount: &VolumeMount, env: &[(String, String)]) -> Result<Option<PathBuf>, String> {
    let plain = mount.sub_path.clone().filter(|path| !path.is_empty());
    let path = match mount.sub_path_expr.as_deref().filter(|expression| !expression.is_empty()) {
        None => plain,
        Some(expression) => {
            let lookup = |name: &str| env.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
            let expanded = expand(expression, lookup);
            if expanded.contains("$(") {
                return Err(format!("missing value for \"{expression}\""));
            }
            Some(expanded)
        }
    };
    let Some(path) = path.map(PathBuf::from) else { return Ok(None) };
    if path.is_absolute() {
        return Err(format!("error SubPath `{}` must not be an absolute path", path.display()));
    }
    if path.components().any(|part| part == std::path::Component::ParentDir) {
        return Err(format!("unable to provision SubPath `{}`: must not contain '..'", path.display()));
    }
    Ok(Some(path))
}

async fn agent_files(
    context: &Context,
    pod: &Pod,
    container: &Container,
    attempt: u32,
    pod_dir: &Path,
    mounts: &mut Vec<Mount>,
) -> Result<(), String> {
    let host_network = pod.spec.as_ref().is_some_and(|spec| spec.host_network == Some(true));
    let has = |mounts: &[Mount], path: &str| mounts.iter().any(|mount| mount.container_path == path);
    if !host_network && !has(mounts, "/etc/hosts") {
        let path = pod_dir.join("etc-hosts");
        // The sandbox fills it in when it has its address; it must be there before.
        if !exists(&path).await {
            write(&path, b"", 0o644).await?;
        }
        mounts.push(bind(path, "/etc/hosts", false));
    }
    if !has(mounts, "/etc/resolv.conf") {
        let host = host_resolv_conf().await;
        let made = files::resolv_conf(pod, &host, context.cluster_dns, &context.cluster_domain);
        for warning in &made.warnings {
            context.event(pod, None, true, "DNSConfigForming", warning);
        }
        let path = pod_dir.join("resolv.conf");
        write(&path, made.text.as_bytes(), 0o644).await?;
        mounts.push(bind(path, "/etc/resolv.conf", false));
    }
    let message_path = container.termination_message_path.as_deref().unwrap_or("/dev/termination-log");
    if !message_path.is_empty() && !has(mounts, message_path) {
        let path = files::termination_path(pod_dir, &container.name, attempt);
        // Whatever user the container runs as may write its last words.
        write(&path, b"", 0o666).await?;
        mounts.push(bind(path, message_path, false));
    }
    Ok(())
}

/// The host's resolvers as pods can use them: where systemd's resolver listens on loopback, the servers behind it.
async fn host_resolv_conf() -> String {
    let read = async |path: &str| tokio::fs::read_to_string(path).await;
    let is_loopback = |line: &str| line.strip_prefix("nameserver").is_some_and(|rest| rest.trim_start().starts_with("127."));
    // A host without the file has no resolvers.
    let host = read("/etc/resolv.conf").await.unwrap_or_else(|_| String::new());
    if host.lines().any(is_loopback) {
        return read("/run/systemd/resolve/resolv.conf").await.unwrap_or(host);
    }
    host
}

async fn exists(path: &Path) -> bool {
    tokio::fs::try_exists(path).await.unwrap_or(false)
}

async fn write(path: &Path, content: &[u8], mode: u32) -> Result<(), String> {
    use std::os::unix::fs::PermissionsExt;
    let failed = |error: std::io::Error| format!("write {}: {error}", path.display());
    if let Some(parent) = path.parent() {
        tokio::fs::create_dir_all(parent).await.map_err(failed)?;
    }
    tokio::fs::write(path, content).await.map_err(failed)?;
    tokio::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).await.map_err(failed)
}
