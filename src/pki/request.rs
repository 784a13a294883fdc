//! A certificate signing request: what a joining node asks the cluster to sign. The key never leaves the node.

use rcgen::{CertificateParams, KeyPair};

use super::PkiError;
use super::ca::{san_of, subject};

/// A request and the key that it is for, both PEM.
#[derive(Clone)]
pub struct SigningRequest {
    pub csr_pem: String,
    pub key_pem: String,
}

impl SigningRequest {
    /// A request with a new key (ECDSA P-256). `sans` are the names and addresses that a server answers to.
    ///
    /// # Errors
    /// When a name cannot be in a certificate, or the key cannot be made.
    pub fn new(common_name: &str, organizations: &[String], sans: &[String]) -> Result<Self, PkiError> {
        let key = KeyPair::generate().map_err(PkiError::Key)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = subject(common_name, organizations);
        params.subject_alt_names = sans.iter().map(|san| san_of(san)).collect::<Result<_, _>>()?;
        let csr_pem = params.serialize_request(&key).and_then(|request| request.pem()).map_err(PkiError::Request)?;
        Ok(Self { csr_pem, key_pem: key.serialize_pem() })
    }
}
