//! The counters of interfaces, by netlink: what went to and from pods and the node.

use std::collections::HashMap;

use futures_util::TryStreamExt;
use rtnetlink::Handle;
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkMessage, Stats64};

use super::{NetworkError, attach};

/// What went over an interface; received and sent as its owner sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Traffic {
    pub interface: String,
    pub rx_bytes: u64,
    pub rx_packets: u64,
    pub rx_errors: u64,
    pub tx_bytes: u64,
    pub tx_packets: u64,
    pub tx_errors: u64,
}

/// The counters of a node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeTraffic {
    /// By pod uid.
    pub pods: HashMap<String, Traffic>,
    /// Those of the machine's own interfaces, in the kernel's order.
    pub node: Vec<Traffic>,
}

/// Reads all counters at once.
///
/// # Errors
/// When the kernel does not list its interfaces.
pub(super) async fn read(host: &Handle, node: &str) -> Result<NodeTraffic, NetworkError> {
    let listed = host.link().get().execute().try_collect::<Vec<LinkMessage>>().await;
    let links = listed.map_err(|error| NetworkError::step("list the interfaces", error))?;
    let mut all = NodeTraffic::default();
    for link in &links {
        let Some(stats) = link.attributes.iter().find_map(counters) else { continue };
        if let Some((_, uid)) = attach::of_node(link, node) {
            // The host's end sends what the pod receives.
            all.pods.insert(uid, traffic("eth0", &stats, true));
        } else if is_physical(link) {
            all.node.push(traffic(name(link), &stats, false));
        }
    }
    Ok(all)
}

fn counters(attribute: &LinkAttribute) -> Option<Stats64> {
    if let LinkAttribute::Stats64(stats) = attribute { Some(*stats) } else { None }
}

fn name(link: &LinkMessage) -> &str {
    link.attributes
        .iter()
        .find_map(|attribute| if let LinkAttribute::IfName(name) = attribute { Some(name.as_str()) } else { None })
        .unwrap_or("")
}

/// Neither loopback nor what engines and we make.
fn is_physical(link: &LinkMessage) -> bool {
    const VIRTUAL: [&str; 6] = ["veth", "docker", "br-", "orch", "ifb", "cni"];
    !link.header.flags.contains(LinkFlags::Loopback) && !VIRTUAL.iter().any(|prefix| name(link).starts_with(prefix))
}

fn traffic(interface: &str, stats: &Stats64, is_peer: bool) -> Traffic {
    let received = (stats.rx_bytes, stats.rx_packets, stats.rx_errors);
    let sent = (stats.tx_bytes, stats.tx_packets, stats.tx_errors);
    let ((rx_bytes, rx_packets, rx_errors), (tx_bytes, tx_packets, tx_errors)) =
        if is_peer { (sent, received) } else { (received, sent) };
    Traffic { interface: interface.to_owned(), rx_bytes, rx_packets, rx_errors, tx_bytes, tx_packets, tx_errors }
}
