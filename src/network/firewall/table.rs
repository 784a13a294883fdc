//! Masquerading as a table of the node's own: what pods send to the outside leaves with the node's address. Pods of the whole
//! cluster and the nodes themselves see a pod's own address.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use parking_lot::Mutex;

use crate::network::NetworkError;
use crate::network::nft::expr::{Expr, PortChoice, Reg, in_set, ip_daddr, match_daddr, match_saddr};
use crate::network::nft::{
    Base, Batch, ChainKind, Element, Family, Hook, Key, Monitor, Nft, NftError, Rule, Set, Table, Type, priority,
};

const CHAIN: &str = "postrouting";
const NODES: &str = "nodes";

/// The table of one node.
pub(super) struct MasqueradeTable {
    nft: Mutex<Option<Nft>>,
    table: Table,
    pod_cidr: Ipv4Net,
    cluster_cidr: Ipv4Net,
}

impl MasqueradeTable {
    pub(super) fn new(name: &str, pod_cidr: Ipv4Net, cluster_cidr: Ipv4Net) -> Self {
        Self { nft: Mutex::default(), table: Table::new(Family::Ipv4, name), pod_cidr, cluster_cidr }
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

    /// What the rule says; also its comment, by which it is recognized.
    fn text(&self) -> String {
        format!("{} to outside of {}", self.pod_cidr, self.cluster_cidr)
    }

    /// Sets what is missing. `nodes` are the addresses of nodes that know the way back to pods; while they are not known, those
    /// that are there stay.
    ///
    /// # Errors
    /// What the kernel refused; a kernel without nf_tables refuses everything.
    pub(super) async fn ensure(&self, nodes: Option<&[Ipv4Addr]>) -> Result<(), NftError> {
        let nft = self.nft()?;
        let set = Self::nodes();
        let rules = nft.rules(&self.table, CHAIN).await?;
        let is_whole = matches!(rules.as_slice(), [rule] if rule.comment.as_deref() == Some(&self.text()));
        let mut batch = Batch::new();
        let mut present = Vec::new();
        if is_whole {
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
        batch.add_base_chain(&self.table, CHAIN, Base::accepting(ChainKind::Nat, Hook::Postrouting, priority::SRCNAT));
        let to_nobody_of_ours = vec![ip_daddr(Reg(0)), in_set(NODES, Reg(0), false)];
        let masquerade = vec![Expr::Masquerade { choice: PortChoice::Keep }];
        let pieces = [match_saddr(self.pod_cidr, true), match_daddr(self.cluster_cidr, false), to_nobody_of_ours, masquerade];
        batch.add_rule(&self.table, CHAIN, &Rule::of(pieces).comment(self.text()));
    }

    /// Takes the table away; one that is not there is no error.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(super) async fn remove(&self) -> Result<(), NetworkError> {
        let mut batch = Batch::new();
        batch.remove_table(&self.table);
        let removed = async { self.nft()?.commit(batch).await };
        removed.await.map_err(|error| NetworkError::step("remove the table of the pod network", error))
    }
}
