//! The PATCH that brings the status in the API to the one computed: only what differs, as a strategic merge patch.

use k8s_openapi::api::core::v1::PodStatus;
use serde_json::{Map, Value, json};

/// The patch from `known` to `wanted`; `None` if nothing differs. The pod's uid is in it, so that it fails for another pod of
/// the same name.
///
/// # Errors
/// Only when a status does not serialize, which it always does.
pub fn status_patch(uid: &str, known: &PodStatus, wanted: &PodStatus) -> Result<Option<Value>, serde_json::Error> {
    let (known, wanted) = (serde_json::to_value(known)?, serde_json::to_value(wanted)?);
    let empty = Map::new();
    let (known, wanted) = (known.as_object().unwrap_or(&empty), wanted.as_object().unwrap_or(&empty));
    let mut changes = Map::new();
    for (field, value) in wanted {
        let before = known.get(field);
        if before == Some(value) {
            continue;
        }
        let change = match field.as_str() {
            "conditions" => changed_conditions(before, value),
            // Their merge key is the address itself: the list is replaced as a whole.
            "podIPs" | "hostIPs" => replaced(value),
            _ => value.clone(),
        };
        changes.insert(field.clone(), change);
    }
    for field in known.keys().filter(|field| !wanted.contains_key(*field)) {
        changes.insert(field.clone(), Value::Null);
    }
    Ok((!changes.is_empty()).then(|| json!({"metadata": {"uid": uid}, "status": changes})))
}

fn changed_conditions(before: Option<&Value>, wanted: &Value) -> Value {
    let before = before.and_then(Value::as_array);
    let wanted = wanted.as_array().into_iter().flatten();
    let differs = |condition: &&Value| !before.is_some_and(|before| before.contains(condition));
    let wanted: Vec<&Value> = wanted.collect();
    let gone = before.into_iter().flatten().filter(|known| wanted.iter().all(|wanted| wanted["type"] != known["type"]));
    let gone: Vec<Value> = gone.map(|known| json!({"type": known["type"], "$patch": "delete"})).collect();
    let changed = wanted.into_iter().filter(differs).map(|condition| {
        let known = before.into_iter().flatten().find(|known| known["type"] == condition["type"]).and_then(Value::as_object);
        let mut change = condition.as_object().cloned().unwrap_or_default();
        for key in known.into_iter().flat_map(Map::keys).filter(|key| condition.get(key.as_str()).is_none()) {
            change.insert(key.clone(), Value::Null);
        }
        Value::Object(change)
    });
    Value::Array(changed.chain(gone).collect())
}

fn replaced(list: &Value) -> Value {
    let mut items = list.as_array().cloned().unwrap_or_default();
    items.push(json!({"$patch": "replace"}));
    Value::Array(items)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patch(known: Value, wanted: Value) -> Option<Value> {
        let status = |value| serde_json::from_value::<PodStatus>(value).unwrap();
        status_patch("u", &status(known), &status(wanted)).unwrap()
    }

    #[test]
    fn only_what_differs() {
        let condition = |type_: &str, status: &str| json!({"type": type_, "status": status});
        let known = json!({"phase": "Pending", "message": "gone",
            "conditions": [condition("PodScheduled", "True"),
                           {"type": "Ready", "status": "False", "reason": "ContainersNotReady", "message": "m"}]});
        let wanted = json!({"phase": "Running", "podIPs": [{"ip": "10.0.0.1"}],
            "conditions": [condition("PodScheduled", "True"), condition("Ready", "True")]});
        assert_eq!(
            patch(known, wanted.clone()),
            Some(json!({"metadata": {"uid": "u"}, "status": {
                "phase": "Running", "message": null,
                "conditions": [{"type": "Ready", "status": "True", "reason": null, "message": null}],
                "podIPs": [{"ip": "10.0.0.1"}, {"$patch": "replace"}]}}))
        );
        assert_eq!(patch(wanted.clone(), wanted), None);
        let (known, wanted) = (
            json!({"conditions": [condition("A", "True"), condition("B", "True")]}),
            json!({"conditions": [condition("A", "True")]}),
        );
        let gone = json!([{"type": "B", "$patch": "delete"}]);
        assert_eq!(patch(known, wanted).unwrap()["status"]["conditions"], gone);
    }
}
