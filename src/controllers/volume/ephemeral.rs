//! Makes the claims of generic ephemeral volumes: upstream's `controller/volume/ephemeral`. The pod owns its claims, so garbage
//! collection removes them with it.

use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, Volume};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{BY_CLAIM, index_pods};
use crate::client::informer::Informer;
use crate::client::recorder::{EventType, Recorder, reference};
use crate::client::{Client, ObjectKey};
use crate::controllers::owners::controller_reference;
use crate::controllers::{Context, Controller, Error, Queue, Requeue, Seen, Watches, pods};
use crate::kinds::storage::binding;

/// The controller of generic ephemeral volumes. A key is a pod.
pub(in crate::controllers) fn ephemeral(context: &Context) -> Arc<dyn Controller> {
    let pods = context.config.informers.of::<Pod>();
    index_pods(&pods);
    Arc::new(Ephemeral {
        pods,
        claims: context.config.informers.of(),
        client: context.client("ephemeral-volume-controller"),
        recorder: context.recorder("ephemeral_volume"),
    })
}

struct Ephemeral {
    pods: Arc<Informer<Pod>>,
    claims: Arc<Informer<PersistentVolumeClaim>>,
    client: Client,
    recorder: Recorder,
}

fn ephemeral_volumes(pod: &Pod) -> impl Iterator<Item = &Volume> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes.filter(|volume| volume.ephemeral.is_some())
}

/// The claim of a pod's volume.
fn claim(pod: &Pod, volume: &Volume) -> Option<PersistentVolumeClaim> {
    let template = volume.ephemeral.as_ref()?.volume_claim_template.as_ref()?;
    let (name, _) = binding::claim_of(pod, volume)?;
    let meta = template.metadata.clone().unwrap_or_default();
    Some(PersistentVolumeClaim {
        metadata: ObjectMeta {
            name: Some(name),
            namespace: pod.metadata.namespace.clone(),
            labels: meta.labels,
            annotations: meta.annotations,
            owner_references: Some(vec![controller_reference(pod)]),
            ..ObjectMeta::default()
        },
        spec: Some(template.spec.clone()),
        status: None,
    })
}

impl Ephemeral {
    async fn ensure(&self, pod: &Pod, wanted: PersistentVolumeClaim) -> Result<(), Error> {
        let name = wanted.metadata.name.as_deref().unwrap_or("");
        let namespace = pod.metadata.namespace.as_deref().unwrap_or("");
        if let Some(present) = self.claims.get(namespace, name) {
            return if binding::is_made_for(&present, pod) {
                Ok(())
            } else {
                let of = pod.metadata.name.as_deref().unwrap_or("");
                Err(Error::Incomplete(format!(
                    "PVC {namespace}/{name} was not created for pod {namespace}/{of} (pod is not owner)"
                )))
            };
        }
        match self.client.create(&wanted).await {
            Ok(_) => Ok(()),
            // The cache is behind: the next reconcile sees it.
            Err(error) if error.is_already_exists() => Err(error.into()),
            Err(error) => {
                let message = format!("ephemeral volume controller: create PVC {namespace}/{name}: {error}");
                self.recorder.event(&reference(pod), EventType::Warning, "FailedCreate", message);
                Err(error.into())
            }
        }
    }
}

#[async_trait]
impl Controller for Ephemeral {
    fn name(&self) -> &'static str {
        "ephemeralvolume"
    }

    fn watch(&self, watches: &mut Watches) {
        watches.on(&self.pods, |seen: Seen<'_, Pod>, queue: &Queue| {
            let is_new = seen.old.is_none_or(|old| Some(&old.metadata.uid) != seen.new.map(|new| &new.metadata.uid));
            if let Some(pod) = seen.new.filter(|pod| is_new && ephemeral_volumes(pod).next().is_some()) {
                queue.add(ObjectKey::of(pod));
            }
        });
        let pods = Arc::clone(&self.pods);
        watches.on(&self.claims, move |seen: Seen<'_, PersistentVolumeClaim>, queue: &Queue| {
            // A claim that was deleted, or was in the way, makes room.
            let Some(gone) = seen.old.filter(|_| seen.new.is_none()) else { return };
            let users = pods.by_index(BY_CLAIM, &ObjectKey::of(gone).to_string());
            let concerned = users.iter().filter(|pod| ephemeral_volumes(pod).next().is_some());
            concerned.for_each(|pod| queue.add(ObjectKey::of(&**pod)));
        });
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Requeue, Error> {
        let Some(pod) = self.pods.get(&key.namespace, &key.name) else { return Ok(Requeue::Done) };
        if !pods::is_active(&pod) {
            return Ok(Requeue::Done);
        }
        for wanted in ephemeral_volumes(&pod).filter_map(|volume| claim(&pod, volume)) {
            self.ensure(&pod, wanted).await?;
        }
        Ok(Requeue::Done)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_pod_owns_its_claim() {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"},
            "spec": {"containers": [], "volumes": [{"name": "scratch", "ephemeral": {"volumeClaimTemplate": {
                "metadata": {"labels": {"a": "b"}}, "spec": {"accessModes": ["ReadWriteOnce"]}}}}]}}))
        .unwrap();
        let volume = ephemeral_volumes(&pod).next().unwrap();
        let claim = claim(&pod, volume).unwrap();
        assert_eq!(claim.metadata.name.as_deref(), Some("p-scratch"));
        assert_eq!(claim.metadata.labels.clone().unwrap()["a"], "b");
        assert!(binding::is_made_for(&claim, &pod));
    }
}
