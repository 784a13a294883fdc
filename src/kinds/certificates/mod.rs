//! The kinds of `certificates.k8s.io/v1`.

pub mod certificate_signing_request;
pub mod cluster_trust_bundle;
pub mod pod_certificate_request;

use crate::api::field::{FieldError, Path};
use crate::kinds::check::required;

/// The name of a signer: a domain and a path.
pub(super) fn signer_name(errors: &mut Vec<FieldError>, path: &Path, signer: &str) {
    if required(errors, path, signer) && !signer.contains('/') {
        let why = "must be a fully qualified domain and path of the form 'example.com/signer-name'";
        errors.push(FieldError::invalid(path.clone(), signer, why));
    }
}
