//! What a certificate says, for authentication and for the renewal of our own.

use jiff::Timestamp;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::PkiError;

/// The attribute of a subject that Kubernetes reserves for the user's uid.
pub(super) const UID: &[u64] = &[1, 3, 6, 1, 4, 1, 57683, 2];

/// The facts of a parsed certificate. Parsing verifies nothing: the TLS layer has verified the chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    pub common_name: String,
    pub organizations: Vec<String>,
    /// The user's uid, in the attribute that Kubernetes reserves for it (1.3.6.1.4.1.57683.2).
    pub uid: String,
    pub not_before: Timestamp,
    pub not_after: Timestamp,
    pub is_ca: bool,
    /// The DER of the SubjectPublicKeyInfo.
    pub public_key: Vec<u8>,
}

impl Certificate {
    /// Reads a certificate in DER.
    ///
    /// # Errors
    /// [`PkiError::Certificate`] when it is none.
    pub fn parse(der: &[u8]) -> Result<Self, PkiError> {
        let (_, parsed) = X509Certificate::from_der(der).map_err(|error| PkiError::Certificate(error.to_string()))?;
        let text = |value: Result<&str, x509_parser::error::X509Error>| value.ok().map(str::to_owned);
        let subject = parsed.subject();
        let uid = subject.iter_attributes().find(|attribute| attribute.attr_type().to_id_string() == "1.3.6.1.4.1.57683.2");
        let time = |seconds: i64| Timestamp::from_second(seconds).map_err(|error| PkiError::Certificate(error.to_string()));
        Ok(Self {
            common_name: subject.iter_common_name().next().and_then(|name| text(name.as_str())).unwrap_or_default(),
            organizations: subject.iter_organization().filter_map(|name| text(name.as_str())).collect(),
            uid: uid.and_then(|value| text(value.as_str())).unwrap_or_default(),
            not_before: time(parsed.validity().not_before.timestamp())?,
            not_after: time(parsed.validity().not_after.timestamp())?,
            is_ca: parsed.is_ca(),
            public_key: parsed.public_key().raw.to_vec(),
        })
    }
}
