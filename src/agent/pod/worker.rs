//! The worker of one pod: looks at pod and containers, asks [`actions`](super::actions) what to do, does it, and brings the status
//! to the API. Everything slow runs as an operation beside the loop, so that a pull or a grace period holds up nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::{AbortHandle, BoxFuture};
use futures_util::stream::FuturesUnordered;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus, ResourceRequirements};
use tokio::sync::{oneshot, watch};

use super::actions::{self, Desire, Situation};
use super::admission;
use super::context::{Context, MountedVolumes};
use super::mailbox::{Letters, Mailbox};
use super::patch::status_patch;
use super::probing::Probes;
use super::resize::Resizes;
use super::sandbox::{Progress, ProgressSender, SandboxUp};
use super::start::StartFailure;
use super::state::{Member, PodRuntime, Records, held, members};
use super::statics;
use super::status::{self, Ended, Observation};
use super::stop::grace_of;
use crate::agent::pods::{ContainerInstance, ContainerLookup, PodView};
use crate::agent::volume::VolumeError;
use crate::client::{ClientError, DeleteOptions, PatchKind, Preconditions};
use crate::cri::{ContainerDetail, RuntimeError, labels};
use crate::kinds::core::pod::has_ended;
use crate::rt::Backoff;

/// How an operation ended.
pub(super) enum Done {
    Sandbox(Result<SandboxUp, String>),
    Volumes(Result<MountedVolumes, VolumeError>),
    Start(String, Result<ContainerDetail, StartFailure>),
    Kill(String, Result<Option<ContainerDetail>, RuntimeError>),
    Removed(Vec<String>),
    TornDown(Result<(), String>),
    Patched(Result<Box<Pod>, ClientError>),
    Deleted(Result<(), ClientError>),
    /// The mirror of a static pod was made, or (`None`) deleted.
    Mirror(Result<Option<Box<Pod>>, ClientError>),
    Refreshed(Result<(), VolumeError>),
    /// A running container was changed: its name, and what it was to have.
    Resized(String, Box<ResourceRequirements>, Result<(), RuntimeError>),
    /// It was given up because something else is wanted now.
    Aborted,
}

/// Whether the node takes the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Admission {
    /// Not looked at yet.
    Open,
    Granted,
    Refused,
}

/// What is left of the pod beside its containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Remains {
    /// Sandbox, network, volumes: perhaps.
    Everything,
    /// Only dead containers, for their logs.
    Containers,
    Nothing,
}

/// An operation on a container that is under way.
pub(super) struct InFlight {
    pub abort: AbortHandle,
    /// The grace of a kill; a start has none.
    pub grace: Option<Duration>,
}

/// The worker of one pod.
pub(super) struct Worker {
    pub context: Arc<Context>,
    pub mailbox: Arc<Mailbox>,
    pub pod: Arc<Pod>,
    pub uid: String,
    pub members: Vec<Member>,
    pub is_gone: bool,
    pub runtime: PodRuntime,
    pub records: Records,
    pub ended: Option<Ended>,
    /// Whoever evicted the pod is told by this when it has ended.
    pub evicted: Option<oneshot::Sender<()>>,
    /// How the pod stands with the node's admission.
    pub admission: Admission,
    /// The pod as its containers are made: with the resources that the node granted.
    pub granted: Arc<Pod>,
    pub resizes: Resizes,
    /// What the API has of a static pod.
    pub mirror: Option<Arc<Pod>>,
    pub started_at: Timestamp,
    pub progress: ProgressSender,
    pub operations: FuturesUnordered<BoxFuture<'static, Done>>,
    pub containers: BTreeMap<String, InFlight>,
    /// Names of the containers that run: those that end in order wait for it.
    pub running: watch::Sender<BTreeSet<String>>,
    pub sandbox: Option<AbortHandle>,
    pub volumes: Option<AbortHandle>,
    pub volumes_retry: (Option<Timestamp>, Backoff),
    pub is_tearing_down: bool,
    pub remains: Remains,
    pub retry_at: Option<Timestamp>,
    pub retry: Backoff,
    pub probes: BTreeMap<String, Probes>,
    /// Ids that the worker itself removes.
    pub removing: BTreeSet<String>,
    needs_refresh: bool,
    /// Whether the runtime has told once what there is of the pod.
    has_looked: bool,
    refresh_volumes: bool,
    pub is_patching: bool,
    is_deleted: bool,
    pub patch_retry: (Option<Timestamp>, Backoff),
}

/// Longest delay before volumes, or a tear-down, are tried again.
pub(super) const RETRY_CAP: Duration = Duration::from_secs(120);
const PATCH_RETRY_CAP: Duration = Duration::from_secs(10);

fn backoff() -> Backoff {
    Backoff::new(Duration::from_millis(500), RETRY_CAP)
}

impl Worker {
    pub(super) fn new(context: Arc<Context>, mailbox: Arc<Mailbox>, pod: Arc<Pod>) -> Self {
        let now = context.clock.now();
        Self {
            uid: pod.metadata.uid.clone().unwrap_or_default(),
            members: members(&pod),
            context,
            mailbox,
            granted: Arc::clone(&pod),
            pod,
            is_gone: false,
            runtime: PodRuntime::default(),
            records: Records::default(),
            ended: None,
            evicted: None,
            admission: Admission::Open,
            resizes: Resizes::default(),
            mirror: None,
            started_at: now,
            progress: Arc::new(watch::Sender::new(Progress::default())),
            operations: FuturesUnordered::new(),
            containers: BTreeMap::new(),
            running: watch::Sender::default(),
            sandbox: None,
            volumes: None,
            volumes_retry: (None, backoff()),
            is_tearing_down: false,
            remains: Remains::Everything,
            retry_at: None,
            retry: backoff(),
            probes: BTreeMap::new(),
            removing: BTreeSet::new(),
            needs_refresh: true,
            has_looked: false,
            refresh_volumes: false,
            is_patching: false,
            is_deleted: false,
            patch_retry: (None, Backoff::new(Duration::from_millis(200), PATCH_RETRY_CAP)),
        }
    }

    /// Runs until the pod is gone from the API and nothing of it is left, or until the agent stops (its containers go on).
    pub(super) async fn run(mut self) {
        let (token, mut steps) = (self.context.tasks.token(), self.context.clock.steps());
        while !self.is_over() {
            let wake_at = self.step().await;
            if self.is_over() {
                break;
            }
            let sleep = wake_at.map(|at| Duration::try_from(at.duration_since(self.context.clock.now())).unwrap_or_default());
            let mailbox = Arc::clone(&self.mailbox);
            tokio::select! {
                () = token.cancelled() => break,
                () = mailbox.wait() => {}
                Some(done) = self.operations.next() => self.note(done),
                () = tokio::time::sleep(sleep.unwrap_or_default()), if sleep.is_some() => {}
                // Tokens may have grown old, or be of a time to come.
                _ = steps.changed() => self.refresh_volumes = true,
            }
        }
        self.probes.values().for_each(|probes| probes.all.cancel());
        if self.is_over() {
            self.context.cpus.release(&self.uid);
            self.context.grants.give_back(&self.uid);
            self.context.pods.withdraw(&self.pod);
        }
    }

    fn is_over(&self) -> bool {
        self.is_gone && self.remains == Remains::Nothing
    }

    /// One round: look, decide, do, tell. Returns when to look again if nothing happens.
    async fn step(&mut self) -> Option<Timestamp> {
        // Operations that are done together are noted together: one status for all of them.
        while let Some(Some(done)) = futures_util::FutureExt::now_or_never(self.operations.next()) {
            self.note(done);
        }
        let letters = self.mailbox.take();
        let mut wake_at = self.look(letters).await;
        let now = self.context.clock.now();
        let mut desire = self.desire(now, &mut wake_at);
        if desire == Desire::Run && !self.needs_refresh && !self.is_admitted() {
            desire = Desire::Stop;
        }
        if desire == Desire::Run && self.admission == Admission::Granted {
            wake_at = earliest(wake_at, self.resize(now));
        }
        if desire == Desire::Stop {
            self.give_up_starts();
            if self.needs_refresh {
                wake_at = earliest(wake_at, self.look(Letters::default()).await);
            }
        }
        self.sync_probes(desire);
        let running = self.runtime.instances().filter(|(_, instance)| instance.is_running());
        let running: BTreeSet<String> = running.map(|(name, _)| name.to_owned()).collect();
        self.running.send_if_modified(|known| {
            let is_news = *known != running;
            *known = running;
            is_news
        });
        let in_flight: BTreeSet<String> = self.containers.keys().cloned().collect();
        let plan = actions::plan(&Situation {
            pod: &self.pod,
            members: &self.members,
            desire,
            runtime: &self.runtime,
            records: &self.records,
            in_flight: &in_flight,
            sandbox_in_flight: self.sandbox.is_some(),
            now,
        });
        wake_at = earliest(wake_at, plan.wake_at);
        wake_at = earliest(wake_at, self.perform(desire, plan, now));
        earliest(wake_at, self.tell(desire, now))
    }

    /// Takes in what was told, and looks at the containers that changed.
    async fn look(&mut self, letters: Letters) -> Option<Timestamp> {
        self.is_gone |= letters.is_gone;
        if let Some(mirror) = letters.mirror {
            self.take_mirror(mirror);
        }
        if let Some(pod) = letters.pod {
            self.take_pod(pod);
        }
        if let Some(evict) = letters.evict {
            self.evict(evict);
        }
        self.refresh_volumes |= letters.sources;
        for (id, news) in letters.probes {
            self.take_probe_news(&id, news);
        }
        let result =
            if letters.resync || self.needs_refresh { self.refresh().await } else { self.inspect(&letters.containers).await };
        match result {
            Ok(()) => None,
            Err(error) => {
                tracing::debug!(pod = self.uid, %error, "cannot look at the pod's containers");
                self.needs_refresh = true;
                Some(self.context.clock.now() + Duration::from_secs(1))
            }
        }
    }

    fn take_pod(&mut self, pod: Arc<Pod>) {
        if revision(&pod) < revision(&self.pod) {
            return;
        }
        let annotations = (&pod.metadata.annotations, &pod.metadata.labels);
        self.refresh_volumes |= annotations != (&self.pod.metadata.annotations, &self.pod.metadata.labels);
        self.pod = pod;
        self.take_allocation();
        // A shorter grace period (`kubectl delete --force`) replaces one that runs.
        self.shorten(grace_of(&self.pod));
    }

    /// Gives containers that are ending no more than this.
    pub(super) fn shorten(&mut self, grace: Duration) {
        for (_, kill) in self.containers.extract_if(.., |_, kill| kill.grace.is_some_and(|running| grace < running)) {
            kill.abort.abort();
            self.needs_refresh = true;
        }
    }

    /// Looks at all containers of the pod.
    pub(super) async fn refresh(&mut self) -> Result<(), RuntimeError> {
        let mine = |labels: &BTreeMap<String, String>| labels.get(labels::POD_UID) == Some(&self.uid);
        let all = self.context.runtime.list().await?;
        let ids: BTreeSet<String> = all.into_iter().filter(|one| mine(&one.labels)).map(|one| one.id).collect();
        let known: BTreeSet<String> = self.runtime.ids().into_iter().chain(ids).collect();
        self.inspect(&known).await?;
        let is_first = self.needs_refresh;
        self.needs_refresh = false;
        self.has_looked = true;
        if is_first {
            self.recover().await;
        }
        Ok(())
    }

    async fn inspect(&mut self, ids: &BTreeSet<String>) -> Result<(), RuntimeError> {
        let details = ids.iter().map(|id| async { (id.clone(), self.context.runtime.inspect(id).await) });
        for (id, detail) in futures_util::future::join_all(details).await {
            match detail {
                Ok(detail) => self.put(detail).await,
                Err(RuntimeError::NotFound(_)) => self.lose(&id),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    pub(super) async fn put(&mut self, detail: ContainerDetail) {
        let (name, id) = (detail.labels.get(labels::CONTAINER_NAME).cloned(), detail.id.clone());
        self.runtime.put(detail);
        let instances = name.as_ref().and_then(|name| self.runtime.containers.get_mut(name));
        let found = instances.and_then(|list| list.iter_mut().find(|instance| instance.detail.id == id));
        let Some(instance) = found.filter(|instance| instance.is_exited() && instance.message.is_none()) else { return };
        let member = self.members.iter().find(|member| Some(member.name()) == name.as_deref());
        instance.message = Some(super::perform::termination_message(&self.context, &self.pod, member, instance).await);
    }

    /// Works out what else the loop must see to, from what an operation gave.
    fn note(&mut self, done: Done) {
        match done {
            Done::Patched(result) => self.note_patched(result),
            Done::Mirror(result) => self.note_mirror(result),
            Done::Deleted(Ok(())) => self.is_deleted = true,
            Done::Deleted(Err(error)) if error.is_not_found() => self.is_gone = true,
            Done::Deleted(Err(error)) => self.note_api_failure(&error),
            other => self.note_operation(other),
        }
    }

    fn note_patched(&mut self, result: Result<Box<Pod>, ClientError>) {
        self.is_patching = false;
        match result {
            Ok(pod) => {
                self.patch_retry.1.reset();
                self.patch_retry.0 = None;
                if statics::is_static(&self.pod) {
                    return self.take_mirror(Some(Arc::new(*pod)));
                }
                self.take_pod(Arc::new(*pod));
            }
            Err(error) if error.is_not_found() && statics::is_static(&self.pod) => self.take_mirror(None),
            Err(error) if error.is_not_found() => self.is_gone = true,
            Err(error) => self.note_api_failure(&error),
        }
    }

    pub(super) fn note_api_failure(&mut self, error: &ClientError) {
        tracing::debug!(pod = self.uid, %error, "the API server did not take the pod's status");
        self.is_patching = false;
        self.patch_retry.0 = Some(self.context.clock.now() + self.patch_retry.1.next_delay());
    }

    /// What is wanted of the pod now.
    fn desire(&mut self, now: Timestamp, wake_at: &mut Option<Timestamp>) -> Desire {
        let is_over = has_ended(&self.pod);
        if self.is_gone || self.pod.metadata.deletion_timestamp.is_some() || is_over || self.ended.is_some() {
            return Desire::Stop;
        }
        if status::is_finished(&self.pod, &self.members, &self.runtime) {
            return Desire::Stop;
        }
        let started_at =
            self.pod.status.as_ref().and_then(|status| status.start_time.as_ref()).map_or(self.started_at, |at| at.0);
        let limit = self.pod.spec.as_ref().and_then(|spec| spec.active_deadline_seconds);
        let Some(deadline) = limit.and_then(|limit| started_at.checked_add(jiff::SignedDuration::from_secs(limit)).ok()) else {
            return Desire::Run;
        };
        if deadline > now {
            *wake_at = earliest(*wake_at, Some(deadline));
            return Desire::Run;
        }
        let message = "Pod was active on the node longer than the specified deadline".to_owned();
        self.context.event(&self.pod, None, false, "DeadlineExceeded", &message);
        self.ended = Some(Ended { reason: "DeadlineExceeded".to_owned(), message, ..Ended::default() });
        Desire::Stop
    }

    /// Ends what was begun to make the pod run.
    fn give_up_starts(&mut self) {
        let starts = self.containers.extract_if(.., |_, operation| operation.grace.is_none()).map(|(_, start)| start.abort);
        let others = [self.sandbox.take(), self.volumes.take()].into_iter().flatten();
        for abort in starts.chain(others) {
            abort.abort();
            self.needs_refresh = true;
        }
    }

    /// Brings the status to the API and to the kubelet server; deletes the pod when nothing of it is left.
    fn tell(&mut self, desire: Desire, now: Timestamp) -> Option<Timestamp> {
        let is_terminal = desire == Desire::Stop
            && !self.runtime.instances().any(|(_, instance)| instance.is_running())
            && self.containers.is_empty();
        if is_terminal {
            // Before anybody hears that the pod has ended, there is room for the next one.
            self.context.cpus.release(&self.uid);
            self.context.grants.give_back(&self.uid);
        }
        let wanted = self.status(is_terminal, now);
        self.publish(&wanted);
        if self.is_gone || self.is_patching || self.is_deleted {
            return None;
        }
        if let Some(at) = held(self.patch_retry.0, now, PATCH_RETRY_CAP) {
            return Some(at);
        }
        let (namespace, name) = (text(&self.pod.metadata.namespace), text(&self.pod.metadata.name));
        let client = self.context.client.clone();
        let known = self.pod.status.clone().unwrap_or_default();
        let is_static = statics::is_static(&self.pod);
        if is_static && !self.has_mirror() {
            return None;
        }
        let uid = self.mirror.as_ref().filter(|_| is_static).and_then(|mirror| mirror.metadata.uid.clone());
        match status_patch(uid.as_deref().unwrap_or(&self.uid), &known, &wanted) {
            Ok(Some(patch)) => {
                self.is_patching = true;
                self.announce_back_offs(&known, &wanted);
                self.operations.push(Box::pin(async move {
                    let patched = client.patch::<Pod>(&namespace, &name, Some("status"), PatchKind::Strategic, &patch).await;
                    Done::Patched(patched.map(Box::new))
                }));
            }
            Ok(None) if self.remains == Remains::Nothing && self.pod.metadata.deletion_timestamp.is_some() => {
                self.is_patching = true;
                let preconditions = Some(Preconditions { uid: Some(self.uid.clone()), resource_version: None });
                let options = DeleteOptions { grace_period_seconds: Some(0), preconditions, ..DeleteOptions::default() };
                self.operations
                    .push(Box::pin(async move { Done::Deleted(client.delete::<Pod>(&namespace, &name, &options).await) }));
            }
            Ok(None) => {}
            Err(error) => tracing::error!(pod = self.uid, %error, "the pod's status does not serialize"),
        }
        None
    }

    fn status(&self, is_terminal: bool, now: Timestamp) -> PodStatus {
        let known = self.pod.status.clone().unwrap_or_default();
        let was_terminal = has_ended(&self.pod);
        let has_instances = !self.runtime.containers.is_empty();
        // What is final stays, also when its containers are gone; what never ran has nothing to say about its end.
        if self.admission == Admission::Refused {
            return admission::refused(&self.pod, self.ended.as_ref(), self.started_at);
        }
        if was_terminal && !has_instances || is_terminal && !has_instances && self.ended.is_none() {
            return known;
        }
        let computed = status::compute(&Observation {
            pod: &self.pod,
            members: &self.members,
            runtime: &self.runtime,
            records: &self.records,
            starting: &self.containers.iter().filter(|(_, one)| one.grace.is_none()).map(|(name, _)| name.clone()).collect(),
            resizes: &self.resizes,
            host_ip: self.context.node_ip,
            has_recursive_read_only: self.context.offer.has_recursive_read_only,
            started_at: self.started_at,
            ended: self.ended.as_ref(),
            is_terminal,
            now,
        });
        if was_terminal { PodStatus { phase: known.phase, ..computed } } else { computed }
    }

    /// Says in an event that a container begins to wait for its next start.
    fn announce_back_offs(&self, known: &PodStatus, wanted: &PodStatus) {
        let held = |status: &PodStatus| -> BTreeSet<String> {
            let all = [&status.container_statuses, &status.init_container_statuses];
            let all = all.into_iter().flat_map(|list| list.iter().flatten());
            let waits = all.filter(|one| {
                let waiting = one.state.as_ref().and_then(|state| state.waiting.as_ref());
                waiting.is_some_and(|waiting| waiting.reason.as_deref() == Some("CrashLoopBackOff"))
            });
            waits.map(|one| one.name.clone()).collect()
        };
        for name in held(wanted).difference(&held(known)) {
            let message = format!("Back-off restarting failed container {name} in pod {}", status::full_name(&self.pod));
            self.context.event(&self.pod, Some(name), true, "BackOff", &message);
        }
    }

    fn publish(&self, status: &PodStatus) {
        // A pod of the same name may have come after one that is gone.
        if self.is_gone {
            return;
        }
        let waiting = |name: &str| {
            let status = super::recover::statuses_in(status).find(|status| status.name == name)?;
            status.state.as_ref()?.waiting.as_ref()?.reason.clone()
        };
        let instance = |instance: &super::state::Instance| ContainerInstance {
            id: instance.detail.id.clone(),
            state: instance.detail.state,
            attempt: instance.attempt,
            log_path: instance.detail.log_path.clone(),
            tty: instance.detail.tty,
            pid: instance.detail.pid,
        };
        let containers = self.members.iter().map(|member| {
            let name = member.name();
            let lookup = ContainerLookup {
                pod_uid: self.uid.clone(),
                container: name.to_owned(),
                current: self.runtime.latest(name).map(instance),
                previous: self.runtime.previous(name).map(instance),
                waiting_reason: waiting(name),
            };
            (name.to_owned(), lookup)
        });
        let pod = Pod { status: Some(status.clone()), ..(*self.pod).clone() };
        let is_seen = self.has_looked;
        self.context.pods.publish(PodView { pod: Arc::new(pod), containers: containers.collect(), is_seen });
    }

    /// Whether volumes are to be brought up to date; asked once a change.
    pub(super) fn takes_volume_refresh(&mut self) -> bool {
        std::mem::take(&mut self.refresh_volumes)
    }
}

fn text(value: &Option<String>) -> String {
    value.clone().unwrap_or_default()
}

fn revision(pod: &Pod) -> u64 {
    pod.metadata.resource_version.as_deref().and_then(|revision| revision.parse().ok()).unwrap_or(0)
}

/// The earlier of two times, where there are any.
pub(super) fn earliest(one: Option<Timestamp>, other: Option<Timestamp>) -> Option<Timestamp> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}
