//! IPAddress: one allocated Service address.

use k8s_openapi::api::networking::v1::IPAddress;

use crate::kinds::typed::Definition;

/// The kind.
pub static IP_ADDRESS: Definition<IPAddress> =
    Definition::cluster("io.k8s.api.networking.v1.IPAddress", "networking.k8s.io/ipaddresses", "ipaddress").short(&["ip"]);
