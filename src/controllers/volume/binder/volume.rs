//! What to do about a volume: upstream's `syncVolume`, as a pure function.

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};

use super::super::Say;
use crate::kinds::storage::binding;

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// Only its phase may be another.
    Phase(&'static str),
    /// Its claim is gone: it is Released, and its reclaim policy says what comes then.
    Release,
    /// It was meant for a claim that is bound elsewhere.
    Unbind,
    /// The claim's turn: its reconcile completes the binding.
    AskClaim,
    /// They cannot be bound; said of the volume and of the claim.
    Mismatch { of_volume: Say, of_claim: Say },
}

/// Decides; `claim` is what the volume's reference names, looked up in the API too if the cache does not have it.
pub(super) fn plan(volume: &PersistentVolume, claim: Option<&PersistentVolumeClaim>) -> Step {
    let reference = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
    let Some(uid) = reference.and_then(|reference| reference.uid.as_deref()).filter(|uid| !uid.is_empty()) else {
        // Unclaimed, or reserved for a claim that is not bound yet.
        return Step::Phase("Available");
    };
    let Some(claim) = claim.filter(|claim| claim.metadata.uid.as_deref() == Some(uid)) else { return Step::Release };
    let name = volume.metadata.name.as_deref().unwrap_or("");
    match binding::volume_name(claim) {
        "" if binding::differs_in_mode(volume, claim) => {
            let of = claim.metadata.name.as_deref().unwrap_or("");
            let of_volume =
                format!("Cannot bind PersistentVolume to requested PersistentVolumeClaim {of:?} due to incompatible volumeMode.");
            let of_claim = format!(
                "Cannot bind PersistentVolume {name:?} to requested PersistentVolumeClaim due to incompatible volumeMode."
            );
            Step::Mismatch {
                of_volume: Say::warning("VolumeMismatch", of_volume),
                of_claim: Say::warning("VolumeMismatch", of_claim),
            }
        }
        "" => Step::AskClaim,
        bound if bound == name => Step::Phase("Bound"),
        _ => {
            let policy = volume.spec.as_ref().and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref());
            let is_provisioned = binding::annotation(&volume.metadata, binding::PROVISIONED_BY).is_some();
            // One that was made for this claim alone is of no use to another.
            if is_provisioned && policy == Some("Delete") { Step::Release } else { Step::Unbind }
        }
    }
}

/// What becomes of a Released volume: the phase `Failed` and its reason, or nothing that this controller does.
pub(super) fn reclaim(volume: &PersistentVolume) -> Option<Say> {
    let spec = volume.spec.as_ref()?;
    let is_provisioned = binding::annotation(&volume.metadata, binding::PROVISIONED_BY).is_some();
    match spec.persistent_volume_reclaim_policy.as_deref() {
        Some("Recycle") => Some(Say::warning("VolumeFailedRecycle", "No recycler plugin found for the volume!")),
        // Who made it takes it away.
        Some("Delete") if is_provisioned => None,
        Some("Delete") => Some(Say::warning(
            "VolumeFailedDelete",
            match &spec.host_path {
                Some(source) => format!("host_path deleter only supports /tmp/.+ but received provided {}", source.path),
                None => format!(
                    "error getting deleter volume plugin for volume {:?}: no deletable volume plugin matched",
                    volume.metadata.name.as_deref().unwrap_or("")
                ),
            },
        )),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn volumes_as_upstream_syncs_them() {
        let volume = |annotations: Value, spec: Value| -> PersistentVolume {
            serde_json::from_value(json!({"metadata": {"name": "v", "annotations": annotations}, "spec": spec})).unwrap()
        };
        let claim = |uid: &str, spec: Value| -> PersistentVolumeClaim {
            serde_json::from_value(json!({"metadata": {"name": "c", "namespace": "n", "uid": uid}, "spec": spec})).unwrap()
        };
        let bound = |policy: &str| json!({"claimRef": {"namespace": "n", "name": "c", "uid": "u"}, "persistentVolumeReclaimPolicy": policy});
        let made = json!({"pv.kubernetes.io/provisioned-by": "x"});
        let at = |name: &str| Some(claim("u", json!({"volumeName": name})));
        let raw = Some(claim("u", json!({"volumeMode": "Block"})));
        for (annotations, spec, claim, expected) in [
            (json!({}), json!({}), None, Step::Phase("Available")),
            (json!({}), json!({"claimRef": {"namespace": "n", "name": "c"}}), None, Step::Phase("Available")),
            (json!({}), bound("Retain"), None, Step::Release),
            (json!({}), bound("Retain"), Some(claim("new", json!({}))), Step::Release),
            (json!({}), bound("Retain"), at("v"), Step::Phase("Bound")),
            (json!({}), bound("Retain"), at(""), Step::AskClaim),
            (json!({}), bound("Retain"), at("w"), Step::Unbind),
            (made.clone(), bound("Delete"), at("w"), Step::Release),
            (made, bound("Retain"), at("w"), Step::Unbind),
        ] {
            assert_eq!(plan(&volume(annotations, spec), claim.as_ref()), expected);
        }
        assert!(matches!(plan(&volume(json!({}), bound("Retain")), raw.as_ref()), Step::Mismatch { .. }));
    }

    #[test]
    fn what_becomes_of_a_released_volume() {
        for (annotations, spec, expected) in [
            (json!({}), json!({"persistentVolumeReclaimPolicy": "Retain"}), None),
            (json!({}), json!({"persistentVolumeReclaimPolicy": "Recycle"}), Some("VolumeFailedRecycle")),
            (json!({}), json!({"persistentVolumeReclaimPolicy": "Delete"}), Some("VolumeFailedDelete")),
            (json!({"pv.kubernetes.io/provisioned-by": "x"}), json!({"persistentVolumeReclaimPolicy": "Delete"}), None),
        ] {
            let value = json!({"metadata": {"name": "v", "annotations": annotations}, "spec": spec});
            let volume: PersistentVolume = serde_json::from_value(value).unwrap();
            assert_eq!(reclaim(&volume).map(|say| say.reason), expected, "{spec}");
        }
    }
}
