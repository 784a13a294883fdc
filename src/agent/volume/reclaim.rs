//! Removes the data of local volumes that nobody needs any more: the other half of the built-in provisioner. A volume that is deleted
//! keeps its finalizer until this node has removed what is on its disk.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::PersistentVolume;
use serde_json::json;

use super::claim;
use crate::agent::pod::context::Context;
use crate::client::PatchKind;
use crate::client::informer::{Change, Informer, Scope};
use crate::kinds::storage::{binding, local_path as names};
use crate::rt::Backoff;

/// Whether the data of a volume are to be removed: it is deleted, unbound, and not to be retained.
fn is_due(volume: &PersistentVolume) -> bool {
    let mut finalizers = volume.metadata.finalizers.iter().flatten();
    let is_protected = volume.metadata.finalizers.iter().flatten().any(|own| own == binding::VOLUME_PROTECTION);
    let policy = volume.spec.as_ref().and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref());
    volume.metadata.deletion_timestamp.is_some()
        && finalizers.any(|own| own == names::FINALIZER)
        && !is_protected
        && policy == Some("Delete")
}

/// Removes what is due, for ever.
pub async fn run(context: Arc<Context>, node: String) {
    let query = format!("labelSelector={}%3D{node}", names::NODE_LABEL.replace('/', "%2F"));
    let scope = Scope { namespace: String::new(), query };
    let volumes = Informer::<PersistentVolume>::start(&context.tasks, context.client.clone(), scope);
    let mut changes = volumes.subscribe();
    let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
    loop {
        let mut all_done = true;
        for volume in volumes.list().iter().filter(|volume| is_due(volume)) {
            if let Err(why) = remove(&context, volume).await {
                let name = volume.metadata.name.as_deref().unwrap_or("");
                tracing::warn!(volume = name, why, "the data of a local volume were not removed; trying again");
                all_done = false;
            }
        }
        if all_done {
            backoff.reset();
        }
        tokio::select! {
            change = next(&mut changes) => if change.is_none() { return },
            () = tokio::time::sleep(backoff.next_delay()), if !all_done => {}
        }
    }
}

/// The next change, and all that came with it.
async fn next(changes: &mut crate::client::informer::Subscription<PersistentVolume>) -> Option<Change<PersistentVolume>> {
    let first = changes.next().await;
    while changes.try_next().is_some() {}
    first
}

async fn remove(context: &Context, volume: &PersistentVolume) -> Result<(), String> {
    let name = volume.metadata.name.as_deref().unwrap_or("");
    if claim::is_used(&context.pods_dir, name, "") {
        return Err("a pod on this node still uses it".to_owned());
    }
    match context.volumes.local_paths().path_of(volume) {
        Some(path) => context.volumes.local_paths().remove(volume, &path).await?,
        // Made for another directory of this node: what is there is not this agent's to remove.
        None => tracing::warn!(volume = name, "a volume of this node is not in its directory of local volumes: its data stay"),
    }
    let kept: Vec<&String> = volume.metadata.finalizers.iter().flatten().filter(|own| *own != names::FINALIZER).collect();
    let patch = json!({"metadata": {"resourceVersion": volume.metadata.resource_version, "finalizers": kept}});
    match context.client.patch::<PersistentVolume>("", name, None, PatchKind::Merge, &patch).await {
        Err(error) if !error.is_not_found() => Err(error.to_string()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_are_removed_when_nothing_speaks_for_them() {
        let volume = |deleted: bool, finalizers: &[&str], policy: &str| -> PersistentVolume {
            let mut value =
                json!({"metadata": {"name": "v", "finalizers": finalizers}, "spec": {"persistentVolumeReclaimPolicy": policy}});
            if deleted {
                value["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            }
            serde_json::from_value(value).unwrap()
        };
        let (ours, both) = (&[names::FINALIZER][..], &[names::FINALIZER, binding::VOLUME_PROTECTION][..]);
        for (deleted, finalizers, policy, expected) in [
            (true, ours, "Delete", true),
            (false, ours, "Delete", false),
            (true, both, "Delete", false),
            (true, ours, "Retain", false),
            (true, &[][..], "Delete", false),
        ] {
            assert_eq!(is_due(&volume(deleted, finalizers, policy)), expected, "{deleted} {finalizers:?} {policy}");
        }
    }
}
