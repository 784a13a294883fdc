//! SubjectAccessReview: may somebody do this.

use k8s_openapi::api::authorization::v1::SubjectAccessReview;

use crate::kinds::typed::Definition;

/// The kind.
pub static SUBJECT_ACCESS_REVIEW: Definition<SubjectAccessReview> = Definition::cluster(
    "io.k8s.api.authorization.v1.SubjectAccessReview",
    "authorization.k8s.io/subjectaccessreviews",
    "subjectaccessreview",
)
.create_only();
