//! What the failure of a pod means for its job: `podFailurePolicy`, and the counts of failures of an index.
//! It follows upstream's `pod_failure_policy.go` and the parts of `indexed_job_utils.go` about failures.

use k8s_openapi::api::batch::v1::{Job, PodFailurePolicy, PodFailurePolicyOnExitCodesRequirement, PodFailurePolicyRule};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodStatus};

use super::super::pods;

/// Annotation of a pod: how often its index failed before.
pub(super) const FAILURE_COUNT: &str = "batch.kubernetes.io/job-index-failure-count";
/// Annotation of a pod: how often its index failed before in a way that the policy ignores.
pub(super) const IGNORED_FAILURE_COUNT: &str = "batch.kubernetes.io/job-index-ignored-failure-count";

/// What the rules say about a failed pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It counts towards the limits.
    Count,
    /// It does not count.
    Ignore,
    /// Its index has failed.
    FailIndex,
    /// The job has failed; with the message.
    FailJob(String),
}

/// Judges a failed pod: the first rule that matches decides.
pub(super) fn judge(policy: Option<&PodFailurePolicy>, pod: &Pod) -> Verdict {
    let rules = policy.into_iter().flat_map(|policy| &policy.rules).enumerate();
    rules.filter_map(|(index, rule)| matched(rule, index, pod)).next().unwrap_or(Verdict::Count)
}

fn matched(rule: &PodFailurePolicyRule, index: usize, pod: &Pod) -> Option<Verdict> {
    let status = pod.status.as_ref()?;
    let (namespace, name) = (pod.metadata.namespace.as_deref().unwrap_or(""), pod.metadata.name.as_deref().unwrap_or(""));
    let what = if let Some(codes) = &rule.on_exit_codes {
        let (container, code) = failed_container(status, codes)?;
        format!("Container {container} for pod {namespace}/{name} failed with exit code {code}")
    } else {
        let patterns = rule.on_pod_conditions.as_ref()?;
        let is_wanted = |kind: &str, status: &str| {
            patterns.iter().any(|pattern| pattern.type_ == kind && pattern.status.as_deref().unwrap_or("True") == status)
        };
        let condition = status.conditions.iter().flatten().find(|condition| is_wanted(&condition.type_, &condition.status))?;
        format!("Pod {namespace}/{name} has condition {}", condition.type_)
    };
    match rule.action.as_str() {
        "Ignore" => Some(Verdict::Ignore),
        "FailIndex" => Some(Verdict::FailIndex),
        "Count" => Some(Verdict::Count),
        "FailJob" => Some(Verdict::FailJob(format!("{what} matching FailJob rule at index {index}"))),
        _ => None,
    }
}

/// The first container that ended with a code that the requirement names; init containers come last.
fn failed_container<'a>(status: &'a PodStatus, wanted: &PodFailurePolicyOnExitCodesRequirement) -> Option<(&'a str, i32)> {
    let all = status.container_statuses.iter().chain(&status.init_container_statuses).flatten();
    all.filter_map(|container| Some((container.name.as_str(), exit_code(container)?)))
        .filter(|(name, _)| wanted.container_name.as_deref().is_none_or(|only| only == *name))
        .find(|(_, code)| *code != 0 && wanted.values.contains(code) == (wanted.operator == "In"))
}

fn exit_code(container: &ContainerStatus) -> Option<i32> {
    Some(container.state.as_ref()?.terminated.as_ref()?.exit_code)
}

/// Whether a pod is replaced only once it has ended, and so counts as failed only then.
pub(super) fn only_replaces_failed(job: &Job) -> bool {
    let spec = job.spec.as_ref();
    spec.is_some_and(|spec| spec.pod_replacement_policy.as_deref() == Some("Failed") || spec.pod_failure_policy.is_some())
}

/// Whether the pod counts as failed. A pod that is being deleted does, since it may never say so itself, unless only failed pods
/// are replaced.
pub(super) fn is_failed(job: &Job, pod: &Pod) -> bool {
    let phase = pods::phase(pod);
    phase == "Failed" || !only_replaces_failed(job) && pod.metadata.deletion_timestamp.is_some() && phase != "Succeeded"
}

/// How often the index of a pod failed before it.
pub(super) fn count(pod: &Pod, annotation: &str) -> i32 {
    let text = pod.metadata.annotations.as_ref().and_then(|all| all.get(annotation));
    text.and_then(|text| text.parse().ok()).filter(|count| *count >= 0).unwrap_or(0)
}

/// How often the index of a pod failed before it, the ignored failures too.
pub(super) fn total_count(pod: &Pod) -> i32 {
    count(pod, FAILURE_COUNT).saturating_add(count(pod, IGNORED_FAILURE_COUNT))
}

/// Whether the failure of this pod fails its index.
pub(super) fn fails_index(job: &Job, limit: i32, pod: &Pod) -> bool {
    if !is_failed(job, pod) {
        return false;
    }
    match judge(job.spec.as_ref().and_then(|spec| spec.pod_failure_policy.as_ref()), pod) {
        Verdict::FailIndex => true,
        Verdict::Ignore => false,
        Verdict::Count | Verdict::FailJob(_) => count(pod, FAILURE_COUNT) >= limit,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(status: &Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"namespace": "a", "name": "p"}, "status": status})).unwrap()
    }

    fn exited(code: i32) -> Pod {
        pod(&json!({"phase": "Failed", "containerStatuses": [{"name": "main", "image": "", "imageID": "", "ready": false,
            "restartCount": 0, "state": {"terminated": {"exitCode": code}}}]}))
    }

    #[test]
    fn rules() {
        let policy = |rules: &Value| serde_json::from_value::<PodFailurePolicy>(json!({"rules": rules})).unwrap();
        let codes = policy(&json!([
            {"action": "FailJob", "onExitCodes": {"containerName": "main", "operator": "In", "values": [42, 43]}},
            {"action": "FailJob", "onExitCodes": {"containerName": "other", "operator": "In", "values": [1]}},
            {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            {"action": "FailIndex", "onExitCodes": {"operator": "In", "values": [7]}},
            {"action": "Count", "onExitCodes": {"operator": "NotIn", "values": [9]}},
            {"action": "Ignore", "onExitCodes": {"operator": "In", "values": [9]}},
        ]));
        let disrupted = pod(&json!({"phase": "Failed", "conditions": [{"type": "DisruptionTarget", "status": "True"}]}));
        let why = "Container main for pod a/p failed with exit code 43 matching FailJob rule at index 0";
        for (pod, verdict) in [
            (exited(43), Verdict::FailJob(why.into())),
            (exited(1), Verdict::Count),
            (exited(7), Verdict::FailIndex),
            (exited(9), Verdict::Ignore),
            (disrupted.clone(), Verdict::Ignore),
            (pod(&json!({"phase": "Failed"})), Verdict::Count),
        ] {
            assert_eq!(judge(Some(&codes), &pod), verdict);
        }
        let conditions = policy(&json!([{"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget"}]}]));
        let why = "Pod a/p has condition DisruptionTarget matching FailJob rule at index 0";
        assert_eq!(judge(Some(&conditions), &disrupted), Verdict::FailJob(why.into()));
        assert_eq!(judge(None, &exited(1)), Verdict::Count);
    }
}
