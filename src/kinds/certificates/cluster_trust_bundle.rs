//! ClusterTrustBundle: trust anchors for the whole cluster, as upstream's `pkg/apis/certificates/validation`.

use std::collections::BTreeMap;

use k8s_openapi::api::certificates::v1beta1::ClusterTrustBundle;
use x509_parser::pem::Pem;

use crate::api::field::{FieldError, Path};
use crate::api::kind::{Column, Subresource};
use crate::api::names;
use crate::kinds::check::{immutable, str_of};
use crate::kinds::print::{name, or_none};
use crate::kinds::typed::{Definition, Selectable, names_of};

/// The most bytes of a bundle.
const BUNDLE_BYTES: usize = 1 << 20;
/// Stands in an error for a bundle.
const OMITTED: &str = "<value omitted>";

const FIELDS: [Selectable; 1] = [Selectable::text("spec.signerName", &[&["spec", "signerName"]])];

/// The kind.
pub static CLUSTER_TRUST_BUNDLE: Definition<ClusterTrustBundle> = Definition {
    columns: &[Column::NAME, Column::text("SignerName")],
    row: Some(|bundle, _now| vec![name(&bundle.metadata), or_none(bundle.spec.signer_name.as_deref()).into()]),
    selectable: &FIELDS,
    selectable_names: &names_of(&FIELDS),
    validate: Some(validate),
    validate_update: Some(validate_update),
    // The rule depends on the signer: see `validate`.
    name_rule: |_| Vec::new(),
    ..Definition::cluster(
        "io.k8s.api.certificates.v1.ClusterTrustBundle",
        "certificates.k8s.io/clustertrustbundles",
        "clustertrustbundle",
    )
    .promoted("v1")
};

fn validate(bundle: &ClusterTrustBundle) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let path = Path::new("spec");
    let signer = str_of(&bundle.spec.signer_name);
    let name = bundle.metadata.name.as_deref().unwrap_or("");
    for why in name_problems(signer, name) {
        errors.push(FieldError::invalid(Path::new("metadata").child("name"), name, why));
    }
    if !signer.is_empty() {
        super::signer_name(&mut errors, &path.child("signerName"), signer);
    }
    anchors(&mut errors, &path.child("trustBundle"), &bundle.spec.trust_bundle);
    errors
}

fn validate_update(new: &ClusterTrustBundle, old: &ClusterTrustBundle, _subresource: Option<Subresource>) -> Vec<FieldError> {
    let mut errors = validate(new);
    let path = Path::new("spec").child("signerName");
    immutable(&mut errors, &path, &new.spec.signer_name, &old.spec.signer_name);
    errors
}

/// A bundle of a signer is named after it.
fn name_problems(signer: &str, name: &str) -> Vec<String> {
    if signer.is_empty() {
        if name.contains(':') {
            return vec!["ClusterTrustBundle without signer name must not have \":\" in its name".to_owned()];
        }
        return names::dns1123_subdomain(name);
    }
    let prefix = format!("{}:", signer.replace('/', ":"));
    match name.strip_prefix(&prefix) {
        Some(rest) => names::dns1123_subdomain(rest),
        None => vec![format!("ClusterTrustBundle for signerName {signer} must be named with prefix {prefix}")],
    }
}

/// Certificates of authorities, each once, and nothing else.
fn anchors(errors: &mut Vec<FieldError>, path: &Path, text: &str) {
    if text.len() > BUNDLE_BYTES {
        errors.push(FieldError::too_long(path.clone(), BUNDLE_BYTES));
        return;
    }
    let mut seen: BTreeMap<Vec<u8>, Vec<usize>> = BTreeMap::new();
    let before = errors.len();
    for (at, block) in Pem::iter_from_buffer(text.as_bytes()).enumerate() {
        let why = match block {
            Err(_) => "does not parse as X.509".to_owned(),
            Ok(block) if block.label != "CERTIFICATE" => format!("has bad block type: {}", block.label),
            Ok(block) => match block.parse_x509() {
                Err(_) => "does not parse as X.509".to_owned(),
                Ok(certificate) if !certificate.is_ca() => "does not have the CA bit set".to_owned(),
                Ok(_) => {
                    seen.entry(block.contents.clone()).or_default().push(at);
                    continue;
                }
            },
        };
        errors.push(FieldError::invalid(path.clone(), OMITTED, format!("entry {at} {why}")));
    }
    if errors.len() > before {
        return;
    }
    if seen.is_empty() {
        errors.push(FieldError::invalid(path.clone(), OMITTED, "at least one trust anchor must be provided"));
    }
    for indices in seen.values().filter(|indices| indices.len() > 1) {
        let indices: Vec<String> = indices.iter().map(ToString::to_string).collect();
        let why = format!("duplicate trust anchor (indices [{}])", indices.join(" "));
        errors.push(FieldError::invalid(path.clone(), OMITTED, why));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_signer() {
        assert!(name_problems("", "anchors").is_empty());
        assert!(name_problems("example.com/foo", "example.com:foo:abc").is_empty());
        assert_eq!(
            name_problems("example.com/foo", "abc"),
            ["ClusterTrustBundle for signerName example.com/foo must be named with prefix example.com:foo:"]
        );
        assert_eq!(name_problems("", "a:b"), ["ClusterTrustBundle without signer name must not have \":\" in its name"]);
    }

    #[test]
    fn a_bundle_holds_authorities_each_once() {
        let mut parameters = rcgen::CertificateParams::new(vec!["a".to_owned()]).unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let leaf = parameters.clone().self_signed(&key).unwrap().pem();
        parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let authority = parameters.self_signed(&key).unwrap().pem();
        let problems = |text: &str| {
            let mut errors = Vec::new();
            anchors(&mut errors, &Path::new("spec"), text);
            errors.iter().map(|error| error.detail.clone()).collect::<Vec<_>>()
        };
        assert!(problems(&authority).is_empty());
        assert_eq!(problems(""), ["at least one trust anchor must be provided"]);
        assert_eq!(problems(&leaf), ["entry 0 does not have the CA bit set"]);
        assert_eq!(problems(&format!("{authority}{authority}")), ["duplicate trust anchor (indices [0 1])"]);
    }
}
