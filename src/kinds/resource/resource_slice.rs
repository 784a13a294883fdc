//! ResourceSlice: devices that a node offers.

use k8s_openapi::api::resource::v1::ResourceSlice;

use crate::kinds::typed::Definition;

/// The kind.
pub static RESOURCE_SLICE: Definition<ResourceSlice> =
    Definition::cluster("io.k8s.api.resource.v1.ResourceSlice", "resource.k8s.io/resourceslices", "resourceslice");
