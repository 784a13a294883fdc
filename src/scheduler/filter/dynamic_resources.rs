//! DynamicResources: no node has a driver that gives out devices, so that no claim of devices can be met.

use super::{Filter, HelpedBy, Reason};
use crate::scheduler::pod_info::PodInfo;

pub(super) const FILTER: Filter = Filter {
    name: "DynamicResources",
    passes: |cycle, _| !claims_devices(cycle.pod),
    explain: |_, _| Reason::new("cannot allocate all claims", "has no driver for the pod's resource claims"),
    helped_by: HelpedBy::Nodes,
};

fn claims_devices(pod: &PodInfo) -> bool {
    pod.spec().and_then(|spec| spec.resource_claims.as_ref()).is_some_and(|claims| !claims.is_empty())
}
