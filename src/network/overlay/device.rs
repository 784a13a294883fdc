//! The node's VXLAN device. It exists only while there is a peer that is reached through it.
//!
//! It learns nothing and asks nobody: who is where is set in its forwarding database and as permanent neighbours. It has no address
//! of its own; packets of the node itself leave with the node's.

use std::net::Ipv4Addr;

use nix::errno::Errno;
use rtnetlink::packet_route::link::{InfoData, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec, LinkVxlan};

use super::plan::{Own, mac, vni};
use crate::network::NetworkError;
use crate::network::attach::{errno, find, hex, step};

/// Where VXLAN packets are sent to, as flannel and k3s do on Linux.
pub(in crate::network) const PORT: u16 = 8472;

/// The VXLAN device as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Device {
    pub(super) index: u32,
    pub(super) mtu: u32,
}

/// The device's name, from the node's; no pod's interface is named so.
pub(super) fn name(node: &str) -> String {
    format!("vxorch{}", &hex(node)[..9])
}

/// The device, if it is there.
///
/// # Errors
/// When the kernel does not say.
pub(super) async fn present(handle: &Handle, node: &str) -> Result<Option<Device>, NetworkError> {
    let link = find(handle, &name(node)).await?;
    Ok(link.map(|link| Device { index: link.header.index, mtu: mtu_of(&link) }))
}

/// Makes the device, or repairs the one that is there. One that cannot be changed into what it must be is made anew.
///
/// # Errors
/// The step that the kernel refused; another VXLAN device with the same network and port is the usual cause.
pub(super) async fn ensure(handle: &Handle, own: &Own, mtu: u32) -> Result<Device, NetworkError> {
    let name = name(&own.name);
    let local = own.ip_is_local.then_some(own.ip);
    let mut link = find(handle, &name).await?;
    if let Some(stale) = link.take_if(|link| !is_right(link, &own.name, local)) {
        tracing::info!(device = name, "the VXLAN device is not as it must be; it is made anew");
        handle.link().del(stale.header.index).execute().await.map_err(step("remove the stale VXLAN device"))?;
    }
    if link.is_none() {
        create(handle, own, local, mtu).await?;
        link = find(handle, &name).await?;
    }
    let link = link.ok_or_else(|| NetworkError::step("create the VXLAN device", "it is not there"))?;
    let device = Device { index: link.header.index, mtu };
    let has_mac = link.attributes.iter().any(|attribute| *attribute == LinkAttribute::Address(mac(&own.name).to_vec()));
    if !link.header.flags.contains(LinkFlags::Up) || mtu_of(&link) != mtu || !has_mac {
        let change = LinkMessageBuilder::<LinkUnspec>::new().index(device.index).mtu(mtu).address(mac(&own.name).to_vec()).up();
        handle.link().change(change.build()).execute().await.map_err(step("set the VXLAN device up"))?;
    }
    Ok(device)
}

async fn create(handle: &Handle, own: &Own, local: Option<Ipv4Addr>, mtu: u32) -> Result<(), NetworkError> {
    let name = name(&own.name);
    let mut builder = LinkMessageBuilder::<LinkVxlan>::new(&name).id(vni(&own.name)).port(PORT).learning(false);
    if let Some(local) = local {
        builder = builder.local(local);
    }
    let message = builder.mtu(mtu).address(mac(&own.name).to_vec()).build();
    match handle.link().add(message).execute().await {
        Err(error) if errno(&error) == Some(Errno::EEXIST) => {
            let why = format!("there is another with network {} on UDP port {PORT}", vni(&own.name));
            Err(NetworkError::step("create the VXLAN device", why))
        }
        result => result.map_err(step("create the VXLAN device")),
    }?;
    // It carries IPv4 only: without this the kernel would send router solicitations to nobody.
    let switch = format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6");
    if let Err(error) = tokio::fs::write(&switch, "1").await {
        tracing::debug!(%error, switch, "IPv6 is not switched off");
    }
    Ok(())
}

/// Takes the device away, and with it its routes and entries. One that is gone is no error.
///
/// # Errors
/// When the kernel refuses.
pub(super) async fn remove(handle: &Handle, node: &str) -> Result<(), NetworkError> {
    crate::network::attach::remove(handle, &name(node)).await
}

/// Whether all is right that cannot be changed on a device that exists.
fn is_right(link: &LinkMessage, node: &str, local: Option<Ipv4Addr>) -> bool {
    let mut infos = link.attributes.iter().flat_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => infos.as_slice(),
        _ => &[],
    });
    let Some(vxlan) = infos.find_map(|info| if let LinkInfo::Data(InfoData::Vxlan(vxlan)) = info { Some(vxlan) } else { None })
    else {
        return false;
    };
    let own_address = vxlan.iter().find_map(|info| if let InfoVxlan::Local(ip) = info { Some(*ip) } else { None });
    vxlan.contains(&InfoVxlan::Id(vni(node)))
        && vxlan.contains(&InfoVxlan::Port(PORT))
        && vxlan.contains(&InfoVxlan::Learning(false))
        && own_address == local
}

fn mtu_of(link: &LinkMessage) -> u32 {
    link.attributes
        .iter()
        .find_map(|attribute| if let LinkAttribute::Mtu(mtu) = attribute { Some(*mtu) } else { None })
        .unwrap_or(0)
}
