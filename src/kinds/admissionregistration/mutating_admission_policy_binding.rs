//! MutatingAdmissionPolicyBinding: where a mutating policy holds.

use k8s_openapi::api::admissionregistration::v1::MutatingAdmissionPolicyBinding;

use crate::kinds::typed::Definition;

/// The kind.
pub static MUTATING_ADMISSION_POLICY_BINDING: Definition<MutatingAdmissionPolicyBinding> = Definition::cluster(
    "io.k8s.api.admissionregistration.v1.MutatingAdmissionPolicyBinding",
    "admissionregistration.k8s.io/mutatingadmissionpolicybindings",
    "mutatingadmissionpolicybinding",
)
.in_api_extensions();
