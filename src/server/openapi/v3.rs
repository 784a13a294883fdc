//! OpenAPI v3: one document a group and version.

use serde_json::{Map, Value, json};

use super::paths::{Body, Operation, Parameter, PathItem};
use super::schemas::Dialect;

const OBJECT_TYPES: &[&str] = &["application/json", "application/vnd.kubernetes.protobuf", "application/yaml"];
const STREAM_TYPES: &[&str] = &["application/json;stream=watch", "application/vnd.kubernetes.protobuf;stream=watch"];
const PATCH_TYPES: &[&str] = &[
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
];
const PATCH: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Patch";
const DELETE_OPTIONS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions";

/// A path of the document. `patch_types` are the media types of patches beyond those that every kind takes.
pub fn path(item: &PathItem) -> Value {
    let operations = item.operations.iter().map(|found| (found.method.to_owned(), operation(found)));
    let mut out: Map<String, Value> = operations.collect();
    let mut parameters: Vec<_> = item.parameters.iter().map(|name| path_parameter(name)).collect();
    parameters.push(query_parameter(&super::PRETTY));
    out.insert("parameters".to_owned(), Value::Array(parameters));
    Value::Object(out)
}

fn operation(found: &Operation) -> Value {
    let (group, version, kind) = &found.kind;
    let mut out = json!({
        "tags": [found.tag],
        "description": found.description,
        "operationId": found.id,
        "responses": responses(found),
        "x-kubernetes-action": found.action,
        "x-kubernetes-group-version-kind": {"group": group, "version": version, "kind": kind},
    });
    if !found.parameters.is_empty() {
        out["parameters"] = found.parameters.iter().map(query_parameter).collect();
    }
    match &found.body {
        Body::None => {}
        Body::Object(schema) => out["requestBody"] = json!({"content": content(&["*/*"], schema), "required": true}),
        Body::Patch => out["requestBody"] = json!({"content": content(PATCH_TYPES, PATCH), "required": true}),
        Body::DeleteOptions => out["requestBody"] = json!({"content": content(&["*/*"], DELETE_OPTIONS)}),
    }
    out
}

fn responses(found: &Operation) -> Value {
    let answer = |description: &str| {
        if found.response.is_empty() {
            return json!({"description": description, "content": {"*/*": {"schema": {"type": "string"}}}});
        }
        let streams = if found.action == "list" { STREAM_TYPES } else { &[] };
        let types: Vec<_> = OBJECT_TYPES.iter().chain(streams).copied().collect();
        json!({"description": description, "content": content(&types, &found.response)})
    };
    let mut out = json!({"200": answer("OK"), "401": {"description": "Unauthorized"}});
    match found.action {
        "post" => {
            out["201"] = answer("Created");
            out["202"] = answer("Accepted");
        }
        "put" | "patch" => out["201"] = answer("Created"),
        "delete" => out["202"] = answer("Accepted"),
        _ => {}
    }
    out
}

fn content(types: &[&str], schema: &str) -> Value {
    types
        .iter()
        .map(|media| ((*media).to_owned(), json!({"schema": Dialect::V3.reference(schema)})))
        .collect::<Map<_, _>>()
        .into()
}

fn path_parameter(name: &str) -> Value {
    json!({"name": name, "in": "path", "description": super::path_description(name), "required": true, "schema": {"type": "string", "uniqueItems": true}})
}

fn query_parameter(found: &Parameter) -> Value {
    json!({"name": found.name, "in": "query", "description": found.description, "schema": {"type": found.kind, "uniqueItems": true}})
}
