//! What this machine is called and where it is reached.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};

use nix::ifaddrs::getifaddrs;

/// Interfaces that container engines and we make; their addresses are no node's.
const VIRTUAL: &[&str] = &["lo", "docker", "br-", "veth", "orch", "cni", "virbr"];

/// The host's name in the form of a node's: lower case.
pub fn name() -> String {
    let name = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default();
    if name.is_empty() { "localhost".to_owned() } else { name.to_lowercase() }
}

/// The address of the default route's interface; without one, the first address of a real interface; else loopback.
pub fn address() -> IpAddr {
    default_route_address().or_else(first_address).unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
}

/// Asks the kernel which source address it would use; nothing is sent.
fn default_route_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    // TEST-NET-1: an address that is nobody's.
    socket.connect("192.0.2.1:9").ok()?;
    socket.local_addr().ok().map(|address| address.ip()).filter(|ip| !ip.is_unspecified() && !ip.is_loopback())
}

fn first_address() -> Option<IpAddr> {
    let real = |name: &str| !VIRTUAL.iter().any(|prefix| name.starts_with(prefix));
    getifaddrs().ok()?.filter(|interface| real(&interface.interface_name)).find_map(|interface| {
        let address = interface.address?;
        address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()))
    })
}

/// All IPv4 addresses of this machine, for its certificate.
pub fn addresses() -> Vec<IpAddr> {
    let interfaces = getifaddrs().into_iter().flatten();
    interfaces.filter_map(|interface| interface.address?.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()))).collect()
}

/// Whether this process is root.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}
