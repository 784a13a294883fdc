//! Node IPAM: gives every node its part of the cluster's address range, in `spec.podCIDR`.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use async_trait::async_trait;
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use parking_lot::Mutex;
use serde_json::json;

use super::{Context, Controller, Error, Queue, Requeue, Seen, Watches};
use crate::client::informer::Informer;
use crate::client::recorder::{EventType, Recorder, reference};
use crate::client::{Client, ObjectKey, PatchKind};

/// Ranges that are searched for a free one.
const MOST_RANGES: usize = 1 << 16;

/// The controller of node address ranges.
pub(super) fn node_ipam(context: &Context) -> Arc<dyn Controller> {
    Arc::new(NodeIpam {
        nodes: context.config.informers.of(),
        client: context.client("node-ipam-controller"),
        recorder: context.recorder("cidrAllocator"),
        cluster: context.config.cluster_cidr,
        prefix: context.config.node_cidr_prefix,
        given: Mutex::default(),
    })
}

struct NodeIpam {
    nodes: Arc<Informer<Node>>,
    client: Client,
    recorder: Recorder,
    cluster: IpNet,
    prefix: u8,
    /// What was given lately; the cache may not show it yet.
    given: Mutex<HashMap<String, IpNet>>,
}

/// The first part of the cluster's range, of this prefix length, that overlaps with no used one.
fn pick(cluster: &IpNet, prefix: u8, used: &HashSet<IpNet>) -> Option<IpNet> {
    let overlaps = |range: &IpNet| used.iter().any(|other| range.contains(other) || other.contains(range));
    let mut parts = cluster.subnets(prefix).ok()?.take(MOST_RANGES);
    parts.find(|range| !used.contains(range) && !overlaps(range))
}

fn range_of(node: &Node) -> Option<IpNet> {
    node.spec.as_ref()?.pod_cidr.as_deref()?.parse().ok()
}

impl NodeIpam {
    fn choose(&self, name: &str) -> Option<IpNet> {
        let mut given = self.given.lock();
        let nodes = self.nodes.list();
        given.retain(|node, _| nodes.iter().any(|known| known.metadata.name.as_ref() == Some(node) && range_of(known).is_none()));
        if let Some(range) = given.get(name) {
            return Some(*range);
        }
        let used = nodes.iter().filter_map(|node| range_of(node)).chain(given.values().copied()).collect();
        let range = pick(&self.cluster, self.prefix, &used)?;
        given.insert(name.to_owned(), range);
        Some(range)
    }
}

#[async_trait]
impl Controller for NodeIpam {
    fn name(&self) -> &'static str {
        "nodeipam"
    }

    fn watch(&self, watches: &mut Watches) {
        watches.on(&self.nodes, |seen: Seen<'_, Node>, queue: &Queue| {
            let new = seen.new.filter(|node| range_of(node).is_none());
            new.into_iter().for_each(|node| queue.add(ObjectKey::of(node)));
        });
    }

    /// One at a time: two nodes must not get the same range.
    fn workers(&self) -> usize {
        1
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Requeue, Error> {
        let Some(node) = self.nodes.get("", &key.name).filter(|node| range_of(node).is_none()) else { return Ok(Requeue::Done) };
        let Some(range) = self.choose(&key.name) else {
            let message = format!("Node {} status is now: CIDRNotAvailable", key.name);
            self.recorder.event(&reference(&*node), EventType::Normal, "CIDRNotAvailable", message);
            return Err(Error::Incomplete(format!("no range of {} is free for node {}", self.cluster, key.name)));
        };
        let spec = json!({"podCIDR": range.to_string(), "podCIDRs": [range.to_string()]});
        let patch = json!({"metadata": {"uid": node.metadata.uid}, "spec": spec});
        self.client.patch::<Node>("", &key.name, None, PatchKind::Strategic, &patch).await?;
        Ok(Requeue::Done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn picks_the_first_free_range() {
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        for (cluster, used, expected) in [
            ("10.42.0.0/16", vec![], Some("10.42.0.0/24")),
            ("10.42.0.0/16", vec!["10.42.0.0/24", "10.42.2.0/24"], Some("10.42.1.0/24")),
            ("10.42.0.0/16", vec!["10.42.0.0/23"], Some("10.42.2.0/24")),
            ("10.42.0.0/24", vec!["10.42.0.0/24"], None),
        ] {
            let used = used.into_iter().map(net).collect();
            assert_eq!(pick(&net(cluster), 24, &used), expected.map(net));
        }
    }
}
