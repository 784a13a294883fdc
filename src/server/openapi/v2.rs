//! OpenAPI v2 ("swagger"): one document of all groups, for kubectl before 1.27 and other old clients.

use serde_json::{Map, Value, json};

use super::paths::{Body, Operation, Parameter, PathItem};
use super::schemas::Dialect;

const OBJECT_TYPES: &[&str] = &["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"];
const PATCH_TYPES: &[&str] = &[
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
];

/// A path of the document.
pub fn path(item: &PathItem) -> Value {
    let operations = item.operations.iter().map(|found| (found.method.to_owned(), operation(found)));
    let mut out: Map<String, Value> = operations.collect();
    let parameters = item.parameters.iter().map(|name| {
        json!({"name": name, "in": "path", "description": super::path_description(name), "required": true, "type": "string", "uniqueItems": true})
    });
    out.insert("parameters".to_owned(), parameters.chain([query_parameter(&super::PRETTY)]).collect());
    Value::Object(out)
}

fn operation(found: &Operation) -> Value {
    let (group, version, kind) = &found.kind;
    let body = |schema: &str, required: bool| json!({"name": "body", "in": "body", "required": required, "schema": Dialect::V2.reference(&format!("io.k8s.apimachinery.pkg.apis.meta.v1.{schema}"))});
    let body = match &found.body {
        Body::None => None,
        Body::Object(schema) => {
            Some(json!({"name": "body", "in": "body", "required": true, "schema": Dialect::V2.reference(schema)}))
        }
        Body::Patch => Some(body("Patch", true)),
        Body::DeleteOptions => Some(body("DeleteOptions", false)),
    };
    let parameters: Vec<_> = body.into_iter().chain(found.parameters.iter().map(query_parameter)).collect();
    let mut out = json!({
        "tags": [found.tag],
        "description": found.description,
        "operationId": found.id,
        "consumes": if matches!(found.body, Body::Patch) { PATCH_TYPES } else { &["*/*"] },
        "produces": OBJECT_TYPES,
        "schemes": ["https"],
        "responses": responses(found),
        "x-kubernetes-action": found.action,
        "x-kubernetes-group-version-kind": {"group": group, "version": version, "kind": kind},
    });
    if !parameters.is_empty() {
        out["parameters"] = Value::Array(parameters);
    }
    out
}

fn responses(found: &Operation) -> Value {
    let schema = if found.response.is_empty() { json!({"type": "string"}) } else { Dialect::V2.reference(&found.response) };
    let mut out = json!({"200": {"description": "OK", "schema": schema}, "401": {"description": "Unauthorized"}});
    let more: &[(&str, &str)] = match found.action {
        "post" => &[("201", "Created"), ("202", "Accepted")],
        "put" | "patch" => &[("201", "Created")],
        "delete" => &[("202", "Accepted")],
        _ => &[],
    };
    for (code, description) in more {
        out[*code] = json!({"description": description, "schema": schema});
    }
    out
}

fn query_parameter(found: &Parameter) -> Value {
    json!({"name": found.name, "in": "query", "description": found.description, "type": found.kind, "uniqueItems": true})
}
