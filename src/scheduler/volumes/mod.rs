//! The volumes of pods that are to be placed: which claims are bound and where to, and which volume each waiting claim would get on
//! a node. Follows upstream's `scheduler/framework/plugins/volumebinding`.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::StorageClass;

use super::filter::term_matches;
use super::snapshot::NodeInfo;
use crate::kinds::storage::binding::{self, Seeker};

mod prebind;
mod storage;

pub use prebind::{PreBindError, pre_bind};
pub use storage::Storage;

/// Looks up what pods' claims mean.
pub trait Lookup: Send + Sync + 'static {
    fn claim(&self, namespace: &str, name: &str) -> Option<Arc<PersistentVolumeClaim>>;
    fn volume(&self, name: &str) -> Option<Arc<PersistentVolume>>;
    fn class(&self, name: &str) -> Option<Arc<StorageClass>>;
    fn volumes(&self) -> Vec<Arc<PersistentVolume>>;
    /// The claim (`NAMESPACE/NAME`) that a binding under way gives a volume to.
    fn promised_to(&self, volume: &str) -> Option<String>;
    /// The node that a binding under way makes a claim's volume for.
    fn promised_node(&self, claim: &str) -> Option<String>;
}

/// A claim that gets its volume when its first pod is placed.
#[derive(Debug)]
struct Waiting {
    claim: Arc<PersistentVolumeClaim>,
    /// `NAMESPACE/NAME`.
    key: String,
    /// The node that was chosen for it before.
    node: Option<String>,
    can_be_made: bool,
    class: Option<Arc<StorageClass>>,
}

/// The claims of one pod.
#[derive(Debug, Default)]
pub struct Claims {
    /// Why the pod can run nowhere at present.
    pub blocked: Option<String>,
    /// The volumes of bound claims; `None` for one that does not exist.
    bound: Vec<Option<Arc<PersistentVolume>>>,
    waiting: Vec<Waiting>,
    /// Volumes that may suit the waiting claims.
    free: Vec<(Arc<PersistentVolume>, Option<String>)>,
    /// Names of claims that one pod alone may use.
    pub exclusive: Vec<String>,
}

/// What is to be written before a pod is bound to its node.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct VolumePlan {
    /// Volumes that are given to claims.
    pub bind: Vec<(Arc<PersistentVolume>, Arc<PersistentVolumeClaim>)>,
    /// Claims whose volumes are to be made for the node.
    pub provision: Vec<Arc<PersistentVolumeClaim>>,
}

/// What is wrong with a node, in upstream's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conflict {
    NodeAffinity,
    NothingToBind,
    Missing,
}

impl Conflict {
    /// The reason as it is counted over nodes.
    pub const fn head(self) -> &'static str {
        match self {
            Self::NodeAffinity => "node(s) didn't match PersistentVolume's node affinity",
            Self::NothingToBind => "node(s) didn't find available persistent volumes to bind",
            Self::Missing => "node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)",
        }
    }

    /// What the node lacks.
    pub const fn detail(self) -> &'static str {
        match self {
            Self::NodeAffinity => "cannot reach a volume of the pod",
            Self::NothingToBind => "has no volume for a claim of the pod",
            Self::Missing => "cannot have a volume that does not exist",
        }
    }
}

/// `NAMESPACE/NAME` of a claim.
pub fn key_of(claim: &PersistentVolumeClaim) -> String {
    format!("{}/{}", claim.metadata.namespace.as_deref().unwrap_or(""), claim.metadata.name.as_deref().unwrap_or(""))
}

impl Claims {
    /// Looks up the claims of a pod.
    pub fn of(pod: &Pod, lookup: &dyn Lookup) -> Self {
        let mut claims = Self::default();
        let namespace = pod.metadata.namespace.as_deref().unwrap_or("");
        let mut has_immediate = false;
        for (name, is_ephemeral) in binding::claims_of(pod) {
            let Some(claim) = lookup.claim(namespace, &name) else {
                claims.blocked = Some(if is_ephemeral {
                    format!("waiting for ephemeral volume controller to create the persistentvolumeclaim {name:?}")
                } else {
                    format!("persistentvolumeclaim {name:?} not found")
                });
                return claims;
            };
            if let Some(why) = unusable(pod, &claim, is_ephemeral) {
                claims.blocked = Some(why);
                return claims;
            }
            if binding::claim_modes(&claim).iter().any(|mode| mode == "ReadWriteOncePod") {
                claims.exclusive.push(name);
            }
            has_immediate |= !claims.add(claim, lookup);
        }
        if has_immediate {
            claims.blocked = Some("pod has unbound immediate PersistentVolumeClaims".to_owned());
        }
        if !claims.waiting.is_empty() {
            let is_wanted = |volume: &PersistentVolume| {
                claims.waiting.iter().any(|one| {
                    binding::volume_class(volume) == binding::claim_class(&one.claim) || binding::is_bound_to(volume, &one.claim)
                })
            };
            let volumes = lookup.volumes().into_iter().filter(|volume| is_wanted(volume));
            claims.free = volumes
                .map(|volume| {
                    let promised = lookup.promised_to(volume.metadata.name.as_deref().unwrap_or(""));
                    (volume, promised)
                })
                .collect();
        }
        claims
    }

    /// Adds a claim; false if it is to be bound by others and is not.
    fn add(&mut self, claim: Arc<PersistentVolumeClaim>, lookup: &dyn Lookup) -> bool {
        if binding::is_fully_bound(&claim) {
            self.bound.push(lookup.volume(binding::volume_name(&claim)));
            return true;
        }
        let class = lookup.class(binding::claim_class(&claim));
        if !class.as_deref().is_some_and(binding::waits_for_consumer) || !binding::volume_name(&claim).is_empty() {
            return false;
        }
        let key = key_of(&claim);
        let chosen = binding::annotation(&claim.metadata, binding::SELECTED_NODE).map(str::to_owned);
        self.waiting.push(Waiting {
            node: lookup.promised_node(&key).or(chosen),
            can_be_made: class.as_ref().is_some_and(|class| class.provisioner != binding::NO_PROVISIONER),
            class,
            key,
            claim,
        });
        true
    }

    /// Whether the pod has claims that a placement decides about.
    pub fn is_empty(&self) -> bool {
        self.bound.is_empty() && self.waiting.is_empty()
    }

    /// The bound volumes that exist.
    pub fn volumes(&self) -> impl Iterator<Item = &PersistentVolume> {
        self.bound.iter().flatten().map(|volume| &**volume)
    }

    /// What the claims would get on a node.
    ///
    /// # Errors
    /// Why they can have no volumes there.
    pub fn plan(&self, node: &NodeInfo) -> Result<VolumePlan, Conflict> {
        for volume in &self.bound {
            let volume = volume.as_ref().ok_or(Conflict::Missing)?;
            if !reaches(volume, node) {
                return Err(Conflict::NodeAffinity);
            }
        }
        let mut plan = VolumePlan::default();
        for waiting in &self.waiting {
            if let Some(chosen) = &waiting.node {
                if *chosen != node.name {
                    return Err(Conflict::NothingToBind);
                }
                plan.provision.push(Arc::clone(&waiting.claim));
                continue;
            }
            let is_taken = |volume: &PersistentVolume| {
                let is_here = plan.bind.iter().any(|(taken, _)| taken.metadata.name == volume.metadata.name);
                is_here
                    || self.free.iter().any(|(known, promised)| {
                        known.metadata.name == volume.metadata.name && promised.as_ref().is_some_and(|to| *to != waiting.key)
                    })
            };
            let fits_node = |volume: &PersistentVolume| reaches(volume, node);
            let seeker = Seeker::Scheduler { fits_node: &fits_node, is_taken: &is_taken };
            let found = binding::best(&waiting.claim, self.free.iter().map(|(volume, _)| volume), &seeker).cloned();
            match found {
                Some(volume) => plan.bind.push((volume, Arc::clone(&waiting.claim))),
                None if waiting.can_be_made && allows(waiting.class.as_deref(), node) => {
                    plan.provision.push(Arc::clone(&waiting.claim));
                }
                None => return Err(Conflict::NothingToBind),
            }
        }
        Ok(plan)
    }
}

fn unusable(pod: &Pod, claim: &PersistentVolumeClaim, is_ephemeral: bool) -> Option<String> {
    let name = claim.metadata.name.as_deref().unwrap_or("");
    let phase = claim.status.as_ref().and_then(|status| status.phase.as_deref());
    if phase == Some("Lost") {
        let volume = binding::volume_name(claim);
        return Some(format!("persistentvolumeclaim {name:?} bound to non-existent persistentvolume {volume:?}"));
    }
    if claim.metadata.deletion_timestamp.is_some() {
        return Some(format!("persistentvolumeclaim {name:?} is being deleted"));
    }
    if is_ephemeral && !binding::is_made_for(claim, pod) {
        return Some(format!(
            "PVC {} was not created for pod {}/{} (pod is not owner)",
            key_of(claim),
            pod.metadata.namespace.as_deref().unwrap_or(""),
            pod.metadata.name.as_deref().unwrap_or("")
        ));
    }
    None
}

/// Whether a node can reach a volume.
fn reaches(volume: &PersistentVolume, node: &NodeInfo) -> bool {
    let affinity = volume.spec.as_ref().and_then(|spec| spec.node_affinity.as_ref());
    let Some(required) = affinity.and_then(|affinity| affinity.required.as_ref()) else { return true };
    required.node_selector_terms.iter().any(|term| term_matches(term, node))
}

/// Whether a class makes volumes for the node: `allowedTopologies`.
fn allows(class: Option<&StorageClass>, node: &NodeInfo) -> bool {
    let Some(terms) = class.and_then(|class| class.allowed_topologies.as_ref()).filter(|terms| !terms.is_empty()) else {
        return true;
    };
    terms.iter().any(|term| {
        let mut wanted = term.match_label_expressions.iter().flatten();
        wanted.all(|wanted| node.label(&wanted.key).is_some_and(|value| wanted.values.iter().any(|one| one == value)))
    })
}

#[cfg(test)]
mod tests;
