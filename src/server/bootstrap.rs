//! What every cluster has from its first start: namespaces, RBAC, priority classes, the Service `kubernetes`. Created where it is
//! missing, through the registry like everything else; rules that upstream marks `autoupdate` are restored where they changed.

use std::net::IpAddr;
use std::sync::Arc;

use futures_util::future::try_join_all;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Server, ServerConfig};
use crate::api::{ApiError, Object};
use crate::auth::UserInfo;
use crate::registry::{Registry, WriteRequest};

/// Namespaces, roles, bindings and priority classes, as a stream of YAML documents.
const OBJECTS: &str = include_str!("../../assets/bootstrap/objects.yaml");
const AUTO_UPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";

/// Makes what is missing. Costs a few group commits on a new store, and reads only on one that has everything.
///
/// # Errors
/// What the registry answers; safe to try again.
pub async fn run(server: &Arc<Server>) -> Result<(), ApiError> {
    let (registry, config) = (&server.registry, &server.config);
    let user = Arc::new(UserInfo::new("system:apiserver", &["system:masters"]));
    let objects = objects()?;
    let (namespaces, others): (Vec<_>, Vec<_>) = objects.into_iter().partition(|object| object.kind() == "Namespace");
    let range = config.service_cidr.to_string();
    let first = namespaces.into_iter().map(|object| ensure(registry, &user, object));
    futures_util::future::try_join(try_join_all(first), registry.ensure_service_cidr(&range)).await?;
    let endpoints = kubernetes_endpoints(config);
    let rest = others.into_iter().chain(std::iter::once(kubernetes_service(config))).chain(endpoints);
    try_join_all(rest.map(|object| ensure(registry, &user, object))).await?;
    Ok(())
}

fn objects() -> Result<Vec<Object>, ApiError> {
    let parse =
        |document| Value::deserialize(document).and_then(|value| serde_json::from_value(value).map_err(serde::de::Error::custom));
    serde_yaml::Deserializer::from_str(OBJECTS)
        .map(parse)
        .collect::<Result<Vec<Object>, serde_yaml::Error>>()
        .map_err(ApiError::internal)
}

/// Creates an object that is missing, and restores what must not differ of one that is there.
async fn ensure(registry: &Arc<Registry>, user: &Arc<UserInfo>, object: Object) -> Result<(), ApiError> {
    let (group, version) = object.api_version().split_once('/').unwrap_or(("", object.api_version()));
    let kind = registry.kinds().find_kind(group, version, object.kind());
    let kind =
        kind.ok_or_else(|| ApiError::internal(format!("bootstrap: no kind {} of {:?}", object.kind(), object.api_version())))?;
    let (namespace, name) = (object.namespace().to_owned(), object.name().to_owned());
    let mut request = WriteRequest::new(Arc::clone(&kind), &namespace, &name, Arc::clone(user));
    match registry.get(&*kind, &namespace, &name) {
        Ok(entry) => {
            let mut present = Object::from_json(&entry.bytes)?;
            if !restore(&mut present, &object) {
                return Ok(());
            }
            registry.update(&request, present).await?;
        }
        Err(error) if error.is_not_found() => {
            request.name.clear();
            match registry.create(&request, object).await {
                Err(error) if !error.is_already_exists() => return Err(error),
                _ => {}
            }
        }
        Err(error) => return Err(error),
    }
    Ok(())
}

/// Puts back what must be as wanted; whether anything changed.
fn restore(present: &mut Object, wanted: &Object) -> bool {
    let fields: &[&str] = match present.kind() {
        "ClusterRole" | "Role"
            if present.annotation(AUTO_UPDATE) == Some("true") && wanted.get(&["aggregationRule"]).is_none() =>
        {
            &["rules"]
        }
        "Endpoints" => &["subsets"],
        "EndpointSlice" => &["endpoints", "ports"],
        _ => &[],
    };
    let mut changed = false;
    for field in fields {
        if present.0.get(*field) != wanted.0.get(*field) {
            present.0.insert((*field).to_owned(), wanted.0.get(*field).cloned().unwrap_or(Value::Null));
            changed = true;
        }
    }
    changed
}

fn kubernetes_service(config: &ServerConfig) -> Object {
    object(json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": {"component": "apiserver", "provider": "kubernetes"}},
        "spec": {
            "type": "ClusterIP", "clusterIP": config.kubernetes_service_ip().to_string(), "sessionAffinity": "None",
            "ports": [{"name": "https", "protocol": "TCP", "port": 443, "targetPort": config.advertise.port()}],
        },
    }))
}

/// Where the servers are; no selector finds them.
fn kubernetes_endpoints(config: &ServerConfig) -> [Object; 2] {
    let (ip, port) = (config.advertise.ip(), config.advertise.port());
    let family = if matches!(ip, IpAddr::V4(_)) { "IPv4" } else { "IPv6" };
    let endpoints = json!({
        "apiVersion": "v1", "kind": "Endpoints",
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}},
        "subsets": [{"addresses": [{"ip": ip.to_string()}], "ports": [{"name": "https", "port": port, "protocol": "TCP"}]}],
    });
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": family,
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": {"kubernetes.io/service-name": "kubernetes"}},
        "endpoints": [{"addresses": [ip.to_string()], "conditions": {"ready": true}}],
        "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
    });
    [object(endpoints), object(slice)]
}

fn object(value: Value) -> Object {
    match value {
        Value::Object(map) => Object(map),
        _ => Object::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documents_are_objects_with_names() {
        let objects = objects().unwrap();
        assert!(objects.len() > 50);
        assert!(objects.iter().all(|object| !object.kind().is_empty() && !object.name().is_empty()));
    }
}
