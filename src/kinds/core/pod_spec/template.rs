//! Checks of templates (upstream `ValidatePodTemplateSpec` and its kin).

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{PodTemplateSpec, Volume};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use super::{Holder, validate};
use crate::api::field::{FieldError, Path};
use crate::kinds::check::{Errors, annotations, is_empty_selector, label_selector, labels, selects, str_of};

/// Checks a template; `more_volumes` are those that a StatefulSet's claims will add.
pub fn template(errors: &mut Errors, path: &Path, template: &PodTemplateSpec, more_volumes: &[Volume]) {
    let meta = template.metadata.clone().unwrap_or_default();
    labels(errors, &path.child("labels"), meta.labels.as_ref());
    annotations(errors, &path.child("annotations"), meta.annotations.as_ref());
    let spec = template.spec.clone().unwrap_or_default();
    if spec.ephemeral_containers.as_ref().is_some_and(|containers| !containers.is_empty()) {
        let path = path.child("spec").child("ephemeralContainers");
        errors.push(FieldError::forbidden(path, "ephemeral containers not allowed in pod template"));
    }
    validate::spec(errors, &path.child("spec"), &spec, Holder::Template, more_volumes);
}

/// Checks the template of a workload that keeps pods running forever; `kind` names it in messages.
pub fn always(errors: &mut Errors, path: &Path, template: &PodTemplateSpec, more_volumes: &[Volume], kind: &str) {
    self::template(errors, path, template, more_volumes);
    let spec = template.spec.clone().unwrap_or_default();
    let path = path.child("spec");
    let policy = str_of(&spec.restart_policy);
    if policy != "Always" && !policy.is_empty() {
        errors.push(FieldError::not_supported(path.child("restartPolicy"), policy, &["Always"]));
    }
    if spec.active_deadline_seconds.is_some() {
        let why = format!("activeDeadlineSeconds in {kind} is not Supported");
        errors.push(FieldError::forbidden(path.child("activeDeadlineSeconds"), why));
    }
}

/// The labels that a template gives its pods.
pub fn labels_of(template: &PodTemplateSpec) -> BTreeMap<String, String> {
    template.metadata.as_ref().and_then(|meta| meta.labels.clone()).unwrap_or_default()
}

/// Checks the selector of a workload; `what` names the workload in the message.
pub fn selector(errors: &mut Errors, path: &Path, selector: &LabelSelector, what: &str) {
    label_selector(errors, path, selector);
    if is_empty_selector(selector) {
        let value = serde_json::to_value(selector).unwrap_or_default();
        errors.push(FieldError::invalid(path.clone(), value, format!("empty selector is invalid for {what}")));
    }
}

/// The template's labels must satisfy the workload's selector; says whether they do.
pub fn selected(errors: &mut Errors, path: &Path, template: &PodTemplateSpec, selector: &LabelSelector) -> bool {
    let labels = labels_of(template);
    let matches = is_empty_selector(selector) || selects(selector, &labels);
    if !matches {
        let value = serde_json::to_value(&labels).unwrap_or_default();
        let path = path.child("metadata").child("labels");
        errors.push(FieldError::invalid(path, value, "`selector` does not match template `labels`"));
    }
    matches
}
