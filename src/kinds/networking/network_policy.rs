//! NetworkPolicy: which traffic pods may send and get.

use k8s_openapi::api::networking::v1::NetworkPolicy;

use crate::kinds::typed::Definition;

/// The kind.
pub static NETWORK_POLICY: Definition<NetworkPolicy> =
    Definition::namespaced("io.k8s.api.networking.v1.NetworkPolicy", "networking.k8s.io/networkpolicies", "networkpolicy")
        .short(&["netpol"]);
