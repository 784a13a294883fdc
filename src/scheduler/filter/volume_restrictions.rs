//! VolumeRestrictions: a claim that is ReadWriteOncePod is used by one pod in the whole cluster.

use super::{Filter, HelpedBy, Reason};
use crate::kinds::storage::binding;
use crate::scheduler::pod_info::PodInfo;
use crate::scheduler::snapshot::Snapshot;
use crate::scheduler::volumes::Claims;

pub(super) const FILTER: Filter = Filter {
    name: "VolumeRestrictions",
    passes: |cycle, _| cycle.exclusive_users == 0,
    explain: |_, _| {
        let head = "node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode";
        Reason::new(head, "cannot run it while another pod uses a claim that is ReadWriteOncePod")
    },
    helped_by: HelpedBy::GonePods,
    yields_to_removal: |_, _| true,
};

/// How many other placed pods use a claim that this pod wants for itself.
pub(super) fn users(pod: &PodInfo, claims: &Claims, snapshot: &Snapshot) -> i64 {
    if claims.exclusive.is_empty() {
        return 0;
    }
    let users = snapshot.nodes().flat_map(|node| node.pods.values()).filter(|other| uses(pod, claims, other));
    i64::try_from(users.count()).unwrap_or(i64::MAX)
}

/// Whether another pod uses a claim that this pod wants for itself.
pub(super) fn uses(pod: &PodInfo, claims: &Claims, other: &PodInfo) -> bool {
    !claims.exclusive.is_empty()
        && other.namespace() == pod.namespace()
        && other.uid() != pod.uid()
        && binding::claims_of(&other.pod).any(|(name, _)| claims.exclusive.contains(&name))
}
