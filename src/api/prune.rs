//! Checks an object against its type: unknown fields are dropped and named, wrong types refused, in the words of Go's decoder.

use serde_json::{Map, Value};

use super::quantity::Quantity;
use super::schema::{self, Shape, Type};
use super::status::ApiError;

/// Upstream reports no more unknown fields than this.
const UNKNOWN_MAX: usize = 100;

/// What a client wants to happen with unknown and duplicate fields (`fieldValidation`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FieldValidation {
    Ignore,
    /// Each becomes a `Warning` header.
    #[default]
    Warn,
    /// Any is a 400.
    Strict,
}

impl FieldValidation {
    /// Reads the query parameter; "" is the default.
    ///
    /// # Errors
    /// 422-worthy text for any other word.
    pub fn parse(text: &str) -> Result<Self, ApiError> {
        match text {
            "" | "Warn" => Ok(Self::Warn),
            "Ignore" => Ok(Self::Ignore),
            "Strict" => Ok(Self::Strict),
            _ => Err(ApiError::bad_request(format!(
                "invalid fieldValidation: Unsupported value: {text:?}: supported values: \"Ignore\", \"Strict\", \"Warn\""
            ))),
        }
    }
}

/// Drops fields that the type does not know, also in embedded metadata, and nulls; returns `unknown field "spec.foo"` for each
/// dropped field.
pub fn check(object: &mut Value, of: &Type) -> Vec<String> {
    let mut walk = Walk::default();
    if let Value::Object(map) = object {
        walk.structure(map, of);
    }
    walk.unknown
}

/// The first field whose value does not fit its type, as Go's decoder says it.
pub fn wrong_type(object: &Value, of: &Type) -> Option<String> {
    let mut path = Vec::new();
    match object {
        Value::Object(map) => structure_error(map, of, &mut path),
        other => Some(format!("json: cannot unmarshal {} into Go value of type {}", kind_of(other), of.go_name())),
    }
}

/// Does what decoding a body into a Go struct does: refuses wrong types, drops unknown fields, and refuses or reports those and
/// the duplicates (from `api::yaml`). Returns the warnings.
///
/// # Errors
/// 400 `BadRequest`: `Deployment in version "v1" cannot be handled as a Deployment: …`.
pub fn decode(
    object: &mut Value,
    of: &Type,
    validation: FieldValidation,
    duplicates: &[String],
) -> Result<Vec<String>, ApiError> {
    if let Some(why) = wrong_type(object, of) {
        return Err(cannot_be_handled(of, &why));
    }
    let mut findings = duplicates.to_vec();
    findings.extend(check(object, of));
    match validation {
        FieldValidation::Ignore => Ok(Vec::new()),
        FieldValidation::Warn => Ok(findings),
        FieldValidation::Strict if findings.is_empty() => Ok(findings),
        FieldValidation::Strict => Err(cannot_be_handled(of, &strict(&findings))),
    }
}

/// The text of a strict decoding error.
pub fn strict(findings: &[String]) -> String {
    format!("strict decoding error: {}", findings.join(", "))
}

/// 400 for a body that does not decode into its kind.
pub fn cannot_be_handled(of: &Type, why: &str) -> ApiError {
    let version = of.kind.map_or("v1", |kind| kind.version);
    let kind = of.short_name();
    ApiError::bad_request(format!("{kind} in version {version:?} cannot be handled as a {kind}: {why}"))
}

#[derive(Default)]
struct Walk {
    path: String,
    unknown: Vec<String>,
}

impl Walk {
    fn below(&mut self, step: &str, walk: impl FnOnce(&mut Self)) {
        let length = self.path.len();
        if length > 0 && !step.starts_with('[') {
            self.path.push('.');
        }
        self.path.push_str(step);
        walk(self);
        self.path.truncate(length);
    }

    fn structure(&mut self, map: &mut Map<String, Value>, of: &Type) {
        map.retain(|name, value| match of.field(name) {
            Some(_) if value.is_null() => false,
            Some(field) => {
                self.below(name, |walk| walk.value(value, &field.shape));
                true
            }
            None => {
                self.below(name, |walk| {
                    if walk.unknown.len() < UNKNOWN_MAX {
                        walk.unknown.push(format!("unknown field {:?}", walk.path));
                    }
                });
                false
            }
        });
    }

    fn value(&mut self, value: &mut Value, shape: &Shape) {
        // Within lists and maps Go's decoder leaves a null as the zero of its type.
        if value.is_null()
            && let Some(zero) = zero(shape)
        {
            *value = zero;
        }
        match (value, shape) {
            (Value::Object(map), Shape::Struct(id)) => self.structure(map, id.get()),
            (Value::Object(map), Shape::PropsOrBool | Shape::PropsOrArray | Shape::PropsOrStrings) => {
                props().into_iter().for_each(|of| self.structure(map, of));
            }
            (Value::Array(list), Shape::PropsOrArray) => {
                for (index, item) in list.iter_mut().enumerate() {
                    self.below(&format!("[{index}]"), |walk| walk.value(item, shape));
                }
            }
            (Value::Array(list), Shape::List(inner)) => {
                for (index, item) in list.iter_mut().enumerate() {
                    self.below(&format!("[{index}]"), |walk| walk.value(item, inner));
                }
            }
            (Value::Object(map), Shape::Map(inner)) => {
                for (key, item) in map.iter_mut() {
                    self.below(key, |walk| walk.value(item, inner));
                }
            }
            _ => {}
        }
    }
}

fn zero(shape: &Shape) -> Option<Value> {
    Some(match shape {
        Shape::String | Shape::Bytes => "".into(),
        Shape::Bool => false.into(),
        Shape::Int32 | Shape::Int64 | Shape::Double | Shape::IntOrString => 0.into(),
        Shape::Quantity => "0".into(),
        Shape::Struct(_) | Shape::Map(_) => Map::new().into(),
        Shape::List(_) => Vec::<Value>::new().into(),
        _ => return None,
    })
}

fn props() -> Option<&'static Type> {
    schema::get(schema::JSON_SCHEMA_PROPS)
}

fn structure_error<'a>(map: &'a Map<String, Value>, of: &Type, path: &mut Vec<&'a str>) -> Option<String> {
    map.iter().find_map(|(name, value)| {
        let field = of.field(name)?;
        path.push(name);
        let found = value_error(value, &field.shape, of, path);
        path.pop();
        found
    })
}

/// `of` is the innermost struct, which the text names.
fn value_error<'a>(value: &'a Value, shape: &Shape, of: &Type, path: &mut Vec<&'a str>) -> Option<String> {
    let mismatch = |found: &str, path: &[&str]| {
        let field = format!("{}.{}", of.short_name(), path.join("."));
        Some(format!("json: cannot unmarshal {found} into Go struct field {field} of type {}", shape.go_name()))
    };
    match (shape, value) {
        (_, Value::Null) | (Shape::Json, _) => None,
        (Shape::String, Value::String(_)) | (Shape::Bool, Value::Bool(_)) | (Shape::Double, Value::Number(_)) => None,
        (Shape::Raw | Shape::Fields, Value::Object(_)) => None,
        (Shape::Int32 | Shape::Int64, Value::Number(number)) => {
            let fits = number.as_i64().is_some_and(|n| *shape == Shape::Int64 || i32::try_from(n).is_ok());
            if fits { None } else { mismatch(&format!("number {number}"), path) }
        }
        (Shape::Bytes, Value::String(text)) => base64_error(text),
        (Shape::Quantity, Value::String(text)) => Quantity::parse(text.trim()).err().map(|error| error.to_string()),
        (Shape::Quantity, other) => Quantity::parse(&other.to_string()).err().map(|error| error.to_string()),
        (Shape::IntOrString, Value::String(_)) => None,
        (Shape::IntOrString, Value::Number(number)) if number.as_i64().is_some_and(|n| i32::try_from(n).is_ok()) => None,
        (Shape::IntOrString, other) => Some(format!("json: cannot unmarshal {} into Go value of type int32", kind_of(other))),
        (Shape::Time | Shape::MicroTime, Value::String(text)) => time_error(text),
        (Shape::PropsOrBool, Value::Bool(_)) => None,
        (Shape::PropsOrStrings, Value::Array(list)) if list.iter().all(Value::is_string) => None,
        (Shape::PropsOrArray, Value::Array(list)) => list.iter().find_map(|item| value_error(item, shape, of, path)),
        (Shape::PropsOrBool | Shape::PropsOrArray | Shape::PropsOrStrings, Value::Object(map)) => {
            structure_error(map, props()?, path)
        }
        (Shape::Struct(id), Value::Object(map)) => structure_error(map, id.get(), path),
        (Shape::List(inner), Value::Array(list)) => list.iter().find_map(|item| value_error(item, inner, of, path)),
        (Shape::Map(inner), Value::Object(map)) => map.values().find_map(|item| value_error(item, inner, of, path)),
        (_, other) => mismatch(kind_of(other), path),
    }
}

/// The word of JSON for what a value is, as Go's decoder names it in errors.
pub fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn base64_error(text: &str) -> Option<String> {
    use base64::Engine;
    match base64::engine::general_purpose::STANDARD.decode(text.replace(['\r', '\n'], "")) {
        Ok(_) => None,
        Err(base64::DecodeError::InvalidByte(at, _) | base64::DecodeError::InvalidLastSymbol(at, _)) => {
            Some(format!("illegal base64 data at input byte {at}"))
        }
        Err(_) => Some(format!("illegal base64 data at input byte {}", text.len() / 4 * 4)),
    }
}

fn time_error(text: &str) -> Option<String> {
    let valid = text.contains(['T', 't']) && text.parse::<jiff::Timestamp>().is_ok();
    let layout = "2006-01-02T15:04:05Z07:00";
    (!valid).then(|| format!("parsing time {text:?} as {layout:?}: cannot parse {text:?} as \"2006\""))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(name: &str) -> &'static Type {
        schema::get(&format!("io.k8s.api.{name}")).unwrap()
    }

    #[test]
    fn drops_and_names_unknown_fields() {
        let mut deployment = json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "foo": 1,
            "metadata": {"name": "a", "labels": {"x": "y"}, "bar": 1, "creationTimestamp": null},
            "spec": {"replicas": 1, "template": {"metadata": {"baz": 1}, "spec": {"containers": [{"name": "a", "imagee": "x"}]}}},
        });
        let unknown = check(&mut deployment, of("apps.v1.Deployment"));
        let names = ["foo", "metadata.bar", "spec.template.metadata.baz", "spec.template.spec.containers[0].imagee"];
        let mut expected: Vec<_> = names.map(|name| format!("unknown field {name:?}")).into();
        expected.sort();
        let mut unknown = unknown;
        unknown.sort();
        assert_eq!(unknown, expected);
        assert_eq!(
            deployment,
            json!({
                "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a", "labels": {"x": "y"}},
                "spec": {"replicas": 1, "template": {"metadata": {}, "spec": {"containers": [{"name": "a"}]}}},
            })
        );
    }

    #[test]
    fn nulls_in_lists_and_maps_are_zeros() {
        let mut pod = json!({"metadata": {"labels": {"a": null}, "name": null},
            "spec": {"nodeSelector": null, "containers": [{"command": ["sh", null], "env": [null], "resources": {"limits": {"cpu": null}}}]}});
        assert_eq!(check(&mut pod, of("core.v1.Pod")), Vec::<String>::new());
        assert_eq!(
            pod,
            json!({"metadata": {"labels": {"a": ""}},
                "spec": {"containers": [{"command": ["sh", ""], "env": [{}], "resources": {"limits": {"cpu": "0"}}}]}})
        );
    }

    #[test]
    fn refuses_wrong_types_in_gos_words() {
        let regex = "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'";
        for (name, object, text) in [
            (
                "apps.v1.Deployment",
                json!({"spec": {"replicas": "1"}}),
                "json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32",
            ),
            (
                "apps.v1.Deployment",
                json!({"spec": {"replicas": 1.5}}),
                "json: cannot unmarshal number 1.5 into Go struct field DeploymentSpec.spec.replicas of type int32",
            ),
            (
                "apps.v1.Deployment",
                json!({"spec": []}),
                "json: cannot unmarshal array into Go struct field Deployment.spec of type v1.DeploymentSpec",
            ),
            (
                "core.v1.Pod",
                json!({"spec": {"containers": {}}}),
                "json: cannot unmarshal object into Go struct field PodSpec.spec.containers of type []v1.Container",
            ),
            (
                "core.v1.Pod",
                json!({"spec": {"containers": [{"image": 1}]}}),
                "json: cannot unmarshal number into Go struct field Container.spec.containers.image of type string",
            ),
            (
                "core.v1.Pod",
                json!({"metadata": {"labels": {"a": 1}}}),
                "json: cannot unmarshal number into Go struct field ObjectMeta.metadata.labels of type string",
            ),
            ("core.v1.Pod", json!({"spec": {"containers": [{"resources": {"limits": {"cpu": "x"}}}]}}), regex),
            (
                "core.v1.Service",
                json!({"spec": {"ports": [{"targetPort": true}]}}),
                "json: cannot unmarshal bool into Go value of type int32",
            ),
            ("core.v1.Secret", json!({"data": {"a": "!"}}), "illegal base64 data at input byte 0"),
            ("core.v1.Pod", json!([]), "json: cannot unmarshal array into Go value of type v1.Pod"),
        ] {
            assert_eq!(wrong_type(&object, of(name)).as_deref(), Some(text));
        }
        for (name, object) in [
            (
                "core.v1.Pod",
                json!({"metadata": {"creationTimestamp": null, "deletionTimestamp": "2026-01-01T00:00:00Z"}, "spec": null}),
            ),
            ("core.v1.Pod", json!({"spec": {"containers": [{"resources": {"limits": {"cpu": 1, "memory": "1Gi"}}}]}})),
            ("core.v1.Service", json!({"spec": {"ports": [{"targetPort": 80}, {"targetPort": "http"}]}})),
        ] {
            assert_eq!(wrong_type(&object, of(name)), None);
        }
    }

    #[test]
    fn decodes_as_the_client_wishes() {
        let object = json!({"spec": {"foo": 1}});
        let duplicates = ["duplicate field \"spec.paused\"".to_owned()];
        let run = |validation| decode(&mut object.clone(), of("apps.v1.Deployment"), validation, &duplicates);
        assert_eq!(run(FieldValidation::Ignore), Ok(Vec::new()));
        assert_eq!(run(FieldValidation::Warn).unwrap(), ["duplicate field \"spec.paused\"", "unknown field \"spec.foo\""]);
        let error = run(FieldValidation::Strict).unwrap_err();
        assert_eq!(
            (error.code, error.message.as_str()),
            (
                400,
                "Deployment in version \"v1\" cannot be handled as a Deployment: strict decoding error: duplicate field \"spec.paused\", unknown field \"spec.foo\""
            )
        );
    }
}
