//! The ReplicaSets of a Deployment: which is the new one, revisions, annotations, the template hash.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use serde_json::{Map, Value, json};

use super::super::{history, owners};
use super::strategy;

pub(super) const HASH_LABEL: &str = "pod-template-hash";
pub(super) const REVISION: &str = "deployment.kubernetes.io/revision";
const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
const MAX: &str = "deployment.kubernetes.io/max-replicas";
/// Longest revision history kept, in bytes.
const HISTORY_BYTES: usize = 2_000;
/// Annotations of a Deployment that its ReplicaSets do not get.
const NOT_COPIED: &[&str] = &[
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    REVISION_HISTORY,
    DESIRED,
    MAX,
    "deprecated.deployment.rollback.to",
];

/// A ReplicaSet with the changes that are planned for it.
#[derive(Debug, Clone)]
pub(super) struct Set {
    pub(super) object: Arc<ReplicaSet>,
    pub(super) replicas: i32,
    annotations: BTreeMap<String, String>,
    min_ready_seconds: Option<i32>,
    /// Whether it is yet to be created.
    pub(super) is_planned: bool,
}

impl Set {
    pub(super) fn existing(object: Arc<ReplicaSet>) -> Self {
        let (spec, annotations) = (object.spec.as_ref(), object.metadata.annotations.clone().unwrap_or_default());
        let (replicas, min_ready_seconds) =
            (spec.and_then(|spec| spec.replicas).unwrap_or(1), spec.and_then(|spec| spec.min_ready_seconds));
        Self { object, replicas, annotations, min_ready_seconds, is_planned: false }
    }

    /// The set for the present template of a Deployment, not created yet.
    pub(super) fn planned(deployment: &Deployment) -> Self {
        let object = Arc::new(new_object(deployment));
        Self { object, replicas: 0, annotations: BTreeMap::new(), min_ready_seconds: None, is_planned: true }
    }

    pub(super) fn name(&self) -> &str {
        self.object.metadata.name.as_deref().unwrap_or("")
    }

    /// The number of pods wanted before this plan.
    pub(super) fn replicas_before(&self) -> i32 {
        if self.is_planned { 0 } else { self.object.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1) }
    }

    pub(super) fn available(&self) -> i32 {
        self.object.status.as_ref().and_then(|status| status.available_replicas).unwrap_or(0)
    }

    pub(super) fn revision(&self) -> i64 {
        self.annotations.get(REVISION).and_then(|revision| revision.parse().ok()).unwrap_or(0)
    }

    pub(super) fn desired_annotation(&self) -> Option<i32> {
        self.annotations.get(DESIRED)?.parse().ok()
    }

    pub(super) fn max_annotation(&self) -> Option<i32> {
        self.annotations.get(MAX)?.parse().ok()
    }

    /// Sets the number of pods, and what the Deployment wants at this time.
    pub(super) fn scale(&mut self, replicas: i32, deployment: &Deployment) {
        self.replicas = replicas;
        let desired = strategy::replicas(deployment);
        self.annotations.insert(DESIRED.to_owned(), desired.to_string());
        self.annotations.insert(MAX.to_owned(), (desired + strategy::max_surge(deployment)).to_string());
    }

    /// Carries revision, annotations and minReadySeconds over from the Deployment: `SetNewReplicaSetAnnotations`.
    pub(super) fn follow(&mut self, deployment: &Deployment, revision: i64) {
        for (key, value) in deployment.metadata.annotations.iter().flatten() {
            if !NOT_COPIED.contains(&key.as_str()) {
                self.annotations.insert(key.clone(), value.clone());
            }
        }
        let before = self.revision();
        if before < revision {
            self.annotations.insert(REVISION.to_owned(), revision.to_string());
            if before > 0 {
                self.remember(before);
            }
        }
        self.min_ready_seconds = deployment.spec.as_ref().and_then(|spec| spec.min_ready_seconds);
    }

    fn remember(&mut self, revision: i64) {
        let history = self.annotations.entry(REVISION_HISTORY.to_owned()).or_default();
        if !history.is_empty() {
            history.push(',');
        }
        history.push_str(&revision.to_string());
        while history.len() > HISTORY_BYTES {
            match history.find(',') {
                Some(comma) => drop(history.drain(..=comma)),
                None => history.clear(),
            }
        }
    }

    /// The merge patch that makes the planned changes, if there are any.
    pub(super) fn patch(&self) -> Option<Value> {
        let (mut spec, before) = (Map::new(), self.object.metadata.annotations.as_ref());
        if self.replicas != self.replicas_before() {
            spec.insert("replicas".to_owned(), json!(self.replicas));
        }
        if self.min_ready_seconds.unwrap_or(0) != self.object.spec.as_ref().and_then(|spec| spec.min_ready_seconds).unwrap_or(0) {
            spec.insert("minReadySeconds".to_owned(), json!(self.min_ready_seconds.unwrap_or(0)));
        }
        let changed = self.annotations.iter().filter(|(key, value)| before.and_then(|all| all.get(*key)) != Some(value));
        let annotations: Map<String, Value> = changed.map(|(key, value)| (key.clone(), json!(value))).collect();
        if spec.is_empty() && annotations.is_empty() {
            return None;
        }
        let mut meta = json!({"resourceVersion": self.object.metadata.resource_version, "uid": self.object.metadata.uid});
        if !annotations.is_empty() {
            meta["annotations"] = Value::Object(annotations);
        }
        let mut patch = json!({"metadata": meta});
        if !spec.is_empty() {
            patch["spec"] = Value::Object(spec);
        }
        Some(patch)
    }

    /// The object to create, for a planned set.
    pub(super) fn to_object(&self) -> ReplicaSet {
        let mut object = ReplicaSet::clone(&self.object);
        object.metadata.annotations = Some(self.annotations.clone());
        if let Some(spec) = &mut object.spec {
            spec.replicas = Some(self.replicas);
            spec.min_ready_seconds = self.min_ready_seconds;
        }
        object
    }
}

fn new_object(deployment: &Deployment) -> ReplicaSet {
    let spec = deployment.spec.clone().unwrap_or_default();
    let collisions = deployment.status.as_ref().and_then(|status| status.collision_count);
    let hash = template_hash(&spec.template, collisions);
    let mut template = spec.template;
    let labels = template.metadata.get_or_insert_default().labels.get_or_insert_default();
    labels.insert(HASH_LABEL.to_owned(), hash.clone());
    let labels = labels.clone();
    let mut selector = spec.selector;
    selector.match_labels.get_or_insert_default().insert(HASH_LABEL.to_owned(), hash.clone());
    let metadata = ObjectMeta {
        name: Some(format!("{}-{hash}", deployment.metadata.name.as_deref().unwrap_or(""))),
        namespace: deployment.metadata.namespace.clone(),
        labels: Some(labels),
        owner_references: Some(vec![owners::controller_reference(deployment)]),
        ..ObjectMeta::default()
    };
    let selector = LabelSelector { ..selector };
    let spec = ReplicaSetSpec { selector, template: Some(template), ..ReplicaSetSpec::default() };
    ReplicaSet { metadata, spec: Some(spec), status: None }
}

/// A stable hash of a template, in characters that are safe in names.
pub(super) fn template_hash(template: &PodTemplateSpec, collisions: Option<i32>) -> String {
    history::hash(serde_json::to_vec(template).unwrap_or_default(), collisions)
}

/// Whether two templates are the same but for the hash label.
pub(super) fn same_template(left: &PodTemplateSpec, right: &PodTemplateSpec) -> bool {
    left.spec == right.spec && strip(left) == strip(right)
}

fn strip(template: &PodTemplateSpec) -> ObjectMeta {
    let mut meta = template.metadata.clone().unwrap_or_default();
    meta.creation_timestamp = None;
    if let Some(labels) = &mut meta.labels {
        labels.remove(HASH_LABEL);
    }
    for map in [&mut meta.labels, &mut meta.annotations] {
        *map = map.take().filter(|map| !map.is_empty());
    }
    meta
}

/// Splits the sets of a Deployment into the one that has its template, the oldest if there are several, and the others; both
/// oldest first.
pub(super) fn split(deployment: &Deployment, sets: Vec<Arc<ReplicaSet>>) -> (Option<Set>, Vec<Set>) {
    let mut sets = sets;
    sets.sort_by(|left, right| {
        let key = |set: &ReplicaSet| (set.metadata.creation_timestamp.clone(), set.metadata.name.clone());
        key(left).cmp(&key(right))
    });
    let template = deployment.spec.as_ref().map(|spec| &spec.template);
    let is_new = |set: &Arc<ReplicaSet>| {
        let of_set = set.spec.as_ref().and_then(|spec| spec.template.as_ref());
        of_set.zip(template).is_some_and(|(left, right)| same_template(left, right))
    };
    let new = sets.iter().position(is_new).map(|at| Set::existing(sets.remove(at)));
    (new, sets.into_iter().map(Set::existing).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deployment(image: &str) -> Deployment {
        serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "a", "annotations": {"note": "x", REVISION: "1"}},
            "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "web"}},
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": image}]}}}}))
        .unwrap()
    }

    #[test]
    fn a_planned_set_is_found_again() {
        let one = deployment("nginx:1");
        let mut set = Set::planned(&one);
        set.follow(&one, 4);
        set.scale(3, &one);
        let object = set.to_object();
        let annotations = object.metadata.annotations.as_ref().unwrap();
        assert_eq!(
            (annotations["note"].as_str(), annotations[REVISION].as_str(), annotations[DESIRED].as_str()),
            ("x", "4", "3")
        );
        let spec = object.spec.as_ref().unwrap();
        assert_eq!(spec.selector.match_labels.as_ref().unwrap().len(), 2);
        let object = Arc::new(object);
        assert!(split(&one, vec![Arc::clone(&object)]).0.is_some());
        assert!(split(&deployment("nginx:2"), vec![object]).0.is_none());
    }

    #[test]
    fn hash_is_stable_and_depends_on_collisions() {
        let template = deployment("nginx:1").spec.unwrap().template;
        let hash = template_hash(&template, None);
        assert_eq!(hash, template_hash(&template, None));
        assert_ne!(hash, template_hash(&template, Some(1)));
    }

    #[test]
    fn revisions_and_patches() {
        let one = deployment("nginx:1");
        let mut set = Set::existing(Arc::new(Set::planned(&one).to_object()));
        assert_eq!(set.patch(), None);
        set.follow(&one, 1);
        set.follow(&one, 3);
        set.scale(2, &one);
        let patch = set.patch().unwrap();
        assert_eq!(patch["metadata"]["annotations"][REVISION], "3");
        assert_eq!(patch["metadata"]["annotations"][REVISION_HISTORY], "1");
        assert_eq!(patch["spec"], json!({"replicas": 2}));
    }
}
