//! [`Object`]: any API object as a JSON map, with typed access to what every object has (`TypeMeta`, `ObjectMeta`).
//!
//! Unknown fields are kept: an object never passes through a typed struct and back unless its kind says so.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::status::ApiError;

/// Any API object.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Object(pub Map<String, Value>);

impl Object {
    /// Decodes one object from JSON.
    ///
    /// # Errors
    /// 400 `BadRequest` in upstream's words when the bytes are not a JSON object.
    pub fn from_json(bytes: &[u8]) -> Result<Self, ApiError> {
        serde_json::from_slice(bytes)
            .map_err(|error| ApiError::bad_request(format!("couldn't get version/kind; json parse error: {error}")))
    }

    /// The object as JSON, keys sorted.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(&self.0).unwrap_or_default()
    }

    /// The object as a typed struct (fields that the struct lacks are left out).
    ///
    /// # Errors
    /// 400 with the decoder's words when a field has the wrong type.
    pub fn typed<K: DeserializeOwned>(&self) -> Result<K, ApiError> {
        K::deserialize(Value::Object(self.0.clone()))
            .map_err(|error| ApiError::bad_request(format!("json: cannot unmarshal: {error}")))
    }

    /// The object of a typed struct.
    ///
    /// # Errors
    /// 500 when the struct does not encode as a JSON object, which no API type does.
    pub fn from_typed<K: Serialize>(typed: &K) -> Result<Self, ApiError> {
        match serde_json::to_value(typed) {
            Ok(Value::Object(map)) => Ok(Self(map)),
            Ok(other) => Err(ApiError::internal(format!("not an object: {other}"))),
            Err(error) => Err(ApiError::internal(error.to_string())),
        }
    }

    /// Follows keys from the root; `None` where a step is missing or is not a map.
    pub fn get(&self, path: &[&str]) -> Option<&Value> {
        let (last, steps) = path.split_last()?;
        let mut map = &self.0;
        for step in steps {
            map = map.get(*step)?.as_object()?;
        }
        map.get(*last)
    }

    /// The string at a path.
    pub fn str_at(&self, path: &[&str]) -> Option<&str> {
        self.get(path)?.as_str()
    }

    /// Sets the value at a path, making the maps on the way (a value on the way that is no map is replaced by one).
    pub fn set(&mut self, path: &[&str], value: impl Into<Value>) {
        let Some((last, steps)) = path.split_last() else { return };
        let mut map = &mut self.0;
        for step in steps {
            let slot = map.entry((*step).to_owned()).or_insert_with(|| Value::Object(Map::new()));
            if !slot.is_object() {
                *slot = Value::Object(Map::new());
            }
            let Value::Object(next) = slot else { return };
            map = next;
        }
        map.insert((*last).to_owned(), value.into());
    }

    /// Removes and returns the value at a path.
    pub fn remove(&mut self, path: &[&str]) -> Option<Value> {
        let (last, steps) = path.split_last()?;
        let mut map = &mut self.0;
        for step in steps {
            map = map.get_mut(*step)?.as_object_mut()?;
        }
        map.remove(*last)
    }

    /// `apiVersion`, or "".
    pub fn api_version(&self) -> &str {
        self.str_at(&["apiVersion"]).unwrap_or("")
    }

    /// `kind`, or "".
    pub fn kind(&self) -> &str {
        self.str_at(&["kind"]).unwrap_or("")
    }

    fn meta_str(&self, field: &str) -> &str {
        self.str_at(&["metadata", field]).unwrap_or("")
    }

    /// `metadata.name`, or "".
    pub fn name(&self) -> &str {
        self.meta_str("name")
    }

    /// `metadata.generateName`, or "".
    pub fn generate_name(&self) -> &str {
        self.meta_str("generateName")
    }

    /// `metadata.namespace`, or "" for a cluster-scoped object.
    pub fn namespace(&self) -> &str {
        self.meta_str("namespace")
    }

    /// `metadata.uid`, or "".
    pub fn uid(&self) -> &str {
        self.meta_str("uid")
    }

    /// `metadata.resourceVersion`, or "".
    pub fn resource_version(&self) -> &str {
        self.meta_str("resourceVersion")
    }

    /// `metadata.generation`, or 0.
    pub fn generation(&self) -> i64 {
        self.get(&["metadata", "generation"]).and_then(Value::as_i64).unwrap_or(0)
    }

    /// `metadata.creationTimestamp`, if set and well formed.
    pub fn creation_timestamp(&self) -> Option<Timestamp> {
        self.meta_str("creationTimestamp").parse().ok()
    }

    /// `metadata.deletionTimestamp`, if set and well formed.
    pub fn deletion_timestamp(&self) -> Option<Timestamp> {
        self.meta_str("deletionTimestamp").parse().ok()
    }

    /// Whether deletion was asked for.
    pub fn is_deleting(&self) -> bool {
        self.get(&["metadata", "deletionTimestamp"]).is_some_and(Value::is_string)
    }

    /// `metadata.labels` as pairs.
    pub fn labels(&self) -> impl Iterator<Item = (&str, &str)> {
        self.string_map(&["metadata", "labels"])
    }

    /// `metadata.annotations` as pairs.
    pub fn annotations(&self) -> impl Iterator<Item = (&str, &str)> {
        self.string_map(&["metadata", "annotations"])
    }

    /// One annotation.
    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.str_at(&["metadata", "annotations", key])
    }

    fn string_map(&self, path: &[&str]) -> impl Iterator<Item = (&str, &str)> {
        self.get(path)
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
            .filter_map(|(key, value)| value.as_str().map(|value| (key.as_str(), value)))
    }

    /// `metadata.finalizers`.
    pub fn finalizers(&self) -> impl Iterator<Item = &str> {
        self.get(&["metadata", "finalizers"]).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str)
    }

    /// `metadata.ownerReferences`; one that does not decode is left out (validation refuses it on write).
    pub fn owner_references(&self) -> Vec<OwnerReference> {
        self.get(&["metadata", "ownerReferences"])
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(|value| OwnerReference::deserialize(value).ok())
            .collect()
    }

    /// The map at `spec`, if any.
    pub fn spec(&self) -> Option<&Value> {
        self.0.get("spec")
    }

    /// The map at `status`, if any.
    pub fn status(&self) -> Option<&Value> {
        self.0.get("status")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn paths_read_write_and_remove() {
        let mut object = Object::from_json(br#"{"kind":"Pod","metadata":{"name":"a","labels":{"app":"web"}}}"#).unwrap();
        assert_eq!((object.kind(), object.name(), object.namespace()), ("Pod", "a", ""));
        assert_eq!(object.labels().collect::<Vec<_>>(), [("app", "web")]);
        object.set(&["spec", "nodeName"], "n1");
        assert_eq!(object.str_at(&["spec", "nodeName"]), Some("n1"));
        assert_eq!(object.remove(&["metadata", "labels"]), Some(json!({"app": "web"})));
        assert_eq!(object.get(&["metadata", "labels"]), None);
    }
}
