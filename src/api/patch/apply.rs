//! The merge of an applied object into the stored one, by the rules of its type (`structured-merge-diff/typed/merge.go`).
//!
//! Who owns which field is `api::managed`'s.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::api::managed::{Element, Rule};

/// The current object with everything that `applied` says.
pub fn merge_objects(current: &Map<String, Value>, applied: &Map<String, Value>, rule: Rule) -> Map<String, Value> {
    let mut out = Map::new();
    for (key, value) in current {
        if let Some(merged) = merge(Some(value), applied.get(key), rule.field(key).0) {
            out.insert(key.clone(), merged);
        }
    }
    for (key, value) in applied.iter().filter(|(key, _)| !current.contains_key(*key)) {
        out.insert(key.clone(), value.clone());
    }
    out
}

fn merge(current: Option<&Value>, applied: Option<&Value>, rule: Rule) -> Option<Value> {
    let (Some(old), Some(new)) = (current, applied) else { return applied.or(current).cloned() };
    match (old, new) {
        (Value::Object(current), Value::Object(applied)) if rule.is_map(old) => {
            Some(Value::Object(merge_objects(current, applied, rule)))
        }
        (Value::Array(_), Value::Array(_)) if rule.is_list(old) => Some(merge_lists(old, new, rule)),
        // A null says nothing about a map or a list that is merged.
        (Value::Object(map), Value::Null) if rule.is_map(old) && !map.is_empty() => Some(old.clone()),
        (Value::Array(list), Value::Null) if rule.is_list(old) && !list.is_empty() => Some(old.clone()),
        _ => Some(new.clone()),
    }
}

/// The elements of both lists: those of the applied one in its order, the others where they stood relative to them.
fn merge_lists(old: &Value, new: &Value, rule: Rule) -> Value {
    let (old_order, old_items) = ordered(old, rule);
    let (new_order, new_items) = ordered(new, rule);
    let mut shared = new_order.iter().filter(|element| old_items.contains_key(*element));
    let mut next_shared = shared.next();
    let mut out = Vec::with_capacity(old_order.len().max(new_order.len()));
    let mut take = |element: &Element| {
        let pair = (old_items.get(element).copied(), new_items.get(element).copied());
        out.extend(merge(pair.0, pair.1, rule.item()));
    };
    let (mut left, mut right) = (0, 0);
    while left < old_order.len() || right < new_order.len() {
        match (old_order.get(left), new_order.get(right)) {
            (Some(one), Some(other)) if one == other => {
                take(one);
                (left, right) = (left + 1, right + 1);
                next_shared = shared.next();
            }
            // Shared, but not the one whose turn it is.
            (Some(one), Some(_)) if new_items.contains_key(one) && next_shared.is_some_and(|next| next != one) => left += 1,
            (Some(one), _) if !new_items.contains_key(one) => {
                take(one);
                left += 1;
            }
            (_, Some(other)) => {
                take(other);
                right += 1;
                if next_shared == Some(other) {
                    next_shared = shared.next();
                }
            }
            (_, None) => left += 1,
        }
    }
    Value::Array(out)
}

fn ordered(list: &Value, rule: Rule) -> (Vec<Element>, BTreeMap<Element, &Value>) {
    let (mut order, mut items) = (Vec::new(), BTreeMap::new());
    for item in list.as_array().into_iter().flatten() {
        let Ok(element) = rule.element(item) else { continue };
        if items.insert(element.clone(), item).is_none() {
            order.push(element);
        }
    }
    (order, items)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn merges_by_the_rules_of_the_type() {
        let containers = |names: &str| {
            let list: Vec<Value> = names.split(' ').map(|name| json!({"name": name})).collect();
            json!({"spec": {"containers": list}})
        };
        for (old, new, merged) in [
            (json!({"spec": {"nodeName": "a"}}), json!({"spec": {"nodeName": "b"}}), json!({"spec": {"nodeName": "b"}})),
            (
                json!({"metadata": {"labels": {"a": "1"}}}),
                json!({"metadata": {"labels": {"b": "2"}}}),
                json!({"metadata": {"labels": {"a": "1", "b": "2"}}}),
            ),
            // Atomic: a list, a map, a struct.
            (
                json!({"spec": {"tolerations": [{"key": "a"}]}}),
                json!({"spec": {"tolerations": [{"key": "b"}]}}),
                json!({"spec": {"tolerations": [{"key": "b"}]}}),
            ),
            (
                json!({"spec": {"nodeSelector": {"a": "1"}}}),
                json!({"spec": {"nodeSelector": {"b": "2"}}}),
                json!({"spec": {"nodeSelector": {"b": "2"}}}),
            ),
            // A set.
            (
                json!({"metadata": {"finalizers": ["x/a", "x/b"]}}),
                json!({"metadata": {"finalizers": ["x/c", "x/a"]}}),
                json!({"metadata": {"finalizers": ["x/c", "x/a", "x/b"]}}),
            ),
            // By key, nested, with a key that is defaulted.
            (
                json!({"spec": {"containers": [{"name": "a", "image": "x", "ports": [{"containerPort": 80, "protocol": "TCP"}]}]}}),
                json!({"spec": {"containers": [{"name": "a", "ports": [{"containerPort": 80, "name": "web"}, {"containerPort": 53, "protocol": "UDP"}]}]}}),
                json!({"spec": {"containers": [{"name": "a", "image": "x", "ports": [
                    {"containerPort": 80, "name": "web", "protocol": "TCP"}, {"containerPort": 53, "protocol": "UDP"}]}]}}),
            ),
            // The order of the applied list, what it lacks where it stood.
            (containers("a b c"), containers("c a"), containers("b c a")),
            (containers("a b c"), containers("b"), containers("a b c")),
            (containers("a b"), containers("n b"), containers("a n b")),
            (containers("a b c d"), containers("d n b"), containers("a c d n b")),
            // Nothing, and less than nothing.
            (
                json!({"metadata": {"labels": {"a": "1"}}}),
                json!({"metadata": {"labels": null}}),
                json!({"metadata": {"labels": {"a": "1"}}}),
            ),
            (json!({}), json!({"spec": {"volumes": []}}), json!({"spec": {"volumes": []}})),
        ] {
            let rule = Rule::of_object(Some("io.k8s.api.core.v1.Pod"));
            assert_eq!(merge(Some(&old), Some(&new), rule), Some(merged), "{new}");
        }
        let (old, new) = (json!({"spec": {"a": {"b": 1}, "l": [1]}}), json!({"spec": {"a": {"c": 2}, "l": [2]}}));
        let merged = json!({"spec": {"a": {"b": 1, "c": 2}, "l": [2]}});
        assert_eq!(merge(Some(&old), Some(&new), Rule::of_object(None)), Some(merged));
    }
}
