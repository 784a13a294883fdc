//! The other nodes, as the network between them needs them; noted on disk for a start without the API.

use std::io;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;

use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::Node;
use serde::{Deserialize, Serialize};

use super::plan::Problem;
use crate::rt::{TaskGroup, files};

/// Another node whose pods are to be reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Peer {
    pub(super) name: String,
    /// Its InternalIP.
    pub(super) ip: Ipv4Addr,
    pub(super) pod_cidr: Ipv4Net,
}

/// The peers of a node, ordered by name. A node without an address or a range cannot be reached yet. Of nodes whose ranges overlap
/// only the first is a peer; a range that overlaps the node's own is nobody's.
pub(super) fn of_nodes(own: &str, own_cidr: Ipv4Net, nodes: &[Arc<Node>]) -> (Vec<Peer>, Vec<Problem>) {
    let mut peers: Vec<Peer> = Vec::new();
    let mut problems = Vec::new();
    let mut found: Vec<Peer> = nodes.iter().filter_map(|node| peer(node)).filter(|peer| peer.name != own).collect();
    found.sort_by(|one, other| one.name.cmp(&other.name));
    for peer in found {
        let overlaps = |cidr: &Ipv4Net| cidr.contains(&peer.pod_cidr) || peer.pod_cidr.contains(cidr);
        let taken = match peers.iter().find(|known| overlaps(&known.pod_cidr)) {
            Some(known) => Some(format!("{} of node {}", known.pod_cidr, known.name)),
            None => overlaps(&own_cidr).then(|| format!("{own_cidr} of this node")),
        };
        match taken {
            Some(taken) => problems.push(Problem {
                node: peer.name.clone(),
                destination: peer.pod_cidr,
                why: format!("its podCIDR overlaps {taken}; delete one of the two Nodes, and it registers anew"),
            }),
            None => peers.push(peer),
        }
    }
    (peers, problems)
}

fn peer(node: &Node) -> Option<Peer> {
    let status = node.status.as_ref()?;
    let addresses = status.addresses.iter().flatten();
    let ip = addresses.filter(|address| address.type_ == "InternalIP").find_map(|address| address.address.parse().ok())?;
    let pod_cidr: Ipv4Net = node.spec.as_ref()?.pod_cidr.as_deref()?.parse().ok()?;
    Some(Peer { name: node.metadata.name.clone()?, ip, pod_cidr: pod_cidr.trunc() })
}

/// The peers of the last run; none when that cannot be read.
pub(super) async fn load(file: &Path) -> Vec<Peer> {
    let text = match tokio::fs::read(file).await {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => {
            tracing::warn!(path = %file.display(), %error, "the nodes of the last run are not known");
            return Vec::new();
        }
    };
    serde_json::from_slice(&text).unwrap_or_else(|error| {
        tracing::warn!(path = %file.display(), %error, "the nodes of the last run are not known");
        Vec::new()
    })
}

/// Notes the peers for the next run. That it failed is logged: nothing depends on it while the API answers.
pub(super) async fn save(file: &Path, peers: &[Peer]) {
    let (path, text) = (file.to_owned(), serde_json::to_vec(peers));
    let written = match text {
        Ok(text) => TaskGroup::blocking(move || {
            path.parent().map_or(Ok(()), std::fs::create_dir_all).and_then(|()| files::write(&path, &text, 0o600))
        })
        .await
        .unwrap_or_else(|error| Err(io::Error::other(error))),
        Err(error) => Err(error.into()),
    };
    if let Err(error) = written {
        tracing::warn!(path = %file.display(), %error, "the nodes were not noted for the next start");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, ip: &str, cidr: &str) -> Arc<Node> {
        let node = serde_json::json!({
            "metadata": {"name": name}, "spec": {"podCIDR": cidr},
            "status": {"addresses": [{"type": "Hostname", "address": name}, {"type": "InternalIP", "address": ip}]}
        });
        Arc::new(serde_json::from_value(node).unwrap())
    }

    #[test]
    fn nodes_become_peers() {
        let nodes = [
            node("c", "10.0.0.3", "10.42.2.0/24"),
            node("a", "10.0.0.1", "10.42.0.0/24"),
            node("b", "10.0.0.2", "10.42.1.9/24"),
            node("no-range", "10.0.0.4", ""),
            node("six", "fd00::1", "10.42.7.0/24"),
            node("thief", "10.0.0.5", "10.42.2.128/25"),
            node("twin", "10.0.0.6", "10.42.0.0/24"),
        ];
        let (peers, problems) = of_nodes("a", "10.42.0.0/24".parse().unwrap(), &nodes);
        let seen: Vec<String> = peers.iter().map(|peer| format!("{} {} {}", peer.name, peer.ip, peer.pod_cidr)).collect();
        assert_eq!(seen, ["b 10.0.0.2 10.42.1.0/24", "c 10.0.0.3 10.42.2.0/24"]);
        let why: Vec<&str> = problems.iter().map(|problem| problem.why.split(';').next().unwrap()).collect();
        assert_eq!(
            why,
            ["its podCIDR overlaps 10.42.2.0/24 of node c", "its podCIDR overlaps 10.42.0.0/24 of this node"],
            "the second thief is the twin"
        );
    }

    #[tokio::test]
    async fn peers_are_noted() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("network/peers.json");
        assert!(load(&file).await.is_empty());
        let (peers, _) = of_nodes("a", "10.42.0.0/24".parse().unwrap(), &[node("b", "10.0.0.2", "10.42.1.0/24")]);
        save(&file, &peers).await;
        assert_eq!(load(&file).await, peers);
        std::fs::write(&file, "[{").unwrap();
        assert!(load(&file).await.is_empty());
    }
}
