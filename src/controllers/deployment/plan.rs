//! What a Deployment needs: a pure function of the Deployment and its ReplicaSets, in the steps and with the numbers of upstream's
//! `controller/deployment` (`rolling.go`, `recreate.go`, `sync.go`).

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus, ReplicaSet};

use super::conditions::{self, Conditions, PROGRESSING, is_paused};
use super::sets::{self, Set};
use super::strategy;

/// What the controller saw.
pub(super) struct Observed<'a> {
    pub(super) deployment: &'a Deployment,
    pub(super) sets: Vec<Arc<ReplicaSet>>,
    /// Whether pods of old sets still run; looked at for the strategy Recreate only.
    pub(super) old_pods_run: bool,
    pub(super) now: Timestamp,
}

/// What is to be done, in this order.
#[derive(Debug)]
pub(super) struct Plan {
    /// The set to create, if the template has none yet.
    pub(super) create: Option<Set>,
    /// Sets to change, and to say so where the number of pods changes.
    pub(super) change: Vec<Set>,
    /// Old sets beyond the history limit.
    pub(super) delete: Vec<Arc<ReplicaSet>>,
    /// The revision that the Deployment's annotation should show.
    pub(super) revision: Option<i64>,
    pub(super) status: DeploymentStatus,
    /// When to look again although nothing changed.
    pub(super) look_again: Option<Duration>,
}

struct Rollout<'a> {
    deployment: &'a Deployment,
    new: Option<Set>,
    /// Oldest first.
    old: Vec<Set>,
    revision: Option<i64>,
    conditions: Conditions,
    delete: Vec<Arc<ReplicaSet>>,
}

/// Decides.
pub(super) fn plan(observed: Observed<'_>) -> Plan {
    let deployment = observed.deployment;
    let (new, old) = sets::split(deployment, observed.sets);
    let conditions = Conditions { status: deployment.status.clone().unwrap_or_default(), now: observed.now };
    let mut rollout = Rollout { deployment, new, old, revision: None, conditions, delete: Vec::new() };
    let mut look_at_progress = false;
    if deployment.metadata.deletion_timestamp.is_none() {
        rollout.conditions.check_paused(deployment);
        if is_paused(deployment) || rollout.is_scaling() {
            rollout.adopt_new_set(false);
            rollout.scale_all();
            if is_paused(deployment) {
                rollout.clean_up();
            }
        } else if strategy::is_recreate(deployment) {
            rollout.recreate(observed.old_pods_run);
            look_at_progress = true;
        } else {
            rollout.roll();
            look_at_progress = true;
        }
    }
    rollout.finish(look_at_progress)
}

impl Rollout<'_> {
    fn wanted(&self) -> i32 {
        strategy::replicas(self.deployment)
    }

    fn all(&self) -> Vec<&Set> {
        self.old.iter().chain(&self.new).collect()
    }

    /// Whether `spec.replicas` changed since the sets were last scaled.
    fn is_scaling(&self) -> bool {
        let active = self.old.iter().chain(&self.new).filter(|set| set.replicas > 0);
        active.filter_map(Set::desired_annotation).any(|desired| desired != self.wanted())
    }

    /// Finds the new set, or plans it: `getNewReplicaSet`.
    fn adopt_new_set(&mut self, create: bool) {
        let revision = self.old.iter().map(Set::revision).max().unwrap_or(0) + 1;
        let has_deadline = conditions::deadline(self.deployment).is_some();
        if let Some(new) = &mut self.new {
            new.follow(self.deployment, revision);
            self.revision = Some(new.revision());
            if has_deadline && self.conditions.get(PROGRESSING).is_none() {
                let message = format!("Found new replica set {:?}", new.name());
                self.conditions.set(PROGRESSING, "True", "FoundNewReplicaSet", message);
            }
        } else if create {
            let mut new = Set::planned(self.deployment);
            let total = self.old.iter().map(|set| set.replicas).sum();
            new.follow(self.deployment, revision);
            new.scale(strategy::new_set_size(self.deployment, total, 0), self.deployment);
            self.revision = Some(revision);
            if has_deadline {
                let message = format!("Created new replica set {:?}", new.name());
                self.conditions.set(PROGRESSING, "True", "NewReplicaSetCreated", message);
            }
            self.new = Some(new);
        }
    }

    /// One step of a rolling update: grow the new set, or shrink the old ones.
    fn roll(&mut self) {
        self.adopt_new_set(true);
        if !self.resize_new() && !self.shrink_old() && self.was_complete() {
            self.clean_up();
        }
    }

    /// One step of a recreation: all old pods go, then the new ones come.
    fn recreate(&mut self, old_pods_run: bool) {
        self.adopt_new_set(false);
        let mut has_scaled = false;
        for set in self.old.iter_mut().filter(|set| set.replicas > 0) {
            set.scale(0, self.deployment);
            has_scaled = true;
        }
        if has_scaled || old_pods_run {
            return;
        }
        if self.new.is_none() {
            self.adopt_new_set(true);
        }
        if !self.resize_new() && self.was_complete() {
            self.clean_up();
        }
    }

    fn was_complete(&self) -> bool {
        conditions::is_complete(self.deployment, &self.conditions.status)
    }

    /// `reconcileNewReplicaSet`: whether the new set changes its size.
    fn resize_new(&mut self) -> bool {
        let (wanted, total) = (self.wanted(), self.all().iter().map(|set| set.replicas).sum());
        let Some(new) = &mut self.new else { return false };
        let size = match new.replicas {
            size if size == wanted => return false,
            size if size > wanted => wanted,
            size => strategy::new_set_size(self.deployment, total, size),
        };
        if size == new.replicas {
            return false;
        }
        new.scale(size, self.deployment);
        true
    }

    /// `reconcileOldReplicaSets`: whether an old set changes its size.
    fn shrink_old(&mut self) -> bool {
        let before: i32 = self.old.iter().map(|set| set.replicas).sum();
        if before == 0 {
            return false;
        }
        let (new_replicas, new_available) = self.new.as_ref().map_or((0, 0), |set| (set.replicas, set.available()));
        let min_available = self.wanted() - strategy::max_unavailable(self.deployment);
        let max_down = before + new_replicas - min_available - (new_replicas - new_available);
        if max_down <= 0 {
            return false;
        }
        self.drop_unhealthy(max_down);
        let available: i32 = self.all().iter().map(|set| set.available()).sum();
        self.drop_available(available - min_available);
        self.old.iter().map(|set| set.replicas).sum::<i32>() != before
    }

    /// Pods of old sets that do not serve go first: `cleanupUnhealthyReplicas`.
    fn drop_unhealthy(&mut self, max: i32) {
        let mut left = max;
        for set in &mut self.old {
            let unhealthy = set.replicas - set.available();
            if left > 0 && set.replicas > 0 && unhealthy > 0 {
                let down = left.min(unhealthy);
                set.scale(set.replicas - down, self.deployment);
                left -= down;
            }
        }
    }

    /// `scaleDownOldReplicaSetsForRollingUpdate`.
    fn drop_available(&mut self, max: i32) {
        let mut left = max;
        for set in &mut self.old {
            if left > 0 && set.replicas > 0 {
                let down = left.min(set.replicas);
                set.scale(set.replicas - down, self.deployment);
                left -= down;
            }
        }
    }

    /// Scales without a rollout: one set alone, or several in proportion: `scale`.
    fn scale_all(&mut self) {
        let (wanted, deployment) = (self.wanted(), self.deployment);
        if let Some(only) = self.active_or_latest() {
            if only.replicas != wanted {
                only.scale(wanted, deployment);
            }
        } else if self.new.as_ref().is_some_and(|new| is_saturated(new, wanted)) {
            self.old.iter_mut().filter(|set| set.replicas > 0).for_each(|set| set.scale(0, deployment));
        } else if !strategy::is_recreate(deployment) {
            self.scale_in_proportion();
        }
    }

    /// `FindActiveOrLatest`: the only active set, or if none is active the newest one.
    fn active_or_latest(&mut self) -> Option<&mut Set> {
        match self.all().iter().filter(|set| set.replicas > 0).count() {
            0 => self.new.as_mut().or(self.old.last_mut()),
            1 => self.old.iter_mut().chain(&mut self.new).find(|set| set.replicas > 0),
            _ => None,
        }
    }

    fn scale_in_proportion(&mut self) {
        let (wanted, deployment) = (self.wanted(), self.deployment);
        let mut active: Vec<&mut Set> = self.old.iter_mut().chain(&mut self.new).filter(|set| set.replicas > 0).collect();
        let allowed = if wanted > 0 { wanted + strategy::max_surge(deployment) } else { 0 };
        let to_add = allowed - active.iter().map(|set| set.replicas).sum::<i32>();
        // Oldest first now. The biggest set comes first; of equal ones the newer when growing, the older when shrinking.
        if to_add > 0 {
            active.reverse();
        }
        active.sort_by_key(|set| std::cmp::Reverse(set.replicas));
        let mut sizes: Vec<i32> = Vec::with_capacity(active.len());
        let mut added = 0;
        for set in &active {
            let share = strategy::proportion(set, deployment, to_add, added);
            sizes.push(set.replicas + share);
            added += share;
        }
        if let Some(first) = sizes.first_mut() {
            *first = (*first + to_add - added).max(0);
        }
        for (set, size) in active.into_iter().zip(sizes) {
            set.scale(size, deployment);
        }
    }

    /// Old sets beyond the history limit go: `cleanupDeployment`.
    fn clean_up(&mut self) {
        let limit = self.deployment.spec.as_ref().and_then(|spec| spec.revision_history_limit).unwrap_or(i32::MAX);
        let mut kept: Vec<&Set> = self.old.iter().filter(|set| set.object.metadata.deletion_timestamp.is_none()).collect();
        let excess = kept.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
        kept.sort_by_key(|set| set.revision());
        let is_idle = |set: &&&Set| {
            let status = set.object.status.as_ref();
            let observed = status.and_then(|status| status.observed_generation);
            set.replicas == 0
                && status.is_none_or(|status| status.replicas == 0)
                && set.object.metadata.generation.unwrap_or(0) <= observed.unwrap_or(0)
        };
        self.delete = kept.iter().take(excess).filter(is_idle).map(|set| Arc::clone(&set.object)).collect();
    }

    fn finish(self, look_at_progress: bool) -> Plan {
        let (all, new) = (self.all(), self.new.as_ref());
        let mut conditions = conditions::calculate(self.deployment, &self.conditions, &all, new);
        if look_at_progress {
            conditions.check_progress(self.deployment, &all, new);
        }
        let look_again = conditions.look_again(self.deployment).filter(|_| look_at_progress);
        let (planned, existing): (Vec<Set>, Vec<Set>) = self.new.into_iter().chain(self.old).partition(|set| set.is_planned);
        Plan {
            create: planned.into_iter().next(),
            change: existing.into_iter().filter(|set| set.patch().is_some()).collect(),
            delete: self.delete,
            revision: self.revision,
            status: conditions.status,
            look_again,
        }
    }
}

/// Whether a set has all the pods that the Deployment wants, and they serve: `IsSaturated`.
fn is_saturated(set: &Set, wanted: i32) -> bool {
    set.desired_annotation() == Some(wanted) && set.replicas == wanted && set.available() == wanted
}

#[cfg(test)]
mod tests;
