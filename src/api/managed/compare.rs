//! What differs between two objects, as sets of fields (`structured-merge-diff/typed/compare.go`).

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::element::Element;
use super::rule::Rule;
use super::set::Set;

/// The fields in which a new value differs from an old one.
#[derive(Debug, Clone, Default)]
pub struct Comparison {
    pub added: Set,
    pub modified: Set,
    pub removed: Set,
}

impl Comparison {
    /// Compares two objects of one rule.
    pub fn new(old: &Map<String, Value>, new: &Map<String, Value>, rule: Rule) -> Self {
        let mut walk = Walk::default();
        walk.maps(Some(old), Some(new), rule);
        walk.found
    }

    /// The comparison without some fields and what is below them.
    #[must_use]
    pub fn excluding(&self, fields: &Set) -> Self {
        Self {
            added: self.added.recursive_difference(fields),
            modified: self.modified.recursive_difference(fields),
            removed: self.removed.recursive_difference(fields),
        }
    }

    /// What has another value now.
    pub fn changed(&self) -> Set {
        self.modified.clone().union(&self.added)
    }
}

#[derive(Default)]
struct Walk {
    path: Vec<Element>,
    found: Comparison,
}

impl Walk {
    fn below(&mut self, element: Element, old: Option<&Value>, new: Option<&Value>, rule: Rule) {
        self.path.push(element);
        self.values(old, new, rule);
        self.path.pop();
    }

    fn values(&mut self, old: Option<&Value>, new: Option<&Value>, rule: Rule) {
        if old == new {
            return;
        }
        let is_map = |value: &Value| rule.is_map(value) && !is_empty(value);
        let is_list = |value: &Value| rule.is_list(value) && !is_empty(value);
        if old.into_iter().chain(new).any(is_map) {
            self.maps(old.and_then(Value::as_object), new.and_then(Value::as_object), rule);
        } else if old.into_iter().chain(new).any(is_list) {
            self.lists(old, new, rule);
        } else {
            return self.leaf(old, new);
        }
        match (old, new) {
            (None, _) => self.found.added.insert(&self.path),
            (_, None) => self.found.removed.insert(&self.path),
            // A map became something else, or the other way round.
            (Some(old), Some(new)) if rule.is_leaf(old) != rule.is_leaf(new) => self.found.modified.insert(&self.path),
            _ => {}
        }
    }

    fn leaf(&mut self, old: Option<&Value>, new: Option<&Value>) {
        match (old, new) {
            (None, None) => {}
            (None, Some(_)) => self.found.added.insert(&self.path),
            (Some(_), None) => self.found.removed.insert(&self.path),
            (Some(_), Some(_)) => self.found.modified.insert(&self.path),
        }
    }

    fn maps(&mut self, old: Option<&Map<String, Value>>, new: Option<&Map<String, Value>>, rule: Rule) {
        let keys: BTreeSet<&String> = old.into_iter().chain(new).flat_map(Map::keys).collect();
        for key in keys {
            let (old, new) = (old.and_then(|map| map.get(key)), new.and_then(|map| map.get(key)));
            if old != new {
                self.below(Element::field(key), old, new, rule.field(key).0);
            }
        }
    }

    fn lists(&mut self, old: Option<&Value>, new: Option<&Value>, rule: Rule) {
        let (old, new) = (index(old, rule), index(new, rule));
        let elements: BTreeSet<&Element> = old.keys().chain(new.keys()).collect();
        for element in elements {
            let pair = (old.get(element).copied(), new.get(element).copied());
            self.below(element.clone(), pair.0, pair.1, rule.item());
        }
    }
}

/// The elements of a list by their identity; of those that stand twice the first.
fn index(list: Option<&Value>, rule: Rule) -> BTreeMap<Element, &Value> {
    let mut out = BTreeMap::new();
    for item in list.and_then(Value::as_array).into_iter().flatten() {
        if let Ok(element) = rule.element(item) {
            out.entry(element).or_insert(item);
        }
    }
    out
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Object(map) => map.is_empty(),
        Value::Array(list) => list.is_empty(),
        other => other.is_null(),
    }
}
