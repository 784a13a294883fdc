//! SelfSubjectAccessReview: may I do this.

use k8s_openapi::api::authorization::v1::SelfSubjectAccessReview;

use crate::kinds::typed::Definition;

/// The kind.
pub static SELF_SUBJECT_ACCESS_REVIEW: Definition<SelfSubjectAccessReview> = Definition::cluster(
    "io.k8s.api.authorization.v1.SelfSubjectAccessReview",
    "authorization.k8s.io/selfsubjectaccessreviews",
    "selfsubjectaccessreview",
)
.create_only();
