//! Cluster addresses and node ports of Services: claimed in the transaction that writes the Service, so no two can take the same.
//!
//! An address is an IPAddress object, as since Kubernetes 1.33; a node port is a key of its own that no API shows.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use serde_json::{Value, json};

use super::{Registry, WriteRequest, encode, prefix};
use crate::api::field::{FieldError, Path};
use crate::api::{ApiError, Kind, Object, meta};
use crate::auth::UserInfo;
use crate::rt::random;
use crate::store::{Draft, Guard, Write};

/// Node ports that are handed out (`--service-node-port-range`).
const NODE_PORTS: std::ops::RangeInclusive<i64> = 30_000..=32_767;
const NODE_PORT_BUCKET: &str = "core/nodeports";
const ADDRESS_BUCKET: &str = "networking.k8s.io/ipaddresses";
/// Random tries before the range is searched from its start.
const RANDOM_TRIES: usize = 16;

/// What a write takes and gives back beside its object.
#[derive(Default)]
pub(super) struct Claims {
    taken: Vec<(Arc<str>, Draft)>,
    released: Vec<Arc<str>>,
    /// The spec before values were filled in.
    before: Option<Value>,
}

impl Claims {
    pub(super) fn guards(&self) -> impl Iterator<Item = Guard> {
        self.taken.iter().map(|(key, _)| Guard::Absent { key: Arc::clone(key) })
    }

    pub(super) fn writes(&self) -> impl Iterator<Item = Write> {
        let taken = self.taken.iter().map(|(key, draft)| Write::Put { key: Arc::clone(key), draft: draft.clone() });
        taken.chain(self.released.iter().map(|key| Write::Delete { key: Arc::clone(key) }))
    }
}

/// Fills in and claims the addresses and node ports of a Service; nothing for other kinds.
///
/// # Errors
/// 422 when what the client asks for is taken or out of range, 500 when nothing is left.
pub(super) fn claim(registry: &Registry, kind: &dyn Kind, object: &mut Object, old: Option<&Object>) -> Result<Claims, ApiError> {
    if !is_service(kind) {
        return Ok(Claims::default());
    }
    let mut claims = Claims { before: object.spec().cloned(), ..Claims::default() };
    let held: BTreeSet<String> = old.map(keys_of).unwrap_or_default().into_iter().collect();
    let needs_address = object.str_at(&["spec", "type"]) != Some("ExternalName");
    let mut errors = Vec::new();
    if needs_address {
        claim_address(registry, object, old, &held, &mut claims, &mut errors)?;
    }
    claim_ports(registry, object, &held, &mut claims, &mut errors)?;
    super::change::invalid(kind, object.name(), &errors)?;
    let kept: BTreeSet<String> = keys_of(object).into_iter().collect();
    claims.released = held.difference(&kept).map(|key| key.as_str().into()).collect();
    Ok(claims)
}

/// Puts the object back as it was before [`claim`], to claim again.
pub(super) fn forget(object: &mut Object, claims: &Claims) {
    if let Some(spec) = &claims.before {
        object.set(&["spec"], spec.clone());
    }
}

/// What is given back when an object is removed.
pub(super) fn release(kind: &dyn Kind, old: &Object) -> Vec<Write> {
    if !is_service(kind) {
        return Vec::new();
    }
    keys_of(old).into_iter().map(|key| Write::Delete { key: key.into() }).collect()
}

fn is_service(kind: &dyn Kind) -> bool {
    kind.names().group.is_empty() && kind.names().plural == "services"
}

/// The keys of all that a Service holds.
fn keys_of(service: &Object) -> Vec<String> {
    let address = service.str_at(&["spec", "clusterIP"]).filter(|address| !matches!(*address, "" | "None"));
    let mut keys: Vec<String> = address.map(|address| format!("{ADDRESS_BUCKET}/{address}")).into_iter().collect();
    let ports = service.get(&["spec", "ports"]).and_then(Value::as_array).into_iter().flatten();
    let ports = ports.filter_map(|port| port.get("nodePort")?.as_i64());
    let health = service.get(&["spec", "healthCheckNodePort"]).and_then(Value::as_i64);
    keys.extend(ports.chain(health).filter(|port| *port != 0).map(port_key));
    keys.sort();
    keys.dedup();
    keys
}

fn port_key(port: i64) -> String {
    format!("{NODE_PORT_BUCKET}/{port}")
}

fn claim_address(
    registry: &Registry,
    object: &mut Object,
    old: Option<&Object>,
    held: &BTreeSet<String>,
    claims: &mut Claims,
    errors: &mut Vec<FieldError>,
) -> Result<(), ApiError> {
    let mut wanted = object.str_at(&["spec", "clusterIP"]).unwrap_or("").to_owned();
    if wanted.is_empty() {
        let first = object.get(&["spec", "clusterIPs"]).and_then(|list| list.get(0)).and_then(Value::as_str);
        let kept = old.and_then(|old| old.str_at(&["spec", "clusterIP"])).filter(|address| !address.is_empty());
        wanted = first.or(kept).unwrap_or("").to_owned();
    }
    let networks = networks(registry)?;
    if wanted == "None" {
        set_address(object, "None", networks.first());
        return Ok(());
    }
    if held.contains(&format!("{ADDRESS_BUCKET}/{wanted}")) {
        set_address(object, &wanted, networks.first());
        return Ok(());
    }
    let address = if wanted.is_empty() {
        free_address(registry, &networks)?
    } else {
        match usable(registry, &networks, &wanted) {
            Ok(address) => address,
            Err(why) => {
                let why = format!("failed to allocate IP {wanted}: {why}");
                errors.push(FieldError::invalid(Path::from("spec.clusterIPs"), json!([wanted]), why));
                return Ok(());
            }
        }
    };
    let text = address.to_string();
    set_address(object, &text, networks.first());
    claims.taken.push((format!("{ADDRESS_BUCKET}/{text}").into(), address_draft(registry, object, &address)?));
    Ok(())
}

fn set_address(object: &mut Object, address: &str, network: Option<&IpNet>) {
    object.set(&["spec", "clusterIP"], address);
    object.set(&["spec", "clusterIPs"], json!([address]));
    if object.get(&["spec", "ipFamilies"]).is_none() {
        let family = if matches!(network, Some(IpNet::V6(_))) { "IPv6" } else { "IPv4" };
        object.set(&["spec", "ipFamilies"], json!([family]));
    }
    if object.get(&["spec", "ipFamilyPolicy"]).is_none() {
        object.set(&["spec", "ipFamilyPolicy"], "SingleStack");
    }
}

/// The networks of all ServiceCIDRs that are not being deleted, the default one first.
fn networks(registry: &Registry) -> Result<Vec<IpNet>, ApiError> {
    let Some(kind) = registry.kinds.find("networking.k8s.io", "v1", "servicecidrs") else { return Ok(Vec::new()) };
    let snapshot = registry.store.snapshot();
    let mut found = Vec::new();
    for entry in snapshot.range(&prefix(&*kind, ""), None) {
        let object = encode::decode(&*kind, entry)?;
        let cidrs = object.get(&["spec", "cidrs"]).and_then(Value::as_array).into_iter().flatten();
        let parsed = cidrs.filter_map(|cidr| cidr.as_str()?.parse::<IpNet>().ok());
        let rank = usize::from(object.name() != DEFAULT_CIDR);
        if !object.is_deleting() {
            found.extend(parsed.map(|network| (rank, network)));
        }
    }
    found.sort_by_key(|(rank, _)| *rank);
    Ok(found.into_iter().map(|(_, network)| network).collect())
}

fn usable(registry: &Registry, networks: &[IpNet], wanted: &str) -> Result<IpAddr, String> {
    let address: IpAddr = wanted.parse().map_err(|_| "provided IP is not valid".to_owned())?;
    let Some(network) = networks.iter().find(|network| network.contains(&address)) else {
        let ranges: Vec<String> = networks.iter().map(ToString::to_string).collect();
        return Err(format!("provided IP is not in the valid range. The range of valid IPs is {}", ranges.join(", ")));
    };
    if address == network.network() || matches!(network, IpNet::V4(v4) if IpAddr::V4(v4.broadcast()) == address) {
        return Err(format!("provided IP is not in the valid range. The range of valid IPs is {network}"));
    }
    if registry.store.snapshot().get(&format!("{ADDRESS_BUCKET}/{address}")).is_some() {
        return Err("provided IP is already allocated".to_owned());
    }
    Ok(address)
}

/// A free address, at random above the band that is kept for addresses that clients choose.
fn free_address(registry: &Registry, networks: &[IpNet]) -> Result<IpAddr, ApiError> {
    let snapshot = registry.store.snapshot();
    let is_free = |address: &IpAddr| snapshot.get(&format!("{ADDRESS_BUCKET}/{address}")).is_none();
    for network in networks {
        let bits = u32::from(network.max_prefix_len() - network.prefix_len()).min(20);
        let size = 1_u64 << bits;
        let band = (size / 16).clamp(0, 256).max(if size > 16 { 16 } else { 0 });
        for _ in 0..RANDOM_TRIES {
            let offset = band + random::below(size.saturating_sub(band + 2).max(1)) + 1;
            if let Some(address) = nth(network, offset).filter(is_free) {
                return Ok(address);
            }
        }
        if let Some(address) = (1..size.saturating_sub(1)).filter_map(|offset| nth(network, offset)).find(is_free) {
            return Ok(address);
        }
    }
    Err(ApiError::internal("failed to allocate a serviceIP: range is full"))
}

fn nth(network: &IpNet, offset: u64) -> Option<IpAddr> {
    let address = match network {
        IpNet::V4(v4) => IpAddr::V4(u32::from(v4.network()).checked_add(u32::try_from(offset).ok()?)?.into()),
        IpNet::V6(v6) => IpAddr::V6(u128::from(v6.network()).checked_add(offset.into())?.into()),
    };
    network.contains(&address).then_some(address)
}

fn address_draft(registry: &Registry, service: &Object, address: &IpAddr) -> Result<Draft, ApiError> {
    let family = if address.is_ipv6() { "IPv6" } else { "IPv4" };
    let value = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "IPAddress",
        "metadata": {
            "name": address.to_string(), "uid": random::uid(), "creationTimestamp": meta::time_text(registry.clock.now()),
            "labels": {
                "ipaddress.kubernetes.io/ip-family": family,
                "ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io",
            },
        },
        "spec": {"parentRef": {
            "group": "", "resource": "services", "namespace": service.namespace(), "name": service.name(),
        }},
    });
    encode::plain(value)
}

fn claim_ports(
    registry: &Registry,
    object: &mut Object,
    held: &BTreeSet<String>,
    claims: &mut Claims,
    errors: &mut Vec<FieldError>,
) -> Result<(), ApiError> {
    let service_type = object.str_at(&["spec", "type"]).unwrap_or("ClusterIP").to_owned();
    let allocates = object.get(&["spec", "allocateLoadBalancerNodePorts"]) != Some(&Value::Bool(false));
    let owner = format!("{}/{}", object.namespace(), object.name());
    let mut ports = Ports { registry, held, owner, taken: BTreeSet::new(), claims };
    let Some(Value::Object(spec)) = object.0.get_mut("spec") else { return Ok(()) };
    let generate = service_type == "NodePort" || (service_type == "LoadBalancer" && allocates);
    let list = spec.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten();
    // Ports that differ only in protocol share one node port.
    let mut shared: Vec<(i64, i64)> = Vec::new();
    for (index, port) in list.enumerate() {
        let Value::Object(port) = port else { continue };
        let number = port.get("port").and_then(Value::as_i64).unwrap_or(0);
        let wanted = port.get("nodePort").and_then(Value::as_i64).unwrap_or(0);
        if wanted == 0 && !generate {
            continue;
        }
        let sibling = shared.iter().find(|(known, _)| *known == number).map(|(_, node_port)| *node_port);
        let path = || Path::new("spec").child("ports").index(index).child("nodePort");
        match ports.take(wanted, sibling)? {
            Ok(node_port) => {
                shared.push((number, node_port));
                port.insert("nodePort".to_owned(), node_port.into());
            }
            Err(why) => errors.push(FieldError::invalid(path(), wanted, why)),
        }
    }
    let is_local = spec.get("externalTrafficPolicy").and_then(Value::as_str) == Some("Local");
    if service_type == "LoadBalancer" && is_local {
        let wanted = spec.get("healthCheckNodePort").and_then(Value::as_i64).unwrap_or(0);
        match ports.take(wanted, None)? {
            Ok(port) => drop(spec.insert("healthCheckNodePort".to_owned(), port.into())),
            Err(why) => errors.push(FieldError::invalid(Path::from("spec.healthCheckNodePort"), wanted, why)),
        }
    }
    Ok(())
}

/// The node ports that one write takes.
struct Ports<'a> {
    registry: &'a Registry,
    held: &'a BTreeSet<String>,
    owner: String,
    taken: BTreeSet<i64>,
    claims: &'a mut Claims,
}

impl Ports<'_> {
    /// Takes `wanted`, or the sibling's port or any free one if it is 0. The inner error is for the client.
    fn take(&mut self, wanted: i64, sibling: Option<i64>) -> Result<Result<i64, String>, ApiError> {
        let port = match (wanted, sibling) {
            (0, Some(port)) => port,
            (0, None) => self.free()?,
            (port, _) => port,
        };
        if self.taken.contains(&port) || self.held.contains(&port_key(port)) {
            self.taken.insert(port);
            return Ok(Ok(port));
        }
        if !NODE_PORTS.contains(&port) {
            return Ok(Err(format!(
                "provided port is not in the valid range. The range of valid ports is {}-{}",
                NODE_PORTS.start(),
                NODE_PORTS.end()
            )));
        }
        if !self.is_free(port) {
            return Ok(Err("provided port is already allocated".to_owned()));
        }
        self.taken.insert(port);
        let draft = encode::plain(json!({"metadata": {"name": port.to_string()}, "service": self.owner}))?;
        self.claims.taken.push((port_key(port).into(), draft));
        Ok(Ok(port))
    }

    fn is_free(&self, port: i64) -> bool {
        !self.taken.contains(&port) && self.registry.store.snapshot().get(&port_key(port)).is_none()
    }

    fn free(&self) -> Result<i64, ApiError> {
        let span = u64::try_from(NODE_PORTS.end() - NODE_PORTS.start() + 1).unwrap_or(1);
        let at_random = || NODE_PORTS.start() + i64::try_from(random::below(span)).unwrap_or(0);
        (0..RANDOM_TRIES)
            .map(|_| at_random())
            .chain(NODE_PORTS)
            .find(|port| self.is_free(*port))
            .ok_or_else(|| ApiError::internal("failed to allocate a nodePort: range is full"))
    }
}

/// Name of the ServiceCIDR that the server makes.
const DEFAULT_CIDR: &str = "kubernetes";

impl Registry {
    /// Makes the ServiceCIDR `kubernetes` if it is not there.
    ///
    /// # Errors
    /// When the write fails; that it is there already is none.
    pub async fn ensure_service_cidr(&self, cidr: &str) -> Result<(), ApiError> {
        let Some(kind) = self.kinds.find("networking.k8s.io", "v1", "servicecidrs") else { return Ok(()) };
        if self.get(&*kind, "", DEFAULT_CIDR).is_ok() {
            return Ok(());
        }
        let user = Arc::new(UserInfo::new("system:apiserver", &["system:masters"]));
        let request = WriteRequest::new(kind, "", DEFAULT_CIDR, user);
        let object = json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
            "metadata": {"name": DEFAULT_CIDR}, "spec": {"cidrs": [cidr]},
        });
        match self.create(&request, Object(object.as_object().cloned().unwrap_or_default())).await {
            Err(error) if !error.is_already_exists() => Err(error),
            _ => Ok(()),
        }
    }
}
