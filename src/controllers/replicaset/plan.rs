//! What a ReplicaSet needs: pure functions of the set and its pods.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::super::{owners, pods};
use super::kind::{Counts, Replicated};

/// Most pods that one reconcile creates or deletes.
const BURST: usize = 500;

/// What is to be done about the number of pods.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Action {
    Nothing,
    Create(usize),
    Delete(Vec<Arc<Pod>>),
}

/// Compares the active pods with the wanted number; `related` are the active pods of the owner's other sets too.
pub(super) fn manage(wanted: usize, active: &[Arc<Pod>], related: &[Arc<Pod>], now: Timestamp) -> Action {
    match active.len() {
        have if have < wanted => Action::Create((wanted - have).min(BURST)),
        have if have > wanted => {
            let chosen = pods::to_delete(active, related, (have - wanted).min(BURST), now);
            Action::Delete(chosen.into_iter().cloned().collect())
        }
        _ => Action::Nothing,
    }
}

/// Counts the pods of a set. Also says after how long the next ready pod becomes available, if one is waiting.
pub(super) fn count<K: Replicated>(set: &K, owned: &[Arc<Pod>], now: Timestamp) -> (Counts, Option<Duration>) {
    let template = set.template().and_then(|template| template.metadata.as_ref()).and_then(|meta| meta.labels.as_ref());
    let mut counts = Counts::default();
    let mut next = None;
    for pod in owned {
        if !pods::is_active(pod) {
            counts.terminating += usize::from(pod.metadata.deletion_timestamp.is_some() && !pods::has_ended(pod));
            continue;
        }
        counts.replicas += 1;
        counts.fully_labeled += usize::from(has_labels(&pod.metadata, template));
        match pods::until_available(pod, set.min_ready_seconds(), now) {
            None => continue,
            Some(Duration::ZERO) => counts.available += 1,
            Some(wait) => next = Some(next.map_or(wait, |next: Duration| next.min(wait))),
        }
        counts.ready += 1;
    }
    (counts, next)
}

fn has_labels(meta: &ObjectMeta, wanted: Option<&BTreeMap<String, String>>) -> bool {
    let has = |(key, value): (&String, &String)| meta.labels.as_ref().and_then(|labels| labels.get(key)) == Some(value);
    wanted.into_iter().flatten().all(has)
}

/// A new pod of a set.
pub(super) fn new_pod<K: Replicated>(set: &K, template: &PodTemplateSpec) -> Pod {
    let meta = set.metadata();
    let from = template.metadata.clone().unwrap_or_default();
    let metadata = ObjectMeta {
        generate_name: Some(format!("{}-", meta.name.as_deref().unwrap_or(""))),
        namespace: meta.namespace.clone(),
        labels: from.labels,
        annotations: from.annotations,
        finalizers: from.finalizers,
        owner_references: Some(vec![owners::controller_reference(set)]),
        ..ObjectMeta::default()
    };
    Pod { metadata, spec: template.spec.clone(), status: None }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::apps::v1::ReplicaSet;
    use serde_json::{Value, json};

    use super::*;

    fn pod(name: &str, status: &Value) -> Arc<Pod> {
        let value = json!({"metadata": {"name": name, "uid": name, "labels": {"app": "web"}}, "status": status});
        Arc::new(serde_json::from_value(value).unwrap())
    }

    #[test]
    fn number_of_pods() {
        let now = Timestamp::UNIX_EPOCH;
        let pending = pod("a", &json!({"phase": "Pending"}));
        let running = pod("b", &json!({"phase": "Running"}));
        let both = [running, Arc::clone(&pending)];
        assert_eq!(manage(2, &both, &both, now), Action::Nothing);
        assert_eq!(manage(5, &both, &both, now), Action::Create(3));
        assert_eq!(manage(900, &[], &[], now), Action::Create(500));
        assert_eq!(manage(1, &both, &both, now), Action::Delete(vec![pending]));
    }

    #[test]
    fn counts() {
        let set: ReplicaSet = serde_json::from_value(json!({"metadata": {"name": "web"}, "spec": {
            "selector": {}, "minReadySeconds": 10, "template": {"metadata": {"labels": {"app": "web"}}}}}))
        .unwrap();
        let now: Timestamp = "2026-01-01T00:00:20Z".parse().unwrap();
        let ready =
            |at: &str| json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": at}]});
        let owned = [
            pod("failed", &json!({"phase": "Failed"})),
            pod("starting", &json!({"phase": "Pending"})),
            pod("ready", &ready("2026-01-01T00:00:15Z")),
            pod("available", &ready("2026-01-01T00:00:01Z")),
        ];
        let (counts, next) = count(&set, &owned, now);
        assert_eq!(counts, Counts { replicas: 3, fully_labeled: 3, ready: 2, available: 1, terminating: 0 });
        assert_eq!(next, Some(Duration::from_secs(5)));
    }
}
