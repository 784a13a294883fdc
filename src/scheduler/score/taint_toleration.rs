//! TaintToleration: fewer taints PreferNoSchedule that the pod does not tolerate are better.

use super::{Scale, Score};
use crate::scheduler::filter::tolerates;

const SOFT: &str = "PreferNoSchedule";

pub(super) const SCORE: Score = Score {
    name: "TaintToleration",
    weight: 3,
    scale: Scale::Least,
    applies: |_, _| true,
    number: |cycle, snapshot, slot| {
        let taints = snapshot.node(slot).taints.iter().filter(|taint| taint.effect == SOFT);
        taints.filter(|taint| !tolerates(cycle.pod.tolerations(), taint)).fold(0, |count, _| count + 1)
    },
};
