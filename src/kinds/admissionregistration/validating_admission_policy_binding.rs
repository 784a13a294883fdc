//! ValidatingAdmissionPolicyBinding: where a validating policy holds.

use jiff::Timestamp;
use k8s_openapi::api::admissionregistration::v1::ValidatingAdmissionPolicyBinding;
use serde_json::Value;

use super::policy;
use crate::api::field::{FieldError, Path};
use crate::api::kind::Column;
use crate::kinds::check::{one_of, required};
use crate::kinds::print::{age, name};
use crate::kinds::typed::Definition;

/// The kind.
pub static VALIDATING_ADMISSION_POLICY_BINDING: Definition<ValidatingAdmissionPolicyBinding> = Definition {
    columns: &[Column::NAME, Column::text("PolicyName"), Column::text("ParamRef"), Column::AGE],
    row: Some(row),
    default: Some(default),
    validate: Some(validate),
    generation: Some(true),
    ..Definition::cluster(
        "io.k8s.api.admissionregistration.v1.ValidatingAdmissionPolicyBinding",
        "admissionregistration.k8s.io/validatingadmissionpolicybindings",
        "validatingadmissionpolicybinding",
    )
    .in_api_extensions()
};

fn default(binding: &mut ValidatingAdmissionPolicyBinding) {
    let spec = &mut binding.spec;
    if let Some(matching) = &mut spec.match_resources {
        policy::default_match(matching);
    }
}

fn validate(binding: &ValidatingAdmissionPolicyBinding) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let path = Path::new("spec");
    let spec = binding.spec.clone();
    required(&mut errors, &path.child("policyName"), &spec.policy_name);
    let at = path.child("validationActions");
    if spec.validation_actions.is_empty() {
        errors.push(FieldError::required(at.clone(), "at least one validation action is required"));
    }
    for action in &spec.validation_actions {
        one_of(&mut errors, &at, action, &["Audit", "Deny", "Warn"]);
    }
    errors
}

fn row(binding: &ValidatingAdmissionPolicyBinding, now: Timestamp) -> Vec<Value> {
    let spec = binding.spec.clone();
    let param = policy::param_ref(spec.param_ref.as_ref());
    vec![name(&binding.metadata), spec.policy_name.into(), param.into(), age(&binding.metadata, now)]
}
