//! Signs certificate requests for the controllers with the cluster's CAs.

use std::sync::Arc;

use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer;

use crate::controllers::{RequestSubject, Signer, SigningOrder};
use crate::pki::{Ca, LEAF_LIFETIME, pem_blocks};
use crate::rt::clock::SharedClock;

const SERVING: &str = "kubernetes.io/kubelet-serving";

/// Which CA signs for which signer name.
pub struct CaSigner {
    pub client_ca: Arc<Ca>,
    pub server_ca: Arc<Ca>,
    pub clock: SharedClock,
}

impl Signer for CaSigner {
    fn subject(&self, request_pem: &str) -> Result<RequestSubject, String> {
        let blocks = pem_blocks(request_pem, "CERTIFICATE REQUEST").map_err(|error| error.to_string())?;
        let der = blocks.first().ok_or("no certificate request")?;
        let (_, request) = X509CertificationRequest::from_der(der).map_err(|error| error.to_string())?;
        let name = &request.certification_request_info.subject;
        let text = |value: Result<&str, _>| value.map_or_else(|_: x509_parser::error::X509Error| String::new(), str::to_owned);
        let mut subject = RequestSubject {
            common_name: name.iter_common_name().next().map(|part| text(part.as_str())).unwrap_or_default(),
            organizations: name.iter_organization().map(|part| text(part.as_str())).collect(),
            ..RequestSubject::default()
        };
        for extension in request.requested_extensions().into_iter().flatten() {
            if let ParsedExtension::SubjectAlternativeName(names) = extension {
                names.general_names.iter().for_each(|name| add_name(&mut subject, name));
            }
        }
        Ok(subject)
    }

    fn sign(&self, order: &SigningOrder<'_>) -> Result<String, String> {
        let SigningOrder { signer, request_pem, usages, lifetime, uid } = *order;
        let ca = if signer == SERVING { &self.server_ca } else { &self.client_ca };
        let lifetime = lifetime.unwrap_or(LEAF_LIFETIME).min(LEAF_LIFETIME);
        ca.sign_csr(request_pem, lifetime, usages, uid, self.clock.now()).map_err(|error| error.to_string())
    }
}

fn add_name(subject: &mut RequestSubject, name: &GeneralName<'_>) {
    match name {
        GeneralName::DNSName(name) => subject.dns_names.push((*name).to_owned()),
        GeneralName::IPAddress(bytes) => {
            let address = <[u8; 4]>::try_from(*bytes).map(std::net::IpAddr::from);
            match address.or_else(|_| <[u8; 16]>::try_from(*bytes).map(std::net::IpAddr::from)) {
                Ok(address) => subject.ip_addresses.push(address.to_string()),
                Err(_) => subject.has_other_names = true,
            }
        }
        _ => subject.has_other_names = true,
    }
}
