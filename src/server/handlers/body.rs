//! Request bodies: read with a limit, decoded as their `Content-Type` says, checked against the type and the URL.

use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError};
use serde_json::Value;

use super::super::RequestInfo;
use super::super::negotiate::{self, Media};
use crate::api::proto::{self, ProtoError};
use crate::api::prune::{self, FieldValidation};
use crate::api::schema::{self, Type};
use crate::api::{ApiError, Kind, Object, yaml};
use crate::http::Body;
use crate::rt::limits;

/// An object as a client sent it.
pub struct Decoded {
    pub object: Object,
    /// `unknown field "spec.foo"`, `duplicate field "spec.foo"`, for `Warning` headers.
    pub warnings: Vec<String>,
}

/// Reads the whole body.
///
/// # Errors
/// 413 when it is too large, 400 when the connection breaks.
pub async fn read(stream: Body) -> Result<Bytes, ApiError> {
    collect(stream, limits::REQUEST_BODY_BYTES).await
}

/// Reads a body of at most `limit` bytes.
///
/// # Errors
/// As [`read`].
pub async fn collect(mut stream: Body, limit: usize) -> Result<Bytes, ApiError> {
    let too_large = || ApiError::too_large(format!("Request entity too large: limit is {limit}"));
    let mut pieces: Vec<Bytes> = Vec::new();
    let mut total = 0;
    while let Some(frame) = stream.frame().await {
        let frame = frame.map_err(|error| {
            if error.is::<LengthLimitError>() {
                too_large()
            } else {
                ApiError::bad_request(format!("unable to read the request body: {error}"))
            }
        })?;
        let Ok(data) = frame.into_data() else { continue };
        total += data.len();
        if total > limit {
            return Err(too_large());
        }
        pieces.push(data);
    }
    Ok(match pieces.len() {
        0 => Bytes::new(),
        1 => pieces.swap_remove(0),
        _ => pieces.concat().into(),
    })
}

/// Decodes an object without checking it against a type; `expected` is for encodings that do not name theirs.
///
/// # Errors
/// 400 in the decoder's words.
pub fn decode(media: Media, bytes: &[u8], expected: Option<&Type>) -> Result<Decoded, ApiError> {
    let parsed = parse(media, bytes, expected)?;
    match parsed.value {
        Value::Object(map) => Ok(Decoded { object: Object(map), warnings: parsed.duplicates }),
        other => Err(ApiError::bad_request(format!(
            "couldn't get version/kind; json parse error: json: cannot unmarshal {} into Go value of type struct {{ APIVersion string \"json:\\\"apiVersion,omitempty\\\"\"; Kind string \"json:\\\"kind,omitempty\\\"\" }}",
            prune::kind_of(&other)
        ))),
    }
}

fn parse(media: Media, bytes: &[u8], expected: Option<&Type>) -> Result<yaml::Parsed, ApiError> {
    match media {
        Media::Json => yaml::from_json(bytes)
            .map_err(|error| ApiError::bad_request(format!("couldn't get version/kind; json parse error: {error}"))),
        Media::Yaml => yaml::to_value(bytes).map_err(ApiError::bad_request),
        Media::Protobuf => {
            let map = proto::decode(bytes, expected).map_err(|error| match error {
                ProtoError::UnknownKind { .. } => ApiError::unsupported_media_type(&["application/json", "application/yaml"]),
                other => ApiError::bad_request(other.to_string()),
            })?;
            Ok(yaml::Parsed { value: Value::Object(map), duplicates: Vec::new() })
        }
    }
}

/// The object in the body of a server-side apply: YAML, of which JSON is a part.
///
/// # Errors
/// 400 when it is malformed, or has a key twice and the client wants that refused.
pub fn applied(bytes: &[u8], validation: FieldValidation) -> Result<Decoded, ApiError> {
    let parsed = yaml::to_value(bytes).map_err(|why| ApiError::bad_request(format!("error decoding YAML: {why}")))?;
    let Value::Object(map) = parsed.value else {
        let found = prune::kind_of(&parsed.value);
        let why = format!("json: cannot unmarshal {found} into Go value of type map[string]interface {{}}");
        return Err(ApiError::bad_request(format!("error decoding YAML: error unmarshaling JSON: while decoding JSON: {why}")));
    };
    let warnings = match validation {
        FieldValidation::Ignore => Vec::new(),
        FieldValidation::Strict if !parsed.duplicates.is_empty() => {
            let why = parsed.duplicates.join(", ");
            return Err(ApiError::bad_request(format!("error strict decoding YAML: error converting YAML to JSON: {why}")));
        }
        FieldValidation::Strict | FieldValidation::Warn => parsed.duplicates,
    };
    Ok(Decoded { object: Object(map), warnings })
}

/// The object of `kind` in a request body, for a create or an update of what the URL names.
///
/// # Errors
/// 415, 400 when it is malformed, strict validation fails, or it does not match the URL.
pub fn object(
    kind: &dyn Kind,
    info: &RequestInfo,
    headers: &::http::HeaderMap,
    bytes: &[u8],
    validation: FieldValidation,
) -> Result<Decoded, ApiError> {
    let of = kind.schema().and_then(schema::get);
    let mut decoded = decode(negotiate::content_type(headers)?, bytes, of)?;
    check_type(kind, &mut decoded.object)?;
    if let Some(of) = of {
        let mut value = Value::Object(std::mem::take(&mut decoded.object.0));
        decoded.warnings = prune::decode(&mut value, of, validation, &decoded.warnings)?;
        if let Value::Object(map) = value {
            decoded.object.0 = map;
        }
    }
    check_namespace(kind, info, &mut decoded.object)?;
    if !info.name.is_empty() && !matches!(info.verb.as_str(), "create") {
        check_name(info, &decoded.object)?;
    }
    Ok(decoded)
}

fn check_type(kind: &dyn Kind, object: &mut Object) -> Result<(), ApiError> {
    let names = kind.names();
    let expected = names.api_version();
    match object.api_version() {
        "" => object.set(&["apiVersion"], expected.as_str()),
        same if same == expected => {}
        other => {
            return Err(ApiError::bad_request(format!(
                "the API version in the data ({other}) does not match the expected API version ({expected})"
            )));
        }
    }
    match object.kind() {
        "" => object.set(&["kind"], names.kind),
        same if same == names.kind => {}
        other => {
            return Err(ApiError::bad_request(format!(
                "{other} in version {:?} cannot be handled as a {}: the object provided is unrecognized (must be of type {})",
                names.version, names.kind, names.kind
            )));
        }
    }
    if object.0.get("metadata").is_some_and(|metadata| !metadata.is_object() && !metadata.is_null()) {
        return Err(ApiError::bad_request(format!(
            "{} in version {:?} cannot be handled as a {}: json: cannot unmarshal into Go struct field {}.metadata of type v1.ObjectMeta",
            names.kind, names.version, names.kind, names.kind
        )));
    }
    Ok(())
}

fn check_namespace(kind: &dyn Kind, info: &RequestInfo, object: &mut Object) -> Result<(), ApiError> {
    if !kind.names().is_namespaced() {
        object.remove(&["metadata", "namespace"]);
        return Ok(());
    }
    match object.namespace() {
        "" => object.set(&["metadata", "namespace"], info.namespace.as_str()),
        same if same == info.namespace => {}
        _ => {
            return Err(ApiError::bad_request(
                "the namespace of the provided object does not match the namespace sent on the request",
            ));
        }
    }
    Ok(())
}

fn check_name(info: &RequestInfo, object: &Object) -> Result<(), ApiError> {
    match object.name() {
        "" => Err(ApiError::bad_request(format!(
            "the name of the object ({} based on URL) was undeterminable: name must be provided",
            info.name
        ))),
        same if same == info.name => Ok(()),
        other => Err(ApiError::bad_request(format!(
            "the name of the object ({other}) does not match the name on the URL ({})",
            info.name
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duplicates_are_named_with_their_path() {
        for (text, found) in [(r#"{"a":1,"b":{"c":[1,{"d":2}]}}"#, vec![]), (r#"{"a":1,"a":2}"#, vec!["duplicate field \"a\""])] {
            let decoded =
                decode(Media::Json, text.as_bytes(), None).map_err(|error| error.message).map(|decoded| decoded.warnings);
            assert_eq!(decoded.unwrap(), found, "{text}");
        }
        for bad in ["", "{", "[]", "{} x", "1"] {
            assert_eq!(decode(Media::Json, bad.as_bytes(), None).map(|_| ()).unwrap_err().code, 400, "{bad}");
        }
    }
}
