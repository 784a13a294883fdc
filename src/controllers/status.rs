//! Writes of `status` that carry only what changed, guarded by the revision that was read.

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::Error;
use crate::client::{ApiObject, Client, PatchKind};

/// The merge patch from one status to another, field by field at the top; `None` if they are the same.
pub(super) fn difference<S: Serialize>(old: Option<&S>, new: &S) -> Option<Value> {
    let fields = |status: Option<&S>| match status.map(serde_json::to_value) {
        Some(Ok(Value::Object(map))) => map,
        _ => Map::new(),
    };
    let (old, new) = (fields(old), fields(Some(new)));
    let mut patch: Map<String, Value> =
        old.keys().filter(|key| !new.contains_key(*key)).map(|key| (key.clone(), Value::Null)).collect();
    patch.extend(new.into_iter().filter(|(key, value)| old.get(key) != Some(value)));
    (!patch.is_empty()).then_some(Value::Object(patch))
}

/// Writes the new status of an object, if it differs from the old one.
///
/// # Errors
/// [`Error::Client`]; a conflict if the object changed since it was read.
pub(super) async fn write<K: ApiObject, S: Serialize>(
    client: &Client,
    object: &K,
    old: Option<&S>,
    new: &S,
) -> Result<(), Error> {
    let Some(status) = difference(old, new) else { return Ok(()) };
    let meta = object.metadata();
    let patch = json!({"metadata": {"resourceVersion": meta.resource_version, "uid": meta.uid}, "status": status});
    let (namespace, name) = (meta.namespace.as_deref().unwrap_or(""), meta.name.as_deref().unwrap_or(""));
    client.patch::<K>(namespace, name, Some("status"), PatchKind::Merge, &patch).await?;
    Ok(())
}

/// A count as it stands in a status: absent when it is 0, as upstream's `omitempty` has it.
pub(super) fn count(number: usize) -> Option<i32> {
    (number > 0).then(|| i32::try_from(number).unwrap_or(i32::MAX))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::apps::v1::ReplicaSetStatus;

    use super::*;

    #[test]
    fn only_changes_are_sent() {
        let status = |replicas, ready_replicas| ReplicaSetStatus { replicas, ready_replicas, ..ReplicaSetStatus::default() };
        assert_eq!(difference(Some(&status(1, Some(1))), &status(1, Some(1))), None);
        assert_eq!(difference(Some(&status(1, Some(1))), &status(2, None)), Some(json!({"readyReplicas": null, "replicas": 2})));
        assert_eq!(difference(None, &status(0, None)), Some(json!({"replicas": 0})));
    }
}
