//! CertificateSigningRequest: a certificate that is asked for.

use k8s_openapi::api::certificates::v1::CertificateSigningRequest;

use crate::api::kind::Subresource;
use crate::kinds::typed::Definition;

/// The kind.
pub static CERTIFICATE_SIGNING_REQUEST: Definition<CertificateSigningRequest> = Definition {
    subresources: &[Subresource::Approval, Subresource::Status],
    ..Definition::cluster(
        "io.k8s.api.certificates.v1.CertificateSigningRequest",
        "certificates.k8s.io/certificatesigningrequests",
        "certificatesigningrequest",
    )
    .short(&["csr"])
};
