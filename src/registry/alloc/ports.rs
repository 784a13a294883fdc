//! The node ports of a Service.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::super::{Registry, encode};
use super::{Claims, port_key};
use crate::api::field::{FieldError, Path};
use crate::api::{ApiError, Object};
use crate::rt::random;

/// Node ports that are handed out (`--service-node-port-range`).
const NODE_PORTS: std::ops::RangeInclusive<i64> = 30_000..=32_767;
/// Ports at the start of the range that are handed out last: a 32nd of it, as upstream.
const BAND: i64 = 86;

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

    /// A free port, from a random place on: above the band that is kept for ports that clients choose, then in it.
    fn free(&self) -> Result<i64, ApiError> {
        let (first, upper) = (*NODE_PORTS.start(), NODE_PORTS.start() + BAND);
        let span = NODE_PORTS.end() - upper + 1;
        let start = upper + i64::try_from(random::below(u64::try_from(span).unwrap_or(1))).unwrap_or(0);
        (start..=*NODE_PORTS.end())
            .chain(upper..start)
            .chain(first..upper)
            .find(|port| self.is_free(*port))
            .ok_or_else(|| ApiError::internal("failed to allocate a nodePort: range is full"))
    }
}
