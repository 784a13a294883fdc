//! JSON patch, RFC 6902, with the limits and status codes of the API server.

use serde_json::Value;

use crate::api::ApiError;
use crate::api::field::FieldError;

/// A patch with more operations is refused.
const OPERATIONS_MAX: usize = 10_000;

/// Applies a JSON patch; on any error nothing is changed.
///
/// # Errors
/// 400 if it is no JSON patch, 413 if it has too many operations, 422 if an operation fails (`test` too).
pub fn apply(mut current: Value, patch: &Value) -> Result<Value, ApiError> {
    let count = patch.as_array().map_or(0, Vec::len);
    if count > OPERATIONS_MAX {
        return Err(ApiError::too_large(format!(
            "The allowed maximum operations in a JSON patch is {OPERATIONS_MAX}, got {count}"
        )));
    }
    let operations: json_patch::Patch =
        serde_json::from_value(patch.clone()).map_err(|error| ApiError::bad_request(format!("error decoding patch: {error}")))?;
    match json_patch::patch(&mut current, &operations) {
        Ok(()) => Ok(current),
        Err(error) => Err(refused(&operations, &error)),
    }
}

/// 422 in the form of upstream, which has no name and no kind here.
fn refused(operations: &json_patch::Patch, error: &json_patch::PatchError) -> ApiError {
    use json_patch::{PatchErrorKind, PatchOperation};
    let operation = operations.0.get(error.operation);
    let why = match (&error.kind, operation) {
        (PatchErrorKind::TestFailed, Some(operation)) => {
            format!("testing value {} failed: test failed", operation.path())
        }
        (_, Some(operation)) => {
            let word = match operation {
                PatchOperation::Add(_) => "add",
                PatchOperation::Remove(_) => "remove",
                PatchOperation::Replace(_) => "replace",
                PatchOperation::Move(_) => "move",
                PatchOperation::Copy(_) => "copy",
                PatchOperation::Test(_) => "test",
            };
            format!("{word} operation does not apply: doc is missing path: {:?}: missing value", operation.path().to_string())
        }
        (_, None) => error.to_string(),
    };
    let mut refusal = ApiError::invalid("", "", "", &[FieldError::invalid("patch".into(), "", why.clone())]);
    refusal.message = format!("the server rejected our request due to an error in our request: {why}");
    refusal
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn applies_or_changes_nothing() {
        let current = json!({"a": {"b/c": 1}, "l": [1, 2]});
        for (patch, result) in [
            (json!([{"op": "add", "path": "/l/-", "value": 3}]), json!({"a": {"b/c": 1}, "l": [1, 2, 3]})),
            (json!([{"op": "replace", "path": "/a/b~1c", "value": 2}]), json!({"a": {"b/c": 2}, "l": [1, 2]})),
            (json!([{"op": "test", "path": "/l/0", "value": 1}, {"op": "remove", "path": "/l"}]), json!({"a": {"b/c": 1}})),
        ] {
            assert_eq!(apply(current.clone(), &patch), Ok(result));
        }
        for (patch, code) in [
            (json!([{"op": "test", "path": "/l/0", "value": 2}]), 422),
            (json!([{"op": "add", "path": "/x/y", "value": 2}]), 422),
            (json!([{"op": "remove", "path": "/x"}]), 422),
            (json!([{"op": "what", "path": "/x"}]), 400),
            (json!({"a": 1}), 400),
            (json!(vec![json!({"op": "remove", "path": "/l"}); 10_001]), 413),
        ] {
            assert_eq!(apply(current.clone(), &patch).unwrap_err().code, code, "{patch}");
        }
    }
}
