//! What a new cluster needs to have: namespaces, RBAC, priority classes, the Service `kubernetes` and its endpoints. Written
//! through the registry as `system:apiserver`, all at once, so that the writes share their fsyncs.

use std::sync::Arc;

use futures_util::future::try_join_all;
use serde_json::{Value, json};

use super::Server;
use crate::api::{ApiError, Kind, Object};
use crate::auth::UserInfo;
use crate::auth::authz::rules;
use crate::registry::{DeleteOptions, Registry, WriteRequest};

pub mod identity;
mod rbac;

const NAMESPACES: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];
/// Key of a role that is there when the cluster has been set up once.
pub(super) const SETUP_ROLE: &str = "rbac.authorization.k8s.io/clusterroles/cluster-admin";
/// Tries of a write that somebody else's came before.
const ATTEMPTS: usize = 5;

/// Creates what is missing, adds to default roles the rules that they lack, and sets the endpoints of the Service `kubernetes`.
/// To be called by a new leader; cheap when nothing is missing.
///
/// # Errors
/// Those of the registry: try again.
pub async fn run(server: &Arc<Server>) -> Result<(), ApiError> {
    let writer = writer(server);
    // The others stand in these, and a claim of the Service's address may need the range.
    let first = NAMESPACES.iter().map(|name| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}));
    let range = server.config.service_cidr.trunc().to_string();
    let namespaces = try_join_all(first.map(|object| writer.ensure(object)));
    futures_util::future::try_join(namespaces, server.registry.ensure_service_cidr(&range)).await?;
    let roles = rbac::objects().map_err(ApiError::internal)?;
    let rest = roles.into_iter().chain(priority_classes()).chain([authentication_config(server)]);
    futures_util::future::try_join3(
        try_join_all(rest.map(|object| writer.ensure(object))),
        writer.ensure(kubernetes_service(server)),
        writer.ensure_dns(server),
    )
    .await?;
    writer.set(cluster_config(server), &["data"]).await?;
    identity::register(server).await
}

/// Writes as the API server itself.
fn writer(server: &Server) -> Writer<'_> {
    let user = Arc::new(UserInfo::new("system:apiserver", &["system:masters", "system:authenticated"]));
    Writer { registry: &server.registry, user }
}

struct Writer<'a> {
    registry: &'a Arc<Registry>,
    user: Arc<UserInfo>,
}

impl Writer<'_> {
    fn kind(&self, object: &Object) -> Result<Arc<dyn Kind>, ApiError> {
        let (group, version) = object.api_version().split_once('/').unwrap_or(("", object.api_version()));
        let found = self.registry.kinds().find_kind(group, version, object.kind());
        found.ok_or_else(|| ApiError::internal(format!("no kind {} in {}", object.kind(), object.api_version())))
    }

    /// Creates the object if it is not there, and adds missing rules to a role that is.
    async fn ensure(&self, value: Value) -> Result<(), ApiError> {
        let Value::Object(map) = value else { return Ok(()) };
        let object = Object(map);
        let kind = self.kind(&object)?;
        for _ in 0..ATTEMPTS {
            let done = match self.registry.get_object(&*kind, object.namespace(), object.name()) {
                Ok(present) => self.add_rules(&kind, present, &object).await,
                Err(error) if error.is_not_found() => self.create(&kind, object.clone()).await,
                Err(error) => Err(error),
            };
            match done {
                Err(error) if error.is_already_exists() || error.is_conflict() => {}
                other => return other,
            }
        }
        Err(ApiError::conflict(&kind.names().group_resource(), object.name(), "it changes all the time"))
    }

    /// A cluster is of use without this Service, whose address somebody else's may have: DNS answers at the address nevertheless.
    async fn ensure_dns(&self, server: &Server) -> Result<(), ApiError> {
        if !server.config.service_cidr.contains(&server.config.cluster_dns) {
            return Ok(());
        }
        match self.ensure(dns_service(server)).await {
            Err(error) if error.code == 422 => {
                tracing::warn!(%error, "the Service kube-system/kube-dns cannot be made");
                Ok(())
            }
            result => result,
        }
    }

    async fn create(&self, kind: &Arc<dyn Kind>, object: Object) -> Result<(), ApiError> {
        let request = WriteRequest::new(Arc::clone(kind), object.namespace(), object.name(), Arc::clone(&self.user));
        self.registry.create(&request, object).await.map(drop)
    }

    async fn update(&self, kind: &Arc<dyn Kind>, object: Object) -> Result<(), ApiError> {
        let request = WriteRequest::new(Arc::clone(kind), object.namespace(), object.name(), Arc::clone(&self.user));
        self.registry.update(&request, object).await.map(drop)
    }

    /// As upstream's reconciliation at start: a default role gets back the rules it lacks, unless its owner said not to.
    async fn add_rules(&self, kind: &Arc<dyn Kind>, mut present: Object, wanted: &Object) -> Result<(), ApiError> {
        let is_role = matches!(kind.names().kind, "ClusterRole" | "Role") && wanted.0.get("aggregationRule").is_none();
        if !is_role || present.annotation("rbac.authorization.kubernetes.io/autoupdate") == Some("false") {
            return Ok(());
        }
        let mut all = rules::of(&present)?;
        let lacking = rules::uncovered(&all, &rules::of(wanted)?);
        if lacking.is_empty() {
            return Ok(());
        }
        all.extend(lacking);
        present.set(&["rules"], serde_json::to_value(all).map_err(ApiError::internal)?);
        self.update(kind, present).await
    }

    /// Creates the object, or gives the one that is there its values of `fields` and its labels and annotations.
    async fn set(&self, value: Value, fields: &[&str]) -> Result<(), ApiError> {
        let Value::Object(map) = value else { return Ok(()) };
        let wanted = Object(map);
        let kind = self.kind(&wanted)?;
        for _ in 0..ATTEMPTS {
            let done = match self.registry.get_object(&*kind, wanted.namespace(), wanted.name()) {
                Ok(present) => match restored(&present, &wanted, fields) {
                    Some(object) => self.update(&kind, object).await,
                    None => Ok(()),
                },
                Err(error) if error.is_not_found() => self.create(&kind, wanted.clone()).await,
                Err(error) => Err(error),
            };
            match done {
                Err(error) if error.is_already_exists() || error.is_conflict() => {}
                other => return other,
            }
        }
        Err(ApiError::conflict(&kind.names().group_resource(), wanted.name(), "it changes all the time"))
    }

    /// Deletes an object, if it is there.
    async fn remove(&self, group: &str, plural: &str, (namespace, name): (&str, &str)) -> Result<(), ApiError> {
        let Some(kind) = self.registry.kinds().find(group, "v1", plural) else { return Ok(()) };
        let request = WriteRequest::new(kind, namespace, name, Arc::clone(&self.user));
        match self.registry.delete(&request, &DeleteOptions::default()).await {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }
}

/// The present object with what is wanted of it; `None` if it has all.
fn restored(present: &Object, wanted: &Object, fields: &[&str]) -> Option<Object> {
    let mut object = present.clone();
    for field in fields {
        object.0.insert((*field).to_owned(), wanted.0.get(*field).cloned().unwrap_or(Value::Null));
    }
    for map in ["labels", "annotations"] {
        for (key, value) in wanted.get(&["metadata", map]).and_then(Value::as_object).into_iter().flatten() {
            object.set(&["metadata", map, key], value.clone());
        }
    }
    (object != *present).then_some(object)
}

fn priority_classes() -> impl Iterator<Item = Value> {
    let node = "Used for system critical pods that must not be moved from their current node.";
    let cluster = "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.";
    let classes = [("system-node-critical", 2_000_001_000, node), ("system-cluster-critical", 2_000_000_000, cluster)];
    classes.into_iter().map(|(name, value, description)| {
        json!({
            "apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": name},
            "value": value, "description": description, "preemptionPolicy": "PreemptLowerPriority",
        })
    })
}

/// What an extension API server needs to know of whom to believe.
fn authentication_config(server: &Server) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "extension-apiserver-authentication", "namespace": "kube-system"},
        "data": {"client-ca-file": server.client_ca.certificate_pem()},
    })
}

/// What a node that joins is told: the settings that are the same on every node, under the names of the flags.
fn cluster_config(server: &Server) -> Value {
    let config = &server.config;
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "orch-cluster", "namespace": "kube-system"},
        "data": {
            "cluster-cidr": config.cluster_cidr.to_string(),
            "service-cidr": config.service_cidr.to_string(),
            "cluster-dns": config.cluster_dns.to_string(),
            "cluster-domain": config.cluster_domain,
        },
    })
}

fn kubernetes_service(server: &Server) -> Value {
    let address = server.config.kubernetes_service_ip().to_string();
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": {"component": "apiserver", "provider": "kubernetes"}},
        "spec": {
            "type": "ClusterIP", "clusterIP": address, "clusterIPs": [address],
            "ipFamilies": [if server.config.service_cidr.addr().is_ipv4() { "IPv4" } else { "IPv6" }],
            "ipFamilyPolicy": "SingleStack", "sessionAffinity": "None",
            "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": server.config.advertise.port()}],
        },
    })
}

/// The Service by which users know the cluster's DNS. The agents answer at its address themselves: it has no endpoints, and the label
/// says that no Service proxy is to touch it.
fn dns_service(server: &Server) -> Value {
    let address = server.config.cluster_dns;
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "kube-dns", "namespace": "kube-system", "labels": {
            "k8s-app": "kube-dns", "kubernetes.io/cluster-service": "true", "kubernetes.io/name": "KubeDNS",
            "service.kubernetes.io/service-proxy-name": "orch-dns",
        }},
        "spec": {
            "type": "ClusterIP", "clusterIP": address, "clusterIPs": [address],
            "ipFamilies": [if address.is_ipv4() { "IPv4" } else { "IPv6" }],
            "ipFamilyPolicy": "SingleStack", "sessionAffinity": "None",
            "ports": [
                {"name": "dns", "port": 53, "protocol": "UDP", "targetPort": 53},
                {"name": "dns-tcp", "port": 53, "protocol": "TCP", "targetPort": 53},
            ],
        },
    })
}
