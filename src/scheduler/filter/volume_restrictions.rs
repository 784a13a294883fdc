//! VolumeRestrictions: a claim that is ReadWriteOncePod is used by one pod in the whole cluster.

use super::{Filter, HelpedBy, Reason};
use crate::kinds::storage::binding;
use crate::scheduler::pod_info::PodInfo;
use crate::scheduler::snapshot::Snapshot;
use crate::scheduler::volumes::Claims;

pub(super) const FILTER: Filter = Filter {
    name: "VolumeRestrictions",
    passes: |cycle, _| !cycle.has_exclusive_conflict,
    explain: |_, _| {
        let head = "node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode";
        Reason::new(head, "cannot run it while another pod uses a claim that is ReadWriteOncePod")
    },
    helped_by: HelpedBy::GonePods,
};

/// Whether another placed pod uses a claim that this pod wants for itself.
pub(super) fn has_conflict(pod: &PodInfo, claims: &Claims, snapshot: &Snapshot) -> bool {
    let uses = |other: &PodInfo| {
        other.namespace() == pod.namespace()
            && other.uid() != pod.uid()
            && binding::claims_of(&other.pod).any(|(name, _)| claims.exclusive.contains(&name))
    };
    !claims.exclusive.is_empty() && snapshot.nodes().any(|node| node.pods.values().any(|other| uses(other)))
}
