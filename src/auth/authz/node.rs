//! What a node may do: read what its own pods refer to, and write its own objects. Follows upstream's
//! `plugin/pkg/auth/authorizer/node` and its admission plugin `NodeRestriction` where they read the request's path alone.

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod, Volume};

use crate::api::Object;
use crate::auth::{Attributes, decode};
use crate::kinds::{certificates, core};
use crate::store::Snapshot;

/// Where a node opens its own tunnel; the handler takes the node's name from the user.
const TUNNEL: &str = "/orch/v1/tunnel";

/// What the node authorizer says.
pub(super) enum Verdict {
    Allow,
    /// Refused, whatever RBAC says.
    Deny(String),
    NoOpinion(Option<String>),
}

/// Rules that need no look at objects: (group, resource, subresource, verbs). `*` is any subresource.
const PLAIN: &[(&str, &str, &str, &[&str])] = &[
    ("authentication.k8s.io", "tokenreviews", "", &["create"]),
    ("authorization.k8s.io", "subjectaccessreviews", "", &["create"]),
    ("authorization.k8s.io", "localsubjectaccessreviews", "", &["create"]),
    ("", "services", "", &["get", "list", "watch"]),
    ("discovery.k8s.io", "endpointslices", "", &["get", "list", "watch"]),
    ("", "endpoints", "", &["get", "list", "watch"]),
    ("", "namespaces", "", &["get", "list", "watch"]),
    ("", "nodes", "", &["create", "get", "list", "watch"]),
    ("", "events", "", &["create", "update", "patch"]),
    ("events.k8s.io", "events", "", &["create", "update", "patch"]),
    ("certificates.k8s.io", "certificatesigningrequests", "", &["create", "get", "list", "watch"]),
    // For its own pods alone, which admission sees to: the request's path does not say for which.
    ("certificates.k8s.io", "podcertificaterequests", "", &["create"]),
    ("certificates.k8s.io", "clustertrustbundles", "", &["get", "list", "watch"]),
    ("node.k8s.io", "runtimeclasses", "", &["get", "list", "watch"]),
    ("storage.k8s.io", "csidrivers", "", &["get", "list", "watch"]),
    ("networking.k8s.io", "networkpolicies", "", &["get", "list", "watch"]),
];

/// Decides for the node `node`.
pub(super) fn authorize(node: &str, wanted: &Attributes, snapshot: &Snapshot) -> Verdict {
    if !wanted.is_resource {
        let is_own = wanted.verb == "get" && wanted.path == TUNNEL;
        return if is_own { Verdict::Allow } else { Verdict::NoOpinion(None) };
    }
    let Attributes { verb, group, resource, subresource, namespace, name, .. } = wanted;
    let plain = PLAIN
        .iter()
        .any(|(of, what, sub, verbs)| of == group && what == resource && sub == subresource && verbs.contains(&verb.as_str()));
    if plain {
        return Verdict::Allow;
    }
    let related = match (group.as_str(), resource.as_str(), subresource.as_str(), verb.as_str()) {
        ("", "nodes", "" | "status", "get" | "update" | "patch" | "delete") => name == node,
        ("coordination.k8s.io", "leases", "", _) if namespace == "kube-node-lease" => verb == "create" || name == node,
        ("storage.k8s.io", "csinodes", "", _) => verb == "create" || name == node,
        // Which pods a list or watch returns is narrowed by its field selector; a node reads no other node's by name.
        ("", "pods", "", "list" | "watch") => true,
        ("", "pods", "", "get") => bound_here(snapshot, namespace, name, node).unwrap_or(true),
        ("", "pods", "" | "status", "delete" | "update" | "patch") => bound_here(snapshot, namespace, name, node).unwrap_or(true),
        ("", "pods", "", "create") => true,
        ("", "pods", "eviction", "create") => bound_here(snapshot, namespace, name, node).unwrap_or(true),
        ("", "secrets" | "configmaps", "", "get" | "list" | "watch") => {
            !name.is_empty() && refers(snapshot, node, namespace, |pod| names_object(pod, resource, name))
        }
        ("", "serviceaccounts", "" | "token", "create" | "get") => {
            !name.is_empty() && refers(snapshot, node, namespace, |pod| account_of(pod) == name)
        }
        ("", "persistentvolumeclaims", "" | "status", "get" | "list" | "watch" | "update" | "patch") => {
            !name.is_empty() && refers(snapshot, node, namespace, |pod| claims(pod).any(|claim| claim == *name))
        }
        ("", "persistentvolumes", "", "get") => volume_used(snapshot, node, name),
        // The built-in provisioner's: a node sees the volumes on its own disk, and lets go of those that it has removed.
        ("", "persistentvolumes", "", "list" | "watch") => {
            wanted.label_selector == format!("{}={node}", crate::kinds::storage::local_path::NODE_LABEL)
        }
        ("", "persistentvolumes", "", "patch") => is_leaving(snapshot, node, name),
        ("certificates.k8s.io", "podcertificaterequests", "", "get") => asked_by(snapshot, namespace, name, node),
        ("certificates.k8s.io", "podcertificaterequests", "", "list" | "watch") => {
            wanted.field_selector == format!("spec.nodeName={node}")
        }
        ("storage.k8s.io", "volumeattachments", "", "get") => true,
        _ => return Verdict::NoOpinion(None),
    };
    if related {
        return Verdict::Allow;
    }
    let reason = format!("no relationship found between node '{node}' and this object");
    match resource.as_str() {
        // Upstream's NodeRestriction refuses these even where RBAC would allow them.
        "nodes" | "pods" | "leases" if !matches!(verb.as_str(), "get" | "list" | "watch") => Verdict::Deny(reason),
        _ => Verdict::NoOpinion(Some(reason)),
    }
}

/// Whether a pod is bound to the node; `None` if there is no such pod.
fn bound_here(snapshot: &Snapshot, namespace: &str, name: &str, node: &str) -> Option<bool> {
    let entry = snapshot.get(&format!("{}/{namespace}/{name}", core::pod::POD.bucket))?;
    let pod: Pod = decode(&entry)?;
    Some(pod.spec.and_then(|spec| spec.node_name).as_deref() == Some(node))
}

/// Whether the node asked for a pod's certificate.
fn asked_by(snapshot: &Snapshot, namespace: &str, name: &str, node: &str) -> bool {
    let bucket = certificates::pod_certificate_request::POD_CERTIFICATE_REQUEST.bucket;
    let request = snapshot.get(&format!("{bucket}/{namespace}/{name}")).and_then(|entry| decode::<Object>(&entry));
    request.is_some_and(|request| request.str_at(&["spec", "nodeName"]) == Some(node))
}

/// Whether one of the node's pods in a namespace satisfies `condition`.
fn refers(snapshot: &Snapshot, node: &str, namespace: &str, condition: impl Fn(&Pod) -> bool) -> bool {
    if namespace.is_empty() {
        return false;
    }
    pods_of(snapshot, node, &format!("{}/{namespace}/", core::pod::POD.bucket), condition)
}

fn pods_of(snapshot: &Snapshot, node: &str, prefix: &str, condition: impl Fn(&Pod) -> bool) -> bool {
    snapshot.by_field(prefix, "spec.nodeName", node).filter_map(|entry| decode::<Pod>(entry)).any(|pod| condition(&pod))
}

fn account_of(pod: &Pod) -> &str {
    let name = pod.spec.as_ref().and_then(|spec| spec.service_account_name.as_deref());
    name.filter(|name| !name.is_empty()).unwrap_or("default")
}

fn volumes(pod: &Pod) -> impl Iterator<Item = &Volume> {
    pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten())
}

fn claims(pod: &Pod) -> impl Iterator<Item = String> {
    let pod_name = pod.metadata.name.clone().unwrap_or_default();
    volumes(pod).filter_map(move |volume| {
        let named = volume.persistent_volume_claim.as_ref().map(|claim| claim.claim_name.clone());
        named.or_else(|| volume.ephemeral.as_ref().map(|_| format!("{pod_name}-{}", volume.name)))
    })
}

fn volume_used(snapshot: &Snapshot, node: &str, name: &str) -> bool {
    let key = format!("{}/{name}", core::persistent_volume::PERSISTENT_VOLUME.bucket);
    let volume = snapshot.get(&key).and_then(|entry| decode::<PersistentVolume>(&entry));
    let Some(claim) = volume.and_then(|volume| volume.spec?.claim_ref) else { return false };
    let (Some(namespace), Some(claim)) = (claim.namespace, claim.name) else { return false };
    let key = format!("{}/{namespace}/{claim}", core::persistent_volume_claim::PERSISTENT_VOLUME_CLAIM.bucket);
    let bound = snapshot.get(&key).and_then(|entry| decode::<PersistentVolumeClaim>(&entry));
    bound.and_then(|bound| bound.spec?.volume_name).as_deref() == Some(name)
        && refers(snapshot, node, &namespace, |pod| claims(pod).any(|one| one == claim))
}

/// Whether a volume on the node's own disk is being deleted.
fn is_leaving(snapshot: &Snapshot, node: &str, name: &str) -> bool {
    let key = format!("{}/{name}", core::persistent_volume::PERSISTENT_VOLUME.bucket);
    let volume = snapshot.get(&key).and_then(|entry| decode::<PersistentVolume>(&entry));
    volume.is_some_and(|volume| {
        let labels = volume.metadata.labels.unwrap_or_default();
        let is_here = labels.get(crate::kinds::storage::local_path::NODE_LABEL).is_some_and(|own| own == node);
        is_here && volume.metadata.deletion_timestamp.is_some()
    })
}

/// Whether a pod refers to a Secret or ConfigMap: in env, volumes, or to pull its images.
fn names_object(pod: &Pod, resource: &str, name: &str) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let secret = resource == "secrets";
    if secret && spec.image_pull_secrets.iter().flatten().any(|one| one.name == name) {
        return true;
    }
    volumes(pod).any(|volume| volume_names(volume, secret, name)) || env_names(pod, secret, name)
}

fn volume_names(volume: &Volume, secret: bool, name: &str) -> bool {
    let projected = volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten());
    if secret {
        let refers = |reference: Option<&str>| reference == Some(name);
        return refers(volume.secret.as_ref().and_then(|one| one.secret_name.as_deref()))
            || refers(volume.csi.as_ref().and_then(|one| one.node_publish_secret_ref.as_ref()).map(|one| one.name.as_str()))
            || refers(volume.flex_volume.as_ref().and_then(|one| one.secret_ref.as_ref()).map(|one| one.name.as_str()))
            || refers(volume.cephfs.as_ref().and_then(|one| one.secret_ref.as_ref()).map(|one| one.name.as_str()))
            || refers(volume.iscsi.as_ref().and_then(|one| one.secret_ref.as_ref()).map(|one| one.name.as_str()))
            || refers(volume.azure_file.as_ref().map(|one| one.secret_name.as_str()))
            || projected.into_iter().any(|source| source.secret.as_ref().is_some_and(|one| one.name == name));
    }
    volume.config_map.as_ref().is_some_and(|one| one.name == name)
        || projected.into_iter().any(|source| source.config_map.as_ref().is_some_and(|one| one.name == name))
}

fn env_names(pod: &Pod, secret: bool, name: &str) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let all = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let mut env = all.map(|one| (&one.env, &one.env_from)).collect::<Vec<_>>();
    env.extend(spec.ephemeral_containers.iter().flatten().map(|one| (&one.env, &one.env_from)));
    env.into_iter().any(|(vars, from)| {
        let sources = vars.iter().flatten().filter_map(|var| var.value_from.as_ref());
        let mut sources = sources.map(|source| {
            if secret {
                source.secret_key_ref.as_ref().map(|one| one.name.as_str())
            } else {
                source.config_map_key_ref.as_ref().map(|one| one.name.as_str())
            }
        });
        let mut whole = from.iter().flatten().map(|source| {
            if secret {
                source.secret_ref.as_ref().map(|one| one.name.as_str())
            } else {
                source.config_map_ref.as_ref().map(|one| one.name.as_str())
            }
        });
        sources.any(|one| one == Some(name)) || whole.any(|one| one == Some(name))
    })
}
