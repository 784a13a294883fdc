//! Protobuf bodies: between `application/vnd.kubernetes.protobuf` and the JSON tree, driven by the table of types.
//!
//! A body is `k8s\0` and a `runtime.Unknown` around the message. Only built-in types have messages; for anything else a body is a
//! 415 and an answer is JSON. Go writes empty strings, zeroes and empty structs of fields that are no pointers: what JSON would
//! leave out (`omitempty`) is left out here too, so that both forms of a body decode to the same object.

use serde_json::{Map, Value};

use super::ApiError;
use super::schema::{self, Type};

mod decode;
mod encode;
pub(crate) mod wire;

use wire::{Reader, Writer};

/// The media type of bodies.
pub const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";

/// What a body starts with.
const PREFIX: &[u8] = b"k8s\0";

/// Why bytes are no object, or an object has no bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtoError {
    #[error("provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]")]
    Prefix,
    #[error("no kind {kind:?} is registered for version {api_version:?} in scheme")]
    UnknownKind { api_version: String, kind: String },
    #[error("unexpected EOF")]
    Truncated,
    #[error("proto: illegal wireType {0}")]
    WireType(u8),
    #[error("proto: illegal tag 0")]
    ZeroTag,
    #[error("proto: integer overflow")]
    Overflow,
    #[error("proto: a string is not UTF-8")]
    Utf8,
    #[error("proto: messages are nested too deep")]
    Depth,
    #[error("json: {0}")]
    Json(String),
    #[error("{field} of {structure} does not fit its type")]
    Value { structure: &'static str, field: &'static str },
}

impl From<ProtoError> for ApiError {
    /// 400: the body is malformed (415, for kinds without a protobuf form, is the caller's to say).
    fn from(error: ProtoError) -> Self {
        Self::bad_request(error.to_string())
    }
}

/// Decodes a body. `expected` is the type where the envelope does not name one.
///
/// # Errors
/// [`ProtoError`]; `UnknownKind` if the type has no protobuf form.
pub fn decode(body: &[u8], expected: Option<&Type>) -> Result<Map<String, Value>, ProtoError> {
    let envelope = Envelope::read(body.strip_prefix(PREFIX).ok_or(ProtoError::Prefix)?)?;
    if envelope.content_type == "application/json" {
        return serde_json::from_slice(envelope.raw).map_err(|error| ProtoError::Json(error.to_string()));
    }
    let named = schema::for_gvk(envelope.api_version, envelope.kind);
    let of = match (named, envelope.kind.is_empty()) {
        (Some(of), _) => of,
        (None, true) => expected.ok_or_else(|| envelope.unknown_kind())?,
        (None, false) => return Err(envelope.unknown_kind()),
    };
    let mut object = decode::message(envelope.raw, of)?;
    for (key, text) in [("apiVersion", envelope.api_version), ("kind", envelope.kind)] {
        if !text.is_empty() {
            object.insert(key.to_owned(), Value::String(text.to_owned()));
        }
    }
    Ok(object)
}

/// Encodes an object, list or Status with its envelope, by its `apiVersion` and `kind`.
///
/// # Errors
/// `UnknownKind` if the kind has no protobuf form: answer in JSON. `Value` if a value does not fit its type.
pub fn encode(object: &Map<String, Value>) -> Result<Vec<u8>, ProtoError> {
    let text = |key: &str| object.get(key).and_then(Value::as_str).unwrap_or("");
    let (api_version, kind) = (text("apiVersion"), text("kind"));
    let unknown = || ProtoError::UnknownKind { api_version: api_version.to_owned(), kind: kind.to_owned() };
    let of = schema::for_gvk(api_version, kind).ok_or_else(unknown)?;
    let raw = encode::message(object, of)?;
    let mut type_meta = Writer::default();
    type_meta.string(1, api_version);
    type_meta.string(2, kind);
    let mut unknown = Writer::default();
    unknown.bytes(1, &type_meta.finish());
    unknown.bytes(2, &raw);
    unknown.string(3, "");
    unknown.string(4, "");
    Ok([PREFIX, &unknown.finish()].concat())
}

/// One frame of a watch stream: the length in four bytes, and a `WatchEvent` around an [encoded](encode) object.
pub fn watch_frame(event_type: &str, object: &[u8]) -> Vec<u8> {
    let mut extension = Writer::default();
    extension.bytes(1, object);
    let mut event = Writer::default();
    event.string(1, event_type);
    event.bytes(2, &extension.finish());
    let event = event.finish();
    let length = u32::try_from(event.len()).unwrap_or(u32::MAX);
    [&length.to_be_bytes()[..], &event].concat()
}

/// `runtime.Unknown`.
#[derive(Default)]
struct Envelope<'a> {
    api_version: &'a str,
    kind: &'a str,
    raw: &'a [u8],
    content_type: &'a str,
}

impl<'a> Envelope<'a> {
    fn read(bytes: &'a [u8]) -> Result<Self, ProtoError> {
        let mut envelope = Self::default();
        let mut reader = Reader::new(bytes);
        while let Some((tag, field)) = reader.next_field()? {
            match tag {
                1 => {
                    let mut type_meta = Reader::new(field.bytes()?);
                    while let Some((tag, field)) = type_meta.next_field()? {
                        match tag {
                            1 => envelope.api_version = field.string()?,
                            2 => envelope.kind = field.string()?,
                            _ => {}
                        }
                    }
                }
                2 => envelope.raw = field.bytes()?,
                4 => envelope.content_type = field.string()?,
                _ => {}
            }
        }
        Ok(envelope)
    }

    fn unknown_kind(&self) -> ProtoError {
        ProtoError::UnknownKind { api_version: self.api_version.to_owned(), kind: self.kind.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn object(value: Value) -> Map<String, Value> {
        let Value::Object(map) = value else { panic!("{value} is no object") };
        map
    }

    #[test]
    fn survives_the_wire() {
        for value in [
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "labels": {"x": ""}}, "data": {"k": "v"}, "binaryData": {"b": "AAE="}}),
            json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "creationTimestamp": "2026-01-02T03:04:05Z", "ownerReferences": [{"apiVersion": "v1", "kind": "X", "name": "n", "uid": "u", "controller": false}]},
                "spec": {"replicas": 0, "selector": {"matchLabels": {"app": "web"}}, "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": 1}},
                    "template": {"metadata": {}, "spec": {"containers": [{"name": "c", "image": "nginx", "resources": {"limits": {"cpu": "500m"}}, "ports": [{"containerPort": 80}],
                        "env": [{"name": "E", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k", "optional": true}}}],
                        "livenessProbe": {"httpGet": {"path": "/", "port": "http"}, "periodSeconds": 5}}],
                        "volumes": [{"name": "v", "emptyDir": {}}, {"name": "p", "projected": {"sources": [{"configMap": {"name": "c"}}]}}]}}}}),
            json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "metadata": {}, "spec": {"user": "u", "extra": {"a": ["b", "c"]}}, "status": {"allowed": true}}),
            json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "l"}, "spec": {"renewTime": "2026-01-02T03:04:05.678901Z", "leaseDurationSeconds": 40}}),
            json!({"apiVersion": "v1", "kind": "PodList", "metadata": {"resourceVersion": "7"}, "items": [{"metadata": {"name": "a"}}, {"metadata": {"name": "b"}}]}),
            json!({"apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure", "code": 404, "details": {"name": "a", "causes": [{"message": "m"}]}}),
            json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "c"}, "spec": {"group": "g", "scope": "Namespaced", "names": {"plural": "p", "kind": "K"},
                "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object", "additionalProperties": false, "default": {"a": 1}, "maximum": 1.5,
                    "properties": {"l": {"items": {"type": "string"}}, "m": {"additionalProperties": {"type": "string"}}}, "enum": [1, "x", null]}}}]}}),
            json!({"apiVersion": "apps/v1", "kind": "ControllerRevision", "metadata": {}, "revision": 3, "data": {"any": [1, {"thing": null}]}}),
            json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy", "metadata": {}, "spec": {"matchConstraints": {"resourceRules": [{"apiGroups": ["apps"], "operations": ["CREATE"], "resourceNames": ["x"], "scope": "*"}]}}}),
            json!({"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": {}, "spec": {"rules": [{"host": "h", "http": {"paths": [{"path": "/", "pathType": "Prefix", "backend": {"service": {"name": "s", "port": {"number": 80}}}}]}}]}}),
        ] {
            let value = object(value);
            let bytes = encode(&value).unwrap();
            assert_eq!(decode(&bytes, None).unwrap(), value);
        }
    }

    /// What kubectl 1.33 and 1.37 send for `kubectl create NAME`, beside what `--dry-run=client -o json` prints.
    #[test]
    fn bodies_of_kubectl() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/api/protobuf");
        let mut count = 0;
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_none_or(|extension| extension != "bin") {
                continue;
            }
            let mut expected: Value = serde_json::from_slice(&std::fs::read(path.with_extension("json")).unwrap()).unwrap();
            let of = schema::for_gvk(expected["apiVersion"].as_str().unwrap(), expected["kind"].as_str().unwrap()).unwrap();
            assert_eq!(crate::api::prune::check(&mut expected, of), Vec::<String>::new());
            let body = std::fs::read(&path).unwrap();
            let decoded = decode(&body, None).unwrap();
            assert_eq!(Value::Object(decoded.clone()), expected, "{}", path.display());
            assert_eq!(decode(&encode(&decoded).unwrap(), None).unwrap(), decoded);
            count += 1;
        }
        assert_eq!(count, 12);
    }

    #[test]
    fn refuses_what_is_no_object() {
        for (bytes, error) in [
            (&b"{}"[..], ProtoError::Prefix),
            (b"k8s\0\x0a\xff", ProtoError::Truncated),
            (b"k8s\0\x0a\x05\x12\x03Foo", ProtoError::UnknownKind { api_version: String::new(), kind: "Foo".to_owned() }),
        ] {
            assert_eq!(decode(bytes, None), Err(error));
        }
        let custom = object(json!({"apiVersion": "example.com/v1", "kind": "Foo"}));
        assert!(matches!(encode(&custom), Err(ProtoError::UnknownKind { .. })));
    }

    #[test]
    fn frames_of_a_watch() {
        assert_eq!(watch_frame("ADDED", b"x"), b"\0\0\0\x0c\x0a\x05ADDED\x12\x03\x0a\x01x");
    }

    proptest! {
        #[test]
        fn never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let pod = schema::get("io.k8s.api.core.v1.Pod").unwrap();
            let _outcome = decode::message(&bytes, pod);
            let _outcome = decode(&[PREFIX, &bytes].concat(), Some(pod));
        }
    }
}
