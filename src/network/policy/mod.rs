//! NetworkPolicy (`networking.k8s.io/v1`), enforced on each node for the pods of that node.
//!
//! [`planner`] decides, without IO, what the kernel must hold; [`table`] tells the kernel the difference in one transaction;
//! [`part`] is the loop between them; [`gate`] holds back a new pod's interface until its rules are in force.
//!
//! What upstream leaves open, and what happens here:
//!
//! - What is not allowed is **dropped**, without an answer.
//! - **Established connections stay**: a policy decides about the first packet. A UDP sender that never got an answer is new with
//!   every packet, so a new policy stops it at once.
//! - **The node reaches its own pods always** (probes, `kubectl port-forward`, processes of the host, host-network pods there), as
//!   with kube-router: what the node itself sends is not looked at. Another node is an address like any other.
//! - **Pods to their own node**: egress policies apply, as with kube-router and Calico; an `ipBlock` that holds the node's address
//!   allows it. A Service that leads to the node (the API server) is judged by the node's address.
//! - **Services**: a policy sees the packet after the Service's address has been replaced, so egress to a ClusterIP is judged by the
//!   pod behind it and its port. A pod that reaches itself through its own Service passes.
//! - **NodePort and LoadBalancer**, `externalTrafficPolicy: Cluster`: on the node that took the packet, a pod there sees the client's
//!   address (replacing it comes after the filter); a pod on another node sees the address of the first node, so `ipBlock` rules
//!   must name the nodes. With `Local` it is always the client's.
//! - **DNS** answers on an address of every node instead of in pods. A rule allows it (port 53, UDP or TCP as the rule says) if it
//!   would allow a pod labelled `k8s-app=kube-dns` in `kube-system`, if its blocks hold that address, or if they hold the addresses
//!   of all pods.
//! - A **named port** without such a port at the destination allows nothing; at egress it means nothing together with
//!   an `ipBlock`, at ingress it is the selected pod's own port.
//! - **IPv6 blocks** hold no address of a pod.
//! - **A pod is known by its address.** What it sends with another one is dropped at its interface ([`firewall`](super::firewall)).
//! - A pod on this node of which nothing is known (the API has lost it, and it was there before the agent) gets and sends nothing as
//!   long as there are policies at all.
//!
//! In a cluster without policies nothing of this costs anything: one informer that lists nothing, no table, no list of pods.

mod batch;
mod compile;
mod facts;
mod gate;
mod known;
mod part;
mod planner;
mod profile;
mod ranges;
mod sets;
mod table;
mod wire;

pub(super) use facts::PodFacts;
pub(super) use gate::{Gate, Mode};
pub(super) use part::{remove, run};

#[cfg(test)]
mod tests;
