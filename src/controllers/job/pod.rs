//! The pods that a job makes: from its template, with the tracking finalizer, and for an Indexed job with their index.

use std::collections::BTreeMap;

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Container, EnvVar, EnvVarSource, ObjectFieldSelector, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::super::owners;
use super::failure::{self, FAILURE_COUNT, IGNORED_FAILURE_COUNT, Verdict};
use super::indexes::COMPLETION_INDEX;

/// The finalizer by which a pod stays until it is counted.
pub(super) const TRACKING: &str = "batch.kubernetes.io/job-tracking";
const ENV_INDEX: &str = "JOB_COMPLETION_INDEX";
/// What is left for the prefix when a name is generated.
const PREFIX_MAX: usize = 58;

/// Whether the pod waits to be counted.
pub(super) fn is_tracked(pod: &Pod) -> bool {
    pod.metadata.finalizers.iter().flatten().any(|finalizer| finalizer == TRACKING)
}

/// A new pod of a job; with its index and the failed pod that it replaces, if it has one and that is counted by index.
pub(super) fn new(job: &Job, index: Option<i32>, replaced: Option<&Pod>) -> Pod {
    let spec = job.spec.clone().unwrap_or_default();
    let meta = spec.template.metadata.unwrap_or_default();
    let name = job.metadata.name.as_deref().unwrap_or("");
    let mut finalizers = meta.finalizers.unwrap_or_default();
    if finalizers.iter().all(|finalizer| finalizer != TRACKING) {
        finalizers.push(TRACKING.to_owned());
    }
    let metadata = ObjectMeta {
        generate_name: Some(prefix(name, index)),
        namespace: job.metadata.namespace.clone(),
        labels: meta.labels,
        annotations: meta.annotations,
        finalizers: Some(finalizers),
        owner_references: Some(vec![owners::controller_reference(job)]),
        ..ObjectMeta::default()
    };
    let mut pod = Pod { metadata, spec: spec.template.spec, status: None };
    if let Some(index) = index {
        let per_index = spec.backoff_limit_per_index.is_some();
        number(&mut pod, name, index);
        if per_index {
            let annotations = pod.metadata.annotations.get_or_insert_default();
            count_failures(annotations, job, replaced);
        }
    }
    pod
}

fn prefix(name: &str, index: Option<i32>) -> String {
    let Some(index) = index else { return format!("{name}-") };
    let end = format!("-{index}-");
    format!("{}{end}", &name[..name.len().min(PREFIX_MAX - end.len())])
}

/// Tells a pod its index: in an annotation, a label, the host name and the environment.
fn number(pod: &mut Pod, job: &str, index: i32) {
    for map in [&mut pod.metadata.annotations, &mut pod.metadata.labels] {
        map.get_or_insert_default().insert(COMPLETION_INDEX.to_owned(), index.to_string());
    }
    let Some(spec) = &mut pod.spec else { return };
    spec.hostname = Some(format!("{job}-{index}"));
    spec.init_containers.iter_mut().flatten().chain(&mut spec.containers).for_each(add_variable);
}

fn add_variable(container: &mut Container) {
    let env = container.env.get_or_insert_default();
    if env.iter().any(|variable| variable.name == ENV_INDEX) {
        return;
    }
    let field_path = format!("metadata.labels['{COMPLETION_INDEX}']");
    let field_ref = Some(ObjectFieldSelector { field_path, ..ObjectFieldSelector::default() });
    let value_from = Some(EnvVarSource { field_ref, ..EnvVarSource::default() });
    env.push(EnvVar { name: ENV_INDEX.to_owned(), value_from, ..EnvVar::default() });
}

fn count_failures(annotations: &mut BTreeMap<String, String>, job: &Job, replaced: Option<&Pod>) {
    let policy = job.spec.as_ref().and_then(|spec| spec.pod_failure_policy.as_ref());
    let (counted, ignored) = replaced.map_or((0, 0), |pod| {
        let (counted, ignored) = (failure::count(pod, FAILURE_COUNT), failure::count(pod, IGNORED_FAILURE_COUNT));
        match failure::judge(policy, pod) {
            Verdict::Ignore => (counted, ignored.saturating_add(1)),
            _ => (counted.saturating_add(1), ignored),
        }
    });
    annotations.insert(FAILURE_COUNT.to_owned(), counted.to_string());
    if ignored > 0 {
        annotations.insert(IGNORED_FAILURE_COUNT.to_owned(), ignored.to_string());
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn job(name: &str, more: Value) -> Job {
        let mut job = json!({"metadata": {"name": name, "namespace": "a", "uid": "u"}, "spec": {
            "template": {"metadata": {"labels": {"app": "x"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
        json_patch::merge(&mut job["spec"], &more);
        serde_json::from_value(job).unwrap()
    }

    #[test]
    fn numbered_and_not() {
        let plain = new(&job("work", json!({})), None, None);
        assert_eq!(plain.metadata.generate_name.as_deref(), Some("work-"));
        assert_eq!(plain.metadata.finalizers, Some(vec![TRACKING.to_owned()]));
        assert_eq!(plain.metadata.owner_references.as_ref().map(|owners| owners[0].uid.as_str()), Some("u"));
        let pod = serde_json::to_value(new(&job("work", json!({})), Some(3), None)).unwrap();
        assert_eq!(pod["metadata"]["generateName"], "work-3-");
        assert_eq!(pod["metadata"]["labels"], json!({"app": "x", "batch.kubernetes.io/job-completion-index": "3"}));
        assert_eq!(pod["spec"]["hostname"], "work-3");
        assert_eq!(
            pod["spec"]["containers"][0]["env"],
            json!([{"name": "JOB_COMPLETION_INDEX", "valueFrom": {"fieldRef": {
                "fieldPath": "metadata.labels['batch.kubernetes.io/job-completion-index']"}}}])
        );
        let long = new(&job(&"x".repeat(63), json!({})), Some(12), None);
        assert_eq!(long.metadata.generate_name, Some(format!("{}-12-", "x".repeat(54))));
    }

    #[test]
    fn failures_of_an_index_go_on() {
        let job = job("work", json!({"backoffLimitPerIndex": 2}));
        let first = new(&job, Some(0), None);
        let third = new(&job, Some(0), Some(&new(&job, Some(0), Some(&first))));
        let count = |pod: &Pod| pod.metadata.annotations.as_ref().unwrap()[FAILURE_COUNT].clone();
        assert_eq!((count(&first), count(&third)), ("0".to_owned(), "2".to_owned()));
    }
}
