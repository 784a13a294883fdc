//! The kernel's side of the overlay, by netlink: what is there, and one change at a time.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};

use futures_util::TryStreamExt;
use ipnet::Ipv4Net;
use nix::errno::Errno;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkLayerType, LinkMessage};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::{Handle, IpVersion, RouteMessageBuilder};

use super::plan::{Action, Forward, Hop, MAIN_TABLE, Neighbour, Own, PROTOCOL, Path, Route, Rule, SeenRoute, State, table};
use crate::network::NetworkError;
use crate::network::attach::{PREFIX, errno, step};

/// Before the rule that leads to the main table (32766).
const RULE_PRIORITY: u32 = 28_527;

/// An interface.
#[derive(Debug, Clone)]
pub(super) struct Interface {
    pub(super) name: String,
    pub(super) mtu: u32,
    /// Whether neighbours on it take packets for any address: Ethernet, not a tunnel that knows the addresses of its ends.
    pub(super) is_shared: bool,
    pub(super) is_loopback: bool,
}

/// All interfaces by their index.
pub(super) type Interfaces = HashMap<u32, Interface>;

/// # Errors
/// When the kernel does not list its interfaces.
pub(super) async fn interfaces(handle: &Handle) -> Result<Interfaces, NetworkError> {
    let links: Vec<LinkMessage> = handle.link().get().execute().try_collect().await.map_err(step("list the interfaces"))?;
    let interface = |link: &LinkMessage| {
        let mut interface = Interface {
            name: String::new(),
            mtu: 0,
            is_shared: link.header.link_layer_type == LinkLayerType::Ether
                && !link.header.flags.intersects(LinkFlags::Noarp | LinkFlags::Pointopoint),
            is_loopback: link.header.flags.contains(LinkFlags::Loopback),
        };
        for attribute in &link.attributes {
            match attribute {
                LinkAttribute::IfName(name) => interface.name.clone_from(name),
                LinkAttribute::Mtu(mtu) => interface.mtu = *mtu,
                _ => {}
            }
        }
        interface
    };
    Ok(links.iter().map(|link| (link.header.index, interface(link))).collect())
}

/// The interface that has an address.
///
/// # Errors
/// When the kernel does not list its addresses.
pub(super) async fn interface_of(handle: &Handle, ip: Ipv4Addr) -> Result<Option<u32>, NetworkError> {
    let mut addresses = handle.address().get().execute();
    while let Some(address) = addresses.try_next().await.map_err(step("list the addresses"))? {
        let is_it = |attribute: &AddressAttribute| *attribute == AddressAttribute::Local(IpAddr::V4(ip));
        if address.attributes.iter().any(is_it) {
            return Ok(Some(address.header.index));
        }
    }
    Ok(None)
}

/// The kernel's way to an address.
///
/// # Errors
/// When the kernel does not answer; that there is no way is no error.
pub(super) async fn path(handle: &Handle, interfaces: &Interfaces, to: Ipv4Addr) -> Result<Path, NetworkError> {
    let request = RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(to, 32).build();
    let answer = handle.route().get(request).execute().try_next().await;
    let route = match answer {
        Ok(Some(route)) => route,
        Ok(None) => return Ok(Path::Unreachable),
        Err(error) => match errno(&error) {
            Some(Errno::ENETUNREACH | Errno::EHOSTUNREACH | Errno::EACCES | Errno::EINVAL) => return Ok(Path::Unreachable),
            _ => return Err(step("look up the way to a node")(error)),
        },
    };
    if route.header.kind == RouteType::Local {
        return Ok(Path::Local);
    }
    let mut interface = None;
    let mut has_gateway = false;
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Oif(index) => interface = Some(*index),
            RouteAttribute::Gateway(_) | RouteAttribute::Via(_) => has_gateway = true,
            _ => {}
        }
    }
    let Some((index, known)) = interface.and_then(|index| Some((index, interfaces.get(&index)?))) else {
        return Ok(Path::Unreachable);
    };
    Ok(if has_gateway || !known.is_shared { Path::Routed { mtu: known.mtu } } else { Path::OnLink { interface: index } })
}

/// What is there of routes, and on the VXLAN device of neighbours and forwards, and of the node's rules.
///
/// # Errors
/// The list that the kernel did not give.
pub(super) async fn observe(
    handle: &Handle,
    own: &Own,
    interfaces: &Interfaces,
    vxlan: Option<u32>,
) -> Result<State<SeenRoute>, NetworkError> {
    let mut state = State { routes: routes(handle, own, interfaces).await?, ..State::default() };
    let mut rules = handle.rule().get(IpVersion::V4).execute();
    while let Some(rule) = rules.try_next().await.map_err(step("list the rules"))? {
        state.rules.extend(seen_rule(&rule).filter(|rule| rule.table == table(&own.name)));
    }
    let Some(vxlan) = vxlan else { return Ok(state) };
    for family in [AddressFamily::Inet, AddressFamily::Bridge] {
        let mut entries = handle.neighbours().get().set_address_family(family).execute();
        while let Some(entry) = entries.try_next().await.map_err(step("list the neighbours"))? {
            if entry.header.ifindex == vxlan {
                note_entry(&mut state, &own.name, family, &entry);
            }
        }
    }
    Ok(state)
}

fn note_entry(state: &mut State<SeenRoute>, own: &str, family: AddressFamily, entry: &NeighbourMessage) {
    let (mut ip, mut mac, mut vni) = (None, [0; 6], super::plan::vni(own));
    for attribute in &entry.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => ip = Some(*address),
            NeighbourAttribute::Destination(NeighbourAddress::Other(bytes)) => {
                ip = <[u8; 4]>::try_from(bytes.as_slice()).ok().map(Ipv4Addr::from);
            }
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.as_slice().try_into().unwrap_or([0; 6]),
            NeighbourAttribute::Vni(number) => vni = *number,
            _ => {}
        }
    }
    // One that may age is as good as missing: setting it makes it permanent.
    let is_permanent = entry.header.state == NeighbourState::Permanent;
    if family == AddressFamily::Bridge {
        let node = ip.filter(|_| is_permanent).unwrap_or(Ipv4Addr::UNSPECIFIED);
        state.forwards.push(Forward { mac, node, vni });
    } else if let Some(ip) = ip {
        state.neighbours.push(Neighbour { ip, mac: if is_permanent { mac } else { [0; 6] } });
    }
}

async fn routes(handle: &Handle, own: &Own, interfaces: &Interfaces) -> Result<Vec<SeenRoute>, NetworkError> {
    let mut all = handle.route().get(RouteMessageBuilder::<Ipv4Addr>::new().build()).execute();
    let mut seen = Vec::new();
    while let Some(route) = all.try_next().await.map_err(step("list the routes"))? {
        let route = seen_route(&route, interfaces);
        if [MAIN_TABLE, table(&own.name)].contains(&route.route.table) {
            seen.push(route);
        }
    }
    Ok(seen)
}

fn seen_route(message: &RouteMessage, interfaces: &Interfaces) -> SeenRoute {
    let header = &message.header;
    let (mut table, mut metric, mut address) = (u32::from(header.table), 0, Ipv4Addr::UNSPECIFIED);
    let (mut gateway, mut interface, mut source, mut mtu, mut is_plain) = (None, None, None, None, true);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(number) => table = *number,
            RouteAttribute::Priority(number) => metric = *number,
            RouteAttribute::Destination(RouteAddress::Inet(ip)) => address = *ip,
            RouteAttribute::Gateway(RouteAddress::Inet(ip)) => gateway = Some(*ip),
            RouteAttribute::Oif(index) => interface = Some(*index),
            RouteAttribute::PrefSource(RouteAddress::Inet(ip)) => source = Some(*ip),
            RouteAttribute::Metrics(metrics) => {
                for metric in metrics {
                    match metric {
                        RouteMetric::Mtu(number) => mtu = Some(*number),
                        _ => is_plain = false,
                    }
                }
            }
            RouteAttribute::CacheInfo(_) => {}
            _ => is_plain = false,
        }
    }
    let destination = Ipv4Net::new(address, header.destination_prefix_length).unwrap_or_default();
    let name = interface.and_then(|index| interfaces.get(&index)).map(|interface| interface.name.as_str());
    let onlink = header.flags.contains(RouteFlags::Onlink);
    let protocol = u8::from(header.protocol);
    let via = gateway.map(|gateway| format!(" via {gateway}")).unwrap_or_default();
    let dev = name.map(|name| format!(" dev {name}")).unwrap_or_default();
    let text = format!("{destination}{via}{dev} proto {}", protocol_name(header.protocol));
    let hop = match (header.kind, gateway, interface) {
        (RouteType::Unicast, Some(gateway), Some(interface)) if is_plain && header.scope == RouteScope::Universe => {
            Hop::Via { gateway, interface, onlink, source, mtu }
        }
        // The kernel shows an unreachable route on the loopback interface, or on none.
        (RouteType::Unreachable, None, _) if is_plain => Hop::Unreachable,
        _ => Hop::Other(text.clone()),
    };
    let is_pod = name.is_some_and(|name| name.starts_with(PREFIX));
    SeenRoute { route: Route { table, destination, metric, hop }, protocol, is_pod, text }
}

fn protocol_name(protocol: RouteProtocol) -> String {
    match protocol {
        RouteProtocol::Other(number) => number.to_string(),
        named => format!("{named:?}").to_lowercase(),
    }
}

fn seen_rule(rule: &RuleMessage) -> Option<Rule> {
    let mut source = None;
    let mut table = u32::from(rule.header.table);
    let mut is_ours = false;
    for attribute in &rule.attributes {
        match attribute {
            RuleAttribute::Source(IpAddr::V4(ip)) => source = Ipv4Net::new(*ip, rule.header.src_len).ok(),
            RuleAttribute::Table(number) => table = *number,
            RuleAttribute::Protocol(RouteProtocol::Other(PROTOCOL)) => is_ours = true,
            _ => {}
        }
    }
    source.filter(|_| is_ours).map(|source| Rule { source, table })
}

/// Makes one change.
///
/// # Errors
/// The step that the kernel refused. What was to be removed and is gone is no error.
pub(super) async fn perform(handle: &Handle, vxlan: Option<u32>, action: &Action) -> Result<(), NetworkError> {
    let vxlan = vxlan.unwrap_or_default();
    match action {
        Action::AddRoute(route) => handle.route().add(route_message(route)).execute().await.map_err(step("add the route")),
        Action::ReplaceRoute(route) => {
            handle.route().add(route_message(route)).replace().execute().await.map_err(step("replace the route"))
        }
        Action::RemoveRoute(route) => removed(handle.route().del(removal(route)).execute().await, "remove the route"),
        Action::SetNeighbour(Neighbour { ip, mac }) => {
            let neighbour = handle.neighbours().add(vxlan, IpAddr::V4(*ip)).link_layer_address(mac);
            neighbour.replace().execute().await.map_err(step("set the neighbour"))
        }
        Action::RemoveNeighbour(Neighbour { ip, .. }) => {
            let mut message = NeighbourMessage::default();
            message.header.family = AddressFamily::Inet;
            message.header.ifindex = vxlan;
            message.attributes.push(NeighbourAttribute::Destination(NeighbourAddress::Inet(*ip)));
            removed(handle.neighbours().del(message).execute().await, "remove the neighbour")
        }
        Action::SetForward(Forward { mac, node, vni }) => {
            let mut entry = handle.neighbours().add_bridge(vxlan, mac).flags(NeighbourFlags::Own).destination(IpAddr::V4(*node));
            entry.message_mut().attributes.push(NeighbourAttribute::Vni(*vni));
            entry.replace().execute().await.map_err(step("set the forwarding entry"))
        }
        Action::RemoveForward(Forward { mac, .. }) => {
            let mut message = NeighbourMessage::default();
            message.header.family = AddressFamily::Bridge;
            message.header.ifindex = vxlan;
            message.header.flags = NeighbourFlags::Own;
            message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.to_vec()));
            removed(handle.neighbours().del(message).execute().await, "remove the forwarding entry")
        }
        Action::AddRule(rule) => {
            let mut request = handle.rule().add().v4().priority(RULE_PRIORITY).table_id(rule.table).action(RuleAction::ToTable);
            request = request.source_prefix(rule.source.network(), rule.source.prefix_len());
            request.message_mut().attributes.push(RuleAttribute::Protocol(RouteProtocol::Other(PROTOCOL)));
            request.execute().await.map_err(step("add the rule"))
        }
        Action::RemoveRule(rule) => {
            let mut message = RuleMessage::default();
            message.header.family = AddressFamily::Inet;
            message.header.action = RuleAction::ToTable;
            message.header.src_len = rule.source.prefix_len();
            message.attributes = vec![
                RuleAttribute::Source(IpAddr::V4(rule.source.network())),
                RuleAttribute::Table(rule.table),
                RuleAttribute::Priority(RULE_PRIORITY),
                RuleAttribute::Protocol(RouteProtocol::Other(PROTOCOL)),
            ];
            removed(handle.rule().del(message).execute().await, "remove the rule")
        }
    }
}

fn removed(result: Result<(), rtnetlink::Error>, what: &'static str) -> Result<(), NetworkError> {
    match result {
        Err(error) if matches!(errno(&error), Some(Errno::ESRCH | Errno::ENOENT | Errno::ENODEV)) => Ok(()),
        result => result.map_err(step(what)),
    }
}

fn route_message(route: &Route) -> RouteMessage {
    let Route { table, destination, metric, hop } = route;
    let builder = RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(destination.network(), destination.prefix_len());
    let builder = builder.table_id(*table).priority(*metric).protocol(RouteProtocol::Other(PROTOCOL));
    match hop {
        Hop::Via { gateway, interface, onlink, source, mtu } => {
            let mut builder = builder.gateway(*gateway).output_interface(*interface);
            if *onlink {
                builder = builder.onlink();
            }
            if let Some(source) = source {
                builder = builder.pref_source(*source);
            }
            if let Some(mtu) = mtu {
                builder.get_mut().attributes.push(RouteAttribute::Metrics(vec![RouteMetric::Mtu(*mtu)]));
            }
            builder.build()
        }
        Hop::Unreachable | Hop::Other(_) => builder.kind(RouteType::Unreachable).build(),
    }
}

/// Names a route of ours by what tells it from others, whatever it leads to.
fn removal(route: &Route) -> RouteMessage {
    let Route { table, destination, metric, .. } = route;
    let builder = RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(destination.network(), destination.prefix_len());
    let builder = builder.table_id(*table).priority(*metric).protocol(RouteProtocol::Other(PROTOCOL));
    builder.scope(RouteScope::NoWhere).kind(RouteType::Unspec).build()
}
