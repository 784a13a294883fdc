//! SelfSubjectReview: who am I.

use k8s_openapi::api::authentication::v1::SelfSubjectReview;

use crate::kinds::typed::Definition;

/// The kind.
pub static SELF_SUBJECT_REVIEW: Definition<SelfSubjectReview> = Definition::cluster(
    "io.k8s.api.authentication.v1.SelfSubjectReview",
    "authentication.k8s.io/selfsubjectreviews",
    "selfsubjectreview",
)
.create_only();
