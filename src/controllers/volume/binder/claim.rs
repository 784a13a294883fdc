//! What to do about a claim: upstream's `syncClaim`, as a pure function.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;

use super::super::Say;
use crate::kinds::storage::binding::{self, Seeker};

/// What there is beside the claim.
pub(super) struct Observed<'a> {
    pub volumes: &'a [Arc<PersistentVolume>],
    /// The class that the claim names, if there is one of that name.
    pub class: Option<&'a StorageClass>,
    pub default_class: Option<&'a str>,
    /// Pods that use the claim and have no node yet.
    pub waiting_pods: &'a [String],
}

/// What to do.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Step {
    /// Write both halves of the binding, and both phases.
    Bind(Arc<PersistentVolume>),
    /// Give it the class that became the default after it was made.
    AssignClass(String),
    /// Name the provisioner that is to make its volume, and wait.
    Provision(String),
    /// It is Pending.
    Wait(Option<Say>),
    /// What it was bound to is gone.
    Lose(Say),
}

/// Decides.
pub(super) fn plan(claim: &PersistentVolumeClaim, observed: &Observed<'_>) -> Step {
    let name = binding::volume_name(claim);
    let named = || observed.volumes.iter().find(|volume| volume.metadata.name.as_deref() == Some(name));
    if binding::annotation(&claim.metadata, binding::BIND_COMPLETED).is_some() {
        return bound(claim, name, named());
    }
    if name.is_empty() {
        return unbound(claim, observed);
    }
    match named() {
        None => Step::Wait(None),
        Some(volume) => asked_for(claim, volume),
    }
}

fn bound(claim: &PersistentVolumeClaim, name: &str, volume: Option<&Arc<PersistentVolume>>) -> Step {
    let lost =
        |what: &str| Step::Lose(Say::warning("ClaimLost", format!("Bound claim has lost {what}. Data on the volume is lost!")));
    if name.is_empty() {
        return lost("reference to PersistentVolume");
    }
    let Some(volume) = volume else { return lost("its PersistentVolume") };
    let reference = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
    match reference {
        Some(reference) if reference.uid.is_some() && reference.uid != claim.metadata.uid => {
            let message = "Two claims are bound to the same volume, this one is bound incorrectly";
            Step::Lose(Say::warning("ClaimMisbound", message))
        }
        _ => Step::Bind(Arc::clone(volume)),
    }
}

/// The claim names a volume, but is not bound to it yet.
fn asked_for(claim: &PersistentVolumeClaim, volume: &Arc<PersistentVolume>) -> Step {
    let name = volume.metadata.name.as_deref().unwrap_or("");
    let is_claimed = volume.spec.as_ref().is_some_and(|spec| spec.claim_ref.is_some());
    if binding::is_bound_to(volume, claim) {
        return Step::Bind(Arc::clone(volume));
    }
    if is_claimed {
        let message = format!("volume {name:?} already bound to a different claim.");
        return Step::Wait(Some(Say::warning("FailedBinding", message)));
    }
    match binding::mismatch(volume, claim) {
        Some(why) => {
            let message = format!("Cannot bind to requested volume {name:?}: {why}");
            Step::Wait(Some(Say::warning("VolumeMismatch", message)))
        }
        None => Step::Bind(Arc::clone(volume)),
    }
}

fn unbound(claim: &PersistentVolumeClaim, observed: &Observed<'_>) -> Step {
    let is_delayed = observed.class.is_some_and(binding::waits_for_consumer);
    if let Some(volume) = binding::best(claim, observed.volumes.iter(), &Seeker::Binder { is_delayed }) {
        return Step::Bind(Arc::clone(volume));
    }
    if binding::wanted_class(claim).is_none()
        && let Some(class) = observed.default_class
    {
        return Step::AssignClass(class.to_owned());
    }
    let is_placed = binding::annotation(&claim.metadata, binding::SELECTED_NODE).is_some();
    if is_delayed && !is_placed {
        return Step::Wait(Some(first_consumer(observed.waiting_pods)));
    }
    let class = binding::claim_class(claim);
    match observed.class {
        _ if class.is_empty() => {
            let message = "no persistent volumes available for this claim and no storage class is set";
            Step::Wait(Some(Say::normal("FailedBinding", message)))
        }
        None => {
            let message = format!("storageclass.storage.k8s.io {class:?} not found");
            Step::Wait(Some(Say::warning("ProvisioningFailed", message)))
        }
        Some(class) if class.provisioner == binding::NO_PROVISIONER => {
            let message = format!("no volume plugin matched name: {}", class.provisioner);
            Step::Wait(Some(Say::warning("ProvisioningFailed", message)))
        }
        Some(class) => Step::Provision(class.provisioner.clone()),
    }
}

fn first_consumer(pods: &[String]) -> Say {
    match pods {
        [] => Say::normal("WaitForFirstConsumer", "waiting for first consumer to be created before binding"),
        [pod] => Say::normal("WaitForPodScheduled", format!("waiting for pod {pod} to be scheduled")),
        many => Say::normal("WaitForPodScheduled", format!("waiting for pods {} to be scheduled", many.join(","))),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn volume(spec: &Value) -> Arc<PersistentVolume> {
        let mut value = json!({"metadata": {"name": "v"}, "status": {"phase": "Available"},
            "spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "hostPath": {"path": "/x"}}});
        for (key, extra) in spec.as_object().into_iter().flatten() {
            value["spec"][key] = extra.clone();
        }
        Arc::new(serde_json::from_value(value).unwrap())
    }

    fn claim(annotations: &Value, spec: &Value) -> PersistentVolumeClaim {
        let mut value = json!({"metadata": {"name": "c", "namespace": "n", "uid": "u", "annotations": annotations},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}});
        for (key, extra) in spec.as_object().into_iter().flatten() {
            value["spec"][key] = extra.clone();
        }
        serde_json::from_value(value).unwrap()
    }

    fn class(provisioner: &str, mode: &str) -> StorageClass {
        let value = json!({"metadata": {"name": "s"}, "provisioner": provisioner, "volumeBindingMode": mode});
        serde_json::from_value(value).unwrap()
    }

    /// The step in short: its name, and what is said.
    fn short(step: &Step) -> String {
        match step {
            Step::Bind(_) => "bind".to_owned(),
            Step::AssignClass(class) => format!("class {class}"),
            Step::Provision(who) => format!("provision {who}"),
            Step::Wait(None) => "wait".to_owned(),
            Step::Wait(Some(say)) => format!("wait {}: {}", say.reason, say.message),
            Step::Lose(say) => format!("lose {}", say.reason),
        }
    }

    #[test]
    fn claims_as_upstream_syncs_them() {
        let done = json!({"pv.kubernetes.io/bind-completed": "yes"});
        let placed = json!({"volume.kubernetes.io/selected-node": "n1"});
        let (none, named, classed) = (json!({}), json!({"volumeName": "v"}), json!({"storageClassName": "s"}));
        let reference = |uid: &str| json!({"claimRef": {"namespace": "n", "name": "c", "uid": uid}});
        let (immediate, delayed) = (class("x.io/y", "Immediate"), class("x.io/y", "WaitForFirstConsumer"));
        let nobody = class("kubernetes.io/no-provisioner", "Immediate");
        let table: Vec<(&Value, &Value, Option<Value>, Option<&StorageClass>, &str)> = vec![
            (&none, &none, Some(none.clone()), None, "bind"),
            (
                &none,
                &none,
                None,
                None,
                "wait FailedBinding: no persistent volumes available for this claim and no storage class is set",
            ),
            (&none, &classed, None, None, "wait ProvisioningFailed: storageclass.storage.k8s.io \"s\" not found"),
            (&none, &classed, None, Some(&immediate), "provision x.io/y"),
            (
                &none,
                &classed,
                None,
                Some(&nobody),
                "wait ProvisioningFailed: no volume plugin matched name: kubernetes.io/no-provisioner",
            ),
            (
                &none,
                &classed,
                Some(classed.clone()),
                Some(&delayed),
                "wait WaitForFirstConsumer: waiting for first consumer to be created before binding",
            ),
            (&placed, &classed, None, Some(&delayed), "provision x.io/y"),
            (&none, &named, None, None, "wait"),
            (&none, &named, Some(none.clone()), None, "bind"),
            (&none, &named, Some(reference("")), None, "bind"),
            (
                &none,
                &named,
                Some(json!({"capacity": {"storage": "1Mi"}})),
                None,
                "wait VolumeMismatch: Cannot bind to requested volume \"v\": requested PV is too small",
            ),
            (
                &none,
                &named,
                Some(reference("other")),
                None,
                "wait FailedBinding: volume \"v\" already bound to a different claim.",
            ),
            (&done, &named, Some(reference("u")), None, "bind"),
            (&done, &named, Some(none.clone()), None, "bind"),
            (&done, &named, None, None, "lose ClaimLost"),
            (&done, &none, None, None, "lose ClaimLost"),
            (&done, &named, Some(reference("other")), None, "lose ClaimMisbound"),
        ];
        for (annotations, spec, volume_spec, class, expected) in table {
            let volumes: Vec<_> = volume_spec.iter().map(volume).collect();
            let observed = Observed { volumes: &volumes, class, default_class: None, waiting_pods: &[] };
            assert_eq!(short(&plan(&claim(annotations, spec), &observed)), expected, "{annotations} {spec} {volume_spec:?}");
        }
    }

    #[test]
    fn a_class_that_came_later_is_assigned() {
        let observed = Observed { volumes: &[], class: None, default_class: Some("std"), waiting_pods: &[] };
        assert_eq!(short(&plan(&claim(&json!({}), &json!({})), &observed)), "class std");
        let none = claim(&json!({}), &json!({"storageClassName": ""}));
        assert!(short(&plan(&none, &observed)).starts_with("wait FailedBinding"));
    }
}
