//! What a job does about its pods and what it counts, as tables: upstream's `TestControllerSyncJob` and its kin.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobStatus};
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::backoff::Failures;
use super::plan::{self, Action, View};
use super::track::{self, Outcome};
use super::{conditions, indexes};

const NOW: i64 = 1_000_000;

fn at(second: i64) -> String {
    Timestamp::from_second(NOW + second).unwrap().to_string()
}

fn job(spec: Value, status: Value) -> Job {
    let mut all =
        json!({"parallelism": 1, "backoffLimit": 6, "template": {"spec": {"containers": [], "restartPolicy": "Never"}}});
    json_patch::merge(&mut all, &spec);
    let metadata = json!({"name": "work", "namespace": "a", "uid": "job"});
    serde_json::from_value(json!({"metadata": metadata, "spec": all, "status": status})).unwrap()
}

/// A pod from words: `name phase [index] [untracked] [deleted] [exit=N] [restarts=N] [ended=S] [failures=N]`.
fn pod(words: &str) -> Arc<Pod> {
    let mut words = words.split(' ');
    let (name, phase) = (words.next().unwrap(), words.next().unwrap());
    let mut pod = json!({"metadata": {"name": name, "namespace": "a", "uid": name, "annotations": {},
        "creationTimestamp": at(-60), "finalizers": ["batch.kubernetes.io/job-tracking"]}, "status": {"phase": phase}});
    let (mut state, mut restarts) = (json!({"running": {}}), 0);
    for word in words {
        match word.split_once('=').unwrap_or((word, "")) {
            ("untracked", _) => pod["metadata"]["finalizers"] = Value::Null,
            ("deleted", _) => pod["metadata"]["deletionTimestamp"] = json!(at(-1)),
            ("exit", code) => state = json!({"terminated": {"exitCode": code.parse::<i32>().unwrap(), "finishedAt": at(0)}}),
            ("ended", second) => {
                state = json!({"terminated": {"exitCode": 1, "finishedAt": at(second.parse().unwrap())}});
            }
            ("restarts", count) => restarts = count.parse().unwrap(),
            ("failures", count) => pod["metadata"]["annotations"]["batch.kubernetes.io/job-index-failure-count"] = json!(count),
            (index, _) => pod["metadata"]["annotations"]["batch.kubernetes.io/job-completion-index"] = json!(index),
        }
    }
    pod["status"]["containerStatuses"] =
        json!([{"name": "c", "image": "", "imageID": "", "ready": false, "restartCount": restarts, "state": state}]);
    Arc::new(serde_json::from_value(pod).unwrap())
}

/// What one reconcile does: the action in words, the status that stands after it, and the wait for the next.
struct Done {
    action: String,
    status: JobStatus,
    again: Option<u64>,
}

impl Done {
    fn conditions(&self) -> Vec<String> {
        let words = |condition: &k8s_openapi::api::batch::v1::JobCondition| {
            format!("{}={}", condition.type_, condition.reason.as_deref().unwrap_or(""))
        };
        self.status.conditions.iter().flatten().map(words).collect()
    }

    /// `active/ready/terminating/succeeded/failed`.
    fn counts(&self) -> String {
        let status = &self.status;
        let all = [status.active, status.ready, status.terminating, status.succeeded, status.failed];
        all.map(|count| count.unwrap_or(0).to_string()).join("/")
    }
}

fn reconcile(job: &Job, pods: &[&str]) -> Done {
    reconcile_after(job, pods, Failures::default(), true)
}

fn reconcile_after(job: &Job, pods: &[&str], failures: Failures, is_fresh: bool) -> Done {
    let pods: Vec<Arc<Pod>> = pods.iter().map(|words| pod(words)).collect();
    let (untracked, now) = (HashSet::new(), Timestamp::from_second(NOW).unwrap());
    let spec = job.spec.as_ref().unwrap();
    let view = View { job, spec, pods: &pods, untracked: &untracked, failures, is_fresh, now };
    let sync = plan::observe(&view);
    let names = |pods: &[Arc<Pod>]| {
        let mut names: Vec<&str> = pods.iter().map(|pod| plan::uid(pod)).collect();
        names.sort_unstable();
        names.join(" ")
    };
    let (action, outcome) = match &sync.action {
        Action::Nothing => (String::new(), Outcome::default()),
        Action::Create(new) => {
            let indexes: Vec<String> = new.iter().map(|index| index.map_or("-".into(), |index| index.to_string())).collect();
            (format!("create {}", indexes.join(" ")), Outcome { created: new.len(), ..Outcome::default() })
        }
        Action::Delete(gone) => (format!("delete {}", names(gone)), Outcome { deleted: gone.len(), ..Outcome::default() }),
        Action::End(gone) => (format!("end {}", names(gone)), Outcome { deleted: gone.len(), ..Outcome::default() }),
    };
    let again = sync.again.map(|wait: Duration| wait.as_secs());
    let mut tracking = track::track(&view, sync, &outcome);
    for pod in std::mem::take(&mut tracking.counted) {
        tracking.tracked.remove(plan::uid(&pod));
    }
    let (status, _) = track::finish(&tracking, &tracking.status.clone(), now);
    Done { action: action.trim().to_owned(), status, again }
}

#[test]
fn parallelism_and_completions() {
    let none: &[&str] = &[];
    for (spec, status, pods, action, counts) in [
        (json!({"parallelism": 2, "completions": 5}), json!({}), none, "create - -", "2/0/0/0/0"),
        (json!({"parallelism": 2, "completions": 5}), json!({"succeeded": 4}), none, "create -", "1/0/0/4/0"),
        (json!({"parallelism": 2}), json!({}), none, "create - -", "2/0/0/0/0"),
        (json!({"parallelism": 0, "completions": 5}), json!({}), none, "", "0/0/0/0/0"),
        (json!({"parallelism": 2, "completions": 5}), json!({}), &["a Running", "b Pending"], "", "2/0/0/0/0"),
        (json!({"parallelism": 1, "completions": 5}), json!({}), &["a Running", "b Pending"], "delete b", "1/0/1/0/0"),
        (json!({"parallelism": 2, "completions": 5}), json!({}), &["a Succeeded exit=0", "b Running"], "create -", "2/0/0/1/0"),
        // A job without a number of completions creates no more once a pod has succeeded.
        (json!({"parallelism": 3}), json!({}), &["a Succeeded exit=0", "b Running"], "", "1/0/0/1/0"),
        (json!({"parallelism": 2}), json!({}), &["a Running deleted", "b Running"], "", "1/0/1/0/1"),
    ] {
        let done = reconcile(&job(spec.clone(), status), pods);
        assert_eq!((done.action.as_str(), done.counts().as_str()), (action, counts), "{spec} {pods:?}");
    }
}

#[test]
fn a_pod_is_counted_once() {
    let spec = json!({"completions": 3, "parallelism": 3});
    // Being counted, with the finalizer still there, already without it, and gone.
    let status = json!({"succeeded": 1, "uncountedTerminatedPods": {"succeeded": ["a"], "failed": ["gone"]}});
    let done = reconcile(&job(spec.clone(), status.clone()), &["a Succeeded exit=0", "b Running"]);
    assert_eq!((done.action.as_str(), done.counts().as_str()), ("", "1/0/0/2/1"));
    let done = reconcile(&job(spec.clone(), status), &["a Succeeded exit=0 untracked", "b Running"]);
    assert_eq!((done.action.as_str(), done.counts().as_str()), ("", "1/0/0/2/1"));
    let done = reconcile(&job(spec, json!({"succeeded": 2})), &["a Succeeded exit=0 untracked", "b Running"]);
    assert_eq!((done.action.as_str(), done.counts().as_str()), ("", "1/0/0/2/0"));
}

#[test]
fn the_finalizer_goes_after_the_count_is_written() {
    let (untracked, now) = (HashSet::new(), Timestamp::from_second(NOW).unwrap());
    let (job, pods) = (job(json!({"completions": 1}), json!({})), [pod("a Succeeded exit=0")]);
    let spec = job.spec.as_ref().unwrap();
    let view = View { job: &job, spec, pods: &pods, untracked: &untracked, failures: Failures::default(), is_fresh: true, now };
    let tracking = track::track(&view, plan::observe(&view), &Outcome::default());
    let uncounted = tracking.status.uncounted_terminated_pods.clone().unwrap();
    assert_eq!((uncounted.succeeded, tracking.status.succeeded), (Some(vec!["a".to_owned()]), None));
    assert_eq!(tracking.counted, pods);
    // The finalizer could not be removed: neither is it counted, nor does the job end.
    let (status, finished) = track::finish(&tracking, &tracking.status, now);
    assert_eq!((status.succeeded, finished), (None, None));
}

#[test]
fn the_end() {
    let running = json!({"completions": 2, "parallelism": 2, "activeDeadlineSeconds": 100});
    let policy = json!({"completions": 2, "podFailurePolicy": {"rules": [
        {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [42]}}]}});
    let restarting = json!({"backoffLimit": 2, "template": {"spec": {"restartPolicy": "OnFailure"}}});
    let criteria = json!([{"type": "SuccessCriteriaMet", "status": "True", "reason": "SuccessPolicy"}]);
    let target = json!([{"type": "FailureTarget", "status": "True", "reason": "DeadlineExceeded"}]);
    let (ended, limit) = ("SuccessCriteriaMet=CompletionsReached", "FailureTarget=BackoffLimitExceeded");
    for (spec, status, pods, action, conditions, counts) in [
        (
            &running,
            json!({"startTime": at(-9)}),
            vec!["a Succeeded exit=0", "b Succeeded exit=0"],
            "",
            vec![ended, "Complete=CompletionsReached"],
            "0/0/0/2/0",
        ),
        (
            &running,
            json!({"startTime": at(-100)}),
            vec!["a Running", "b Running"],
            "end a b",
            vec!["FailureTarget=DeadlineExceeded"],
            "0/0/2/0/2",
        ),
        (
            &running,
            json!({"startTime": at(-100)}),
            vec![],
            "end",
            vec!["FailureTarget=DeadlineExceeded", "Failed=DeadlineExceeded"],
            "0/0/0/0/0",
        ),
        (
            &json!({"backoffLimit": 1, "completions": 1}),
            json!({"failed": 1}),
            vec!["a Failed exit=1"],
            "end",
            vec![limit, "Failed=BackoffLimitExceeded"],
            "0/0/0/0/2",
        ),
        (&json!({"backoffLimit": 1, "completions": 1}), json!({}), vec!["a Failed exit=1"], "", vec![], "0/0/0/0/1"),
        (&restarting, json!({}), vec!["a Running restarts=2"], "end a", vec![limit], "0/0/1/0/1"),
        (&restarting, json!({}), vec!["a Running restarts=1"], "", vec![], "1/0/0/0/0"),
        (
            &policy,
            json!({}),
            vec!["a Failed exit=42"],
            "end",
            vec!["FailureTarget=PodFailurePolicy", "Failed=PodFailurePolicy"],
            "0/0/0/0/1",
        ),
        (&policy, json!({}), vec!["a Failed exit=1"], "", vec![], "0/0/0/0/1"),
        // The pods that were being stopped are gone.
        (
            &running,
            json!({"conditions": criteria, "succeeded": 1}),
            vec![],
            "end",
            vec!["SuccessCriteriaMet=SuccessPolicy", "Complete=SuccessPolicy"],
            "0/0/0/1/0",
        ),
        (
            &running,
            json!({"conditions": target, "failed": 1}),
            vec!["a Running deleted untracked"],
            "end",
            vec!["FailureTarget=DeadlineExceeded"],
            "0/0/1/0/1",
        ),
        (
            &running,
            json!({"conditions": target, "failed": 1}),
            vec![],
            "end",
            vec!["FailureTarget=DeadlineExceeded", "Failed=DeadlineExceeded"],
            "0/0/0/0/1",
        ),
    ] {
        let done = reconcile(&job(spec.clone(), status), &pods);
        assert_eq!(done.action, action, "{spec} {pods:?}");
        assert_eq!(done.conditions(), conditions, "{spec} {pods:?}");
        assert_eq!(done.counts(), counts, "{spec} {pods:?}");
        assert_eq!(done.status.completion_time.is_some(), conditions.iter().any(|it| it.starts_with("Complete")));
    }
}

#[test]
fn nothing_is_decided_on_a_stale_cache() {
    let job = job(json!({"completions": 1, "backoffLimit": 0}), json!({}));
    for pods in [&[] as &[&str], &["a Failed exit=1", "b Running"], &["a Succeeded exit=0"]] {
        let done = reconcile_after(&job, pods, Failures::default(), false);
        assert_eq!((done.action.as_str(), done.conditions().len()), ("", 0), "{pods:?}");
    }
}

#[test]
fn suspend_and_resume() {
    let (suspended, started) = (json!({"completions": 2, "suspend": true}), json!({"startTime": at(-500)}));
    let done = reconcile(&job(suspended.clone(), json!({})), &[]);
    assert_eq!((done.action.as_str(), done.status.start_time.is_none()), ("", true));
    assert_eq!(done.conditions(), ["Suspended=JobSuspended"]);
    let done = reconcile(&job(suspended, started), &["a Running", "b Failed exit=1"]);
    assert_eq!((done.action.as_str(), done.counts().as_str()), ("delete a", "0/0/1/0/1"));
    let condition = json!([{"type": "Suspended", "status": "True", "reason": "JobSuspended", "message": "Job suspended"}]);
    let status = json!({"startTime": at(-500), "conditions": condition});
    let done = reconcile(&job(json!({"completions": 2, "activeDeadlineSeconds": 900}), status), &[]);
    assert_eq!((done.action.as_str(), done.conditions()), ("create -", vec!["Suspended=JobResumed".to_owned()]));
    assert_eq!(done.status.start_time.unwrap().0.as_second(), NOW);
}

#[test]
fn failures_delay_new_pods() {
    let done = reconcile(&job(json!({"completions": 2}), json!({})), &["a Failed ended=-3"]);
    assert_eq!((done.action.as_str(), done.again, done.counts().as_str()), ("", Some(7), "0/0/0/0/1"));
    let before = Failures::default().after(&[], &[pod("x Failed ended=-30"), pod("y Failed ended=-20")]);
    let spec = json!({"completions": 2, "activeDeadlineSeconds": 90});
    let done = reconcile_after(&job(spec.clone(), json!({"startTime": at(-80), "failed": 2})), &[], before, true);
    assert_eq!((done.action.as_str(), done.again), ("create -", Some(10)));
    let done = reconcile_after(&job(spec, json!({"failed": 2})), &["z Failed ended=-5"], before, true);
    assert_eq!((done.action.as_str(), done.again), ("", Some(35)));
}

#[test]
fn pods_by_index() {
    let indexed = |more: Value| {
        let mut spec = json!({"completionMode": "Indexed", "completions": 4, "parallelism": 3});
        json_patch::merge(&mut spec, &more);
        spec
    };
    for (spec, status, pods, action, completed) in [
        (indexed(json!({})), json!({}), vec![], "create 0 1 2", ""),
        (indexed(json!({})), json!({}), vec!["a Running 1", "b Running 0"], "create 2", ""),
        (indexed(json!({})), json!({"completedIndexes": "0,2"}), vec!["a Running 1"], "create 3", "0,2"),
        (indexed(json!({})), json!({}), vec!["a Succeeded 1", "b Succeeded 3", "c Running 0"], "create 2", "1,3"),
        // Pods with the index of another, with one that is too high, and without one, go.
        (indexed(json!({})), json!({}), vec!["a Running 1", "b Pending 1", "c Running 9", "d Running"], "delete b c d", ""),
        // Scaled down with its parallelism: an elastic job.
        (indexed(json!({"completions": 2, "parallelism": 2})), json!({"completedIndexes": "0-2"}), vec![], "", "0,1"),
        (indexed(json!({"podReplacementPolicy": "Failed"})), json!({}), vec!["a Running 0 deleted"], "create 1 2", ""),
        (indexed(json!({})), json!({}), vec!["a Running 0 deleted"], "", ""),
        (
            indexed(json!({"successPolicy": {"rules": [{"succeededIndexes": "1"}]}})),
            json!({}),
            vec!["a Succeeded 1", "b Running 0"],
            "end b",
            "1",
        ),
    ] {
        let done = reconcile(&job(spec.clone(), status), &pods);
        assert_eq!(done.action, action, "{spec} {pods:?}");
        assert_eq!(done.status.completed_indexes.as_deref().unwrap_or(""), completed, "{spec} {pods:?}");
    }
}

#[test]
fn failures_by_index() {
    let limited = |limit: i32, more: Value| {
        let mut spec = json!({"completionMode": "Indexed", "completions": 3, "parallelism": 3, "backoffLimitPerIndex": limit});
        json_patch::merge(&mut spec, &more);
        spec
    };
    let fail_index = json!({"podFailurePolicy": {"rules": [
        {"action": "FailIndex", "onExitCodes": {"operator": "In", "values": [9]}}]}});
    for (spec, pods, action, failed, again) in [
        (limited(0, json!({})), vec!["a Failed 1 ended=-99", "b Running 0"], "create 2", "1", None),
        (limited(1, json!({})), vec!["a Failed 1 ended=-99", "b Running 0", "c Running 2"], "create 1", "", None),
        // The wait for index 1 does not hold up index 2.
        (limited(1, json!({})), vec!["a Failed 1 ended=-4", "b Running 0"], "create 2", "", Some(6)),
        (limited(2, json!({})), vec!["a Failed 1 ended=-4 failures=1", "b Running 0", "c Running 2"], "", "", Some(16)),
        (limited(5, fail_index.clone()), vec!["a Failed 1 exit=9", "b Running 0", "c Running 2"], "", "1", None),
        (limited(0, json!({"maxFailedIndexes": 0})), vec!["a Failed 1 exit=1", "b Running 0"], "end b", "1", None),
        (limited(0, json!({})), vec!["a Failed 1 exit=1", "b Succeeded 0", "c Succeeded 2"], "end", "1", None),
    ] {
        let done = reconcile(&job(spec.clone(), json!({})), &pods);
        assert_eq!((done.action.as_str(), done.again), (action, again), "{spec} {pods:?}");
        assert_eq!(done.status.failed_indexes.as_deref(), Some(failed), "{spec} {pods:?}");
    }
    let done = reconcile(&job(limited(0, json!({})), json!({})), &["a Failed 1 exit=1", "b Succeeded 0", "c Succeeded 2"]);
    assert_eq!(done.conditions(), ["FailureTarget=FailedIndexes", "Failed=FailedIndexes"]);
}

#[test]
fn ignored_failures_do_not_count() {
    let policy = json!({"rules": [{"action": "Ignore", "onExitCodes": {"operator": "In", "values": [7]}}]});
    let spec = json!({"completions": 1, "backoffLimit": 0, "podFailurePolicy": policy});
    let done = reconcile(&job(spec, json!({})), &["a Failed exit=7"]);
    assert_eq!((done.counts().as_str(), done.conditions().len(), done.again), ("0/0/0/0/0", 0, Some(10)));
}

#[test]
fn a_pod_says_its_index() {
    assert_eq!(["a Running", "a Running 3", "a Running -1"].map(|words| indexes::of(&pod(words))), [None, Some(3), None]);
    let ended = job(json!({}), json!({"conditions": [{"type": "Complete", "status": "True"}]}));
    assert!(conditions::ending(&ended).is_some());
}
