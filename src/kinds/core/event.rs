//! Event of the core group: what happened to an object. This is the form that is stored.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Event;
use serde_json::Value;

use crate::api::field::{FieldError, Path};
use crate::api::kind::Column;
use crate::api::names;
use crate::kinds::check::{required, required_one_of, required_rule, str_of};
use crate::kinds::print::{elapsed, name, since};
use crate::kinds::typed::{Definition, Selectable, names_of};

/// The fields that selectors of both kinds of Event may name; each is found in either form.
pub const FIELDS: [Selectable; 19] = [
    Selectable::text("involvedObject.kind", &[&["involvedObject", "kind"], &["regarding", "kind"]]),
    Selectable::text("involvedObject.namespace", &[&["involvedObject", "namespace"], &["regarding", "namespace"]]),
    Selectable::text("involvedObject.name", &[&["involvedObject", "name"], &["regarding", "name"]]),
    Selectable::text("involvedObject.uid", &[&["involvedObject", "uid"], &["regarding", "uid"]]),
    Selectable::text("involvedObject.apiVersion", &[&["involvedObject", "apiVersion"], &["regarding", "apiVersion"]]),
    Selectable::text(
        "involvedObject.resourceVersion",
        &[&["involvedObject", "resourceVersion"], &["regarding", "resourceVersion"]],
    ),
    Selectable::text("involvedObject.fieldPath", &[&["involvedObject", "fieldPath"], &["regarding", "fieldPath"]]),
    Selectable::text("reason", &[&["reason"]]),
    Selectable::text("reportingComponent", &[&["reportingComponent"], &["reportingController"]]),
    Selectable::text("reportingController", &[&["reportingComponent"], &["reportingController"]]),
    Selectable::text(
        "source",
        &[&["source", "component"], &["deprecatedSource", "component"], &["reportingComponent"], &["reportingController"]],
    ),
    Selectable::text("type", &[&["type"]]),
    Selectable::text("regarding.kind", &[&["involvedObject", "kind"], &["regarding", "kind"]]),
    Selectable::text("regarding.namespace", &[&["involvedObject", "namespace"], &["regarding", "namespace"]]),
    Selectable::text("regarding.name", &[&["involvedObject", "name"], &["regarding", "name"]]),
    Selectable::text("regarding.uid", &[&["involvedObject", "uid"], &["regarding", "uid"]]),
    Selectable::text("regarding.apiVersion", &[&["involvedObject", "apiVersion"], &["regarding", "apiVersion"]]),
    Selectable::text("regarding.resourceVersion", &[&["involvedObject", "resourceVersion"], &["regarding", "resourceVersion"]]),
    Selectable::text("regarding.fieldPath", &[&["involvedObject", "fieldPath"], &["regarding", "fieldPath"]]),
];

/// The columns of both kinds of Event.
pub const COLUMNS: &[Column] = &[
    Column::text("Last Seen"),
    Column::text("Type"),
    Column::text("Reason"),
    Column::text("Object"),
    Column::wide("Subobject"),
    Column::wide("Source"),
    Column::text("Message"),
    Column::wide("First Seen"),
    Column::wide("Count"),
    Column { priority: 1, ..Column::NAME },
];

/// The kind.
pub static EVENT: Definition<Event> = Definition {
    columns: COLUMNS,
    row: Some(row),
    selectable: &FIELDS,
    selectable_names: &names_of(&FIELDS),
    validate: Some(validate),
    ..Definition::namespaced("io.k8s.api.core.v1.Event", "core/events", "event").short(&["ev"])
};

fn validate(event: &Event) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let about = str_of(&event.involved_object.namespace);
    let namespace = event.metadata.namespace.as_deref().unwrap_or("");
    let path = Path::new("involvedObject").child("namespace");
    let is_ok = if about.is_empty() { matches!(namespace, "" | "default" | "kube-system") } else { about == namespace };
    if !is_ok {
        errors.push(FieldError::invalid(path, about, "does not match event.namespace"));
    }
    if event.event_time.is_some() {
        let controller = str_of(&event.reporting_component);
        required_rule(&mut errors, &Path::new("reportingController"), controller, names::qualified_name);
        required(&mut errors, &Path::new("reportingInstance"), str_of(&event.reporting_instance));
        required(&mut errors, &Path::new("action"), str_of(&event.action));
        required(&mut errors, &Path::new("reason"), str_of(&event.reason));
        required_one_of(&mut errors, &Path::new("type"), str_of(&event.type_), &["Normal", "Warning"]);
        let limits = [
            ("reportingInstance", &event.reporting_instance, 128),
            ("action", &event.action, 128),
            ("reason", &event.reason, 128),
            ("message", &event.message, 1_024),
        ];
        for (field, text, max) in limits {
            if str_of(text).len() > max {
                let why = format!("can have at most {max} characters");
                errors.push(FieldError::invalid(Path::new(field), "", why));
            }
        }
    }
    errors
}

/// The cells of an event.
pub fn row(event: &Event, now: Timestamp) -> Vec<Value> {
    let when = event.event_time.as_ref().map(|time| elapsed(time.0, now));
    let unknown = || "<unknown>".to_owned();
    let or_when = |text: String| if text == "<unknown>" { when.clone().unwrap_or_else(unknown) } else { text };
    let first = or_when(since(event.first_timestamp.as_ref(), now));
    let mut last = since(event.last_timestamp.as_ref(), now);
    if last == "<unknown>" {
        last.clone_from(&first);
    }
    let mut count = event.count.filter(|count| *count != 0).unwrap_or(1);
    if let Some(series) = &event.series {
        last = series.last_observed_time.as_ref().map_or(last, |time| elapsed(time.0, now));
        count = series.count.unwrap_or(count);
    }
    let about = &event.involved_object;
    let kind = str_of(&about.kind).to_lowercase();
    let target = match str_of(&about.name) {
        "" => kind,
        name => format!("{kind}/{name}"),
    };
    vec![
        last.into(),
        str_of(&event.type_).into(),
        str_of(&event.reason).into(),
        target.into(),
        str_of(&about.field_path).into(),
        source(event).into(),
        str_of(&event.message).trim().into(),
        first.into(),
        count.into(),
        name(&event.metadata),
    ]
}

fn source(event: &Event) -> String {
    let given = event.source.clone().unwrap_or_default();
    let first = |one, other| if str_of(one).is_empty() { str_of(other) } else { str_of(one) };
    let component = first(&given.component, &event.reporting_component);
    let host = first(&given.host, &event.reporting_instance);
    if host.is_empty() { component.to_owned() } else { format!("{component}, {host}") }
}
