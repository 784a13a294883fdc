//! The columns of pods (upstream `printPod`).

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerState, ContainerStateTerminated, ContainerStatus, Pod, PodStatus};
use serde_json::Value;

use crate::api::kind::Column;
use crate::kinds::check::str_of;
use crate::kinds::core::pod_spec::is_sidecar;
use crate::kinds::print::{age, elapsed, name};

/// The columns.
pub const COLUMNS: &[Column] = &[
    Column::NAME,
    Column::text("Ready"),
    Column::text("Status"),
    Column::text("Restarts"),
    Column::AGE,
    Column::wide("IP"),
    Column::wide("Node"),
    Column::wide("Nominated Node"),
    Column::wide("Readiness Gates"),
];

/// The cells of a pod.
pub fn row(pod: &Pod, now: Timestamp) -> Vec<Value> {
    let spec = pod.spec.clone().unwrap_or_default();
    let status = pod.status.clone().unwrap_or_default();
    let seen = Seen::of(pod, &status);
    let gates = spec.readiness_gates.as_deref().unwrap_or_default();
    let passed = gates.iter().filter(|gate| condition(&status, &gate.condition_type) == Some("True")).count();
    let gates = if gates.is_empty() { "<none>".to_owned() } else { format!("{passed}/{}", gates.len()) };
    let ip = status.pod_ips.iter().flatten().next().map(|ip| ip.ip.as_str()).or(status.pod_ip.as_deref());
    vec![
        name(&pod.metadata),
        format!("{}/{}", seen.ready, seen.total).into(),
        seen.reason.into(),
        restarts(seen.restarts, seen.last_restart, now).into(),
        age(&pod.metadata, now),
        or_none(ip),
        or_none(spec.node_name.as_deref()),
        or_none(status.nominated_node_name.as_deref()),
        gates.into(),
    ]
}

fn or_none(text: Option<&str>) -> Value {
    text.filter(|text| !text.is_empty()).unwrap_or("<none>").into()
}

fn restarts(count: i32, last: Option<Timestamp>, now: Timestamp) -> String {
    match last {
        Some(last) if count != 0 => format!("{count} ({} ago)", elapsed(last, now)),
        _ => count.to_string(),
    }
}

fn condition<'a>(status: &'a PodStatus, kind: &str) -> Option<&'a str> {
    status.conditions.iter().flatten().find(|condition| condition.type_ == kind).map(|condition| condition.status.as_str())
}

/// What the statuses of the containers add up to.
struct Seen {
    reason: String,
    ready: usize,
    total: usize,
    restarts: i32,
    last_restart: Option<Timestamp>,
}

impl Seen {
    fn of(pod: &Pod, status: &PodStatus) -> Self {
        let spec = pod.spec.as_ref();
        let sidecars =
            spec.and_then(|spec| spec.init_containers.as_ref()).into_iter().flatten().filter(|each| is_sidecar(each)).count();
        let mut seen = Self {
            reason: phase_reason(status),
            ready: 0,
            total: spec.map_or(0, |spec| spec.containers.len()) + sidecars,
            restarts: 0,
            last_restart: None,
        };
        let sidecar_restarts = seen.init_containers(pod, status);
        let is_initializing = sidecar_restarts.is_none();
        if !is_initializing || condition(status, "Initialized") == Some("True") {
            let (restarts, last) = sidecar_restarts.unwrap_or_else(|| sidecars_so_far(pod, status));
            (seen.restarts, seen.last_restart) = (restarts, last);
            seen.containers(status);
        }
        if pod.metadata.deletion_timestamp.is_some() {
            let is_terminal = matches!(str_of(&status.phase), "Succeeded" | "Failed");
            if str_of(&status.reason) == "NodeLost" {
                seen.reason = "Unknown".to_owned();
            } else if !is_terminal {
                seen.reason = "Terminating".to_owned();
            }
        }
        seen
    }

    fn count(&mut self, status: &ContainerStatus) {
        self.restarts += status.restart_count;
        self.last_restart = self.last_restart.max(last_end(status));
    }

    /// Goes through the init containers; `None` if one has not finished, else the restarts of the sidecars.
    fn init_containers(&mut self, pod: &Pod, status: &PodStatus) -> Option<(i32, Option<Timestamp>)> {
        let count = pod.spec.as_ref().and_then(|spec| spec.init_containers.as_ref()).map_or(0, Vec::len);
        for (index, each) in status.init_container_statuses.iter().flatten().enumerate() {
            self.count(each);
            let state = each.state.clone().unwrap_or_default();
            let is_sidecar = names_sidecar(pod, &each.name);
            self.reason = match (&state.terminated, waiting_reason(&state)) {
                (Some(ended), _) if ended.exit_code == 0 => continue,
                _ if is_sidecar && each.started == Some(true) => {
                    self.ready += usize::from(each.ready);
                    continue;
                }
                (Some(ended), _) => format!("Init:{}", end_reason(ended)),
                (None, Some(reason)) if reason != "PodInitializing" => format!("Init:{reason}"),
                _ => format!("Init:{index}/{count}"),
            };
            return None;
        }
        Some(sidecars_so_far(pod, status))
    }

    fn containers(&mut self, status: &PodStatus) {
        let mut has_running = false;
        for each in status.container_statuses.iter().flatten().rev() {
            self.count(each);
            let state = each.state.clone().unwrap_or_default();
            if let Some(reason) = waiting_reason(&state) {
                self.reason = reason.to_owned();
            } else if let Some(ended) = &state.terminated {
                self.reason = end_reason(ended);
            } else if each.ready && state.running.is_some() {
                has_running = true;
                self.ready += 1;
            }
        }
        if self.reason == "Completed" && has_running {
            let is_ready = condition(status, "Ready") == Some("True");
            self.reason = if is_ready { "Running" } else { "NotReady" }.to_owned();
        }
    }
}

fn phase_reason(status: &PodStatus) -> String {
    let is_gated = |condition: &&k8s_openapi::api::core::v1::PodCondition| {
        condition.type_ == "PodScheduled" && condition.reason.as_deref() == Some("SchedulingGated")
    };
    if status.conditions.iter().flatten().find(is_gated).is_some() {
        return "SchedulingGated".to_owned();
    }
    let reason = str_of(&status.reason);
    if reason.is_empty() { str_of(&status.phase).to_owned() } else { reason.to_owned() }
}

fn names_sidecar(pod: &Pod, name: &str) -> bool {
    let containers = pod.spec.as_ref().and_then(|spec| spec.init_containers.as_ref()).into_iter().flatten();
    containers.filter(|container| container.name == name).any(is_sidecar)
}

fn sidecars_so_far(pod: &Pod, status: &PodStatus) -> (i32, Option<Timestamp>) {
    let statuses = status.init_container_statuses.iter().flatten().filter(|each| names_sidecar(pod, &each.name));
    statuses.fold((0, None), |(restarts, last), each| (restarts + each.restart_count, last.max(last_end(each))))
}

fn last_end(status: &ContainerStatus) -> Option<Timestamp> {
    status.last_state.as_ref()?.terminated.as_ref()?.finished_at.as_ref().map(|time| time.0)
}

fn waiting_reason(state: &ContainerState) -> Option<&str> {
    state.waiting.as_ref()?.reason.as_deref().filter(|reason| !reason.is_empty())
}

fn end_reason(ended: &ContainerStateTerminated) -> String {
    match (str_of(&ended.reason), ended.signal.unwrap_or(0)) {
        ("", 0) => format!("ExitCode:{}", ended.exit_code),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    }
}
