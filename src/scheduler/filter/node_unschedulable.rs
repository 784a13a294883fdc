//! NodeUnschedulable: a cordoned node takes only pods that tolerate it.

use k8s_openapi::api::core::v1::Taint;

use super::{Filter, HelpedBy, Reason, tolerates};

pub(super) const FILTER: Filter = Filter {
    name: "NodeUnschedulable",
    passes: |cycle, node| {
        !node.is_unschedulable || {
            let taint =
                Taint { key: "node.kubernetes.io/unschedulable".to_owned(), effect: "NoSchedule".to_owned(), ..Taint::default() };
            tolerates(cycle.pod.tolerations(), &taint)
        }
    },
    explain: |_, _| Reason::new("node(s) were unschedulable", "is cordoned"),
    helped_by: HelpedBy::Nodes,
    yields_to_removal: |_, _| false,
};
