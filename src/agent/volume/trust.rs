//! Trust anchors for projected volumes, from ClusterTrustBundles: by name, or all of a signer that labels select (upstream's
//! `pkg/kubelet/clustertrustbundle`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::ClusterResourceScope;
use k8s_openapi::api::certificates::v1beta1::ClusterTrustBundleSpec;
use k8s_openapi::api::core::v1::ClusterTrustBundleProjection;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Serialize};

use super::promoted::promoted;
use crate::kinds::check::selects;

/// Begins and ends a block of PEM.
const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
const END: &str = "-----END CERTIFICATE-----";

/// A ClusterTrustBundle as it is served: v1, with the fields of v1beta1.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Bundle {
    pub metadata: ObjectMeta,
    pub spec: ClusterTrustBundleSpec,
}

promoted!(Bundle, ClusterResourceScope, "ClusterTrustBundle", "clustertrustbundles");

/// The anchors that a projection asks for, each once, in an order that changes with the content alone.
///
/// # Errors
/// What is missing, unless the projection is optional.
pub fn anchors(bundles: &[Arc<Bundle>], wanted: &ClusterTrustBundleProjection) -> Result<String, String> {
    let is_optional = wanted.optional == Some(true);
    let chosen: Vec<&Arc<Bundle>> = if let Some(name) = &wanted.name {
        let named: Vec<_> = bundles.iter().filter(|bundle| bundle.metadata.name.as_ref() == Some(name)).collect();
        if named.is_empty() && !is_optional {
            return Err(format!("clustertrustbundle.certificates.k8s.io \"{name}\" not found"));
        }
        named
    } else if let Some(signer) = &wanted.signer_name {
        let nothing = BTreeMap::new();
        // No selector selects nothing, an empty one everything.
        let is_selected = |bundle: &&Arc<Bundle>| {
            let labels = bundle.metadata.labels.as_ref().unwrap_or(&nothing);
            bundle.spec.signer_name.as_ref() == Some(signer)
                && wanted.label_selector.as_ref().is_some_and(|selector| selects(selector, labels))
        };
        let selected: Vec<_> = bundles.iter().filter(is_selected).collect();
        if selected.is_empty() && !is_optional {
            return Err(format!("no ClusterTrustBundle of signer {signer:?} has the labels that are asked for"));
        }
        selected
    } else {
        return Err("ClusterTrustBundle projection requires either name or signerName to be set".to_owned());
    };
    let blocks: BTreeSet<String> = chosen.iter().flat_map(|bundle| blocks(&bundle.spec.trust_bundle)).collect();
    Ok(blocks.into_iter().collect())
}

/// The certificates, without what stands between them.
fn blocks(text: &str) -> impl Iterator<Item = String> {
    text.split(BEGIN).skip(1).filter_map(|rest| {
        let (body, _) = rest.split_once(END)?;
        Some(format!("{BEGIN}{}\n{END}\n", body.trim_end()))
    })
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

    use super::*;

    fn bundle(name: &str, signer: Option<&str>, label: &str, text: &str) -> Arc<Bundle> {
        let labels = Some([("env".to_owned(), label.to_owned())].into());
        let metadata = ObjectMeta { name: Some(name.to_owned()), labels, ..ObjectMeta::default() };
        let trust_bundle = text.split(' ').map(|body| format!("about {body}\n{BEGIN}\n{body}\n{END}\n")).collect();
        Arc::new(Bundle { metadata, spec: ClusterTrustBundleSpec { signer_name: signer.map(str::to_owned), trust_bundle } })
    }

    #[test]
    fn by_name_and_by_signer() {
        let bundles = [
            bundle("one", None, "x", "b a"),
            bundle("s:1", Some("example.com/s"), "x", "c"),
            bundle("s:2", Some("example.com/s"), "y", "c d"),
        ];
        let block = |body: &str| format!("{BEGIN}\n{body}\n{END}\n");
        let named = |name: &str, optional| ClusterTrustBundleProjection {
            name: Some(name.to_owned()),
            optional,
            ..ClusterTrustBundleProjection::default()
        };
        let signed = |label_selector| ClusterTrustBundleProjection {
            signer_name: Some("example.com/s".to_owned()),
            label_selector,
            ..ClusterTrustBundleProjection::default()
        };
        let labelled =
            LabelSelector { match_labels: Some([("env".to_owned(), "x".to_owned())].into()), ..LabelSelector::default() };
        let missing = "no ClusterTrustBundle of signer \"example.com/s\" has the labels that are asked for";
        let cases = [
            (named("one", None), Ok(block("a") + &block("b"))),
            (named("two", None), Err("clustertrustbundle.certificates.k8s.io \"two\" not found".to_owned())),
            (named("two", Some(true)), Ok(String::new())),
            (signed(Some(LabelSelector::default())), Ok(block("c") + &block("d"))),
            (signed(Some(labelled)), Ok(block("c"))),
            (signed(None), Err(missing.to_owned())),
        ];
        for (wanted, expected) in cases {
            assert_eq!(anchors(&bundles, &wanted), expected, "{wanted:?}");
        }
    }
}
