//! [`Definition`]: a [`Kind`] written against a `k8s-openapi` struct.
//!
//! A kind states its names and, where it has them, functions over its struct: defaulting, preparation, validation, columns.
//! What it does not state costs nothing: a kind without defaulting is never decoded to be defaulted. An object that the struct
//! cannot hold is left alone by defaulting and refused by validation.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::{Metadata, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::print;
use crate::api::field::{FieldError, Path};
use crate::api::kind::{Column, Names, Scope, Subresource, Verb};
use crate::api::{Kind, Object, names};

/// A struct of `k8s-openapi` that is a kind.
pub trait Typed: Resource + Metadata<Ty = ObjectMeta> + DeserializeOwned + Serialize + 'static {}

impl<K: Resource + Metadata<Ty = ObjectMeta> + DeserializeOwned + Serialize + 'static> Typed for K {}

/// The verbs of kinds whose objects can't be deleted all at once.
pub const NO_DELETE_COLLECTION: &[Verb] =
    &[Verb::Create, Verb::Delete, Verb::Get, Verb::List, Verb::Patch, Verb::Update, Verb::Watch];

/// Grace of a delete: the object and what the client asked for.
pub type Grace<K> = fn(&K, Option<i64>) -> Option<i64>;

/// A check of a changed object against the old one.
pub type Compare<K> = fn(&K, &K, Option<Subresource>) -> Vec<FieldError>;

/// A field that a field selector may name, and where it stands in the object.
#[derive(Debug, Clone, Copy)]
pub struct Selectable {
    /// The name in a selector: `spec.nodeName`.
    pub name: &'static str,
    /// The places to look, in order; the first that holds a value counts.
    pub paths: &'static [&'static [&'static str]],
    /// The value of an object that lacks the field: "", "false" or "0".
    pub absent: &'static str,
}

impl Selectable {
    /// A text field at one place.
    pub const fn text(name: &'static str, paths: &'static [&'static [&'static str]]) -> Self {
        Self { name, paths, absent: "" }
    }

    fn value(&self, object: &Object) -> String {
        let found = self.paths.iter().find_map(|path| match object.get(path)? {
            Value::String(text) if text.is_empty() => None,
            Value::String(text) => Some(text.clone()),
            Value::Null | Value::Array(_) | Value::Object(_) => None,
            plain => Some(plain.to_string()),
        });
        found.unwrap_or_else(|| self.absent.to_owned())
    }
}

/// What is known about a kind whose objects decode as `K`. Built by [`Definition::namespaced`] or [`Definition::cluster`] and
/// struct update.
pub struct Definition<K: 'static> {
    pub names: Names,
    pub verbs: &'static [Verb],
    pub subresources: &'static [Subresource],
    pub bucket: &'static str,
    pub schema: &'static str,
    pub columns: &'static [Column],
    /// The cells of a row. `None`: name and age.
    pub row: Option<fn(&K, Timestamp) -> Vec<Value>>,
    pub selectable: &'static [Selectable],
    /// The names in `selectable`, in order.
    pub selectable_names: &'static [&'static str],
    /// Fills in defaults. `None`: objects are stored as they came.
    pub default: Option<fn(&mut K)>,
    /// Fills in defaults without decoding: for kinds that have next to none. Runs before `default`.
    pub default_object: Option<fn(&mut Object)>,
    /// Whether defaulting needs metadata too.
    pub defaults_metadata: bool,
    /// The status of a new object, where there is a status subresource. `None`: `{}`.
    pub initial_status: Option<fn() -> Value>,
    /// Whether a client may create an object with a status: nodes.
    pub keeps_status: bool,
    /// Clears or sets what a client may not set, after status was reset.
    pub prepare_create: Option<fn(&mut K)>,
    /// Carries over what an update may not change.
    pub prepare_update: Option<fn(&mut K, &K, Option<Subresource>)>,
    pub validate: Option<fn(&K) -> Vec<FieldError>>,
    /// Checks a changed object; `None`: [`validate`](Self::validate) alone.
    pub validate_update: Option<Compare<K>>,
    pub warnings: Option<fn(&K) -> Vec<String>>,
    /// The rule for `metadata.name`.
    pub name_rule: fn(&str) -> Vec<String>,
    /// Whether `metadata.generation` is kept; `None`: where there is a status subresource.
    pub generation: Option<bool>,
    pub grace: Option<Grace<K>>,
    pub orphans_by_default: bool,
    /// Turns the stored form into this one, where kinds share a bucket.
    pub from_storage: Option<fn(&mut Object)>,
    /// The reverse of `from_storage`.
    pub to_storage: Option<fn(&mut Object)>,
}

impl<K> Clone for Definition<K> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<K> Copy for Definition<K> {}

impl<K: Typed> Definition<K> {
    /// A namespaced kind with every verb, no subresources and no rules of its own.
    pub const fn namespaced(schema: &'static str, bucket: &'static str, singular: &'static str) -> Self {
        Self::new(Scope::Namespaced, schema, bucket, singular)
    }

    /// A cluster-scoped kind with every verb, no subresources and no rules of its own.
    pub const fn cluster(schema: &'static str, bucket: &'static str, singular: &'static str) -> Self {
        Self::new(Scope::Cluster, schema, bucket, singular)
    }

    const fn new(scope: Scope, schema: &'static str, bucket: &'static str, singular: &'static str) -> Self {
        Self {
            names: Names {
                group: K::GROUP,
                version: K::VERSION,
                kind: K::KIND,
                plural: K::URL_PATH_SEGMENT,
                singular,
                short: &[],
                categories: &[],
                scope,
            },
            verbs: Verb::ALL,
            subresources: &[],
            bucket,
            schema,
            columns: &[Column::NAME, Column::AGE],
            row: None,
            selectable: &[],
            selectable_names: &[],
            default: None,
            default_object: None,
            defaults_metadata: false,
            keeps_status: false,
            initial_status: None,
            prepare_create: None,
            prepare_update: None,
            validate: None,
            validate_update: None,
            warnings: None,
            name_rule: names::dns1123_subdomain,
            generation: None,
            grace: None,
            orphans_by_default: false,
            from_storage: None,
            to_storage: None,
        }
    }

    /// With short names.
    #[must_use]
    pub const fn short(mut self, short: &'static [&'static str]) -> Self {
        self.names.short = short;
        self
    }

    /// In the category `all`: what `kubectl get all` shows.
    #[must_use]
    pub const fn in_all(mut self) -> Self {
        self.names.categories = &["all"];
        self
    }

    /// In the category `api-extensions`.
    #[must_use]
    pub const fn in_api_extensions(mut self) -> Self {
        self.names.categories = &["api-extensions"];
        self
    }

    /// Served in a newer version of its group than the struct's, from which it differs in the name of the version alone.
    #[must_use]
    pub const fn promoted(mut self, version: &'static str) -> Self {
        self.names.version = version;
        self
    }

    /// A kind that is only ever posted: a review or a binding.
    #[must_use]
    pub const fn create_only(mut self) -> Self {
        self.verbs = &[Verb::Create];
        self
    }

    fn decode(&self, object: &Object) -> Result<K, serde_json::Error> {
        if self.names.version == K::VERSION {
            return K::deserialize(&object.0);
        }
        let mut renamed = object.clone();
        renamed.set(&["apiVersion"], K::API_VERSION);
        K::deserialize(&renamed.0)
    }

    /// Changes an object through its struct. Metadata goes along untouched unless `with_metadata`. An object that does not decode or
    /// encode is left alone; validation names what is wrong with it.
    fn edit(&self, object: &mut Object, with_metadata: bool, change: impl FnOnce(&mut K)) {
        let metadata = if with_metadata { None } else { object.0.remove("metadata") };
        if let Ok(mut typed) = self.decode(object) {
            change(&mut typed);
            if let Ok(Value::Object(map)) = serde_json::to_value(&typed) {
                object.0 = map;
                object.set(&["apiVersion"], self.names.api_version());
            }
        }
        if let Some(metadata) = metadata {
            object.0.insert("metadata".to_owned(), metadata);
        }
    }
}

/// The status of a new object whose type has fields that are always present.
pub fn empty<S: Default + Serialize>() -> Value {
    serde_json::to_value(S::default()).unwrap_or_else(|_| Value::Object(Map::new()))
}

/// The names of selectable fields.
pub const fn names_of<const N: usize>(fields: &[Selectable; N]) -> [&'static str; N] {
    let mut names = [""; N];
    let mut index = 0;
    while index < N {
        names[index] = fields[index].name;
        index += 1;
    }
    names
}

fn undecodable(error: &serde_json::Error) -> Vec<FieldError> {
    vec![FieldError::invalid(Path::default(), Value::Null, format!("json: cannot unmarshal: {error}"))]
}

impl<K: Typed> Kind for Definition<K> {
    fn names(&self) -> &Names {
        &self.names
    }

    fn verbs(&self) -> &[Verb] {
        self.verbs
    }

    fn subresources(&self) -> &[Subresource] {
        self.subresources
    }

    fn bucket(&self) -> &'static str {
        self.bucket
    }

    fn schema(&self) -> Option<&'static str> {
        Some(self.schema)
    }

    fn columns(&self) -> &[Column] {
        self.columns
    }

    fn row(&self, object: &Object, now: Timestamp) -> Vec<Value> {
        if let Some(row) = self.row
            && let Ok(typed) = self.decode(object)
        {
            return row(&typed, now);
        }
        print::plain_row(object, now, self.columns)
    }

    fn selectable_fields(&self) -> &[&'static str] {
        self.selectable_names
    }

    fn field_values(&self, object: &Object) -> Vec<String> {
        self.selectable.iter().map(|field| field.value(object)).collect()
    }

    fn convert_from_storage(&self, object: &mut Object) {
        if let Some(convert) = self.from_storage {
            convert(object);
        }
    }

    fn convert_to_storage(&self, object: &mut Object) {
        if let Some(convert) = self.to_storage {
            convert(object);
        }
    }

    fn is_stored_form(&self) -> bool {
        self.from_storage.is_none()
    }

    fn default(&self, object: &mut Object) {
        if let Some(default) = self.default_object {
            default(object);
        }
        if let Some(default) = self.default {
            self.edit(object, self.defaults_metadata, default);
        }
    }

    fn prepare_create(&self, object: &mut Object) {
        if self.subresources.contains(&Subresource::Status) && !self.keeps_status {
            let status = self.initial_status.map_or_else(|| Value::Object(Map::new()), |status| status());
            object.0.insert("status".to_owned(), status);
        }
        if let Some(prepare) = self.prepare_create {
            self.edit(object, true, prepare);
        }
    }

    fn prepare_update(&self, object: &mut Object, old: &Object, subresource: Option<Subresource>) {
        if let (Some(prepare), Ok(old)) = (self.prepare_update, self.decode(old)) {
            self.edit(object, true, |new| prepare(new, &old, subresource));
        }
    }

    fn validate(&self, object: &Object) -> Vec<FieldError> {
        match self.decode(object) {
            Ok(typed) => self.validate.map_or_else(Vec::new, |validate| validate(&typed)),
            Err(error) => undecodable(&error),
        }
    }

    fn validate_update(&self, object: &Object, old: &Object, subresource: Option<Subresource>) -> Vec<FieldError> {
        let (Some(validate), Ok(old)) = (self.validate_update, self.decode(old)) else { return self.validate(object) };
        match self.decode(object) {
            Ok(typed) => validate(&typed, &old, subresource),
            Err(error) => undecodable(&error),
        }
    }

    fn warnings(&self, object: &Object) -> Vec<String> {
        let Some(warnings) = self.warnings else { return Vec::new() };
        self.decode(object).map_or_else(|_| Vec::new(), |typed| warnings(&typed))
    }

    fn validate_name(&self, name: &str, path: Path) -> Vec<FieldError> {
        (self.name_rule)(name).into_iter().map(|why| FieldError::invalid(path.clone(), name, why)).collect()
    }

    fn has_generation(&self) -> bool {
        self.generation.unwrap_or_else(|| self.subresources.contains(&Subresource::Status))
    }

    fn deletion_grace_seconds(&self, object: &Object, requested: Option<i64>) -> Option<i64> {
        let grace = self.grace?;
        self.decode(object).ok().and_then(|typed| grace(&typed, requested))
    }

    fn orphans_by_default(&self) -> bool {
        self.orphans_by_default
    }
}
