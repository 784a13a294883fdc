//! JSON schemas of the built-in types, from the table of `api::schema`, in the dialects of OpenAPI v2 and v3.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use crate::api::schema::{self, Descriptions, Field, ListType, Shape, Type};

/// Which OpenAPI.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    V2,
    V3,
}

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";
const EXTENSIONS: &str = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1";

impl Dialect {
    /// A reference to a named type.
    pub fn reference(self, name: &str) -> Value {
        match self {
            Self::V2 => json!({"$ref": format!("#/definitions/{name}")}),
            Self::V3 => json!({"$ref": format!("#/components/schemas/{name}")}),
        }
    }
}

/// The type that a shape refers to by name, with those that have no fields (`Quantity`, `Time`).
fn type_name(shape: &Shape) -> Option<String> {
    let name = match shape {
        Shape::Struct(id) => return Some(id.get().name.to_owned()),
        Shape::Time => format!("{META}.Time"),
        Shape::MicroTime => format!("{META}.MicroTime"),
        Shape::Fields => format!("{META}.FieldsV1"),
        Shape::Quantity => "io.k8s.apimachinery.pkg.api.resource.Quantity".to_owned(),
        Shape::IntOrString => "io.k8s.apimachinery.pkg.util.intstr.IntOrString".to_owned(),
        Shape::Raw => "io.k8s.apimachinery.pkg.runtime.RawExtension".to_owned(),
        Shape::Json => format!("{EXTENSIONS}.JSON"),
        Shape::PropsOrBool => format!("{EXTENSIONS}.JSONSchemaPropsOrBool"),
        Shape::PropsOrArray => format!("{EXTENSIONS}.JSONSchemaPropsOrArray"),
        Shape::PropsOrStrings => format!("{EXTENSIONS}.JSONSchemaPropsOrStringArray"),
        _ => return None,
    };
    Some(name)
}

/// All types that are reached from some, themselves included, in order of their names.
pub fn reachable(roots: impl IntoIterator<Item = &'static Type>) -> Vec<&'static Type> {
    let mut seen = BTreeSet::new();
    let mut open: Vec<&'static Type> = roots.into_iter().collect();
    while let Some(found) = open.pop() {
        if seen.insert(found.name) {
            let names = found.fields.iter().filter_map(|field| type_name(element(&field.shape)));
            open.extend(names.filter_map(|name| schema::get(&name)));
        }
    }
    seen.into_iter().filter_map(schema::get).collect()
}

fn element(shape: &Shape) -> &Shape {
    match shape {
        Shape::List(inner) | Shape::Map(inner) => element(inner),
        shape => shape,
    }
}

/// The schema of a type; `kinds` are the kinds whose type it is.
pub fn schema(of: &Type, kinds: &[Value], descriptions: &Descriptions, dialect: Dialect) -> Value {
    let mut out = special(of.name, dialect).unwrap_or_else(|| json!({"type": "object"}));
    describe(&mut out, descriptions.of_type(of));
    if !of.fields.is_empty() {
        let properties = of.fields.iter().map(|field| (field.name.to_owned(), property(field, descriptions, dialect)));
        out["properties"] = Value::Object(properties.collect());
    }
    let required: Vec<_> = of.fields.iter().filter(|field| field.is_required).map(|field| field.name).collect();
    if !required.is_empty() {
        out["required"] = json!(required);
    }
    if of.is_atomic {
        out["x-kubernetes-map-type"] = json!("atomic");
    }
    if !kinds.is_empty() {
        out["x-kubernetes-group-version-kind"] = json!(kinds);
    }
    out
}

/// The schema of a type that is no struct.
fn special(name: &str, dialect: Dialect) -> Option<Value> {
    let package = name.rsplit_once('.')?.0;
    let short = &name[package.len() + 1..];
    Some(match (short, dialect) {
        ("Time" | "MicroTime", _) if package == META => json!({"type": "string", "format": "date-time"}),
        ("Quantity", Dialect::V3) => json!({"oneOf": [{"type": "string"}, {"type": "number"}]}),
        ("Quantity", Dialect::V2) => json!({"type": "string"}),
        ("IntOrString", Dialect::V3) => json!({"format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]}),
        ("IntOrString", Dialect::V2) => json!({"type": "string", "format": "int-or-string"}),
        ("JSON" | "JSONSchemaPropsOrBool" | "JSONSchemaPropsOrArray" | "JSONSchemaPropsOrStringArray", _)
            if package == EXTENSIONS =>
        {
            json!({})
        }
        _ => return None,
    })
}

fn describe(out: &mut Value, description: &str) {
    if !description.is_empty() {
        out["description"] = json!(description);
    }
}

fn property(field: &Field, descriptions: &Descriptions, dialect: Dialect) -> Value {
    let mut out = value(&field.shape, dialect);
    let description = descriptions.of_field(field);
    if dialect == Dialect::V3 && out.get("$ref").is_some() && !description.is_empty() {
        // OpenAPI v3 knows no siblings of a reference.
        out = json!({"allOf": [out]});
    }
    describe(&mut out, description);
    if !field.default.is_empty() {
        out["default"] = json!(field.default);
    }
    if let Value::Object(out) = &mut out {
        extensions(field, out);
    }
    out
}

fn extensions(field: &Field, out: &mut Map<String, Value>) {
    let mut put = |key: &str, value: Value| out.insert(format!("x-kubernetes-{key}"), value);
    let patch = &field.patch;
    let strategies = [(patch.is_merge, "merge"), (patch.is_replace, "replace"), (patch.retains_keys, "retainKeys")];
    let strategies: Vec<_> = strategies.into_iter().filter(|(is_set, _)| *is_set).map(|(_, name)| name).collect();
    if !strategies.is_empty() {
        put("patch-strategy", json!(strategies.join(",")));
    }
    if !patch.merge_key.is_empty() {
        put("patch-merge-key", json!(patch.merge_key));
    }
    if field.is_atomic_map {
        put("map-type", json!("atomic"));
    }
    if matches!(field.shape, Shape::List(_)) {
        match &field.list {
            ListType::Atomic => put("list-type", json!("atomic")),
            ListType::Set => put("list-type", json!("set")),
            ListType::Map(keys) => {
                put("list-map-keys", json!(keys));
                put("list-type", json!("map"))
            }
        };
    }
}

fn value(shape: &Shape, dialect: Dialect) -> Value {
    match shape {
        Shape::String => json!({"type": "string"}),
        Shape::Bool => json!({"type": "boolean"}),
        Shape::Int32 => json!({"type": "integer", "format": "int32"}),
        Shape::Int64 => json!({"type": "integer", "format": "int64"}),
        Shape::Double => json!({"type": "number", "format": "double"}),
        Shape::Bytes => json!({"type": "string", "format": "byte"}),
        Shape::List(inner) => json!({"type": "array", "items": inner_value(inner, dialect)}),
        Shape::Map(inner) => json!({"type": "object", "additionalProperties": inner_value(inner, dialect)}),
        other => type_name(other).map_or_else(|| json!({}), |name| dialect.reference(&name)),
    }
}

fn inner_value(shape: &Shape, dialect: Dialect) -> Value {
    let out = value(shape, dialect);
    let is_struct = dialect == Dialect::V3 && matches!(shape, Shape::Struct(_));
    if is_struct { json!({"allOf": [out], "default": {}}) } else { out }
}
