//! Tables and metadata-only forms of objects: what `kubectl get` and metadata informers ask for.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::api::table::column_definitions;
use crate::api::{ApiError, Kind, Object};

/// What stands beside the cells of a row (`includeObject`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Include {
    None,
    Metadata,
    Object,
}

impl Include {
    /// Reads the query parameter; metadata is the default.
    ///
    /// # Errors
    /// 400 for an unknown word.
    pub fn parse(text: &str) -> Result<Self, ApiError> {
        match text {
            "None" => Ok(Self::None),
            "" | "Metadata" => Ok(Self::Metadata),
            "Object" => Ok(Self::Object),
            other => Err(ApiError::bad_request(format!("unrecognized includeObject value: {other:?}"))),
        }
    }
}

/// `PartialObjectMetadata` of an object.
pub fn partial(version: &str, object: &Object) -> Value {
    let metadata = object.0.get("metadata").cloned().unwrap_or_else(|| Value::Object(Map::new()));
    json!({"kind": "PartialObjectMetadata", "apiVersion": version, "metadata": metadata})
}

/// One row of a Table.
pub fn row(kind: &dyn Kind, version: &str, object: Object, include: Include, now: Timestamp) -> Value {
    let cells = kind.row(&object, now);
    let beside = match include {
        Include::None => Value::Null,
        Include::Metadata => partial(version, &object),
        Include::Object => Value::Object(object.0),
    };
    if include == Include::None { json!({"cells": cells}) } else { json!({"cells": cells, "object": beside}) }
}

/// A whole Table; `with_columns` is false for all but the first of a watch.
pub fn table(kind: &dyn Kind, version: &str, metadata: Value, rows: Vec<Value>, with_columns: bool) -> Value {
    let columns = if with_columns { column_definitions(kind.columns()) } else { Value::Array(Vec::new()) };
    json!({"kind": "Table", "apiVersion": version, "metadata": metadata, "columnDefinitions": columns, "rows": rows})
}
