//! The node ports of a Service.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::super::{Registry, encode};
use super::{Claims, port_key};
use crate::api::field::{FieldError, Path};
use crate::api::{ApiError, Object};
use crate::rt::random;

/// A range of ports, both ends in it (upstream's `utilnet.PortRange`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    /// The node ports where `--service-node-port-range` says nothing.
    pub const NODE_PORTS: Self = Self { first: 30_000, last: 32_767 };

    fn contains(self, port: i64) -> bool {
        (i64::from(self.first)..=i64::from(self.last)).contains(&port)
    }

    /// How many ports at the start are handed out last, so that clients can choose them: upstream's `calculateRangeOffset`.
    fn band(self) -> u16 {
        match (self.last - self.first).saturating_add(1) {
            0..=16 => 0,
            size => (size / 32).clamp(16, 128),
        }
    }
}

impl std::fmt::Display for PortRange {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}-{}", self.first, self.last)
    }
}

impl std::str::FromStr for PortRange {
    type Err = String;

    /// Reads `30000-32767`, `30000+2767` or a single port.
    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let wrong = || format!("unable to parse port range: {text}");
        let number = |text: &str| text.trim().parse::<u32>().map_err(|_| wrong());
        let (first, last) = match (text.split_once('-'), text.split_once('+')) {
            (None, None) => (number(text)?, number(text)?),
            (Some((first, last)), None) => (number(first)?, number(last)?),
            (None, Some((first, more))) => (number(first)?, number(first)?.saturating_add(number(more)?)),
            (Some(_), Some(_)) => return Err(wrong()),
        };
        if last < first {
            return Err(format!("end port cannot be less than start port: {text}"));
        }
        let port =
            |number: u32| u16::try_from(number).map_err(|_| format!("the port range cannot be greater than 65535: {text}"));
        let (first, last) = (port(first)?, port(last)?);
        if first == 0 { Err(format!("the port range cannot begin with 0: {text}")) } else { Ok(Self { first, last }) }
    }
}

/// Fills in and claims the node ports.
pub(super) fn claim(
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
        let range = self.registry.node_ports;
        if !range.contains(port) {
            return Ok(Err(format!("provided port is not in the valid range. The range of valid ports is {range}")));
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

    /// A free port, from a random place on: above the band that is kept for ports that clients choose, then in it.
    fn free(&self) -> Result<i64, ApiError> {
        let range = self.registry.node_ports;
        let (first, last) = (i64::from(range.first), i64::from(range.last));
        let upper = first + i64::from(range.band());
        let start = upper + i64::try_from(random::below(u64::try_from(last - upper + 1).unwrap_or(1))).unwrap_or(0);
        (start..=last)
            .chain(upper..start)
            .chain(first..upper)
            .find(|port| self.is_free(*port))
            .ok_or_else(|| ApiError::internal("failed to allocate a nodePort: range is full"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_upstreams() {
        for (text, expected) in [
            ("30000-32767", Ok("30000-32767")),
            ("30000+2767", Ok("30000-32767")),
            (" 8080 ", Ok("8080-8080")),
            ("1-65535", Ok("1-65535")),
            ("100-99", Err("end port cannot be less than start port: 100-99")),
            ("1-65536", Err("the port range cannot be greater than 65535: 1-65536")),
            ("1-2+3", Err("unable to parse port range: 1-2+3")),
            ("a-b", Err("unable to parse port range: a-b")),
            ("0-9", Err("the port range cannot begin with 0: 0-9")),
        ] {
            let read = text.parse::<PortRange>().map(|range| range.to_string());
            assert_eq!(read, expected.map(str::to_owned).map_err(str::to_owned), "{text}");
        }
    }

    #[test]
    fn bands_are_upstreams() {
        for (text, expected) in [("30000-32767", 86), ("1-16", 0), ("1-17", 16), ("1-1024", 32), ("1-65535", 128)] {
            assert_eq!(text.parse::<PortRange>().unwrap().band(), expected, "{text}");
        }
    }
}
