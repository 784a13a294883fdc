//! The cluster address of a Service, and its families.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::{Value, json};

use super::super::{Registry, encode, prefix};
use super::{Claims, DEFAULT_CIDR};
use crate::api::field::{FieldError, Path};
use crate::api::{ApiError, Object, meta};
use crate::rt::random;
use crate::store::Draft;

pub(super) const ADDRESS_BUCKET: &str = "networking.k8s.io/ipaddresses";
/// Addresses of a range that are looked at: a larger range is used only in part.
const MOST_BITS: u32 = 20;

/// Fills in and claims the address.
pub(super) fn claim(
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
    let before = errors.len();
    let family = set_families(object, &wanted, &networks, errors);
    if errors.len() > before {
        return Ok(());
    }
    if wanted == "None" || held.contains(&format!("{ADDRESS_BUCKET}/{wanted}")) {
        set_address(object, &wanted);
        return Ok(());
    }
    let address = if wanted.is_empty() {
        free_address(registry, networks.iter().filter(|network| family_of(network.addr()) == family))?
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
    set_address(object, &text);
    claims.taken.push((format!("{ADDRESS_BUCKET}/{text}").into(), address_draft(registry, object, &address)?));
    Ok(())
}

fn set_address(object: &mut Object, address: &str) {
    object.set(&["spec", "clusterIP"], address);
    object.set(&["spec", "clusterIPs"], json!([address]));
}

fn family_of(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "IPv4" } else { "IPv6" }
}

/// Sets `ipFamilies` and `ipFamilyPolicy` where the client did not, checks what it did set, and returns the family of the address:
/// upstream's `initIPFamilyFields` for a cluster of one family.
fn set_families(object: &mut Object, wanted: &str, networks: &[IpNet], errors: &mut Vec<FieldError>) -> String {
    let main = networks.first().map_or("IPv4", |network| family_of(network.addr())).to_owned();
    let has = |family: &str| networks.iter().any(|network| family_of(network.addr()) == family);
    let list = |field: &str| {
        let list = object.get(&["spec", field]).and_then(Value::as_array);
        list.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect::<Vec<_>>()
    };
    let (mut families, addresses) = (list("ipFamilies"), list("clusterIPs"));
    let selects = object.get(&["spec", "selector"]).and_then(Value::as_object).is_some_and(|selector| !selector.is_empty());
    let is_free = wanted == "None" && !selects;
    let policy = object.str_at(&["spec", "ipFamilyPolicy"]).map(str::to_owned);
    // Whoever writes the endpoints of a headless Service may give them any address; who gives two of something means both.
    let is_dual = is_free || families.len() > 1 || addresses.len() > 1;
    let otherwise = if is_dual { "RequireDualStack" } else { "SingleStack" };
    let policy = policy.unwrap_or_else(|| otherwise.to_owned());
    for (what, count) in [("clusterIPs", addresses.len()), ("ipFamilies", families.len())] {
        if policy == "SingleStack" && count > 1 {
            let why = format!("must be RequireDualStack or PreferDualStack when multiple '{what}' are specified");
            errors.push(FieldError::invalid(Path::from("spec.ipFamilyPolicy"), policy.as_str(), why));
        }
    }
    let given = families.len();
    for (index, address) in addresses.iter().enumerate().skip(given) {
        let Ok(family) = address.parse().map(family_of) else { break };
        if !has(family) {
            let why = format!("{family} is not configured on this cluster");
            errors.push(FieldError::invalid(Path::new("spec").child("clusterIPs").index(index), json!(addresses), why));
        }
        families.push(family.to_owned());
    }
    if families.is_empty() {
        families.push(main.clone());
    }
    if is_free {
        if policy != "SingleStack" && families.len() == 1 {
            families.push(if families[0] == "IPv4" { "IPv6" } else { "IPv4" }.to_owned());
        }
    } else if errors.is_empty() {
        if policy == "RequireDualStack" {
            let why = "this cluster is not configured for dual-stack services";
            errors.push(FieldError::invalid(Path::from("spec.ipFamilyPolicy"), "RequireDualStack", why));
        }
        for (index, family) in families.iter().enumerate().filter(|(_, family)| !has(family)) {
            let path = Path::new("spec").child("ipFamilies").index(index);
            errors.push(FieldError::invalid(path, family.as_str(), "not configured on this cluster"));
        }
    }
    object.set(&["spec", "ipFamilyPolicy"], policy);
    let first = families.first().cloned().unwrap_or(main);
    object.set(&["spec", "ipFamilies"], json!(families));
    first
}

/// The networks of all ServiceCIDRs that are ready and not being deleted, the default one first.
fn networks(registry: &Registry) -> Result<Vec<IpNet>, ApiError> {
    let Some(kind) = registry.kinds.find("networking.k8s.io", "v1", "servicecidrs") else { return Ok(Vec::new()) };
    let snapshot = registry.store.snapshot();
    let mut found = Vec::new();
    for entry in snapshot.range(&prefix(&*kind, ""), None) {
        let object = encode::decode(&*kind, entry)?;
        let cidrs = object.get(&["spec", "cidrs"]).and_then(Value::as_array).into_iter().flatten();
        let parsed = cidrs.filter_map(|cidr| cidr.as_str()?.parse::<IpNet>().ok());
        let rank = usize::from(object.name() != DEFAULT_CIDR);
        let conditions = object.get(&["status", "conditions"]).and_then(Value::as_array).into_iter().flatten();
        // One that no controller has looked at yet counts as ready.
        let is_unready = conditions.into_iter().any(|one| one["type"] == "Ready" && one["status"] != "True");
        if !object.is_deleting() && !is_unready {
            found.extend(parsed.map(|network| (rank, network)));
        }
    }
    found.sort_by_key(|(rank, _)| *rank);
    Ok(found.into_iter().map(|(_, network)| network).collect())
}

fn usable(registry: &Registry, networks: &[IpNet], wanted: &str) -> Result<IpAddr, String> {
    let address: IpAddr = wanted.parse().map_err(|_| "provided IP is not valid".to_owned())?;
    let containing: Vec<&IpNet> = networks.iter().filter(|network| network.contains(&address)).collect();
    let Some(first) = containing.first() else {
        return Err("the provided network does not match the current range".to_owned());
    };
    let is_edge = |network: &IpNet| {
        address == network.network() || matches!(network, IpNet::V4(v4) if IpAddr::V4(v4.broadcast()) == address)
    };
    if containing.iter().all(|network| is_edge(network)) {
        return Err(format!(
            "the provided IP ({address}) is not in the valid range. The range of valid IPs is {}",
            first.trunc()
        ));
    }
    if registry.store.snapshot().get(&format!("{ADDRESS_BUCKET}/{address}")).is_some() {
        return Err("provided IP is already allocated".to_owned());
    }
    Ok(address)
}

/// How many addresses at the start of a range are handed out last, so that clients can choose them: upstream's
/// `calculateRangeOffset`.
fn band(size: u64) -> u64 {
    if size <= 16 { 0 } else { (size / 16).clamp(16, 256) }
}

/// A free address, from a random place on: above the band that is kept for addresses that clients choose, then in it.
fn free_address<'a>(registry: &Registry, networks: impl Iterator<Item = &'a IpNet>) -> Result<IpAddr, ApiError> {
    let snapshot = registry.store.snapshot();
    let is_free = |address: &IpAddr| snapshot.get(&format!("{ADDRESS_BUCKET}/{address}")).is_none();
    for network in networks {
        let bits = u32::from(network.max_prefix_len() - network.prefix_len()).min(MOST_BITS);
        // Neither the network's own address nor, with IPv4, that of broadcasts.
        let last = (1_u64 << bits).saturating_sub(if matches!(network, IpNet::V4(_)) { 2 } else { 1 });
        let upper = 1 + band(last);
        let start = upper + random::below((last + 1).saturating_sub(upper).max(1));
        let order = (start..=last).chain(upper..start).chain(1..upper);
        if let Some(address) = order.filter_map(|offset| nth(network, offset)).find(is_free) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bands_are_upstreams() {
        for (size, expected) in [(6, 0), (16, 0), (30, 16), (254, 16), (1_022, 63), (65_534, 256)] {
            assert_eq!(band(size), expected, "{size}");
        }
    }
}
