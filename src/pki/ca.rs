//! A certificate authority: issues certificates for our own components and signs requests of others (ECDSA P-256).

use std::net::IpAddr;
use std::time::Duration;

use jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use ring::digest;

use super::{Identity, PkiError};
use crate::rt::random;

/// How long a CA is valid, as k3s and kubeadm have it.
const CA_LIFETIME: Duration = Duration::from_secs(10 * 365 * 86_400);
/// Certificates start a little in the past, so that a machine whose clock is slow takes them.
const BACKDATE: Duration = Duration::from_secs(300);

/// A certificate authority with its key.
pub struct Ca {
    certificate_pem: String,
    certificate_der: Vec<u8>,
    key_pem: String,
    fingerprint: String,
    not_after: Timestamp,
    issuer: Issuer<'static, KeyPair>,
}

/// What a certificate of our own says.
#[derive(Debug, Clone, Default)]
pub struct Leaf {
    pub common_name: String,
    pub organizations: Vec<String>,
    /// Names and addresses that a server answers to; empty for a client certificate.
    pub sans: Vec<String>,
    pub lifetime: Duration,
}

impl std::fmt::Debug for Ca {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Ca").field("fingerprint", &self.fingerprint).finish_non_exhaustive()
    }
}

impl Ca {
    /// A new authority.
    ///
    /// # Errors
    /// Only when the key cannot be made.
    pub fn generate(common_name: &str, now: Timestamp) -> Result<Self, PkiError> {
        let key = KeyPair::generate().map_err(PkiError::Key)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.serial_number = Some(serial());
        set_validity(&mut params, now, CA_LIFETIME);
        let certificate = params.self_signed(&key).map_err(PkiError::Sign)?;
        Self::load(&certificate.pem(), &key.serialize_pem())
    }

    /// The authority of a certificate and its key, both PEM.
    ///
    /// # Errors
    /// When one does not parse, or the key is not the certificate's.
    pub fn load(certificate_pem: &str, key_pem: &str) -> Result<Self, PkiError> {
        let certificate_der = super::pem_blocks(certificate_pem, "CERTIFICATE")?.swap_remove(0);
        let facts = super::Certificate::parse(&certificate_der)?;
        let key = KeyPair::from_pem(key_pem).map_err(PkiError::Key)?;
        let spki = key.subject_public_key_info();
        if spki != facts.public_key {
            return Err(PkiError::KeyMismatch);
        }
        let issuer = Issuer::from_ca_cert_pem(certificate_pem, key).map_err(PkiError::Sign)?;
        Ok(Self {
            fingerprint: hex(digest::digest(&digest::SHA256, &spki).as_ref()),
            not_after: facts.not_after,
            certificate_pem: certificate_pem.to_owned(),
            certificate_der,
            key_pem: key_pem.to_owned(),
            issuer,
        })
    }

    /// The certificate, PEM.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// The certificate, DER.
    pub fn certificate_der(&self) -> &[u8] {
        &self.certificate_der
    }

    /// The key, PEM: for the file that keeps it, and for servers that join.
    pub fn key_pem(&self) -> &str {
        &self.key_pem
    }

    /// SHA-256 of the public key in hexadecimal, as kubeadm's `--discovery-token-ca-cert-hash`: what join tokens carry.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Issues a certificate with a new key. The chain ends with this CA, so that a client can pin it by fingerprint.
    ///
    /// # Errors
    /// When a name is not fit for a certificate.
    pub fn issue(&self, leaf: &Leaf, now: Timestamp) -> Result<Identity, PkiError> {
        let key = KeyPair::generate().map_err(PkiError::Key)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = subject(&leaf.common_name, &leaf.organizations);
        params.subject_alt_names = leaf.sans.iter().map(|san| san_of(san)).collect::<Result<_, _>>()?;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let usage = if leaf.sans.is_empty() { ExtendedKeyUsagePurpose::ClientAuth } else { ExtendedKeyUsagePurpose::ServerAuth };
        params.extended_key_usages = vec![usage];
        params.serial_number = Some(serial());
        params.use_authority_key_identifier_extension = true;
        set_validity(&mut params, now, self.capped(leaf.lifetime, now));
        let certificate = params.signed_by(&key, &self.issuer).map_err(PkiError::Sign)?;
        Ok(Identity { chain_pem: format!("{}{}", certificate.pem(), self.certificate_pem), key_pem: key.serialize_pem() })
    }

    /// Signs a request (PEM) for the usages of its `CertificateSigningRequest` (`client auth`, `digital signature`, …).
    /// Names are taken from the request; that they are allowed is the approver's matter. A `uid` that is not "" is written into the
    /// subject, in Kubernetes' attribute for it.
    ///
    /// # Errors
    /// When the request does not parse, its signature is wrong, it asks to be a CA, or a usage is unknown.
    pub fn sign_csr<S: AsRef<str>>(
        &self,
        pem: &str,
        ttl: Duration,
        usages: &[S],
        uid: &str,
        now: Timestamp,
    ) -> Result<String, PkiError> {
        let der = super::pem_blocks(pem, "CERTIFICATE REQUEST")?.swap_remove(0);
        let mut request = CertificateSigningRequestParams::from_der(&der.into()).map_err(PkiError::Request)?;
        let params = &mut request.params;
        if matches!(params.is_ca, IsCa::Ca(_)) {
            return Err(PkiError::RequestsCa);
        }
        if !uid.is_empty() {
            params.distinguished_name.push(DnType::CustomDnType(super::certificate::UID.to_vec()), uid);
        }
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages.clear();
        params.extended_key_usages.clear();
        for usage in usages {
            add_usage(params, usage.as_ref())?;
        }
        params.serial_number = Some(serial());
        params.use_authority_key_identifier_extension = true;
        set_validity(params, now, self.capped(ttl, now));
        Ok(request.signed_by(&self.issuer).map_err(PkiError::Sign)?.pem())
    }

    /// A certificate does not outlive its CA.
    fn capped(&self, lifetime: Duration, now: Timestamp) -> Duration {
        let left = Duration::try_from(self.not_after.duration_since(now)).unwrap_or_default();
        lifetime.min(left)
    }
}

pub(super) fn subject(common_name: &str, organizations: &[String]) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    for organization in organizations {
        name.push(DnType::OrganizationName, organization.as_str());
    }
    name.push(DnType::CommonName, common_name);
    name
}

pub(super) fn san_of(text: &str) -> Result<SanType, PkiError> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(SanType::IpAddress(address));
    }
    text.try_into().map(SanType::DnsName).map_err(|source| PkiError::Name { name: text.to_owned(), source })
}

/// The words of `certificates.k8s.io/v1` `KeyUsage`.
fn add_usage(params: &mut CertificateParams, usage: &str) -> Result<(), PkiError> {
    let key_usage = match usage {
        "signing" | "digital signature" => Some(KeyUsagePurpose::DigitalSignature),
        "content commitment" => Some(KeyUsagePurpose::ContentCommitment),
        "key encipherment" => Some(KeyUsagePurpose::KeyEncipherment),
        "key agreement" => Some(KeyUsagePurpose::KeyAgreement),
        "data encipherment" => Some(KeyUsagePurpose::DataEncipherment),
        "encipher only" => Some(KeyUsagePurpose::EncipherOnly),
        "decipher only" => Some(KeyUsagePurpose::DecipherOnly),
        _ => None,
    };
    let extended = match usage {
        "server auth" => Some(ExtendedKeyUsagePurpose::ServerAuth),
        "client auth" => Some(ExtendedKeyUsagePurpose::ClientAuth),
        "code signing" => Some(ExtendedKeyUsagePurpose::CodeSigning),
        "email protection" | "s/mime" => Some(ExtendedKeyUsagePurpose::EmailProtection),
        "timestamping" => Some(ExtendedKeyUsagePurpose::TimeStamping),
        "ocsp signing" => Some(ExtendedKeyUsagePurpose::OcspSigning),
        _ => None,
    };
    if key_usage.is_none() && extended.is_none() {
        return Err(PkiError::Usage(usage.to_owned()));
    }
    params.key_usages.extend(key_usage);
    params.extended_key_usages.extend(extended);
    Ok(())
}

fn set_validity(params: &mut CertificateParams, now: Timestamp, lifetime: Duration) {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let seconds = u64::try_from(now.as_second()).unwrap_or(0);
    params.not_before = epoch + Duration::from_secs(seconds).saturating_sub(BACKDATE);
    params.not_after = epoch + Duration::from_secs(seconds) + lifetime;
}

fn serial() -> SerialNumber {
    let mut bytes = [0_u8; 16];
    random::fill(&mut bytes);
    // Positive and of full length, as RFC 5280 section 4.1.2.2 asks.
    bytes[0] = (bytes[0] & 0x7f) | 0x40;
    SerialNumber::from_slice(&bytes)
}

/// Bytes as lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::Certificate;

    fn now() -> Timestamp {
        "2026-01-02T03:04:05Z".parse().unwrap()
    }

    #[test]
    fn a_loaded_ca_is_the_generated_one_and_refuses_another_key() {
        let ca = Ca::generate("ca", now()).unwrap();
        let again = Ca::load(ca.certificate_pem(), ca.key_pem()).unwrap();
        assert_eq!(ca.fingerprint(), again.fingerprint());
        let other = Ca::generate("other", now()).unwrap();
        assert!(matches!(Ca::load(ca.certificate_pem(), other.key_pem()), Err(PkiError::KeyMismatch)));
    }

    #[test]
    fn issued_certificates_say_who() {
        let ca = Ca::generate("ca", now()).unwrap();
        let lifetime = Duration::from_secs(3_600);
        let leaf = Leaf { common_name: "jane".into(), organizations: vec!["dev".into()], lifetime, ..Leaf::default() };
        let identity = ca.issue(&leaf, now()).unwrap();
        let ders = crate::pki::pem_blocks(&identity.chain_pem, "CERTIFICATE").unwrap();
        let certificate = Certificate::parse(&ders[0]).unwrap();
        assert_eq!((certificate.common_name.as_str(), certificate.organizations.as_slice()), ("jane", &["dev".to_owned()][..]));
        assert_eq!(certificate.not_after, "2026-01-02T04:04:05Z".parse().unwrap());
        assert_eq!(ders[1], ca.certificate_der());
    }

    #[test]
    fn requests_are_signed_for_what_was_asked() {
        let ca = Ca::generate("ca", now()).unwrap();
        let (key, mut params) = (KeyPair::generate().unwrap(), CertificateParams::new(vec!["n1".to_owned()]).unwrap());
        params.distinguished_name = subject("system:node:n1", &["system:nodes".to_owned()]);
        let pem = params.serialize_request(&key).unwrap().pem().unwrap();
        let usages = ["digital signature", "client auth"];
        let signed = ca.sign_csr(&pem, Duration::from_secs(60), &usages, "u-1", now()).unwrap();
        let certificate = Certificate::parse(&crate::pki::pem_blocks(&signed, "CERTIFICATE").unwrap()[0]).unwrap();
        assert_eq!((certificate.common_name.as_str(), certificate.uid.as_str()), ("system:node:n1", "u-1"));
        assert!(!certificate.is_ca);
        assert!(matches!(ca.sign_csr(&pem, Duration::from_secs(60), &["fly"], "", now()), Err(PkiError::Usage(_))));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.serialize_request(&key).unwrap().pem().unwrap();
        assert!(ca.sign_csr(&pem, Duration::from_secs(60), &usages, "", now()).is_err());
    }
}
