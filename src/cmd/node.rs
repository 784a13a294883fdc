//! The node part of `orch server` and `orch agent`: Docker, the agent and its HTTPS server, put together.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Taint;
use tokio::sync::watch;

use super::certificates;
use super::error::CmdError;
use super::installed::{Installed, NodeLock};
use super::settings::{Enforced, NodeSettings};
use crate::agent::bootstrap::ClusterFacts;
use crate::agent::image::collect::Thresholds;
use crate::agent::image::registries::Registries;
use crate::agent::server::KubeletServer;
use crate::agent::server::authorize::Access;
use crate::agent::tunnel::{self, NodeTargets};
use crate::agent::{Agent, AgentConfig, Amounts, LogLimits, Reserve};
use crate::api::quantity::Quantity;
use crate::client::Client;
use crate::client::https::Https;
use crate::cri::Runtime;
use crate::cri::docker::{Docker, DockerConfig};
use crate::http::listener::Listener;
use crate::pki::Identity;
use crate::rt::clock::SharedClock;
use crate::rt::{TaskGroup, files, random};

const DEFAULT_DOCKER_HOST: &str = "unix:///var/run/docker.sock";

/// What a node is made of.
pub struct NodeParts<'a> {
    pub settings: &'a NodeSettings,
    pub cluster: ClusterFacts,
    pub name: String,
    /// `DATA_DIR/agent`.
    pub data_dir: PathBuf,
    pub bind_address: IpAddr,
    pub node_ip: IpAddr,
    pub is_control_plane: bool,
    pub client: Client,
    /// By which tunnels to the servers are opened; a node in a server's own process needs none.
    pub uplink: Option<Arc<Https>>,
    /// By which the node's own server is known; a new value when it was renewed.
    pub serving: watch::Receiver<Identity>,
    /// Whose clients the node's own server believes.
    pub client_ca_pem: String,
    pub clock: SharedClock,
}

/// Whether the node's flags can be understood: told before anything is started.
///
/// # Errors
/// The flag that is wrong, and why.
pub fn check(settings: &NodeSettings) -> Result<(), CmdError> {
    let reserve = settings.cpu.reserve(reserve(settings)?)?;
    settings.cpu.policy(&reserve)?;
    settings.eviction.settings()?;
    thresholds(settings)?;
    Ok(())
}

/// Starts the node's tasks and returns; Docker need not be there yet.
///
/// # Errors
/// [`CmdError`] when a setting is wrong, the port is taken, or the data directory cannot be used.
pub async fn start(parts: NodeParts<'_>, tasks: &TaskGroup) -> Result<(), CmdError> {
    let settings = parts.settings;
    let host = docker_host(settings.docker_host.as_deref());
    let lock = hold(&parts, &host)?;
    let owner = owner(&parts.data_dir)?;
    let docker =
        Docker::connect(DockerConfig { host, owner: owner.clone() }).map_err(|error| CmdError::Setting(error.to_string()))?;
    let address = SocketAddr::new(parts.bind_address, settings.kubelet_port);
    let tls = certificates::server_tls(parts.serving, &parts.client_ca_pem, tasks)?;
    let listener = Listener::bind(address, Some(Arc::clone(&tls))).await;
    let listener = listener.map_err(|error| CmdError::listen(address, &error, "kubelet-port"))?;
    let runtime: Arc<dyn Runtime> = Arc::new(docker);
    let clock = Arc::clone(&parts.clock);
    let static_pods_dir = settings.pod_manifest_path.clone().unwrap_or_else(|| parts.data_dir.join("static"));
    let names = vec![parts.name.clone(), parts.node_ip.to_string()];
    let reserve = settings.cpu.reserve(reserve(settings)?)?;
    let access = Access::new(&parts.name, &parts.client);
    let config = AgentConfig {
        node_name: parts.name,
        node_ip: parts.node_ip,
        storage_dir: storage_dir(settings, &parts.data_dir)?,
        external_ip: settings.node_external_ip,
        data_dir: parts.data_dir,
        labels: labels(&settings.node_label)?,
        taints: taints(&settings.node_taint)?,
        is_control_plane: parts.is_control_plane,
        kubelet_port: settings.kubelet_port,
        cluster_cidr: parts.cluster.cluster_cidr,
        service_cidr: parts.cluster.service_cidr,
        cluster_dns: parts.cluster.cluster_dns,
        cluster_domain: parts.cluster.cluster_domain,
        owner,
        registries: Registries::read(&settings.private_registry).map_err(|error| CmdError::Setting(error.to_string()))?,
        image_thresholds: thresholds(settings)?,
        logs: log_limits(settings)?,
        max_pods: settings.max_pods,
        is_enforced: settings.enforce_node_allocatable == Enforced::Pods,
        pod_max_pids: Some(settings.pod_max_pids).filter(|pids| *pids > 0),
        cpu_policy: settings.cpu.policy(&reserve)?,
        reserve,
        eviction: settings.eviction.settings()?,
        allowed_unsafe_sysctls: settings.allowed_unsafe_sysctls.clone(),
        static_pods_dir,
        client: parts.client,
        runtime: Arc::clone(&runtime),
        clock: parts.clock,
    };
    let agent = Agent::run(config, tasks).await.map_err(|error| CmdError::Node(error.into()))?;
    let server = KubeletServer::new(&agent, access, runtime, clock, &tasks.child());
    if let Some(uplink) = parts.uplink {
        let (kubelet, kubelet_port, pods) = (Arc::clone(&server), settings.kubelet_port, agent.pods());
        let targets = NodeTargets { names, kubelet_port, kubelet, tls, pods, tasks: tasks.child() };
        tasks.critical("tunnels", tunnel::run(uplink, Arc::new(targets)));
    }
    tasks.critical("node listener", async move {
        server.serve(listener).await;
        drop(lock);
    });
    Ok(())
}

/// Where local volumes are made; a path of the host that stays the same wherever `orch` is started from.
fn storage_dir(settings: &NodeSettings, data_dir: &Path) -> Result<PathBuf, CmdError> {
    let beside = data_dir.parent().unwrap_or(data_dir).join("storage");
    let path = settings.default_local_storage_path.clone().unwrap_or(beside);
    std::path::absolute(&path).map_err(|source| CmdError::DataDir { path, source })
}

fn reserve(settings: &NodeSettings) -> Result<Reserve, CmdError> {
    let wrong = |flag: &'static str| move |why: String| CmdError::Setting(format!("--{flag}: {why}"));
    Ok(Reserve {
        system: Amounts::parse(&settings.system_reserved).map_err(wrong("system-reserved"))?,
        kube: Amounts::parse(&settings.kube_reserved).map_err(wrong("kube-reserved"))?,
    })
}

/// Where the engine is: as given, as Docker's own client finds it, or where it usually is.
pub fn docker_host(given: Option<&str>) -> String {
    let given = given.map(str::to_owned).or_else(|| std::env::var("DOCKER_HOST").ok());
    given.unwrap_or_else(|| DEFAULT_DOCKER_HOST.to_owned())
}

fn thresholds(settings: &NodeSettings) -> Result<Thresholds, CmdError> {
    let (high_percent, low_percent) = (settings.image_gc_high_threshold, settings.image_gc_low_threshold);
    if low_percent >= high_percent {
        return Err(CmdError::Setting(format!(
            "--image-gc-low-threshold {low_percent} must be below --image-gc-high-threshold {high_percent}"
        )));
    }
    Ok(Thresholds { high_percent, low_percent, minimum_age: settings.minimum_image_ttl_duration })
}

/// `10Mi` and `5`: what a container's log may take on disk.
fn log_limits(settings: &NodeSettings) -> Result<LogLimits, CmdError> {
    let text = &settings.container_log_max_size;
    let wrong = |why: String| CmdError::Setting(format!("--container-log-max-size {text:?}: {why}"));
    let size = Quantity::parse(text).map_err(|error| wrong(error.to_string()))?;
    let max_bytes = u64::try_from(size.value()).ok().filter(|bytes| *bytes > 0);
    let max_bytes = max_bytes.ok_or_else(|| wrong("must be greater than 0".to_owned()))?;
    Ok(LogLimits { max_bytes, max_files: settings.container_log_max_files })
}

/// Takes the data directory for this process, and notes what `orch uninstall` must know.
fn hold(parts: &NodeParts<'_>, docker_host: &str) -> Result<NodeLock, CmdError> {
    let path = &parts.data_dir;
    let unusable = |source| CmdError::DataDir { path: path.clone(), source };
    let lock = NodeLock::take(path).map_err(unusable)?;
    let lock = lock.ok_or_else(|| {
        CmdError::Setting(format!("the data directory {} is in use by another orch; --data-dir names another", path.display()))
    })?;
    let cluster_cidr = parts.cluster.cluster_cidr.to_string();
    let installed = Installed { node: parts.name.clone(), docker_host: docker_host.to_owned(), cluster_cidr };
    installed.write(path).map_err(unusable)?;
    Ok(lock)
}

/// The name by which this node's containers are told from those of others on the same engine; made once.
fn owner(data_dir: &Path) -> Result<String, CmdError> {
    let path = data_dir.join("owner");
    let unusable = |source| CmdError::DataDir { path: path.clone(), source };
    match std::fs::read_to_string(&path) {
        Ok(owner) if !owner.trim().is_empty() => Ok(owner.trim().to_owned()),
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(unusable(error)),
        _ => {
            let owner = random::uid();
            files::write(&path, owner.as_bytes(), 0o644).map_err(unusable)?;
            Ok(owner)
        }
    }
}

/// `key=value`, `key=`.
fn labels(texts: &[String]) -> Result<BTreeMap<String, String>, CmdError> {
    let label = |text: &String| match text.split_once('=') {
        Some((key, value)) => Ok((key.to_owned(), value.to_owned())),
        None => Err(CmdError::Setting(format!("--node-label {text:?} is not of the form KEY=VALUE"))),
    };
    texts.iter().map(label).collect()
}

/// `key=value:Effect`, `key:Effect`.
fn taints(texts: &[String]) -> Result<Vec<Taint>, CmdError> {
    const EFFECTS: [&str; 3] = ["NoSchedule", "PreferNoSchedule", "NoExecute"];
    let taint = |text: &String| match text.rsplit_once(':') {
        Some((rest, effect)) if EFFECTS.contains(&effect) => {
            let (key, value) = rest.split_once('=').map_or((rest, None), |(key, value)| (key, Some(value.to_owned())));
            Ok(Taint { key: key.to_owned(), value, effect: effect.to_owned(), time_added: None })
        }
        _ => Err(CmdError::Setting(format!(
            "--node-taint {text:?} is not of the form KEY=VALUE:EFFECT with an effect of {}",
            EFFECTS.join(", ")
        ))),
    };
    texts.iter().map(taint).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_and_taints_parse() {
        let texts = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        assert_eq!(labels(&texts(&["a=b", "c="])).unwrap().len(), 2);
        assert!(labels(&texts(&["a"])).is_err());
        let taints_of = |text: &str| {
            taints(&texts(&[text])).map(|taints| (taints[0].key.clone(), taints[0].value.clone(), taints[0].effect.clone()))
        };
        assert_eq!(taints_of("gpu=yes:NoSchedule").unwrap(), ("gpu".into(), Some("yes".into()), "NoSchedule".into()));
        assert_eq!(taints_of("gpu:NoExecute").unwrap(), ("gpu".into(), None, "NoExecute".into()));
        assert!(taints_of("gpu=yes:Never").is_err());
    }

    #[test]
    fn the_owner_is_made_once() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(owner(folder.path()).unwrap(), owner(folder.path()).unwrap());
    }
}
