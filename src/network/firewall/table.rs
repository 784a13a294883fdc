//! The node's own table:
//!
//! - What pods send to the outside leaves with the node's address. Pods of the whole cluster and the nodes themselves see a pod's
//!   own address.
//! - What a pod sends with a source to which its interface is not the way is dropped before anything else is asked: a network
//!   policy knows a pod by its address, and a pod with NET_RAW could give itself another's.
//! - A pod speaks no VXLAN to nodes: what it wrapped would come out with whatever source it likes. To other pods it may.
//! - A connection's two sides are told of no larger segments than the way between them has room for. Pods have the MTU of the uplink,
//!   and a way by VXLAN has less: a client outside whose firewall drops "fragmentation needed" would wait for ever.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use parking_lot::Mutex;

use crate::network::nft::expr::{
    Expr, FibAddress, PortChoice, Reg, clamp_mss, in_set, ip_daddr, match_daddr, match_group, match_local, match_saddr,
    match_spoofed, match_syn, match_udp,
};
use crate::network::nft::{
    Base, Batch, ChainKind, Element, Family, Hook, Key, Monitor, Nft, NftError, Rule, Set, Table, Type, Verdict, priority,
};
use crate::network::{attach, overlay};

const NODES: &str = "nodes";
const SEGMENTS: &str = "segments";
const TUNNEL: &str = "tunnel";

/// The table of one node.
pub(super) struct PodTable {
    nft: Mutex<Option<Nft>>,
    table: Table,
    /// Of the interfaces of this node's pods.
    group: u32,
    pod_cidr: Ipv4Net,
    cluster_cidr: Ipv4Net,
}

impl PodTable {
    pub(super) fn new(name: &str, node: &str, pod_cidr: Ipv4Net, cluster_cidr: Ipv4Net) -> Self {
        let (table, group) = (Table::new(Family::Ipv4, name), attach::group(node));
        Self { nft: Mutex::default(), table, group, pod_cidr, cluster_cidr }
    }

    /// The socket is opened when it is first needed.
    pub(super) fn nft(&self) -> Result<Nft, NftError> {
        let mut opened = self.nft.lock();
        if let Some(nft) = &*opened {
            return Ok(nft.clone());
        }
        Ok(opened.insert(Nft::open()?).clone())
    }

    /// Tells when somebody else changes the table.
    pub(super) fn monitor(&self) -> Result<Monitor, NftError> {
        self.nft()?.monitor(&self.table)
    }

    fn nodes() -> Set {
        Set::of(NODES, &[Type::Ipv4Addr])
    }

    /// The chains, those that others jump to first, and their rules; a rule is recognized by its comment.
    fn chains(&self) -> [(&'static str, Option<Base>, Vec<Rule>); 5] {
        let Self { pod_cidr, cluster_cidr, .. } = self;
        let to_nobody_of_ours = vec![ip_daddr(Reg(0)), in_set(NODES, Reg(0), false)];
        let masquerade = vec![Expr::Masquerade { choice: PortChoice::Keep }];
        let out = [match_saddr(*pod_cidr, true), match_daddr(*cluster_cidr, false), to_nobody_of_ours, masquerade];
        let drop = || vec![Expr::Counter, Expr::Verdict(Verdict::Drop)];
        let of_pods = vec![
            Rule::of([match_group(self.group, false), vec![Expr::Verdict(Verdict::Accept)]]).comment("not by a pod's interface"),
            Rule::of([match_spoofed(), drop()]).comment("pods with another's address"),
            Rule::of([match_udp(overlay::PORT), vec![Expr::Verdict(Verdict::jump(TUNNEL))]]).comment("VXLAN"),
        ];
        let tunnel = vec![
            Rule::of([match_local(FibAddress::Destination), drop()]).comment("VXLAN of a pod to this node"),
            Rule::of([vec![ip_daddr(Reg(0)), in_set(NODES, Reg(0), true)], drop()]).comment("VXLAN of a pod to another node"),
        ];
        let sized = |pods: Vec<Expr>, way: &str| Rule::of([pods, clamp_mss()]).comment(format!("{way} pods of {cluster_cidr}"));
        let segments = vec![sized(match_saddr(*cluster_cidr, true), "from"), sized(match_daddr(*cluster_cidr, true), "to")];
        // All packets but the first of each side meet this one rule only.
        let offers = Rule::of([match_syn(), vec![Expr::Verdict(Verdict::jump(SEGMENTS))]]).comment("segments that fit");
        let filter = |hook, priority| Some(Base::accepting(ChainKind::Filter, hook, priority));
        let nat = Some(Base::accepting(ChainKind::Nat, Hook::Postrouting, priority::SRCNAT));
        [
            (SEGMENTS, None, segments),
            ("forward", filter(Hook::Forward, priority::MANGLE), vec![offers]),
            ("postrouting", nat, vec![Rule::of(out).comment(format!("{pod_cidr} to outside of {cluster_cidr}"))]),
            (TUNNEL, None, tunnel),
            ("prerouting", filter(Hook::Prerouting, priority::RAW), of_pods),
        ]
    }

    /// Whether every rule is there, and no other.
    async fn is_whole(&self, nft: &Nft) -> Result<bool, NftError> {
        for (chain, _, wanted) in self.chains() {
            let present = nft.rules(&self.table, chain).await?;
            if !present.iter().map(|rule| &rule.comment).eq(wanted.iter().map(|rule| &rule.comment)) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Sets what is missing. `nodes` are the addresses of nodes that know the way back to pods; while they are not known, those
    /// that are there stay.
    ///
    /// # Errors
    /// What the kernel refused; a kernel without nf_tables refuses everything.
    pub(super) async fn ensure(&self, nodes: Option<&[Ipv4Addr]>) -> Result<(), NftError> {
        let nft = self.nft()?;
        let set = Self::nodes();
        let mut batch = Batch::new();
        let mut present = Vec::new();
        if self.is_whole(&nft).await? {
            present = nft.elements(&self.table, &set).await?;
        } else {
            self.make(&mut batch, &set);
        }
        if let Some(nodes) = nodes {
            let wanted: Vec<Element> = nodes.iter().map(|ip| Element::new(Key::new().ipv4(*ip))).collect();
            let stale: Vec<Element> = present.iter().filter(|element| !wanted.contains(element)).cloned().collect();
            let missing: Vec<Element> = wanted.into_iter().filter(|element| !present.contains(element)).collect();
            if !stale.is_empty() {
                batch.delete_elements(&self.table, &set, &stale);
            }
            if !missing.is_empty() {
                batch.add_elements(&self.table, &set, &missing);
            }
        }
        nft.commit(batch).await
    }

    fn make(&self, batch: &mut Batch, set: &Set) {
        batch.remove_table(&self.table);
        batch.add_table(&self.table);
        batch.add_set(&self.table, set);
        for (chain, base, rules) in self.chains() {
            match base {
                Some(base) => batch.add_base_chain(&self.table, chain, base),
                None => batch.add_chain(&self.table, chain),
            }
            rules.iter().for_each(|rule| batch.add_rule(&self.table, chain, rule));
        }
    }

    /// Takes the table away; one that is not there is no error.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(super) async fn remove(&self) -> Result<(), NftError> {
        let mut batch = Batch::new();
        batch.remove_table(&self.table);
        self.nft()?.commit(batch).await
    }
}
