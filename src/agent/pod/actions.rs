//! What to do next for a pod: a pure function of its spec, its containers and the agent's records. Follows the kubelet's
//! `computePodActions`. Asked again after every change, it never remembers anything.

use std::collections::BTreeSet;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod};

use super::state::{Instance, Member, PodRuntime, RESTART_BACKOFF_CAP, Records, Role, SANDBOX_BACKOFF_CAP, held};
use crate::cri::labels;

/// What is wanted of the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Desire {
    Run,
    /// End everything; the containers stay for their logs, unless the pod goes away.
    Stop,
}

/// A container to start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Start {
    pub container: String,
    pub attempt: u32,
    /// Half of an interrupted start, to be removed first.
    pub leftover: Option<String>,
}

/// A running container to end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kill {
    pub container: String,
    pub id: String,
    pub message: String,
    /// Containers that are to end before this one is told to, as far as the grace period allows.
    pub after: Vec<String>,
}

/// What to do now, and when to ask again if nothing happens.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Make a sandbox, of this attempt.
    pub sandbox: Option<u32>,
    pub start: Vec<Start>,
    pub kill: Vec<Kill>,
    /// Containers and sandboxes that nobody needs any more.
    pub remove: Vec<String>,
    /// All containers have ended: take down sandbox, network and volumes.
    pub teardown: bool,
    pub wake_at: Option<Timestamp>,
}

impl Plan {
    fn wake(&mut self, at: Timestamp) {
        self.wake_at = Some(self.wake_at.map_or(at, |known| known.min(at)));
    }
}

/// All that a plan is made from.
#[derive(Debug, Clone, Copy)]
pub struct Situation<'a> {
    pub pod: &'a Pod,
    pub members: &'a [Member],
    pub desire: Desire,
    pub runtime: &'a PodRuntime,
    pub records: &'a Records,
    /// Containers for which a start or a kill is under way.
    pub in_flight: &'a BTreeSet<String>,
    pub sandbox_in_flight: bool,
    pub now: Timestamp,
}

/// Whether a container that ended with this code is started again.
pub fn restarts(pod: &Pod, member: &Member, exit_code: i32) -> bool {
    if let Some(restart) = rule_says(&member.spec, exit_code) {
        return restart;
    }
    let pod_policy = pod.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref());
    let policy = member.spec.restart_policy.as_deref().or(pod_policy).unwrap_or("Always");
    match (member.role, policy) {
        (Role::Ephemeral, _) | (_, "Never") => false,
        (Role::Sidecar, _) => true,
        (Role::Init, _) | (_, "OnFailure") => exit_code != 0,
        _ => true,
    }
}

fn rule_says(container: &Container, exit_code: i32) -> Option<bool> {
    let rules = container.restart_policy_rules.iter().flatten();
    let mut matching = rules.filter(|rule| {
        rule.exit_codes.as_ref().is_some_and(|codes| {
            let listed = codes.values.iter().flatten().any(|code| *code == exit_code);
            if codes.operator == "NotIn" { !listed } else { listed }
        })
    });
    matching.next().map(|rule| rule.action == "Restart")
}

/// What to do now.
pub fn plan(situation: &Situation<'_>) -> Plan {
    let mut plan = Plan::default();
    match situation.desire {
        Desire::Stop => stop(situation, &mut plan),
        Desire::Run => run(situation, &mut plan),
    }
    plan
}

fn stop(s: &Situation<'_>, plan: &mut Plan) {
    let running: Vec<_> = s.runtime.instances().filter(|(_, instance)| instance.is_running()).collect();
    let runs = |name: &str| running.iter().any(|(running, _)| *running == name);
    for (name, instance) in running.iter().filter(|(name, _)| !s.in_flight.contains(*name)) {
        // Sidecars serve the application to its end, and those that came first serve the later ones.
        let place = s.members.iter().position(|member| member.name() == *name && member.role == Role::Sidecar);
        let comes_before =
            |(at, member): &(usize, &Member)| place.is_some_and(|place| *at > place) && member.role != Role::Ephemeral;
        let later = s.members.iter().enumerate().filter(comes_before).map(|(_, member)| member.name());
        let after = later.filter(|later| runs(later)).map(str::to_owned).collect();
        plan.kill.push(Kill { after, ..kill(name, instance, format!("Stopping container {name}")) });
    }
    plan.teardown = running.is_empty() && s.in_flight.is_empty() && !s.sandbox_in_flight;
}

fn run(s: &Situation<'_>, plan: &mut Plan) {
    forget_old_instances(s, plan);
    if !sandbox(s, plan) {
        return;
    }
    // Ephemeral containers are for looking into what goes wrong: also into an initialization that does not end.
    if s.runtime.running_sandbox().is_some() {
        s.members.iter().filter(|member| member.role == Role::Ephemeral).for_each(|member| container(s, plan, member));
    }
    let app_runs = s.members.iter().filter(|member| member.role == Role::App).any(|member| has_current(s, member));
    if init(s, plan, app_runs) {
        s.members.iter().filter(|member| member.role == Role::App).for_each(|member| container(s, plan, member));
    }
}

/// The newest instance and the one before it are kept, for `lastState` and `logs --previous`.
fn forget_old_instances(s: &Situation<'_>, plan: &mut Plan) {
    for list in s.runtime.containers.values() {
        let superseded = list.iter().rev().skip(2).filter(|instance| !instance.is_running());
        plan.remove.extend(superseded.map(|instance| instance.detail.id.clone()));
    }
}

/// Sees to the sandbox. Returns whether containers may be started: in it, or together with it.
fn sandbox(s: &Situation<'_>, plan: &mut Plan) -> bool {
    let latest = s.runtime.sandbox();
    let is_ready =
        s.runtime.running_sandbox().is_some_and(|sandbox| s.records.network_ready.as_ref() == Some(&sandbox.detail.id));
    if is_ready || s.sandbox_in_flight {
        return true;
    }
    // Containers that outlived their sandbox have lost their network.
    let mut any_runs = false;
    for (name, instance) in s.runtime.instances().filter(|(_, instance)| instance.is_running()) {
        any_runs = true;
        if !s.in_flight.contains(name) && s.runtime.running_sandbox().is_none() {
            let message = "Pod sandbox changed, it will be killed and re-created.".to_owned();
            plan.kill.push(kill(name, instance, message));
        }
    }
    if any_runs && s.runtime.running_sandbox().is_none() {
        return false;
    }
    if let Some(retry_at) = held(s.records.sandbox_retry_at, s.now, SANDBOX_BACKOFF_CAP) {
        plan.wake(retry_at);
        return false;
    }
    // A sandbox that runs but is not attached (the agent was killed between the two) is taken as it is.
    let attempt = match latest {
        Some(sandbox) if sandbox.is_running() || sandbox.is_leftover() => sandbox.attempt,
        Some(sandbox) => sandbox.attempt + 1,
        None => 0,
    };
    let dead = s.runtime.sandboxes.iter().filter(|sandbox| !sandbox.is_running() && !sandbox.is_leftover());
    plan.remove.extend(dead.map(|sandbox| sandbox.detail.id.clone()));
    plan.sandbox = Some(attempt);
    true
}

/// Whether a container has an instance in the present sandbox that was started.
fn has_current(s: &Situation<'_>, member: &Member) -> bool {
    let sandbox = s.runtime.running_sandbox().map_or("", |sandbox| &sandbox.detail.id);
    s.runtime
        .latest(member.name())
        .is_some_and(|latest| (latest.sandbox_id() == sandbox || latest.is_lost) && !latest.is_leftover())
}

/// Sees to init containers and sidecars. Returns whether the application may start.
fn init(s: &Situation<'_>, plan: &mut Plan, app_runs: bool) -> bool {
    for member in s.members.iter().filter(|member| matches!(member.role, Role::Init | Role::Sidecar)) {
        if app_runs {
            // Initialization is over; only sidecars are looked after.
            if member.role == Role::Sidecar {
                container(s, plan, member);
            }
            continue;
        }
        let latest = s.runtime.latest(member.name()).filter(|_| has_current(s, member));
        match latest {
            Some(latest) if member.role == Role::Init && latest.is_exited() && latest.detail.exit_code == 0 => {}
            Some(latest)
                if member.role == Role::Sidecar
                    && latest.is_running()
                    && s.records.probe(latest).started
                    && !s.in_flight.contains(member.name()) =>
            {
                container(s, plan, member);
            }
            Some(_) => {
                container(s, plan, member);
                return false;
            }
            None => {
                start(s, plan, member);
                return false;
            }
        }
    }
    true
}

/// Sees to one container: starts it, starts it again after its back-off, or ends it because it is unhealthy or has changed.
fn container(s: &Situation<'_>, plan: &mut Plan, member: &Member) {
    if s.in_flight.contains(member.name()) {
        return;
    }
    let Some(latest) = s.runtime.latest(member.name()) else {
        return start(s, plan, member);
    };
    if latest.is_running() {
        if let Some(message) = reason_to_kill(s, member, latest) {
            plan.kill.push(kill(member.name(), latest, message));
        }
    } else if latest.is_leftover() {
        start(s, plan, member);
    } else if latest.is_exited()
        && (restarts(s.pod, member, latest.detail.exit_code)
            || s.records.resize_restarts.get(member.name()) == Some(&latest.detail.id))
    {
        match s.records.restart_hold(member.name(), latest, s.now) {
            Some((until, _)) => plan.wake(until),
            None => start(s, plan, member),
        }
    }
}

fn reason_to_kill(s: &Situation<'_>, member: &Member, latest: &Instance) -> Option<String> {
    if latest.detail.labels.get(labels::SPEC_HASH).is_some_and(|hash| *hash != member.hash) {
        return Some(format!("Container {} definition changed, will be restarted", member.name()));
    }
    if s.records.resize_restarts.get(member.name()) == Some(&latest.detail.id) {
        return Some(format!("Container {} resize requires restart", member.name()));
    }
    let unhealthy = s.records.unhealthy.get(member.name())?;
    (unhealthy.id == latest.detail.id).then(|| unhealthy.message.clone())
}

fn start(s: &Situation<'_>, plan: &mut Plan, member: &Member) {
    if s.in_flight.contains(member.name()) {
        return;
    }
    let waiting = s.records.waiting.get(member.name()).map(|waiting| waiting.retry_at);
    if let Some(retry_at) = held(waiting, s.now, RESTART_BACKOFF_CAP) {
        return plan.wake(retry_at);
    }
    let latest = s.runtime.latest(member.name());
    let leftover = latest.filter(|latest| latest.is_leftover());
    let attempt = match latest {
        Some(leftover) if leftover.is_leftover() => leftover.attempt,
        Some(latest) => latest.attempt + 1,
        None => 0,
    };
    let leftover = leftover.map(|instance| instance.detail.id.clone());
    plan.start.push(Start { container: member.name().to_owned(), attempt, leftover });
}

fn kill(container: &str, instance: &Instance, message: String) -> Kill {
    Kill { container: container.to_owned(), id: instance.detail.id.clone(), message, after: Vec::new() }
}

#[cfg(test)]
#[path = "actions_tests.rs"]
mod tests;
