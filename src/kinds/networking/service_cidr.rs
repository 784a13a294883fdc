//! ServiceCIDR: a range of Service addresses.

use k8s_openapi::api::networking::v1::ServiceCIDR;

use crate::api::kind::Subresource;
use crate::kinds::typed::Definition;

/// The kind.
pub static SERVICE_CIDR: Definition<ServiceCIDR> = Definition {
    subresources: &[Subresource::Status],
    ..Definition::cluster("io.k8s.api.networking.v1.ServiceCIDR", "networking.k8s.io/servicecidrs", "servicecidr")
};
