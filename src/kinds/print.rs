//! What the printed columns of many kinds share: ages, plain rows, joined lists (upstream `pkg/printers/internalversion`).

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
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
        _ => Value::String("<unknown>".to_owned()),
    };
    columns.iter().map(cell).collect()
}
