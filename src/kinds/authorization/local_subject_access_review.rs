//! LocalSubjectAccessReview: may somebody do this in one namespace.

use k8s_openapi::api::authorization::v1::LocalSubjectAccessReview;

use crate::kinds::typed::Definition;

/// The kind.
pub static LOCAL_SUBJECT_ACCESS_REVIEW: Definition<LocalSubjectAccessReview> = Definition::namespaced(
    "io.k8s.api.authorization.v1.LocalSubjectAccessReview",
    "authorization.k8s.io/localsubjectaccessreviews",
    "localsubjectaccessreview",
)
.create_only();
