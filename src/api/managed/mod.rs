//! `metadata.managedFields`: who set which field, for server-side apply.
//!
//! [`Managed`] is the list as data; [`track`] moves the fields that a write changed to its writer; [`apply`] merges what a manager
//! applies, and says which fields are another's. Follows `k8s.io/apimachinery/pkg/util/managedfields` and
//! `sigs.k8s.io/structured-merge-diff`, with one difference: the set of a manager that wrote through another version of the API is
//! compared path by path as it is, not through a conversion of the object.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

pub mod apply;
mod compare;
mod element;
pub mod fields;
mod remove;
mod rule;
mod set;
pub mod track;

pub use compare::Comparison;
pub use element::{Element, path_text};
pub use rule::Rule;
pub use set::Set;

/// How a manager came to its fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    Apply,
    Update,
}

impl Operation {
    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Apply => "Apply",
            Self::Update => "Update",
        }
    }
}

/// Who writes: what makes two entries the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manager {
    pub name: String,
    pub operation: Operation,
    /// `apps/v1`
    pub api_version: String,
    /// "" for the object itself.
    pub subresource: String,
}

impl Manager {
    /// Whether both are one: an applier is the same through every version.
    pub fn is_same(&self, other: &Self) -> bool {
        self.name == other.name
            && self.operation == other.operation
            && self.subresource == other.subresource
            && (self.operation == Operation::Apply || self.api_version == other.api_version)
    }
}

/// As a conflict names the manager.
impl std::fmt::Display for Manager {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{:?}", self.name)?;
        if !self.subresource.is_empty() {
            write!(out, " with subresource {:?}", self.subresource)?;
        }
        match self.operation {
            Operation::Update => write!(out, " using {}", self.api_version),
            Operation::Apply => Ok(()),
        }
    }
}

/// The fields of one manager.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub manager: Manager,
    /// When it last changed something, RFC 3339.
    pub time: Option<String>,
    pub fields: Set,
}

/// The fields of all managers of an object.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Managed {
    pub entries: Vec<Entry>,
}

/// What a client says about the managers in an object that it writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wish {
    /// Nothing: they stay as they are.
    Keep,
    /// An empty list, or a list of one empty entry: they are forgotten.
    Clear,
    Set(Managed),
}

impl Managed {
    /// Whether nobody's fields are kept.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Reads `metadata.managedFields`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn from_value(value: &Value) -> Result<Self, String> {
        let mut managed = Self::default();
        for entry in value.as_array().ok_or("managedFields is not a list")? {
            let text = |key: &str| entry.get(key).and_then(Value::as_str).unwrap_or("").to_owned();
            let operation = match text("operation").as_str() {
                "Apply" => Operation::Apply,
                "Update" => Operation::Update,
                other => return Err(format!("operation must be `Apply` or `Update`, not {other:?}")),
            };
            if text("fieldsType") != "FieldsV1" {
                return Err(format!("expected fieldsType FieldsV1, but got: {}", text("fieldsType")));
            }
            let manager =
                Manager { name: text("manager"), operation, api_version: text("apiVersion"), subresource: text("subresource") };
            let time = entry.get("time").and_then(Value::as_str).map(ToOwned::to_owned);
            let fields = entry.get("fieldsV1").map_or(Ok(Set::default()), Set::from_value)?;
            managed.put(Entry { manager, time, fields });
        }
        Ok(managed)
    }

    /// The list for `metadata.managedFields`, in upstream's order: appliers first, then by time.
    pub fn to_value(&self) -> Value {
        let mut sorted: Vec<&Entry> = self.entries.iter().collect();
        sorted.sort_by_key(|entry| {
            let manager = &entry.manager;
            (manager.operation, &entry.time, &manager.name, &manager.api_version, &manager.subresource)
        });
        Value::Array(sorted.into_iter().map(Entry::to_value).collect())
    }

    /// Reads what a client sent in `metadata.managedFields`; what can't be read says nothing.
    pub fn wish(sent: Option<&Value>) -> Wish {
        let Some(Value::Array(list)) = sent else { return Wish::Keep };
        let is_reset = match list.as_slice() {
            [] => true,
            [Value::Object(only)] => only.is_empty(),
            _ => false,
        };
        if is_reset {
            return Wish::Clear;
        }
        match sent.map(Self::from_value) {
            Some(Ok(managed)) if !managed.is_empty() => Wish::Set(managed),
            _ => Wish::Keep,
        }
    }

    /// The entry of a manager.
    pub fn get(&self, manager: &Manager) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.manager.is_same(manager))
    }

    /// Puts an entry in the place of the manager's earlier one.
    pub fn put(&mut self, entry: Entry) {
        match self.entries.iter_mut().find(|old| old.manager.is_same(&entry.manager)) {
            Some(old) => *old = entry,
            None => self.entries.push(entry),
        }
    }

    fn take(&mut self, manager: &Manager) -> Option<Entry> {
        let at = self.entries.iter().position(|entry| entry.manager.is_same(manager))?;
        Some(self.entries.remove(at))
    }

    fn drop_empty(&mut self) {
        self.entries.retain(|entry| !entry.fields.is_empty());
    }

    /// Whether both say the same but for the times.
    pub fn is_same_but_times(&self, other: &Self) -> bool {
        let without = |managed: &Self| -> BTreeSet<String> {
            managed.entries.iter().map(|entry| Entry { time: None, ..entry.clone() }.to_value().to_string()).collect()
        };
        self.entries.len() == other.entries.len() && without(self) == without(other)
    }
}

impl Entry {
    fn to_value(&self) -> Value {
        let manager = &self.manager;
        let mut map = Map::new();
        for (key, text) in
            [("manager", &manager.name), ("apiVersion", &manager.api_version), ("subresource", &manager.subresource)]
        {
            if !text.is_empty() {
                map.insert(key.to_owned(), json!(text));
            }
        }
        map.insert("operation".to_owned(), json!(manager.operation.as_str()));
        if let Some(time) = &self.time {
            map.insert("time".to_owned(), json!(time));
        }
        map.insert("fieldsType".to_owned(), json!("FieldsV1"));
        map.insert("fieldsV1".to_owned(), self.fields.to_value());
        Value::Object(map)
    }
}

#[cfg(test)]
mod tests;
