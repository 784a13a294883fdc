//! ValidatingAdmissionPolicy: checks objects by CEL.

use jiff::Timestamp;
use k8s_openapi::api::admissionregistration::v1::ValidatingAdmissionPolicy;
use serde_json::Value;

use super::policy;
use crate::api::field::{FieldError, Path};
use crate::api::kind::{Column, Subresource};
use crate::kinds::check::{is_blank, one_of, str_of};
use crate::kinds::core::pod_spec::defaults::text;
use crate::kinds::print::{age, name};
use crate::kinds::typed::Definition;

/// The kind.
pub static VALIDATING_ADMISSION_POLICY: Definition<ValidatingAdmissionPolicy> = Definition {
    subresources: &[Subresource::Status],
    columns: &[Column::NAME, Column::integer("Validations"), Column::text("ParamKind"), Column::AGE],
    row: Some(row),
    default: Some(default),
    validate: Some(validate),
    generation: Some(true),
    ..Definition::cluster(
        "io.k8s.api.admissionregistration.v1.ValidatingAdmissionPolicy",
        "admissionregistration.k8s.io/validatingadmissionpolicies",
        "validatingadmissionpolicy",
    )
    .in_api_extensions()
};

fn default(object: &mut ValidatingAdmissionPolicy) {
    let spec = object.spec.get_or_insert_default();
    text(&mut spec.failure_policy, "Fail");
    if let Some(matching) = &mut spec.match_constraints {
        policy::default_match(matching);
    }
}

fn validate(object: &ValidatingAdmissionPolicy) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let path = Path::new("spec");
    let spec = object.spec.clone().unwrap_or_default();
    one_of(&mut errors, &path.child("failurePolicy"), str_of(&spec.failure_policy), &["Fail", "Ignore"]);
    policy::matching(&mut errors, &path.child("matchConstraints"), spec.match_constraints.as_ref());
    if is_blank(&spec.validations) && is_blank(&spec.audit_annotations) {
        errors.push(FieldError::required(path.child("validations"), "validations or auditAnnotations must be set"));
    }
    errors
}

fn row(object: &ValidatingAdmissionPolicy, now: Timestamp) -> Vec<Value> {
    let spec = object.spec.clone().unwrap_or_default();
    let count = spec.validations.as_ref().map_or(0, Vec::len);
    let param = policy::param_kind(spec.param_kind.as_ref());
    vec![name(&object.metadata), count.into(), param.into(), age(&object.metadata, now)]
}
