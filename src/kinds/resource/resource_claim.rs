//! ResourceClaim: devices that are asked for.

use k8s_openapi::api::resource::v1::ResourceClaim;

use crate::api::kind::Subresource;
use crate::kinds::typed::Definition;

/// The kind.
pub static RESOURCE_CLAIM: Definition<ResourceClaim> = Definition {
    subresources: &[Subresource::Status],
    ..Definition::namespaced("io.k8s.api.resource.v1.ResourceClaim", "resource.k8s.io/resourceclaims", "resourceclaim")
};
