//! Tracked connections: which there are, and forgetting some (`linux/netfilter/nfnetlink_conntrack.h`).

use std::net::Ipv4Addr;

use nix::errno::Errno;

use super::message::{Attributes, Message, SUBSYSTEM_CONNTRACK, Writer};
use super::{Nft, NftError};

const GET: u16 = 1;
const DELETE: u16 = 2;
const IPV4: u8 = 2;

/// One end to the other, as a packet of the connection names them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tuple {
    pub source: Ipv4Addr,
    pub destination: Ipv4Addr,
    pub source_port: u16,
    pub destination_port: u16,
}

/// A tracked connection of IPv4.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Connection {
    /// 6 is TCP, 17 UDP, 132 SCTP.
    pub protocol: u8,
    /// As its first packet came.
    pub original: Tuple,
    /// As answers come: its source is where the packets really go.
    pub reply: Tuple,
    zone: u16,
}

impl Connection {
    /// A connection of the default zone.
    pub const fn new(protocol: u8, original: Tuple, reply: Tuple) -> Self {
        Self { protocol, original, reply, zone: 0 }
    }
}

impl Nft {
    /// The tracked IPv4 connections that `wanted` picks.
    ///
    /// # Errors
    /// When the kernel does not answer, or does not track connections.
    pub async fn connections(&self, wanted: impl Fn(&Connection) -> bool + Send + 'static) -> Result<Vec<Connection>, NftError> {
        let read = move |message: &Message<'_>| connection(message.attributes()).filter(|found| wanted(found));
        self.blocking(move |socket| socket.list("list connections", SUBSYSTEM_CONNTRACK | GET, IPV4, |_| {}, read)).await
    }

    /// Forgets connections: their next packet is a first packet again. Those that have gone are no error.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn forget(&self, connections: Vec<Connection>) -> Result<(), NftError> {
        self.blocking(move |socket| {
            for connection in connections {
                let fill = |writer: &mut Writer| write(writer, &connection);
                match socket.ask("delete a connection", SUBSYSTEM_CONNTRACK | DELETE, IPV4, fill) {
                    Err(NftError::Refused { errno: Errno::ENOENT, .. }) => {}
                    result => result?,
                }
            }
            Ok(())
        })
        .await
    }
}

fn write(writer: &mut Writer, connection: &Connection) {
    let Connection { protocol, original, zone, .. } = connection;
    writer.nested(1, |writer| {
        writer.nested(1, |writer| {
            writer.attribute(1, &original.source.octets());
            writer.attribute(2, &original.destination.octets());
        });
        writer.nested(2, |writer| {
            writer.u8(1, *protocol);
            writer.u16(2, original.source_port);
            writer.u16(3, original.destination_port);
        });
    });
    if *zone != 0 {
        writer.u16(18, *zone);
    }
}

fn connection(attributes: Attributes<'_>) -> Option<Connection> {
    let (protocol, original) = tuple(attributes.within(1)?)?;
    let (_, reply) = tuple(attributes.within(2)?)?;
    let zone = attributes.get(18).and_then(|zone| zone.try_into().ok()).map_or(0, u16::from_be_bytes);
    Some(Connection { protocol, original, reply, zone })
}

fn tuple(attributes: Attributes<'_>) -> Option<(u8, Tuple)> {
    let (addresses, protocol) = (attributes.within(1)?, attributes.within(2)?);
    let address = |kind| addresses.get(kind).and_then(|bytes| <[u8; 4]>::try_from(bytes).ok()).map(Ipv4Addr::from);
    let port = |kind| protocol.get(kind).and_then(|bytes| bytes.try_into().ok()).map_or(0, u16::from_be_bytes);
    let number = *protocol.get(1)?.first()?;
    let ports = Tuple { source: address(1)?, destination: address(2)?, source_port: port(2), destination_port: port(3) };
    Some((number, ports))
}
