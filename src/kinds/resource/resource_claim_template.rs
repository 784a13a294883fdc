//! ResourceClaimTemplate: a template for ResourceClaims.

use k8s_openapi::api::resource::v1::ResourceClaimTemplate;

use crate::kinds::typed::Definition;

/// The kind.
pub static RESOURCE_CLAIM_TEMPLATE: Definition<ResourceClaimTemplate> = Definition::namespaced(
    "io.k8s.api.resource.v1.ResourceClaimTemplate",
    "resource.k8s.io/resourceclaimtemplates",
    "resourceclaimtemplate",
);
