//! ValidatingAdmissionPolicy: checks objects by CEL.

use k8s_openapi::api::admissionregistration::v1::ValidatingAdmissionPolicy;

use crate::api::kind::Subresource;
use crate::kinds::typed::Definition;

/// The kind.
pub static VALIDATING_ADMISSION_POLICY: Definition<ValidatingAdmissionPolicy> = Definition {
    subresources: &[Subresource::Status],
    ..Definition::cluster(
        "io.k8s.api.admissionregistration.v1.ValidatingAdmissionPolicy",
        "admissionregistration.k8s.io/validatingadmissionpolicies",
        "validatingadmissionpolicy",
    )
    .in_api_extensions()
};
