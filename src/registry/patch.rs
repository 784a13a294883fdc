//! Patch: JSON patch, merge patch and strategic merge patch over [`change`](super::change).

use serde_json::Value;

use super::change::Trust;
use super::{Outcome, Registry, WriteRequest};
use crate::api::field::{FieldError, Path};
use crate::api::prune::{self, FieldValidation};
use crate::api::{ApiError, Kind, Object, patch, schema};

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
}

impl Patch {
    pub(super) fn parse(patch_type: PatchType, bytes: &[u8]) -> Result<Self, ApiError> {
        let value: Value =
            serde_json::from_slice(bytes).map_err(|error| ApiError::bad_request(format!("error decoding patch: {error}")))?;
        if patch_type != PatchType::Json && !value.is_object() {
            return Err(ApiError::bad_request(
                "error decoding patch: json: cannot unmarshal into Go value of type map[string]interface {}",
            ));
        }
        Ok(Self { patch_type, value })
    }

    /// The patched object.
    pub(super) fn apply(&self, kind: &dyn Kind, old: &Object) -> Result<Object, ApiError> {
        let current = Value::Object(old.0.clone());
        let patched = match self.patch_type {
            PatchType::Json => patch::json::apply(current, &self.value)?,
            PatchType::Merge => patch::merge::apply(current, &self.value),
            PatchType::Strategic => patch::strategic::apply(current, self.value.clone(), patchable(kind)?)?,
        };
        match patched {
            Value::Object(map) => Ok(Object(map)),
            _ => Err(ApiError::bad_request("error decoding patch: the patched value is not an object")),
        }
    }
}

/// The type that a strategic merge goes by; kinds without one take the other forms only.
fn patchable(kind: &dyn Kind) -> Result<&'static schema::Type, ApiError> {
    kind.schema().and_then(schema::get).ok_or_else(|| {
        ApiError::unsupported_media_type(&[
            "application/json-patch+json",
            "application/merge-patch+json",
            "application/apply-patch+yaml",
        ])
    })
}

/// Checks the patched object against its type: wrong types are refused, unknown fields dropped or refused.
fn check_fields(
    request: &WriteRequest,
    kind: &dyn Kind,
    patch: &Patch,
    object: &mut Object,
    warnings: &mut Vec<String>,
) -> Result<(), ApiError> {
    let Some(of) = kind.schema().and_then(schema::get) else { return Ok(()) };
    let mut value = Value::Object(std::mem::take(&mut object.0));
    let wrong = prune::wrong_type(&value, of);
    let unknown = prune::check(&mut value, of);
    if let Value::Object(map) = value {
        object.0 = map;
    }
    let why = match (wrong, request.field_validation) {
        (Some(wrong), _) => wrong,
        (None, FieldValidation::Strict) if !unknown.is_empty() => prune::strict(&unknown),
        (None, FieldValidation::Warn) => {
            warnings.extend(unknown);
            return Ok(());
        }
        (None, _) => return Ok(()),
    };
    let error = FieldError::invalid(Path::new("patch"), patch.value.to_string(), why);
    Err(ApiError::invalid(kind.names().group, kind.names().kind, object.name(), &[error]))
}
