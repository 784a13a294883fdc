//! Checks of environment variables and of fields named by them.

use k8s_openapi::api::core::v1::{EnvFromSource, EnvVar, EnvVarSource, ObjectFieldSelector, ResourceFieldSelector};

use crate::api::field::{FieldError, Path};
use crate::api::names;
use crate::api::quantity::Quantity;
use crate::kinds::check::{Errors, required, required_one_of, required_rule, rule, str_of};

/// Fields that a variable may take its value from.
const ENV_FIELDS: &[&str] = &[
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];

/// Fields that a downward API volume may show.
pub(super) const VOLUME_FIELDS: &[&str] =
    &["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];

const RESOURCE_FIELDS: &[&str] =
    &["limits.cpu", "limits.ephemeral-storage", "limits.memory", "requests.cpu", "requests.ephemeral-storage", "requests.memory"];

/// Checks the variables of a container.
pub fn variables(errors: &mut Errors, path: &Path, variables: &[EnvVar]) {
    for (index, variable) in variables.iter().enumerate() {
        let path = path.index(index);
        required_rule(errors, &path.child("name"), &variable.name, names::env_var_name);
        if let Some(from) = &variable.value_from {
            let has_value = !str_of(&variable.value).is_empty();
            value_from(errors, &path.child("valueFrom"), from, has_value);
        }
    }
}

fn value_from(errors: &mut Errors, path: &Path, from: &EnvVarSource, has_value: bool) {
    let mut sources = 0;
    if let Some(field) = &from.field_ref {
        sources += 1;
        field_ref(errors, &path.child("fieldRef"), field, ENV_FIELDS);
    }
    if let Some(field) = &from.resource_field_ref {
        sources += 1;
        resource_field_ref(errors, &path.child("resourceFieldRef"), field, false);
    }
    if let Some(key) = &from.config_map_key_ref {
        sources += 1;
        key_ref(errors, &path.child("configMapKeyRef"), &key.name, &key.key);
    }
    if let Some(key) = &from.secret_key_ref {
        sources += 1;
        key_ref(errors, &path.child("secretKeyRef"), &key.name, &key.key);
    }
    if let Some(key) = &from.file_key_ref {
        sources += 1;
        let path = path.child("fileKeyRef");
        required_rule(errors, &path.child("key"), &key.key, names::env_var_name);
        required_rule(errors, &path.child("volumeName"), &key.volume_name, names::dns1123_label);
        if required(errors, &path.child("path"), &key.path) {
            super::volume::local_path(errors, &path.child("path"), &key.path);
        }
    }
    let wrong = match sources {
        0 => "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`",
        _ if has_value => "may not be specified when `value` is not empty",
        1 => return,
        _ => "may not have more than one field specified at a time",
    };
    errors.push(FieldError::invalid(path.clone(), "", wrong));
}

fn key_ref(errors: &mut Errors, path: &Path, name: &str, key: &str) {
    required(errors, &path.child("name"), name);
    required_rule(errors, &path.child("key"), key, names::config_map_key);
}

/// Splits `metadata.labels['app']` into the map and its key.
fn subscript(path: &str) -> Option<(&str, &str)> {
    let (map, rest) = path.split_once("['")?;
    Some((map, rest.strip_suffix("']")?))
}

/// Checks a reference to a field of the pod.
pub(super) fn field_ref(errors: &mut Errors, path: &Path, field: &ObjectFieldSelector, supported: &[&str]) {
    if !required(errors, &path.child("apiVersion"), str_of(&field.api_version))
        || !required(errors, &path.child("fieldPath"), &field.field_path)
    {
        return;
    }
    let (version, path) = (str_of(&field.api_version), path.child("fieldPath"));
    if version != "v1" {
        let why = format!("error converting fieldPath: unsupported pod version: {version}");
        errors.push(FieldError::invalid(path, field.field_path.as_str(), why));
        return;
    }
    match subscript(&field.field_path) {
        Some(("metadata.annotations", key)) => rule(errors, &path, &key.to_lowercase(), names::qualified_name),
        Some(("metadata.labels", key)) => rule(errors, &path, key, names::qualified_name),
        Some((map, _)) => errors.push(FieldError::invalid(path, map, "does not support subscript")),
        None if supported.contains(&field.field_path.as_str()) => {}
        None if *supported == *ENV_FIELDS && VOLUME_FIELDS.contains(&field.field_path.as_str()) => {
            errors.push(FieldError::not_supported(path, field.field_path.as_str(), supported));
        }
        None if supported.len() == VOLUME_FIELDS.len() && ENV_FIELDS.contains(&field.field_path.as_str()) => {
            errors.push(FieldError::not_supported(path, field.field_path.as_str(), supported));
        }
        None => {
            let why = format!("error converting fieldPath: field label not supported: {}", field.field_path);
            errors.push(FieldError::invalid(path, field.field_path.as_str(), why));
        }
    }
}

/// Checks a reference to a resource of a container; in a volume it must name the container.
pub(super) fn resource_field_ref(errors: &mut Errors, path: &Path, field: &ResourceFieldSelector, in_volume: bool) {
    if in_volume && str_of(&field.container_name).is_empty() {
        errors.push(FieldError::required(path.child("containerName"), ""));
        return;
    }
    if !required(errors, &path.child("resource"), &field.resource) {
        return;
    }
    let is_hugepages = field.resource.starts_with("limits.hugepages-") || field.resource.starts_with("requests.hugepages-");
    if !is_hugepages && !RESOURCE_FIELDS.contains(&field.resource.as_str()) {
        errors.push(FieldError::not_supported(path.child("resource"), field.resource.as_str(), RESOURCE_FIELDS));
    }
    let Some(Ok(divisor)) =
        field.divisor.as_ref().map(Quantity::try_from).filter(|divisor| divisor.is_ok_and(|it| !it.is_zero()))
    else {
        return;
    };
    let text = divisor.to_string();
    let (resource, allowed): (&str, &[&str]) = match field.resource.split_once('.').map(|(_, name)| name) {
        Some("cpu") => ("cpu", &["1m", "1"]),
        Some("memory") => ("memory", &["1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"]),
        Some(name) => (name, &["1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"]),
        None => return,
    };
    if !allowed.contains(&text.as_str()) {
        let listed = match resource {
            "cpu" => "1m and 1".to_owned(),
            _ => allowed.join(", "),
        };
        let why = format!("only divisor's values {listed} are supported with the {resource} resource");
        errors.push(FieldError::invalid(path.child("divisor"), text, why));
    }
}

/// Checks the maps that a container takes variables from.
pub fn sources(errors: &mut Errors, path: &Path, sources: &[EnvFromSource]) {
    for (index, source) in sources.iter().enumerate() {
        let path = path.index(index);
        if let Some(prefix) = source.prefix.as_deref().filter(|prefix| !prefix.is_empty()) {
            rule(errors, &path.child("prefix"), prefix, names::env_var_name);
        }
        match (&source.config_map_ref, &source.secret_ref) {
            (Some(map), None) => {
                required(errors, &path.child("configMapRef").child("name"), &map.name);
            }
            (None, Some(secret)) => {
                required(errors, &path.child("secretRef").child("name"), &secret.name);
            }
            (None, None) => {
                errors.push(FieldError::invalid(path, "", "must specify one of: `configMapRef` or `secretRef`"));
            }
            (Some(_), Some(_)) => {
                errors.push(FieldError::invalid(path, "", "may not have more than one field specified at a time"));
            }
        }
    }
}

/// Checks the name and the like of a policy of pulling images.
pub fn pull_policy(errors: &mut Errors, path: &Path, policy: &str) {
    required_one_of(errors, path, policy, &["Always", "IfNotPresent", "Never"]);
}
