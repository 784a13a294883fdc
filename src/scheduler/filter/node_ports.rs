//! NodePorts: two pods with the same host port do not run on one node.

use super::{Filter, HelpedBy, Reason};

pub(super) const FILTER: Filter = Filter {
    name: "NodePorts",
    passes: |cycle, node| !node.has_port_conflict(cycle.pod),
    explain: |cycle, _| {
        let ports: Vec<String> = cycle.pod.host_ports.iter().map(|port| format!("{}/{}", port.port, port.protocol)).collect();
        let head = "node(s) didn't have free ports for the requested pod ports";
        Reason::new(head, format!("has one of the host ports {} taken by another pod", ports.join(", ")))
    },
    helped_by: HelpedBy::GonePods,
    yields_to_removal: |_, _| true,
};
