//! MutatingAdmissionPolicyBinding: where a mutating policy holds.

use jiff::Timestamp;
use k8s_openapi::api::admissionregistration::v1::MutatingAdmissionPolicyBinding;
use serde_json::Value;

use super::policy;
use crate::api::field::{FieldError, Path};
use crate::api::kind::Column;
use crate::kinds::check::required;
use crate::kinds::print::{age, name};
use crate::kinds::typed::Definition;

/// The kind.
pub static MUTATING_ADMISSION_POLICY_BINDING: Definition<MutatingAdmissionPolicyBinding> = Definition {
    columns: &[Column::NAME, Column::text("PolicyName"), Column::text("ParamRef"), Column::AGE],
    row: Some(row),
    default: Some(default),
    validate: Some(validate),
    generation: Some(true),
    ..Definition::cluster(
        "io.k8s.api.admissionregistration.v1.MutatingAdmissionPolicyBinding",
        "admissionregistration.k8s.io/mutatingadmissionpolicybindings",
        "mutatingadmissionpolicybinding",
    )
    .in_api_extensions()
};

fn default(binding: &mut MutatingAdmissionPolicyBinding) {
    let spec = binding.spec.get_or_insert_default();
    if let Some(matching) = &mut spec.match_resources {
        policy::default_match(matching);
    }
}

fn validate(binding: &MutatingAdmissionPolicyBinding) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let path = Path::new("spec");
    let spec = binding.spec.clone().unwrap_or_default();
    required(&mut errors, &path.child("policyName"), spec.policy_name.as_deref().unwrap_or(""));
    errors
}

fn row(binding: &MutatingAdmissionPolicyBinding, now: Timestamp) -> Vec<Value> {
    let spec = binding.spec.clone().unwrap_or_default();
    let param = policy::param_ref(spec.param_ref.as_ref());
    vec![name(&binding.metadata), spec.policy_name.unwrap_or_default().into(), param.into(), age(&binding.metadata, now)]
}
