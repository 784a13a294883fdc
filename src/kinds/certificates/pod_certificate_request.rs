//! PodCertificateRequest: a certificate that a node asks for in the name of a pod, as upstream's `pkg/apis/certificates/validation`.

use jiff::Timestamp;
use k8s_openapi::api::certificates::v1beta1::{PodCertificateRequest, PodCertificateRequestStatus};
use serde_json::Value;

use crate::api::field::{FieldError, Path};
use crate::api::kind::{Column, Subresource};
use crate::api::names;
use crate::kinds::check::{immutable, required, required_rule};
use crate::kinds::print::{age, name};
use crate::kinds::typed::{Definition, Selectable, names_of};

/// What a signer may be asked for, in seconds.
const SECONDS_MIN: i32 = 3_600;
const SECONDS_MAX: i32 = 91 * 24 * 3_600;
/// The default of `maxExpirationSeconds`.
const SECONDS: i32 = 24 * 3_600;
/// What a signer decides: at most one of them.
const DECISIONS: [&str; 3] = ["Issued", "Denied", "Failed"];

const FIELDS: [Selectable; 3] = [
    Selectable::text("spec.signerName", &[&["spec", "signerName"]]),
    Selectable::text("spec.podName", &[&["spec", "podName"]]),
    Selectable::text("spec.nodeName", &[&["spec", "nodeName"]]),
];

/// The kind.
pub static POD_CERTIFICATE_REQUEST: Definition<PodCertificateRequest> = Definition {
    subresources: &[Subresource::Status],
    columns: &[
        Column::NAME,
        Column::text("PodName"),
        Column::text("ServiceAccountName"),
        Column::text("NodeName"),
        Column::text("SignerName"),
        Column::text("State"),
        Column::AGE,
    ],
    row: Some(row),
    selectable: &FIELDS,
    selectable_names: &names_of(&FIELDS),
    default: Some(|request| {
        request.spec.max_expiration_seconds.get_or_insert(SECONDS);
    }),
    prepare_update: Some(|new, old, subresource| {
        if subresource == Some(Subresource::Status) {
            new.spec.clone_from(&old.spec);
        }
    }),
    validate: Some(validate),
    validate_update: Some(validate_update),
    generation: Some(false),
    ..Definition::namespaced(
        "io.k8s.api.certificates.v1.PodCertificateRequest",
        "certificates.k8s.io/podcertificaterequests",
        "podcertificaterequest",
    )
    .promoted("v1")
};

fn validate(request: &PodCertificateRequest) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let path = Path::new("spec");
    let spec = &request.spec;
    super::signer_name(&mut errors, &path.child("signerName"), &spec.signer_name);
    for (field, text) in
        [("podName", &spec.pod_name), ("serviceAccountName", &spec.service_account_name), ("nodeName", &spec.node_name)]
    {
        required_rule(&mut errors, &path.child(field), text, names::dns1123_subdomain);
    }
    for (field, text) in
        [("podUID", &spec.pod_uid), ("serviceAccountUID", &spec.service_account_uid), ("nodeUID", &spec.node_uid)]
    {
        required(&mut errors, &path.child(field), text);
    }
    match spec.max_expiration_seconds {
        None => errors.push(FieldError::required(path.child("maxExpirationSeconds"), "must be set")),
        Some(seconds) if !(SECONDS_MIN..=SECONDS_MAX).contains(&seconds) => {
            let why = format!("must be in the range [{SECONDS_MIN}, {SECONDS_MAX}]");
            errors.push(FieldError::invalid(path.child("maxExpirationSeconds"), seconds, why));
        }
        Some(_) => {}
    }
    decisions(&mut errors, request.status.as_ref());
    errors
}

fn decisions(errors: &mut Vec<FieldError>, status: Option<&PodCertificateRequestStatus>) {
    let path = Path::new("status").child("conditions");
    let made = status.iter().flat_map(|status| status.conditions.iter().flatten());
    let made: Vec<_> = made.filter(|condition| DECISIONS.contains(&condition.type_.as_str())).collect();
    if made.len() > 1 {
        let why = "There may be at most one condition with type \"Issued\", \"Denied\", or \"Failed\"";
        errors.push(FieldError::invalid(path.clone(), made[1].type_.as_str(), why));
    }
    if let Some(condition) = made.iter().find(|condition| condition.status != "True") {
        errors.push(FieldError::not_supported(path.child("status"), condition.status.as_str(), &["True"]));
    }
}

fn validate_update(
    new: &PodCertificateRequest,
    old: &PodCertificateRequest,
    _subresource: Option<Subresource>,
) -> Vec<FieldError> {
    let mut errors = validate(new);
    immutable(&mut errors, &Path::new("spec"), &new.spec, &old.spec);
    let issued = |request: &PodCertificateRequest| request.status.as_ref().and_then(|status| status.certificate_chain.clone());
    if issued(old).is_some() {
        immutable(&mut errors, &Path::new("status").child("certificateChain"), &issued(new), &issued(old));
    }
    errors
}

fn row(request: &PodCertificateRequest, now: Timestamp) -> Vec<Value> {
    let conditions = request.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let state = conditions.map(|condition| condition.type_.as_str()).find(|kind| DECISIONS.contains(kind));
    vec![
        name(&request.metadata),
        request.spec.pod_name.clone().into(),
        request.spec.service_account_name.clone().into(),
        request.spec.node_name.clone().into(),
        request.spec.signer_name.clone().into(),
        state.unwrap_or("Pending").into(),
        age(&request.metadata, now),
    ]
}
