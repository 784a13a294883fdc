//! The cluster DNS address on this host: a /32 on `lo`, so that a question is delivered to us without a hop of NAT. The address
//! carries a label with a hash of the node's name: a node takes away only what it added itself.

use std::net::IpAddr;

use futures_util::{StreamExt, TryStreamExt};
use nix::errno::Errno;
use rtnetlink::Handle;
use rtnetlink::packet_core::NetlinkPayload;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage, AddressScope};

use super::super::NetworkError;
use super::super::attach::{errno, hex, step};
use crate::rt::TaskGroup;

/// The loopback interface's index, in every network namespace.
const LOOPBACK: u32 = 1;

/// The label of a node's addresses; the kernel wants the interface's name at its begin, and 15 characters at most.
fn label(node: &str) -> String {
    format!("lo:{}", &hex(node)[..8])
}

/// Adds the address unless somebody has, and removes others that this node added before.
///
/// # Errors
/// The step that failed.
pub(super) async fn ensure(handle: &Handle, node: &str, ip: IpAddr) -> Result<(), NetworkError> {
    let present = list(handle).await?;
    for stale in present.iter().filter(|address| is_of(address, node) && ip_of(address) != Some(ip)) {
        remove(handle, stale.clone()).await?;
    }
    if present.iter().any(|address| ip_of(address) == Some(ip)) {
        return Ok(());
    }
    let mut request = handle.address().add(LOOPBACK, ip, if ip.is_ipv4() { 32 } else { 128 });
    // Of this host only: the kernel never chooses it as the source of a packet that leaves.
    request.message_mut().header.scope = AddressScope::Host;
    if ip.is_ipv4() {
        request.message_mut().attributes.push(AddressAttribute::Label(label(node)));
    }
    match request.execute().await {
        Err(error) if errno(&error) == Some(Errno::EEXIST) => Ok(()),
        result => result.map_err(step("add the address of the cluster's DNS")),
    }
}

/// Removes the address that a node added.
///
/// # Errors
/// The step that failed.
pub(in super::super) async fn cleanup(handle: &Handle, node: &str) -> Result<(), NetworkError> {
    for address in list(handle).await?.into_iter().filter(|address| is_of(address, node)) {
        remove(handle, address).await?;
    }
    Ok(())
}

async fn remove(handle: &Handle, address: AddressMessage) -> Result<(), NetworkError> {
    match handle.address().del(address).execute().await {
        Err(error) if errno(&error) == Some(Errno::EADDRNOTAVAIL) => Ok(()),
        result => result.map_err(step("remove the address of the cluster's DNS")),
    }
}

async fn list(handle: &Handle) -> Result<Vec<AddressMessage>, NetworkError> {
    let all = handle.address().get().set_link_index_filter(LOOPBACK).execute();
    all.try_collect().await.map_err(step("list the addresses of lo"))
}

fn ip_of(address: &AddressMessage) -> Option<IpAddr> {
    address.attributes.iter().find_map(|attribute| if let AddressAttribute::Address(ip) = attribute { Some(*ip) } else { None })
}

fn is_of(address: &AddressMessage, node: &str) -> bool {
    let own = label(node);
    address.attributes.iter().any(|attribute| matches!(attribute, AddressAttribute::Label(label) if *label == own))
}

/// Tells when somebody removes an address.
pub(super) struct Removals(futures_util::stream::BoxStream<'static, IpAddr>);

impl Removals {
    /// Opens the kernel's announcements; they are read in `tasks`.
    ///
    /// # Errors
    /// When there is no netlink socket.
    pub(super) fn open(tasks: &TaskGroup) -> Result<(Self, Handle), NetworkError> {
        let groups = [rtnetlink::MulticastGroup::Ipv4Ifaddr, rtnetlink::MulticastGroup::Ipv6Ifaddr];
        let opened = rtnetlink::new_multicast_connection(&groups);
        let (connection, handle, messages) = opened.map_err(|error| NetworkError::step("open a netlink socket", error))?;
        let token = tasks.token();
        tasks.spawn(async move {
            token.run_until_cancelled(connection).await;
        });
        let removed = messages.filter_map(async |(message, _)| match message.payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelAddress(address)) => ip_of(&address),
            _ => None,
        });
        Ok((Self(removed.boxed()), handle))
    }

    /// Waits until this address is removed, from whatever interface.
    pub(super) async fn of(&mut self, ip: IpAddr) {
        while let Some(removed) = self.0.next().await {
            if removed == ip {
                return;
            }
        }
        std::future::pending().await
    }
}
