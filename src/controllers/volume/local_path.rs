//! The built-in provisioner `orch.io/local-path`: writes volumes that are directories of the node that the scheduler chose. The node's
//! agent makes the directory when it is first mounted, and removes it when the volume goes (see `kinds::storage::local_path`).

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{
    LocalVolumeSource, Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, PersistentVolume, PersistentVolumeClaim,
    PersistentVolumeSpec, VolumeNodeAffinity,
};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::json;

use super::Say;
use super::protection::{let_go, waits_for};
use crate::client::informer::Informer;
use crate::client::recorder::{EventType, Recorder, reference};
use crate::client::{Cached, Client, DeleteOptions, ObjectKey, PatchKind, Preconditions};
use crate::controllers::{Context, Controller, Error, Queue, Requeue, Seen, Watches};
use crate::kinds::storage::{binding, local_path as names};

const HOSTNAME: &str = "kubernetes.io/hostname";

/// The provisioner of local volumes. A key is a claim, or, without a namespace, a volume.
pub(in crate::controllers) fn local_path(context: &Context) -> Arc<dyn Controller> {
    let informers = &context.config.informers;
    Arc::new(LocalPath {
        claims: informers.of(),
        volumes: informers.of(),
        classes: informers.of(),
        nodes: informers.of(),
        client: context.client("local-path-provisioner"),
        recorder: context.recorder(names::PROVISIONER),
    })
}

struct LocalPath {
    claims: Arc<Informer<PersistentVolumeClaim>>,
    volumes: Arc<Informer<PersistentVolume>>,
    classes: Arc<Informer<StorageClass>>,
    nodes: Arc<Informer<Node>>,
    client: Client,
    recorder: Recorder,
}

/// Why no volume is made.
#[derive(Debug, PartialEq, Eq)]
enum Refusal {
    /// As things are, never.
    Final(String),
    /// Not on this node: the scheduler is to choose again.
    Elsewhere(String),
}

/// Whether the claim waits for a volume of ours.
fn is_ours(claim: &PersistentVolumeClaim) -> bool {
    let asked =
        binding::STORAGE_PROVISIONERS.iter().any(|key| binding::annotation(&claim.metadata, key) == Some(names::PROVISIONER));
    asked && binding::volume_name(claim).is_empty() && claim.metadata.deletion_timestamp.is_none()
}

fn made_by_us(volume: &PersistentVolume) -> bool {
    binding::annotation(&volume.metadata, binding::PROVISIONED_BY) == Some(names::PROVISIONER)
}

fn name_for(claim: &PersistentVolumeClaim) -> String {
    format!("pvc-{}", claim.metadata.uid.as_deref().unwrap_or(""))
}

/// The volume for a claim on a node.
fn volume_for(claim: &PersistentVolumeClaim, class: &StorageClass, node: Option<&Node>) -> Result<PersistentVolume, Refusal> {
    let asked_node = binding::annotation(&claim.metadata, binding::SELECTED_NODE);
    let Some(asked_node) = asked_node.filter(|name| !name.is_empty()) else {
        return Err(Refusal::Final("configuration error, no node was specified: the StorageClass of local volumes needs volumeBindingMode WaitForFirstConsumer".to_owned()));
    };
    let spec = claim.spec.as_ref();
    if spec.is_some_and(|spec| spec.selector.is_some()) {
        return Err(Refusal::Final("claim.Spec.Selector is not supported".to_owned()));
    }
    if spec.is_some_and(|spec| spec.data_source.is_some() || spec.data_source_ref.is_some()) {
        return Err(Refusal::Final("claim.Spec.DataSource is not supported: a local volume begins empty".to_owned()));
    }
    if spec.is_some_and(|spec| spec.volume_attributes_class_name.as_ref().is_some_and(|name| !name.is_empty())) {
        return Err(Refusal::Final("claim.Spec.VolumeAttributesClassName is not supported: a local volume has none".to_owned()));
    }
    let parameters = class.parameters.clone().unwrap_or_default();
    let kind = parameters.get(names::TYPE_PARAMETER).map_or(names::DIRECTORY, String::as_str);
    if ![names::DIRECTORY, names::LOOP].contains(&kind) {
        return Err(Refusal::Final(format!("parameter type {kind:?} is neither \"directory\" nor \"loop\"")));
    }
    if let Some(unknown) = parameters.keys().find(|key| *key != names::TYPE_PARAMETER) {
        return Err(Refusal::Final(format!("parameter {unknown:?} is not known")));
    }
    let mode = spec.and_then(|spec| spec.volume_mode.as_deref()).unwrap_or("Filesystem");
    // A raw device has a size: it cannot be a directory.
    let kind = if mode == "Block" { names::LOOP } else { kind };
    if binding::claim_modes(claim).iter().any(|mode| matches!(mode.as_str(), "ReadWriteMany" | "ReadOnlyMany")) {
        return Err(Refusal::Final("a local volume can be used on one node only: ReadWriteOnce or ReadWriteOncePod".to_owned()));
    }
    let Some(node) = node else { return Err(Refusal::Elsewhere(format!("node {asked_node:?} not found"))) };
    let Some(directory) = binding::annotation(&node.metadata, names::NODE_DIRECTORY) else {
        return Err(Refusal::Elsewhere(format!("node {asked_node:?} has no directory for local volumes")));
    };
    let (namespace, claim_name) =
        (claim.metadata.namespace.as_deref().unwrap_or(""), claim.metadata.name.as_deref().unwrap_or(""));
    let name = name_for(claim);
    let host = node.metadata.labels.as_ref().and_then(|labels| labels.get(HOSTNAME)).cloned();
    let text = |pairs: &[(&str, &str)]| pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    Ok(PersistentVolume {
        metadata: ObjectMeta {
            labels: Some(text(&[(names::NODE_LABEL, asked_node)])),
            annotations: Some(text(&[(binding::PROVISIONED_BY, names::PROVISIONER), (names::TYPE, kind)])),
            finalizers: Some(vec![names::FINALIZER.to_owned()]),
            name: Some(name.clone()),
            ..ObjectMeta::default()
        },
        spec: Some(PersistentVolumeSpec {
            access_modes: spec.and_then(|spec| spec.access_modes.clone()),
            capacity: Some(BTreeMap::from([("storage".to_owned(), binding::requested(claim).to_typed())])),
            claim_ref: Some(reference(claim)),
            local: Some(LocalVolumeSource { path: format!("{directory}/{name}_{namespace}_{claim_name}"), fs_type: None }),
            mount_options: class.mount_options.clone(),
            node_affinity: Some(affinity(host.unwrap_or_else(|| asked_node.to_owned()))),
            persistent_volume_reclaim_policy: class.reclaim_policy.clone().or_else(|| Some("Delete".to_owned())),
            storage_class_name: class.metadata.name.clone(),
            volume_mode: Some(mode.to_owned()),
            ..PersistentVolumeSpec::default()
        }),
        status: None,
    })
}

fn affinity(host: String) -> VolumeNodeAffinity {
    let requirement = NodeSelectorRequirement { key: HOSTNAME.to_owned(), operator: "In".to_owned(), values: Some(vec![host]) };
    let term = NodeSelectorTerm { match_expressions: Some(vec![requirement]), match_fields: None };
    VolumeNodeAffinity { required: Some(NodeSelector { node_selector_terms: vec![term] }) }
}

/// What is to be done with a volume of ours.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// Nobody needs it any more: delete it. Its finalizer keeps it until the data are gone.
    Delete,
    /// Let it go and leave what is on the disk.
    Forget,
    Nothing,
}

fn step(volume: &PersistentVolume, has_node: bool) -> Step {
    let phase = volume.status.as_ref().and_then(|status| status.phase.as_deref());
    let policy = volume.spec.as_ref().and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref());
    let is_deleted = volume.metadata.deletion_timestamp.is_some();
    let is_protected = volume.metadata.finalizers.iter().flatten().any(|own| own == binding::VOLUME_PROTECTION);
    match (is_deleted, policy) {
        (false, Some("Delete")) if phase == Some("Released") => Step::Delete,
        (true, _) if is_protected || !waits_for(&volume.metadata, names::FINALIZER) => Step::Nothing,
        // What is to be retained, or was on a node that is no more, is not the agent's business.
        (true, policy) if policy != Some("Delete") || !has_node => Step::Forget,
        _ => Step::Nothing,
    }
}

impl LocalPath {
    fn say(&self, claim: &PersistentVolumeClaim, say: Say) {
        let kind = if say.is_warning { EventType::Warning } else { EventType::Normal };
        self.recorder.event(&reference(claim), kind, say.reason, say.message);
    }

    async fn provision(&self, claim: &PersistentVolumeClaim) -> Result<(), Error> {
        let name = name_for(claim);
        let class = binding::claim_class(claim);
        let Some(class) = self.classes.get("", class).filter(|class| class.provisioner == names::PROVISIONER) else {
            return Ok(());
        };
        if self.volumes.get("", &name).is_some() {
            return Ok(());
        }
        let (namespace, own) = (claim.namespace(), claim.name());
        let node = binding::annotation(&claim.metadata, binding::SELECTED_NODE).and_then(|name| self.nodes.get("", name));
        let refused = |why: &str| {
            let message = format!("failed to provision volume with StorageClass {:?}: {why}", class.name());
            Say::warning("ProvisioningFailed", message)
        };
        match volume_for(claim, &class, node.as_deref()) {
            Ok(volume) => {
                self.say(
                    claim,
                    Say::normal(
                        "Provisioning",
                        format!("External provisioner is provisioning volume for claim \"{namespace}/{own}\""),
                    ),
                );
                match self.client.create(&volume).await {
                    Ok(_) => {
                        self.say(claim, Say::normal("ProvisioningSucceeded", format!("Successfully provisioned volume {name}")))
                    }
                    Err(error) if error.is_already_exists() => {}
                    Err(error) => {
                        self.say(claim, refused(&error.to_string()));
                        return Err(error.into());
                    }
                }
                Ok(())
            }
            Err(Refusal::Final(why)) => {
                self.say(claim, refused(&why));
                Ok(())
            }
            Err(Refusal::Elsewhere(why)) => {
                self.say(claim, refused(&why));
                let meta = &claim.metadata;
                let patch = json!({"metadata": {"resourceVersion": meta.resource_version, "uid": meta.uid,
                    "annotations": {binding::SELECTED_NODE: null}}});
                self.client.patch::<PersistentVolumeClaim>(namespace, own, None, PatchKind::Merge, &patch).await?;
                Ok(())
            }
        }
    }

    async fn tidy(&self, volume: &PersistentVolume) -> Result<(), Error> {
        let node = volume.metadata.labels.as_ref().and_then(|labels| labels.get(names::NODE_LABEL));
        let has_node = node.is_some_and(|name| self.nodes.get("", name).is_some());
        match step(volume, has_node) {
            Step::Nothing => Ok(()),
            Step::Delete => {
                let preconditions = Some(Preconditions { uid: volume.metadata.uid.clone(), resource_version: None });
                let options = DeleteOptions { preconditions, ..DeleteOptions::default() };
                match self.client.delete::<PersistentVolume>("", volume.name(), &options).await {
                    Err(error) if !error.is_not_found() => Err(error.into()),
                    _ => Ok(()),
                }
            }
            Step::Forget => {
                if !has_node {
                    tracing::warn!(volume = volume.name(), "the node of a local volume is gone: what is on its disk stays there");
                }
                let_go(&self.client, volume, names::FINALIZER).await
            }
        }
    }
}

#[async_trait]
impl Controller for LocalPath {
    fn name(&self) -> &'static str {
        "localpathprovisioner"
    }

    fn watch(&self, watches: &mut Watches) {
        watches.on(&self.claims, |seen: Seen<'_, PersistentVolumeClaim>, queue: &Queue| {
            if let Some(claim) = seen.new.filter(|claim| is_ours(claim)) {
                queue.add(ObjectKey::of(claim));
            }
        });
        watches.on(&self.volumes, |seen: Seen<'_, PersistentVolume>, queue: &Queue| {
            if let Some(volume) = seen.new.filter(|volume| made_by_us(volume)) {
                queue.add(ObjectKey::of(volume));
            }
        });
        let volumes = Arc::clone(&self.volumes);
        watches.on(&self.nodes, move |seen: Seen<'_, Node>, queue: &Queue| {
            if seen.new.is_none() {
                volumes.list().iter().filter(|volume| made_by_us(volume)).for_each(|volume| queue.add(ObjectKey::of(&**volume)));
            }
        });
        watches.after(&self.classes);
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Requeue, Error> {
        if key.namespace.is_empty() {
            if let Some(volume) = self.volumes.get("", &key.name) {
                self.tidy(&volume).await?;
            }
        } else if let Some(claim) = self.claims.get(&key.namespace, &key.name).filter(|claim| is_ours(claim)) {
            self.provision(&claim).await?;
        }
        Ok(Requeue::Done)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn class(parameters: &Value) -> StorageClass {
        let value = json!({"metadata": {"name": "local-path"}, "provisioner": names::PROVISIONER, "parameters": parameters});
        serde_json::from_value(value).unwrap()
    }

    fn claim(node: &str, spec: &Value) -> PersistentVolumeClaim {
        let mut value = json!({"metadata": {"name": "data", "namespace": "shop", "uid": "u",
                "annotations": {"volume.kubernetes.io/selected-node": node}},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}});
        for (key, extra) in spec.as_object().into_iter().flatten() {
            value["spec"][key] = extra.clone();
        }
        serde_json::from_value(value).unwrap()
    }

    fn node(directory: &str) -> Node {
        serde_json::from_value(json!({"metadata": {"name": "n1", "labels": {"kubernetes.io/hostname": "h1"},
            "annotations": {names::NODE_DIRECTORY: directory}}}))
        .unwrap()
    }

    #[test]
    fn a_volume_is_a_directory_of_its_node() {
        let made = volume_for(&claim("n1", &json!({})), &class(&json!({})), Some(&node("/data/storage"))).unwrap();
        let spec = made.spec.unwrap();
        assert_eq!(spec.local.unwrap().path, "/data/storage/pvc-u_shop_data");
        assert_eq!(spec.capacity.unwrap()["storage"].0, "1Gi");
        assert_eq!(spec.persistent_volume_reclaim_policy.as_deref(), Some("Delete"));
        let terms = spec.node_affinity.unwrap().required.unwrap().node_selector_terms;
        assert_eq!(terms[0].match_expressions.as_ref().unwrap()[0].values.as_ref().unwrap()[0], "h1");
        assert_eq!(made.metadata.finalizers.unwrap(), [names::FINALIZER]);
        assert_eq!(made.metadata.annotations.unwrap()[names::TYPE], "directory");
    }

    #[test]
    fn what_cannot_be_made() {
        for (node_name, spec, parameters, has_node, expected) in [
            ("", json!({}), json!({}), true, "no node was specified"),
            ("n1", json!({"accessModes": ["ReadWriteMany"]}), json!({}), true, "one node only"),
            ("n1", json!({"selector": {"matchLabels": {"a": "b"}}}), json!({}), true, "Selector is not supported"),
            ("n1", json!({}), json!({"type": "tape"}), true, "neither"),
            ("n1", json!({}), json!({"size": "1"}), true, "not known"),
            ("n1", json!({}), json!({}), false, "not found"),
        ] {
            let node = has_node.then(|| node("/d"));
            let refused = volume_for(&claim(node_name, &spec), &class(&parameters), node.as_ref()).unwrap_err();
            let (Refusal::Final(why) | Refusal::Elsewhere(why)) = &refused;
            assert!(why.contains(expected), "{why}");
            assert_eq!(matches!(refused, Refusal::Elsewhere(_)), !has_node);
        }
        let block = volume_for(&claim("n1", &json!({"volumeMode": "Block"})), &class(&json!({})), Some(&node("/d"))).unwrap();
        assert_eq!(block.metadata.annotations.unwrap()[names::TYPE], "loop");
    }

    #[test]
    fn volumes_go_with_their_data_or_without() {
        let volume = |deleted: bool, finalizers: &[&str], policy: &str, phase: &str| -> PersistentVolume {
            let mut value = json!({"metadata": {"name": "v", "finalizers": finalizers},
                "spec": {"persistentVolumeReclaimPolicy": policy}, "status": {"phase": phase}});
            if deleted {
                value["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            }
            serde_json::from_value(value).unwrap()
        };
        let (ours, both) = (&[names::FINALIZER][..], &[names::FINALIZER, binding::VOLUME_PROTECTION][..]);
        for (deleted, finalizers, policy, phase, has_node, expected) in [
            (false, both, "Delete", "Bound", true, Step::Nothing),
            (false, both, "Delete", "Released", true, Step::Delete),
            (false, both, "Retain", "Released", true, Step::Nothing),
            (true, both, "Delete", "Bound", true, Step::Nothing),
            (true, ours, "Delete", "Released", true, Step::Nothing),
            (true, ours, "Delete", "Released", false, Step::Forget),
            (true, ours, "Retain", "Released", true, Step::Forget),
        ] {
            assert_eq!(step(&volume(deleted, finalizers, policy, phase), has_node), expected, "{deleted} {policy} {phase}");
        }
    }
}
