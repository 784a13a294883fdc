//! The pod network: addresses (`ipam`), the routed veth of each pod (`attach`), and the rules that let pod traffic through.
//!
//! A pod's sandbox starts with network `none`. [`PodNetwork::attach`] then lays a point-to-point veth pair by netlink: the pod's
//! address as /32, a link-local gateway, one host route a pod; no bridge, so all pod traffic is routed.

use std::net::{IpAddr, Ipv4Addr};

/// What can go wrong with a pod's network.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The node's range is used up.
    #[error("no free address in {0}; delete pods or give the node a larger podCIDR")]
    Exhausted(ipnet::Ipv4Net),
    /// A step by netlink or in the pod's namespace failed.
    #[error("{step}: {why}")]
    Step { step: String, why: String },
}

/// The address of a pod, as status and sandbox need it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PodAddress {
    pub ip: Ipv4Addr,
}

impl From<PodAddress> for IpAddr {
    fn from(address: PodAddress) -> Self {
        Self::V4(address.ip)
    }
}
