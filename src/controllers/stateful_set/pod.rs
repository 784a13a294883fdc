//! The identity of a StatefulSet's pods: ordinals, names, labels, volumes. It follows upstream's `stateful_set_utils.go`.

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{PersistentVolumeClaimVolumeSource, Pod, PodSpec, PodTemplateSpec, Volume};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Value, json};

use super::super::history::{POD_HASH, name_of};
use super::super::owners;
use super::claims;

const POD_NAME: &str = "statefulset.kubernetes.io/pod-name";
const POD_INDEX: &str = "apps.kubernetes.io/pod-index";

/// The name of the set's pod of this ordinal.
pub(super) fn name(set: &StatefulSet, ordinal: i32) -> String {
    format!("{}-{ordinal}", name_of(&set.metadata))
}

/// The ordinal of a pod of this name; `None` if no pod of the set is called so.
pub(super) fn ordinal(set: &StatefulSet, pod: &str) -> Option<i32> {
    let digits = pod.strip_prefix(name_of(&set.metadata))?.strip_prefix('-')?;
    digits.parse().ok().filter(|ordinal: &i32| *ordinal >= 0 && ordinal.to_string() == digits)
}

/// The ordinal of the first pod.
pub(super) fn start(set: &StatefulSet) -> i32 {
    set.spec.as_ref().and_then(|spec| spec.ordinals.as_ref()).and_then(|ordinals| ordinals.start).unwrap_or(0)
}

/// `spec.replicas`.
pub(super) fn replicas(set: &StatefulSet) -> i32 {
    set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
}

/// Whether the set wants a pod of this ordinal.
pub(super) fn is_in_range(set: &StatefulSet, ordinal: i32) -> bool {
    ordinal >= start(set) && ordinal < start(set).saturating_add(replicas(set))
}

/// The revision that a pod is of; "" if it does not say.
pub(super) fn revision_of(pod: &Pod) -> &str {
    pod.metadata.labels.as_ref().and_then(|labels| labels.get(POD_HASH)).map_or("", String::as_str)
}

/// A new pod of a set, with the template of one of its revisions.
pub(super) fn new(set: &StatefulSet, template: &PodTemplateSpec, revision: &str, ordinal: i32) -> Pod {
    let (name, from) = (name(set, ordinal), template.metadata.clone().unwrap_or_default());
    let mut labels = from.labels.unwrap_or_default();
    labels.insert(POD_NAME.to_owned(), name.clone());
    labels.insert(POD_INDEX.to_owned(), ordinal.to_string());
    labels.insert(POD_HASH.to_owned(), revision.to_owned());
    let mut spec = template.spec.clone().unwrap_or_default();
    spec.hostname = Some(name.clone());
    spec.subdomain = set.spec.as_ref().and_then(|spec| spec.service_name.clone()).filter(|service| !service.is_empty());
    let volumes = volumes(set, &spec, ordinal);
    spec.volumes = (!volumes.is_empty()).then_some(volumes);
    let metadata = ObjectMeta {
        name: Some(name),
        namespace: set.metadata.namespace.clone(),
        labels: Some(labels),
        annotations: from.annotations,
        finalizers: from.finalizers,
        owner_references: Some(vec![owners::controller_reference(set)]),
        ..ObjectMeta::default()
    };
    Pod { metadata, spec: Some(spec), status: None }
}

/// The volumes of a pod: those of its claims, and those of the template that no claim is named after.
fn volumes(set: &StatefulSet, spec: &PodSpec, ordinal: i32) -> Vec<Volume> {
    let claimed = claims::names(set, ordinal).map(|(name, claim_name)| Volume {
        name,
        persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource { claim_name, ..Default::default() }),
        ..Volume::default()
    });
    let mut volumes: Vec<Volume> = claimed.collect();
    let others = spec.volumes.iter().flatten().filter(|volume| claims::names(set, 0).all(|(name, _)| name != volume.name));
    volumes.extend(others.cloned());
    volumes
}

/// The strategic merge patch that gives a pod of the set its identity and its storage, if it lacks them.
pub(super) fn correction(set: &StatefulSet, pod: &Pod, ordinal: i32) -> Option<Value> {
    let name = name_of(&pod.metadata);
    let is_labeled = pod.metadata.labels.as_ref().and_then(|labels| labels.get(POD_NAME)).is_some_and(|label| label == name);
    let spec = pod.spec.clone().unwrap_or_default();
    let has = |(volume, claim): (String, String)| {
        let found = spec.volumes.iter().flatten().find(|found| found.name == volume);
        found.and_then(|found| found.persistent_volume_claim.as_ref()).is_some_and(|source| source.claim_name == claim)
    };
    let is_stored = claims::names(set, ordinal).all(has);
    if is_labeled && is_stored {
        return None;
    }
    let labels = json!({POD_NAME: name, POD_INDEX: ordinal.to_string()});
    let mut patch = json!({"metadata": {"uid": pod.metadata.uid, "labels": labels}});
    if !is_stored {
        patch["spec"] = json!({"volumes": volumes(set, &spec, ordinal)});
    }
    Some(patch)
}
