//! EndpointSlice: some of the addresses behind a Service.

use k8s_openapi::api::discovery::v1::EndpointSlice;

use crate::kinds::typed::Definition;

/// The kind.
pub static ENDPOINT_SLICE: Definition<EndpointSlice> =
    Definition::namespaced("io.k8s.api.discovery.v1.EndpointSlice", "discovery.k8s.io/endpointslices", "endpointslice");
