//! NodeName: a pod that names its node runs there or nowhere.

use super::{Filter, HelpedBy, Reason};

pub(super) const FILTER: Filter = Filter {
    name: "NodeName",
    passes: |cycle, node| cycle.pod.node_name().is_none_or(|name| name == node.name),
    explain: |_, _| Reason::new("node(s) didn't match the requested node name", "is not the requested node"),
    helped_by: HelpedBy::Nodes,
    yields_to_removal: |_, _| false,
};
