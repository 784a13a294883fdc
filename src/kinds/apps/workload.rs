//! What the workloads share: selector, template, warnings.

use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use crate::api::field::{FieldError, Path};
use crate::kinds::check::{Errors, is_empty_selector, label_selector};
use crate::kinds::core::pod::template_warnings;
use crate::kinds::core::pod_spec::template::{self, labels_of};

/// Checks the selector and the template of a workload, and that one matches the other. `holder` is the kind that upstream names
/// in messages about the template.
pub fn selected_template(errors: &mut Errors, path: &Path, selector: &LabelSelector, template: &PodTemplateSpec, holder: &str) {
    let at = path.child("selector");
    let template_path = path.child("template");
    if is_empty_selector(selector) {
        errors.push(FieldError::required(at, ""));
        let labels = serde_json::to_value(labels_of(template)).unwrap_or_default();
        let why = "`selector` does not match template `labels`";
        errors.push(FieldError::invalid(template_path.child("metadata").child("labels"), labels, why));
    } else {
        label_selector(errors, &at, selector);
        template::selected(errors, &template_path, template, selector);
    }
    template::always(errors, &template_path, template, &[], holder);
}

/// Warnings about a workload's template.
pub fn warnings(template: Option<&PodTemplateSpec>) -> Vec<String> {
    let mut texts = Vec::new();
    if let Some(spec) = template.and_then(|template| template.spec.as_ref()) {
        template_warnings(&mut texts, &Path::new("spec").child("template").child("spec"), spec);
    }
    texts
}
