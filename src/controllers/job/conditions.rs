//! The conditions of a job: which it has, and what its success policy says.

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobCondition, JobStatus, SuccessPolicy};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::indexes::Indexes;

pub(in super::super) const COMPLETE: &str = "Complete";
pub(in super::super) const FAILED: &str = "Failed";
pub(super) const SUSPENDED: &str = "Suspended";
/// The job will fail; its pods are being stopped.
pub(super) const FAILURE_TARGET: &str = "FailureTarget";
/// The job will be complete; what pods it has left are being stopped.
pub(super) const SUCCESS_CRITERIA_MET: &str = "SuccessCriteriaMet";

/// The condition of this type, if it is True.
pub(in super::super) fn holding<'a>(status: Option<&'a JobStatus>, kind: &str) -> Option<&'a JobCondition> {
    let mut conditions = status?.conditions.iter().flatten();
    conditions.find(|condition| condition.type_ == kind && condition.status == "True")
}

/// The condition by which the job has ended: Complete or Failed.
pub(in super::super) fn ending(job: &Job) -> Option<&JobCondition> {
    let status = job.status.as_ref();
    holding(status, COMPLETE).or_else(|| holding(status, FAILED))
}

/// A new condition that is True.
pub(super) fn new(kind: &str, reason: &str, message: &str, now: Timestamp) -> JobCondition {
    let text = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
    JobCondition {
        type_: kind.to_owned(),
        status: "True".to_owned(),
        reason: text(reason),
        message: text(message),
        last_probe_time: Some(Time(now)),
        last_transition_time: Some(Time(now)),
    }
}

/// Puts a condition in the place of the one of its type. One that is not True is not added where there is none. Returns whether
/// anything changed.
pub(super) fn ensure(status: &mut JobStatus, condition: JobCondition) -> bool {
    let conditions = status.conditions.get_or_insert_default();
    let known = conditions.iter_mut().find(|known| known.type_ == condition.type_);
    let is_new = condition.status == "True";
    match known {
        Some(known) => {
            let same = known.status == condition.status && known.reason == condition.reason && known.message == condition.message;
            if !same {
                *known = condition;
            }
            !same
        }
        None => {
            conditions.extend(is_new.then_some(condition));
            is_new
        }
    }
}

/// The message of the first rule of the success policy that the succeeded indexes meet.
pub(super) fn met_success_rule(policy: Option<&SuccessPolicy>, completions: i32, succeeded: &Indexes) -> Option<String> {
    if succeeded.is_empty() {
        return None;
    }
    let mut rules = policy?.rules.iter();
    let index = rules.position(|rule| match &rule.succeeded_indexes {
        Some(wanted) => {
            let wanted = Indexes::parse(wanted, completions);
            let have = wanted.overlap(succeeded);
            !wanted.is_empty() && (have == wanted.total() || rule.succeeded_count.is_some_and(|count| have >= count))
        }
        None => rule.succeeded_count.is_some_and(|count| succeeded.total() >= count),
    })?;
    Some(format!("Matched rules at index {index}"))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn success_rules() {
        let check = |rules: Value, succeeded: &str| {
            let policy: SuccessPolicy = serde_json::from_value(json!({"rules": rules})).unwrap();
            met_success_rule(Some(&policy), 10, &Indexes::parse(succeeded, 10))
        };
        let at = |index: usize| Some(format!("Matched rules at index {index}"));
        assert_eq!(check(json!([{"succeededIndexes": "0-2"}]), "0,1"), None);
        assert_eq!(check(json!([{"succeededIndexes": "0-2"}]), "0-3"), at(0));
        assert_eq!(check(json!([{"succeededIndexes": "7"}, {"succeededIndexes": "0-2", "succeededCount": 2}]), "0,2"), at(1));
        assert_eq!(check(json!([{"succeededCount": 3}]), "1,5"), None);
        assert_eq!(check(json!([{"succeededCount": 3}]), "1,5,6"), at(0));
        assert_eq!(check(json!([{"succeededCount": 0}]), ""), None);
    }

    #[test]
    fn one_of_a_type() {
        let now = Timestamp::UNIX_EPOCH;
        let mut status = JobStatus::default();
        let resumed = JobCondition { status: "False".into(), ..new(SUSPENDED, "JobResumed", "Job resumed", now) };
        assert!(!ensure(&mut status, resumed.clone()));
        assert!(ensure(&mut status, new(SUSPENDED, "JobSuspended", "Job suspended", now)));
        assert!(!ensure(&mut status, new(SUSPENDED, "JobSuspended", "Job suspended", now)));
        assert!(ensure(&mut status, resumed.clone()));
        assert_eq!(status.conditions, Some(vec![resumed]));
    }
}
