//! ResourceQuota: limits what a namespace may use.

use k8s_openapi::api::core::v1::ResourceQuota;

use crate::api::kind::Subresource;
use crate::kinds::typed::Definition;

/// The kind.
pub static RESOURCE_QUOTA: Definition<ResourceQuota> = Definition {
    subresources: &[Subresource::Status],
    ..Definition::namespaced("io.k8s.api.core.v1.ResourceQuota", "core/resourcequotas", "resourcequota").short(&["quota"])
};
