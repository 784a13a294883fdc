//! The node's table in the kernel: what it is made of, and how a difference is told.
//!
//! A packet that is forwarded meets four rules, however many pods and policies there are: established traffic passes, a pod
//! reaches itself, and one look each into a map of the pods that are isolated (by source for egress, by destination for
//! ingress). A map leads to the chain of what the pod's policies allow: it returns for what is allowed, and drops at its end.
//! What a pod sends to the node itself meets the egress map alone; what the node sends is not looked at.

use std::net::Ipv4Addr;
use std::sync::Arc;

use super::batch::{Batch, NewChain, NewSet};
use super::profile::{Allow, DNS_PORT, Direction, Element, Name, PeerMatch, PortMatch, SetSpec};
use crate::network::attach::hex;
use crate::network::nft::expr::{self, Expr, Reg, state};
use crate::network::nft::{
    self, Base, ChainKind, Family, Hook, Key, Monitor, Nft, NftError, Rule, Set, Table, Type, Verdict, priority,
};

/// Longest comment of a set.
const COMMENT_BYTES: usize = 120;
const SELVES: &str = "selves";

/// The table that enforces the policies on a node.
pub(super) struct PolicyTable {
    nft: Nft,
    table: Table,
    dns: Ipv4Addr,
}

/// The table of a node; its name tells it from those of other nodes on the machine.
pub(super) fn table_of(node: &str) -> Table {
    Table::new(Family::Ipv4, &format!("orch-{}-policy", &hex(node)[..8]))
}

impl PolicyTable {
    /// `dns` is where the cluster's DNS answers.
    ///
    /// # Errors
    /// When there is no netlink socket.
    pub(super) fn open(node: &str, dns: Ipv4Addr) -> Result<Self, NftError> {
        Ok(Self { nft: Nft::open()?, table: table_of(node), dns })
    }

    /// Tells when somebody else has changed the table.
    ///
    /// # Errors
    /// When there is no netlink socket.
    pub(super) fn monitor(&self) -> Result<Monitor, NftError> {
        self.nft.monitor(&self.table)
    }

    /// Makes the table anew with all that `whole` holds, in one transaction.
    ///
    /// # Errors
    /// What the kernel refused; the table is as it was.
    pub(super) async fn replace(&self, whole: &Batch) -> Result<(), NftError> {
        let mut batch = nft::Batch::new();
        batch.remove_table(&self.table);
        batch.add_table(&self.table);
        for direction in Direction::BOTH {
            batch.add_set(&self.table, &verdict_map(direction));
        }
        batch.add_set(&self.table, &selves());
        self.base_chains(&mut batch);
        self.write(&mut batch, whole);
        self.nft.commit(batch).await
    }

    /// Tells the kernel a difference, in one transaction.
    ///
    /// # Errors
    /// What the kernel refused; the table is as it was.
    pub(super) async fn apply(&self, difference: &Batch) -> Result<(), NftError> {
        let mut batch = nft::Batch::new();
        self.write(&mut batch, difference);
        self.nft.commit(batch).await
    }

    fn base_chains(&self, batch: &mut nft::Batch) {
        let established = || {
            let known = expr::match_ct_state(state::ESTABLISHED | state::RELATED);
            Rule::of([known, vec![Expr::Verdict(Verdict::Accept)]]).comment("established")
        };
        let to_itself = [expr::ip_saddr(Reg(0)), expr::ip_daddr(Reg(1)), expr::in_set(SELVES, Reg(0), true)];
        let to_itself = Rule::new(to_itself.into_iter().chain([Expr::Verdict(Verdict::Accept)])).comment("a pod reaches itself");
        let judge = |direction: Direction| Rule::new([subject(direction), expr::vmap(map_name(direction), Reg(0))]);
        let (egress, ingress) = (judge(Direction::Egress), judge(Direction::Ingress));
        let hooks = [
            ("forward", Hook::Forward, vec![established(), to_itself, egress.clone(), ingress]),
            ("input", Hook::Input, vec![established(), egress]),
        ];
        for (chain, hook, rules) in hooks {
            batch.add_base_chain(&self.table, chain, Base::accepting(ChainKind::Filter, hook, priority::FILTER));
            rules.iter().for_each(|rule| batch.add_rule(&self.table, chain, rule));
        }
    }

    fn write(&self, batch: &mut nft::Batch, difference: &Batch) {
        let table = &self.table;
        for set in &difference.sets {
            let (definition, elements) = (definition(set), contents(set));
            batch.add_set(table, &definition);
            batch.add_elements(table, &definition, &elements);
        }
        for change in &difference.set_changes {
            let of_endpoints = change.added.iter().chain(&change.removed).any(|element| matches!(element, Element::Endpoint(..)));
            let definition = Set::of(&change.name, if of_endpoints { &ENDPOINT } else { &ADDRESS });
            batch.delete_elements(table, &definition, &change.removed.iter().map(element).collect::<Vec<_>>());
            batch.add_elements(table, &definition, &change.added.iter().map(element).collect::<Vec<_>>());
        }
        for chain in &difference.chains {
            self.write_chain(batch, chain);
        }
        for direction in Direction::BOTH {
            let map = verdict_map(direction);
            let of = |verdicts: &[(Direction, Ipv4Addr, Name)]| {
                let these = verdicts.iter().filter(|(of, ..)| *of == direction);
                these
                    .map(|(_, ip, chain)| nft::Element::new(address(*ip)).verdict(Verdict::Jump(Arc::clone(chain))))
                    .collect::<Vec<_>>()
            };
            batch.delete_elements(table, &map, &of(&difference.verdicts_removed));
            batch.add_elements(table, &map, &of(&difference.verdicts_added));
        }
        let itself = |ip: &Ipv4Addr| nft::Element::new(address(*ip).ipv4(*ip));
        batch.delete_elements(table, &selves(), &difference.selves_removed.iter().map(itself).collect::<Vec<_>>());
        batch.add_elements(table, &selves(), &difference.selves_added.iter().map(itself).collect::<Vec<_>>());
        difference.chains_gone.iter().for_each(|chain| batch.delete_chain(table, chain));
        difference.sets_gone.iter().for_each(|set| batch.delete_set(table, set));
    }

    fn write_chain(&self, batch: &mut nft::Batch, chain: &NewChain) {
        batch.add_chain(&self.table, &chain.name);
        for allow in &chain.allows {
            let matches = self.matches(chain.direction, allow);
            batch.add_rule(&self.table, &chain.name, &Rule::new(matches.into_iter().chain([Expr::Verdict(Verdict::Return)])));
        }
        batch.add_rule(&self.table, &chain.name, &Rule::new([Expr::Verdict(Verdict::Drop)]));
    }

    fn matches(&self, direction: Direction, allow: &Allow) -> Vec<Expr> {
        let port_in = |set: &Name| vec![expr::dport(Reg(0)), expr::in_set(set, Reg(0), true)];
        match allow {
            Allow::Endpoints(set) => {
                vec![expr::ip_daddr(Reg(0)), expr::l4proto(Reg(1)), expr::dport(Reg(2)), expr::in_set(set, Reg(0), true)]
            }
            Allow::Dns(protocol) => {
                let to_dns = vec![expr::ip_daddr(Reg(0)), expr::is(Reg(0), self.dns.octets().to_vec())];
                let port = vec![expr::dport(Reg(0)), expr::is(Reg(0), DNS_PORT.to_be_bytes().to_vec())];
                [to_dns, expr::match_l4proto(protocol.number()), port].concat()
            }
            Allow::Traffic { peers, ports } => {
                let peers = match peers {
                    PeerMatch::Any => Vec::new(),
                    PeerMatch::In(set) => vec![peer(direction), expr::in_set(set, Reg(0), true)],
                };
                let ports = match ports {
                    PortMatch::Any => Vec::new(),
                    PortMatch::Every(protocol) => expr::match_l4proto(protocol.number()),
                    PortMatch::In(protocol, set) => [expr::match_l4proto(protocol.number()), port_in(set)].concat(),
                };
                [peers, ports].concat()
            }
        }
    }
}

const ADDRESS: [Type; 1] = [Type::Ipv4Addr];
const ENDPOINT: [Type; 3] = [Type::Ipv4Addr, Type::InetProto, Type::InetService];

/// The address of the pod that a policy selects.
fn subject(direction: Direction) -> Expr {
    match direction {
        Direction::Ingress => expr::ip_daddr(Reg(0)),
        Direction::Egress => expr::ip_saddr(Reg(0)),
    }
}

/// The other side's address.
fn peer(direction: Direction) -> Expr {
    match direction {
        Direction::Ingress => expr::ip_saddr(Reg(0)),
        Direction::Egress => expr::ip_daddr(Reg(0)),
    }
}

fn map_name(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "ingress",
        Direction::Egress => "egress",
    }
}

fn verdict_map(direction: Direction) -> Set {
    Set::verdict_map(map_name(direction), &ADDRESS)
}

fn selves() -> Set {
    Set::of(SELVES, &[Type::Ipv4Addr, Type::Ipv4Addr])
}

fn definition(set: &NewSet) -> Set {
    let definition = match &set.spec {
        SetSpec::Pods(_) => Set::of(&set.name, &ADDRESS),
        SetSpec::Endpoints(..) => Set::of(&set.name, &ENDPOINT),
        SetSpec::Blocks(_) => Set::of(&set.name, &ADDRESS).interval(),
        SetSpec::Ports(_) => Set::of(&set.name, &[Type::InetService]).interval(),
    };
    let comment = match &set.spec {
        SetSpec::Pods(_) | SetSpec::Endpoints(..) => {
            let text = set.spec.to_string();
            Some(text[..text.floor_char_boundary(COMMENT_BYTES)].to_owned())
        }
        SetSpec::Blocks(_) | SetSpec::Ports(_) => None,
    };
    Set { comment, ..definition }
}

fn contents(set: &NewSet) -> Vec<nft::Element> {
    match &set.spec {
        SetSpec::Pods(_) | SetSpec::Endpoints(..) => set.elements.iter().map(element).collect(),
        SetSpec::Blocks(ranges) => {
            ranges.iter().map(|(first, last)| nft::Element::range(address(*first), address(*last))).collect()
        }
        SetSpec::Ports(ranges) => {
            let port = |number: u16| Key::new().port(number);
            ranges.iter().map(|(first, last)| nft::Element::range(port(*first), port(*last))).collect()
        }
    }
}

fn element(element: &Element) -> nft::Element {
    nft::Element::new(match element {
        Element::Address(ip) => address(*ip),
        Element::Endpoint(ip, protocol, port) => address(*ip).proto(protocol.number()).port(*port),
    })
}

fn address(ip: Ipv4Addr) -> Key {
    Key::new().ipv4(ip)
}
