//! What the printed columns of many kinds share: ages, plain rows, joined lists (upstream `pkg/printers/internalversion`).

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::Value;

use crate::api::Object;
use crate::api::kind::Column;
use crate::api::table::human_duration;

/// How long ago a time was: `5m`, or `<unknown>`.
pub fn since(time: Option<&Time>, now: Timestamp) -> String {
    time.map_or_else(|| "<unknown>".to_owned(), |time| elapsed(time.0, now))
}

/// How long ago a timestamp was.
pub fn elapsed(time: Timestamp, now: Timestamp) -> String {
    human_duration(now.as_second() - time.as_second())
}

/// The cell of the column Age.
pub fn age(meta: &ObjectMeta, now: Timestamp) -> Value {
    since(meta.creation_timestamp.as_ref(), now).into()
}

/// The cell of the column Name.
pub fn name(meta: &ObjectMeta) -> Value {
    meta.name.clone().unwrap_or_default().into()
}

/// The row of a kind that prints nothing of its own: name and age, and nothing in any other column.
pub fn plain_row(object: &Object, now: Timestamp, columns: &[Column]) -> Vec<Value> {
    let cell = |column: &Column| match column.name {
        "Name" => object.name().into(),
        "Age" | "Created At" => {
            object.creation_timestamp().map_or_else(|| "<unknown>".to_owned(), |time| elapsed(time, now)).into()
        }
        _ => Value::String(String::new()),
    };
    columns.iter().map(cell).collect()
}

/// What stands for nothing.
pub const NONE: &str = "<none>";
/// What stands for a field that is not set.
pub const UNSET: &str = "<unset>";

/// A text, or `<none>`.
pub fn or_none(text: Option<&str>) -> String {
    text.filter(|text| !text.is_empty()).unwrap_or(NONE).to_owned()
}

/// Labels as `a=b,c=d`, or `<none>`.
pub fn labels(labels: Option<&BTreeMap<String, String>>) -> String {
    let pairs: Vec<String> = labels.into_iter().flatten().map(|(key, value)| format!("{key}={value}")).collect();
    if pairs.is_empty() { NONE.to_owned() } else { pairs.join(",") }
}

/// A selector as `a=b,c in (d,e)`, sorted by key, or `<none>`.
pub fn selector(selector: Option<&LabelSelector>) -> String {
    let Some(selector) = selector else { return NONE.to_owned() };
    let pairs = selector.match_labels.iter().flatten().map(|(key, value)| (key.clone(), format!("{key}={value}")));
    let requirements = selector.match_expressions.iter().flatten().map(|requirement| {
        let key = &requirement.key;
        let mut values = requirement.values.clone().unwrap_or_default();
        values.sort_unstable();
        let values = values.join(",");
        let text = match requirement.operator.as_str() {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "DoesNotExist" => format!("!{key}"),
            _ => key.clone(),
        };
        (key.clone(), text)
    });
    let mut all: Vec<(String, String)> = pairs.chain(requirements).collect();
    all.sort_by(|one, other| one.0.cmp(&other.0));
    let texts: Vec<String> = all.into_iter().map(|(_, text)| text).collect();
    if texts.is_empty() { NONE.to_owned() } else { texts.join(",") }
}

/// The names and the images of a template's containers, each joined by commas: two cells.
pub fn containers(template: Option<&PodTemplateSpec>) -> [Value; 2] {
    let containers =
        template.and_then(|template| template.spec.as_ref()).map(|spec| spec.containers.as_slice()).unwrap_or_default();
    let names: Vec<&str> = containers.iter().map(|container| container.name.as_str()).collect();
    let images: Vec<&str> = containers.iter().map(|container| container.image.as_deref().unwrap_or("")).collect();
    [names.join(",").into(), images.join(",").into()]
}

/// `True`, `False` or `<unset>`.
pub fn boolean(value: Option<bool>) -> &'static str {
    match value {
        Some(true) => "True",
        Some(false) => "False",
        None => UNSET,
    }
}

/// A number or percentage, or `N/A`.
pub fn int_or_string(value: Option<&IntOrString>) -> String {
    match value {
        Some(IntOrString::Int(number)) => number.to_string(),
        Some(IntOrString::String(text)) => text.clone(),
        None => "N/A".to_owned(),
    }
}

/// When an object was made, as `2024-01-01T00:00:00Z`: the cell of the column Created At.
pub fn created_at(meta: &ObjectMeta) -> Value {
    let time = meta.creation_timestamp.as_ref().and_then(|time| serde_json::to_value(time).ok());
    time.unwrap_or_else(|| "<unknown>".into())
}

/// The columns of kinds that show when they were made.
pub const CREATED_AT: Column = Column { kind: "date", ..Column::text("Created At") };
