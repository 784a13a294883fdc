//! What a budget allows: pure functions of the budget, its pods, and the number that their controllers want.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::client::Cached;
use crate::controllers::pods::{self, Round, scaled};

/// How long an eviction that was allowed may take to show; after it, the pod counts again.
const EVICTION: Duration = Duration::from_secs(120);
const ALLOWED: &str = "DisruptionAllowed";

/// What there is, and what there must be.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Found {
    pub(super) expected: i32,
    pub(super) desired: i32,
    pub(super) healthy: i32,
    pub(super) disrupted: BTreeMap<String, Time>,
    /// When an eviction that is under way must be looked at again.
    pub(super) recheck: Option<Duration>,
}

/// Whether the budget is told in terms of what controllers want.
pub(super) fn needs_scale(budget: &PodDisruptionBudget) -> bool {
    let Some(spec) = &budget.spec else { return false };
    spec.max_unavailable.is_some() || matches!(spec.min_available, Some(IntOrString::String(_)))
}

fn expected_and_desired(budget: &PodDisruptionBudget, pods: i32, scale: i32) -> (i32, i32) {
    let Some(spec) = &budget.spec else { return (0, 0) };
    match (&spec.max_unavailable, &spec.min_available) {
        (Some(most), _) => (scale, scale.saturating_sub(scaled(most, scale, Round::Up)).max(0)),
        (None, Some(IntOrString::Int(least))) => (pods, *least),
        (None, Some(least)) => (scale, scaled(least, scale, Round::Up)),
        (None, None) => (0, 0),
    }
}

/// Counts; `scale` is what the pods' controllers want together.
pub(super) fn found(budget: &PodDisruptionBudget, pods: &[Arc<Pod>], scale: i32, now: Timestamp) -> Found {
    let (expected, desired) = expected_and_desired(budget, i32::try_from(pods.len()).unwrap_or(i32::MAX), scale);
    let noted = budget.status.as_ref().and_then(|status| status.disrupted_pods.clone()).unwrap_or_default();
    let mut found = Found { expected, desired, ..Found::default() };
    for pod in pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()) {
        let left = noted.get(pod.name()).map(|since| {
            let age = Duration::try_from(now.duration_since(since.0)).unwrap_or(Duration::ZERO);
            (since, EVICTION.saturating_sub(age))
        });
        match left {
            Some((since, left)) if !left.is_zero() => {
                found.disrupted.insert(pod.name().to_owned(), since.clone());
                found.recheck = Some(found.recheck.map_or(left, |recheck| recheck.min(left)));
            }
            _ if pods::is_ready(pod) => found.healthy = found.healthy.saturating_add(1),
            _ => {}
        }
    }
    found
}

/// The status of the budget.
pub(super) fn status(budget: &PodDisruptionBudget, found: Found, now: &Time) -> PodDisruptionBudgetStatus {
    let Found { expected, desired, healthy, disrupted, .. } = found;
    let allowed = if expected > 0 { healthy.saturating_sub(desired).max(0) } else { 0 };
    let (is_allowed, reason) = if allowed > 0 { ("True", "SufficientPods") } else { ("False", "InsufficientPods") };
    PodDisruptionBudgetStatus {
        current_healthy: Some(healthy),
        desired_healthy: Some(desired),
        expected_pods: Some(expected),
        disruptions_allowed: Some(allowed),
        disrupted_pods: Some(disrupted).filter(|disrupted| !disrupted.is_empty()),
        observed_generation: budget.metadata.generation,
        conditions: Some(conditions(budget, is_allowed, reason, "", now)),
    }
}

/// The status of a budget that could not be worked out: nothing is allowed.
pub(super) fn failed(budget: &PodDisruptionBudget, why: &str, now: &Time) -> PodDisruptionBudgetStatus {
    let known = budget.status.clone().unwrap_or_default();
    PodDisruptionBudgetStatus {
        disruptions_allowed: Some(0),
        current_healthy: known.current_healthy.or(Some(0)),
        desired_healthy: known.desired_healthy.or(Some(0)),
        expected_pods: known.expected_pods.or(Some(0)),
        conditions: Some(conditions(budget, "False", "SyncFailed", why, now)),
        ..known
    }
}

fn conditions(budget: &PodDisruptionBudget, value: &str, reason: &str, message: &str, now: &Time) -> Vec<Condition> {
    let mut all = budget.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
    let before = all.iter().find(|condition| condition.type_ == ALLOWED && condition.status == value);
    let last_transition_time = before.map_or_else(|| now.clone(), |before| before.last_transition_time.clone());
    all.retain(|condition| condition.type_ != ALLOWED);
    all.push(Condition {
        type_: ALLOWED.to_owned(),
        status: value.to_owned(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        observed_generation: budget.metadata.generation,
        last_transition_time,
    });
    all
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(name: &str, ready: bool, deleting: bool) -> Arc<Pod> {
        let mut meta = json!({"name": name});
        if deleting {
            meta["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        }
        let ready = if ready { "True" } else { "False" };
        let pod = json!({"metadata": meta, "status": {"conditions": [{"type": "Ready", "status": ready}]}});
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    fn budget(spec: &Value, status: &Value) -> PodDisruptionBudget {
        let meta = json!({"name": "b", "generation": 2});
        serde_json::from_value(json!({"metadata": meta, "spec": spec, "status": status})).unwrap()
    }

    #[test]
    fn budgets_by_table() {
        let now: Timestamp = "2026-01-01T00:10:00Z".parse().unwrap();
        let pods = [pod("a", true, false), pod("b", true, false), pod("c", false, false), pod("d", true, true)];
        // Spec, what controllers want, (expected, desired, allowed).
        for (spec, scale, expected) in [
            (json!({"minAvailable": 1}), 0, (4, 1, 1)),
            (json!({"minAvailable": 2}), 0, (4, 2, 0)),
            (json!({"minAvailable": "50%"}), 3, (3, 2, 0)),
            (json!({"minAvailable": "30%"}), 3, (3, 1, 1)),
            (json!({"maxUnavailable": 1}), 3, (3, 2, 0)),
            (json!({"maxUnavailable": 2}), 3, (3, 1, 1)),
            (json!({"maxUnavailable": "100%"}), 3, (3, 0, 2)),
            (json!({"maxUnavailable": 5}), 0, (0, 0, 0)),
            (json!({}), 0, (0, 0, 0)),
        ] {
            let budget = budget(&spec, &json!({}));
            let status = status(&budget, found(&budget, &pods, scale, now), &Time(now));
            let seen = (status.expected_pods.unwrap(), status.desired_healthy.unwrap(), status.disruptions_allowed.unwrap());
            assert_eq!((seen, status.current_healthy, status.observed_generation), (expected, Some(2), Some(2)), "{spec}");
        }
    }

    #[test]
    fn an_eviction_under_way_counts_as_gone_for_a_while() {
        let now: Timestamp = "2026-01-01T00:10:00Z".parse().unwrap();
        let pods = [pod("a", true, false), pod("b", true, false)];
        let noted = json!({"disruptedPods": {"a": "2026-01-01T00:09:00Z", "gone": "2026-01-01T00:09:00Z"}});
        let fresh = found(&budget(&json!({"minAvailable": 1}), &noted), &pods, 0, now);
        assert_eq!((fresh.healthy, fresh.recheck), (1, Some(Duration::from_secs(60))));
        assert_eq!(fresh.disrupted.keys().collect::<Vec<_>>(), ["a"]);
        let noted = json!({"disruptedPods": {"a": "2026-01-01T00:07:00Z"}});
        let stale = found(&budget(&json!({"minAvailable": 1}), &noted), &pods, 0, now);
        assert_eq!((stale.healthy, stale.disrupted.len(), stale.recheck), (2, 0, None));
    }

    #[test]
    fn a_failure_allows_nothing_and_keeps_its_time() {
        let now = Time("2026-01-01T00:10:00Z".parse().unwrap());
        let first = failed(&budget(&json!({}), &json!({"disruptionsAllowed": 3, "currentHealthy": 3})), "why", &now);
        assert_eq!((first.disruptions_allowed, first.current_healthy), (Some(0), Some(3)));
        let later = Time("2026-01-01T00:11:00Z".parse().unwrap());
        let again = failed(&budget(&json!({}), &serde_json::to_value(&first).unwrap()), "why", &later);
        assert_eq!(again, first);
    }
}
