//! `metadata.managedFields` through the writes that are no apply.
//!
//! An object that nobody ever applied on the server has none, and its writes cost nothing more: as upstream does for objects whose
//! managed fields were cleared. After the first apply each write says whose the fields are that it changed.

use jiff::Timestamp;
use serde_json::{Map, Value};

use super::WriteRequest;
use super::change::Trust;
use crate::api::kind::Subresource;
use crate::api::managed::track::{self, Change};
use crate::api::managed::{Managed, Manager, Operation, Rule, Set, Wish};
use crate::api::{Kind, Object, meta};

/// Where the list is.
pub(super) const PATH: [&str; 2] = ["metadata", "managedFields"];

/// The one who writes.
pub(super) fn manager(request: &WriteRequest, operation: Operation, subresource: Option<Subresource>) -> Manager {
    let name = if request.field_manager.is_empty() { "unknown" } else { &request.field_manager };
    Manager {
        name: name.to_owned(),
        operation,
        api_version: request.kind.names().api_version(),
        subresource: subresource.map_or("", Subresource::as_str).to_owned(),
    }
}

/// The fields that a write can't change: upstream's `GetResetFields`.
pub(super) fn reset_fields(kind: &dyn Kind, subresource: Option<Subresource>) -> Set {
    match subresource {
        Some(Subresource::Status) if kind.names().group == "apps" => Set::of(&[&["spec"], &["metadata", "labels"]]),
        Some(Subresource::Status) => Set::of(&[&["spec"]]),
        _ if kind.subresources().contains(&Subresource::Status) => Set::of(&[&["status"]]),
        _ => Set::default(),
    }
}

/// The list that the object gets. `sent` is what the client had in its place.
pub(super) fn owners(
    request: &WriteRequest,
    trust: Trust,
    sent: Option<Value>,
    object: &Object,
    old: Option<&Object>,
    now: Timestamp,
) -> Option<Value> {
    let stored = old.and_then(|old| old.get(&PATH));
    if (sent.is_none() && stored.is_none()) || trust == Trust::Applied {
        return sent;
    }
    let subresource = if trust == Trust::Scale { Some(Subresource::Scale) } else { request.subresource };
    let wish = if subresource.is_some() { Wish::Keep } else { Managed::wish(sent.as_ref()) };
    let managed = match wish {
        Wish::Clear => return None,
        Wish::Set(managed) => managed,
        // A list that can't be read is given up, as upstream gives it up.
        Wish::Keep => stored.and_then(|stored| Managed::from_value(stored).ok()).filter(|managed| !managed.is_empty())?,
    };
    let (nothing, reset) = (Map::new(), reset_fields(&*request.kind, subresource));
    let change = Change {
        old: old.map_or(&nothing, |old| &old.0),
        new: &object.0,
        rule: Rule::of_object(request.kind.schema()),
        reset: &reset,
        now: &meta::time_text(now),
    };
    let managed = track::update(&change, managed, manager(request, Operation::Update, subresource));
    (!managed.is_empty()).then(|| managed.to_value())
}

/// Puts the list into the object. Where only its times are new, the old one stays: the write changes nothing.
pub(super) fn put(object: &mut Object, owners: Option<Value>, old: Option<&Object>) {
    let Some(owners) = owners else { return };
    let stored = old.and_then(|old| old.get(&PATH)).filter(|stored| {
        let read = (Managed::from_value(stored), Managed::from_value(&owners));
        let is_same = matches!(read, (Ok(stored), Ok(owners)) if stored.is_same_but_times(&owners));
        is_same && old.is_some_and(|old| is_same_but_owners(object, old))
    });
    object.set(&PATH, stored.cloned().unwrap_or(owners));
}

fn is_same_but_owners(object: &Object, old: &Object) -> bool {
    fn differs<'a>(one: &'a Map<String, Value>, other: &'a Map<String, Value>, ignored: &[&str]) -> bool {
        let counted = |map: &'a Map<String, Value>| map.iter().filter(|(key, _)| !ignored.contains(&key.as_str()));
        !counted(one).eq(counted(other))
    }
    let meta = |object: &Object| object.0.get("metadata").and_then(Value::as_object).cloned().unwrap_or_default();
    !differs(&object.0, &old.0, &["metadata"]) && !differs(&meta(object), &meta(old), &["managedFields", "resourceVersion"])
}
