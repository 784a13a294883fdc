//! What is known of a pod on this node: its sandbox and container instances in the runtime, and the agent's own records of them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod};

use crate::cri::{ContainerDetail, ProcessUser, State, labels};
use crate::kinds::core::pod_spec::as_container;
use crate::rt::backoff::exponential;

/// First delay between two starts of a container that ends by itself.
pub const RESTART_BACKOFF_BASE: Duration = Duration::from_secs(10);
/// Longest delay between two starts; after twice this long without one the delay starts again at its base.
pub const RESTART_BACKOFF_CAP: Duration = Duration::from_secs(300);

/// Longest delay between two tries to make a sandbox.
pub const SANDBOX_BACKOFF_CAP: Duration = Duration::from_secs(60);

/// Until when something is held back, if it still is. A time that is farther away than the longest delay comes from before the
/// clock was set back, and holds nothing.
pub fn held(until: Option<Timestamp>, now: Timestamp, longest: Duration) -> Option<Timestamp> {
    until.filter(|until| Duration::try_from(until.duration_since(now)).is_ok_and(|left| !left.is_zero() && left <= longest))
}

/// The part that a container plays in its pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Runs to its end before the next one starts.
    Init,
    /// An init container with `restartPolicy: Always`: runs beside the application.
    Sidecar,
    App,
    /// Added to a running pod for debugging; never restarted.
    Ephemeral,
}

/// A container of the pod's spec with its role.
#[derive(Debug, Clone, PartialEq)]
pub struct Member {
    pub role: Role,
    pub spec: Container,
    /// The container whose processes an ephemeral container shares.
    pub target: Option<String>,
    /// Hash of the spec, kept as a label of its instances: a change means a restart.
    pub hash: String,
}

impl Member {
    /// Name of the container.
    pub fn name(&self) -> &str {
        &self.spec.name
    }
}

/// All containers of a pod: init containers and sidecars in order, then the application's, then ephemeral ones.
pub fn members(pod: &Pod) -> Vec<Member> {
    let Some(spec) = &pod.spec else { return Vec::new() };
    let init = spec.init_containers.iter().flatten().map(|container| {
        let is_sidecar = container.restart_policy.as_deref() == Some("Always");
        (if is_sidecar { Role::Sidecar } else { Role::Init }, container.clone())
    });
    let apps = spec.containers.iter().map(|container| (Role::App, container.clone()));
    let member = |(role, spec)| Member { role, hash: spec_hash(&spec), spec, target: None };
    let ephemeral = spec.ephemeral_containers.iter().flatten().map(|container| {
        let target = container.target_container_name.clone().filter(|target| !target.is_empty());
        Member { target, ..member((Role::Ephemeral, as_container(container))) }
    });
    init.chain(apps).map(member).chain(ephemeral).collect()
}

/// A hash of what a restart is needed for: name and image, as in the kubelet (all else of a container is immutable).
fn spec_hash(container: &Container) -> String {
    let text = format!("{}\n{}", container.name, container.image.as_deref().unwrap_or(""));
    let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
    digest.as_ref().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// One instance of a container, or of the sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    pub attempt: u32,
    pub detail: ContainerDetail,
    /// The termination message, once it has ended.
    pub message: Option<String>,
    /// The runtime lost it: it is known only from the status in the API.
    pub is_lost: bool,
}

impl Instance {
    /// An instance as the runtime shows it.
    pub fn new(detail: ContainerDetail) -> Self {
        let attempt = detail.labels.get(labels::ATTEMPT).and_then(|text| text.parse().ok()).unwrap_or(0);
        Self { attempt, detail, message: None, is_lost: false }
    }

    /// Whether it runs.
    pub fn is_running(&self) -> bool {
        self.detail.state == State::Running
    }

    /// Whether it has ended, or could not be started at all.
    pub fn is_exited(&self) -> bool {
        match self.detail.state {
            State::Exited => true,
            State::Created => self.failed_to_start(),
            State::Running | State::Unknown => false,
        }
    }

    /// Whether the runtime could not start it.
    pub fn failed_to_start(&self) -> bool {
        self.detail.started_at.is_none() && (!self.detail.error.is_empty() || self.detail.exit_code != 0)
    }

    /// Whether it was created and never started: half of a start that something interrupted.
    pub fn is_leftover(&self) -> bool {
        self.detail.state == State::Created && !self.failed_to_start()
    }

    /// Whether it never ran, as far as the runtime knew it, and nothing kept it from that.
    pub fn never_started(&self) -> bool {
        !self.is_lost && !self.is_running() && self.detail.started_at.is_none() && !self.failed_to_start()
    }

    /// The sandbox that it joined.
    pub fn sandbox_id(&self) -> &str {
        self.detail.labels.get(labels::SANDBOX_ID).map_or("", String::as_str)
    }

    /// When it ended, or failed to start.
    pub fn ended_at(&self) -> Option<Timestamp> {
        self.detail.finished_at.or(self.detail.created_at)
    }
}

/// The containers of one pod as the runtime shows them; instances in the order of their attempts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodRuntime {
    pub sandboxes: Vec<Instance>,
    pub containers: BTreeMap<String, Vec<Instance>>,
}

impl PodRuntime {
    /// Puts a container in its place, replacing what was known of it. Containers without our labels are ignored.
    pub fn put(&mut self, detail: ContainerDetail) {
        let is_sandbox = detail.labels.get(labels::TYPE).is_some_and(|kind| kind == "podsandbox");
        let name = detail.labels.get(labels::CONTAINER_NAME).cloned();
        let list = match name {
            _ if is_sandbox => &mut self.sandboxes,
            Some(name) => self.containers.entry(name).or_default(),
            None => return,
        };
        let mut instance = Instance::new(detail);
        if let Some(known) = list.iter().position(|known| known.detail.id == instance.detail.id) {
            let known = list.remove(known);
            instance.message = known.message;
            // As it began: a process may become somebody else, and one that has ended is nobody.
            instance.detail.user = known.detail.user.or(instance.detail.user);
        }
        list.push(instance);
        list.sort_by_key(|instance| instance.attempt);
    }

    /// Notes whom the first process of an instance began as.
    pub fn began_as(&mut self, id: &str, user: ProcessUser) {
        if let Some(instance) = self.containers.values_mut().flatten().find(|instance| instance.detail.id == id) {
            instance.detail.user = Some(user);
        }
    }

    /// Forgets a container.
    pub fn remove(&mut self, id: &str) {
        self.sandboxes.retain(|instance| instance.detail.id != id);
        for list in self.containers.values_mut() {
            list.retain(|instance| instance.detail.id != id);
        }
        self.containers.retain(|_, list| !list.is_empty());
    }

    /// The newest sandbox.
    pub fn sandbox(&self) -> Option<&Instance> {
        self.sandboxes.last()
    }

    /// The newest sandbox, if it runs.
    pub fn running_sandbox(&self) -> Option<&Instance> {
        self.sandbox().filter(|sandbox| sandbox.is_running())
    }

    /// The newest instance of a container.
    pub fn latest(&self, container: &str) -> Option<&Instance> {
        self.containers.get(container).and_then(|list| list.last())
    }

    /// The instance before the newest one.
    pub fn previous(&self, container: &str) -> Option<&Instance> {
        self.containers.get(container).and_then(|list| list.iter().rev().nth(1))
    }

    /// Every instance with the name of its container.
    pub fn instances(&self) -> impl Iterator<Item = (&str, &Instance)> {
        self.containers.iter().flat_map(|(name, list)| list.iter().map(move |instance| (name.as_str(), instance)))
    }

    /// Ids of everything that is there, sandboxes last.
    pub fn ids(&self) -> Vec<String> {
        let containers = self.instances().filter(|(_, instance)| !instance.is_lost).map(|(_, instance)| &instance.detail.id);
        containers.chain(self.sandboxes.iter().map(|sandbox| &sandbox.detail.id)).cloned().collect()
    }
}

/// Why a container waits, and until when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    pub reason: String,
    pub message: String,
    /// No new try before this.
    pub retry_at: Timestamp,
}

/// The delay between the end of a container and its next start, as the kubelet keeps it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RestartBackoff {
    pub delay: Duration,
    /// The end of the instance after which the delay last grew.
    pub updated_at: Timestamp,
}

/// What the probes of a container say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProbeState {
    /// The startup probe (if there is one) and the postStart hook succeeded.
    pub started: bool,
    pub ready: bool,
}

/// Why a running container is to be ended and started again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unhealthy {
    /// The instance that is meant; a later one is not.
    pub id: String,
    pub message: String,
    /// The probe's own, in place of the pod's.
    pub grace_seconds: Option<i64>,
}

/// What the agent knows beyond the runtime. All of it can be lost: it is recovered or found out again.
#[derive(Debug, Clone, Default)]
pub struct Records {
    pub backoff: BTreeMap<String, RestartBackoff>,
    pub waiting: BTreeMap<String, Waiting>,
    /// By instance id.
    pub probes: BTreeMap<String, ProbeState>,
    pub unhealthy: BTreeMap<String, Unhealthy>,
    /// Instances, by container, that are to be restarted with other resources.
    pub resize_restarts: BTreeMap<String, String>,
    /// The pod's address, once its sandbox is attached to the network.
    pub pod_ip: Option<IpAddr>,
    /// Id of the sandbox that is attached to the network (or uses the host's).
    pub network_ready: Option<String>,
    /// No new try to make a sandbox before this.
    pub sandbox_retry_at: Option<Timestamp>,
    pub sandbox_failures: u32,
}

impl Records {
    /// Until when the next start of a container is held back after this instance ended, and the delay that says so.
    pub fn restart_hold(&self, container: &str, ended: &Instance, now: Timestamp) -> Option<(Timestamp, Duration)> {
        let backoff = self.backoff.get(container)?;
        let ended_at = ended.ended_at()?;
        if is_expired(backoff, ended_at) {
            return None;
        }
        let until = ended_at.saturating_add(jiff::SignedDuration::try_from(backoff.delay).ok()?).ok()?;
        held(Some(until), now, backoff.delay).map(|until| (until, backoff.delay))
    }

    /// Notes that a container starts again after this instance: the delay doubles, or starts at its base.
    pub fn note_restart(&mut self, container: &str, ended: &Instance, now: Timestamp) {
        let updated_at = ended.ended_at().unwrap_or(now);
        let delay = match self.backoff.get(container) {
            Some(known) if !is_expired(known, updated_at) => (known.delay * 2).min(RESTART_BACKOFF_CAP),
            _ => RESTART_BACKOFF_BASE,
        };
        self.backoff.insert(container.to_owned(), RestartBackoff { delay, updated_at });
    }

    /// Recovers the delay of a container from its restarts, after a restart of the agent.
    pub fn recover_backoff(&mut self, container: &str, latest: &Instance) {
        let Some(updated_at) = latest.detail.started_at.or(latest.detail.created_at) else { return };
        if latest.attempt > 0 {
            let delay = exponential(RESTART_BACKOFF_BASE, RESTART_BACKOFF_CAP, latest.attempt - 1);
            self.backoff.entry(container.to_owned()).or_insert(RestartBackoff { delay, updated_at });
        }
    }

    /// What the probes say of an instance; without probes a running container is started and ready.
    pub fn probe(&self, instance: &Instance) -> ProbeState {
        self.probes.get(&instance.detail.id).copied().unwrap_or(ProbeState { started: true, ready: true })
    }
}

fn is_expired(backoff: &RestartBackoff, ended_at: Timestamp) -> bool {
    let quiet = ended_at.duration_since(backoff.updated_at);
    jiff::SignedDuration::try_from(RESTART_BACKOFF_CAP * 2).is_ok_and(|longest| quiet > longest)
}
