//! What must be true of a pod's claims before the pod is bound: their volumes are given or asked for, and bound.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use serde_json::json;

use super::{Storage, VolumePlan};
use crate::client::recorder::reference;
use crate::client::{Client, ClientError, PatchKind};
use crate::kinds::storage::binding;

/// How long a pod waits for its volumes before it is placed anew; upstream's `bindTimeoutSeconds`.
const BIND: Duration = Duration::from_secs(600);

/// Why a pod's volumes are not bound.
#[derive(Debug, thiserror::Error)]
pub enum PreBindError {
    /// A call to the API failed.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The provisioner does not want to make the volume for that node.
    #[error("selectedNode annotation reset for PVC {0:?}")]
    Reset(String),
    /// The claim is gone, or another took its place.
    #[error("persistentvolumeclaim {0:?} not found")]
    Gone(String),
    /// Nobody made or bound the volumes in time.
    #[error("context deadline exceeded")]
    TimedOut,
}

/// Writes what the plan says and waits until all claims are bound. To be done again after a failure.
///
/// # Errors
/// [`PreBindError`]; the pod is to be placed anew.
pub async fn pre_bind(storage: &Arc<Storage>, client: &Client, plan: &VolumePlan, node: &str) -> Result<(), PreBindError> {
    for (volume, claim) in &plan.bind {
        let mut patch =
            json!({"metadata": {"resourceVersion": volume.metadata.resource_version}, "spec": {"claimRef": reference(&**claim)}});
        if !binding::is_bound_to(volume, claim) {
            patch["metadata"]["annotations"] = json!({binding::BOUND_BY_CONTROLLER: "yes"});
        }
        let name = volume.metadata.name.as_deref().unwrap_or("");
        client.patch::<PersistentVolume>("", name, None, PatchKind::Merge, &patch).await?;
    }
    let mut asked = Vec::new();
    for claim in &plan.provision {
        asked.push(ask(client, claim, node).await?);
    }
    let bound = async {
        let mut news = storage.news();
        loop {
            news.borrow_and_update();
            if are_bound(storage, plan, &asked, node)? {
                return Ok(());
            }
            if news.changed().await.is_err() {
                return Err(PreBindError::TimedOut);
            }
        }
    };
    tokio::time::timeout(BIND, bound).await.unwrap_or(Err(PreBindError::TimedOut))
}

/// Asks for a volume for a node; returns the revision of the claim that says so.
async fn ask(client: &Client, claim: &PersistentVolumeClaim, node: &str) -> Result<u64, PreBindError> {
    if binding::annotation(&claim.metadata, binding::SELECTED_NODE) == Some(node) {
        return Ok(revision(claim));
    }
    let meta = &claim.metadata;
    let patch = json!({"metadata": {"resourceVersion": meta.resource_version, "uid": meta.uid,
        "annotations": {binding::SELECTED_NODE: node}}});
    let (namespace, name) = (meta.namespace.as_deref().unwrap_or(""), meta.name.as_deref().unwrap_or(""));
    let patched = client.patch::<PersistentVolumeClaim>(namespace, name, None, PatchKind::Merge, &patch).await?;
    Ok(revision(&patched))
}

fn revision(claim: &PersistentVolumeClaim) -> u64 {
    claim.metadata.resource_version.as_deref().and_then(|revision| revision.parse().ok()).unwrap_or(0)
}

fn are_bound(storage: &Storage, plan: &VolumePlan, asked: &[u64], node: &str) -> Result<bool, PreBindError> {
    let mut all = true;
    let bind = plan.bind.iter().map(|(_, claim)| (claim, None));
    let provision = plan.provision.iter().zip(asked.iter().map(Some));
    for (claim, asked) in bind.chain(provision) {
        let (namespace, name) = (claim.metadata.namespace.as_deref().unwrap_or(""), claim.metadata.name.as_deref().unwrap_or(""));
        let now = storage.claims.get(namespace, name).filter(|now| now.metadata.uid == claim.metadata.uid);
        let now = now.ok_or_else(|| PreBindError::Gone(name.to_owned()))?;
        if binding::is_fully_bound(&now) {
            continue;
        }
        all = false;
        let is_seen = asked.is_some_and(|asked| revision(&now) >= *asked);
        if is_seen && binding::annotation(&now.metadata, binding::SELECTED_NODE) != Some(node) {
            return Err(PreBindError::Reset(name.to_owned()));
        }
    }
    Ok(all)
}
