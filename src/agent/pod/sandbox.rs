//! Making a pod's sandbox: the pause container, its network, and the files that show the pod's address. While it starts, the
//! pod's containers are already being created; [`Progress`] tells them how far it is.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::node::v1::RuntimeClass;
use tokio::sync::watch;

use super::context::{Context, MountedVolumes};
use super::{cgroup, files, resources, spec};
use crate::cri::{ContainerDetail, labels};

/// Holds a pod's address, in its directory.
const ADDRESS_FILE: &str = "ip";

/// The address that a pod was given before the agent (re)started, by its directory.
pub async fn kept_address(pod_dir: &Path) -> Option<IpAddr> {
    tokio::fs::read_to_string(pod_dir.join(ADDRESS_FILE)).await.ok()?.trim().parse().ok()
}

/// Time for the API to say what a RuntimeClass is.
const LOOK_UP: Duration = Duration::from_secs(30);

/// How far the parts are that all containers of a pod wait for.
#[derive(Debug, Clone, Default)]
pub struct Progress {
    /// The sandbox, once it is created; containers can be created then.
    pub sandbox_id: Option<String>,
    /// Whether it runs and has its network; containers can be started then.
    pub is_ready: bool,
    pub pod_ip: Option<IpAddr>,
    /// Name of the OCI runtime, known with the sandbox; "" is the engine's own.
    pub oci_runtime: String,
    pub volumes: Option<Arc<MountedVolumes>>,
}

/// The sender's half: sandbox and volumes report here.
pub type ProgressSender = Arc<watch::Sender<Progress>>;

/// A sandbox that is up.
#[derive(Debug, Clone)]
pub struct SandboxUp {
    pub detail: ContainerDetail,
    pub pod_ip: Option<IpAddr>,
}

/// What a sandbox is made from.
pub struct SandboxJob {
    pub pod: Arc<Pod>,
    pub attempt: u32,
    /// A sandbox that is already there, perhaps running: only what is missing is done.
    pub existing: Option<ContainerDetail>,
    /// Dead ones to be removed first.
    pub remove: Vec<String>,
}

/// Makes the sandbox run and attaches it to the network. Safe to drop at any await and to do again.
///
/// # Errors
/// The words of the step that failed.
pub async fn bring_up(context: &Context, job: SandboxJob, progress: &ProgressSender) -> Result<SandboxUp, String> {
    let pod = &*job.pod;
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    for id in &job.remove {
        context.runtime.remove(id).await.map_err(|error| error.to_string())?;
    }
    let host_network = pod.spec.as_ref().is_some_and(|spec| spec.host_network == Some(true));
    let is_new = job.existing.is_none();
    files::check_hostname(pod, &context.cluster_domain)?;
    let oci_runtime = match &job.existing {
        Some(existing) => existing.labels.get(labels::OCI_RUNTIME).cloned().unwrap_or_default(),
        None => oci_runtime(context, pod).await?,
    };
    let id = match job.existing {
        Some(existing) => existing.id,
        None => {
            if !job.remove.is_empty() && !host_network {
                detach(context, &uid).await?;
            }
            let mut wanted = spec::sandbox_spec(pod, job.attempt, &context.owner, &context.cluster_domain, &context.offer);
            if !oci_runtime.is_empty() {
                wanted.labels.insert(labels::OCI_RUNTIME.to_owned(), oci_runtime.clone());
                wanted.oci_runtime.clone_from(&oci_runtime);
            }
            // By its directory a pod is found that nobody else remembers: before the engine makes its cgroup there is one.
            let directory = context.pod_dir(pod);
            let made = tokio::fs::create_dir_all(&directory).await;
            made.map_err(|error| format!("make {}: {error}", directory.display()))?;
            context.runtime.create_sandbox(&wanted).await.map_err(|error| error.to_string())?
        }
    };
    progress.send_modify(|progress| {
        progress.oci_runtime = oci_runtime;
        progress.sandbox_id = Some(id.clone());
    });
    {
        let _permit = context.starts.acquire().await.map_err(|error| error.to_string())?;
        context.runtime.start(&id).await.map_err(|error| error.to_string())?;
    }
    if is_new {
        limit_pod(context, pod, &uid);
    }
    let detail = context.runtime.inspect(&id).await.map_err(|error| error.to_string())?;
    let pid = detail.pid.ok_or_else(|| "the sandbox ended right after its start".to_owned())?;
    let pod_ip = if host_network { None } else { Some(attach(context, pod, pid).await?) };
    write_hosts(context, pod, pod_ip).await?;
    if let Some(ip) = pod_ip {
        // From here a restarted agent knows which address to keep.
        let path = context.pod_dir(pod).join(ADDRESS_FILE);
        files::write_in_place(&path, ip.to_string().as_bytes())
            .await
            .map_err(|error| format!("write {}: {error}", path.display()))?;
    }
    progress.send_modify(|progress| {
        progress.is_ready = true;
        progress.pod_ip = pod_ip.or(host_network.then_some(context.node_ip));
    });
    Ok(SandboxUp { detail, pod_ip })
}

/// The OCI runtime that the pod's RuntimeClass stands for.
async fn oci_runtime(context: &Context, pod: &Pod) -> Result<String, String> {
    let class = pod.spec.as_ref().and_then(|spec| spec.runtime_class_name.as_deref()).filter(|name| !name.is_empty());
    let Some(class) = class else { return Ok(String::new()) };
    let found = tokio::time::timeout(LOOK_UP, context.client.get::<RuntimeClass>("", class)).await;
    let found = found.map_err(|_| format!("failed to get RuntimeClass \"{class}\": the API does not answer"))?;
    let found = found.map_err(|error| format!("failed to get RuntimeClass \"{class}\": {error}"))?;
    let info = context.runtime.info().await.map_err(|error| error.to_string())?;
    if info.runtimes.contains(&found.handler) {
        return Ok(found.handler);
    }
    let known: Vec<&str> = info.runtimes.iter().map(String::as_str).collect();
    Err(format!("unknown runtime handler \"{}\": Docker's runtimes are {}", found.handler, known.join(", ")))
}

/// `/etc/hosts` of the pod, where the address is known. It is written in place: containers have it bound.
async fn write_hosts(context: &Context, pod: &Pod, pod_ip: Option<IpAddr>) -> Result<(), String> {
    let text = match pod_ip {
        Some(ip) => files::hosts(pod, ip, &context.cluster_domain),
        None => {
            let host = tokio::fs::read_to_string("/etc/hosts").await;
            files::host_network_hosts(pod, &host.map_err(|error| format!("read /etc/hosts: {error}"))?)
        }
    };
    let path = context.pod_dir(pod).join("etc-hosts");
    files::write_in_place(&path, text.as_bytes()).await.map_err(|error| format!("write {}: {error}", path.display()))
}

async fn attach(context: &Context, pod: &Pod, pid: u32) -> Result<IpAddr, String> {
    const NODE_READY: Duration = Duration::from_secs(120);
    let mut slot = context.network.clone();
    let network = tokio::time::timeout(NODE_READY, async { slot.wait_for(Option::is_some).await.ok()?.clone() }).await;
    let network = network.ok().flatten().ok_or_else(|| "network is not ready: the node has no podCIDR yet".to_owned())?;
    network.attach(pod, pid).await.map(IpAddr::from).map_err(|error| error.to_string())
}

/// Takes a pod off the network, if the node has one.
///
/// # Errors
/// The step that failed.
pub async fn detach(context: &Context, uid: &str) -> Result<(), String> {
    let network = context.network.borrow().clone();
    match network {
        Some(network) => network.detach(uid).await.map_err(|error| error.to_string()),
        None => Ok(()),
    }
}

fn limit_pod(context: &Context, pod: &Pod, uid: &str) {
    let mut limits = resources::pod_resources(pod, context.cpus.has_own(uid));
    limits.pids = context.offer.max_pids;
    cgroup::apply(resources::qos_class(pod), uid, context.offer.cgroup_driver, &limits);
}
