//! Certificate signing requests: what a joining node asks the cluster to sign, and what a node asks a signer to sign for one of its
//! pods. The key never leaves the node.

use rcgen::{
    CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519,
    SignatureAlgorithm,
};

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

/// The keys that pods can have, by the names that Kubernetes has for them. Not among them are those that our cryptography (`ring`)
/// does not make: RSA3072, RSA4096 and ECDSAP521.
pub const KEY_TYPES: &[(&str, &SignatureAlgorithm)] =
    &[("ECDSAP256", &PKCS_ECDSA_P256_SHA256), ("ECDSAP384", &PKCS_ECDSA_P384_SHA384), ("ED25519", &PKCS_ED25519)];

/// A request that says nothing but which key it is for: who gets the certificate is told beside it.
#[derive(Clone)]
pub struct StubRequest {
    pub csr_der: Vec<u8>,
    /// PKCS#8.
    pub key_pem: String,
}

impl StubRequest {
    /// A request with a new key of one of [`KEY_TYPES`].
    ///
    /// # Errors
    /// When the key cannot be made.
    pub fn new(algorithm: &'static SignatureAlgorithm) -> Result<Self, PkiError> {
        let key = KeyPair::generate_for(algorithm).map_err(PkiError::Key)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let csr_der = params.serialize_request(&key).map_err(PkiError::Request)?.der().to_vec();
        let key_pem = if *algorithm == PKCS_ED25519 { ed25519_pem(&key.serialize_der()) } else { None };
        Ok(Self { csr_der, key_pem: key_pem.unwrap_or_else(|| key.serialize_pem()) })
    }
}

/// The first version of PKCS#8, which everybody reads (RFC 8410), of a key in the second, which holds the public key too and which
/// OpenSSL refuses.
fn ed25519_pem(second: &[u8]) -> Option<String> {
    const SEED_AT: usize = 16;
    const SEED_BYTES: usize = 32;
    const FIRST: [u8; SEED_AT] = [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
    let is_second = second.starts_with(&[0x30, 0x51, 2, 1, 1]) && second.get(5..SEED_AT) == Some(&FIRST[5..]);
    let seed = second.get(SEED_AT..SEED_AT + SEED_BYTES).filter(|_| is_second)?;
    Some(super::pem("PRIVATE KEY", &[&FIRST[..], seed].concat()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stub_has_the_key_and_nothing_else() {
        for (name, algorithm) in KEY_TYPES {
            let stub = StubRequest::new(algorithm).unwrap();
            let key = KeyPair::from_pem(&stub.key_pem).unwrap();
            assert!(key.is_compatible(algorithm), "{name}");
            let request = rcgen::CertificateSigningRequestParams::from_der(&stub.csr_der.into()).unwrap();
            assert_eq!(rcgen::PublicKeyData::der_bytes(&request.public_key), rcgen::PublicKeyData::der_bytes(&key), "{name}");
            assert_eq!(request.params.distinguished_name, DistinguishedName::new());
            assert!(request.params.subject_alt_names.is_empty());
        }
    }
}
