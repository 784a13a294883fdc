//! MutatingAdmissionPolicy: changes objects by CEL.

use jiff::Timestamp;
use k8s_openapi::api::admissionregistration::v1::MutatingAdmissionPolicy;
use serde_json::Value;

use super::policy;
use crate::api::field::{FieldError, Path};
use crate::api::kind::Column;
use crate::kinds::check::{is_blank, one_of, str_of};
use crate::kinds::core::pod_spec::defaults::text;
use crate::kinds::print::{age, name};
use crate::kinds::typed::Definition;

/// The kind.
pub static MUTATING_ADMISSION_POLICY: Definition<MutatingAdmissionPolicy> = Definition {
    columns: &[Column::NAME, Column::integer("Mutations"), Column::text("ParamKind"), Column::AGE],
    row: Some(row),
    default: Some(default),
    validate: Some(validate),
    generation: Some(true),
    ..Definition::cluster(
        "io.k8s.api.admissionregistration.v1.MutatingAdmissionPolicy",
        "admissionregistration.k8s.io/mutatingadmissionpolicies",
        "mutatingadmissionpolicy",
    )
    .in_api_extensions()
};

fn default(object: &mut MutatingAdmissionPolicy) {
    let spec = object.spec.get_or_insert_default();
    text(&mut spec.failure_policy, "Fail");
    if let Some(matching) = &mut spec.match_constraints {
        policy::default_match(matching);
    }
}

fn validate(object: &MutatingAdmissionPolicy) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let path = Path::new("spec");
    let spec = object.spec.clone().unwrap_or_default();
    one_of(&mut errors, &path.child("failurePolicy"), str_of(&spec.failure_policy), &["Fail", "Ignore"]);
    policy::matching(&mut errors, &path.child("matchConstraints"), spec.match_constraints.as_ref());
    if is_blank(&spec.mutations) {
        errors.push(FieldError::required(path.child("mutations"), "mutations must contain at least one item"));
    }
    errors
}

fn row(object: &MutatingAdmissionPolicy, now: Timestamp) -> Vec<Value> {
    let spec = object.spec.clone().unwrap_or_default();
    let count = spec.mutations.as_ref().map_or(0, Vec::len);
    let param = policy::param_kind(spec.param_kind.as_ref());
    vec![name(&object.metadata), count.into(), param.into(), age(&object.metadata, now)]
}
