//! NodeRestriction: an agent writes its own Node, its own Lease, and the status of the pods that are bound to it, and no others; it
//! asks for certificates of these pods alone.

use async_trait::async_trait;

use super::{Context, Plugin};
use crate::api::kind::Subresource;
use crate::api::{ApiError, Object, meta};
use crate::auth::UserInfo;
use crate::registry::Operation;

/// Labels under this prefix are the administrators'; a node may not give them to itself.
const RESERVED_LABELS: &str = "node-restriction.kubernetes.io/";

/// Holds a Node that is being deleted until the identity that it had is gone, so that its agent cannot make it again.
const IDENTITY: &str = "orch.io/node-identity";

/// The plugin.
pub(super) struct NodeRestriction;

#[async_trait]
impl Plugin for NodeRestriction {
    fn name(&self) -> &'static str {
        "NodeRestriction"
    }

    /// A Node that an agent with an identity of its own registers, or takes over, is held by it.
    async fn mutate(&self, context: &mut Context<'_>, object: &mut Object, _old: Option<&Object>) -> Result<(), ApiError> {
        let attributes = context.attributes;
        let has_identity = node_name(attributes.user).is_some() && !attributes.user.uid.is_empty();
        let is_written = matches!(attributes.operation, Operation::Create | Operation::Update) && !object.is_deleting();
        if has_identity && is_written && context.is_core("Node") {
            let mut finalizers: Vec<String> = object.finalizers().map(str::to_owned).collect();
            if !finalizers.iter().any(|finalizer| finalizer == IDENTITY) {
                finalizers.push(IDENTITY.to_owned());
            }
            meta::set_finalizers(object, &finalizers);
        }
        Ok(())
    }

    async fn validate(&self, context: &mut Context<'_>, object: Option<&Object>, old: Option<&Object>) -> Result<(), ApiError> {
        let Some(node) = node_name(context.attributes.user) else { return Ok(()) };
        match context.attributes.kind.names().kind {
            "Node" => admit_node(context, node, object, old),
            "Pod" => admit_pod(context, node, object, old),
            "PodCertificateRequest" => admit_certificate_request(context, node, object),
            "Lease" if context.attributes.name != node => {
                Err(context
                    .forbidden(format_args!("can only access node lease with the same name as the requesting node {node:?}")))
            }
            _ => Ok(()),
        }
    }
}

/// The node that a user is, if it is one.
fn node_name(user: &UserInfo) -> Option<&str> {
    let is_node = user.groups.iter().any(|group| group == "system:nodes");
    user.name.strip_prefix("system:node:").filter(|_| is_node)
}

fn admit_node(context: &Context<'_>, node: &str, object: Option<&Object>, old: Option<&Object>) -> Result<(), ApiError> {
    let attributes = context.attributes;
    if attributes.name != node {
        return Err(context.forbidden(format_args!("node {node:?} is not allowed to modify node {:?}", attributes.name)));
    }
    let reserved = |node: Option<&Object>| -> Vec<(String, String)> {
        let labels = node.into_iter().flat_map(Object::labels).filter(|(key, _)| key.contains(RESERVED_LABELS));
        labels.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
    };
    if attributes.operation != Operation::Delete && reserved(object) != reserved(old) {
        return Err(context.forbidden(format_args!("is not allowed to modify labels: {RESERVED_LABELS}*")));
    }
    let held = |node: &Object| node.finalizers().any(|finalizer| finalizer == IDENTITY);
    if let (Operation::Update, Some(object), Some(old)) = (attributes.operation, object, old)
        && held(old)
        && !held(object)
    {
        return Err(context.forbidden(format_args!("node {node:?} is not allowed to remove the finalizer {IDENTITY}")));
    }
    let taints = |node: &Object| node.get(&["spec", "taints"]).cloned();
    match (attributes.operation, object, old) {
        (Operation::Update, Some(object), Some(old)) if taints(object) != taints(old) => {
            Err(context.forbidden(format_args!("node {node:?} is not allowed to modify taints")))
        }
        _ => Ok(()),
    }
}

fn admit_pod(context: &Context<'_>, node: &str, object: Option<&Object>, old: Option<&Object>) -> Result<(), ApiError> {
    let is_bound_here = |pod: &Object| pod.str_at(&["spec", "nodeName"]) == Some(node);
    let attributes = context.attributes;
    match (attributes.operation, attributes.subresource) {
        (Operation::Create, None) => match object {
            Some(pod) if pod.annotation("kubernetes.io/config.mirror").is_none() => Err(context.forbidden(format_args!(
                "pod does not have \"kubernetes.io/config.mirror\" annotation, node {node:?} can only create mirror pods"
            ))),
            Some(pod) if !is_bound_here(pod) => {
                Err(context.forbidden(format_args!("node {node:?} can only create pods with spec.nodeName set to itself")))
            }
            _ => Ok(()),
        },
        (Operation::Delete, None) | (Operation::Update, Some(Subresource::Status)) if !old.is_some_and(is_bound_here) => {
            Err(context.forbidden(format_args!("node {node:?} can only change pods with spec.nodeName set to itself")))
        }
        (Operation::Update, None) => Err(context.forbidden(format_args!("node {node:?} is not allowed to update pods"))),
        _ => Ok(()),
    }
}

/// What the request says of pod, account and node is what the cluster knows of them.
fn admit_certificate_request(context: &Context<'_>, node: &str, request: Option<&Object>) -> Result<(), ApiError> {
    let attributes = context.attributes;
    let (Operation::Create, None, Some(request)) = (attributes.operation, attributes.subresource, request) else {
        return Err(context.forbidden(format_args!("node {node:?} can only create PodCertificateRequests")));
    };
    let said = |field: &str| request.str_at(&["spec", field]).unwrap_or("");
    if said("nodeName") != node {
        return Err(context.forbidden(format_args!(
            "PodCertificateRequest.Spec.NodeName={:?}, which is not the requesting node {node:?}",
            said("nodeName")
        )));
    }
    let (namespace, pod_name) = (attributes.namespace, said("podName"));
    let Some(pod) = context.reader.get("core/pods", namespace, pod_name) else {
        return Err(context
            .forbidden(format_args!("while retrieving pod named in the PodCertificateRequest: pod {pod_name:?} not found")));
    };
    if pod.annotation("kubernetes.io/config.mirror").is_some() {
        return Err(context.forbidden(format_args!("pod {pod_name:?} is a mirror pod, which gets no certificate")));
    }
    let pod_has = |field: &str| pod.str_at(&["spec", field]).unwrap_or("").to_owned();
    let uid_of = |bucket: &str, namespace: &str, name: &str| {
        context.reader.get(bucket, namespace, name).map_or_else(String::new, |object| object.uid().to_owned())
    };
    let known = [
        ("podUID", pod.uid().to_owned()),
        ("nodeName", pod_has("nodeName")),
        ("nodeUID", uid_of("core/nodes", "", node)),
        ("serviceAccountName", pod_has("serviceAccountName")),
        ("serviceAccountUID", uid_of("core/serviceaccounts", namespace, said("serviceAccountName"))),
    ];
    for (field, known) in known {
        if said(field) != known {
            return Err(context.forbidden(format_args!(
                "PodCertificateRequest for pod {pod_name:?} contains {field} ({:?}) which differs from the known one ({known:?})",
                said(field)
            )));
        }
    }
    Ok(())
}
