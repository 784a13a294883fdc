//! ImageLocality: a node that holds the pod's images already, the big ones most.

use super::{MAX, Scale, Score};
use crate::scheduler::filter::Cycle;
use crate::scheduler::snapshot::{NodeInfo, Snapshot};

/// Less than this makes no difference.
const LEAST_BYTES: i64 = 23 << 20;
/// More than this, for each container, makes no more difference.
const MOST_BYTES: i64 = 1_000 << 20;

pub(super) const SCORE: Score =
    Score { name: "ImageLocality", weight: 1, scale: Scale::None, applies: |_, snapshot| snapshot.live().len() > 1, number };

fn number(cycle: &Cycle<'_>, snapshot: &Snapshot, slot: usize) -> i64 {
    let (node, Some(spec)) = (snapshot.node(slot), cycle.pod.spec()) else { return 0 };
    if node.images.is_empty() {
        return 0;
    }
    let nodes = i64::try_from(snapshot.live().len()).unwrap_or(i64::MAX);
    let images = spec.containers.iter().filter_map(|container| container.image.as_deref());
    let bytes: i64 = images.map(|image| size(node, image) * spread(snapshot, image) / nodes).sum();
    let most = MOST_BYTES * i64::try_from(spec.containers.len()).unwrap_or(1);
    MAX * (bytes.clamp(LEAST_BYTES, most) - LEAST_BYTES) / (most - LEAST_BYTES)
}

/// The name under which a node lists an image that a pod may name without a tag.
fn listed(image: &str) -> String {
    let tail = image.rsplit('/').next().unwrap_or(image);
    if tail.contains(':') || tail.contains('@') { image.to_owned() } else { format!("{image}:latest") }
}

fn size(node: &NodeInfo, image: &str) -> i64 {
    node.images.get(image).or_else(|| node.images.get(&listed(image))).copied().unwrap_or(0)
}

/// On how many nodes the image is: one that is on few nodes must not pull all pods there.
fn spread(snapshot: &Snapshot, image: &str) -> i64 {
    snapshot.nodes_with_image(image).max(snapshot.nodes_with_image(&listed(image)))
}
