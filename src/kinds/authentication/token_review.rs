//! TokenReview: whose token is this.

use k8s_openapi::api::authentication::v1::TokenReview;

use crate::kinds::typed::Definition;

/// The kind.
pub static TOKEN_REVIEW: Definition<TokenReview> =
    Definition::cluster("io.k8s.api.authentication.v1.TokenReview", "authentication.k8s.io/tokenreviews", "tokenreview")
        .create_only();
