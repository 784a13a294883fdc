//! [`Set`]: a set of fields of an object, a tree of path elements.
//!
//! Follows `structured-merge-diff/fieldpath/{set,serialize}.go`. That a field is in the set says nothing of what is below it.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::element::Element;
use super::rule::Rule;

/// A set of fields. Holds no branch without a member.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Set {
    nodes: BTreeMap<Element, Node>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Node {
    /// The field itself is in the set.
    is_member: bool,
    below: Set,
}

impl Node {
    fn is_empty(&self) -> bool {
        !self.is_member && self.below.is_empty()
    }
}

impl Set {
    /// Whether no field is in the set.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Adds one field; the empty path, the whole object, belongs to nobody.
    pub fn insert(&mut self, path: &[Element]) {
        match path {
            [] => {}
            [last] => self.nodes.entry(last.clone()).or_default().is_member = true,
            [first, rest @ ..] => self.nodes.entry(first.clone()).or_default().below.insert(rest),
        }
    }

    /// A set of fields of structs: `of(&[&["metadata", "name"]])`.
    pub fn of(paths: &[&[&str]]) -> Self {
        let mut set = Self::default();
        for path in paths {
            set.insert(&path.iter().map(|name| Element::field(name)).collect::<Vec<_>>());
        }
        set
    }

    /// Puts a step with what is below it; an empty one is left out.
    pub(super) fn put(&mut self, element: Element, is_member: bool, below: Self) {
        let node = Node { is_member, below };
        if !node.is_empty() {
            self.nodes.insert(element, node);
        }
    }

    /// Whether a field is in the set.
    pub fn has(&self, path: &[Element]) -> bool {
        match path {
            [] => false,
            [last] => self.nodes.get(last).is_some_and(|node| node.is_member),
            [first, rest @ ..] => self.nodes.get(first).is_some_and(|node| node.below.has(rest)),
        }
    }

    /// Whether a step from here is in the set, and what is below it.
    pub(super) fn at(&self, element: &Element) -> (bool, Option<&Self>) {
        match self.nodes.get(element) {
            Some(node) => (node.is_member, Some(&node.below).filter(|below| !below.is_empty())),
            None => (false, None),
        }
    }

    /// What is in either.
    #[must_use]
    pub fn union(mut self, other: &Self) -> Self {
        self.extend(other);
        self
    }

    fn extend(&mut self, other: &Self) {
        for (element, node) in &other.nodes {
            match self.nodes.get_mut(element) {
                Some(own) => {
                    own.is_member |= node.is_member;
                    own.below.extend(&node.below);
                }
                None => drop(self.nodes.insert(element.clone(), node.clone())),
            }
        }
    }

    /// What is in both.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        let mut out = Self::default();
        for (element, node) in &self.nodes {
            if let Some(theirs) = other.nodes.get(element) {
                out.put(element.clone(), node.is_member && theirs.is_member, node.below.intersection(&theirs.below));
            }
        }
        out
    }

    /// What is here and not there; a field stays when only one around or below it is there.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Self {
        self.without(other, false)
    }

    /// What is here, and is neither there nor below a field that is there.
    #[must_use]
    pub fn recursive_difference(&self, other: &Self) -> Self {
        self.without(other, true)
    }

    fn without(&self, other: &Self, is_recursive: bool) -> Self {
        let mut out = Self::default();
        for (element, node) in &self.nodes {
            match other.nodes.get(element) {
                None => drop(out.nodes.insert(element.clone(), node.clone())),
                Some(theirs) if theirs.is_member && is_recursive => {}
                Some(theirs) => {
                    let below = node.below.without(&theirs.below, is_recursive);
                    out.put(element.clone(), node.is_member && !theirs.is_member, below);
                }
            }
        }
        out
    }

    /// The set with the fields of structs that are only on the way to what it holds.
    #[must_use]
    pub(super) fn with_named(&self, rule: Rule) -> Self {
        let mut out = Self::default();
        for (element, node) in &self.nodes {
            let (below, is_named) = rule.child(element);
            let is_member = node.is_member || (is_named && !node.below.is_empty());
            out.put(element.clone(), is_member, node.below.with_named(below));
        }
        out
    }

    /// The paths of all fields, a field before what is below it.
    pub fn paths(&self) -> Vec<Vec<Element>> {
        let (mut paths, mut path) = (Vec::new(), Vec::new());
        self.collect(&mut path, &mut paths);
        paths
    }

    fn collect(&self, path: &mut Vec<Element>, paths: &mut Vec<Vec<Element>>) {
        let members = self.nodes.iter().filter(|(_, node)| node.is_member);
        paths.extend(members.map(|(element, _)| path.iter().chain([element]).cloned().collect::<Vec<_>>()));
        for (element, node) in &self.nodes {
            path.push(element.clone());
            node.below.collect(path, paths);
            path.pop();
        }
    }

    /// The set as `fieldsV1`.
    pub fn to_value(&self) -> Value {
        let mut map = Map::new();
        for (element, node) in &self.nodes {
            let mut below = node.below.to_value();
            if let (true, Value::Object(fields)) = (node.is_member && !node.below.is_empty(), &mut below) {
                fields.insert(".".to_owned(), json!({}));
            }
            map.insert(element.to_text(), below);
        }
        Value::Object(map)
    }

    /// Reads `fieldsV1`. Steps of a kind that is not known are left out.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn from_value(value: &Value) -> Result<Self, String> {
        let map = value.as_object().ok_or("fieldsV1 is not an object")?;
        let mut set = Self::default();
        for (text, below) in map.iter().filter(|(text, _)| *text != ".") {
            let Some(element) = Element::parse(text)? else { continue };
            let fields = Self::from_value(below)?;
            let is_member = fields.is_empty() || below.get(".").is_some();
            set.put(element, is_member, fields);
        }
        Ok(set)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(value: &Value) -> Set {
        Set::from_value(value).unwrap()
    }

    #[test]
    fn combines_sets() {
        let one = json!({"f:a": {".": {}, "f:b": {}}, "f:c": {}});
        let two = json!({"f:a": {"f:b": {}, "f:d": {}}, "f:e": {}});
        for (name, found, expected) in [
            ("union", set(&one).union(&set(&two)), json!({"f:a": {".": {}, "f:b": {}, "f:d": {}}, "f:c": {}, "f:e": {}})),
            ("intersection", set(&one).intersection(&set(&two)), json!({"f:a": {"f:b": {}}})),
            ("difference", set(&one).difference(&set(&two)), json!({"f:a": {}, "f:c": {}})),
            ("the other way", set(&two).difference(&set(&one)), json!({"f:a": {"f:d": {}}, "f:e": {}})),
            ("of a parent", set(&one).difference(&set(&json!({"f:a": {}}))), json!({"f:a": {"f:b": {}}, "f:c": {}})),
            ("recursive", set(&one).recursive_difference(&set(&json!({"f:a": {}}))), json!({"f:c": {}})),
        ] {
            assert_eq!(found.to_value(), expected, "{name}");
        }
        assert!(set(&one).difference(&set(&one)).is_empty());
    }

    #[test]
    fn reads_what_it_writes() {
        let text = json!({"f:metadata": {"f:finalizers": {".": {}, "v:\"x/y\"": {}}},
            "f:spec": {"f:ports": {"k:{\"port\":80,\"protocol\":\"TCP\"}": {".": {}, "f:port": {}}}}});
        assert_eq!(set(&text).to_value(), text);
        assert_eq!(set(&json!({"z:new": {}, "f:a": {}})).to_value(), json!({"f:a": {}}));
        assert!(Set::from_value(&json!({"wrong": {}})).is_err() && Set::from_value(&json!([])).is_err());
        let paths: Vec<String> = set(&text).paths().iter().map(|path| super::super::element::path_text(path)).collect();
        assert_eq!(
            paths,
            [
                ".metadata.finalizers",
                ".metadata.finalizers[=\"x/y\"]",
                ".spec.ports[port=80,protocol=\"TCP\"]",
                ".spec.ports[port=80,protocol=\"TCP\"].port"
            ]
        );
    }
}
