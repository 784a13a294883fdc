//! Checks of the status of a job (upstream `ValidateJobUpdateStatus`): other controllers write it too, and clients rely on it.

use std::collections::HashSet;

use k8s_openapi::api::batch::v1::{Job, JobStatus};
use serde_json::Value;

use super::job_policy::indexes;
use crate::api::field::{FieldError, Path};
use crate::kinds::check::{Errors, not_negative, same};

fn holds(status: &JobStatus, kind: &str) -> bool {
    status.conditions.iter().flatten().any(|condition| condition.type_ == kind && condition.status == "True")
}

/// Checks a changed status. Most rules look only at what changed, so that a status that is wrong already can still be written.
pub(super) fn check(new: &Job, old: &Job) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let path = Path::new("status");
    let (before, after) = (old.status.clone().unwrap_or_default(), new.status.clone().unwrap_or_default());
    let counts = [("active", after.active), ("succeeded", after.succeeded), ("failed", after.failed)];
    for (name, count) in counts.into_iter().chain([("ready", after.ready), ("terminating", after.terminating)]) {
        not_negative(&mut errors, &path.child(name), i64::from(count.unwrap_or(0)));
    }
    uncounted(&mut errors, &path.child("uncountedTerminatedPods"), &after);
    conditions(&mut errors, &path.child("conditions"), &after, &before);
    ended(&mut errors, &path, new, &after, &before);
    times(&mut errors, &path, &after, &before);
    numbers(&mut errors, &path, new, (&after, &before));
    errors
}

fn uncounted(errors: &mut Errors, path: &Path, status: &JobStatus) {
    let lists = status.uncounted_terminated_pods.clone().unwrap_or_default();
    let mut seen = HashSet::new();
    for (name, uids) in [("succeeded", lists.succeeded), ("failed", lists.failed)] {
        for (index, uid) in uids.into_iter().flatten().enumerate() {
            let at = path.child(name).index(index);
            if uid.is_empty() {
                errors.push(FieldError::invalid(at, "", "must not be empty"));
            } else if !seen.insert(uid.clone()) {
                errors.push(FieldError::duplicate(at, uid));
            }
        }
    }
}

fn conditions(errors: &mut Errors, path: &Path, after: &JobStatus, before: &JobStatus) {
    let became = |kind: &str| holds(after, kind) && !holds(before, kind);
    let mut refuse = |why: String| {
        let value = serde_json::to_value(&after.conditions).unwrap_or_default();
        errors.push(FieldError::invalid(path.clone(), value, why));
    };
    for kind in ["Failed", "Complete", "FailureTarget", "SuccessCriteriaMet"] {
        if holds(before, kind) && !holds(after, kind) {
            refuse(format!("cannot disable the terminal {kind}=True condition"));
        }
    }
    for (one, other) in [
        ("Complete", "Failed"),
        ("Complete", "FailureTarget"),
        ("SuccessCriteriaMet", "Failed"),
        ("SuccessCriteriaMet", "FailureTarget"),
    ] {
        if holds(after, one) && holds(after, other) && (became(one) || became(other)) {
            refuse(format!("cannot set {one}=True and {other}=true conditions"));
        }
    }
    for (last, first) in [("Complete", "SuccessCriteriaMet"), ("Failed", "FailureTarget")] {
        if became(last) && !holds(after, first) {
            refuse(format!("cannot set {last}=True condition without the {first}=true condition"));
        }
    }
}

/// A job that has ended has nothing left to do.
fn ended(errors: &mut Errors, path: &Path, job: &Job, after: &JobStatus, before: &JobStatus) {
    let is_finished = |status: &JobStatus| holds(status, "Complete") || holds(status, "Failed");
    if !is_finished(after) {
        return;
    }
    let changed = |same: bool| !same || !is_finished(before);
    if let Some(active) = after.active.filter(|active| *active > 0 && changed(after.active == before.active)) {
        errors.push(FieldError::invalid(path.child("active"), active, "active>0 is invalid for finished job"));
    }
    if let Some(left) = after.terminating.filter(|left| *left > 0 && changed(after.terminating == before.terminating)) {
        errors.push(FieldError::invalid(path.child("terminating"), left, "terminating>0 is invalid for finished job"));
    }
    let is_suspended = job.spec.as_ref().is_some_and(|spec| spec.suspend == Some(true));
    if after.start_time.is_none() && !is_suspended && changed(before.start_time.is_none()) {
        errors.push(FieldError::required(path.child("startTime"), "startTime is required for finished job"));
    }
    let lists = |status: &JobStatus| status.uncounted_terminated_pods.clone().unwrap_or_default();
    if !same(&lists(after), &Default::default()) && changed(same(&lists(after), &lists(before))) {
        let value = serde_json::to_value(lists(after)).unwrap_or_default();
        let why = "uncountedTerminatedPods needs to be empty for finished job";
        errors.push(FieldError::invalid(path.child("uncountedTerminatedPods"), value, why));
    }
}

fn times(errors: &mut Errors, path: &Path, after: &JobStatus, before: &JobStatus) {
    let at = path.child("completionTime");
    let is_complete = holds(after, "Complete");
    let value = serde_json::to_value(&after.completion_time).unwrap_or(Value::Null);
    let is_new = after.completion_time != before.completion_time || is_complete != holds(before, "Complete");
    match &after.completion_time {
        None if is_complete && is_new => {
            errors.push(FieldError::required(at, "completionTime is required for Complete jobs"));
        }
        Some(_) if !is_complete && is_new => {
            let why = "cannot set completionTime when there is no Complete=True condition";
            errors.push(FieldError::invalid(at, value, why));
        }
        Some(_) if before.completion_time.is_some() && after.completion_time != before.completion_time => {
            errors.push(FieldError::invalid(at, value, "completionTime cannot be mutated"));
        }
        Some(end) if is_new && after.start_time.as_ref().is_some_and(|start| end.0.as_second() < start.0.as_second()) => {
            errors.push(FieldError::invalid(at, value, "completionTime cannot be set before startTime"));
        }
        _ => {}
    }
}

fn numbers(errors: &mut Errors, path: &Path, job: &Job, (after, before): (&JobStatus, &JobStatus)) {
    let spec = job.spec.clone().unwrap_or_default();
    let is_indexed = spec.completion_mode.as_deref() == Some("Indexed");
    let may_shrink = is_indexed && spec.completions == spec.parallelism;
    let counters = [("succeeded", after.succeeded, before.succeeded, !may_shrink), ("failed", after.failed, before.failed, true)];
    for (name, now, then, is_kept) in counters {
        if is_kept && now.unwrap_or(0) < then.unwrap_or(0) {
            let why = format!("cannot decrease the {name} counter");
            errors.push(FieldError::invalid(path.child(name), now.unwrap_or(0), why));
        }
    }
    let lists = [
        ("completedIndexes", &after.completed_indexes, &before.completed_indexes),
        ("failedIndexes", &after.failed_indexes, &before.failed_indexes),
    ];
    for (name, now, then) in lists {
        let Some(text) = now.as_deref().filter(|text| now != then && !text.is_empty()) else { continue };
        let (at, is_failed) = (path.child(name), name == "failedIndexes");
        if !is_indexed && !is_failed {
            errors.push(FieldError::invalid(at, text, "cannot set non-empty completedIndexes when non-indexed completion mode"));
        } else if is_failed && spec.backoff_limit_per_index.is_none() {
            errors.push(FieldError::invalid(at, text, "cannot set non-null failedIndexes when backoffLimitPerIndex is null"));
        } else if let Err(why) = indexes(text, spec.completions.unwrap_or(0)) {
            errors.push(FieldError::invalid(at, text, format!("error parsing {name}: {why}")));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn errors(old: Value, new: Value) -> Vec<String> {
        let job = |status: Value| -> Job {
            let spec = json!({"completions": 3, "parallelism": 1, "template": {}});
            serde_json::from_value(json!({"metadata": {}, "spec": spec, "status": status})).unwrap()
        };
        let plain = |error: &FieldError| format!("{}: {}", error.path, error.detail);
        check(&job(new), &job(old)).iter().map(plain).collect()
    }

    #[test]
    fn an_end_is_an_end() {
        let condition = |kind: &str| json!({"type": kind, "status": "True"});
        let (start, end) = ("2026-01-01T00:00:00Z", "2026-01-01T00:01:00Z");
        let both = json!([condition("SuccessCriteriaMet"), condition("Complete")]);
        let complete = json!({"startTime": start, "completionTime": end, "succeeded": 3, "conditions": both});
        assert!(errors(json!({"startTime": start}), complete.clone()).is_empty());
        assert_eq!(
            errors(json!({"startTime": start}), json!({"active": 1, "conditions": [condition("Complete")]})),
            [
                "status.conditions: cannot set Complete=True condition without the SuccessCriteriaMet=true condition",
                "status.active: active>0 is invalid for finished job",
                "status.startTime: startTime is required for finished job",
                "status.completionTime: completionTime is required for Complete jobs",
            ]
        );
        assert_eq!(
            errors(complete, json!({"startTime": start, "succeeded": 2, "conditions": [condition("SuccessCriteriaMet")]})),
            [
                "status.conditions: cannot disable the terminal Complete=True condition",
                "status.succeeded: cannot decrease the succeeded counter"
            ]
        );
        let lists = json!({"uncountedTerminatedPods": {"succeeded": ["a", "a"]}, "completedIndexes": "1"});
        assert_eq!(
            errors(json!({}), lists),
            [
                "status.uncountedTerminatedPods.succeeded[1]: ",
                "status.completedIndexes: cannot set non-empty completedIndexes when non-indexed completion mode",
            ]
        );
    }
}
