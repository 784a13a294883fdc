//! What a StatefulSet needs: a pure function of the set, its revisions, its pods and its claims, in the steps of upstream's
//! `stateful_set_control.go`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetSpec, StatefulSetStatus};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::Value;

use super::super::history::name_of;
use super::super::pods::{self, until_available};
use super::super::status::count;
use super::{claims, pod};
use crate::kinds::check::percent;

/// Most pods that one reconcile makes.
const BURST: usize = 500;

/// A revision of the set: its name, and the template that it stands for.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Revision {
    pub(super) name: String,
    pub(super) template: PodTemplateSpec,
}

/// What the controller saw.
pub(super) struct Observed<'a> {
    pub(super) set: &'a StatefulSet,
    /// The revision that the last finished update led to.
    pub(super) current: &'a Revision,
    /// The revision of the present template.
    pub(super) update: &'a Revision,
    /// All pods of the set.
    pub(super) pods: Vec<Arc<Pod>>,
    /// Finds a claim of the set's namespace.
    pub(super) claim: &'a dyn Fn(&str) -> Option<Arc<PersistentVolumeClaim>>,
    pub(super) now: Timestamp,
}

/// Why a pod is deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    Failed,
    Succeeded,
    /// Too many, or of another revision.
    Unwanted,
}

/// One thing to do.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Step {
    /// For the pod of this name.
    CreateClaim(String, Box<PersistentVolumeClaim>),
    /// A claim of this name, which the pod of this name needs, is going away.
    AwaitClaim(String, String),
    OwnClaim(Arc<PersistentVolumeClaim>, Vec<OwnerReference>),
    CreatePod(Box<Pod>),
    CorrectPod(Arc<Pod>, Value),
    DeletePod(Arc<Pod>, Why),
}

/// Steps that are taken one after the other; what fails ends them.
pub(super) type Task = Vec<Step>;

/// What is to be done.
#[derive(Debug)]
pub(super) struct Plan {
    /// The tasks of a stage are independent of each other; a stage with a failure ends the plan.
    pub(super) stages: Vec<Vec<Task>>,
    pub(super) status: StatefulSetStatus,
    /// When to look again although nothing changed.
    pub(super) look_again: Option<Duration>,
}

/// A place that the set wants filled.
enum Replica {
    There(Arc<Pod>),
    Planned(Box<Pod>),
}

/// Whether a stage lets the next one begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flow {
    Go,
    Halt,
}

struct Planner<'a> {
    seen: &'a Observed<'a>,
    spec: StatefulSetSpec,
    is_ordered: bool,
    replicas: Vec<(i32, Replica)>,
    /// Pods that are too many, the highest ordinal first.
    condemned: Vec<(i32, Arc<Pod>)>,
    stages: Vec<Vec<Task>>,
    status: StatefulSetStatus,
}

/// Decides.
pub(super) fn plan(observed: &Observed<'_>) -> Plan {
    let mut planner = Planner::new(observed);
    planner.count();
    if observed.set.metadata.deletion_timestamp.is_none() {
        planner.stages();
    }
    let min_ready = planner.min_ready_seconds();
    let waits = observed.pods.iter().filter_map(|pod| until_available(pod, min_ready, observed.now));
    let look_again = waits.filter(|wait| !wait.is_zero()).min();
    planner.complete_update();
    Plan { stages: planner.stages, status: planner.status, look_again }
}

impl<'a> Planner<'a> {
    fn new(seen: &'a Observed<'a>) -> Self {
        let spec = seen.set.spec.clone().unwrap_or_default();
        let is_ordered = spec.pod_management_policy.as_deref() != Some("Parallel");
        let old = seen.set.status.clone().unwrap_or_default();
        let status = StatefulSetStatus {
            observed_generation: seen.set.metadata.generation,
            current_revision: Some(seen.current.name.clone()),
            update_revision: Some(seen.update.name.clone()),
            collision_count: Some(old.collision_count.unwrap_or(0)),
            conditions: old.conditions,
            ..StatefulSetStatus::default()
        };
        let ordinal = |pod: &Arc<Pod>| pod::ordinal(seen.set, name_of(&pod.metadata)).map(|at| (at, Arc::clone(pod)));
        let (wanted, condemned): (BTreeMap<_, _>, BTreeMap<_, _>) =
            seen.pods.iter().filter_map(ordinal).partition(|(at, _)| pod::is_in_range(seen.set, *at));
        let condemned = condemned.into_iter().rev().collect();
        let mut planner = Self { seen, spec, is_ordered, replicas: Vec::new(), condemned, stages: Vec::new(), status };
        planner.replicas = planner.places(wanted);
        planner
    }

    /// The places of the set, in order: all that are filled, and the first of those that are not.
    fn places(&self, mut filled: BTreeMap<i32, Arc<Pod>>) -> Vec<(i32, Replica)> {
        let start = pod::start(self.seen.set);
        let (mut places, mut left) = (Vec::with_capacity(filled.len()), BURST);
        for at in start..start.saturating_add(pod::replicas(self.seen.set)) {
            if let Some(pod) = filled.remove(&at) {
                places.push((at, Replica::There(pod)));
            } else if left > 0 {
                places.push((at, Replica::Planned(Box::new(self.new_pod(at)))));
                left -= 1;
            } else {
                break;
            }
        }
        places.extend(filled.into_iter().map(|(at, pod)| (at, Replica::There(pod))));
        places
    }

    fn min_ready_seconds(&self) -> i32 {
        self.spec.min_ready_seconds.unwrap_or(0)
    }

    fn is_on_delete(&self) -> bool {
        self.spec.update_strategy.as_ref().and_then(|strategy| strategy.type_.as_deref()) == Some("OnDelete")
    }

    /// Whether the pod of this ordinal keeps the current revision while others are updated.
    fn is_held_back(&self, ordinal: i32) -> bool {
        let rolling = self.spec.update_strategy.as_ref().and_then(|strategy| strategy.rolling_update.as_ref());
        let partition = rolling.and_then(|rolling| rolling.partition).unwrap_or(0);
        !self.is_on_delete() && ordinal.saturating_sub(pod::start(self.seen.set)) < partition
    }

    /// `getStatefulSetMaxUnavailable`: at least 1.
    fn max_unavailable(&self) -> usize {
        let rolling = self.spec.update_strategy.as_ref().and_then(|strategy| strategy.rolling_update.as_ref());
        let number = match rolling.and_then(|rolling| rolling.max_unavailable.as_ref()) {
            None => 1,
            Some(IntOrString::Int(number)) => i64::from(*number),
            Some(IntOrString::String(text)) => {
                let hundredths = percent(text).unwrap_or(0).saturating_mul(i64::from(pod::replicas(self.seen.set)));
                hundredths.saturating_add(99).div_euclid(100)
            }
        };
        usize::try_from(number.max(1)).unwrap_or(1)
    }

    /// `newVersionedStatefulSetPod`.
    fn new_pod(&self, ordinal: i32) -> Pod {
        let revision = if self.is_held_back(ordinal) { self.seen.current } else { self.seen.update };
        pod::new(self.seen.set, &revision.template, &revision.name, ordinal)
    }

    fn is_ready(pod: &Pod) -> bool {
        pods::phase(pod) == "Running" && pods::is_ready(pod)
    }

    fn is_available(&self, pod: &Pod) -> bool {
        let wait = until_available(pod, self.min_ready_seconds(), self.seen.now);
        Self::is_ready(pod) && wait == Some(Duration::ZERO)
    }

    fn is_unavailable(&self, pod: &Pod) -> bool {
        is_terminating(pod) || !self.is_available(pod)
    }

    /// `computeReplicaStatus`.
    fn count(&mut self) {
        let pods = &self.seen.pods;
        let number = |holds: &dyn Fn(&Pod) -> bool| pods.iter().filter(|pod| holds(pod)).count();
        let of = |revision: &Revision| number(&|pod| !is_terminating(pod) && pod::revision_of(pod) == revision.name);
        self.status.replicas = i32::try_from(pods.len()).unwrap_or(i32::MAX);
        self.status.ready_replicas = count(number(&Self::is_ready));
        let available = number(&|pod| self.is_available(pod));
        self.status.available_replicas = Some(i32::try_from(available).unwrap_or(i32::MAX));
        self.status.current_replicas = count(of(self.seen.current));
        self.status.updated_replicas = count(of(self.seen.update));
    }

    /// `completeRollingUpdate`: when all pods are of the new revision and ready, it is the current one.
    fn complete_update(&mut self) {
        let (status, wanted) = (&mut self.status, pod::replicas(self.seen.set));
        let is_complete = status.updated_replicas.unwrap_or(0) == wanted
            && status.ready_replicas.unwrap_or(0) == wanted
            && status.replicas == wanted;
        let is_rolling = self.spec.update_strategy.as_ref().and_then(|strategy| strategy.type_.as_deref()) != Some("OnDelete");
        if is_rolling && is_complete {
            status.current_replicas = status.updated_replicas;
            status.current_revision.clone_from(&status.update_revision);
        }
    }

    fn stages(&mut self) {
        if self.keep_replicas() == Flow::Halt {
            return;
        }
        let condemned = self.condemned.iter();
        let tasks: Vec<Task> = condemned.map(|(at, pod)| self.own_claims(*at, pod)).filter(|task| !task.is_empty()).collect();
        self.stages.push(tasks);
        if self.drop_condemned() == Flow::Go && !self.is_on_delete() {
            self.roll();
        }
    }

    /// Fills the places that the set wants filled, in order: `processReplica`.
    fn keep_replicas(&mut self) -> Flow {
        let (mut tasks, mut flow) = (Vec::new(), Flow::Go);
        for (at, replica) in &self.replicas {
            let (task, next) = match replica {
                Replica::Planned(pod) => (self.create(*at, pod), Flow::Halt),
                Replica::There(pod) => self.keep(*at, pod),
            };
            if !task.is_empty() {
                tasks.push(task);
            }
            if self.is_ordered && next == Flow::Halt {
                flow = Flow::Halt;
                break;
            }
        }
        self.stages.push(tasks);
        flow
    }

    fn create(&self, ordinal: i32, pod: &Pod) -> Task {
        let name = name_of(&pod.metadata);
        let there = |claim: &PersistentVolumeClaim| (self.seen.claim)(name_of(&claim.metadata));
        let wanted = claims::wanted(self.seen.set, ordinal);
        if wanted.iter().filter_map(there).any(|claim| claims::is_stale(self.seen.set, &claim, pod)) {
            return Vec::new();
        }
        let mut task = self.create_claims(name, wanted);
        task.extend(self.own_claims(ordinal, pod));
        task.push(Step::CreatePod(Box::new(pod.clone())));
        task
    }

    fn create_claims(&self, pod: &str, wanted: Vec<PersistentVolumeClaim>) -> Task {
        let step = |claim: PersistentVolumeClaim| match (self.seen.claim)(name_of(&claim.metadata)) {
            None => Some(Step::CreateClaim(pod.to_owned(), Box::new(claim))),
            Some(there) if there.metadata.deletion_timestamp.is_some() => {
                Some(Step::AwaitClaim(pod.to_owned(), name_of(&claim.metadata).to_owned()))
            }
            Some(_) => None,
        };
        wanted.into_iter().filter_map(step).collect()
    }

    fn own_claims(&self, ordinal: i32, pod: &Pod) -> Task {
        let found = claims::names(self.seen.set, ordinal).filter_map(|(_, name)| (self.seen.claim)(&name));
        let step = |claim: Arc<PersistentVolumeClaim>| {
            let owners = claims::corrected_owners(self.seen.set, pod, ordinal, &claim)?;
            Some(Step::OwnClaim(claim, owners))
        };
        found.filter_map(step).collect()
    }

    fn keep(&self, ordinal: i32, pod: &Arc<Pod>) -> (Task, Flow) {
        let ended = match pods::phase(pod) {
            "Failed" => Some(Why::Failed),
            "Succeeded" => Some(Why::Succeeded),
            _ => None,
        };
        if let Some(why) = ended {
            let task = if is_terminating(pod) { Vec::new() } else { vec![Step::DeletePod(Arc::clone(pod), why)] };
            return (task, Flow::Halt);
        }
        let mut task = Task::new();
        if pods::phase(pod) == "Pending" {
            task = self.create_claims(name_of(&pod.metadata), claims::wanted(self.seen.set, ordinal));
            // A pod that is there already may hold a claim that goes with it.
            task.retain(|step| !matches!(step, Step::AwaitClaim(..)));
        }
        if self.is_ordered && self.is_unavailable(pod) {
            return (task, Flow::Halt);
        }
        task.extend(self.own_claims(ordinal, pod));
        let correction = pod::correction(self.seen.set, pod, ordinal);
        task.extend(correction.map(|patch| Step::CorrectPod(Arc::clone(pod), patch)));
        (task, Flow::Go)
    }

    /// Deletes pods that are too many, the highest ordinal first: `processCondemned`.
    fn drop_condemned(&mut self) -> Flow {
        let (mut tasks, mut flow) = (Vec::new(), Flow::Go);
        let first_unavailable = self.first_unavailable();
        for (at, pod) in &self.condemned {
            let is_held = self.is_ordered && self.is_unavailable(pod) && first_unavailable != Some(*at);
            if !is_terminating(pod) && !is_held {
                tasks.push(vec![Step::DeletePod(Arc::clone(pod), Why::Unwanted)]);
            }
            if self.is_ordered {
                flow = Flow::Halt;
                break;
            }
        }
        self.stages.push(tasks);
        flow
    }

    /// The ordinal of the first pod that is not available: among the wanted ones, then among the others.
    fn first_unavailable(&self) -> Option<i32> {
        let wanted = self.replicas.iter().find(|(_, replica)| match replica {
            Replica::There(pod) => self.is_unavailable(pod),
            Replica::Planned(_) => true,
        });
        let others = self.condemned.iter().rev();
        wanted.map(|(at, _)| *at).or_else(|| others.into_iter().find(|(_, pod)| self.is_unavailable(pod)).map(|(at, _)| *at))
    }

    /// Deletes pods of another revision, the highest ordinal first, as many as may be unavailable; the next reconcile makes them anew.
    /// A pod that does not serve costs nothing, so that one that never will does not block its own repair.
    fn roll(&mut self) {
        let unavailable = self.replicas.iter().filter(|(_, replica)| match replica {
            Replica::There(pod) => self.is_unavailable(pod),
            Replica::Planned(_) => true,
        });
        let mut left = self.max_unavailable().saturating_sub(unavailable.count());
        let (mut tasks, mut of_current) = (Vec::new(), 0);
        for (_, replica) in self.replicas.iter().rev().filter(|(at, _)| !self.is_held_back(*at)) {
            let Replica::There(pod) = replica else { continue };
            if is_terminating(pod) || pods::has_ended(pod) || pod::revision_of(pod) == self.seen.update.name {
                continue;
            }
            if !self.is_unavailable(pod) {
                if left == 0 {
                    continue;
                }
                left -= 1;
            }
            of_current += i32::from(pod::revision_of(pod) == self.seen.current.name);
            tasks.push(vec![Step::DeletePod(Arc::clone(pod), Why::Unwanted)]);
        }
        self.stages.push(tasks);
        let left = self.status.current_replicas.unwrap_or(0) - of_current;
        self.status.current_replicas = count(usize::try_from(left).unwrap_or(0));
    }
}

fn is_terminating(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

#[cfg(test)]
mod tests;
