//! The status of a pod: a pure function of its spec, its containers, the agent's records and the status before. Follows the
//! kubelet's `generateAPIPodStatus`, `getPhase` and `status.Generate…Condition`, words included.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus, ContainerUser,
    HostIP, LinuxContainerUser, Pod, PodCondition, PodIP, PodStatus, ResourceRequirements, VolumeMount, VolumeMountStatus,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::actions::restarts;
use super::recover::LOST;
use super::resize::{Resizes, WHOLE_POD};
use super::resources::qos_class;
use super::state::{Instance, Member, PodRuntime, Records, Role};
use crate::cri::{ContainerDetail, ProcessUser, labels};

/// Why a pod was ended by the agent itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ended {
    pub reason: String,
    pub message: String,
    /// What its containers get in place of the pod's own grace period.
    pub grace: Option<Duration>,
    /// Whether it was no fault of the pod's: it then has the condition `DisruptionTarget`.
    pub is_disruption: bool,
}

/// All that a status is computed from.
#[derive(Debug, Clone, Copy)]
pub struct Observation<'a> {
    pub pod: &'a Pod,
    pub members: &'a [Member],
    pub runtime: &'a PodRuntime,
    pub records: &'a Records,
    /// Containers of which a start is under way: they run for others only when it is done, their postStart hook included.
    pub starting: &'a BTreeSet<String>,
    pub resizes: &'a Resizes,
    pub host_ip: IpAddr,
    /// Whether the engine makes what is mounted below a read-only mount read-only too.
    pub has_recursive_read_only: bool,
    /// When the agent first saw the pod.
    pub started_at: Timestamp,
    /// Set when the agent ended the pod: its phase is `Failed` as soon as nothing of it runs.
    pub ended: Option<&'a Ended>,
    /// Nothing runs any more and nothing will: the phase is final.
    pub is_terminal: bool,
    pub now: Timestamp,
}

/// The status of the pod.
pub fn compute(o: &Observation<'_>) -> PodStatus {
    let known = o.pod.status.clone().unwrap_or_default();
    let statuses = |roles: &[Role]| -> Vec<ContainerStatus> {
        o.members.iter().filter(|member| roles.contains(&member.role)).map(|member| container_status(o, member)).collect()
    };
    let init = statuses(&[Role::Init, Role::Sidecar]);
    let apps = statuses(&[Role::App]);
    let ephemeral = statuses(&[Role::Ephemeral]);
    let phase = phase(o, &init, &apps);
    let conditions = conditions(o, &known, &init, &apps, phase);
    let ended = o.ended.filter(|_| o.is_terminal);
    let uses_host_network = o.pod.spec.as_ref().is_some_and(|spec| spec.host_network == Some(true));
    let pod_ip = if uses_host_network { Some(o.host_ip) } else { o.records.pod_ip };
    PodStatus {
        phase: Some(phase.to_owned()),
        reason: ended.map(|ended| ended.reason.clone()).or(known.reason),
        message: ended.map(|ended| ended.message.clone()).or(known.message),
        conditions: Some(conditions),
        container_statuses: Some(apps),
        init_container_statuses: some_unless_empty(init),
        ephemeral_container_statuses: some_unless_empty(ephemeral),
        host_ip: Some(o.host_ip.to_string()),
        host_ips: Some(vec![HostIP { ip: o.host_ip.to_string() }]),
        pod_ip: pod_ip.map(|ip| ip.to_string()),
        pod_ips: pod_ip.map(|ip| vec![PodIP { ip: ip.to_string() }]),
        start_time: Some(known.start_time.unwrap_or(Time(o.started_at))),
        qos_class: known.qos_class.or_else(|| Some(qos_class(o.pod).as_str().to_owned())),
        observed_generation: o.pod.metadata.generation.or(known.observed_generation),
        resources: o.resizes.actual.get(WHOLE_POD).cloned().or(known.resources),
        allocated_resources: granted_to_pod(o.resizes).or(known.allocated_resources),
        ..known
    }
}

fn granted_to_pod(resizes: &Resizes) -> Option<BTreeMap<String, Quantity>> {
    resizes.allocated.get(WHOLE_POD).and_then(|granted| granted.requests.clone())
}

fn some_unless_empty<T>(list: Vec<T>) -> Option<Vec<T>> {
    (!list.is_empty()).then_some(list)
}

/// Whether every container has ended for good, so that nothing is left to run: the phase will not change any more.
pub fn is_finished(pod: &Pod, members: &[Member], runtime: &PodRuntime) -> bool {
    let for_good = |member: &Member| {
        runtime.latest(member.name()).is_some_and(|latest| latest.is_exited() && !restarts(pod, member, latest.detail.exit_code))
    };
    let init_failed = members
        .iter()
        .filter(|member| member.role == Role::Init)
        .any(|member| for_good(member) && runtime.latest(member.name()).is_some_and(|latest| latest.detail.exit_code != 0));
    let mut apps = members.iter().filter(|member| member.role == Role::App).peekable();
    init_failed || apps.peek().is_some() && apps.all(for_good)
}

fn container_status(o: &Observation<'_>, member: &Member) -> ContainerStatus {
    let (latest, previous) = (o.runtime.latest(member.name()), o.runtime.previous(member.name()));
    // A start that was interrupted is no instance yet.
    let (latest, previous) = match latest {
        Some(latest) if latest.is_leftover() || latest.is_running() && o.starting.contains(member.name()) => (previous, None),
        latest => (latest, previous),
    };
    let waiting = waiting(o, member, latest);
    let running = latest.filter(|latest| latest.is_running());
    let (state, last) = match (&waiting, latest) {
        (Some(waiting), latest) => (waiting_state(waiting.clone()), latest),
        (None, Some(latest)) if latest.is_running() => (running_state(latest), previous),
        (None, Some(latest)) => (terminated_state(latest), previous),
        (None, None) => (waiting_state(default_waiting(o, member)), None),
    };
    let probe = running.map(|running| o.records.probe(running));
    let is_done = latest.is_some_and(|latest| latest.is_exited() && latest.detail.exit_code == 0);
    let is_ready = match member.role {
        Role::Init => waiting.is_none() && is_done,
        _ => probe.is_some_and(|probe| probe.started && probe.ready),
    };
    let some = |all: &ResourceRequirements| all.limits.is_some() || all.requests.is_some();
    let granted = member.spec.resources.as_ref().filter(|all| some(all));
    let resources = o.resizes.actual.get(member.name()).filter(|all| some(all)).or(granted).cloned();
    let is_ephemeral = member.role == Role::Ephemeral;
    ContainerStatus {
        name: member.name().to_owned(),
        state: Some(state),
        last_state: Some(last.filter(|last| last.is_exited()).map_or_else(ContainerState::default, terminated_state)),
        ready: is_ready && !is_ephemeral,
        started: Some(probe.is_some_and(|probe| probe.started && member.role != Role::Init)).filter(|_| !is_ephemeral),
        restart_count: latest.map_or(0, |latest| i32::try_from(latest.attempt).unwrap_or(i32::MAX)),
        image: latest.map_or_else(|| member.spec.image.clone().unwrap_or_default(), |latest| latest.detail.image.clone()),
        image_id: latest.map_or_else(String::new, |latest| image_id(&latest.detail)),
        container_id: latest.filter(|latest| !latest.detail.id.is_empty()).map(|latest| container_id(&latest.detail.id)),
        allocated_resources: granted.and_then(|granted| granted.requests.clone()),
        volume_mounts: some_unless_empty(
            member.spec.volume_mounts.iter().flatten().map(|mount| mount_status(o, mount)).collect(),
        ),
        user: latest.and_then(|latest| latest.detail.user.as_ref()).map(user),
        stop_signal: member.spec.lifecycle.as_ref().and_then(|lifecycle| lifecycle.stop_signal.clone()),
        resources,
        ..ContainerStatus::default()
    }
}

fn user(user: &ProcessUser) -> ContainerUser {
    let supplemental_groups = some_unless_empty(user.groups.iter().map(|group| i64::from(*group)).collect());
    ContainerUser { linux: Some(LinuxContainerUser { uid: user.uid.into(), gid: user.gid.into(), supplemental_groups }) }
}

fn mount_status(o: &Observation<'_>, mount: &VolumeMount) -> VolumeMountStatus {
    let is_read_only = mount.read_only == Some(true);
    let is_recursive = match mount.recursive_read_only.as_deref() {
        Some("Enabled") => true,
        Some("IfPossible") => o.has_recursive_read_only,
        _ => false,
    };
    let recursive = if is_recursive { "Enabled" } else { "Disabled" };
    VolumeMountStatus {
        name: mount.name.clone(),
        mount_path: mount.mount_path.clone(),
        read_only: Some(true).filter(|_| is_read_only),
        recursive_read_only: is_read_only.then(|| recursive.to_owned()),
        ..VolumeMountStatus::default()
    }
}

fn container_id(id: &str) -> String {
    format!("docker://{id}")
}

/// The image as its registry knows it, or as the engine does: in the forms of `cri-dockerd`.
fn image_id(detail: &ContainerDetail) -> String {
    let id = &detail.image_id;
    match detail.labels.get(labels::IMAGE_DIGEST) {
        _ if id.is_empty() || id.contains("://") => id.clone(),
        Some(digest) => format!("docker-pullable://{digest}"),
        None => format!("docker://{id}"),
    }
}

/// Why the container waits, if it does although it (perhaps) has an instance.
fn waiting(o: &Observation<'_>, member: &Member, latest: Option<&Instance>) -> Option<ContainerStateWaiting> {
    if latest.is_some_and(Instance::is_running) {
        return None;
    }
    let ended = latest.filter(|latest| latest.is_exited());
    let is_over = o.is_terminal || ended.is_some_and(|ended| !restarts(o.pod, member, ended.detail.exit_code));
    if is_over && ended.is_some() {
        return None;
    }
    // One that is being started waits no more.
    let ended = ended.filter(|_| !o.starting.contains(member.name()));
    if let Some((_, delay)) = ended.and_then(|ended| o.records.restart_hold(member.name(), ended, o.now)) {
        return Some(crash_loop(o.pod, member.name(), delay));
    }
    let waiting = o.records.waiting.get(member.name())?;
    Some(ContainerStateWaiting { reason: Some(waiting.reason.clone()), message: Some(waiting.message.clone()) })
}

fn crash_loop(pod: &Pod, container: &str, delay: Duration) -> ContainerStateWaiting {
    let seconds = delay.as_secs();
    // As Go prints a duration.
    let delay = if seconds >= 60 { format!("{}m{}s", seconds / 60, seconds % 60) } else { format!("{seconds}s") };
    let message = format!("back-off {delay} restarting failed container={container} pod={}", full_name(pod));
    ContainerStateWaiting { reason: Some("CrashLoopBackOff".to_owned()), message: Some(message) }
}

/// `name_namespace(uid)`, as the kubelet's messages name a pod.
pub fn full_name(pod: &Pod) -> String {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let meta = &pod.metadata;
    format!("{}_{}({})", text(&meta.name), text(&meta.namespace), text(&meta.uid))
}

fn default_waiting(o: &Observation<'_>, member: &Member) -> ContainerStateWaiting {
    let has_init = o.members.iter().any(|member| matches!(member.role, Role::Init | Role::Sidecar));
    let reason = if has_init && member.role != Role::Ephemeral { "PodInitializing" } else { "ContainerCreating" };
    ContainerStateWaiting { reason: Some(reason.to_owned()), message: None }
}

fn waiting_state(waiting: ContainerStateWaiting) -> ContainerState {
    ContainerState { waiting: Some(waiting), ..ContainerState::default() }
}

fn running_state(instance: &Instance) -> ContainerState {
    let started_at = instance.detail.started_at.map(seconds);
    ContainerState { running: Some(ContainerStateRunning { started_at }), ..ContainerState::default() }
}

fn terminated_state(instance: &Instance) -> ContainerState {
    let detail = &instance.detail;
    let reason = match detail.exit_code {
        _ if instance.message.as_deref() == Some(LOST) => "ContainerStatusUnknown",
        _ if instance.failed_to_start() => "ContainerCannotRun",
        _ if detail.oom_killed => "OOMKilled",
        0 => "Completed",
        _ => "Error",
    };
    let error = || Some(detail.error.clone()).filter(|error| !error.is_empty());
    let terminated = ContainerStateTerminated {
        exit_code: detail.exit_code,
        reason: Some(reason.to_owned()),
        message: instance.message.clone().filter(|message| !message.is_empty()).or_else(error),
        started_at: detail.started_at.or(detail.created_at).map(seconds),
        finished_at: instance.ended_at().map(seconds),
        container_id: Some(container_id(&detail.id)).filter(|_| !detail.id.is_empty()),
        signal: None,
    };
    ContainerState { terminated: Some(terminated), ..ContainerState::default() }
}

/// API times have whole seconds.
fn seconds(at: Timestamp) -> Time {
    Time(Timestamp::from_second(at.as_second()).unwrap_or(at))
}

#[derive(Default)]
struct Counts {
    unknown: usize,
    running: usize,
    waiting: usize,
    stopped: usize,
    succeeded: usize,
}

fn count(statuses: &[ContainerStatus]) -> Counts {
    let mut counts = Counts::default();
    for status in statuses {
        let last = status.last_state.as_ref().and_then(|last| last.terminated.as_ref());
        match &status.state {
            Some(ContainerState { running: Some(_), .. }) => counts.running += 1,
            Some(ContainerState { terminated: Some(ended), .. }) => {
                counts.stopped += 1;
                counts.succeeded += usize::from(ended.exit_code == 0);
            }
            Some(ContainerState { waiting: Some(_), .. }) if last.is_some() => counts.stopped += 1,
            Some(ContainerState { waiting: Some(_), .. }) => counts.waiting += 1,
            _ => counts.unknown += 1,
        }
    }
    counts
}

/// The phase, by the rules of the kubelet's `getPhase`.
fn phase(o: &Observation<'_>, init: &[ContainerStatus], apps: &[ContainerStatus]) -> &'static str {
    if o.ended.is_some() {
        // As long as something of it may run, a pod that is being ended does not say that it has.
        let known = o.pod.status.as_ref().and_then(|status| status.phase.as_deref());
        return match known {
            _ if o.is_terminal => "Failed",
            None | Some("Pending") => "Pending",
            Some(_) => "Running",
        };
    }
    let counts = count(apps);
    let sidecars: BTreeMap<&str, Role> = o.members.iter().map(|member| (member.name(), member.role)).collect();
    let real_init = init.iter().filter(|status| sidecars.get(status.name.as_str()) == Some(&Role::Init));
    let failed_init = real_init.clone().any(|status| {
        let state = status.state.as_ref().and_then(|state| state.terminated.as_ref());
        state.is_some_and(|ended| ended.exit_code != 0)
    });
    if failed_init && is_finished(o.pod, o.members, o.runtime) {
        return "Failed";
    }
    let is_initialized = counts.running + counts.stopped > 0;
    let init_pending = !is_initialized && real_init.clone().any(|status| !status.ready);
    match () {
        () if init_pending && !o.is_terminal => "Pending",
        () if counts.waiting > 0 && !o.is_terminal => "Pending",
        () if counts.running > 0 && counts.unknown == 0 => "Running",
        () if counts.stopped > 0 && counts.unknown == 0 || o.is_terminal => ended_phase(o, &counts),
        () => "Pending",
    }
}

fn ended_phase(o: &Observation<'_>, counts: &Counts) -> &'static str {
    let all_succeeded = counts.stopped > 0 && counts.stopped == counts.succeeded && counts.waiting == 0;
    // A container's own policy and rules may start it again where the pod's would not.
    match (all_succeeded, o.is_terminal || is_finished(o.pod, o.members, o.runtime)) {
        (_, false) => "Running",
        (true, true) => "Succeeded",
        (false, true) => "Failed",
    }
}

fn conditions(
    o: &Observation<'_>,
    known: &PodStatus,
    init: &[ContainerStatus],
    apps: &[ContainerStatus],
    phase: &str,
) -> Vec<PodCondition> {
    let is_sandbox_ready =
        o.runtime.running_sandbox().is_some_and(|sandbox| o.records.network_ready.as_ref() == Some(&sandbox.detail.id));
    let containers_ready = containers_ready(o, init, apps, phase);
    let ready = pod_ready(o, known, &containers_ready);
    let own = [
        ("PodReadyToStartContainers", verdict(is_sandbox_ready)),
        ("Initialized", initialized(o, init, apps, phase)),
        ("Ready", ready),
        ("ContainersReady", containers_ready),
        ("PodScheduled", verdict(true)),
    ];
    let before = known.conditions.clone().unwrap_or_default();
    let resizes = resize_conditions(o.resizes);
    let disruption = disruption_condition(o.ended);
    let mine = |type_: &str| {
        let own = own.iter().chain(&disruption).any(|(own, _)| *own == type_);
        own || RESIZE_CONDITIONS.contains(&type_)
    };
    let foreign = before.iter().filter(|condition| !mine(&condition.type_)).cloned();
    let mut conditions: Vec<PodCondition> = own
        .iter()
        .chain(&resizes)
        .chain(&disruption)
        .map(|(type_, verdict)| condition(o, type_, verdict, before.iter().find(|condition| condition.type_ == *type_)))
        .collect();
    conditions.extend(foreign);
    conditions
}

/// Conditions that are there only while they are true.
const RESIZE_CONDITIONS: [&str; 2] = ["PodResizePending", "PodResizeInProgress"];

/// The condition of a pod that is ended through no fault of its own.
pub const DISRUPTION: &str = "DisruptionTarget";
/// Its reason when the node ends the pod.
pub const TERMINATED_BY_NODE: &str = "TerminationByKubelet";

fn disruption_condition(ended: Option<&Ended>) -> Option<(&'static str, Verdict)> {
    let ended = ended.filter(|ended| ended.is_disruption)?;
    let message = Some(ended.message.clone());
    Some((DISRUPTION, Verdict { is_true: true, reason: Some(TERMINATED_BY_NODE), message }))
}

fn resize_conditions(resizes: &Resizes) -> Vec<(&'static str, Verdict)> {
    let pending = resizes.pending.as_ref().map(|pending| {
        let message = Some(pending.message.clone());
        ("PodResizePending", Verdict { is_true: true, reason: Some(pending.reason), message })
    });
    let in_progress = resizes.in_progress.as_ref().map(|error| {
        let reason = error.as_ref().map(|_| "Error");
        ("PodResizeInProgress", Verdict { is_true: true, reason, message: error.clone() })
    });
    pending.into_iter().chain(in_progress).collect()
}

/// Status, reason and message of a condition.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Verdict {
    is_true: bool,
    reason: Option<&'static str>,
    message: Option<String>,
}

fn verdict(is_true: bool) -> Verdict {
    Verdict { is_true, ..Verdict::default() }
}

fn condition(o: &Observation<'_>, type_: &str, verdict: &Verdict, before: Option<&PodCondition>) -> PodCondition {
    let status = if verdict.is_true { "True" } else { "False" };
    let unchanged = before.filter(|before| before.status == status).and_then(|before| before.last_transition_time.clone());
    PodCondition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        reason: verdict.reason.map(str::to_owned),
        message: verdict.message.clone(),
        last_transition_time: Some(unchanged.unwrap_or_else(|| seconds(o.now))),
        last_probe_time: None,
        observed_generation: o.pod.metadata.generation,
    }
}

fn initialized(o: &Observation<'_>, init: &[ContainerStatus], apps: &[ContainerStatus], phase: &str) -> Verdict {
    if phase == "Succeeded" {
        return Verdict { is_true: true, reason: Some("PodCompleted"), message: None };
    }
    let app_ran = apps.iter().any(|status| status.container_id.is_some());
    let is_sidecar = |name: &str| o.members.iter().any(|member| member.name() == name && member.role == Role::Sidecar);
    let is_done =
        |status: &&ContainerStatus| app_ran || if is_sidecar(&status.name) { status.started == Some(true) } else { status.ready };
    let incomplete: Vec<&str> = init.iter().filter(|status| !is_done(status)).map(|status| status.name.as_str()).collect();
    listing("ContainersNotInitialized", "containers with incomplete status", &incomplete)
}

fn containers_ready(o: &Observation<'_>, init: &[ContainerStatus], apps: &[ContainerStatus], phase: &str) -> Verdict {
    match phase {
        "Succeeded" => return Verdict { is_true: false, reason: Some("PodCompleted"), message: None },
        "Failed" => return Verdict { is_true: false, reason: Some("PodFailed"), message: None },
        _ => {}
    }
    let is_sidecar = |name: &str| o.members.iter().any(|member| member.name() == name && member.role == Role::Sidecar);
    let relevant = init.iter().filter(|status| is_sidecar(&status.name)).chain(apps);
    let unready: Vec<&str> = relevant.filter(|status| !status.ready).map(|status| status.name.as_str()).collect();
    listing("ContainersNotReady", "containers with unready status", &unready)
}

fn listing(reason: &'static str, words: &str, names: &[&str]) -> Verdict {
    if names.is_empty() {
        return verdict(true);
    }
    Verdict { is_true: false, reason: Some(reason), message: Some(format!("{words}: [{}]", names.join(" "))) }
}

fn pod_ready(o: &Observation<'_>, known: &PodStatus, containers_ready: &Verdict) -> Verdict {
    if !containers_ready.is_true {
        return containers_ready.clone();
    }
    let conditions = known.conditions.as_deref().unwrap_or(&[]);
    let gates = o.pod.spec.iter().flat_map(|spec| spec.readiness_gates.iter().flatten());
    let mut problems = Vec::new();
    for gate in gates {
        match conditions.iter().find(|condition| condition.type_ == gate.condition_type) {
            Some(condition) if condition.status == "True" => {}
            Some(_) => problems.push(format!("the status of pod readiness gate \"{}\" is not \"True\"", gate.condition_type)),
            None => problems
                .push(format!("corresponding condition of pod readiness gate \"{}\" does not exist.", gate.condition_type)),
        }
    }
    if problems.is_empty() {
        return verdict(true);
    }
    Verdict { is_true: false, reason: Some("ReadinessGatesNotReady"), message: Some(problems.join(", ")) }
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
