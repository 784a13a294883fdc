//! UDP knows no end of a connection: a client that goes on would be sent to an endpoint that has gone for as long as it sends.
//! So tracked UDP "connections" to a front are forgotten when they lead elsewhere than to one of its endpoints.
//! It follows upstream's `proxy/conntrack/cleanup.go`.

use std::collections::{HashMap, HashSet};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::endpoints::Target;
use super::{Front, Protocol};
use crate::network::nft::conntrack::Connection;
use crate::network::nft::{Nft, NftError};

type Fronts = HashMap<Front, HashSet<Target>>;

/// Fronts whose endpoints changed, and what they are now; bounded by the number of fronts.
#[derive(Default)]
pub(super) struct Stale {
    waiting: Mutex<Fronts>,
    wake: Notify,
}

impl Stale {
    /// Notes fronts and the endpoints that they have now. Only UDP is looked after.
    pub(super) fn note(&self, fronts: Vec<(Front, Vec<Target>)>) {
        let is_udp = |front: &Front| match front {
            Front::Address { protocol, .. } | Front::NodePort { protocol, .. } => *protocol == Protocol::Udp,
        };
        let mut waiting = self.waiting.lock();
        for (front, targets) in fronts.into_iter().filter(|(front, _)| is_udp(front)) {
            waiting.insert(front, targets.into_iter().collect());
        }
        if !waiting.is_empty() {
            self.wake.notify_one();
        }
    }

    /// Forgets connections for ever, by a socket of its own: changes of rules do not wait for it.
    pub(super) async fn run(&self, nft: Nft) {
        loop {
            self.wake.notified().await;
            let fronts = std::mem::take(&mut *self.waiting.lock());
            if fronts.is_empty() {
                continue;
            }
            match forget(&nft, fronts).await {
                Ok(0) => {}
                Ok(count) => tracing::debug!(count, "UDP connections to endpoints that have gone are forgotten"),
                Err(error) => tracing::warn!(%error, "UDP connections to endpoints that have gone are not forgotten"),
            }
        }
    }
}

async fn forget(nft: &Nft, fronts: Fronts) -> Result<usize, NftError> {
    let found = nft.connections(move |connection| is_stale(connection, &fronts)).await?;
    let count = found.len();
    nft.forget(found).await?;
    Ok(count)
}

/// Whether a connection is to one of these fronts and leads to none of its endpoints.
fn is_stale(connection: &Connection, fronts: &Fronts) -> bool {
    if connection.protocol != Protocol::Udp as u8 {
        return false;
    }
    let (ip, port) = (connection.original.destination, connection.original.destination_port);
    let real = Target { ip: connection.reply.source, port: connection.reply.source_port };
    let at_address = fronts.get(&Front::Address { ip, protocol: Protocol::Udp, port });
    let at_node = || fronts.get(&Front::NodePort { protocol: Protocol::Udp, port });
    at_address.or_else(at_node).is_some_and(|targets| !targets.contains(&real))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::network::nft::conntrack::Tuple;

    fn connection(protocol: u8, to: &str, real: &str) -> Connection {
        let split = |text: &str| text.split_once(':').map(|(ip, port)| (ip.parse().unwrap(), port.parse().unwrap())).unwrap();
        let ((destination, destination_port), (source, source_port)) = (split(to), split(real));
        let client = Ipv4Addr::new(192, 0, 2, 1);
        let original = Tuple { source: client, destination, source_port: 4000, destination_port };
        let reply = Tuple { source, destination: client, source_port, destination_port: 4000 };
        Connection::new(protocol, original, reply)
    }

    #[test]
    fn what_leads_elsewhere_is_stale() {
        let target = |ip: [u8; 4]| Target { ip: ip.into(), port: 53 };
        let address = Front::Address { ip: Ipv4Addr::new(10, 43, 0, 10), protocol: Protocol::Udp, port: 53 };
        let node_port = Front::NodePort { protocol: Protocol::Udp, port: 30053 };
        let fronts: Fronts = [address, node_port].map(|front| (front, HashSet::from([target([10, 42, 0, 2])]))).into();
        let cases = [
            (17, "10.43.0.10:53", "10.42.0.2:53", false),
            (17, "10.43.0.10:53", "10.42.0.9:53", true),
            (17, "10.43.0.10:53", "10.43.0.10:53", true),
            (6, "10.43.0.10:53", "10.42.0.9:53", false),
            (17, "10.43.0.11:53", "10.42.0.9:53", false),
            (17, "192.0.2.7:30053", "10.42.0.9:53", true),
            (17, "192.0.2.7:30053", "10.42.0.2:53", false),
        ];
        for (protocol, to, real, wanted) in cases {
            assert_eq!(is_stale(&connection(protocol, to, real), &fronts), wanted, "{protocol} {to} {real}");
        }
    }
}
