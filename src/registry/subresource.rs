//! What a write to a subresource may change, and what a plain write may not: the generic part of upstream's strategies.

use serde_json::Value;

use crate::api::kind::Subresource;
use crate::api::{Kind, Object};

/// Puts back everything of the old object that a write to `subresource` (or to the object itself) does not cover.
pub(super) fn keep(kind: &dyn Kind, subresource: Option<Subresource>, object: &mut Object, old: &Object) {
    match subresource {
        None if kind.subresources().contains(&Subresource::Status) => restore(object, old, "status"),
        None => {}
        Some(Subresource::Status) => {
            keep_all_but(object, old, &["metadata", "status"]);
            for key in ["ownerReferences", "finalizers", "generateName"] {
                restore_meta(object, old, key);
            }
            if kind.names().group == "apps" {
                restore_meta(object, old, "labels");
            }
        }
        Some(Subresource::Finalize) => {
            take(object, old, &["spec", "finalizers"]);
        }
        Some(Subresource::Approval) => {
            take(object, old, &["status", "conditions"]);
        }
        Some(Subresource::EphemeralContainers) => {
            take(object, old, &["spec", "ephemeralContainers"]);
        }
        Some(Subresource::Resize) => take_resources(object, old),
        Some(_) => {}
    }
}

fn restore(object: &mut Object, old: &Object, key: &str) {
    match old.0.get(key) {
        Some(value) => object.0.insert(key.to_owned(), value.clone()),
        None => object.0.remove(key),
    };
}

fn restore_meta(object: &mut Object, old: &Object, key: &str) {
    match old.get(&["metadata", key]) {
        Some(value) => object.set(&["metadata", key], value.clone()),
        None => drop(object.remove(&["metadata", key])),
    }
}

fn keep_all_but(object: &mut Object, old: &Object, keys: &[&str]) {
    object.0.retain(|key, _| keys.contains(&key.as_str()));
    for (key, value) in old.0.iter().filter(|(key, _)| !keys.contains(&key.as_str())) {
        object.0.insert(key.clone(), value.clone());
    }
}

/// The old object with the value at `path` of the new one. The new resource version stays, for optimistic locking.
fn take(object: &mut Object, old: &Object, path: &[&str]) {
    let value = object.remove(path);
    *object = old.clone();
    match value {
        Some(value) => object.set(path, value),
        None => drop(object.remove(path)),
    }
}

fn take_resources(object: &mut Object, old: &Object) {
    let mut result = old.clone();
    // Those of the whole pod, which upstream lets change too (KEP-5419).
    if let Some(of_pod) = object.get(&["spec", "resources"]).cloned() {
        result.set(&["spec", "resources"], of_pod);
    }
    for list in ["containers", "initContainers"] {
        let wanted = object.get(&["spec", list]).and_then(Value::as_array).cloned().unwrap_or_default();
        let Some(Value::Object(spec)) = result.0.get_mut("spec") else { continue };
        let Some(Value::Array(containers)) = spec.get_mut(list) else { continue };
        for container in containers {
            let Some(new) = wanted.iter().find(|one| one.get("name") == container.get("name")) else { continue };
            for key in ["resources", "resizePolicy"] {
                if let (Some(value), Value::Object(container)) = (new.get(key), &mut *container) {
                    container.insert(key.to_owned(), value.clone());
                }
            }
        }
    }
    *object = result;
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kinds::Kinds;

    #[test]
    fn each_write_covers_its_part() {
        let kinds = Kinds::builtin();
        let kind = kinds.find("apps", "v1", "deployments").unwrap();
        let old = json!({"kind": "Deployment", "metadata": {"name": "a"}, "spec": {"replicas": 1}, "status": {"replicas": 1}});
        let new = json!({"kind": "Deployment", "metadata": {"name": "a"}, "spec": {"replicas": 2}, "status": {"replicas": 2}});
        for (subresource, replicas, status) in [(None, 2, 1), (Some(Subresource::Status), 1, 2)] {
            let mut object: Object = serde_json::from_value(new.clone()).unwrap();
            keep(&*kind, subresource, &mut object, &serde_json::from_value(old.clone()).unwrap());
            assert_eq!(object.get(&["spec", "replicas"]), Some(&json!(replicas)));
            assert_eq!(object.get(&["status", "replicas"]), Some(&json!(status)));
        }
    }
}
