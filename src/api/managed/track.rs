//! What a write that is no apply does to the fields' owners: what it changed is the writer's, what it removed nobody's.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::{Comparison, Entry, Managed, Manager, Operation, Rule, Set};

/// No object has more entries of updates than this: the oldest are merged.
const UPDATERS_MAX: usize = 10;
/// Whose the fields of merged entries are.
const ANCIENT: &str = "ancient-changes";

/// Fields that belong to nobody: the system sets them, or they say which object is meant.
pub(super) fn unowned() -> Set {
    Set::of(&[
        &["apiVersion"],
        &["kind"],
        &["metadata"],
        &["metadata", "name"],
        &["metadata", "namespace"],
        &["metadata", "creationTimestamp"],
        &["metadata", "selfLink"],
        &["metadata", "uid"],
        &["metadata", "clusterName"],
        &["metadata", "generation"],
        &["metadata", "managedFields"],
        &["metadata", "resourceVersion"],
    ])
}

/// A write.
pub struct Change<'a> {
    /// Empty for a create.
    pub old: &'a Map<String, Value>,
    pub new: &'a Map<String, Value>,
    pub rule: Rule,
    /// Fields that this write can't change: what seems to change in them does not count.
    pub reset: &'a Set,
    /// RFC 3339.
    pub now: &'a str,
}

/// The owners of the fields after `writer` made the change.
pub fn update(change: &Change<'_>, mut managed: Managed, writer: Manager) -> Managed {
    let comparison = Comparison::new(change.old, change.new, change.rule).excluding(change.reset);
    let changed = comparison.changed();
    for entry in &mut managed.entries {
        entry.fields = entry.fields.difference(&changed).difference(&comparison.removed);
    }
    managed.drop_empty();
    let own = changed.difference(&unowned());
    if !own.is_empty() {
        let before = managed.take(&writer).map(|entry| entry.fields);
        let fields = before.map_or_else(|| own.clone(), |before| before.union(&own));
        managed.put(Entry { manager: writer, time: Some(change.now.to_owned()), fields });
    }
    cap(&mut managed);
    managed
}

/// Merges the oldest entries of updates, version by version, until there are few enough.
fn cap(managed: &mut Managed) {
    let mut updaters: Vec<Entry> =
        managed.entries.iter().filter(|entry| entry.manager.operation == Operation::Update).cloned().collect();
    let mut surplus = updaters.len().saturating_sub(UPDATERS_MAX);
    if surplus == 0 {
        return;
    }
    updaters.sort_by(|one, other| (&one.time, &one.manager.name).cmp(&(&other.time, &other.manager.name)));
    let mut first_of: BTreeMap<String, Manager> = BTreeMap::new();
    for entry in updaters {
        if surplus == 0 {
            return;
        }
        let version = entry.manager.api_version.clone();
        let bucket = Manager {
            name: ANCIENT.to_owned(),
            operation: Operation::Update,
            api_version: version.clone(),
            subresource: String::new(),
        };
        let Some(first) = first_of.get(&version).cloned() else {
            first_of.insert(version, entry.manager);
            continue;
        };
        let mut merged = entry.fields;
        managed.take(&entry.manager);
        for other in [&bucket, &first] {
            if let Some(other) = managed.take(other) {
                merged = merged.union(&other.fields);
            }
        }
        managed.put(Entry { manager: bucket.clone(), time: entry.time, fields: merged });
        first_of.insert(version, bucket);
        surplus -= 1;
    }
}
