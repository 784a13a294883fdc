//! Counting the pods of a job, each exactly once: `trackJobStatusAndRemoveFinalizers` of upstream's job controller.
//!
//! A pod that ended is first written into `status.uncountedTerminatedPods`, then loses its finalizer, then is counted; whatever is
//! cut short on the way goes on from there.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobCondition, JobStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::super::{pods, status};
use super::failure::{self, Verdict};
use super::plan::{Action, Sync, View, uid};
use super::{conditions, indexes};

/// Most pods that are being counted at one time, so that the status stays small.
const UNCOUNTED_MAX: usize = 500;

/// What came of the action.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Outcome {
    pub created: usize,
    /// Pods that were deleted, and how many of them were ready.
    pub deleted: usize,
    pub deleted_ready: usize,
}

/// What is to be written and counted.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Tracking {
    /// The status to write before finalizers are removed.
    pub status: JobStatus,
    /// Pods whose finalizer is to be removed then.
    pub counted: Vec<Arc<Pod>>,
    /// Uids of the pods that have the finalizer now.
    pub tracked: HashSet<String>,
    /// The condition to end with, once all is counted.
    pub finished: Option<JobCondition>,
    /// What happened to the condition Suspended: the reason and message of an event.
    pub suspension: Option<(&'static str, &'static str)>,
    terminating: usize,
}

/// Works the outcome of the action into the status, and chooses the pods to be counted.
pub(super) fn track(view: &View<'_>, mut sync: Sync, outcome: &Outcome) -> Tracking {
    let suspension = settle(view, &mut sync, outcome);
    let tracked: HashSet<String> = view.pods.iter().filter(|pod| view.is_tracked(pod)).map(|pod| uid(pod).to_owned()).collect();
    let known = sync.status.uncounted_terminated_pods.clone().unwrap_or_default();
    count_untracked(&mut sync.status, &tracked);
    let mut counting = Counting { view, sync: &mut sync, failed_before: known.failed.unwrap_or_default(), new: BTreeSet::new() };
    let (counted, all) = counting.run();
    let new = counting.new;
    if let Some(numbered) = &sync.numbered {
        let succeeded = numbered.succeeded.with(&new);
        sync.status.succeeded = Some(succeeded.total()).filter(|total| *total > 0);
        sync.status.completed_indexes = Some(succeeded.to_string()).filter(|text| !text.is_empty());
        sync.status.failed_indexes = numbered.failed.as_ref().map(ToString::to_string);
    }
    let finished = sync.finished.take().map(|condition| announce(&mut sync.status, condition, view));
    Tracking {
        status: sync.status,
        counted,
        tracked,
        finished: finished.filter(|_| all),
        suspension,
        terminating: sync.terminating,
    }
}

/// Brings the numbers up to date with what was done, and the conditions that follow from them.
fn settle(view: &View<'_>, sync: &mut Sync, outcome: &Outcome) -> Option<(&'static str, &'static str)> {
    if sync.finished.is_some() && (!view.is_fresh || outcome.deleted != sync.active) {
        // There may be pods left that are not in the cache yet.
        sync.finished = None;
    }
    let was_ending = matches!(sync.action, Action::End(_)) || !view.is_fresh;
    sync.active = (sync.active + outcome.created).saturating_sub(outcome.deleted);
    sync.terminating += outcome.deleted;
    sync.ready = sync.ready.saturating_sub(outcome.deleted_ready);
    let mut suspension = None;
    if !was_ending && sync.finished.is_none() {
        let enough = view.spec.completions.unwrap_or(1);
        let needs_one = view.spec.completions.is_some() || sync.succeeded > 0;
        if needs_one && sync.succeeded >= enough && sync.active == 0 {
            let message = "Reached expected number of succeeded pods";
            sync.finished = Some(conditions::new(conditions::SUCCESS_CRITERIA_MET, "CompletionsReached", message, view.now));
        } else if sync.managed {
            suspension = suspend(view, &mut sync.status);
        }
    }
    sync.status.active = status::count(sync.active);
    sync.status.ready = Some(i32::try_from(sync.ready).unwrap_or(i32::MAX));
    sync.status.terminating = Some(i32::try_from(sync.terminating).unwrap_or(i32::MAX));
    suspension
}

/// Says in a condition whether the job is suspended. One that goes on begins anew, so that its deadline counts from there.
fn suspend(view: &View<'_>, status: &mut JobStatus) -> Option<(&'static str, &'static str)> {
    let condition = |reason, message| conditions::new(conditions::SUSPENDED, reason, message, view.now);
    if view.is_suspended() {
        return conditions::ensure(status, condition("JobSuspended", "Job suspended")).then_some(("Suspended", "Job suspended"));
    }
    let resumed = JobCondition { status: "False".to_owned(), ..condition("JobResumed", "Job resumed") };
    if !conditions::ensure(status, resumed) {
        return None;
    }
    status.start_time = Some(Time(view.now));
    Some(("Resumed", "Job resumed"))
}

struct Counting<'a, 'b> {
    view: &'a View<'b>,
    sync: &'a mut Sync,
    /// Uids that were being counted as failed already.
    failed_before: Vec<String>,
    /// Indexes that succeeded newly.
    new: BTreeSet<i32>,
}

impl Counting<'_, '_> {
    /// The pods to be counted, and whether these are all.
    fn run(&mut self) -> (Vec<Arc<Pod>>, bool) {
        let mut pods: Vec<&Arc<Pod>> = self.view.pods.iter().filter(|pod| self.view.is_tracked(pod)).collect();
        if self.view.is_indexed() {
            pods.sort_by_key(|pod| indexes::of(pod));
        }
        let mut counted = Vec::new();
        for pod in pods {
            let is_failed = failure::is_failed(self.view.job, pod);
            if !self.may_go(pod, is_failed) {
                continue;
            }
            counted.push(Arc::clone(pod));
            self.list(pod, is_failed);
            let uncounted = self.sync.status.uncounted_terminated_pods.get_or_insert_default();
            let listed = |uids: &Option<Vec<String>>| uids.as_ref().map_or(0, Vec::len);
            if self.new.len() + listed(&uncounted.succeeded) + listed(&uncounted.failed) >= UNCOUNTED_MAX {
                return (counted, false);
            }
        }
        (counted, true)
    }

    /// Whether a pod needs not stay for the job's sake.
    fn may_go(&self, pod: &Pod, is_failed: bool) -> bool {
        if self.view.is_deleting() || self.sync.finished.is_some() || pods::phase(pod) == "Succeeded" {
            return true;
        }
        let delayed = self.sync.numbered.as_ref().map(|numbered| &numbered.delayed);
        let waits = || indexes::of(pod).and_then(|index| delayed?.get(&index)).is_some_and(|waiting| uid(waiting) == uid(pod));
        is_failed && !waits()
    }

    /// Writes down that a pod is being counted.
    fn list(&mut self, pod: &Pod, is_failed: bool) {
        let (name, view) = (uid(pod).to_owned(), self.view);
        let was_failed = self.failed_before.contains(&name);
        let uncounted = self.sync.status.uncounted_terminated_pods.get_or_insert_default();
        if pods::phase(pod) == "Succeeded" && !was_failed {
            if let Some(numbered) = &self.sync.numbered {
                let index = indexes::of(pod).filter(|_| view.has_place(pod));
                self.new.extend(index.filter(|index| !numbered.before.has(*index)));
            } else {
                let listed = uncounted.succeeded.get_or_insert_default();
                if !listed.contains(&name) {
                    listed.push(name);
                }
            }
            return;
        }
        // Once the job has failed, every pod that has not ended counts as failed.
        let is_success = |condition: &JobCondition| condition.type_ == conditions::SUCCESS_CRITERIA_MET;
        let all_fail = self.sync.finished.as_ref().is_some_and(|condition| !is_success(condition));
        if (is_failed || all_fail) && !was_failed && view.has_place(pod) && view.judge(pod) != Verdict::Ignore {
            uncounted.failed.get_or_insert_default().push(name);
        }
    }
}

/// Counts the pods that were being counted and have lost their finalizer.
fn count_untracked(status: &mut JobStatus, tracked: &HashSet<String>) {
    let uncounted = status.uncounted_terminated_pods.get_or_insert_default();
    for (uids, total) in [(&mut uncounted.succeeded, &mut status.succeeded), (&mut uncounted.failed, &mut status.failed)] {
        let Some(listed) = uids else { continue };
        let before = listed.len();
        listed.retain(|uid| tracked.contains(uid));
        let counted = i32::try_from(before - listed.len()).unwrap_or(i32::MAX);
        if counted > 0 {
            *total = Some(total.unwrap_or(0).saturating_add(counted));
        }
        if listed.is_empty() {
            *uids = None;
        }
    }
}

/// Writes the interim condition into the status, and returns the final one.
fn announce(status: &mut JobStatus, condition: JobCondition, view: &View<'_>) -> JobCondition {
    let last = match condition.type_.as_str() {
        conditions::FAILURE_TARGET => conditions::FAILED,
        conditions::SUCCESS_CRITERIA_MET => conditions::COMPLETE,
        _ => return condition,
    };
    if conditions::holding(Some(status), &condition.type_).is_none() {
        status.conditions.get_or_insert_default().push(condition.clone());
    }
    let text = |text: Option<String>| text.unwrap_or_default();
    conditions::new(last, &text(condition.reason), &text(condition.message), view.now)
}

/// The status after the finalizers are gone from all but `tracked`, and whether the job has ended with it.
pub(super) fn finish(tracking: &Tracking, written: &JobStatus, now: Timestamp) -> (JobStatus, Option<JobCondition>) {
    let mut status = written.clone();
    count_untracked(&mut status, &tracking.tracked);
    let uncounted = status.uncounted_terminated_pods.clone().unwrap_or_default();
    let all_counted = uncounted.succeeded.is_none() && uncounted.failed.is_none() && tracking.terminating == 0;
    let finished = tracking.finished.clone().filter(|_| all_counted);
    if let Some(condition) = &finished {
        conditions::ensure(&mut status, condition.clone());
        if condition.type_ == conditions::COMPLETE {
            status.completion_time = Some(Time(now));
        }
    }
    (status, finished)
}

/// Whether more pods succeeded than were asked for.
pub(super) fn is_exceeded(job: &Job) -> bool {
    let completions = job.spec.as_ref().and_then(|spec| spec.completions);
    let succeeded = job.status.as_ref().and_then(|status| status.succeeded).unwrap_or(0);
    completions.is_some_and(|completions| succeeded > completions)
}
