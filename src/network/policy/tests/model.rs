//! A kernel that can be asked: it takes batches as the real one does, refuses what that would refuse, and judges packets.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use super::super::batch::Batch;
use super::super::facts::Protocol;
use super::super::profile::{Allow, DNS_PORT, Direction, Element, Name, PeerMatch, PortMatch, SetSpec};

pub(super) const DNS: Ipv4Addr = Ipv4Addr::new(10, 43, 0, 10);

/// The first packet of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Packet {
    pub(super) from: Ipv4Addr,
    pub(super) to: Ipv4Addr,
    /// `None` is a protocol without ports: ICMP.
    pub(super) port: Option<(Protocol, u16)>,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Kernel {
    sets: BTreeMap<Name, (SetSpec, BTreeSet<Element>)>,
    chains: BTreeMap<Name, (Direction, Vec<Allow>)>,
    verdicts: BTreeMap<(Direction, Ipv4Addr), Name>,
    selves: BTreeSet<Ipv4Addr>,
}

impl Kernel {
    pub(super) fn apply(&mut self, batch: Batch) {
        for set in batch.sets {
            assert!(self.sets.insert(set.name, (set.spec, set.elements)).is_none(), "a set is made twice");
        }
        for change in batch.set_changes {
            let (_, elements) = self.sets.get_mut(&change.name).unwrap();
            assert!(change.removed.iter().all(|element| elements.remove(element)), "no such element");
            assert!(change.added.iter().all(|element| elements.insert(*element)), "an element is added twice");
        }
        for chain in batch.chains {
            for set in chain.allows.iter().flat_map(used) {
                assert!(self.sets.contains_key(&set), "{set} is not there");
            }
            assert!(self.chains.insert(chain.name, (chain.direction, chain.allows)).is_none(), "a chain is made twice");
        }
        for (direction, ip, chain) in batch.verdicts_removed {
            assert_eq!(self.verdicts.remove(&(direction, ip)), Some(chain));
        }
        for (direction, ip, chain) in batch.verdicts_added {
            assert!(self.chains.contains_key(&chain));
            assert!(self.verdicts.insert((direction, ip), chain).is_none(), "an address is added twice");
        }
        assert!(batch.selves_removed.iter().all(|ip| self.selves.remove(ip)));
        assert!(batch.selves_added.iter().all(|ip| self.selves.insert(*ip)));
        for chain in batch.chains_gone {
            assert!(!self.verdicts.values().any(|used| *used == chain), "{chain} is in use");
            self.chains.remove(&chain).unwrap();
        }
        for set in batch.sets_gone {
            assert!(
                !self.chains.values().any(|(_, allows)| allows.iter().flat_map(used).any(|used| used == set)),
                "{set} is in use"
            );
            self.sets.remove(&set).unwrap();
        }
    }

    pub(super) fn lets(&self, packet: Packet) -> bool {
        (packet.from == packet.to && self.selves.contains(&packet.from))
            || [(Direction::Egress, packet.from), (Direction::Ingress, packet.to)].into_iter().all(|(direction, subject)| {
                let Some(chain) = self.verdicts.get(&(direction, subject)) else { return true };
                let (of, allows) = &self.chains[chain];
                assert_eq!(*of, direction);
                allows.iter().any(|allow| self.matches(direction, allow, packet))
            })
    }

    fn matches(&self, direction: Direction, allow: &Allow, packet: Packet) -> bool {
        let peer = if direction == Direction::Ingress { packet.from } else { packet.to };
        match allow {
            Allow::Dns(protocol) => packet.to == DNS && packet.port == Some((*protocol, DNS_PORT)),
            Allow::Endpoints(set) => packet
                .port
                .is_some_and(|(protocol, port)| self.sets[set].1.contains(&Element::Endpoint(packet.to, protocol, port))),
            Allow::Traffic { peers, ports } => {
                let peers = match peers {
                    PeerMatch::Any => true,
                    PeerMatch::In(set) => match &self.sets[set] {
                        (SetSpec::Blocks(ranges), _) => ranges.iter().any(|(first, last)| (*first..=*last).contains(&peer)),
                        (_, elements) => elements.contains(&Element::Address(peer)),
                    },
                };
                let ports = match (ports, packet.port) {
                    (PortMatch::Any, _) => true,
                    (_, None) => false,
                    (PortMatch::Every(protocol), Some((of, _))) => *protocol == of,
                    (PortMatch::In(protocol, set), Some((of, port))) => {
                        let SetSpec::Ports(ranges) = &self.sets[set].0 else { panic!("{set} holds no ports") };
                        *protocol == of && ranges.iter().any(|(first, last)| (*first..=*last).contains(&port))
                    }
                };
                peers && ports
            }
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

fn used(allow: &Allow) -> Vec<Name> {
    match allow {
        Allow::Dns(_) => Vec::new(),
        Allow::Endpoints(set) => vec![set.clone()],
        Allow::Traffic { peers, ports } => {
            let peers = if let PeerMatch::In(set) = peers { Some(set.clone()) } else { None };
            let ports = if let PortMatch::In(_, set) = ports { Some(set.clone()) } else { None };
            peers.into_iter().chain(ports).collect()
        }
    }
}
