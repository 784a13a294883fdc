//! The claims of a StatefulSet's pods, and who owns them: `persistentVolumeClaimRetentionPolicy`. It follows upstream's
//! `stateful_set_utils.go`.

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use super::super::history::name_of;
use super::super::owners::controller_reference;
use super::pod;
use crate::client::ApiObject;

/// For each claim template, the name of the volume and that of the claim of the pod of this ordinal.
pub(super) fn names(set: &StatefulSet, ordinal: i32) -> impl Iterator<Item = (String, String)> {
    let templates = set.spec.iter().flat_map(|spec| spec.volume_claim_templates.iter().flatten());
    templates.map(move |template| {
        let volume = name_of(&template.metadata).to_owned();
        let claim = format!("{volume}-{}", pod::name(set, ordinal));
        (volume, claim)
    })
}

/// Whether a claim of this name could be one of the set's.
pub(super) fn may_be_of(set: &StatefulSet, claim: &str) -> bool {
    let mut templates = set.spec.iter().flat_map(|spec| spec.volume_claim_templates.iter().flatten());
    templates.any(|template| {
        let rest = claim.strip_prefix(name_of(&template.metadata)).and_then(|rest| rest.strip_prefix('-'));
        rest.is_some_and(|pod| pod::ordinal(set, pod).is_some())
    })
}

/// The claims of the pod of this ordinal, as they are to be created.
pub(super) fn wanted(set: &StatefulSet, ordinal: i32) -> Vec<PersistentVolumeClaim> {
    let spec = set.spec.clone().unwrap_or_default();
    let selected = spec.selector.match_labels.unwrap_or_default();
    let owner = (policy(set).deletes_with_set() && pod::is_in_range(set, ordinal)).then(|| vec![controller_reference(set)]);
    let templates = spec.volume_claim_templates.unwrap_or_default();
    let named = templates.into_iter().zip(names(set, ordinal));
    let claim = |(template, (_, name)): (PersistentVolumeClaim, (String, String))| {
        let mut labels = template.metadata.labels.unwrap_or_default();
        labels.extend(selected.clone());
        let metadata = ObjectMeta {
            name: Some(name),
            namespace: set.metadata.namespace.clone(),
            labels: Some(labels),
            annotations: template.metadata.annotations,
            finalizers: template.metadata.finalizers,
            owner_references: owner.clone(),
            ..ObjectMeta::default()
        };
        PersistentVolumeClaim { metadata, spec: template.spec, status: None }
    };
    named.map(claim).collect()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Policy {
    Retain,
    /// `whenDeleted` alone.
    DeleteWithSet,
    /// `whenScaled` alone.
    DeleteWithScale,
    DeleteWithBoth,
}

impl Policy {
    fn deletes_with_set(self) -> bool {
        matches!(self, Self::DeleteWithSet | Self::DeleteWithBoth)
    }

    fn deletes_with_scale(self) -> bool {
        matches!(self, Self::DeleteWithScale | Self::DeleteWithBoth)
    }
}

fn policy(set: &StatefulSet) -> Policy {
    let policy = set.spec.as_ref().and_then(|spec| spec.persistent_volume_claim_retention_policy.clone()).unwrap_or_default();
    let deletes = |when: Option<String>| when.as_deref() == Some("Delete");
    match (deletes(policy.when_deleted), deletes(policy.when_scaled)) {
        (false, false) => Policy::Retain,
        (true, false) => Policy::DeleteWithSet,
        (false, true) => Policy::DeleteWithScale,
        (true, true) => Policy::DeleteWithBoth,
    }
}

fn refers<K: ApiObject>(reference: &OwnerReference, to: &K) -> bool {
    let name = name_of(to.metadata());
    reference.api_version == K::API_VERSION && reference.kind == K::KIND && reference.name == name
}

fn is_uid<K: ApiObject>(reference: &OwnerReference, of: &K) -> bool {
    of.metadata().uid.as_deref() == Some(&reference.uid)
}

/// Whether an earlier object of the name owns the claim, which is therefore about to go.
fn has_stale_owner<K: ApiObject>(claim: &PersistentVolumeClaim, object: &K) -> bool {
    let mut references = claim.metadata.owner_references.iter().flatten();
    references.find(|reference| refers(reference, object)).is_some_and(|reference| !is_uid(reference, object))
}

/// Whether the claim goes with an earlier pod of the same name, so that a new one cannot have it: `PodClaimIsStale`.
pub(super) fn is_stale(set: &StatefulSet, claim: &PersistentVolumeClaim, pod: &Pod) -> bool {
    policy(set).deletes_with_scale() && has_stale_owner(claim, pod)
}

/// The owner references that a claim should have, if it has others: `isClaimOwnerUpToDate`, `updateClaimOwnerRefForSetAndPod`.
pub(super) fn corrected_owners(
    set: &StatefulSet,
    pod: &Pod,
    ordinal: i32,
    claim: &PersistentVolumeClaim,
) -> Option<Vec<OwnerReference>> {
    if has_stale_owner(claim, set) || has_stale_owner(claim, pod) {
        return None;
    }
    let policy = policy(set);
    let references = claim.metadata.owner_references.as_deref().unwrap_or_default();
    let (ours, others): (Vec<&OwnerReference>, Vec<&OwnerReference>) =
        references.iter().partition(|reference| refers(reference, set) || refers(reference, pod));
    let is_foreign = policy != Policy::Retain && others.iter().any(|reference| reference.controller == Some(true));
    let is_condemned = !pod::is_in_range(set, ordinal);
    let mut wanted = Vec::new();
    if !is_foreign {
        let of_set = match policy {
            Policy::DeleteWithSet => true,
            Policy::DeleteWithBoth => !is_condemned,
            Policy::Retain | Policy::DeleteWithScale => false,
        };
        wanted.extend(of_set.then(|| controller_reference(set)));
        wanted.extend((policy.deletes_with_scale() && is_condemned).then(|| controller_reference(pod)));
    }
    let has = |reference: &OwnerReference| ours.iter().any(|one| one.uid == reference.uid && one.controller == Some(true));
    if ours.len() == wanted.len() && wanted.iter().all(has) {
        return None;
    }
    Some(others.into_iter().cloned().chain(wanted).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn set(when_deleted: &str, when_scaled: &str) -> StatefulSet {
        serde_json::from_value(json!({"metadata": {"name": "db", "namespace": "a", "uid": "set"}, "spec": {"replicas": 2,
            "selector": {"matchLabels": {"app": "db"}}, "serviceName": "db", "template": {},
            "persistentVolumeClaimRetentionPolicy": {"whenDeleted": when_deleted, "whenScaled": when_scaled},
            "volumeClaimTemplates": [{"metadata": {"name": "data", "labels": {"tier": "x"}}, "spec": {"accessModes": ["ReadWriteOnce"]}}]}}))
        .unwrap()
    }

    fn pod(ordinal: i32) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": format!("db-{ordinal}"), "uid": format!("pod-{ordinal}")}})).unwrap()
    }

    fn owned(references: Value) -> PersistentVolumeClaim {
        serde_json::from_value(json!({"metadata": {"name": "data-db-0", "ownerReferences": references}})).unwrap()
    }

    #[test]
    fn a_claim_is_named_and_labeled_after_set_and_pod() {
        let claims = wanted(&set("Retain", "Retain"), 1);
        let meta = &claims[0].metadata;
        assert_eq!((claims.len(), meta.name.as_deref(), meta.namespace.as_deref()), (1, Some("data-db-1"), Some("a")));
        assert_eq!(serde_json::to_value(&meta.labels).unwrap(), json!({"app": "db", "tier": "x"}));
        assert_eq!(meta.owner_references, None);
        let owner = wanted(&set("Delete", "Retain"), 1)[0].metadata.owner_references.clone().unwrap();
        assert_eq!((owner.len(), owner[0].uid.as_str(), owner[0].controller), (1, "set", Some(true)));
        for (name, expected) in [("data-db-0", true), ("data-db-x", false), ("data-db-01", false), ("log-db-0", false)] {
            assert_eq!(may_be_of(&set("Retain", "Retain"), name), expected, "{name}");
        }
    }

    #[test]
    fn owners_follow_the_policy() {
        let reference = |kind: &str, name: &str, uid: &str, controller: bool| {
            let version = if kind == "Pod" { "v1" } else { "apps/v1" };
            json!({"apiVersion": version, "kind": kind, "name": name, "uid": uid, "controller": controller})
        };
        let of_set = reference("StatefulSet", "db", "set", true);
        let of_pod = |ordinal: i32| reference("Pod", &format!("db-{ordinal}"), &format!("pod-{ordinal}"), true);
        let other = reference("Database", "x", "other", true);
        for (deleted, scaled, ordinal, references, expected) in [
            ("Retain", "Retain", 0, json!([]), None),
            ("Retain", "Retain", 0, json!([of_set]), Some("")),
            ("Retain", "Retain", 0, json!([other]), None),
            ("Delete", "Retain", 0, json!([]), Some("set")),
            ("Delete", "Retain", 0, json!([of_set]), None),
            ("Delete", "Retain", 2, json!([of_set]), None),
            ("Delete", "Retain", 0, json!([reference("StatefulSet", "db", "set", false)]), Some("set")),
            ("Delete", "Retain", 0, json!([reference("StatefulSet", "db", "earlier", true)]), None),
            ("Delete", "Retain", 0, json!([other]), None),
            ("Delete", "Retain", 0, json!([other, of_set]), Some("other")),
            ("Retain", "Delete", 0, json!([]), None),
            ("Retain", "Delete", 2, json!([]), Some("pod-2")),
            ("Retain", "Delete", 0, json!([of_pod(0)]), Some("")),
            ("Retain", "Delete", 2, json!([of_pod(2)]), None),
            ("Delete", "Delete", 0, json!([]), Some("set")),
            ("Delete", "Delete", 2, json!([of_set]), Some("pod-2")),
            ("Delete", "Delete", 0, json!([of_pod(0)]), Some("set")),
        ] {
            let found = corrected_owners(&set(deleted, scaled), &pod(ordinal), ordinal, &owned(references.clone()));
            let uids = found.map(|owners| owners.into_iter().map(|owner| owner.uid).collect::<Vec<_>>().join(","));
            assert_eq!(uids.as_deref(), expected, "{deleted} {scaled} {ordinal} {references}");
        }
        let earlier = owned(json!([reference("Pod", "db-0", "earlier", true)]));
        assert!(is_stale(&set("Retain", "Delete"), &earlier, &pod(0)));
        assert!(!is_stale(&set("Retain", "Retain"), &earlier, &pod(0)));
        assert!(!is_stale(&set("Retain", "Delete"), &owned(json!([of_pod(0)])), &pod(0)));
    }
}
