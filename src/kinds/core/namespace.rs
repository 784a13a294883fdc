//! Namespace: a scope for names.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Namespace;
use serde_json::{Value, json};

use crate::api::field::{FieldError, Path};
use crate::api::kind::{Column, Subresource};
use crate::api::names;
use crate::kinds::check::{rule, str_of};
use crate::kinds::print::{age, name};
use crate::kinds::typed::{Definition, NO_DELETE_COLLECTION, Selectable, names_of};

/// The label that every namespace has: its name.
const NAME_LABEL: &str = "kubernetes.io/metadata.name";
/// The finalizer of the namespace controller.
const FINALIZER: &str = "kubernetes";

const FIELDS: [Selectable; 1] = [Selectable::text("status.phase", &[&["status", "phase"]])];

/// The kind.
pub static NAMESPACE: Definition<Namespace> = Definition {
    verbs: NO_DELETE_COLLECTION,
    subresources: &[Subresource::Finalize, Subresource::Status],
    columns: &[Column::NAME, Column::text("Status"), Column::AGE],
    row: Some(row),
    selectable: &FIELDS,
    selectable_names: &names_of(&FIELDS),
    default: Some(default),
    defaults_metadata: true,
    initial_status: Some(|| json!({"phase": "Active"})),
    prepare_create: Some(prepare_create),
    prepare_update: Some(prepare_update),
    validate: Some(validate),
    validate_update: Some(validate_update),
    name_rule: names::dns1123_label,
    generation: Some(false),
    ..Definition::cluster("io.k8s.api.core.v1.Namespace", "core/namespaces", "namespace").short(&["ns"])
};

fn default(namespace: &mut Namespace) {
    label(namespace);
    namespace.spec.get_or_insert_default();
    let status = namespace.status.get_or_insert_default();
    status.phase.get_or_insert_with(|| "Active".to_owned());
}

fn label(namespace: &mut Namespace) {
    if let Some(name) = namespace.metadata.name.clone().filter(|name| !name.is_empty()) {
        namespace.metadata.labels.get_or_insert_default().insert(NAME_LABEL.to_owned(), name);
    }
}

fn prepare_create(namespace: &mut Namespace) {
    label(namespace);
    let finalizers = namespace.spec.get_or_insert_default().finalizers.get_or_insert_default();
    if !finalizers.iter().any(|finalizer| finalizer == FINALIZER) {
        finalizers.push(FINALIZER.to_owned());
    }
}

fn prepare_update(namespace: &mut Namespace, old: &Namespace, subresource: Option<Subresource>) {
    if subresource != Some(Subresource::Finalize) {
        namespace.spec.clone_from(&old.spec);
    }
}

fn validate(namespace: &Namespace) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let finalizers = namespace.spec.iter().flat_map(|spec| spec.finalizers.iter().flatten());
    for finalizer in finalizers {
        rule(&mut errors, &Path::new("spec").child("finalizers"), finalizer, names::qualified_name);
        if !finalizer.contains('/') && finalizer != FINALIZER {
            let why = "name is neither a standard finalizer name nor is it fully qualified";
            errors.push(FieldError::invalid(Path::new("spec").child("finalizers"), finalizer.as_str(), why));
        }
    }
    errors
}

fn validate_update(new: &Namespace, _old: &Namespace, subresource: Option<Subresource>) -> Vec<FieldError> {
    let mut errors = validate(new);
    if subresource == Some(Subresource::Status) {
        let path = Path::new("status").child("Phase");
        let phase = new.status.as_ref().map_or("", |status| str_of(&status.phase));
        let is_deleting = new.metadata.deletion_timestamp.is_some();
        if is_deleting && phase != "Terminating" {
            let why = "may only be 'Terminating' if `deletionTimestamp` is not empty";
            errors.push(FieldError::invalid(path, phase, why));
        } else if !is_deleting && phase != "Active" {
            errors.push(FieldError::invalid(path, phase, "may only be 'Active' if `deletionTimestamp` is empty"));
        }
    }
    errors
}

fn row(namespace: &Namespace, now: Timestamp) -> Vec<Value> {
    let phase = namespace.status.as_ref().and_then(|status| status.phase.clone()).unwrap_or_default();
    vec![name(&namespace.metadata), phase.into(), age(&namespace.metadata, now)]
}
