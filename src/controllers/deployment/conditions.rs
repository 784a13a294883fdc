//! The status of a Deployment and its conditions, with upstream's reasons and words.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::super::status::count;
use super::sets::Set;
use super::strategy;

pub(super) const PROGRESSING: &str = "Progressing";
pub(super) const NEW_SET_AVAILABLE: &str = "NewReplicaSetAvailable";
const AVAILABLE: &str = "Available";
const REPLICA_FAILURE: &str = "ReplicaFailure";
const TIMED_OUT: &str = "ProgressDeadlineExceeded";
const PAUSED: &str = "DeploymentPaused";

/// The status, with `now` for its conditions.
pub(super) struct Conditions {
    pub(super) status: DeploymentStatus,
    pub(super) now: Timestamp,
}

impl Conditions {
    pub(super) fn get(&self, kind: &str) -> Option<&DeploymentCondition> {
        self.status.conditions.iter().flatten().find(|condition| condition.type_ == kind)
    }

    /// Sets a condition: nothing changes if status and reason stay, and the transition time stays with the status.
    pub(super) fn set(&mut self, kind: &str, status: &str, reason: &str, message: String) {
        let before = self.get(kind);
        if before.is_some_and(|before| before.status == status && before.reason.as_deref() == Some(reason)) {
            return;
        }
        self.put(kind, status, reason, message);
    }

    fn put(&mut self, kind: &str, status: &str, reason: &str, message: String) {
        let kept = self.get(kind).filter(|before| before.status == status);
        let transition = kept.and_then(|before| before.last_transition_time.clone()).unwrap_or(Time(self.now));
        self.remove(kind);
        self.status.conditions.get_or_insert_default().push(DeploymentCondition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message),
            last_update_time: Some(Time(self.now)),
            last_transition_time: Some(transition),
        });
    }

    pub(super) fn remove(&mut self, kind: &str) {
        if let Some(conditions) = &mut self.status.conditions {
            conditions.retain(|condition| condition.type_ != kind);
        }
    }

    /// Says that the Deployment is paused, or that it was resumed: `checkPausedConditions`.
    pub(super) fn check_paused(&mut self, deployment: &Deployment) {
        let reason = self.get(PROGRESSING).and_then(|condition| condition.reason.as_deref());
        if deadline(deployment).is_none() || reason == Some(TIMED_OUT) {
            return;
        }
        let (paused, was_paused) = (is_paused(deployment), reason == Some(PAUSED));
        if paused && !was_paused {
            self.set(PROGRESSING, "Unknown", PAUSED, "Deployment is paused".to_owned());
        } else if !paused && was_paused {
            self.set(PROGRESSING, "Unknown", "DeploymentResumed", "Deployment is resumed".to_owned());
        }
    }

    /// Brings Progressing and ReplicaFailure up to date: `syncRolloutStatus`.
    pub(super) fn check_progress(&mut self, deployment: &Deployment, sets: &[&Set], new: Option<&Set>) {
        if deadline(deployment).is_none() {
            self.remove(PROGRESSING);
        } else if !self.is_settled() {
            let what = new.map_or_else(
                || format!("Deployment {:?}", deployment.metadata.name.as_deref().unwrap_or("")),
                |set| format!("ReplicaSet {:?}", set.name()),
            );
            if is_complete(deployment, &self.status) {
                self.set(PROGRESSING, "True", NEW_SET_AVAILABLE, format!("{what} has successfully progressed."));
            } else if has_progressed(deployment, &self.status) {
                self.put(PROGRESSING, "True", "ReplicaSetUpdated", format!("{what} is progressing."));
            } else if self.has_timed_out(deployment) {
                self.set(PROGRESSING, "False", TIMED_OUT, format!("{what} has timed out progressing."));
            }
        }
        self.check_failures(sets, new);
    }

    fn is_settled(&self) -> bool {
        let done = self.get(PROGRESSING).is_some_and(|condition| condition.reason.as_deref() == Some(NEW_SET_AVAILABLE));
        done && self.status.replicas.unwrap_or(0) == self.status.updated_replicas.unwrap_or(0)
    }

    fn has_timed_out(&self, deployment: &Deployment) -> bool {
        match self.get(PROGRESSING).and_then(|condition| condition.reason.as_deref()) {
            None | Some(NEW_SET_AVAILABLE) => false,
            Some(TIMED_OUT) => true,
            Some(_) => self.due(deployment).is_some_and(|due| due < self.now),
        }
    }

    /// When the progress deadline runs out.
    fn due(&self, deployment: &Deployment) -> Option<Timestamp> {
        Some(self.get(PROGRESSING)?.last_update_time.as_ref()?.0 + deadline(deployment)?)
    }

    /// Shows the failure of one of the sets, the new one first.
    fn check_failures(&mut self, sets: &[&Set], new: Option<&Set>) {
        let failure = |set: &Set| {
            let conditions = set.object.status.as_ref()?.conditions.as_ref()?;
            conditions.iter().find(|condition| condition.type_ == REPLICA_FAILURE).cloned()
        };
        match new.and_then(failure).or_else(|| sets.iter().find_map(|set| failure(set))) {
            Some(failure) => {
                let (reason, message) = (failure.reason.unwrap_or_default(), failure.message.unwrap_or_default());
                self.set(REPLICA_FAILURE, &failure.status, &reason, message);
            }
            None => self.remove(REPLICA_FAILURE),
        }
    }

    /// How long until the progress deadline has to be looked at: `requeueStuckDeployment`.
    pub(super) fn look_again(&self, deployment: &Deployment) -> Option<std::time::Duration> {
        let reason = self.get(PROGRESSING)?.reason.as_deref();
        if is_complete(deployment, &self.status) || matches!(reason, Some(TIMED_OUT | NEW_SET_AVAILABLE)) || is_paused(deployment)
        {
            return None;
        }
        let wait = self.due(deployment)?.duration_since(self.now).max(SignedDuration::ZERO) + SignedDuration::from_secs(1);
        wait.try_into().ok()
    }
}

/// `spec.paused`.
pub(super) fn is_paused(deployment: &Deployment) -> bool {
    deployment.spec.as_ref().and_then(|spec| spec.paused).unwrap_or(false)
}

/// The progress deadline; the largest number means none.
pub(super) fn deadline(deployment: &Deployment) -> Option<SignedDuration> {
    let seconds = deployment.spec.as_ref()?.progress_deadline_seconds?;
    (seconds != i32::MAX).then(|| SignedDuration::from_secs(i64::from(seconds)))
}

/// Counts the pods of all sets: `calculateStatus`. Other conditions than Available are kept.
pub(super) fn calculate(deployment: &Deployment, before: &Conditions, sets: &[&Set], new: Option<&Set>) -> Conditions {
    let sum = |of: fn(&k8s_openapi::api::apps::v1::ReplicaSetStatus) -> i32| -> i32 {
        sets.iter().filter_map(|set| set.object.status.as_ref()).map(of).sum()
    };
    let number = |count_of: i32| count(usize::try_from(count_of).unwrap_or(0));
    let available = sum(|status| status.available_replicas.unwrap_or(0));
    let wanted: i32 = sets.iter().map(|set| set.replicas).sum();
    let updated = new.and_then(|set| set.object.status.as_ref()).map_or(0, |status| status.replicas);
    let status = DeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: number(sum(|status| status.replicas)),
        updated_replicas: number(updated),
        ready_replicas: number(sum(|status| status.ready_replicas.unwrap_or(0))),
        available_replicas: number(available),
        unavailable_replicas: number(wanted - available),
        terminating_replicas: Some(sum(|status| status.terminating_replicas.unwrap_or(0))),
        collision_count: before.status.collision_count,
        conditions: before.status.conditions.clone(),
    };
    let mut conditions = Conditions { status, now: before.now };
    if available >= strategy::replicas(deployment) - strategy::max_unavailable(deployment) {
        let message = "Deployment has minimum availability.".to_owned();
        conditions.set(AVAILABLE, "True", "MinimumReplicasAvailable", message);
    } else {
        let message = "Deployment does not have minimum availability.".to_owned();
        conditions.set(AVAILABLE, "False", "MinimumReplicasUnavailable", message);
    }
    conditions
}

/// Whether all pods are new and available, and nothing is left of the old: `DeploymentComplete`.
pub(super) fn is_complete(deployment: &Deployment, status: &DeploymentStatus) -> bool {
    let wanted = Some(strategy::replicas(deployment));
    let is_wanted = |number: Option<i32>| Some(number.unwrap_or(0)) == wanted;
    is_wanted(status.updated_replicas)
        && is_wanted(status.replicas)
        && is_wanted(status.available_replicas)
        && status.observed_generation >= deployment.metadata.generation
}

/// Whether the counts are nearer to the goal than in the status that stands: `DeploymentProgressing`.
fn has_progressed(deployment: &Deployment, new: &DeploymentStatus) -> bool {
    let old = deployment.status.clone().unwrap_or_default();
    let number = |count: Option<i32>| count.unwrap_or(0);
    let outdated = |status: &DeploymentStatus| number(status.replicas) - number(status.updated_replicas);
    number(new.updated_replicas) > number(old.updated_replicas)
        || outdated(new) < outdated(&old)
        || number(new.ready_replicas) > number(old.ready_replicas)
        || number(new.available_replicas) > number(old.available_replicas)
}
