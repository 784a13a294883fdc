//! Event of events.k8s.io: the same objects as the core Event, under other names.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Event as CoreEvent;
use k8s_openapi::api::events::v1::Event;
use serde_json::Value;

use crate::api::Object;
use crate::api::field::FieldError;
use crate::kinds::core::event::{COLUMNS, EVENT as CORE, FIELDS, row as core_row};
use crate::kinds::print::name;
use crate::kinds::typed::{Definition, names_of};

/// Fields by their name here and in the stored form.
const NAMES: [(&str, &str); 7] = [
    ("regarding", "involvedObject"),
    ("note", "message"),
    ("reportingController", "reportingComponent"),
    ("deprecatedSource", "source"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedCount", "count"),
];

/// The kind.
pub static EVENT: Definition<Event> = Definition {
    columns: COLUMNS,
    row: Some(row),
    selectable: &FIELDS,
    selectable_names: &names_of(&FIELDS),
    validate: Some(validate),
    from_storage: Some(from_storage),
    to_storage: Some(to_storage),
    ..Definition::namespaced("io.k8s.api.events.v1.Event", "core/events", "event").short(&["ev"])
};

fn rename(object: &mut Object, api_version: &str, names: impl Iterator<Item = (&'static str, &'static str)>) {
    object.set(&["apiVersion"], api_version);
    for (from, to) in names {
        if let Some(value) = object.0.remove(from) {
            object.0.insert(to.to_owned(), value);
        }
    }
}

fn from_storage(object: &mut Object) {
    rename(object, "events.k8s.io/v1", NAMES.into_iter().map(|(here, stored)| (stored, here)));
}

fn to_storage(object: &mut Object) {
    rename(object, "v1", NAMES.into_iter());
}

fn core(event: &Event) -> Option<CoreEvent> {
    let mut object = Object::from_typed(event).ok()?;
    to_storage(&mut object);
    object.typed().ok()
}

fn validate(event: &Event) -> Vec<FieldError> {
    core(event).and_then(|event| CORE.validate.map(|validate| validate(&event))).unwrap_or_default()
}

fn row(event: &Event, now: Timestamp) -> Vec<Value> {
    core(event).map_or_else(|| vec![name(&event.metadata); COLUMNS.len()], |event| core_row(&event, now))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::api::Kind;

    #[test]
    fn converts_there_and_back_and_prints() {
        let stored = Object::from_json(
            &serde_json::to_vec(&json!({
                "apiVersion": "v1", "kind": "Event", "metadata": {"name": "e", "namespace": "default"},
                "involvedObject": {"kind": "Pod", "name": "a"}, "message": "started\n", "reason": "Started", "type": "Normal",
                "source": {"component": "kubelet", "host": "n1"}, "count": 2,
                "firstTimestamp": "2024-01-01T00:00:00Z", "lastTimestamp": "2024-01-01T00:01:00Z",
            }))
            .unwrap(),
        )
        .unwrap();
        let mut here = stored.clone();
        EVENT.convert_from_storage(&mut here);
        assert_eq!(
            (here.api_version(), here.str_at(&["note"]), here.str_at(&["regarding", "name"])),
            ("events.k8s.io/v1", Some("started\n"), Some("a"))
        );
        let now = "2024-01-01T00:02:00Z".parse().unwrap();
        let expected = json!(["60s", "Normal", "Started", "pod/a", "", "kubelet, n1", "started", "2m", 2, "e"]);
        assert_eq!(json!(EVENT.row(&here, now)), expected);
        assert_eq!(EVENT.field_values(&here), CORE.field_values(&stored));
        EVENT.convert_to_storage(&mut here);
        assert_eq!(here, stored);
        assert_eq!(json!(CORE.row(&stored, now)), expected);
    }
}
