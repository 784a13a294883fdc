//! The set of all fields of an object, and whether an applied object can have one (`structured-merge-diff/typed/{tofieldset,validate}.go`).

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::element::{Element, path_text};
use super::rule::Rule;
use super::set::Set;

/// All fields of an object. See [`of_value`].
pub fn of_object(map: &Map<String, Value>, rule: Rule) -> Set {
    let mut set = Set::default();
    for (key, item) in map {
        let (below, is_named) = rule.field(key);
        let is_bare = item.is_null() || item.as_object().is_some_and(Map::is_empty);
        set.put(Element::field(key), !is_named || is_bare || below.is_leaf(item), of_value(item, below));
    }
    set
}

/// All fields of a value. Fields that a struct names are in it only through what is below them, keys of maps and elements of
/// lists also by themselves.
fn of_value(value: &Value, rule: Rule) -> Set {
    match value {
        Value::Object(map) if rule.is_map(value) => of_object(map, rule),
        Value::Array(list) if rule.is_list(value) => {
            let mut set = Set::default();
            for item in list {
                // An element without identity is refused when it is applied, and has no owner otherwise.
                if let Ok(element) = rule.element(item) {
                    set.put(element, true, of_value(item, rule.item()));
                }
            }
            set
        }
        _ => Set::default(),
    }
}

/// Checks an applied object: fields that the type does not have, elements that stand twice or have no identity.
///
/// # Errors
/// The first mistake with its path, in upstream's words.
pub fn check(object: &Map<String, Value>, rule: Rule) -> Result<(), String> {
    check_map(object, rule, &mut Vec::new())
}

fn check_map(map: &Map<String, Value>, rule: Rule, path: &mut Vec<Element>) -> Result<(), String> {
    for (name, item) in map {
        path.push(Element::field(name));
        let (below, is_named) = rule.field(name);
        if matches!(rule, Rule::Struct(_)) && !is_named {
            return refuse(path, "field not declared in schema");
        }
        check_below(item, below, path)?;
        path.pop();
    }
    Ok(())
}

fn refuse(path: &[Element], why: &str) -> Result<(), String> {
    Err(if path.is_empty() { why.to_owned() } else { format!("{}: {why}", path_text(path)) })
}

fn check_below(value: &Value, rule: Rule, path: &mut Vec<Element>) -> Result<(), String> {
    match (rule, value) {
        (Rule::Struct(_) | Rule::Map(_), Value::Object(map)) => check_map(map, rule, path)?,
        (Rule::Keyed(..) | Rule::Set, Value::Array(list)) => {
            let mut seen = BTreeSet::new();
            for (index, item) in list.iter().enumerate() {
                let element = match rule.element(item) {
                    Ok(element) => element,
                    Err(why) => return refuse(path, &format!("element {index}: {why}")),
                };
                path.push(element.clone());
                check_below(item, rule.item(), path)?;
                path.pop();
                if seen.contains(&element) {
                    return refuse(path, &format!("duplicate entries for key {element}"));
                }
                seen.insert(element);
            }
        }
        (Rule::Struct(_) | Rule::Map(_), other) if !other.is_null() => return refuse(path, &expected("map", other)),
        (Rule::Keyed(..) | Rule::Set, other) if !other.is_null() => return refuse(path, &expected("list", other)),
        _ => {}
    }
    Ok(())
}

fn expected(what: &str, found: &Value) -> String {
    format!("expected {what}, got {found}")
}
