//! VolumeZone: a volume with zone labels is used in its zone only.

use k8s_openapi::api::core::v1::PersistentVolume;

use super::{Filter, HelpedBy, NodeInfo, Reason};

const LABELS: [&str; 4] = [
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
];

pub(super) const FILTER: Filter = Filter {
    name: "VolumeZone",
    passes: |cycle, node| cycle.claims.volumes().all(|volume| is_in_zone(volume, node)),
    explain: |_, _| Reason::new("node(s) had no available volume zone", "is in another zone than a volume of the pod"),
    helped_by: HelpedBy::Nodes,
    yields_to_removal: |_, _| false,
};

/// A node that knows no zones takes every volume; a volume may be in several, `a__b`.
fn is_in_zone(volume: &PersistentVolume, node: &NodeInfo) -> bool {
    let Some(labels) = &volume.metadata.labels else { return true };
    if LABELS.iter().all(|key| node.label(key).is_none()) {
        return true;
    }
    let mut zones = LABELS.iter().filter_map(|key| Some((key, labels.get(*key)?)));
    zones.all(|(key, value)| node.label(key).is_some_and(|own| value.split("__").any(|zone| zone == own)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::scheduler::snapshot::Snapshot;
    use crate::scheduler::snapshot::tests::node;

    #[test]
    fn volumes_stay_in_their_zone() {
        let volume = |zone: &str| -> PersistentVolume {
            serde_json::from_value(json!({"metadata": {"name": "v", "labels": {"topology.kubernetes.io/zone": zone}}})).unwrap()
        };
        let mut snapshot = Snapshot::default();
        snapshot.set_node(node("a", "1", &json!({"topology.kubernetes.io/zone": "z1"})));
        snapshot.set_node(node("b", "1", &json!({})));
        let (a, b) = (snapshot.node(snapshot.find("a").unwrap()), snapshot.node(snapshot.find("b").unwrap()));
        for (zone, node, expected) in [("z1", a, true), ("z2", a, false), ("z0__z1", a, true), ("z2", b, true)] {
            assert_eq!(is_in_zone(&volume(zone), node), expected, "{zone} {}", node.name);
        }
    }
}
