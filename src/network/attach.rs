//! The routed veth of a pod, laid by netlink.
//!
//! On the host: an interface without address, a route to the pod's address as /32, a permanent neighbour entry. In the pod:
//! `eth0` with the address as /32 and a default route by a link-local gateway, whose permanent neighbour entry is the host's
//! end. So no ARP is spoken, no bridge is needed, and every packet is routed. Every step replaces what is there, so that
//! repeating all of them repairs.

use std::net::{IpAddr, Ipv4Addr};

use futures_util::TryStreamExt;
use nix::errno::Errno;
use ring::digest::{SHA256, digest};
use rtnetlink::packet_route::link::{InfoData, InfoVeth, LinkAttribute, LinkMessage};
use rtnetlink::{Error, Handle, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};

use super::{NetworkError, netns};
use crate::rt::TaskGroup;

/// Begin of the names of host interfaces.
pub(super) const PREFIX: &str = "orch";
/// The pod's interface.
const POD_INTERFACE: &str = "eth0";
/// The pod's gateway; it exists only as an entry in the pod's neighbour table.
const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// The host's end of every pair: they never share a link, so one address does for all.
const HOST_MAC: [u8; 6] = [0xee; 6];

/// A pod's end and the host's end of its network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wire<'a> {
    pub(super) node: &'a str,
    pub(super) pod_uid: &'a str,
    pub(super) ip: Ipv4Addr,
    pub(super) mtu: u32,
}

impl Wire<'_> {
    /// Lays the wire, or repairs the one that is there.
    ///
    /// # Errors
    /// The step that failed; the interface is removed then.
    pub(super) async fn lay(&self, host: &Handle, sandbox_pid: u32, tasks: &TaskGroup) -> Result<(), NetworkError> {
        let name = interface_name(self.pod_uid);
        let laid = self.try_lay(host, sandbox_pid, &name, tasks).await;
        if laid.is_err()
            && let Err(error) = remove(host, &name).await
        {
            tracing::warn!(%error, interface = name, "cannot remove half a pod's network");
        }
        laid
    }

    async fn try_lay(&self, host: &Handle, pid: u32, name: &str, tasks: &TaskGroup) -> Result<(), NetworkError> {
        // The group ends the connection with the agent; the connection itself ends with its last handle.
        let (connection, pod, _) = netns::within(pid, rtnetlink::new_connection)
            .await
            .map_err(|error| NetworkError::step(format!("enter the network namespace of process {pid}"), error))?;
        let token = tasks.token();
        tasks.spawn(async move {
            tokio::select! {
                () = token.cancelled() => {}
                () = connection => {}
            }
        });
        let present = find(host, name).await?;
        let in_pod = find(&pod, POD_INTERFACE).await?;
        let (host_index, pod_index) = match (present, in_pod) {
            (Some(outside), Some(inside)) if peer_of(&inside) == Some(outside.header.index) => {
                (outside.header.index, inside.header.index)
            }
            (stale, inside) => {
                if let Some(stale) = stale {
                    host.link().del(stale.header.index).execute().await.map_err(step("remove the stale interface"))?;
                }
                if let Some(inside) = inside {
                    pod.link().del(inside.header.index).execute().await.map_err(step("remove the pod's stale interface"))?;
                }
                self.create(host, name, pid).await?;
                (require(host, name).await?, require(&pod, POD_INTERFACE).await?)
            }
        };
        tokio::try_join!(self.configure_host(host, host_index), self.configure_pod(&pod, pod_index))?;
        Ok(())
    }

    async fn create(&self, host: &Handle, name: &str, pid: u32) -> Result<(), NetworkError> {
        let peer = LinkMessageBuilder::<LinkUnspec>::new()
            .name(POD_INTERFACE)
            .mtu(self.mtu)
            .address(pod_mac(self.pod_uid).to_vec())
            .setns_by_pid(pid)
            .build();
        let pair = LinkMessageBuilder::<LinkVeth>::new(name, POD_INTERFACE)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
            .mtu(self.mtu)
            .address(HOST_MAC.to_vec())
            .build();
        host.link().add(pair).execute().await.map_err(step("create the veth pair"))?;
        // The host's end speaks no IPv6; where the kernel speaks none at all there is nothing to switch off.
        let switch = format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6");
        if let Err(error) = tokio::fs::write(&switch, "1").await {
            tracing::debug!(%error, switch, "IPv6 is not switched off");
        }
        Ok(())
    }

    async fn configure_host(&self, host: &Handle, index: u32) -> Result<(), NetworkError> {
        let up = LinkMessageBuilder::<LinkUnspec>::new().index(index).alias(alias(self.node, self.pod_uid));
        let up = up.link_group(group(self.node)).up().build();
        host.link().change(up).execute().await.map_err(step("set the host's interface up"))?;
        let neighbour = host.neighbours().add(index, IpAddr::V4(self.ip)).link_layer_address(&pod_mac(self.pod_uid));
        neighbour.replace().execute().await.map_err(step("add the pod as a neighbour"))?;
        let route = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(self.ip, 32)
            .output_interface(index)
            .scope(rtnetlink::packet_route::route::RouteScope::Link)
            .build();
        host.route().add(route).replace().execute().await.map_err(step("add the route to the pod"))
    }

    async fn configure_pod(&self, pod: &Handle, index: u32) -> Result<(), NetworkError> {
        let address = pod.address().add(index, IpAddr::V4(self.ip), 32).replace();
        address.execute().await.map_err(step("set the pod's address"))?;
        for link in [1, index] {
            let up = LinkMessageBuilder::<LinkUnspec>::new().index(link).up().build();
            pod.link().change(up).execute().await.map_err(step("set the pod's interface up"))?;
        }
        let neighbour = pod.neighbours().add(index, IpAddr::V4(GATEWAY)).link_layer_address(&HOST_MAC);
        neighbour.replace().execute().await.map_err(step("add the gateway as a neighbour"))?;
        let route = RouteMessageBuilder::<Ipv4Addr>::new().gateway(GATEWAY).output_interface(index).onlink().build();
        pod.route().add(route).replace().execute().await.map_err(step("add the pod's default route"))
    }
}

/// Removes a host interface, and with it its peer and its routes. One that is gone is no error.
///
/// # Errors
/// When the kernel refuses.
pub(super) async fn remove(host: &Handle, name: &str) -> Result<(), NetworkError> {
    let Some(link) = find(host, name).await? else { return Ok(()) };
    match host.link().del(link.header.index).execute().await {
        Err(error) if errno(&error) == Some(Errno::ENODEV) => Ok(()),
        result => result.map_err(step("remove the pod's interface")),
    }
}

/// The interfaces of a node's pods: name and pod uid.
///
/// # Errors
/// When the kernel does not list its interfaces.
pub(super) async fn list(host: &Handle, node: &str) -> Result<Vec<(String, String)>, NetworkError> {
    let links: Vec<LinkMessage> = host.link().get().execute().try_collect().await.map_err(step("list the interfaces"))?;
    Ok(links.iter().filter_map(|link| of_node(link, node)).collect())
}

/// Name and pod uid of an interface, if it is that of one of the node's pods.
pub(super) fn of_node(link: &LinkMessage, node: &str) -> Option<(String, String)> {
    let ours = alias(node, "");
    let mut name = None;
    let mut uid = None;
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::IfName(text) => name = Some(text.clone()),
            LinkAttribute::IfAlias(text) => uid = text.strip_prefix(&ours).map(str::to_owned),
            _ => {}
        }
    }
    name.zip(uid)
}

/// The host interface of a pod: derived from its uid, so that it is found again without state.
pub(super) fn interface_name(pod_uid: &str) -> String {
    format!("{PREFIX}{}", &hex(pod_uid)[..11])
}

/// The first hexadecimal digits of a hash, for names that the kernel keeps short.
pub(super) fn hex(text: &str) -> String {
    digest(&SHA256, text.as_bytes()).as_ref().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// What tells a node's interfaces from those of another node on the same machine.
fn alias(node: &str, pod_uid: &str) -> String {
    format!("{PREFIX}:{node}:{pod_uid}")
}

/// The group of the interfaces of a node's pods, by which rules know them (`ip link show group N`). 0 is everybody's.
pub(super) fn group(node: &str) -> u32 {
    let mut bytes = [0; 4];
    bytes.copy_from_slice(&digest(&SHA256, node.as_bytes()).as_ref()[..4]);
    u32::from_be_bytes(bytes) & 0x7fff_ffff | 0x4000_0000
}

/// A locally administered address, stable for the pod.
fn pod_mac(pod_uid: &str) -> [u8; 6] {
    let mut mac = [0x0a; 6];
    mac[1..].copy_from_slice(&digest(&SHA256, pod_uid.as_bytes()).as_ref()[..5]);
    mac
}

pub(super) async fn find(handle: &Handle, name: &str) -> Result<Option<LinkMessage>, NetworkError> {
    match handle.link().get().match_name(name).execute().try_next().await {
        Ok(link) => Ok(link),
        Err(error) if errno(&error) == Some(Errno::ENODEV) => Ok(None),
        Err(error) => Err(step("look up the interface")(error)),
    }
}

async fn require(handle: &Handle, name: &str) -> Result<u32, NetworkError> {
    let link = find(handle, name).await?;
    link.map(|link| link.header.index).ok_or_else(|| NetworkError::step("look up the interface", format!("{name} is not there")))
}

/// The index of a veth's other end, in the other end's namespace.
fn peer_of(link: &LinkMessage) -> Option<u32> {
    link.attributes.iter().find_map(|attribute| if let LinkAttribute::Link(index) = attribute { Some(*index) } else { None })
}

pub(super) fn errno(error: &Error) -> Option<Errno> {
    let Error::NetlinkError(message) = error else { return None };
    message.code.map(|code| Errno::from_raw(code.get().abs()))
}

pub(super) fn step(what: &'static str) -> impl Fn(Error) -> NetworkError {
    move |error| match errno(&error) {
        Some(errno) => NetworkError::step(what, errno.desc()),
        None => NetworkError::step(what, error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_stable_and_short() {
        let name = interface_name("8b6b2c0e-6f0b-4b54-a7dd-2f2d4a7d4a5b");
        assert_eq!(name.len(), 15, "IFNAMSIZ is 16, with the zero at the end");
        assert_eq!(name, interface_name("8b6b2c0e-6f0b-4b54-a7dd-2f2d4a7d4a5b"));
        assert_ne!(name, interface_name("8b6b2c0e-6f0b-4b54-a7dd-2f2d4a7d4a5c"));
        let mac = pod_mac("x");
        assert_eq!(mac[0] & 0b11, 0b10, "local and unicast");
    }
}
