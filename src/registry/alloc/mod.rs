//! Cluster addresses and node ports of Services: claimed in the transaction that writes the Service, so no two can take the same.
//!
//! An address is an IPAddress object, as since Kubernetes 1.33; a node port is a key of its own that no API shows.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::{Value, json};

use super::{Registry, WriteRequest};
use crate::api::{ApiError, Kind, Object};
use crate::auth::UserInfo;
use crate::store::{Draft, Guard, Write};

mod address;
mod ports;

use address::ADDRESS_BUCKET;
pub use ports::PortRange;

const NODE_PORT_BUCKET: &str = "core/nodeports";

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
        address::claim(registry, object, old, &held, &mut claims, &mut errors)?;
    }
    ports::claim(registry, object, &held, &mut claims, &mut errors)?;
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
