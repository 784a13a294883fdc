//! SelfSubjectRulesReview: what may I do.

use k8s_openapi::api::authorization::v1::SelfSubjectRulesReview;

use crate::kinds::typed::Definition;

/// The kind.
pub static SELF_SUBJECT_RULES_REVIEW: Definition<SelfSubjectRulesReview> = Definition::cluster(
    "io.k8s.api.authorization.v1.SelfSubjectRulesReview",
    "authorization.k8s.io/selfsubjectrulesreviews",
    "selfsubjectrulesreview",
)
.create_only();
