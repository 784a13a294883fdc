//! Which volume a pod's claim means. What was found is noted in the pod's directory: a restarted agent knows it without the API, and
//! whoever takes a volume down knows which pods still use it.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod, Volume};
use serde::{Deserialize, Serialize};

use crate::agent::pod::context::Context;
use crate::agent::sources::FIRST_LOOK;
use crate::api::quantity::Quantity;
use crate::kinds::storage::binding;

/// How long to wait for the API to show a claim whose volume is known from before.
const SHORT_LOOK: Duration = Duration::from_secs(1);
/// Directory of the notes in a pod's directory.
const NOTES: &str = "claims";

/// A claim of a pod and the volume that it is bound to.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Claimed {
    /// The name in the pod.
    pub name: String,
    pub claim: String,
    /// Whether the pod may only read.
    pub read_only: bool,
    /// Whether its group was given what is in it.
    pub is_owned: bool,
    pub volume: PersistentVolume,
    /// Whether the claim does not say yet how big its volume has become.
    #[serde(skip)]
    pub has_grown: bool,
}

impl Claimed {
    /// The name of the PersistentVolume.
    pub fn volume_name(&self) -> &str {
        self.volume.metadata.name.as_deref().unwrap_or("")
    }

    /// Whether it is a raw device.
    pub fn is_block(&self) -> bool {
        self.volume.spec.as_ref().is_some_and(|spec| spec.volume_mode.as_deref() == Some("Block"))
    }

    /// Writes the note.
    ///
    /// # Errors
    /// As the file system has it.
    pub fn note(&self, pod_dir: &Path) -> io::Result<()> {
        let bytes = serde_json::to_vec(self)?;
        let path = path(pod_dir, &self.name);
        if std::fs::read(&path).is_ok_and(|known| known == bytes) {
            return Ok(());
        }
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        crate::rt::files::write(&path, &bytes, 0o600)
    }
}

fn path(pod_dir: &Path, name: &str) -> PathBuf {
    pod_dir.join(NOTES).join(format!("{name}.json"))
}

fn read(path: &Path) -> Option<Claimed> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

/// All claims that are noted in a pod's directory.
pub fn noted(pod_dir: &Path) -> Vec<Claimed> {
    let entries = std::fs::read_dir(pod_dir.join(NOTES)).into_iter().flatten().flatten();
    entries.filter_map(|entry| read(&entry.path())).collect()
}

/// Whether a pod other than `except` has a volume noted.
pub fn is_used(pods_dir: &Path, volume: &str, except: &str) -> bool {
    let pods = std::fs::read_dir(pods_dir).into_iter().flatten().flatten();
    let mut others = pods.filter(|pod| pod.file_name() != except);
    others.any(|pod| noted(&pod.path()).iter().any(|claimed| claimed.volume_name() == volume))
}

/// Looks up what a volume of a pod means.
///
/// # Errors
/// The kubelet's words: the claim is not there, not bound, or bound to somebody else's volume.
pub async fn resolve(context: &Context, pod: &Pod, volume: &Volume) -> Result<Claimed, String> {
    let (uid, namespace) = (pod.metadata.uid.as_deref().unwrap_or(""), pod.metadata.namespace.as_deref().unwrap_or(""));
    let (name, is_ephemeral) = binding::claim_of(pod, volume).ok_or("the volume names no claim")?;
    let known = read(&path(&context.pod_dir(pod), &volume.name));
    let failed = |why: String| format!("error processing PVC {namespace}/{name}: {why}");
    // What is known already need not wait long for an API that is away.
    let patience = if known.is_some() { SHORT_LOOK } else { FIRST_LOOK };
    let claim = match (context.sources.claim(uid, namespace, &name, patience).await, &known) {
        (Ok(Some(claim)), _) => claim,
        // What was mounted stays mounted, whatever becomes of the claim.
        (_, Some(known)) => return Ok(known.clone()),
        (Ok(None), None) => {
            return Err(failed(format!("failed to fetch PVC from API server: persistentvolumeclaims {name:?} not found")));
        }
        (Err(error), None) => return Err(failed(format!("failed to fetch PVC from API server: {error}"))),
    };
    if is_ephemeral && !binding::is_made_for(&claim, pod) {
        let of = pod.metadata.name.as_deref().unwrap_or("");
        return Err(failed(format!("PVC {namespace}/{name} was not created for pod {namespace}/{of} (pod is not owner)")));
    }
    if known.is_none() && claim.metadata.deletion_timestamp.is_some() {
        return Err(failed("PVC is being deleted".to_owned()));
    }
    let is_bound = claim.status.as_ref().is_some_and(|status| status.phase.as_deref() == Some("Bound"));
    let bound_to = binding::volume_name(&claim);
    if !is_bound || bound_to.is_empty() {
        return Err(failed("PVC is not bound".to_owned()));
    }
    let found = tokio::time::timeout(FIRST_LOOK, context.client.get::<PersistentVolume>("", bound_to)).await;
    let found = match found
        .map_err(|_| "the API server does not answer".to_owned())
        .and_then(|got| got.map_err(|error| error.to_string()))
    {
        Ok(found) => found,
        Err(why) => match known {
            Some(known) => return Ok(known),
            None => return Err(failed(format!("failed to get PV {bound_to:?} from API server: {why}"))),
        },
    };
    if !binding::is_bound_to(&found, &claim) {
        return Err(failed(format!("PV {bound_to} is bound to another claim than PVC {namespace}/{name}")));
    }
    let asked = volume.persistent_volume_claim.as_ref().and_then(|source| source.read_only);
    Ok(Claimed {
        name: volume.name.clone(),
        claim: name,
        read_only: asked == Some(true),
        is_owned: known.is_some_and(|known| known.is_owned),
        has_grown: said(&claim).is_some_and(|said| said < binding::capacity(&found)),
        volume: found,
    })
}

/// How big a claim says that its volume is.
fn said(claim: &PersistentVolumeClaim) -> Option<Quantity> {
    let amounts = claim.status.as_ref().and_then(|status| status.capacity.as_ref());
    Quantity::try_from(amounts?.get("storage")?).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn notes_say_who_uses_a_volume() {
        let folder = tempfile::tempdir().unwrap();
        let claimed = |volume: &str| Claimed {
            name: "data".to_owned(),
            claim: "c".to_owned(),
            read_only: false,
            is_owned: false,
            has_grown: false,
            volume: serde_json::from_value(json!({"metadata": {"name": volume}})).unwrap(),
        };
        claimed("v").note(&folder.path().join("pod-1")).unwrap();
        claimed("w").note(&folder.path().join("pod-2")).unwrap();
        assert_eq!(noted(&folder.path().join("pod-1"))[0].volume_name(), "v");
        assert!(is_used(folder.path(), "v", "pod-2") && !is_used(folder.path(), "v", "pod-1"));
        assert!(!is_used(folder.path(), "x", ""));
    }
}
