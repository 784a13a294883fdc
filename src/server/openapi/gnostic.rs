//! An OpenAPI v2 document as the protobuf messages of gnostic (`openapi_v2.proto`), which is what kubectl reads.

use serde_json::{Map, Value};

use crate::api::proto::wire::Writer;

/// How a key of a JSON object is written.
enum Form {
    Text(u32),
    Bool(u32),
    Texts(u32),
    /// A message made of the value.
    Message(u32, fn(&Value) -> Vec<u8>),
    /// A message for each element.
    Messages(u32, fn(&Value) -> Vec<u8>),
}

type Layout = &'static [(&'static str, Form)];

const SCHEMA: Layout = &[
    ("$ref", Form::Text(1)),
    ("format", Form::Text(2)),
    ("description", Form::Text(4)),
    ("default", Form::Message(5, any)),
    ("required", Form::Texts(19)),
    ("enum", Form::Messages(20, any)),
    ("additionalProperties", Form::Message(21, additional_properties)),
    ("type", Form::Message(22, type_item)),
    ("items", Form::Message(23, items)),
    ("allOf", Form::Messages(24, schema)),
    ("properties", Form::Message(25, named_schemas)),
];
/// Where extensions (`x-…`) of a schema go.
const SCHEMA_EXTENSION: u32 = 31;

const OPERATION: Layout = &[
    ("tags", Form::Texts(1)),
    ("description", Form::Text(3)),
    ("operationId", Form::Text(5)),
    ("produces", Form::Texts(6)),
    ("consumes", Form::Texts(7)),
    ("parameters", Form::Messages(8, parameter)),
    ("responses", Form::Message(9, responses)),
    ("schemes", Form::Texts(10)),
];
const OPERATION_EXTENSION: u32 = 13;

const PATH_ITEM: Layout = &[
    ("get", Form::Message(2, operation)),
    ("put", Form::Message(3, operation)),
    ("post", Form::Message(4, operation)),
    ("delete", Form::Message(5, operation)),
    ("patch", Form::Message(8, operation)),
    ("parameters", Form::Messages(9, parameter)),
];
const PATH_ITEM_EXTENSION: u32 = 10;

const BODY_PARAMETER: Layout = &[
    ("description", Form::Text(1)),
    ("name", Form::Text(2)),
    ("in", Form::Text(3)),
    ("required", Form::Bool(4)),
    ("schema", Form::Message(5, schema)),
];
const QUERY_PARAMETER: Layout = &[
    ("required", Form::Bool(1)),
    ("in", Form::Text(2)),
    ("description", Form::Text(3)),
    ("name", Form::Text(4)),
    ("type", Form::Text(6)),
];
const PATH_PARAMETER: Layout = &[
    ("required", Form::Bool(1)),
    ("in", Form::Text(2)),
    ("description", Form::Text(3)),
    ("name", Form::Text(4)),
    ("type", Form::Text(5)),
];
const RESPONSE: Layout = &[("description", Form::Text(1)), ("schema", Form::Message(2, schema_item))];
const INFO: Layout = &[("title", Form::Text(1)), ("version", Form::Text(2))];

/// Collects a document piece by piece.
pub struct Document {
    info: Vec<u8>,
    paths: Writer,
    definitions: Writer,
}

impl Document {
    /// A document without paths and definitions.
    pub fn new(info: &Value) -> Self {
        Self { info: message(INFO, None, info), paths: Writer::default(), definitions: Writer::default() }
    }

    /// Adds a path.
    pub fn path(&mut self, path: &str, item: &Value) {
        self.paths.bytes(2, &named(path, &message(PATH_ITEM, Some(PATH_ITEM_EXTENSION), item)));
    }

    /// Adds the schema of a type.
    pub fn definition(&mut self, name: &str, value: &Value) {
        self.definitions.bytes(1, &named(name, &schema(value)));
    }

    /// The bytes.
    pub fn finish(self) -> Vec<u8> {
        let mut document = Writer::default();
        document.string(1, "2.0");
        document.bytes(2, &self.info);
        document.bytes(8, &self.paths.finish());
        document.bytes(9, &self.definitions.finish());
        document.finish()
    }
}

fn message(layout: Layout, extension: Option<u32>, value: &Value) -> Vec<u8> {
    let mut writer = Writer::default();
    for (key, form) in layout {
        let Some(value) = value.get(*key) else { continue };
        let list = value.as_array().into_iter().flatten();
        match form {
            Form::Text(tag) => writer.string(*tag, value.as_str().unwrap_or("")),
            Form::Bool(tag) => writer.integer(*tag, i64::from(value == &Value::Bool(true))),
            Form::Texts(tag) => list.filter_map(Value::as_str).for_each(|text| writer.string(*tag, text)),
            Form::Message(tag, make) => writer.bytes(*tag, &make(value)),
            Form::Messages(tag, make) => list.for_each(|item| writer.bytes(*tag, &make(item))),
        }
    }
    for (key, value) in extensions(value) {
        if let Some(tag) = extension {
            writer.bytes(tag, &named(key, &any(value)));
        }
    }
    writer.finish()
}

fn extensions(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flat_map(Map::iter).filter(|(key, _)| key.starts_with("x-"))
}

/// A message of a name and a value.
fn named(name: &str, value: &[u8]) -> Vec<u8> {
    let mut writer = Writer::default();
    writer.string(1, name);
    writer.bytes(2, value);
    writer.finish()
}

/// A message that has only field 1.
fn first(value: &[u8]) -> Vec<u8> {
    let mut writer = Writer::default();
    writer.bytes(1, value);
    writer.finish()
}

/// `Any` holds YAML, of which JSON is a part.
fn any(value: &Value) -> Vec<u8> {
    let mut writer = Writer::default();
    writer.string(2, &value.to_string());
    writer.finish()
}

fn schema(value: &Value) -> Vec<u8> {
    message(SCHEMA, Some(SCHEMA_EXTENSION), value)
}

fn schema_item(value: &Value) -> Vec<u8> {
    first(&schema(value))
}

fn items(value: &Value) -> Vec<u8> {
    first(&schema(value))
}

fn type_item(value: &Value) -> Vec<u8> {
    first(value.as_str().unwrap_or("").as_bytes())
}

fn additional_properties(value: &Value) -> Vec<u8> {
    match value {
        Value::Bool(allowed) => {
            let mut writer = Writer::default();
            writer.integer(2, i64::from(*allowed));
            writer.finish()
        }
        value => first(&schema(value)),
    }
}

fn named_schemas(value: &Value) -> Vec<u8> {
    let mut writer = Writer::default();
    for (name, value) in value.as_object().into_iter().flatten() {
        writer.bytes(1, &named(name, &schema(value)));
    }
    writer.finish()
}

fn operation(value: &Value) -> Vec<u8> {
    message(OPERATION, Some(OPERATION_EXTENSION), value)
}

/// `ParametersItem{Parameter{body | non-body{query | path}}}`
fn parameter(value: &Value) -> Vec<u8> {
    let (layout, tags): (Layout, &[u32]) = match value.get("in").and_then(Value::as_str) {
        Some("body") => (BODY_PARAMETER, &[1]),
        Some("path") => (PATH_PARAMETER, &[4, 2]),
        _ => (QUERY_PARAMETER, &[3, 2]),
    };
    let inner = tags.iter().fold(message(layout, None, value), |inner, tag| {
        let mut writer = Writer::default();
        writer.bytes(*tag, &inner);
        writer.finish()
    });
    first(&inner)
}

fn responses(value: &Value) -> Vec<u8> {
    let mut writer = Writer::default();
    for (code, response) in value.as_object().into_iter().flatten() {
        writer.bytes(1, &named(code, &first(&message(RESPONSE, None, response))));
    }
    writer.finish()
}
