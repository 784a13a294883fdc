//! Asks for CSI volumes to be attached to the nodes whose pods use them: upstream's `controller/volume/attachdetach`, for drivers that
//! say they need it. The driver's own attacher does the work; a VolumeAttachment is the request.

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{CSIPersistentVolumeSource, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::{CSIDriver, VolumeAttachment, VolumeAttachmentSource, VolumeAttachmentSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{BY_CLAIM, index_pods};
use crate::client::informer::Informer;
use crate::client::{Cached, Client, DeleteOptions, ObjectKey};
use crate::controllers::{Context, Controller, Error, Queue, Requeue, Seen, Watches, pods};
use crate::kinds::storage::binding;

/// The controller that attaches volumes. A key is a volume.
pub(in crate::controllers) fn attach(context: &Context) -> Arc<dyn Controller> {
    let informers = &context.config.informers;
    let pods = informers.of::<Pod>();
    index_pods(&pods);
    Arc::new(Attach {
        pods,
        claims: informers.of(),
        volumes: informers.of(),
        drivers: informers.of(),
        attachments: informers.of(),
        client: context.client("attachdetach-controller"),
    })
}

struct Attach {
    pods: Arc<Informer<Pod>>,
    claims: Arc<Informer<PersistentVolumeClaim>>,
    volumes: Arc<Informer<PersistentVolume>>,
    drivers: Arc<Informer<CSIDriver>>,
    attachments: Arc<Informer<VolumeAttachment>>,
    client: Client,
}

/// What is to be attached and what is to be detached.
#[derive(Debug, PartialEq, Eq)]
struct Plan {
    /// Nodes that lack an attachment.
    attach: Vec<String>,
    /// Names of attachments that nobody needs.
    detach: Vec<String>,
}

/// Decides for one volume; `nodes` are those whose pods use it.
fn plan(nodes: &BTreeSet<String>, needs_attach: bool, present: &[Arc<VolumeAttachment>]) -> Plan {
    let has = |node: &String| present.iter().any(|attachment| attachment.spec.node_name == *node);
    let attach = nodes.iter().filter(|node| needs_attach && !has(node)).cloned().collect();
    let unused = present.iter().filter(|attachment| !nodes.contains(&attachment.spec.node_name));
    let detach = unused.filter(|attachment| attachment.metadata.deletion_timestamp.is_none());
    Plan { attach, detach: detach.map(|attachment| attachment.name().to_owned()).collect() }
}

fn csi(volume: &PersistentVolume) -> Option<&CSIPersistentVolumeSource> {
    volume.spec.as_ref()?.csi.as_ref()
}

impl Attach {
    fn nodes_of(&self, volume: &PersistentVolume) -> BTreeSet<String> {
        let Some(claim) = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref()) else { return BTreeSet::new() };
        let key = format!("{}/{}", claim.namespace.as_deref().unwrap_or(""), claim.name.as_deref().unwrap_or(""));
        let users = self.pods.by_index(BY_CLAIM, &key);
        let running = users.iter().filter(|pod| !pods::has_ended(pod));
        running.filter_map(|pod| pod.spec.as_ref()?.node_name.clone()).filter(|node| !node.is_empty()).collect()
    }

    async fn attach(&self, name: &str, source: &CSIPersistentVolumeSource, node: &str) -> Result<(), Error> {
        let attachment = VolumeAttachment {
            metadata: ObjectMeta {
                name: Some(binding::attachment_name(&source.volume_handle, &source.driver, node)),
                ..ObjectMeta::default()
            },
            spec: VolumeAttachmentSpec {
                attacher: source.driver.clone(),
                node_name: node.to_owned(),
                source: VolumeAttachmentSource {
                    persistent_volume_name: Some(name.to_owned()),
                    ..VolumeAttachmentSource::default()
                },
            },
            status: None,
        };
        match self.client.create(&attachment).await {
            Err(error) if !error.is_already_exists() => Err(error.into()),
            _ => Ok(()),
        }
    }

    async fn detach(&self, name: &str) -> Result<(), Error> {
        match self.client.delete::<VolumeAttachment>("", name, &DeleteOptions::default()).await {
            Err(error) if !error.is_not_found() => Err(error.into()),
            _ => Ok(()),
        }
    }
}

#[async_trait]
impl Controller for Attach {
    fn name(&self) -> &'static str {
        "attachdetach"
    }

    fn watch(&self, watches: &mut Watches) {
        let (claims, volumes) = (Arc::clone(&self.claims), Arc::clone(&self.volumes));
        watches.on(&self.pods, move |seen: Seen<'_, Pod>, queue: &Queue| {
            let Some(pod) = seen.newest() else { return };
            for (name, _) in binding::claims_of(pod) {
                let Some(claim) = claims.get(pod.namespace(), &name) else { continue };
                let volume = binding::volume_name(&claim);
                if volumes.get("", volume).is_some_and(|volume| csi(&volume).is_some()) {
                    queue.add(ObjectKey::new("", volume));
                }
            }
        });
        watches.on(&self.volumes, |seen: Seen<'_, PersistentVolume>, queue: &Queue| {
            if let Some(volume) = seen.new.filter(|volume| csi(volume).is_some()) {
                queue.add(ObjectKey::of(volume));
            }
        });
        watches.on(&self.attachments, |seen: Seen<'_, VolumeAttachment>, queue: &Queue| {
            if let Some(name) = seen.newest().and_then(|attachment| attachment.spec.source.persistent_volume_name.as_deref()) {
                queue.add(ObjectKey::new("", name));
            }
        });
        watches.after(&self.claims);
        watches.after(&self.drivers);
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Requeue, Error> {
        let all = self.attachments.list();
        let is_mine = |one: &&Arc<VolumeAttachment>| one.spec.source.persistent_volume_name.as_deref() == Some(&*key.name);
        let present: Vec<_> = all.iter().filter(is_mine).cloned().collect();
        let volume = self.volumes.get("", &key.name);
        let Some(source) = volume.as_deref().and_then(csi) else { return Ok(Requeue::Done) };
        let driver = self.drivers.get("", &source.driver);
        let needs_attach = driver.is_none_or(|driver| driver.spec.attach_required != Some(false));
        let nodes = volume.as_deref().map(|volume| self.nodes_of(volume)).unwrap_or_default();
        let plan = plan(&nodes, needs_attach, &present);
        for node in &plan.attach {
            self.attach(&key.name, source, node).await?;
        }
        for name in &plan.detach {
            self.detach(name).await?;
        }
        Ok(Requeue::Done)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn volumes_are_attached_where_pods_use_them() {
        let attachment = |name: &str, node: &str| -> Arc<VolumeAttachment> {
            let spec = json!({"attacher": "d", "nodeName": node, "source": {"persistentVolumeName": "v"}});
            Arc::new(serde_json::from_value(json!({"metadata": {"name": name}, "spec": spec})).unwrap())
        };
        let nodes = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
        for (used, needs, present, attach, detach) in [
            (nodes(&["a"]), true, vec![], vec!["a"], vec![]),
            (nodes(&["a"]), false, vec![], vec![], vec![]),
            (nodes(&["a"]), true, vec![attachment("x", "a")], vec![], vec![]),
            (nodes(&["b"]), true, vec![attachment("x", "a")], vec!["b"], vec!["x"]),
            (nodes(&[]), true, vec![attachment("x", "a")], vec![], vec!["x"]),
        ] {
            let plan = plan(&used, needs, &present);
            assert_eq!(
                (plan.attach, plan.detach),
                (attach.iter().map(ToString::to_string).collect(), detach.iter().map(ToString::to_string).collect())
            );
        }
    }
}
