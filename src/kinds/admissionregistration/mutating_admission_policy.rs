//! MutatingAdmissionPolicy: changes objects by CEL.

use k8s_openapi::api::admissionregistration::v1::MutatingAdmissionPolicy;

use crate::kinds::typed::Definition;

/// The kind.
pub static MUTATING_ADMISSION_POLICY: Definition<MutatingAdmissionPolicy> = Definition::cluster(
    "io.k8s.api.admissionregistration.v1.MutatingAdmissionPolicy",
    "admissionregistration.k8s.io/mutatingadmissionpolicies",
    "mutatingadmissionpolicy",
)
.in_api_extensions();
