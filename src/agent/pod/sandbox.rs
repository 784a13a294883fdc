//! Making a pod's sandbox: the pause container, its network, and the files that show the pod's address. While it starts, the
//! pod's containers are already being created; [`Progress`] tells them how far it is.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use tokio::sync::watch;

use super::context::{Context, MountedVolumes};
use super::{cgroup, files, resources, spec};
use crate::cri::ContainerDetail;

/// Holds a pod's address, in its directory.
pub const ADDRESS_FILE: &str = "ip";

/// How far the parts are that all containers of a pod wait for.
#[derive(Debug, Clone, Default)]
pub struct Progress {
    /// The sandbox, once it is created; containers can be created then.
    pub sandbox_id: Option<String>,
    /// Whether it runs and has its network; containers can be started then.
    pub is_ready: bool,
    pub pod_ip: Option<IpAddr>,
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
    let id = match job.existing {
        Some(existing) => existing.id,
        None => {
            if !job.remove.is_empty() && !host_network {
                detach(context, &uid).await?;
            }
            let wanted = spec::sandbox_spec(pod, job.attempt, &context.owner, &context.cluster_domain, &context.offer);
            context.runtime.create_sandbox(&wanted).await.map_err(|error| error.to_string())?
        }
    };
    progress.send_modify(|progress| progress.sandbox_id = Some(id.clone()));
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
    if let Some(ip) = pod_ip {
        let text = files::hosts(pod, ip, &context.cluster_domain);
        let path = context.pod_dir(pod).join("etc-hosts");
        files::write_in_place(&path, text.as_bytes()).await.map_err(|error| format!("write {}: {error}", path.display()))?;
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
    let limits = resources::pod_resources(pod);
    cgroup::apply(resources::qos_class(pod), uid, context.offer.cgroup_driver, &limits);
}
