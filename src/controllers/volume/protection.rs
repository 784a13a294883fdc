//! Keeps claims that pods use and volumes that are bound, although somebody deleted them: upstream's `controller/volume/pvcprotection`
//! and `pvprotection`. Admission adds the finalizers; these controllers take them away when the time has come.

use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::json;

use super::{BY_CLAIM, index_pods};
use crate::client::informer::Informer;
use crate::client::{ApiObject, Client, ObjectKey, PatchKind};
use crate::controllers::{Context, Controller, Error, Queue, Requeue, Seen, Watches};
use crate::kinds::storage::binding;

/// The controller that lets go of claims. A key is a claim.
pub(in crate::controllers) fn claim_protection(context: &Context) -> Arc<dyn Controller> {
    let pods = context.config.informers.of::<Pod>();
    index_pods(&pods);
    Arc::new(ClaimProtection { claims: context.config.informers.of(), pods, client: context.client("pvc-protection-controller") })
}

/// The controller that lets go of volumes. A key is a volume.
pub(in crate::controllers) fn volume_protection(context: &Context) -> Arc<dyn Controller> {
    Arc::new(VolumeProtection { volumes: context.config.informers.of(), client: context.client("pv-protection-controller") })
}

/// Whether an object is deleted and waits for a finalizer.
pub(super) fn waits_for(meta: &ObjectMeta, finalizer: &str) -> bool {
    meta.deletion_timestamp.is_some() && meta.finalizers.iter().flatten().any(|own| own == finalizer)
}

/// Takes a finalizer from an object; that the object is gone is no error.
pub(super) async fn let_go<K: ApiObject>(client: &Client, object: &K, finalizer: &str) -> Result<(), Error> {
    let meta = object.metadata();
    let kept: Vec<&String> = meta.finalizers.iter().flatten().filter(|own| *own != finalizer).collect();
    let patch = json!({"metadata": {"resourceVersion": meta.resource_version, "uid": meta.uid, "finalizers": kept}});
    let (namespace, name) = (meta.namespace.as_deref().unwrap_or(""), meta.name.as_deref().unwrap_or(""));
    match client.patch::<K>(namespace, name, None, PatchKind::Merge, &patch).await {
        Err(error) if !error.is_not_found() => Err(error.into()),
        _ => Ok(()),
    }
}

/// Whether a pod uses a claim: only one that has a node can, and no node takes up a pod whose claim is deleted.
fn uses(pod: &Pod, claim: &str) -> bool {
    let has_node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).is_some_and(|node| !node.is_empty());
    has_node && binding::claims_of(pod).any(|(name, _)| name == claim)
}

struct ClaimProtection {
    claims: Arc<Informer<PersistentVolumeClaim>>,
    pods: Arc<Informer<Pod>>,
    client: Client,
}

#[async_trait]
impl Controller for ClaimProtection {
    fn name(&self) -> &'static str {
        "pvcprotection"
    }

    fn watch(&self, watches: &mut Watches) {
        watches.on(&self.claims, |seen: Seen<'_, PersistentVolumeClaim>, queue: &Queue| {
            if let Some(claim) = seen.new.filter(|claim| waits_for(&claim.metadata, binding::CLAIM_PROTECTION)) {
                queue.add(ObjectKey::of(claim));
            }
        });
        let claims = Arc::clone(&self.claims);
        watches.on(&self.pods, move |seen: Seen<'_, Pod>, queue: &Queue| {
            let Some(gone) = seen.old.filter(|old| seen.new.is_none_or(|new| new.metadata.uid != old.metadata.uid)) else {
                return;
            };
            let namespace = gone.metadata.namespace.as_deref().unwrap_or("");
            for (name, _) in binding::claims_of(gone) {
                let claim = claims.get(namespace, &name);
                if claim.is_some_and(|claim| waits_for(&claim.metadata, binding::CLAIM_PROTECTION)) {
                    queue.add(ObjectKey::new(namespace, &name));
                }
            }
        });
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Requeue, Error> {
        let Some(claim) = self.claims.get(&key.namespace, &key.name) else { return Ok(Requeue::Done) };
        if !waits_for(&claim.metadata, binding::CLAIM_PROTECTION) {
            return Ok(Requeue::Done);
        }
        if self.pods.by_index(BY_CLAIM, &key.to_string()).iter().any(|pod| uses(pod, &key.name)) {
            return Ok(Requeue::Done);
        }
        // A cache that is behind must not cost somebody's data.
        let live = self.client.list::<Pod>(&key.namespace, "").await?;
        if live.items.iter().any(|pod| uses(pod, &key.name)) {
            return Err(Error::Incomplete(format!("a pod that uses claim {key} is not in the cache yet")));
        }
        let_go(&self.client, &*claim, binding::CLAIM_PROTECTION).await?;
        Ok(Requeue::Done)
    }
}

struct VolumeProtection {
    volumes: Arc<Informer<PersistentVolume>>,
    client: Client,
}

#[async_trait]
impl Controller for VolumeProtection {
    fn name(&self) -> &'static str {
        "pvprotection"
    }

    fn watch(&self, watches: &mut Watches) {
        watches.on(&self.volumes, |seen: Seen<'_, PersistentVolume>, queue: &Queue| {
            if let Some(volume) = seen.new.filter(|volume| waits_for(&volume.metadata, binding::VOLUME_PROTECTION)) {
                queue.add(ObjectKey::of(volume));
            }
        });
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Requeue, Error> {
        let Some(volume) = self.volumes.get("", &key.name) else { return Ok(Requeue::Done) };
        let is_bound = volume.status.as_ref().is_some_and(|status| status.phase.as_deref() == Some("Bound"));
        if waits_for(&volume.metadata, binding::VOLUME_PROTECTION) && !is_bound {
            let_go(&self.client, &*volume, binding::VOLUME_PROTECTION).await?;
        }
        Ok(Requeue::Done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_uses_a_claim_once_it_has_a_node() {
        let pod = |node: &str| -> Pod {
            serde_json::from_value(
                json!({"metadata": {"name": "p", "namespace": "n"}, "spec": {"containers": [], "nodeName": node,
                "volumes": [{"name": "a", "persistentVolumeClaim": {"claimName": "data"}},
                            {"name": "b", "ephemeral": {"volumeClaimTemplate": {"spec": {}}}}]}}),
            )
            .unwrap()
        };
        assert!(uses(&pod("n1"), "data") && uses(&pod("n1"), "p-b"));
        assert!(!uses(&pod(""), "data") && !uses(&pod("n1"), "other"));
    }
}
