//! Starting one container: image, environment and mounts while the sandbox comes up, then create, start, and the postStart hook.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Pod};
use tokio::sync::watch;

use super::actions::Start;
use super::cgroup;
use super::context::{Context, MountedVolumes};
use super::env::{self, References};
use super::env_file;
use super::mounts;
use super::recall::Recall;
use super::resources::qos_class;
use super::sandbox::Progress;
use super::spec::{self, ContainerInput};
use super::state::Member;
use crate::agent::cpu::{self, Share};
use crate::agent::image::credentials;
use crate::agent::probe::{Target, hook};
use crate::cri::{ContainerDetail, Image, RegistryAuth, RuntimeError, Seccomp};
use crate::rt::TaskGroup;

/// How long until a start that failed for its configuration is tried again.
const CONFIG_RETRY: Duration = Duration::from_secs(10);

/// Why a container was not started; reason and message go into its status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartFailure {
    pub reason: String,
    pub message: String,
    pub retry_after: Duration,
}

impl StartFailure {
    fn new(reason: &str, message: impl Into<String>) -> Self {
        Self { reason: reason.to_owned(), message: message.into(), retry_after: CONFIG_RETRY }
    }
}

/// What a container is started from.
pub struct StartJob {
    pub pod: Arc<Pod>,
    pub member: Member,
    pub start: Start,
    /// Id of the running container whose processes an ephemeral container shares.
    pub target_id: Option<String>,
    pub progress: watch::Receiver<Progress>,
}

/// Starts a container. Dropping it may leave a created container behind, which the next plan finds and removes.
///
/// # Errors
/// [`StartFailure`]; the container may exist nevertheless (then the runtime says why it did not start).
pub async fn start(context: &Context, mut job: StartJob) -> Result<ContainerDetail, StartFailure> {
    let image = image(context, &job).await?;
    let (id, share) = create(context, &mut job, &image).await?;
    wait(&mut job.progress, |progress| progress.is_ready).await?;
    let name = job.member.name();
    let started = {
        let permit = context.starts.acquire().await;
        let _permit = permit.map_err(|error| StartFailure::new("RunContainerError", error.to_string()))?;
        context.runtime.start(&id).await
    };
    if let Err(error) = started {
        let message = format!("failed to start container \"{id}\": Error response from daemon: {error}");
        context.event(&job.pod, Some(name), true, "Failed", &format!("Error: {message}"));
        return Err(StartFailure { retry_after: Duration::ZERO, ..StartFailure::new("RunContainerError", message) });
    }
    let uid = job.pod.metadata.uid.as_deref().unwrap_or("");
    cgroup::settle(qos_class(&job.pod), uid, context.offer.cgroup_driver, &id);
    move_to_cpus(context, &job, &id, share).await;
    context.event(&job.pod, Some(name), false, "Started", &format!("Started container {name}"));
    post_start(context, &job, &id).await?;
    let inspected = context.runtime.inspect(&id).await;
    inspected.map_err(|error| StartFailure {
        retry_after: Duration::ZERO,
        ..StartFailure::new("RunContainerError", error.to_string())
    })
}

async fn image(context: &Context, job: &StartJob) -> Result<Image, StartFailure> {
    let auths = pull_secrets(context, &job.pod).await;
    let found = context.images.ensure(&job.pod, &job.member.spec, &auths).await;
    found.map_err(|failure| StartFailure {
        reason: failure.reason.to_owned(),
        message: failure.message,
        retry_after: failure.retry_after,
    })
}

/// The credentials that a pod's images are pulled with.
pub async fn pull_secrets(context: &Context, pod: &Pod) -> Vec<RegistryAuth> {
    let (uid, namespace) = (pod.metadata.uid.as_deref().unwrap_or(""), pod.metadata.namespace.as_deref().unwrap_or(""));
    let recall = Recall { context, uid, namespace };
    let mut auths = Vec::new();
    for secret in pod.spec.iter().flat_map(|spec| spec.image_pull_secrets.iter().flatten()) {
        match recall.secret(&secret.name).await {
            Ok(Some(found)) => auths.extend(credentials(&found)),
            Ok(None) => {
                let message = format!(
                    "Unable to retrieve some image pull secrets ({}); attempting to pull the image may not succeed.",
                    secret.name
                );
                context.event(pod, None, true, "FailedToRetrieveImagePullSecret", &message);
            }
            Err(error) => tracing::warn!(%error, "image pull secret"),
        }
    }
    auths
}

/// Waits until the sandbox or the volumes are far enough.
async fn wait(progress: &mut watch::Receiver<Progress>, enough: impl Fn(&Progress) -> bool) -> Result<Progress, StartFailure> {
    let reached = progress.wait_for(|progress| enough(progress)).await;
    reached.map(|progress| progress.clone()).map_err(|_| StartFailure::new("ContainerCreating", "the pod's worker ended"))
}

/// While the container came up, others may have got CPUs of their own: it leaves them.
async fn move_to_cpus(context: &Context, job: &StartJob, id: &str, was: Option<Share>) {
    let now = context.cpus.share(job.pod.metadata.uid.as_deref().unwrap_or(""), job.member.name());
    let Some(share) = now.filter(|now| Some(now) != was.as_ref()) else { return };
    if let Err(error) = context.runtime.update(id, &cpu::of_cpus(&share.cpus)).await {
        tracing::warn!(id, cpus = %share.cpus, %error, "a container was not moved to its CPUs");
    }
}

async fn create(context: &Context, job: &mut StartJob, image: &Image) -> Result<(String, Option<Share>), StartFailure> {
    let config = |message: String| StartFailure::new("CreateContainerConfigError", message);
    let needs_ip = env::needs_pod_ip(&job.member.spec);
    let mut references = references(context, job).await.map_err(config)?;
    let progress = wait(&mut job.progress, |progress| {
        progress.volumes.is_some() && progress.sandbox_id.is_some() && (progress.is_ready || !needs_ip)
    })
    .await?;
    let services = if job.pod.spec.is_some() {
        let namespace = job.pod.metadata.namespace.as_deref().unwrap_or("");
        let links = job.pod.spec.as_ref().is_none_or(|spec| spec.enable_service_links != Some(false));
        let recall = Recall { context, uid: job.pod.metadata.uid.as_deref().unwrap_or(""), namespace };
        let variables = recall.services(|services| env::service_variables(services, namespace, links)).await;
        variables.map_err(|error| config(error.to_string()))?
    } else {
        Default::default()
    };
    let fields = context.fields(&job.pod, progress.pod_ip);
    let failed = |message: String| {
        context.event(&job.pod, Some(job.member.name()), true, "Failed", &format!("Error: {message}"));
        config(message)
    };
    let volumes = progress.volumes.unwrap_or_default();
    references.files = env_files(&job.member.spec, &volumes).await.map_err(failed)?;
    let variables = env::environment(&job.member.spec, &fields, &references, &services).map_err(failed)?;
    let attempt = job.start.attempt;
    let mounts = mounts::mounts(context, &job.pod, &job.member, attempt, &volumes, &variables).await.map_err(failed)?;
    let host_devices = mounts::devices(&job.member.spec, &volumes).map_err(failed)?;
    let sandbox_id = progress.sandbox_id.unwrap_or_default();
    if let (Some(target), None) = (&job.member.target, &job.target_id) {
        return Err(failed(format!("unable to find target container {target}")));
    }
    let seccomp = match seccomp(context, &job.pod, &job.member.spec).await {
        Ok(seccomp) => seccomp,
        Err(message) => return Err(create_error(context, job, &RuntimeError::Failed(message))),
    };
    let share = context.cpus.share(job.pod.metadata.uid.as_deref().unwrap_or(""), job.member.name());
    let wanted = spec::container_spec(ContainerInput {
        pod: &job.pod,
        member: &job.member,
        attempt,
        owner: &context.owner,
        offer: &context.offer,
        image,
        sandbox_id: &sandbox_id,
        target_id: job.target_id.clone(),
        seccomp,
        oci_runtime: progress.oci_runtime,
        env: variables,
        mounts,
        host_devices,
        cpus: share.clone(),
    })
    .map_err(failed)?;
    if let Some(leftover) = &job.start.leftover {
        context.runtime.remove(leftover).await.map_err(|error| create_error(context, job, &error))?;
    }
    let id = context.runtime.create_container(&wanted).await.map_err(|error| create_error(context, job, &error))?;
    let name = job.member.name();
    context.event(&job.pod, Some(name), false, "Created", &format!("Created container: {name}"));
    Ok((id, share))
}

/// Which system calls a container may make. Profiles lie in `DATA/agent/seccomp`, as a kubelet keeps them.
async fn seccomp(context: &Context, pod: &Pod, container: &Container) -> Result<Seccomp, String> {
    let Some(profile) = spec::seccomp_profile(pod, container) else { return Ok(Seccomp::Unconfined) };
    match (profile.type_.as_str(), &profile.localhost_profile) {
        ("RuntimeDefault", _) => Ok(Seccomp::RuntimeDefault),
        ("Localhost", Some(name)) => {
            let text = tokio::fs::read_to_string(context.seccomp_dir.join(name)).await;
            let text = text.map_err(|error| format!("cannot load seccomp profile \"localhost/{name}\": {error}"))?;
            match serde_json::from_str::<serde_json::Value>(&text) {
                Ok(_) => Ok(Seccomp::Profile(text)),
                Err(error) => Err(format!("decoding seccomp profile \"localhost/{name}\" failed: {error}")),
            }
        }
        _ => Ok(Seccomp::Unconfined),
    }
}

fn create_error(context: &Context, job: &StartJob, error: &RuntimeError) -> StartFailure {
    let message = error.to_string();
    context.event(&job.pod, Some(job.member.name()), true, "Failed", &format!("Error: {message}"));
    StartFailure::new("CreateContainerError", message)
}

async fn env_files(container: &Container, volumes: &MountedVolumes) -> Result<BTreeMap<(String, String), String>, String> {
    let mut files = BTreeMap::new();
    for (volume, path) in env::referenced_files(container) {
        let root = volumes.get(&volume).ok_or_else(|| format!("volume {volume:?} is not mounted"))?.clone();
        let file = path.clone();
        let read = TaskGroup::blocking(move || env_file::read(&root.path, &file)).await.map_err(|error| error.to_string())?;
        let text = read.map_err(|error| format!("couldn't read env file {path} of volume {volume}: {error}"))?;
        files.extend(text.map(|text| ((volume, path), text)));
    }
    Ok(files)
}

async fn references(context: &Context, job: &StartJob) -> Result<References, String> {
    let (uid, namespace) = (job.pod.metadata.uid.as_deref().unwrap_or(""), job.pod.metadata.namespace.as_deref().unwrap_or(""));
    let recall = Recall { context, uid, namespace };
    let (config_maps, secrets) = env::referenced(&job.member.spec);
    let mut references = References::default();
    for name in config_maps {
        let found = recall.config_map(&name).await.map_err(|error| error.to_string())?;
        references.config_maps.extend(found.map(|found| (name, found)));
    }
    for name in secrets {
        let found = recall.secret(&name).await.map_err(|error| error.to_string())?;
        references.secrets.extend(found.map(|found| (name, found)));
    }
    Ok(references)
}

async fn post_start(context: &Context, job: &StartJob, id: &str) -> Result<(), StartFailure> {
    let Some(handler) = job.member.spec.lifecycle.as_ref().and_then(|lifecycle| lifecycle.post_start.as_ref()) else {
        return Ok(());
    };
    let pod_ip = job.progress.borrow().pod_ip;
    let target = Target { container: &job.member.spec, id, pod_ip };
    let Err(why) = hook::run(&context.prober, handler, &target).await else { return Ok(()) };
    // What the handler said may hold secrets: it goes into no event, as upstream.
    context.event(&job.pod, Some(job.member.name()), true, "FailedPostStartHook", "PostStartHook failed");
    let name = job.member.name();
    context.event(&job.pod, Some(name), false, "Killing", "FailedPostStartHook");
    let grace = super::stop::grace_of(&job.pod);
    if let Err(error) = context.runtime.stop(id, grace).await {
        tracing::warn!(container = name, %error, "stop after a failed postStart hook");
    }
    Err(StartFailure { retry_after: Duration::ZERO, ..StartFailure::new("PostStartHookError", why) })
}
