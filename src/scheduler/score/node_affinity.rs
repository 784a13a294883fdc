//! NodeAffinity: the weights of the preferred terms that a node matches.

use k8s_openapi::api::core::v1::PreferredSchedulingTerm;

use super::{Scale, Score};
use crate::scheduler::filter::term_matches;
use crate::scheduler::pod_info::PodInfo;

pub(super) const SCORE: Score = Score {
    name: "NodeAffinity",
    weight: 2,
    scale: Scale::Most,
    applies: |cycle, _| !preferred(cycle.pod).is_empty(),
    number: |cycle, snapshot, slot| {
        let node = snapshot.node(slot);
        let matching = preferred(cycle.pod).iter().filter(|term| term_matches(&term.preference, node));
        matching.map(|term| i64::from(term.weight)).sum()
    },
};

fn preferred(pod: &PodInfo) -> &[PreferredSchedulingTerm] {
    let affinity = pod.spec().and_then(|spec| spec.affinity.as_ref()).and_then(|affinity| affinity.node_affinity.as_ref());
    affinity.and_then(|affinity| affinity.preferred_during_scheduling_ignored_during_execution.as_deref()).unwrap_or(&[])
}
