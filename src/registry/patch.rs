//! Patch: JSON patch, merge patch and strategic merge patch over [`change`](super::change).

use serde_json::Value;

use super::change::Trust;
use super::{FieldValidation, Outcome, Registry, WriteRequest};
use crate::api::field::{FieldError, Path};
use crate::api::status::{Cause, Reason};
use crate::api::{ApiError, Kind, Object};

/// The form of a patch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PatchType {
    Json,
    Merge,
    Strategic,
}

impl PatchType {
    /// All forms with their media types.
    pub const ALL: &'static [(Self, &'static str)] = &[
        (Self::Json, "application/json-patch+json"),
        (Self::Merge, "application/merge-patch+json"),
        (Self::Strategic, "application/strategic-merge-patch+json"),
    ];
}

/// Operations in one JSON patch, at most.
const JSON_OPERATIONS_MAX: usize = 10_000;

impl Registry {
    /// Patches an object, or the part of it that the request's subresource covers.
    ///
    /// # Errors
    /// 400 for a malformed patch, 422 for one that does not apply, and as [`update`](Self::update).
    pub async fn patch(&self, request: &WriteRequest, patch_type: PatchType, patch: &[u8]) -> Result<Outcome, ApiError> {
        let patch = Patch::parse(patch_type, patch)?;
        let kind = &*request.kind;
        let outcome = self.change(request, Trust::Client, |old, warnings| {
            let mut object = patch.apply(kind, old)?;
            check_fields(request, kind, &patch, &mut object, warnings)?;
            Ok(object)
        });
        outcome.await
    }
}

/// A patch that was read.
pub(super) struct Patch {
    patch_type: PatchType,
    value: Value,
    operations: json_patch::Patch,
}

impl Patch {
    pub(super) fn parse(patch_type: PatchType, bytes: &[u8]) -> Result<Self, ApiError> {
        let malformed = |error: serde_json::Error| ApiError::bad_request(format!("error decoding patch: {error}"));
        let value: Value = serde_json::from_slice(bytes).map_err(malformed)?;
        let mut operations = json_patch::Patch::default();
        match patch_type {
            PatchType::Json => {
                let count = value.as_array().map_or(0, Vec::len);
                if count > JSON_OPERATIONS_MAX {
                    return Err(ApiError::too_large(format!(
                        "The allowed maximum operations in a JSON patch is {JSON_OPERATIONS_MAX}, got {count}"
                    )));
                }
                operations = serde_json::from_value(value.clone()).map_err(malformed)?;
            }
            PatchType::Merge | PatchType::Strategic if !value.is_object() => {
                return Err(ApiError::bad_request(
                    "error decoding patch: json: cannot unmarshal into Go value of type map[string]interface {}",
                ));
            }
            PatchType::Merge | PatchType::Strategic => {}
        }
        Ok(Self { patch_type, value, operations })
    }

    /// The patched object.
    pub(super) fn apply(&self, kind: &dyn Kind, old: &Object) -> Result<Object, ApiError> {
        let mut current = Value::Object(old.0.clone());
        match self.patch_type {
            PatchType::Json => {
                json_patch::patch(&mut current, &self.operations).map_err(|error| unprocessable(&error.to_string()))?;
            }
            PatchType::Merge => json_patch::merge(&mut current, &self.value),
            PatchType::Strategic => current = strategic(kind, current, &self.value)?,
        }
        match current {
            Value::Object(map) => Ok(Object(map)),
            _ => Err(unprocessable("the patched value is not an object")),
        }
    }
}

fn strategic(kind: &dyn Kind, _current: Value, _patch: &Value) -> Result<Value, ApiError> {
    Err(ApiError::unsupported_media_type(&[
        PatchType::ALL[0].1,
        PatchType::ALL[1].1,
        if kind.schema().is_some() { PatchType::ALL[2].1 } else { "application/apply-patch+yaml" },
    ]))
}

/// Drops what the type does not know, and says so as `fieldValidation` asks.
fn check_fields(
    request: &WriteRequest,
    kind: &dyn Kind,
    patch: &Patch,
    object: &mut Object,
    warnings: &mut Vec<String>,
) -> Result<(), ApiError> {
    let unknown = super::prune(kind, object);
    match request.field_validation {
        _ if unknown.is_empty() => Ok(()),
        FieldValidation::Ignore => Ok(()),
        FieldValidation::Warn => {
            warnings.extend(unknown);
            Ok(())
        }
        FieldValidation::Strict => {
            let why = format!("strict decoding error: {}", unknown.join(", "));
            let error = FieldError::invalid(Path::new("patch"), patch.value.to_string(), why);
            Err(ApiError::invalid(kind.names().group, kind.names().kind, object.name(), &[error]))
        }
    }
}

fn unprocessable(why: &str) -> ApiError {
    let mut error = ApiError::new(422, Reason::Invalid, "the server rejected our request due to an error in our request");
    error.details.causes =
        vec![Cause { reason: "UnexpectedServerResponse".to_owned(), message: why.to_owned(), field: String::new() }];
    error
}
