//! PodTemplate: a template for pods, as an object of its own.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::PodTemplate;
use serde_json::Value;

use super::pod_spec::{defaults, template};
use crate::api::field::{FieldError, Path};
use crate::api::kind::Column;
use crate::kinds::print::{containers, labels, name};
use crate::kinds::typed::Definition;

/// The kind.
pub static POD_TEMPLATE: Definition<PodTemplate> = Definition {
    columns: &[Column::NAME, Column::text("Containers"), Column::text("Images"), Column::text("Pod Labels")],
    row: Some(row),
    default: Some(|object| defaults::template(object.template.get_or_insert_default())),
    validate: Some(validate),
    generation: Some(true),
    ..Definition::namespaced("io.k8s.api.core.v1.PodTemplate", "core/podtemplates", "podtemplate")
};

fn validate(object: &PodTemplate) -> Vec<FieldError> {
    let mut errors = Vec::new();
    template::template(&mut errors, &Path::new("template"), &object.template.clone().unwrap_or_default(), &[]);
    errors
}

fn row(object: &PodTemplate, _now: Timestamp) -> Vec<Value> {
    let [names, images] = containers(object.template.as_ref());
    let given = object.template.as_ref().map(template::labels_of).unwrap_or_default();
    vec![name(&object.metadata), names, images, labels(Some(&given)).into()]
}
