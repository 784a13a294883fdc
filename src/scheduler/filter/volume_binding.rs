//! VolumeBinding: the pod's volumes can be had on the node.

use super::{Filter, HelpedBy, Reason};

pub(super) const FILTER: Filter = Filter {
    name: "VolumeBinding",
    passes: |cycle, node| cycle.claims.is_empty() || cycle.claims.plan(node).is_ok(),
    explain: |cycle, node| match cycle.claims.plan(node) {
        Err(conflict) => Reason::new(conflict.head(), conflict.detail()),
        Ok(_) => Vec::new(),
    },
    helped_by: HelpedBy::Nodes,
    yields_to_removal: |_, _| false,
};
