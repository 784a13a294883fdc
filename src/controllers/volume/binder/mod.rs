//! The binder of claims and volumes: upstream's `controller/volume/persistentvolume`. Every step is written so that it can be cut off
//! anywhere: the next reconcile finds the half-done binding and goes on with it.

use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{ObjectReference, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Map, Value, json};

use super::{BY_CLAIM, Say, index_pods};
use crate::client::informer::Informer;
use crate::client::recorder::{EventType, Recorder, reference};
use crate::client::{ApiObject, Cached, Client, ObjectKey, PatchKind};
use crate::controllers::{Context, Controller, Error, Queue, Requeue, Seen, Watches};
use crate::kinds::storage::binding;
use crate::rt::clock::SharedClock;

mod claim;
mod volume;

/// The index of claims that are not bound yet.
const UNBOUND: &str = "unbound";

fn unbound(claim: &PersistentVolumeClaim) -> Vec<String> {
    if binding::is_fully_bound(claim) { Vec::new() } else { vec![UNBOUND.to_owned()] }
}

/// The controller that binds claims to volumes. A key is a claim, or, without a namespace, a volume.
pub(in crate::controllers) fn binder(context: &Context) -> Arc<dyn Controller> {
    let informers = &context.config.informers;
    let (claims, pods) = (informers.of::<PersistentVolumeClaim>(), informers.of::<Pod>());
    claims.add_index(UNBOUND, unbound);
    index_pods(&pods);
    Arc::new(Binder {
        claims,
        pods,
        volumes: informers.of(),
        classes: informers.of(),
        client: context.client("persistentvolume-controller"),
        recorder: context.recorder("persistentvolume-controller"),
        clock: Arc::clone(&context.config.clock),
    })
}

struct Binder {
    claims: Arc<Informer<PersistentVolumeClaim>>,
    volumes: Arc<Informer<PersistentVolume>>,
    classes: Arc<Informer<StorageClass>>,
    pods: Arc<Informer<Pod>>,
    client: Client,
    recorder: Recorder,
    clock: SharedClock,
}

impl Binder {
    fn say<K: ApiObject>(&self, about: &K, say: &Say) {
        let kind = if say.is_warning { EventType::Warning } else { EventType::Normal };
        self.recorder.event(&reference(about), kind, say.reason, say.message.clone());
    }

    async fn sync_claim(&self, claim: &PersistentVolumeClaim) -> Result<(), Error> {
        let volumes = self.volumes.list();
        let class = self.classes.get("", binding::claim_class(claim));
        let classes = self.classes.list();
        let default = binding::default_class(classes.iter());
        let waiting_pods = self.waiting_pods(claim);
        let step = claim::plan(
            claim,
            &claim::Observed {
                volumes: &volumes,
                class: class.as_deref(),
                default_class: default.and_then(|class| class.metadata.name.as_deref()),
                waiting_pods: &waiting_pods,
            },
        );
        match step {
            claim::Step::Bind(volume) => self.bind(&volume, claim).await,
            claim::Step::AssignClass(class) => {
                self.patch(claim, None, json!({"spec": {"storageClassName": class}})).await.map(drop)
            }
            claim::Step::Provision(provisioner) => self.ask(claim, &provisioner).await,
            claim::Step::Wait(say) => {
                let written = self.write_claim_status(claim, "Pending", None).await;
                if let Some(say) = say {
                    self.say(claim, &say);
                }
                written
            }
            claim::Step::Lose(say) => {
                let was_lost = phase_of(claim) == "Lost";
                self.write_claim_status(claim, "Lost", None).await?;
                if !was_lost {
                    self.say(claim, &say);
                }
                Ok(())
            }
        }
    }

    fn waiting_pods(&self, claim: &PersistentVolumeClaim) -> Vec<String> {
        let pods = self.pods.by_index(BY_CLAIM, &ObjectKey::of(claim).to_string());
        let is_placed =
            |pod: &Pod| pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).is_some_and(|name| !name.is_empty());
        let waiting = pods.iter().filter(|pod| !is_placed(pod) && pod.metadata.deletion_timestamp.is_none());
        waiting.map(|pod| pod.name().to_owned()).collect()
    }

    /// Names the provisioner on the claim and says who is waited for.
    async fn ask(&self, claim: &PersistentVolumeClaim, provisioner: &str) -> Result<(), Error> {
        let lacks = |key: &&&str| binding::annotation(&claim.metadata, key) != Some(provisioner);
        let missing: Map<String, Value> =
            binding::STORAGE_PROVISIONERS.iter().filter(lacks).map(|key| ((*key).to_owned(), json!(provisioner))).collect();
        if !missing.is_empty() {
            self.patch(claim, None, json!({"metadata": {"annotations": missing}})).await?;
        }
        let message = format!(
            "Waiting for a volume to be created either by the external provisioner '{provisioner}' or manually by the system \
             administrator. If volume creation is delayed, please verify that the provisioner is running and correctly registered."
        );
        self.say(claim, &Say::normal("ExternalProvisioning", message));
        Ok(())
    }

    /// Writes the binding, half by half: volume, phase of the volume, claim, phase of the claim.
    async fn bind(&self, volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Result<(), Error> {
        let volume = match volume_half(volume, claim) {
            Some(patch) => self.patch(volume, None, patch).await?,
            None => volume.clone(),
        };
        self.write_volume_phase(&volume, "Bound", None).await?;
        let bound = match claim_half(&volume, claim) {
            Some(patch) => self.patch(claim, None, patch).await?,
            None => claim.clone(),
        };
        self.write_claim_status(&bound, "Bound", Some(&volume)).await
    }

    async fn write_claim_status(
        &self,
        claim: &PersistentVolumeClaim,
        phase: &str,
        volume: Option<&PersistentVolume>,
    ) -> Result<(), Error> {
        let mut status = claim.status.clone().unwrap_or_default();
        let spec = volume.and_then(|volume| volume.spec.as_ref());
        // What the claim has grown to meanwhile is not undone.
        if spec.is_none() || phase_of(claim) != "Bound" || status.capacity.is_none() {
            status.capacity = spec.and_then(|spec| spec.capacity.clone());
        }
        status.phase = Some(phase.to_owned());
        status.access_modes = spec.and_then(|spec| spec.access_modes.clone());
        crate::controllers::status::write(&self.client, claim, claim.status.as_ref(), &status).await
    }

    async fn write_volume_phase(&self, volume: &PersistentVolume, phase: &str, why: Option<&Say>) -> Result<(), Error> {
        let mut status = volume.status.clone().unwrap_or_default();
        let message = why.map(|say| say.message.clone());
        if status.phase.as_deref() == Some(phase) && status.message == message {
            return Ok(());
        }
        status.phase = Some(phase.to_owned());
        status.message = message;
        status.last_phase_transition_time = Some(Time(self.clock.now()));
        crate::controllers::status::write(&self.client, volume, volume.status.as_ref(), &status).await
    }

    /// A merge patch that holds only for the revision that was read.
    async fn patch<K: ApiObject>(&self, object: &K, subresource: Option<&str>, mut patch: Value) -> Result<K, Error> {
        let meta = object.metadata();
        patch["metadata"]["resourceVersion"] = json!(meta.resource_version);
        patch["metadata"]["uid"] = json!(meta.uid);
        let (namespace, name) = (meta.namespace.as_deref().unwrap_or(""), meta.name.as_deref().unwrap_or(""));
        Ok(self.client.patch(namespace, name, subresource, PatchKind::Merge, &patch).await?)
    }

    async fn sync_volume(&self, volume: &PersistentVolume) -> Result<Option<ObjectKey>, Error> {
        let referenced = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
        let claim = match referenced {
            Some(reference) => self.claim_of(volume, reference).await?,
            None => None,
        };
        match volume::plan(volume, claim.as_deref()) {
            volume::Step::Phase(phase) => self.write_volume_phase(volume, phase, None).await?,
            volume::Step::AskClaim => return Ok(claim.map(|claim| ObjectKey::of(&*claim))),
            volume::Step::Unbind => self.unbind(volume).await?,
            volume::Step::Release => self.release(volume).await?,
            volume::Step::Mismatch { of_volume, of_claim } => {
                self.say(volume, &of_volume);
                if let Some(claim) = &claim {
                    self.say(&**claim, &of_claim);
                }
            }
        }
        Ok(None)
    }

    /// The claim that a volume names. A cache that is behind must not release a volume: the API is asked.
    async fn claim_of(
        &self,
        volume: &PersistentVolume,
        reference: &ObjectReference,
    ) -> Result<Option<Arc<PersistentVolumeClaim>>, Error> {
        let (namespace, name) = (reference.namespace.as_deref().unwrap_or(""), reference.name.as_deref().unwrap_or(""));
        let cached = self.claims.get(namespace, name);
        let is_same = cached.as_ref().is_some_and(|claim| claim.metadata.uid == reference.uid);
        let is_over = matches!(volume.status.as_ref().and_then(|status| status.phase.as_deref()), Some("Released" | "Failed"));
        if is_same || is_over || reference.uid.as_deref().unwrap_or("").is_empty() {
            return Ok(cached);
        }
        match self.client.get::<PersistentVolumeClaim>(namespace, name).await {
            Ok(claim) => Ok(Some(Arc::new(claim))),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    async fn unbind(&self, volume: &PersistentVolume) -> Result<(), Error> {
        let is_ours = binding::annotation(&volume.metadata, binding::BOUND_BY_CONTROLLER).is_some();
        let patch = if is_ours {
            json!({"metadata": {"annotations": {binding::BOUND_BY_CONTROLLER: null}}, "spec": {"claimRef": null}})
        } else {
            json!({"spec": {"claimRef": {"uid": null, "resourceVersion": null}}})
        };
        let volume = self.patch(volume, None, patch).await?;
        self.write_volume_phase(&volume, "Available", None).await
    }

    async fn release(&self, volume: &PersistentVolume) -> Result<(), Error> {
        let phase = volume.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("");
        if !matches!(phase, "Released" | "Failed") {
            // The change of phase brings the volume here again.
            return self.write_volume_phase(volume, "Released", None).await;
        }
        let Some(failure) = volume::reclaim(volume).filter(|_| phase != "Failed") else { return Ok(()) };
        self.write_volume_phase(volume, "Failed", Some(&failure)).await?;
        self.say(volume, &failure);
        Ok(())
    }
}

fn phase_of(claim: &PersistentVolumeClaim) -> &str {
    claim.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("")
}

/// What the volume lacks of its half of the binding.
fn volume_half(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Option<Value> {
    let known = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
    if known.is_some_and(|known| known.uid == claim.metadata.uid && binding::is_bound_to(volume, claim)) {
        return None;
    }
    let mut patch = json!({"spec": {"claimRef": reference(claim)}});
    if !binding::is_bound_to(volume, claim) {
        patch["metadata"] = json!({"annotations": {binding::BOUND_BY_CONTROLLER: "yes"}});
    }
    Some(patch)
}

/// What the claim lacks of its half of the binding.
fn claim_half(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Option<Value> {
    let is_complete = binding::annotation(&claim.metadata, binding::BIND_COMPLETED).is_some();
    let name = volume.metadata.name.as_deref().unwrap_or("");
    if binding::volume_name(claim) == name && is_complete {
        return None;
    }
    let mut patch = json!({"metadata": {"annotations": {binding::BIND_COMPLETED: "yes"}}});
    if binding::volume_name(claim) != name {
        patch["spec"] = json!({"volumeName": name});
        patch["metadata"]["annotations"][binding::BOUND_BY_CONTROLLER] = json!("yes");
    }
    Some(patch)
}

#[async_trait]
impl Controller for Binder {
    fn name(&self) -> &'static str {
        "persistentvolumebinder"
    }

    fn watch(&self, watches: &mut Watches) {
        watches.on(&self.claims, |seen: Seen<'_, PersistentVolumeClaim>, queue: &Queue| {
            let Some(claim) = seen.newest() else { return };
            queue.add(ObjectKey::of(claim));
            for name in seen.states().map(binding::volume_name).filter(|name| !name.is_empty()) {
                queue.add(ObjectKey::new("", name));
            }
        });
        let claims = Arc::clone(&self.claims);
        let add_unbound = move |queue: &Queue, class: &str| {
            let all = claims.by_index(UNBOUND, UNBOUND);
            let concerned =
                all.iter().filter(|claim| matches!(binding::claim_class(claim), own if own.is_empty() || own == class));
            concerned.for_each(|claim| queue.add(ObjectKey::of(&**claim)));
        };
        let (add_by_volume, claims) = (add_unbound.clone(), Arc::clone(&self.claims));
        watches.on(&self.volumes, move |seen: Seen<'_, PersistentVolume>, queue: &Queue| {
            let Some(volume) = seen.newest() else { return };
            queue.add(ObjectKey::of(volume));
            for state in seen.states() {
                let Some(reference) = state.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref()) else { continue };
                let key = (reference.namespace.as_deref().unwrap_or(""), reference.name.as_deref().unwrap_or(""));
                if claims.get(key.0, key.1).is_some() {
                    queue.add(ObjectKey::new(key.0, key.1));
                }
            }
            let is_available = |volume: &PersistentVolume| {
                volume.status.as_ref().is_some_and(|status| status.phase.as_deref() == Some("Available"))
            };
            let is_news = seen
                .old
                .is_none_or(|old| !is_available(old) || old.spec != volume.spec || old.metadata.labels != volume.metadata.labels);
            if seen.new.is_some_and(is_available) && is_news {
                add_by_volume(queue, binding::volume_class(volume));
            }
        });
        watches.on(&self.classes, move |seen: Seen<'_, StorageClass>, queue: &Queue| {
            if let Some(class) = seen.new {
                add_unbound(queue, class.name());
            }
        });
        let claims = Arc::clone(&self.claims);
        watches.on(&self.pods, move |seen: Seen<'_, Pod>, queue: &Queue| {
            // A claim that waits for its first consumer says which pod it waits for.
            let Some(pod) = seen.new.filter(|_| seen.old.is_none()) else { return };
            for (name, _) in binding::claims_of(pod) {
                if claims.get(pod.namespace(), &name).is_some_and(|claim| !binding::is_fully_bound(&claim)) {
                    queue.add(ObjectKey::new(pod.namespace(), &name));
                }
            }
        });
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Requeue, Error> {
        if !key.namespace.is_empty() {
            if let Some(claim) = self.claims.get(&key.namespace, &key.name) {
                self.sync_claim(&claim).await?;
            }
            return Ok(Requeue::Done);
        }
        let Some(volume) = self.volumes.get("", &key.name) else { return Ok(Requeue::Done) };
        match self.sync_volume(&volume).await? {
            Some(claim) => {
                if let Some(claim) = self.claims.get(&claim.namespace, &claim.name) {
                    self.sync_claim(&claim).await?;
                }
                Ok(Requeue::Done)
            }
            None => Ok(Requeue::Done),
        }
    }

    fn workers(&self) -> usize {
        // A volume is given away once: decisions follow one another, and the revision guards the rest.
        1
    }
}
