//! Ending containers and taking a pod down: preStop hook, signal, grace, kill; then sandbox, network, volumes, cgroup, directory.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use tokio::sync::watch;

use super::actions::Kill;
use super::context::Context;
use super::state::Member;
use super::{cgroup, sandbox};
use crate::agent::probe::{Target, hook};
use crate::cri::{ContainerDetail, RuntimeError};
use crate::rt::TaskGroup;
use crate::rt::clock::instant;

/// What is left to a container at least, after its preStop hook.
const LEAST_GRACE: Duration = Duration::from_secs(2);
const DEFAULT_GRACE_SECONDS: i64 = 30;

/// The grace that the pod's spec, or its deletion, gives to its containers.
pub fn grace_of(pod: &Pod) -> Duration {
    let spec = pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds);
    let seconds = pod.metadata.deletion_grace_period_seconds.or(spec).unwrap_or(DEFAULT_GRACE_SECONDS);
    // A negative period counts as the shortest one.
    Duration::from_secs(u64::try_from(seconds).unwrap_or(1))
}

/// How long a container has, and which others run.
pub struct Turn {
    pub grace: Duration,
    pub running: watch::Receiver<BTreeSet<String>>,
}

/// Ends a container and returns how it ended; `None` if it is gone.
///
/// # Errors
/// When the runtime does not do it: try again.
pub async fn kill(
    context: &Context,
    pod: &Arc<Pod>,
    member: Option<&Member>,
    kill: &Kill,
    turn: Turn,
    pod_ip: Option<std::net::IpAddr>,
) -> Result<Option<ContainerDetail>, RuntimeError> {
    let Turn { grace, mut running } = turn;
    context.event(pod, Some(&kill.container), false, "Killing", &kill.message);
    let began = instant();
    let hook = member.and_then(|member| Some((member, member.spec.lifecycle.as_ref()?.pre_stop.as_ref()?)));
    if let Some((member, handler)) = hook.filter(|_| !grace.is_zero()) {
        let target = Target { container: &member.spec, id: &kill.id, pod_ip };
        let run = hook::run(&context.prober, handler, &target);
        match tokio::time::timeout(grace, run).await {
            Ok(Ok(())) => {}
            Ok(Err(why)) => {
                tracing::info!(container = kill.container, why, "preStop hook failed");
                context.event(pod, Some(&kill.container), true, "FailedPreStopHook", "PreStopHook failed");
            }
            Err(_) => tracing::warn!(container = kill.container, "preStop hook did not end within the grace period"),
        }
    }
    if !kill.after.is_empty() && !grace.is_zero() {
        let is_turn = running.wait_for(|running| kill.after.iter().all(|other| !running.contains(other)));
        if tokio::time::timeout(grace.saturating_sub(began.elapsed()), is_turn).await.is_err() {
            tracing::info!(container = kill.container, after = ?kill.after, "its turn to end did not come within the grace period");
        }
    }
    let left = if grace.is_zero() { grace } else { grace.saturating_sub(began.elapsed()).max(LEAST_GRACE) };
    context.runtime.stop(&kill.id, left).await?;
    match context.runtime.inspect(&kill.id).await {
        Ok(detail) => Ok(Some(detail)),
        Err(RuntimeError::NotFound(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// What is to be taken down.
pub struct Teardown {
    pub pod: Arc<Pod>,
    /// Sandboxes, and containers too when the pod goes away.
    pub remove: Vec<String>,
    /// Whether the pod goes away: its directory then goes too.
    pub is_final: bool,
}

/// How often, and after how long, an ended pod's cgroup is tried again before its removal counts as failed.
pub const CGROUP_LOOKS: u32 = 40;
pub const CGROUP_LOOK: Duration = Duration::from_millis(25);

/// Takes down what a pod has beside its running containers. Can be done again after a failure.
///
/// # Errors
/// The words of the step that failed.
pub async fn tear_down(context: &Context, job: &Teardown) -> Result<(), String> {
    let uid = job.pod.metadata.uid.clone().unwrap_or_default();
    let removals = job.remove.iter().map(|id| context.runtime.remove(id));
    for removed in futures_util::future::join_all(removals).await {
        removed.map_err(|error| error.to_string())?;
    }
    sandbox::detach(context, &uid).await?;
    context.volumes.tear_down(context, &uid).await.map_err(|error| error.to_string())?;
    context.sources.release(&uid);
    if !job.is_final {
        return Ok(());
    }
    remove_cgroup(context, &uid).await?;
    let directory = context.pod_dir(&job.pod);
    let removed = TaskGroup::blocking(move || match std::fs::remove_dir_all(&directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(format!("remove {}: {error}", directory.display())),
        _ => Ok(()),
    })
    .await;
    removed.map_err(|error| error.to_string())?
}

/// Removes a pod's cgroup. A process that has ended leaves it a moment later, of which cgroup v1 tells nobody.
///
/// # Errors
/// That something still uses it.
pub async fn remove_cgroup(context: &Context, uid: &str) -> Result<(), String> {
    for _ in 0..CGROUP_LOOKS {
        let (uid, driver) = (uid.to_owned(), context.offer.cgroup_driver);
        if TaskGroup::blocking(move || cgroup::remove(&uid, driver)).await.map_err(|error| error.to_string())? {
            return Ok(());
        }
        tokio::time::sleep(CGROUP_LOOK).await;
    }
    Err(format!("the cgroup of pod {uid} is still in use"))
}
