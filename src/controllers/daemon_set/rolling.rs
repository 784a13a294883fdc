//! One step of a rolling update of a DaemonSet: `rollingUpdate` of upstream's `controller/daemon/update.go`.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{DaemonSet, RollingUpdateDaemonSet};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::plan::World;
use super::pod::{self, Fit};
use crate::kinds::check::percent;

/// Whether the set updates its pods by itself.
pub(super) fn is_rolling(set: &DaemonSet) -> bool {
    let strategy = set.spec.as_ref().and_then(|spec| spec.update_strategy.as_ref());
    strategy.and_then(|strategy| strategy.type_.as_deref()) != Some("OnDelete")
}

fn settings(set: &DaemonSet) -> RollingUpdateDaemonSet {
    let strategy = set.spec.as_ref().and_then(|spec| spec.update_strategy.as_ref());
    let rolling = strategy.and_then(|strategy| strategy.rolling_update.clone());
    rolling.filter(|_| is_rolling(set)).unwrap_or_default()
}

/// A number, or a percentage of `total` rounded up; 0 if it is not given.
fn share(value: Option<&IntOrString>, total: usize) -> usize {
    match value {
        None => 0,
        Some(IntOrString::Int(number)) => usize::try_from(*number).unwrap_or(0),
        Some(IntOrString::String(text)) => {
            let percent = usize::try_from(percent(text).unwrap_or(0)).unwrap_or(0);
            percent.saturating_mul(total).div_ceil(100)
        }
    }
}

/// Whether a node may have an old and a new pod at one time.
pub(super) fn allows_surge(set: &DaemonSet) -> bool {
    share(settings(set).max_surge.as_ref(), 1) > 0
}

/// The pods of a node that are not being deleted: one of the present template, and one of another.
#[derive(Default)]
struct Pair<'a> {
    new: Option<&'a Arc<Pod>>,
    old: Option<&'a Arc<Pod>>,
}

/// `findUpdatedPodsOnNode`: `None` if there are several of a sort, which another reconcile prunes first.
fn pair<'a>(world: &World<'_>, pods: &'a [Arc<Pod>]) -> Option<Pair<'a>> {
    let mut pair = Pair::default();
    for pod in pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()) {
        let slot = if pod::is_updated(world.set, pod, world.hash) { &mut pair.new } else { &mut pair.old };
        if slot.replace(pod).is_some() {
            return None;
        }
    }
    Some(pair)
}

/// Nodes to create pods on, and pods to delete.
pub(super) fn step(world: &World<'_>) -> (Vec<String>, Vec<Arc<Pod>>) {
    let (settings, desired) = (settings(world.set), world.desired());
    let surge = share(settings.max_surge.as_ref(), desired);
    let unavailable = share(settings.max_unavailable.as_ref(), desired);
    if surge == 0 { (Vec::new(), replace(world, unavailable.max(1))) } else { add(world, surge, desired) }
}

/// Deletes old pods, as many as may be unavailable; those that are so already in any case.
fn replace(world: &World<'_>, max_unavailable: usize) -> Vec<Arc<Pod>> {
    let (mut unavailable, mut replaced, mut candidates) = (0, Vec::new(), Vec::new());
    let unmanned = world.fits.iter().filter(|(node, fit)| **fit == Fit::Run && !world.pods.contains_key(**node));
    unavailable += unmanned.count();
    for pods in world.pods.values() {
        match pair(world, pods) {
            None | Some(Pair { new: None, old: None } | Pair { new: Some(_), old: Some(_) }) => unavailable += 1,
            Some(Pair { new: Some(new), old: None }) => unavailable += usize::from(!world.is_available(new)),
            Some(Pair { new: None, old: Some(old) }) if !world.is_available(old) => {
                replaced.push(Arc::clone(old));
                unavailable += 1;
            }
            Some(Pair { new: None, old: Some(old) }) => candidates.push(Arc::clone(old)),
        }
    }
    candidates.truncate(max_unavailable.saturating_sub(unavailable));
    replaced.extend(candidates);
    replaced
}

/// Creates new pods beside old ones, as many as may be too many, and deletes old ones whose successors are available.
fn add(world: &World<'_>, max_surge: usize, desired: usize) -> (Vec<String>, Vec<Arc<Pod>>) {
    let (mut create, mut candidates, mut delete, mut misplaced) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let (mut surging, mut available) = (0, 0);
    for (node, pods) in &world.pods {
        let Some(pair) = pair(world, pods) else {
            surging += 1;
            continue;
        };
        available += usize::from(pair.old.or(pair.new).is_some_and(|pod| world.is_available(pod)));
        let Some(old) = pair.old else { continue };
        match (pair.new, world.is_available(old), world.fit(node)) {
            (Some(new), _, _) if world.is_available(new) => delete.push(Arc::clone(old)),
            (Some(_), _, _) => surging += 1,
            (None, true, Fit::Run) => candidates.push(node.clone()),
            (None, true, _) => misplaced.push(Arc::clone(old)),
            (None, false, Fit::Run) => create.push(node.clone()),
            (None, false, _) => delete.push(Arc::clone(old)),
        }
    }
    // Where the pods' nodes change, one goes only when one on a new node serves.
    misplaced.truncate(available.saturating_sub(desired));
    delete.extend(misplaced);
    candidates.truncate(max_surge.saturating_sub(surging));
    create.extend(candidates);
    (create, delete)
}
