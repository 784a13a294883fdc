//! ValidatingAdmissionPolicyBinding: where a validating policy holds.

use k8s_openapi::api::admissionregistration::v1::ValidatingAdmissionPolicyBinding;

use crate::kinds::typed::Definition;

/// The kind.
pub static VALIDATING_ADMISSION_POLICY_BINDING: Definition<ValidatingAdmissionPolicyBinding> = Definition::cluster(
    "io.k8s.api.admissionregistration.v1.ValidatingAdmissionPolicyBinding",
    "admissionregistration.k8s.io/validatingadmissionpolicybindings",
    "validatingadmissionpolicybinding",
)
.in_api_extensions();
