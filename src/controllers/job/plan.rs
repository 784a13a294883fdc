//! What a job needs: pure functions of the job and its pods, which follow `syncJob` of upstream's job controller.
//!
//! [`observe`] says which pods to create or delete; [`track`](super::track::track) goes on with what came of that.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::{Job, JobCondition, JobSpec, JobStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::super::pods;
use super::backoff::{self, Failures};
use super::failure::{self, Verdict};
use super::indexes::{self, Indexes};
use super::{conditions, pod};

/// Most pods that one reconcile creates or deletes.
pub(super) const BURST: usize = 500;

/// What is known of a job.
pub(super) struct View<'a> {
    pub job: &'a Job,
    pub spec: &'a JobSpec,
    /// The pods that the job owns.
    pub pods: &'a [Arc<Pod>],
    /// Uids of pods that the controller took the finalizer from, though the cache does not show it yet.
    pub untracked: &'a HashSet<String>,
    /// The failures that were known before.
    pub failures: Failures,
    /// Whether the cache shows all that the controller created and deleted.
    pub is_fresh: bool,
    pub now: Timestamp,
}

/// What is to be done about the pods.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Action {
    Nothing,
    /// One pod each, with these indexes.
    Create(Vec<Option<i32>>),
    /// Delete them without counting them.
    Delete(Vec<Arc<Pod>>),
    /// The job is to end: delete its active pods, and count them.
    End(Vec<Arc<Pod>>),
}

/// The indexes of an Indexed job.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Numbered {
    /// Those that the status names as succeeded.
    pub before: Indexes,
    pub succeeded: Indexes,
    /// Those that failed, if failures are counted by index.
    pub failed: Option<Indexes>,
    /// Failed pods that stay until they are replaced, since their counts go on in the replacements.
    pub delayed: BTreeMap<i32, Arc<Pod>>,
}

/// What was found out about a job.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Sync {
    /// The new status, as far as it is known before anything is done.
    pub status: JobStatus,
    pub active: usize,
    pub ready: usize,
    pub terminating: usize,
    pub succeeded: i32,
    pub numbered: Option<Numbered>,
    pub failures: Failures,
    /// The condition with which the job is to end.
    pub finished: Option<JobCondition>,
    pub action: Action,
    /// Whether the number of pods was looked at, so that the condition Suspended can be told.
    pub managed: bool,
    /// When to look again at the latest.
    pub again: Option<Duration>,
}

impl View<'_> {
    pub(super) fn is_indexed(&self) -> bool {
        self.spec.completion_mode.as_deref() == Some("Indexed")
    }

    pub(super) fn is_suspended(&self) -> bool {
        self.spec.suspend == Some(true)
    }

    pub(super) fn completions(&self) -> i32 {
        self.spec.completions.unwrap_or(0)
    }

    pub(super) fn is_deleting(&self) -> bool {
        self.job.metadata.deletion_timestamp.is_some()
    }

    /// Whether the pod still waits to be counted.
    pub(super) fn is_tracked(&self, pod: &Pod) -> bool {
        pod::is_tracked(pod) && !self.untracked.contains(uid(pod))
    }

    /// Whether the pod counts for the job: in an Indexed one it needs a valid index.
    pub(super) fn has_place(&self, pod: &Pod) -> bool {
        !self.is_indexed() || indexes::of(pod).is_some_and(|index| index < self.completions())
    }

    pub(super) fn judge(&self, pod: &Pod) -> Verdict {
        failure::judge(self.spec.pod_failure_policy.as_ref(), pod)
    }

    /// The pods that wait to be counted, are not in the list of those being counted, and pass.
    fn newly(&self, uncounted: Option<&Vec<String>>, passes: impl Fn(&Pod) -> bool) -> Vec<Arc<Pod>> {
        let is_listed = |pod: &Pod| uncounted.is_some_and(|uids| uids.iter().any(|listed| listed == uid(pod)));
        let tracked = self.pods.iter().filter(|pod| self.is_tracked(pod) && !is_listed(pod) && self.has_place(pod));
        tracked.filter(|pod| passes(pod)).cloned().collect()
    }
}

pub(super) fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or("")
}

/// Looks at a job that has not ended.
pub(super) fn observe(view: &View<'_>) -> Sync {
    let mut status = view.job.status.clone().unwrap_or_default();
    let uncounted = status.uncounted_terminated_pods.get_or_insert_default().clone();
    let active: Vec<Arc<Pod>> = view.pods.iter().filter(|pod| pods::is_active(pod)).cloned().collect();
    let succeeded = view.newly(uncounted.succeeded.as_ref(), |pod| pods::phase(pod) == "Succeeded");
    let failed = view.newly(uncounted.failed.as_ref(), |pod| failure::is_failed(view.job, pod));
    let counted = failed.iter().filter(|pod| view.judge(pod) != Verdict::Ignore).count();
    let listed = |uids: &Option<Vec<String>>| uids.as_ref().map_or(0, Vec::len);
    let total = |before: Option<i32>, new: usize| before.unwrap_or(0).saturating_add(i32::try_from(new).unwrap_or(i32::MAX));
    let all_failed = total(status.failed, counted + listed(&uncounted.failed));
    if status.start_time.is_none() && !view.is_suspended() {
        status.start_time = Some(Time(view.now));
    }
    let mut sync = Sync {
        active: active.len(),
        ready: active.iter().filter(|pod| pods::is_ready(pod)).count(),
        terminating: view.pods.iter().filter(|pod| is_terminating(pod)).count(),
        succeeded: total(status.succeeded, succeeded.len() + listed(&uncounted.succeeded)),
        numbered: None,
        failures: view.failures.after(&succeeded, &failed),
        finished: None,
        action: Action::Nothing,
        managed: false,
        again: None,
        status,
    };
    sync.finished = verdict(view, &sync.status, all_failed);
    if sync.finished.is_none() {
        sync.again = until_deadline(view, &sync.status);
    }
    if view.is_indexed() {
        number(view, &mut sync, &active);
    }
    act(view, &mut sync, &active);
    sync
}

fn is_terminating(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some() && !pods::has_ended(pod)
}

/// The condition with which the job ends, from what was said before and from its pods as a whole.
fn verdict(view: &View<'_>, status: &JobStatus, failed: i32) -> Option<JobCondition> {
    let known = conditions::holding(Some(status), conditions::SUCCESS_CRITERIA_MET).cloned();
    let target = || {
        let target = conditions::holding(Some(status), conditions::FAILURE_TARGET)?;
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        Some(conditions::new(conditions::FAILED, &text(&target.reason), &text(&target.message), view.now))
    };
    let policy = || {
        view.spec.pod_failure_policy.as_ref()?;
        let mut failed = view.pods.iter().filter(|pod| failure::is_failed(view.job, pod));
        failed.find_map(|pod| match view.judge(pod) {
            Verdict::FailJob(message) => Some(failure_target("PodFailurePolicy", &message, view.now)),
            _ => None,
        })
    };
    let limits = || {
        let limit = view.spec.backoff_limit.unwrap_or(6);
        if failed > limit || restarts_exceed(view, limit) {
            let message = "Job has reached the specified backoff limit";
            return Some(failure_target("BackoffLimitExceeded", message, view.now));
        }
        let message = "Job was active longer than specified deadline";
        (until_deadline(view, status) == Some(Duration::ZERO)).then(|| failure_target("DeadlineExceeded", message, view.now))
    };
    known.or_else(target).or_else(policy).or_else(limits)
}

fn failure_target(reason: &str, message: &str, now: Timestamp) -> JobCondition {
    conditions::new(conditions::FAILURE_TARGET, reason, message, now)
}

/// Whether the containers of the running pods were restarted too often; for pods that restart their containers themselves.
fn restarts_exceed(view: &View<'_>, limit: i32) -> bool {
    let policy = view.spec.template.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref());
    if policy != Some("OnFailure") {
        return false;
    }
    let running = view.pods.iter().filter(|pod| matches!(pods::phase(pod), "Running" | "Pending"));
    let statuses = running.filter_map(|pod| pod.status.as_ref());
    let containers = statuses.flat_map(|status| status.init_container_statuses.iter().chain(&status.container_statuses));
    let restarts: i32 = containers.flatten().map(|container| container.restart_count).sum();
    if limit == 0 { restarts > 0 } else { restarts >= limit }
}

/// How long the job may still be active, if that is limited and it runs.
fn until_deadline(view: &View<'_>, status: &JobStatus) -> Option<Duration> {
    let (limit, start) = (view.spec.active_deadline_seconds?, status.start_time.as_ref()?.0);
    if view.is_suspended() {
        return None;
    }
    let end = start.saturating_add(SignedDuration::from_secs(limit)).unwrap_or(Timestamp::MAX);
    Some(Duration::try_from(end.duration_since(view.now)).unwrap_or(Duration::ZERO))
}

/// Counts an Indexed job by its indexes, and ends it if enough of them failed or succeeded.
fn number(view: &View<'_>, sync: &mut Sync, active: &[Arc<Pod>]) {
    let (completions, spec) = (view.completions(), view.spec);
    let new = |passes: &dyn Fn(&Pod) -> bool| {
        let pods = view.pods.iter().filter(|pod| pod::is_tracked(pod) && view.has_place(pod) && passes(pod));
        indexes::of_all(pods)
    };
    let before = Indexes::parse(sync.status.completed_indexes.as_deref().unwrap_or(""), completions);
    let succeeded = before.with(&new(&|pod| pods::phase(pod) == "Succeeded"));
    sync.succeeded = succeeded.total();
    let mut numbered = Numbered { before, succeeded, ..Numbered::default() };
    if let Some(limit) = spec.backoff_limit_per_index {
        let known = Indexes::parse(sync.status.failed_indexes.as_deref().unwrap_or(""), completions);
        let failed = known.with(&new(&|pod| failure::fails_index(view.job, limit, pod)));
        if sync.finished.is_none() {
            sync.finished = indexes_failed(view, failed.total(), numbered.succeeded.total());
        }
        numbered.failed = Some(failed);
        numbered.delayed = delayed(view, &numbered, active);
    }
    if sync.finished.is_none() {
        let met = conditions::met_success_rule(spec.success_policy.as_ref(), completions, &numbered.succeeded);
        let condition = |message: String| conditions::new(conditions::SUCCESS_CRITERIA_MET, "SuccessPolicy", &message, view.now);
        sync.finished = met.map(condition);
    }
    sync.numbered = Some(numbered);
}

fn indexes_failed(view: &View<'_>, failed: i32, succeeded: i32) -> Option<JobCondition> {
    if view.spec.max_failed_indexes.is_some_and(|most| failed > most) {
        let message = "Job has exceeded the specified maximal number of failed indexes";
        return Some(failure_target("MaxFailedIndexesExceeded", message, view.now));
    }
    let all_ended = failed > 0 && failed.saturating_add(succeeded) >= view.completions();
    all_ended.then(|| failure_target("FailedIndexes", "Job has failed indexes", view.now))
}

/// Of each index that is to be tried again, the failed pod with the highest count.
fn delayed(view: &View<'_>, numbered: &Numbered, active: &[Arc<Pod>]) -> BTreeMap<i32, Arc<Pod>> {
    let running = indexes::of_all(active);
    let has_failed = |index: i32| numbered.failed.as_ref().is_some_and(|failed| failed.has(index));
    let mut delayed: BTreeMap<i32, Arc<Pod>> = BTreeMap::new();
    for pod in view.newly(None, |pod| failure::is_failed(view.job, pod)) {
        let Some(index) = indexes::of(&pod) else { continue };
        if numbered.succeeded.has(index) || has_failed(index) || running.contains(&index) {
            continue;
        }
        let rank = |pod: &Pod| (failure::total_count(pod), backoff::finished_at(pod));
        let is_later = |known: &Arc<Pod>| rank(known) <= rank(&pod);
        if delayed.get(&index).is_none_or(is_later) {
            delayed.insert(index, pod);
        }
    }
    delayed
}

/// Decides about the pods.
fn act(view: &View<'_>, sync: &mut Sync, active: &[Arc<Pod>]) {
    if !view.is_fresh {
        return;
    }
    if sync.finished.is_some() {
        sync.action = Action::End(active.to_vec());
    } else if !view.is_deleting() {
        sync.managed = true;
        let (action, wait) = manage(view, sync, active);
        sync.action = action;
        sync.again = [sync.again, wait].into_iter().flatten().min();
    }
}

/// Compares the active pods with the wanted number. Also says how long to wait before pods are created.
fn manage(view: &View<'_>, sync: &Sync, active: &[Arc<Pod>]) -> (Action, Option<Duration>) {
    if view.is_suspended() {
        return (delete(active.to_vec()), None);
    }
    let parallelism = view.spec.parallelism.unwrap_or(1);
    let have = i32::try_from(active.len()).unwrap_or(i32::MAX);
    let wanted = match view.spec.completions {
        // A job without a number of completions leaves what runs alone once a pod has succeeded.
        None if sync.succeeded > 0 => have,
        None => parallelism,
        Some(completions) => completions.saturating_sub(sync.succeeded).min(parallelism).max(0),
    };
    let mut surplus = surplus(view, active, usize::try_from(have.saturating_sub(wanted)).unwrap_or(0));
    if !surplus.is_empty() {
        surplus.truncate(BURST);
        return (delete(surplus), None);
    }
    let terminating = if failure::only_replaces_failed(view.job) { sync.terminating } else { 0 };
    let missing = usize::try_from(wanted).unwrap_or(0).saturating_sub(active.len() + terminating).min(BURST);
    if missing == 0 { (Action::Nothing, None) } else { create(view, sync, active, missing) }
}

fn delete(pods: Vec<Arc<Pod>>) -> Action {
    if pods.is_empty() { Action::Nothing } else { Action::Delete(pods) }
}

/// The pods that have to go: `at_least` so many, and of an Indexed job all without an index of their own.
fn surplus(view: &View<'_>, active: &[Arc<Pod>], at_least: usize) -> Vec<Arc<Pod>> {
    let (mut going, mut staying) = (Vec::new(), Vec::new());
    if view.is_indexed() {
        let mut groups = indexes::group(active, view.completions());
        going = groups.remove(&None).unwrap_or_default();
        for group in groups.into_values() {
            let first = pods::to_delete(&group, &[], group.len() - 1, view.now);
            let gone: HashSet<&str> = first.iter().map(|pod| uid(pod)).collect();
            let (out, left): (Vec<_>, Vec<_>) = group.iter().cloned().partition(|pod| gone.contains(uid(pod)));
            going.extend(out);
            staying.extend(left);
        }
    } else {
        staying = active.to_vec();
    }
    let more = pods::to_delete(&staying, &[], at_least.saturating_sub(going.len()), view.now);
    going.extend(more.into_iter().cloned());
    going
}

/// New pods, or how long they have to wait for failures before them.
fn create(view: &View<'_>, sync: &Sync, active: &[Arc<Pod>], missing: usize) -> (Action, Option<Duration>) {
    let per_index = view.spec.backoff_limit_per_index.is_some();
    let wait = if per_index { Duration::ZERO } else { sync.failures.remaining(view.now) };
    if !wait.is_zero() {
        return (Action::Nothing, Some(wait));
    }
    let Some(numbered) = &sync.numbered else { return (Action::Create(vec![None; missing]), None) };
    let mut taken = numbered.succeeded.with(&indexes::of_all(active));
    if failure::only_replaces_failed(view.job) {
        taken = taken.with(&indexes::of_all(view.pods.iter().filter(|pod| is_terminating(pod))));
    }
    if let Some(failed) = &numbered.failed {
        taken = taken.union(failed);
    }
    let (mut now, mut later) = (Vec::new(), None::<Duration>);
    for index in taken.first_missing(missing, view.completions()) {
        let failed = numbered.delayed.get(&index);
        match failed.map_or(Duration::ZERO, |failed| backoff::remaining_for_index(failed, view.now)) {
            Duration::ZERO => now.push(Some(index)),
            wait => later = Some(later.map_or(wait, |later| later.min(wait))),
        }
    }
    if now.is_empty() { (Action::Nothing, later) } else { (Action::Create(now), later) }
}
