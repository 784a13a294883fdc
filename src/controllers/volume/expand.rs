//! Lets volumes grow when their claims ask for more: upstream's `controller/volume/expand`. A directory grows by being said to; a
//! volume with a file system of its own is resized by its node's agent, which the condition `FileSystemResizePending` asks for.

use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, PersistentVolumeClaimCondition};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::json;

use crate::client::informer::Informer;
use crate::client::recorder::{EventType, Recorder, reference};
use crate::client::{Cached, Client, ObjectKey, PatchKind};
use crate::controllers::{Context, Controller, Error, Queue, Requeue, Seen, Watches};
use crate::kinds::storage::{binding, local_path as names};
use crate::rt::clock::SharedClock;

/// The controller that lets volumes grow. A key is a claim.
pub(in crate::controllers) fn expand(context: &Context) -> Arc<dyn Controller> {
    let informers = &context.config.informers;
    Arc::new(Expand {
        claims: informers.of(),
        volumes: informers.of(),
        classes: informers.of(),
        client: context.client("expand-controller"),
        recorder: context.recorder("volume_expand"),
        clock: Arc::clone(&context.config.clock),
    })
}

struct Expand {
    claims: Arc<Informer<PersistentVolumeClaim>>,
    volumes: Arc<Informer<PersistentVolume>>,
    classes: Arc<Informer<StorageClass>>,
    client: Client,
    recorder: Recorder,
    clock: SharedClock,
}

/// What a claim that asks for more needs.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Nothing,
    /// The volume first: its capacity says how big it is to be.
    GrowVolume,
    /// It holds that much already: the claim only has to say so.
    Say,
    /// The node's agent must resize what is in the volume.
    AskNode,
    /// Somebody else's volume.
    AskProvisioner,
}

fn step(claim: &PersistentVolumeClaim, volume: &PersistentVolume, class: Option<&StorageClass>) -> Step {
    let wanted = binding::requested(claim);
    let said = claim.status.as_ref().and_then(|status| status.capacity.as_ref()).and_then(|amounts| amounts.get("storage"));
    let said = said.and_then(|amount| crate::api::quantity::Quantity::try_from(amount).ok());
    let is_bound = claim.status.as_ref().is_some_and(|status| status.phase.as_deref() == Some("Bound"));
    if !is_bound || said.is_none_or(|said| said >= wanted) {
        return Step::Nothing;
    }
    if class.is_none_or(|class| class.allow_volume_expansion != Some(true)) {
        return Step::Nothing;
    }
    if binding::annotation(&volume.metadata, binding::PROVISIONED_BY) != Some(names::PROVISIONER) {
        return Step::AskProvisioner;
    }
    if binding::capacity(volume) < wanted {
        return Step::GrowVolume;
    }
    if binding::annotation(&volume.metadata, names::TYPE) == Some(names::LOOP) { Step::AskNode } else { Step::Say }
}

impl Expand {
    async fn grow_volume(&self, claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> Result<(), Error> {
        let wanted = binding::requested(claim).to_typed();
        let patch = json!({"metadata": {"resourceVersion": volume.metadata.resource_version},
            "spec": {"capacity": {"storage": wanted}}});
        self.client.patch::<PersistentVolume>("", volume.name(), None, PatchKind::Merge, &patch).await?;
        Ok(())
    }

    async fn write_condition(&self, claim: &PersistentVolumeClaim) -> Result<(), Error> {
        let mut status = claim.status.clone().unwrap_or_default();
        if status.conditions.iter().flatten().any(|condition| condition.type_ == "FileSystemResizePending") {
            return Ok(());
        }
        let message = "Waiting for user to (re-)start a pod to finish file system resize of volume on node.";
        status.conditions = Some(vec![PersistentVolumeClaimCondition {
            type_: "FileSystemResizePending".to_owned(),
            status: "True".to_owned(),
            message: Some(message.to_owned()),
            last_transition_time: Some(Time(self.clock.now())),
            ..PersistentVolumeClaimCondition::default()
        }]);
        crate::controllers::status::write(&self.client, claim, claim.status.as_ref(), &status).await?;
        self.recorder.event(
            &reference(claim),
            EventType::Normal,
            "FileSystemResizeRequired",
            "Require file system resize of volume on node",
        );
        Ok(())
    }

    async fn write_capacity(&self, claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> Result<(), Error> {
        let mut status = claim.status.clone().unwrap_or_default();
        status.capacity = volume.spec.as_ref().and_then(|spec| spec.capacity.clone());
        status.conditions = None;
        crate::controllers::status::write(&self.client, claim, claim.status.as_ref(), &status).await
    }
}

#[async_trait]
impl Controller for Expand {
    fn name(&self) -> &'static str {
        "persistentvolumeexpander"
    }

    fn watch(&self, watches: &mut Watches) {
        watches.on(&self.claims, |seen: Seen<'_, PersistentVolumeClaim>, queue: &Queue| {
            if let Some(claim) = seen.new.filter(|claim| binding::is_fully_bound(claim)) {
                queue.add(ObjectKey::of(claim));
            }
        });
        watches.on(&self.volumes, |seen: Seen<'_, PersistentVolume>, queue: &Queue| {
            let capacity = |volume: &PersistentVolume| volume.spec.as_ref().and_then(|spec| spec.capacity.clone());
            let Some((old, new)) = seen.old.zip(seen.new).filter(|(old, new)| capacity(old) != capacity(new)) else { return };
            tracing::debug!(volume = old.name(), "the capacity of a volume changed");
            if let Some(claim) = new.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref()) {
                queue.add(ObjectKey::new(claim.namespace.as_deref().unwrap_or(""), claim.name.as_deref().unwrap_or("")));
            }
        });
        watches.after(&self.classes);
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Requeue, Error> {
        let Some(claim) = self.claims.get(&key.namespace, &key.name) else { return Ok(Requeue::Done) };
        let Some(volume) = self.volumes.get("", binding::volume_name(&claim)) else { return Ok(Requeue::Done) };
        let class = self.classes.get("", binding::claim_class(&claim));
        match step(&claim, &volume, class.as_deref()) {
            Step::Nothing => {}
            // The change of the volume brings the claim here again.
            Step::GrowVolume => self.grow_volume(&claim, &volume).await?,
            Step::Say => self.write_capacity(&claim, &volume).await?,
            Step::AskNode => self.write_condition(&claim).await?,
            Step::AskProvisioner => {
                let message = "waiting for an external controller to expand this PVC";
                self.recorder.event(&reference(&*claim), EventType::Normal, "ExternalExpanding", message);
            }
        }
        Ok(Requeue::Done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_grow_step_by_step() {
        let claim = |wanted: &str, said: &str| -> PersistentVolumeClaim {
            serde_json::from_value(
                json!({"metadata": {"name": "c"}, "spec": {"volumeName": "v", "resources": {"requests": {"storage": wanted}}},
                "status": {"phase": "Bound", "capacity": {"storage": said}}}),
            )
            .unwrap()
        };
        let volume = |size: &str, by: &str, kind: &str| -> PersistentVolume {
            serde_json::from_value(json!({"metadata": {"name": "v", "annotations": {
                    "pv.kubernetes.io/provisioned-by": by, names::TYPE: kind}}, "spec": {"capacity": {"storage": size}}}))
            .unwrap()
        };
        let class = |allowed: bool| -> StorageClass {
            serde_json::from_value(json!({"metadata": {"name": "s"}, "provisioner": "x", "allowVolumeExpansion": allowed}))
                .unwrap()
        };
        let ours = names::PROVISIONER;
        for (wanted, said, size, by, kind, allowed, expected) in [
            ("1Gi", "1Gi", "1Gi", ours, "directory", true, Step::Nothing),
            ("2Gi", "1Gi", "1Gi", ours, "directory", false, Step::Nothing),
            ("2Gi", "1Gi", "1Gi", ours, "directory", true, Step::GrowVolume),
            ("2Gi", "1Gi", "2Gi", ours, "directory", true, Step::Say),
            ("2Gi", "1Gi", "2Gi", ours, "loop", true, Step::AskNode),
            ("2Gi", "1Gi", "1Gi", "x.io/y", "", true, Step::AskProvisioner),
        ] {
            assert_eq!(
                step(&claim(wanted, said), &volume(size, by, kind), Some(&class(allowed))),
                expected,
                "{wanted} {said} {size}"
            );
        }
    }
}
