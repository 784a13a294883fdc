//! The worker's hands: turns a plan into operations, and notes how they ended.

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{AbortHandle, AbortRegistration, Abortable, BoxFuture};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use tokio::io::AsyncReadExt;

use super::actions::{Desire, Kill, Plan, Start};
use super::context::Context;
use super::files;
use super::sandbox::{self, Progress, SandboxJob, SandboxUp};
use super::start::{self, StartFailure, StartJob};
use super::state::{Instance, Member, SANDBOX_BACKOFF_CAP, Waiting, held};
use super::stop::{self, Teardown, Turn, grace_of};
use super::worker::{Done, InFlight, RETRY_CAP, Remains, Worker, earliest};
use crate::cri::ContainerDetail;

fn abortable(operation: impl Future<Output = Done> + Send + 'static) -> (BoxFuture<'static, Done>, AbortHandle) {
    let (handle, registration): (AbortHandle, AbortRegistration) = AbortHandle::new_pair();
    let run = Abortable::new(operation, registration);
    (Box::pin(async move { run.await.unwrap_or(Done::Aborted) }), handle)
}

impl Worker {
    /// Starts the operations of a plan. Returns when to look again.
    pub(super) fn perform(&mut self, desire: Desire, plan: Plan, now: Timestamp) -> Option<Timestamp> {
        let mut wake_at = None;
        if desire == Desire::Run {
            self.remains = Remains::Everything;
            wake_at = self.set_up_volumes(now);
        }
        let mut remove: Vec<String> = plan.remove.into_iter().filter(|id| self.removing.insert(id.clone())).collect();
        if let Some(attempt) = plan.sandbox {
            let sandboxes: BTreeSet<&String> = self.runtime.sandboxes.iter().map(|sandbox| &sandbox.detail.id).collect();
            let (dead, others) = remove.into_iter().partition(|id| sandboxes.contains(id));
            remove = others;
            self.make_sandbox(attempt, dead);
        }
        if !remove.is_empty() {
            self.remove(remove);
        }
        for kill in plan.kill {
            self.kill(kill);
        }
        for start in plan.start {
            self.start(start, now);
        }
        if plan.teardown {
            wake_at = earliest(wake_at, self.tear_down(now));
        }
        wake_at
    }

    fn set_up_volumes(&mut self, now: Timestamp) -> Option<Timestamp> {
        let is_mounted = self.progress.borrow().volumes.is_some();
        if self.volumes.is_some() {
            return None;
        }
        let (context, pod, ip) = (Arc::clone(&self.context), Arc::clone(&self.pod), self.records.pod_ip);
        let renew_at = context.volumes.renew_at(&self.uid).filter(|_| is_mounted);
        let must_renew = renew_at.is_some_and(|at| at <= now);
        let retry_at = held(self.volumes_retry.0, now, RETRY_CAP);
        if is_mounted && (self.takes_volume_refresh() || must_renew) && retry_at.is_none() {
            let (operation, abort) = abortable(async move { Done::Refreshed(context.volumes.refresh(&context, &pod, ip).await) });
            self.volumes = Some(abort);
            self.operations.push(operation);
            return None;
        }
        if is_mounted {
            return renew_at.filter(|at| *at > now);
        }
        // What failed is tried again in time, or when something changes that the pod refers to.
        if retry_at.is_some() && !self.takes_volume_refresh() {
            return retry_at;
        }
        let (operation, abort) = abortable(async move { Done::Volumes(context.volumes.set_up(&context, &pod, ip).await) });
        self.volumes = Some(abort);
        self.operations.push(operation);
        None
    }

    fn make_sandbox(&mut self, attempt: u32, dead: Vec<String>) {
        let existing = self.runtime.sandbox().filter(|sandbox| sandbox.is_running() || sandbox.is_leftover());
        let existing = existing.map(|sandbox| sandbox.detail.clone());
        // One that was removed by hand is not known to the runtime any more, but to us.
        if existing.is_none() && (attempt > 0 || self.records.network_ready.is_some()) {
            let message = "Pod sandbox changed, it will be killed and re-created.";
            self.context.event(&self.pod, None, false, "SandboxChanged", message);
        }
        self.progress.send_modify(|progress| {
            *progress = Progress { volumes: progress.volumes.take(), ..Progress::default() };
        });
        for id in &dead {
            self.runtime.remove(id);
        }
        let job = SandboxJob { pod: Arc::clone(&self.granted), attempt, existing, remove: dead };
        let (context, progress) = (Arc::clone(&self.context), Arc::clone(&self.progress));
        let (operation, abort) = abortable(async move { Done::Sandbox(sandbox::bring_up(&context, job, &progress).await) });
        self.sandbox = Some(abort);
        self.operations.push(operation);
    }

    fn remove(&mut self, ids: Vec<String>) {
        let context = Arc::clone(&self.context);
        self.operations.push(Box::pin(async move {
            for id in &ids {
                if let Err(error) = context.runtime.remove(id).await {
                    tracing::debug!(id, %error, "a dead container stays");
                }
            }
            Done::Removed(ids)
        }));
    }

    fn start(&mut self, start: Start, now: Timestamp) {
        let Some(member) = self.members.iter().find(|member| member.name() == start.container).cloned() else { return };
        let name = start.container.clone();
        if let Some(ended) = self.runtime.latest(&name).filter(|latest| latest.is_exited()) {
            self.records.note_restart(&name, &ended.clone(), now);
        }
        let target = member.target.as_deref().and_then(|target| self.runtime.latest(target));
        let target_id = target.filter(|target| target.is_running()).map(|target| target.detail.id.clone());
        self.resizes.actual.insert(name.clone(), member.spec.resources.clone().unwrap_or_default());
        let job = StartJob { pod: Arc::clone(&self.granted), member, start, target_id, progress: self.progress.subscribe() };
        let (context, key) = (Arc::clone(&self.context), name.clone());
        let (operation, abort) = abortable(async move { Done::Start(key, start::start(&context, job).await) });
        self.containers.insert(name, InFlight { abort, grace: None });
        self.operations.push(operation);
    }

    fn kill(&mut self, kill: Kill) {
        let member = self.members.iter().find(|member| member.name() == kill.container).cloned();
        let unhealthy = self.records.unhealthy.get(&kill.container).filter(|unhealthy| unhealthy.id == kill.id);
        let own = unhealthy.and_then(|unhealthy| unhealthy.grace_seconds).and_then(|seconds| u64::try_from(seconds).ok());
        // A pod that is being deleted ends by its deletion's grace.
        let own = own.filter(|_| self.pod.metadata.deletion_timestamp.is_none()).map(Duration::from_secs);
        let grace = own.unwrap_or_else(|| grace_of(&self.pod));
        let grace = self.evicted_within().map_or(grace, |evicted| self.within_deletion(evicted));
        let (context, pod, ip) = (Arc::clone(&self.context), Arc::clone(&self.pod), self.records.pod_ip);
        let (name, running) = (kill.container.clone(), self.running.subscribe());
        let (operation, abort) = abortable(async move {
            let killed = stop::kill(&context, &pod, member.as_ref(), &kill, Turn { grace, running }, ip).await;
            Done::Kill(kill.container, killed)
        });
        self.containers.insert(name, InFlight { abort, grace: Some(grace) });
        self.operations.push(operation);
    }

    /// Takes down sandbox, network and volumes, and all the rest when the pod goes away.
    fn tear_down(&mut self, now: Timestamp) -> Option<Timestamp> {
        let is_final = self.is_gone || self.pod.metadata.deletion_timestamp.is_some();
        let is_done = match self.remains {
            Remains::Everything => false,
            Remains::Containers => !is_final,
            Remains::Nothing => true,
        };
        if is_done || self.is_tearing_down {
            return None;
        }
        if let Some(at) = held(self.retry_at, now, RETRY_CAP) {
            return Some(at);
        }
        self.is_tearing_down = true;
        let sandboxes = self.runtime.sandboxes.iter().map(|sandbox| sandbox.detail.id.clone()).collect();
        let remove = if is_final { self.runtime.ids() } else { sandboxes };
        self.removing.extend(remove.iter().cloned());
        let job = Teardown { pod: Arc::clone(&self.pod), remove, is_final };
        let context = Arc::clone(&self.context);
        self.operations.push(Box::pin(async move { Done::TornDown(stop::tear_down(&context, &job).await) }));
        None
    }

    /// Notes how an operation on containers ended.
    pub(super) fn note_operation(&mut self, done: Done) {
        let now = self.context.clock.now();
        match done {
            Done::Sandbox(result) => self.note_sandbox(result, now),
            Done::Volumes(Ok(mounted)) => {
                self.volumes = None;
                self.volumes_retry.1.reset();
                self.progress.send_modify(|progress| progress.volumes = Some(Arc::new(mounted)));
            }
            Done::Volumes(Err(error)) | Done::Refreshed(Err(error)) => {
                self.volumes = None;
                self.volumes_retry.0 = Some(now + self.volumes_retry.1.next_delay());
                self.context.event(&self.pod, None, true, "FailedMount", &error.to_string());
            }
            Done::Refreshed(Ok(())) => self.volumes = None,
            Done::Start(name, result) => self.note_start(name, result, now),
            Done::Kill(name, result) => {
                self.containers.remove(&name);
                self.records.unhealthy.remove(&name);
                match result {
                    Ok(Some(detail)) => self.mailbox.tell(|letters| letters.containers.extend([detail.id])),
                    Ok(None) => {}
                    Err(error) => tracing::warn!(pod = self.uid, container = name, %error, "a container was not ended"),
                }
                self.mailbox.tell(|letters| letters.resync = true);
            }
            Done::Removed(ids) => {
                for id in ids {
                    self.removing.remove(&id);
                    self.runtime.remove(&id);
                }
            }
            Done::Resized(name, to, result) => self.note_resized(&name, *to, result, now),
            Done::TornDown(result) => self.note_teardown(result, now),
            Done::Patched(_) | Done::Deleted(_) | Done::Mirror(_) | Done::Aborted => {}
        }
    }

    fn note_sandbox(&mut self, result: Result<SandboxUp, String>, now: Timestamp) {
        self.sandbox = None;
        match result {
            Ok(up) => {
                self.records.network_ready = Some(up.detail.id.clone());
                self.records.pod_ip = up.pod_ip;
                self.records.sandbox_failures = 0;
                self.records.sandbox_retry_at = None;
                self.runtime.put(up.detail);
            }
            Err(why) => {
                let failures = self.records.sandbox_failures;
                let delay = crate::rt::backoff::exponential(Duration::from_secs(1), SANDBOX_BACKOFF_CAP, failures);
                self.records.sandbox_failures += 1;
                self.records.sandbox_retry_at = Some(now + delay);
                let message = format!("Failed to create pod sandbox: {why}");
                self.context.event(&self.pod, None, true, "FailedCreatePodSandBox", &message);
                // Starts that wait for this sandbox begin anew with the next one.
                for (_, start) in self.containers.extract_if(.., |_, operation| operation.grace.is_none()) {
                    start.abort.abort();
                }
                self.mailbox.tell(|letters| letters.resync = true);
            }
        }
    }

    fn note_start(&mut self, name: String, result: Result<ContainerDetail, StartFailure>, now: Timestamp) {
        self.containers.remove(&name);
        match result {
            Ok(detail) => {
                self.records.waiting.remove(&name);
                self.runtime.put(detail);
            }
            Err(StartFailure { reason, message, retry_after }) => {
                let retry_at = now + retry_after;
                self.records.waiting.insert(name, Waiting { reason, message, retry_at });
                self.mailbox.tell(|letters| letters.resync = true);
            }
        }
    }

    fn note_teardown(&mut self, result: Result<(), String>, now: Timestamp) {
        self.is_tearing_down = false;
        match result {
            Ok(()) => {
                self.retry.reset();
                self.evicted = None;
                let is_final = self.is_gone || self.pod.metadata.deletion_timestamp.is_some();
                let ids: Vec<String> = self.runtime.ids();
                for id in ids {
                    if self.removing.remove(&id) {
                        self.keep_last_words(&id, is_final);
                    }
                }
                self.records.network_ready = None;
                let nothing_left = is_final && self.runtime.containers.values().flatten().all(|instance| instance.is_lost);
                self.remains = if nothing_left { Remains::Nothing } else { Remains::Containers };
                self.progress.send_modify(|progress| *progress = Progress::default());
            }
            Err(why) => {
                tracing::warn!(pod = self.uid, why, "taking the pod down failed; trying again");
                self.context.event(&self.pod, None, true, "FailedKillPod", &format!("error killing pod: {why}"));
                self.retry_at = Some(now + self.retry.next_delay());
            }
        }
    }

    /// The runtime has forgotten the container; the status still says how it ended.
    fn keep_last_words(&mut self, id: &str, is_final: bool) {
        if !is_final {
            return self.runtime.remove(id);
        }
        self.runtime.sandboxes.retain(|sandbox| sandbox.detail.id != id);
        for instance in self.runtime.containers.values_mut().flatten().filter(|instance| instance.detail.id == id) {
            instance.is_lost = true;
        }
    }
}

/// The last words of a container that has ended.
pub(super) async fn termination_message(context: &Context, pod: &Pod, member: Option<&Member>, instance: &Instance) -> String {
    let Some(member) = member else { return String::new() };
    let path = files::termination_path(&context.pod_dir(pod), member.name(), instance.attempt);
    let mut message = Vec::new();
    // A file that is not there, or that the container replaced by a directory, says nothing.
    if let Ok(file) = tokio::fs::File::open(&path).await
        && file.take(files::MAX_MESSAGE_BYTES).read_to_end(&mut message).await.is_err()
    {
        message.clear();
    }
    if message.is_empty()
        && instance.detail.exit_code != 0
        && member.spec.termination_message_policy.as_deref() == Some("FallbackToLogsOnError")
        && let Some(log) = &instance.detail.log_path
        && let Ok(log) = tokio::fs::read_to_string(log).await
    {
        return files::log_tail(&log);
    }
    String::from_utf8_lossy(&message).into_owned()
}
