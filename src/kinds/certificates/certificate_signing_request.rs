//! CertificateSigningRequest: a certificate that is asked for.

use jiff::Timestamp;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use serde_json::Value;

use crate::api::field::{FieldError, Path};
use crate::api::kind::{Column, Subresource};
use crate::api::table::human_duration;
use crate::kinds::check::{is_blank, str_of};
use crate::kinds::print::{NONE, age, name};
use crate::kinds::typed::{Definition, Selectable, names_of};

/// The shortest life of a certificate.
const SECONDS_MIN: i32 = 600;

const FIELDS: [Selectable; 1] = [Selectable::text("spec.signerName", &[&["spec", "signerName"]])];

/// The kind.
pub static CERTIFICATE_SIGNING_REQUEST: Definition<CertificateSigningRequest> = Definition {
    subresources: &[Subresource::Approval, Subresource::Status],
    columns: &[
        Column::NAME,
        Column::AGE,
        Column::text("SignerName"),
        Column::text("Requestor"),
        Column::text("RequestedDuration"),
        Column::text("Condition"),
    ],
    row: Some(row),
    selectable: &FIELDS,
    selectable_names: &names_of(&FIELDS),
    default: Some(|request| {
        request.status.get_or_insert_default();
    }),
    prepare_update: Some(prepare_update),
    validate: Some(validate),
    generation: Some(false),
    ..Definition::cluster(
        "io.k8s.api.certificates.v1.CertificateSigningRequest",
        "certificates.k8s.io/certificatesigningrequests",
        "certificatesigningrequest",
    )
    .short(&["csr"])
};

/// What was asked for, and by whom, does not change; a decision stands, whoever writes the certificate.
fn prepare_update(new: &mut CertificateSigningRequest, old: &CertificateSigningRequest, subresource: Option<Subresource>) {
    new.spec.clone_from(&old.spec);
    let before = old.status.clone().unwrap_or_default();
    match subresource {
        Some(Subresource::Approval) => new.status.get_or_insert_default().certificate = before.certificate,
        Some(Subresource::Status) => {
            let decided = |kind: &str| matches!(kind, "Approved" | "Denied");
            let conditions = new.status.get_or_insert_default().conditions.get_or_insert_default();
            conditions.retain(|condition| !decided(&condition.type_));
            conditions.extend(before.conditions.into_iter().flatten().filter(|condition| decided(&condition.type_)));
        }
        _ => {}
    }
}

fn validate(request: &CertificateSigningRequest) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let path = Path::new("spec");
    let spec = &request.spec;
    if spec.request.0.is_empty() {
        errors.push(FieldError::invalid(path.child("request"), Vec::<u8>::new(), "PEM block type must be CERTIFICATE REQUEST"));
    }
    if is_blank(&spec.usages) {
        errors.push(FieldError::required(path.child("usages"), ""));
    }
    super::signer_name(&mut errors, &path.child("signerName"), &spec.signer_name);
    if let Some(seconds) = spec.expiration_seconds.filter(|seconds| *seconds < SECONDS_MIN) {
        let why = "may not specify a duration less than 600 seconds (10 minutes)";
        errors.push(FieldError::invalid(path.child("expirationSeconds"), seconds, why));
    }
    let has = |kind: &str| {
        request.status.iter().flat_map(|status| status.conditions.iter().flatten()).any(|condition| condition.type_ == kind)
    };
    if has("Approved") && has("Denied") {
        let path = Path::new("status").child("conditions");
        errors.push(FieldError::invalid(path, "Approved", "Approved and Denied conditions are mutually exclusive"));
    }
    errors
}

fn row(request: &CertificateSigningRequest, now: Timestamp) -> Vec<Value> {
    let duration = request.spec.expiration_seconds.map_or_else(|| NONE.to_owned(), |seconds| human_duration(i64::from(seconds)));
    vec![
        name(&request.metadata),
        age(&request.metadata, now),
        request.spec.signer_name.clone().into(),
        str_of(&request.spec.username).into(),
        duration.into(),
        state(request).into(),
    ]
}

fn state(request: &CertificateSigningRequest) -> String {
    let status = request.status.clone().unwrap_or_default();
    let has = |kind: &str| status.conditions.iter().flatten().any(|condition| condition.type_ == kind);
    let mut words = Vec::new();
    if has("Denied") {
        words.push("Denied");
    } else if has("Approved") {
        words.push("Approved");
    } else {
        words.push("Pending");
    }
    if has("Failed") {
        words.push("Failed");
    }
    if status.certificate.is_some_and(|certificate| !certificate.0.is_empty()) {
        words.push("Issued");
    }
    words.join(",")
}
