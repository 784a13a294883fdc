//! ObjectMeta: what the system sets in it, and what a client may put there (`apimachinery/pkg/api/validation/objectmeta.go`).

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::field::{FieldError, Path};
use super::kind::Kind;
use super::names;
use super::object::Object;

/// Finalizer of foreground deletion: the garbage collector removes the dependents first.
pub const FOREGROUND: &str = "foregroundDeletion";
/// Finalizer of orphaning deletion: the garbage collector cuts the dependents loose first.
pub const ORPHAN: &str = "orphan";
/// Longest sum of all keys and values of annotations.
pub const ANNOTATION_BYTES_MAX: usize = 256 << 10;
/// Length of the random part of a generated name.
pub const SUFFIX_LENGTH: usize = 5;
/// Longest base of a generated name: what is left of 63 characters.
pub const BASE_LENGTH_MAX: usize = 63 - SUFFIX_LENGTH;

/// Time as ObjectMeta holds it: whole seconds, `2026-01-02T03:04:05Z`.
pub fn time_text(time: Timestamp) -> String {
    Timestamp::from_second(time.as_second()).unwrap_or(time).to_string()
}

/// The base of a generated name, cut so that the suffix fits.
pub fn generate_base(prefix: &str) -> &str {
    let mut end = prefix.len().min(BASE_LENGTH_MAX);
    while !prefix.is_char_boundary(end) {
        end -= 1;
    }
    &prefix[..end]
}

/// Changes `metadata`; it is made if it is missing or no map.
pub fn edit(object: &mut Object, change: impl FnOnce(&mut Map<String, Value>)) {
    let mut meta = match object.0.remove("metadata") {
        Some(Value::Object(meta)) => meta,
        _ => Map::new(),
    };
    change(&mut meta);
    object.0.insert("metadata".to_owned(), Value::Object(meta));
}

/// Sets what the system sets on a new object, and clears what a client may not set.
pub fn fill_for_create(object: &mut Object, kind: &dyn Kind, namespace: &str, uid: String, now: Timestamp) {
    edit(object, |meta| {
        for key in ["deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "resourceVersion", "generation"] {
            meta.remove(key);
        }
        meta.insert("uid".to_owned(), uid.into());
        meta.insert("creationTimestamp".to_owned(), time_text(now).into());
        if kind.has_generation() {
            meta.insert("generation".to_owned(), 1.into());
        }
        if kind.names().is_namespaced() {
            meta.insert("namespace".to_owned(), namespace.into());
        }
        drop_empty(meta);
    });
}

/// Carries over what an update may leave out or not change: uid, times, generation.
pub fn fill_for_update(object: &mut Object, old: &Object) {
    let Some(old_meta) = old.0.get("metadata").and_then(Value::as_object) else { return };
    let deleting = old.is_deleting();
    edit(object, |meta| {
        meta.remove("selfLink");
        restore(meta, old_meta, "generation", true);
        for key in ["uid", "creationTimestamp", "name", "namespace"] {
            restore(meta, old_meta, key, false);
        }
        for key in ["deletionTimestamp", "deletionGracePeriodSeconds"] {
            restore(meta, old_meta, key, deleting);
            if !deleting {
                meta.remove(key);
            }
        }
        drop_empty(meta);
    });
}

/// Takes the old value of a key, always or only where the new one is missing.
fn restore(meta: &mut Map<String, Value>, old: &Map<String, Value>, key: &str, always: bool) {
    let missing = matches!(meta.get(key), None | Some(Value::Null)) || meta.get(key).and_then(Value::as_str) == Some("");
    if !always && !missing {
        return;
    }
    match old.get(key) {
        Some(value) => meta.insert(key.to_owned(), value.clone()),
        None => meta.remove(key),
    };
}

/// Drops the fields that Go leaves out when they are empty.
fn drop_empty(meta: &mut Map<String, Value>) {
    meta.retain(|_, value| match value {
        Value::Null => false,
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => !map.is_empty(),
        _ => true,
    });
}

/// Sets `metadata.finalizers`, or removes it when there are none.
pub fn set_finalizers(object: &mut Object, finalizers: &[String]) {
    edit(object, |meta| match finalizers {
        [] => drop(meta.remove("finalizers")),
        some => drop(meta.insert("finalizers".to_owned(), json!(some))),
    });
}

/// Checks the metadata of a new object.
pub fn validate(object: &Object, kind: &dyn Kind) -> Vec<FieldError> {
    let path = Path::new("metadata");
    let mut errors = Vec::new();
    let generate_name = object.generate_name();
    if !generate_name.is_empty() {
        // What is generated goes behind, so a trailing dash is no mistake.
        let masked = if generate_name.len() > 1 && generate_name.ends_with('-') {
            format!("{}a", &generate_name[..generate_name.len() - 1])
        } else {
            generate_name.to_owned()
        };
        let wrong = kind.validate_name(&masked, path.child("generateName"));
        errors.extend(wrong.into_iter().map(|error| FieldError { value: generate_name.into(), ..error }));
    }
    if object.name().is_empty() {
        errors.push(FieldError::required(path.child("name"), "name or generateName is required"));
    } else {
        errors.extend(kind.validate_name(object.name(), path.child("name")));
    }
    let namespace = object.namespace();
    if !kind.names().is_namespaced() {
        if !namespace.is_empty() {
            errors.push(FieldError::forbidden(path.child("namespace"), "not allowed on this type"));
        }
    } else if namespace.is_empty() {
        errors.push(FieldError::required(path.child("namespace"), ""));
    } else {
        let wrong = names::dns1123_label(namespace);
        errors.extend(wrong.into_iter().map(|why| FieldError::invalid(path.child("namespace"), namespace, why)));
    }
    errors.extend(validate_client_fields(object, &path));
    errors
}

/// Checks the metadata of a changed object against the old one.
pub fn validate_update(object: &Object, old: &Object, kind: &dyn Kind) -> Vec<FieldError> {
    let path = Path::new("metadata");
    let mut errors = validate(object, kind);
    for key in ["name", "namespace", "uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"] {
        let (new, was) = (object.get(&["metadata", key]), old.get(&["metadata", key]));
        if new != was {
            let value = new.cloned().unwrap_or_default();
            errors.push(FieldError::invalid(path.child(key), value, "field is immutable"));
        }
    }
    if old.is_deleting() {
        let added: Vec<&str> = object.finalizers().filter(|one| !old.finalizers().any(|before| before == *one)).collect();
        if !added.is_empty() {
            let list = added.iter().map(|one| format!("{one:?}")).collect::<Vec<_>>().join(", ");
            let why =
                format!("no new finalizers can be added if the object is being deleted, found new finalizers []string{{{list}}}");
            errors.push(FieldError::forbidden(path.child("finalizers"), why));
        }
    }
    errors
}

fn validate_client_fields(object: &Object, path: &Path) -> Vec<FieldError> {
    let mut errors = validate_labels(object, &path.child("labels"));
    errors.extend(validate_annotations(object, &path.child("annotations")));
    errors.extend(validate_owners(object, &path.child("ownerReferences")));
    errors.extend(validate_finalizers(object, &path.child("finalizers")));
    errors
}

/// Checks `metadata.labels`.
pub fn validate_labels(object: &Object, path: &Path) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (key, value) in object.labels() {
        errors.extend(names::qualified_name(key).into_iter().map(|why| FieldError::invalid(path.clone(), key, why)));
        errors.extend(names::label_value(value).into_iter().map(|why| FieldError::invalid(path.clone(), value, why)));
    }
    errors
}

fn validate_annotations(object: &Object, path: &Path) -> Vec<FieldError> {
    let (mut errors, mut bytes) = (Vec::new(), 0);
    for (key, value) in object.annotations() {
        bytes += key.len() + value.len();
        let wrong = if key.bytes().any(|byte| byte.is_ascii_uppercase()) {
            names::qualified_name(&key.to_lowercase())
        } else {
            names::qualified_name(key)
        };
        errors.extend(wrong.into_iter().map(|why| FieldError::invalid(path.clone(), key, why)));
    }
    if bytes > ANNOTATION_BYTES_MAX {
        errors.push(FieldError::too_long(path.clone(), ANNOTATION_BYTES_MAX));
    }
    errors
}

fn validate_owners(object: &Object, path: &Path) -> Vec<FieldError> {
    let Some(owners) = object.get(&["metadata", "ownerReferences"]).and_then(Value::as_array) else { return Vec::new() };
    let (mut errors, mut controller): (_, Option<&str>) = (Vec::new(), None);
    for owner in owners {
        let text = |key: &str| owner.get(key).and_then(Value::as_str).unwrap_or("");
        if text("apiVersion").rsplit('/').next().unwrap_or("").is_empty() {
            errors.push(FieldError::invalid(path.child("apiVersion"), text("apiVersion"), "version must not be empty"));
        }
        for key in ["kind", "name", "uid"].into_iter().filter(|key| text(key).is_empty()) {
            errors.push(FieldError::invalid(path.child(key), "", "must not be empty"));
        }
        if text("apiVersion") == "v1" && text("kind") == "Event" {
            let why = "/v1, Kind=Event is disallowed from being an owner";
            errors.push(FieldError::invalid(path.clone(), owner.clone(), why));
        }
        if owner.get("controller") == Some(&Value::Bool(true)) {
            if let Some(first) = controller {
                let why = format!(
                    "Only one reference can have Controller set to true. Found \"true\" in references for {first} and {}",
                    text("name")
                );
                errors.push(FieldError::invalid(path.clone(), Value::Array(owners.clone()), why));
            }
            controller = Some(owner.get("name").and_then(Value::as_str).unwrap_or(""));
        }
    }
    errors
}

fn validate_finalizers(object: &Object, path: &Path) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let (mut orphan, mut foreground) = (false, false);
    for (index, finalizer) in object.finalizers().enumerate() {
        orphan |= finalizer == ORPHAN;
        foreground |= finalizer == FOREGROUND;
        let wrong = names::qualified_name(finalizer);
        if wrong.is_empty() && !finalizer.contains('/') && !matches!(finalizer, ORPHAN | FOREGROUND | "kubernetes") {
            let why = "name is neither a standard finalizer name nor is it fully qualified";
            errors.push(FieldError::invalid(path.index(index), finalizer, why));
        }
        errors.extend(wrong.into_iter().map(|why| FieldError::invalid(path.clone(), finalizer, why)));
    }
    if orphan && foreground {
        let all: Vec<&str> = object.finalizers().collect();
        let why = format!("finalizer {ORPHAN} and {FOREGROUND} cannot be both set");
        errors.push(FieldError::invalid(path.clone(), json!(all), why));
    }
    errors
}
