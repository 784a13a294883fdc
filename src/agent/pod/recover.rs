//! What a worker finds again after a restart of the agent, what it does about containers that vanish, and its probes.

use std::time::Duration;

use k8s_openapi::api::core::v1::{ContainerStatus, ContainerUser, Pod, PodStatus};

use super::actions::Desire;
use super::mailbox::ProbeNews;
use super::probing::{self, Probed};
use super::sandbox::kept_address;
use super::state::{Instance, ProbeState, Role, Unhealthy};
use super::worker::Worker;
use crate::cri::{ContainerDetail, ProcessUser, State};

/// The exit code of a container of which nobody knows how it ended: as if it was killed.
const UNKNOWN_EXIT_CODE: i32 = 137;
/// What the status says of it.
pub(super) const LOST: &str = "The container could not be located when the pod was deleted.  The container used to be Running";

/// The statuses of all containers of a pod.
pub fn statuses(pod: &Pod) -> impl Iterator<Item = &ContainerStatus> {
    pod.status.iter().flat_map(statuses_in)
}

/// The same, of a status that no pod has yet.
pub(super) fn statuses_in(status: &PodStatus) -> impl Iterator<Item = &ContainerStatus> {
    let lists = [&status.container_statuses, &status.init_container_statuses, &status.ephemeral_container_statuses];
    lists.into_iter().flat_map(|list| list.iter().flatten())
}

fn bare_id(status: &ContainerStatus) -> Option<&str> {
    status.container_id.as_deref().map(|id| id.rsplit("://").next().unwrap_or(id))
}

impl Worker {
    /// After the first look at the runtime: the address, back-offs, probe results and containers that the runtime has lost.
    pub(super) async fn recover(&mut self) {
        // The sandbox has outlived the agent, and the pod's wire with it. Until that is looked after the pod keeps its address:
        // without one it would be no endpoint of its Services for a moment. What the API last said of it may be old.
        if self.records.pod_ip.is_none() && self.runtime.sandboxes.iter().any(Instance::is_running) {
            self.records.pod_ip = kept_address(&self.context.pod_dir(&self.pod)).await;
        }
        self.resume_eviction();
        let known: Vec<ContainerStatus> = statuses(&self.pod).cloned().collect();
        for status in &known {
            let instances = self.runtime.containers.get(&status.name);
            match instances.and_then(|list| list.last()).cloned() {
                Some(latest) => {
                    self.records.recover_backoff(&status.name, &latest);
                    let is_same = bare_id(status) == Some(latest.detail.id.as_str());
                    if let Some(user) = status.user.as_ref().filter(|_| is_same).and_then(began_as) {
                        self.runtime.began_as(&latest.detail.id, user);
                    }
                    if is_same && self.has_probes(&status.name) {
                        let state = ProbeState { started: status.started == Some(true), ready: status.ready };
                        self.records.probes.entry(latest.detail.id).or_insert(state);
                    }
                }
                None if status.container_id.is_some() => {
                    self.runtime.containers.insert(status.name.clone(), vec![lost(status)]);
                }
                None => {}
            }
        }
    }

    fn has_probes(&self, container: &str) -> bool {
        self.members.iter().any(|member| member.name() == container && probing::has_probes(member))
    }

    /// The runtime does not know a container any more. If it was not the worker that removed it, it counts as killed.
    pub(super) fn lose(&mut self, id: &str) {
        if self.removing.contains(id) {
            return;
        }
        self.runtime.sandboxes.retain(|sandbox| sandbox.detail.id != id);
        // What was never started has not ended either: the start that goes on removed it, or it is made anew. While the engine removes
        // it, it is in no state that is known.
        if self.runtime.instances().any(|(_, instance)| instance.detail.id == id && instance.never_started()) {
            return self.runtime.remove(id);
        }
        let now = self.context.clock.now();
        for instance in self.runtime.containers.values_mut().flatten().filter(|instance| instance.detail.id == id) {
            if instance.detail.state == State::Running {
                instance.detail.exit_code = UNKNOWN_EXIT_CODE;
                instance.detail.finished_at = Some(now);
                instance.message = Some(LOST.to_owned());
            }
            instance.detail.state = State::Exited;
            instance.is_lost = true;
        }
    }

    pub(super) fn take_probe_news(&mut self, id: &str, news: ProbeNews) {
        let found = self.runtime.instances().find(|(_, instance)| instance.detail.id == id);
        let Some(container) = found.map(|(name, _)| name.to_owned()) else { return };
        if let Some(state) = self.records.probes.get_mut(id) {
            state.started = news.is_started.unwrap_or(state.started);
            state.ready = news.is_ready.unwrap_or(state.ready);
        }
        if let Some((message, grace_seconds)) = news.unhealthy {
            self.records.unhealthy.insert(container, Unhealthy { id: id.to_owned(), message, grace_seconds });
        }
    }

    /// Sees to it that each running instance with probes is probed, and no other.
    pub(super) fn sync_probes(&mut self, desire: Desire) {
        if desire == Desire::Stop {
            // Whether a pod that ends is healthy matters to nobody; whether it is ready still does.
            self.probes.values().for_each(|probes| probes.vital.cancel());
        }
        let now = self.context.clock.now();
        let mut running = Vec::new();
        for member in self.members.iter().filter(|member| member.role != Role::Init && probing::has_probes(member)) {
            let Some(latest) = self.runtime.latest(member.name()).filter(|latest| latest.is_running()) else { continue };
            // Until its postStart hook is done, a container is not up.
            if self.containers.get(member.name()).is_some_and(|operation| operation.grace.is_none()) {
                continue;
            }
            running.push(latest.detail.id.clone());
            let state = self.records.probes.entry(latest.detail.id.clone()).or_insert(ProbeState {
                started: member.spec.startup_probe.is_none(),
                ready: member.spec.readiness_probe.is_none(),
            });
            if self.probes.contains_key(&latest.detail.id) {
                continue;
            }
            let uses_host = self.pod.spec.as_ref().is_some_and(|spec| spec.host_network == Some(true));
            let pod_ip = if uses_host { Some(self.context.node_ip) } else { self.records.pod_ip };
            if pod_ip.is_none() || desire == Desire::Stop {
                continue;
            }
            let age = latest
                .detail
                .started_at
                .map_or(Duration::ZERO, |at| Duration::try_from(now.duration_since(at)).unwrap_or_default());
            let probes = probing::spawn(Probed {
                context: self.context.clone(),
                mailbox: self.mailbox.clone(),
                pod: self.pod.clone(),
                member: member.clone(),
                id: latest.detail.id.clone(),
                pod_ip,
                age: if age < Duration::from_secs(1) { Duration::ZERO } else { age },
                is_started: state.started,
            });
            self.probes.insert(latest.detail.id.clone(), probes);
        }
        for (id, probes) in self.probes.extract_if(.., |id, _| !running.contains(id)) {
            probes.all.cancel();
            self.records.probes.remove(&id);
        }
    }
}

/// What the API was told of the user of a container.
fn began_as(user: &ContainerUser) -> Option<ProcessUser> {
    let linux = user.linux.as_ref()?;
    let groups = linux.supplemental_groups.iter().flatten().map(|group| u32::try_from(*group).ok());
    Some(ProcessUser { uid: linux.uid.try_into().ok()?, gid: linux.gid.try_into().ok()?, groups: groups.collect::<Option<_>>()? })
}

/// An instance that only the status in the API remembers.
fn lost(status: &ContainerStatus) -> Instance {
    let ended = status.state.as_ref().and_then(|state| state.terminated.as_ref());
    let running = status.state.as_ref().and_then(|state| state.running.as_ref());
    let started_at =
        running.and_then(|running| running.started_at.as_ref()).or(ended.and_then(|ended| ended.started_at.as_ref()));
    Instance {
        attempt: u32::try_from(status.restart_count).unwrap_or(0),
        detail: ContainerDetail {
            id: bare_id(status).unwrap_or("").to_owned(),
            name: status.name.clone(),
            labels: Default::default(),
            state: State::Exited,
            pid: None,
            user: status.user.as_ref().and_then(began_as),
            image: status.image.clone(),
            image_id: status.image_id.clone(),
            created_at: started_at.map(|at| at.0),
            started_at: started_at.map(|at| at.0),
            finished_at: ended.and_then(|ended| ended.finished_at.as_ref()).map(|at| at.0),
            exit_code: ended.map_or(UNKNOWN_EXIT_CODE, |ended| ended.exit_code),
            oom_killed: ended.is_some_and(|ended| ended.reason.as_deref() == Some("OOMKilled")),
            error: String::new(),
            log_path: None,
            tty: false,
        },
        message: ended.map_or_else(|| running.map(|_| LOST.to_owned()), |ended| ended.message.clone()),
        is_lost: true,
    }
}
