//! Notices when somebody changes what the overlay has in the kernel, or what it stands on: interfaces, addresses, routes, rules,
//! neighbours. What happens all the time and does not matter (pods' own interfaces and routes, the life of ARP entries) is passed
//! over.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::NetlinkPayload;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::packet_route::route::{RouteMessage, RouteScope};
use tokio::sync::Notify;

use crate::network::attach::PREFIX;
use crate::rt::Backoff;

const GROUPS: [MulticastGroup; 5] = [
    MulticastGroup::Link,
    MulticastGroup::Neigh,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv4Rule,
];
/// The table of the node's own addresses.
const LOCAL_TABLE: u8 = 255;

/// What the watch tells, and what it must know for that.
#[derive(Debug, Default)]
pub(super) struct Changes {
    changed: Notify,
    /// The VXLAN device, 0 when there is none.
    vxlan: AtomicU32,
}

impl Changes {
    /// Waits until something changed since the last call.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// From now on entries of this device matter.
    pub(super) fn look_at(&self, vxlan: Option<u32>) {
        self.vxlan.store(vxlan.unwrap_or_default(), Ordering::Relaxed);
    }

    fn matters(&self, message: &RouteNetlinkMessage) -> bool {
        match message {
            RouteNetlinkMessage::NewLink(link) | RouteNetlinkMessage::DelLink(link) => !is_of_a_container(link),
            RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route) => !is_of_a_pod(route),
            RouteNetlinkMessage::NewNeighbour(entry) | RouteNetlinkMessage::DelNeighbour(entry) => {
                entry.header.ifindex == self.vxlan.load(Ordering::Relaxed)
            }
            _ => true,
        }
    }
}

fn is_of_a_container(link: &LinkMessage) -> bool {
    let name =
        link.attributes.iter().find_map(|attribute| if let LinkAttribute::IfName(name) = attribute { Some(name) } else { None });
    name.is_some_and(|name| name.starts_with(PREFIX) || name.starts_with("veth"))
}

fn is_of_a_pod(route: &RouteMessage) -> bool {
    let header = &route.header;
    header.table == LOCAL_TABLE || (header.destination_prefix_length == 32 && header.scope == RouteScope::Link)
}

/// Watches for ever; an end of the socket counts as a change, and a new one is opened.
pub(super) async fn watch(changes: Arc<Changes>) {
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(30));
    loop {
        match rtnetlink::new_multicast_connection(&GROUPS) {
            Ok((connection, _handle, mut messages)) => {
                backoff.reset();
                let told = async {
                    while let Some((message, _)) = messages.next().await {
                        match &message.payload {
                            NetlinkPayload::InnerMessage(inner) if !changes.matters(inner) => {}
                            _ => changes.changed.notify_one(),
                        }
                    }
                };
                tokio::join!(connection, told);
            }
            Err(error) => tracing::warn!(%error, "cannot watch the kernel's network; trying again"),
        }
        changes.changed.notify_one();
        tokio::time::sleep(backoff.next_delay()).await;
    }
}
