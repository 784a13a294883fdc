//! Secret: confidential data as keys and values.

use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use serde_json::{Map, Value};

use super::config_map::{DATA_MAX, frozen};
use crate::api::Object;
use crate::api::field::{FieldError, Path};
use crate::api::kind::{Column, Subresource};
use crate::api::names;
use crate::kinds::check::{Errors, immutable, str_of};
use crate::kinds::print::{age, name};
use crate::kinds::typed::{Definition, Selectable, names_of};

const ACCOUNT_NAME: &str = "kubernetes.io/service-account.name";
const REDACTED: &str = "<secret contents redacted>";

const FIELDS: [Selectable; 1] = [Selectable::text("type", &[&["type"]])];

/// The kind.
pub static SECRET: Definition<Secret> = Definition {
    columns: &[Column::NAME, Column::text("Type"), Column::integer("Data"), Column::AGE],
    row: Some(row),
    selectable: &FIELDS,
    selectable_names: &names_of(&FIELDS),
    default_object: Some(default),
    validate: Some(validate),
    validate_update: Some(validate_update),
    ..Definition::namespaced("io.k8s.api.core.v1.Secret", "core/secrets", "secret")
};

/// Sets the type, and moves `stringData` into `data`.
fn default(secret: &mut Object) {
    if secret.str_at(&["type"]).is_none_or(str::is_empty) {
        secret.set(&["type"], "Opaque");
    }
    let Some(Value::Object(texts)) = secret.0.remove("stringData") else { return };
    if !secret.get(&["data"]).is_some_and(Value::is_object) && !texts.is_empty() {
        secret.set(&["data"], Map::new());
    }
    for (key, text) in texts {
        if let Some(text) = text.as_str()
            && let Ok(encoded) = serde_json::to_value(ByteString(text.as_bytes().to_vec()))
        {
            secret.set(&["data", &key], encoded);
        }
    }
}

fn validate(secret: &Secret) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let path = Path::new("data");
    let data = secret.data.clone().unwrap_or_default();
    let mut total = 0;
    for (key, value) in &data {
        let path = path.key(key);
        errors.extend(names::config_map_key(key).into_iter().map(|why| FieldError::invalid(path.clone(), key.as_str(), why)));
        total += value.0.len();
    }
    if total > DATA_MAX {
        errors.push(FieldError::too_long(path.clone(), DATA_MAX));
    }
    of_type(&mut errors, &path, secret, &|key| data.get(key).map(|value| value.0.as_slice()));
    errors
}

fn of_type<'a>(errors: &mut Errors, path: &Path, secret: &Secret, get: &dyn Fn(&str) -> Option<&'a [u8]>) {
    let missing = |key: &str| get(key).is_none();
    let mut need = |key: &str| errors.push(FieldError::required(path.key(key), ""));
    match str_of(&secret.type_) {
        "kubernetes.io/service-account-token" => {
            let account = secret.metadata.annotations.as_ref().and_then(|annotations| annotations.get(ACCOUNT_NAME));
            if account.is_none_or(String::is_empty) {
                let path = Path::new("metadata").child("annotations").key(ACCOUNT_NAME);
                errors.push(FieldError::required(path, ""));
            }
        }
        "kubernetes.io/dockercfg" => json(errors, path, ".dockercfg", get),
        "kubernetes.io/dockerconfigjson" => json(errors, path, ".dockerconfigjson", get),
        "kubernetes.io/basic-auth" if missing("username") && missing("password") => {
            need("username");
            need("password");
        }
        "kubernetes.io/ssh-auth" if get("ssh-privatekey").is_none_or(<[u8]>::is_empty) => need("ssh-privatekey"),
        "kubernetes.io/tls" => ["tls.crt", "tls.key"].into_iter().filter(|key| missing(key)).for_each(need),
        _ => {}
    }
}

fn json<'a>(errors: &mut Errors, path: &Path, key: &str, get: &dyn Fn(&str) -> Option<&'a [u8]>) {
    match get(key) {
        None => errors.push(FieldError::required(path.key(key), "")),
        Some(bytes) => {
            if let Err(error) = serde_json::from_slice::<Map<String, Value>>(bytes) {
                errors.push(FieldError::invalid(path.key(key), REDACTED, error.to_string()));
            }
        }
    }
}

fn validate_update(new: &Secret, old: &Secret, _subresource: Option<Subresource>) -> Vec<FieldError> {
    let mut errors = validate(new);
    immutable(&mut errors, &Path::new("type"), &new.type_, &old.type_);
    if old.immutable == Some(true) {
        frozen(&mut errors, "immutable", new.immutable == Some(true));
        frozen(&mut errors, "data", new.data.clone().unwrap_or_default() == old.data.clone().unwrap_or_default());
    }
    errors
}

fn row(secret: &Secret, now: Timestamp) -> Vec<Value> {
    let count = secret.data.as_ref().map_or(0, |data| data.len());
    vec![name(&secret.metadata), secret.type_.clone().unwrap_or_default().into(), count.into(), age(&secret.metadata, now)]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::api::Kind;

    fn secret(body: Value) -> Object {
        let mut object = Object::from_json(&serde_json::to_vec(&body).unwrap()).unwrap();
        object.set(&["apiVersion"], "v1");
        object.set(&["kind"], "Secret");
        object.set(&["metadata", "name"], "s");
        SECRET.default(&mut object);
        object
    }

    #[test]
    fn string_data_is_merged() {
        let object = secret(json!({"stringData": {"a": "x"}, "data": {"a": "Yg==", "b": "Yg=="}}));
        assert_eq!(object.get(&["data"]), Some(&json!({"a": "eA==", "b": "Yg=="})));
        assert_eq!((object.get(&["stringData"]), object.str_at(&["type"])), (None, Some("Opaque")));
    }

    #[test]
    fn errors_in_upstreams_words() {
        let table = [
            (json!({"data": {"a/b": ""}}), "data[a/b]: Invalid value: \"a/b\": a valid config key must consist of"),
            (json!({"type": "kubernetes.io/tls", "data": {"tls.crt": ""}}), "data[tls.key]: Required value"),
            (json!({"type": "kubernetes.io/dockerconfigjson"}), "data[.dockerconfigjson]: Required value"),
            (
                json!({"type": "kubernetes.io/service-account-token"}),
                "metadata.annotations[kubernetes.io/service-account.name]: Required value",
            ),
        ];
        for (body, expected) in table {
            let errors = SECRET.validate(&secret(body));
            assert!(errors.len() == 1 && errors[0].to_string().starts_with(expected), "{errors:?}");
        }
        let old = secret(json!({"immutable": true, "data": {"a": "eA=="}}));
        let new = secret(json!({"immutable": true, "type": "x", "data": {"a": "eQ=="}}));
        let texts: Vec<String> = SECRET.validate_update(&new, &old, None).iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            ["type: Invalid value: \"x\": field is immutable", "data: Forbidden: field is immutable when `immutable` is set"]
        );
    }
}
