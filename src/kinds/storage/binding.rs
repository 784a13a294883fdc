//! What claims and volumes are to one another, as upstream's `component-helpers/storage/volume` has it: names of annotations, which
//! volume suits a claim, which is reserved for it. Pure; the binder and the scheduler decide by the same functions.

use std::cmp::Ordering;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod, Volume};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::api::quantity::Quantity;
use crate::api::selector::label::Selector;

/// On a claim: both halves of its binding are written.
pub const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
/// On a claim or volume: a controller, not the user, wrote this half of the binding.
pub const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
/// On a claim: the node that the scheduler wants the volume to be made for.
pub const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
/// On a volume: who made it.
pub const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
/// On a claim: who is to make its volume.
pub const STORAGE_PROVISIONERS: [&str; 2] =
    ["volume.beta.kubernetes.io/storage-provisioner", "volume.kubernetes.io/storage-provisioner"];
/// The provisioner of classes whose volumes nobody makes.
pub const NO_PROVISIONER: &str = "kubernetes.io/no-provisioner";
/// Keeps a claim while a pod uses it.
pub const CLAIM_PROTECTION: &str = "kubernetes.io/pvc-protection";
/// Keeps a volume while it is bound.
pub const VOLUME_PROTECTION: &str = "kubernetes.io/pv-protection";

const BETA_CLASS: &str = "volume.beta.kubernetes.io/storage-class";
const IS_DEFAULT: [&str; 2] = ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];

/// SHA-256 of a text.
pub fn sha256(text: &str) -> Vec<u8> {
    ring::digest::digest(&ring::digest::SHA256, text.as_bytes()).as_ref().to_vec()
}

/// The name of the VolumeAttachment of a CSI volume and a node, which attach controller and agent both know.
pub fn attachment_name(handle: &str, driver: &str, node: &str) -> String {
    let hash: String = sha256(&format!("{handle}{driver}{node}")).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("csi-{hash}")
}

/// An annotation of an object.
pub fn annotation<'a>(meta: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    meta.annotations.as_ref()?.get(key).map(String::as_str)
}

fn class<'a>(meta: &'a ObjectMeta, of_spec: Option<&'a String>) -> Option<&'a str> {
    annotation(meta, BETA_CLASS).or(of_spec.map(String::as_str))
}

/// The class that a claim asks for; "" is none, `None` leaves the choice to the cluster's default.
pub fn wanted_class(claim: &PersistentVolumeClaim) -> Option<&str> {
    class(&claim.metadata, claim.spec.as_ref().and_then(|spec| spec.storage_class_name.as_ref()))
}

/// The class of a claim, "" if it has none.
pub fn claim_class(claim: &PersistentVolumeClaim) -> &str {
    wanted_class(claim).unwrap_or("")
}

/// The class of a volume, "" if it has none.
pub fn volume_class(volume: &PersistentVolume) -> &str {
    class(&volume.metadata, volume.spec.as_ref().and_then(|spec| spec.storage_class_name.as_ref())).unwrap_or("")
}

/// The class that claims get which ask for none: of several defaults the newest, then the first by name.
pub fn default_class<'a>(classes: impl Iterator<Item = &'a Arc<StorageClass>>) -> Option<&'a Arc<StorageClass>> {
    let is_default = |class: &&Arc<StorageClass>| IS_DEFAULT.iter().any(|key| annotation(&class.metadata, key) == Some("true"));
    let age = |class: &StorageClass| class.metadata.creation_timestamp.as_ref().map(|time| time.0);
    classes
        .filter(is_default)
        .max_by(|one, other| age(one).cmp(&age(other)).then_with(|| other.metadata.name.cmp(&one.metadata.name)))
}

/// Whether volumes of a class are chosen only when a pod is placed that needs them.
pub fn waits_for_consumer(class: &StorageClass) -> bool {
    class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer")
}

/// The volume that a claim names, "" if none.
pub fn volume_name(claim: &PersistentVolumeClaim) -> &str {
    claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref()).unwrap_or("")
}

/// Whether both halves of the claim's binding are there.
pub fn is_fully_bound(claim: &PersistentVolumeClaim) -> bool {
    !volume_name(claim).is_empty() && annotation(&claim.metadata, BIND_COMPLETED).is_some()
}

/// Whether a volume is bound to a claim, or reserved for it by name.
pub fn is_bound_to(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let Some(reference) = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref()) else { return false };
    let is_named = reference.name == claim.metadata.name && reference.namespace == claim.metadata.namespace;
    let uid = reference.uid.as_deref().unwrap_or("");
    is_named && (uid.is_empty() || claim.metadata.uid.as_deref() == Some(uid))
}

/// How much a volume holds.
pub fn capacity(volume: &PersistentVolume) -> Quantity {
    let amounts = volume.spec.as_ref().and_then(|spec| spec.capacity.as_ref());
    amounts
        .and_then(|amounts| amounts.get("storage"))
        .and_then(|amount| Quantity::try_from(amount).ok())
        .unwrap_or(Quantity::ZERO)
}

/// How much a claim asks for.
pub fn requested(claim: &PersistentVolumeClaim) -> Quantity {
    let resources = claim.spec.as_ref().and_then(|spec| spec.resources.as_ref());
    let amount = resources.and_then(|resources| resources.requests.as_ref()).and_then(|requests| requests.get("storage"));
    amount.and_then(|amount| Quantity::try_from(amount).ok()).unwrap_or(Quantity::ZERO)
}

/// Whether the two differ in being a file system or a raw device.
pub fn differs_in_mode(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let of_volume = volume.spec.as_ref().and_then(|spec| spec.volume_mode.as_deref()).unwrap_or("Filesystem");
    claim.spec.as_ref().and_then(|spec| spec.volume_mode.as_deref()).unwrap_or("Filesystem") != of_volume
}

/// Whether the two differ in their class of attributes; "" is none.
fn differs_in_attributes(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let of_volume = volume.spec.as_ref().and_then(|spec| spec.volume_attributes_class_name.as_deref());
    let of_claim = claim.spec.as_ref().and_then(|spec| spec.volume_attributes_class_name.as_deref());
    of_volume.unwrap_or("") != of_claim.unwrap_or("")
}

fn modes(modes: Option<&Vec<String>>) -> &[String] {
    modes.map_or(&[], Vec::as_slice)
}

fn volume_modes(volume: &PersistentVolume) -> &[String] {
    modes(volume.spec.as_ref().and_then(|spec| spec.access_modes.as_ref()))
}

/// The ways in which a claim wants to share its volume.
pub fn claim_modes(claim: &PersistentVolumeClaim) -> &[String] {
    modes(claim.spec.as_ref().and_then(|spec| spec.access_modes.as_ref()))
}

/// Whether the volume can be shared in all the ways that the claim asks for.
pub fn offers_modes(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    claim_modes(claim).iter().all(|mode| volume_modes(volume).contains(mode))
}

/// Why a claim cannot have the volume that it names; `None` if it can.
pub fn mismatch(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Option<String> {
    if volume.metadata.deletion_timestamp.is_some() {
        return Some(format!("the volume is marked for deletion {:?}", volume.metadata.name.as_deref().unwrap_or("")));
    }
    let why = if capacity(volume) < requested(claim) {
        "requested PV is too small"
    } else if volume_class(volume) != claim_class(claim) {
        "storageClassName does not match"
    } else if differs_in_attributes(volume, claim) {
        "volumeAttributesClassName does not match"
    } else if differs_in_mode(volume, claim) {
        "incompatible volumeMode"
    } else if !offers_modes(volume, claim) {
        "incompatible accessMode"
    } else {
        return None;
    };
    Some(why.to_owned())
}

/// For whom a volume is sought.
pub enum Seeker<'a> {
    /// The binder; `is_delayed` leaves all but reserved volumes to the scheduler.
    Binder { is_delayed: bool },
    /// The scheduler, for one node: whether the node may use a volume, and which volumes are taken already.
    Scheduler { fits_node: &'a dyn Fn(&PersistentVolume) -> bool, is_taken: &'a dyn Fn(&PersistentVolume) -> bool },
}

/// The volume for a claim: the one that is reserved for it, or the one that offers least and yet enough.
pub fn best<'a>(
    claim: &PersistentVolumeClaim,
    volumes: impl Iterator<Item = &'a Arc<PersistentVolume>>,
    seeker: &Seeker<'_>,
) -> Option<&'a Arc<PersistentVolume>> {
    let selector = Selector::from_typed(claim.spec.as_ref().and_then(|spec| spec.selector.as_ref()));
    let selector = match claim.spec.as_ref().and_then(|spec| spec.selector.as_ref()) {
        None => Selector::everything(),
        Some(_) => selector.unwrap_or_else(|_| Selector::nothing()),
    };
    let (wanted, class) = (requested(claim), claim_class(claim));
    let fits_node = |volume: &PersistentVolume| match seeker {
        Seeker::Binder { .. } => true,
        Seeker::Scheduler { fits_node, .. } => fits_node(volume),
    };
    let mut best: Option<&Arc<PersistentVolume>> = None;
    for volume in volumes {
        let is_claimed = volume.spec.as_ref().is_some_and(|spec| spec.claim_ref.is_some());
        let is_reserved = is_bound_to(volume, claim);
        let is_taken = matches!(seeker, Seeker::Scheduler { is_taken, .. } if is_taken(volume));
        if (is_claimed && !is_reserved)
            || is_taken
            || volume.metadata.deletion_timestamp.is_some()
            || capacity(volume) < wanted
            || differs_in_mode(volume, claim)
            || !offers_modes(volume, claim)
        {
            continue;
        }
        if is_reserved {
            return fits_node(volume).then_some(volume);
        }
        let is_available = volume.status.as_ref().is_some_and(|status| status.phase.as_deref() == Some("Available"));
        if matches!(seeker, Seeker::Binder { is_delayed: true })
            || !is_available
            || volume_class(volume) != class
            || differs_in_attributes(volume, claim)
            || !selector.matches(&volume.metadata.labels)
            || !fits_node(volume)
        {
            continue;
        }
        if best.is_none_or(|known| by_waste(volume, known) == Ordering::Less) {
            best = Some(volume);
        }
    }
    best
}

/// Which of two volumes offers less: fewer ways to share it, then less space.
fn by_waste(one: &PersistentVolume, other: &PersistentVolume) -> Ordering {
    let count = volume_modes(one).len().cmp(&volume_modes(other).len());
    count.then_with(|| capacity(one).partial_cmp(&capacity(other)).unwrap_or(Ordering::Equal))
}

/// The name of the claim that a volume of a pod means, and whether it is made for the pod (`ephemeral`).
pub fn claim_of(pod: &Pod, volume: &Volume) -> Option<(String, bool)> {
    if let Some(source) = &volume.persistent_volume_claim {
        return Some((source.claim_name.clone(), false));
    }
    volume.ephemeral.as_ref()?;
    Some((format!("{}-{}", pod.metadata.name.as_deref().unwrap_or(""), volume.name), true))
}

/// The claims of a pod: their names, and whether each is made for the pod.
pub fn claims_of(pod: &Pod) -> impl Iterator<Item = (String, bool)> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes.filter_map(|volume| claim_of(pod, volume))
}

/// Whether an ephemeral claim was made for this pod: the pod is its controller.
pub fn is_made_for(claim: &PersistentVolumeClaim, pod: &Pod) -> bool {
    let mut owners = claim.metadata.owner_references.iter().flatten();
    owners.any(|owner| owner.controller == Some(true) && Some(&owner.uid) == pod.metadata.uid.as_ref())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn volume(name: &str, size: &str, modes: &[&str], extra: &Value) -> Arc<PersistentVolume> {
        let mut value = json!({"metadata": {"name": name, "labels": {"disk": name}},
            "spec": {"capacity": {"storage": size}, "accessModes": modes, "hostPath": {"path": "/x"}},
            "status": {"phase": "Available"}});
        for (key, extra) in extra.as_object().into_iter().flatten() {
            value["spec"][key] = extra.clone();
        }
        Arc::new(serde_json::from_value(value).unwrap())
    }

    fn claim(size: &str, extra: &Value) -> PersistentVolumeClaim {
        let mut value = json!({"metadata": {"name": "c", "namespace": "n", "uid": "u"},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": size}}}});
        for (key, extra) in extra.as_object().into_iter().flatten() {
            value["spec"][key] = extra.clone();
        }
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn the_smallest_volume_that_suits() {
        let once = ["ReadWriteOnce"];
        let volumes = [
            volume("small", "1Gi", &once, &json!({})),
            volume("big", "10Gi", &once, &json!({})),
            volume("shared", "2Gi", &["ReadWriteOnce", "ReadWriteMany"], &json!({})),
            volume("fast", "3Gi", &once, &json!({"storageClassName": "fast"})),
            volume("raw", "3Gi", &once, &json!({"volumeMode": "Block"})),
            volume("mine", "20Gi", &once, &json!({"claimRef": {"namespace": "n", "name": "c"}, "storageClassName": "other"})),
            volume("theirs", "2Gi", &once, &json!({"claimRef": {"namespace": "n", "name": "x"}})),
        ];
        let find = |claim: &PersistentVolumeClaim, volumes: &[Arc<PersistentVolume>], is_delayed| {
            best(claim, volumes.iter(), &Seeker::Binder { is_delayed }).and_then(|found| found.metadata.name.clone())
        };
        let free = &volumes[..5];
        for (size, extra, expected) in [
            ("1Gi", json!({}), Some("small")),
            ("2Gi", json!({}), Some("big")),
            ("11Gi", json!({}), None),
            ("1Gi", json!({"accessModes": ["ReadWriteMany"]}), Some("shared")),
            ("1Gi", json!({"storageClassName": "fast"}), Some("fast")),
            ("1Gi", json!({"storageClassName": ""}), Some("small")),
            ("1Gi", json!({"volumeMode": "Block"}), Some("raw")),
            ("1Gi", json!({"selector": {"matchLabels": {"disk": "big"}}}), Some("big")),
            ("1Gi", json!({"selector": {"matchLabels": {"disk": "none"}}}), None),
        ] {
            assert_eq!(find(&claim(size, &extra), free, false).as_deref(), expected, "{size} {extra}");
            assert_eq!(find(&claim(size, &extra), free, true), None, "the scheduler's business");
        }
        let reserved = claim("1Gi", &json!({}));
        assert_eq!(find(&reserved, &volumes, false).as_deref(), Some("mine"));
        assert_eq!(find(&reserved, &volumes, true).as_deref(), Some("mine"), "reserved volumes do not wait");
    }

    #[test]
    fn the_scheduler_looks_at_the_node_too() {
        let once = ["ReadWriteOnce"];
        let volumes = [volume("a", "1Gi", &once, &json!({})), volume("b", "2Gi", &once, &json!({}))];
        let on = |allowed: &'static str, taken: &'static str| {
            let fits = move |volume: &PersistentVolume| volume.metadata.name.as_deref() == Some(allowed);
            let is_taken = move |volume: &PersistentVolume| volume.metadata.name.as_deref() == Some(taken);
            let seeker = Seeker::Scheduler { fits_node: &fits, is_taken: &is_taken };
            best(&claim("1Gi", &json!({})), volumes.iter(), &seeker).and_then(|found| found.metadata.name.clone())
        };
        assert_eq!(on("b", "").as_deref(), Some("b"));
        assert_eq!(on("b", "b"), None);
    }
}
