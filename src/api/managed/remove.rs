//! Takes fields out of an object (`structured-merge-diff/typed/remove.go`).

use serde_json::{Map, Value};

use super::element::Element;
use super::rule::Rule;
use super::set::Set;

/// Removes the fields of the set; a map or list that is left empty goes too, as Go leaves it out.
pub fn remove_from(object: &mut Map<String, Value>, fields: &Set, rule: Rule) {
    object.retain(|key, item| keep(item, fields, &Element::field(key), rule.field(key).0));
}

fn remove(value: &mut Value, fields: &Set, rule: Rule) {
    let (is_map, is_list) = (rule.is_map(value), rule.is_list(value));
    match value {
        Value::Object(map) if is_map => remove_from(map, fields, rule),
        Value::Array(list) if is_list => list.retain_mut(|item| match rule.element(item) {
            Ok(element) => keep(item, fields, &element, rule.item()),
            Err(_) => true,
        }),
        _ => {}
    }
}

fn keep(item: &mut Value, fields: &Set, element: &Element, rule: Rule) -> bool {
    match fields.at(element) {
        (true, _) => false,
        (false, None) => true,
        (false, Some(below)) => {
            remove(item, below, rule);
            !matches!(item, Value::Object(map) if map.is_empty()) && !matches!(item, Value::Array(list) if list.is_empty())
        }
    }
}
