//! ConfigMap: configuration as keys and values.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ConfigMap;
use serde_json::Value;

use crate::api::field::{FieldError, Path};
use crate::api::kind::{Column, Subresource};
use crate::api::names;
use crate::kinds::check::Errors;
use crate::kinds::print::{age, name};
use crate::kinds::typed::Definition;

/// How many bytes the values of a ConfigMap or Secret may have together.
pub const DATA_MAX: usize = 1024 * 1024;

/// The kind.
pub static CONFIG_MAP: Definition<ConfigMap> = Definition {
    columns: &[Column::NAME, Column::integer("Data"), Column::AGE],
    row: Some(row),
    validate: Some(validate),
    validate_update: Some(validate_update),
    ..Definition::namespaced("io.k8s.api.core.v1.ConfigMap", "core/configmaps", "configmap").short(&["cm"])
};

fn validate(map: &ConfigMap) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let texts = map.data.iter().flatten().map(|(key, value)| ("data", key, value.len()));
    let bytes = map.binary_data.iter().flatten().map(|(key, value)| ("binaryData", key, value.0.len()));
    let mut total = 0;
    for (field, key, size) in texts.chain(bytes) {
        let path = Path::new(field).key(key);
        errors.extend(names::config_map_key(key).into_iter().map(|why| FieldError::invalid(path.clone(), key.as_str(), why)));
        let is_binary_too = field == "data" && map.binary_data.as_ref().is_some_and(|data| data.contains_key(key));
        if is_binary_too {
            errors.push(FieldError::invalid(path, key.as_str(), "duplicate of key present in binaryData"));
        }
        total += size;
    }
    if total > DATA_MAX {
        errors.push(FieldError::too_long(Path::from("[]"), DATA_MAX));
    }
    errors
}

/// Refuses a change of a field once the object is immutable.
pub fn frozen(errors: &mut Errors, field: &str, is_same: bool) {
    if !is_same {
        errors.push(FieldError::forbidden(Path::new(field), "field is immutable when `immutable` is set"));
    }
}

fn validate_update(new: &ConfigMap, old: &ConfigMap, _subresource: Option<Subresource>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if old.immutable == Some(true) {
        frozen(&mut errors, "immutable", new.immutable == Some(true));
        frozen(&mut errors, "data", new.data.clone().unwrap_or_default() == old.data.clone().unwrap_or_default());
        let binary = |map: &ConfigMap| map.binary_data.clone().unwrap_or_default();
        frozen(&mut errors, "binaryData", binary(new) == binary(old));
    }
    errors.extend(validate(new));
    errors
}

fn row(map: &ConfigMap, now: Timestamp) -> Vec<Value> {
    let count = map.data.as_ref().map_or(0, |data| data.len()) + map.binary_data.as_ref().map_or(0, |data| data.len());
    vec![name(&map.metadata), count.into(), age(&map.metadata, now)]
}
