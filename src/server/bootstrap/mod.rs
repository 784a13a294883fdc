//! What a new cluster needs to have: namespaces, RBAC, priority classes, the Service `kubernetes` and its endpoints. Written
//! through the registry as `system:apiserver`, all at once, so that the writes share their fsyncs.

use std::sync::Arc;

use futures_util::future::try_join_all;
use serde_json::{Value, json};

use super::Server;
use crate::api::{ApiError, Kind, Object};
use crate::auth::UserInfo;
use crate::auth::authz::rules;
use crate::kinds::storage::local_path;
use crate::registry::{Registry, WriteRequest};

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
    let user = Arc::new(UserInfo::new("system:apiserver", &["system:masters", "system:authenticated"]));
    let writer = Writer { registry: &server.registry, user };
    // The others stand in these, and a claim of the Service's address may need the range.
    let first = NAMESPACES.iter().map(|name| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}));
    let range = server.config.service_cidr.trunc().to_string();
    let namespaces = try_join_all(first.map(|object| writer.ensure(object)));
    futures_util::future::try_join(namespaces, server.registry.ensure_service_cidr(&range)).await?;
    let roles = rbac::objects().map_err(ApiError::internal)?;
    let rest = roles.into_iter().chain(priority_classes()).chain([authentication_config(server), storage_class()]);
    futures_util::future::try_join(
        try_join_all(rest.map(|object| writer.ensure(object))),
        writer.ensure(kubernetes_service(server)),
    )
    .await?;
    futures_util::future::try_join(writer.set(endpoints(server), "subsets"), writer.set_slice(server)).await?;
    Ok(())
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

    /// Creates the object, or gives the one that is there its value of `field`.
    async fn set(&self, value: Value, field: &str) -> Result<(), ApiError> {
        let Value::Object(map) = value else { return Ok(()) };
        let wanted = Object(map);
        let kind = self.kind(&wanted)?;
        for _ in 0..ATTEMPTS {
            let done = match self.registry.get_object(&*kind, wanted.namespace(), wanted.name()) {
                Ok(present) if present.0.get(field) == wanted.0.get(field) => Ok(()),
                Ok(mut present) => {
                    present.0.insert(field.to_owned(), wanted.0.get(field).cloned().unwrap_or(Value::Null));
                    self.update(&kind, present).await
                }
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

    async fn set_slice(&self, server: &Server) -> Result<(), ApiError> {
        let slice = endpoint_slice(server);
        self.set(slice.clone(), "endpoints").await?;
        self.set(slice, "ports").await
    }
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

/// The class of claims that name none: directories of the node on which the pod runs.
fn storage_class() -> Value {
    json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass",
        "metadata": {"name": local_path::CLASS, "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}},
        "provisioner": local_path::PROVISIONER, "reclaimPolicy": "Delete", "volumeBindingMode": "WaitForFirstConsumer",
        "allowVolumeExpansion": true,
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

fn endpoints(server: &Server) -> Value {
    let advertise = server.config.advertise;
    json!({
        "apiVersion": "v1", "kind": "Endpoints",
        "metadata": {
            "name": "kubernetes", "namespace": "default",
            "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"},
        },
        "subsets": [{
            "addresses": [{"ip": advertise.ip().to_string()}],
            "ports": [{"name": "https", "port": advertise.port(), "protocol": "TCP"}],
        }],
    })
}

fn endpoint_slice(server: &Server) -> Value {
    let advertise = server.config.advertise;
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": {"kubernetes.io/service-name": "kubernetes"}},
        "addressType": if advertise.is_ipv4() { "IPv4" } else { "IPv6" },
        "endpoints": [{"addresses": [advertise.ip().to_string()], "conditions": {"ready": true}}],
        "ports": [{"name": "https", "port": advertise.port(), "protocol": "TCP"}],
    })
}
