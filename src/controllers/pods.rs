//! What the workload controllers ask about pods, and the order in which they delete them.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodCondition};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::kinds::check::percent;
pub(super) use crate::kinds::core::pod::has_ended;

/// How a percentage becomes a number of pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Round {
    Up,
    Down,
}

/// A number, or a percentage of `total`; a text that is no percentage counts as 0: `intstr.GetScaledValueFromIntOrPercent`.
pub(super) fn scaled(value: &IntOrString, total: i32, round: Round) -> i32 {
    match value {
        IntOrString::Int(number) => *number,
        IntOrString::String(text) => {
            let hundredths = percent(text).unwrap_or(0).saturating_mul(i64::from(total));
            let above = if round == Round::Up { 99 } else { 0 };
            i32::try_from(hundredths.saturating_add(above).div_euclid(100)).unwrap_or(i32::MAX)
        }
    }
}

/// Whether the pod neither finished nor is being deleted: `controller.IsPodActive`.
pub(super) fn is_active(pod: &Pod) -> bool {
    !has_ended(pod) && pod.metadata.deletion_timestamp.is_none()
}

/// `status.phase`; "Pending" if it is not set.
pub(super) fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Pending")
}

/// The pod's condition of this type.
pub(super) fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a PodCondition> {
    pod.status.as_ref()?.conditions.as_ref()?.iter().find(|condition| condition.type_ == kind)
}

/// Whether the Ready condition is True.
pub(super) fn is_ready(pod: &Pod) -> bool {
    condition(pod, "Ready").is_some_and(|ready| ready.status == "True")
}

/// When the pod became ready, if it is.
pub(super) fn ready_since(pod: &Pod) -> Option<Timestamp> {
    let ready = condition(pod, "Ready").filter(|ready| ready.status == "True")?;
    ready.last_transition_time.as_ref().map(|time| time.0)
}

/// How long until a ready pod is available; zero if it is, `None` if it is not ready.
pub(super) fn until_available(pod: &Pod, min_ready_seconds: i32, now: Timestamp) -> Option<Duration> {
    if !is_ready(pod) {
        return None;
    }
    if min_ready_seconds <= 0 {
        return Some(Duration::ZERO);
    }
    let due = ready_since(pod)? + jiff::SignedDuration::from_secs(i64::from(min_ready_seconds));
    Some(Duration::try_from(due.duration_since(now)).unwrap_or(Duration::ZERO))
}

fn restarts(pod: &Pod) -> i32 {
    let statuses = pod.status.iter().filter_map(|status| status.container_statuses.as_ref()).flatten();
    statuses.map(|status| status.restart_count).max().unwrap_or(0)
}

fn deletion_cost(pod: &Pod) -> i32 {
    let annotations = pod.metadata.annotations.as_ref();
    let cost = annotations.and_then(|all| all.get("controller.kubernetes.io/pod-deletion-cost"));
    cost.and_then(|cost| cost.parse().ok()).unwrap_or(0)
}

fn is_assigned(pod: &Pod) -> bool {
    pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).is_some_and(|node| !node.is_empty())
}

fn phase_order(pod: &Pod) -> u8 {
    match phase(pod) {
        "Pending" => 0,
        "Unknown" => 1,
        _ => 2,
    }
}

/// The age of a time on the logarithmic scale by which upstream compares, so that near-equal ages count as equal.
fn log_age(time: Timestamp, now: Timestamp) -> i64 {
    let nanoseconds = now.duration_since(time).as_nanos();
    if nanoseconds <= 0 { -1 } else { i64::from(127 - nanoseconds.leading_zeros()) }
}

/// Newer first; pods of about the same age by uid; a time that is not known first.
fn by_youth(left: &Pod, right: &Pod, time: impl Fn(&Pod) -> Option<Timestamp>, now: Timestamp) -> Ordering {
    match (time(left), time(right)) {
        (Some(left), Some(right)) => log_age(left, now).cmp(&log_age(right, now)),
        (left, right) => left.is_some().cmp(&right.is_some()),
    }
}

/// The order in which pods go when there are too many, first to go first: `controller.ActivePodsWithRanks`.
///
/// `doubled` says how many pods of the workload are on the pod's node.
fn deletion_order(left: (&Pod, usize), right: (&Pod, usize), now: Timestamp) -> Ordering {
    let ((left, left_rank), (right, right_rank)) = (left, right);
    is_assigned(left)
        .cmp(&is_assigned(right))
        .then_with(|| phase_order(left).cmp(&phase_order(right)))
        .then_with(|| is_ready(left).cmp(&is_ready(right)))
        .then_with(|| deletion_cost(left).cmp(&deletion_cost(right)))
        .then_with(|| right_rank.cmp(&left_rank))
        .then_with(|| if is_ready(left) { by_youth(left, right, ready_since, now) } else { Ordering::Equal })
        .then_with(|| restarts(right).cmp(&restarts(left)))
        .then_with(|| by_youth(left, right, |pod| pod.metadata.creation_timestamp.as_ref().map(|time| time.0), now))
        .then_with(|| left.metadata.uid.cmp(&right.metadata.uid))
}

/// The `count` pods of `pods` that go first; `related` are the active pods of all ReplicaSets of the same owner, by which a node
/// counts as doubled up.
pub(super) fn to_delete<'a, P: AsRef<Pod> + 'a>(pods: &'a [P], related: &[P], count: usize, now: Timestamp) -> Vec<&'a P> {
    let mut on_node: HashMap<&str, usize> = HashMap::new();
    for pod in related {
        if let Some(node) = pod.as_ref().spec.as_ref().and_then(|spec| spec.node_name.as_deref()) {
            *on_node.entry(node).or_default() += 1;
        }
    }
    let rank = |pod: &Pod| {
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or("");
        on_node.get(node).copied().unwrap_or(0)
    };
    let mut ordered: Vec<(&P, usize)> = pods.iter().map(|pod| (pod, rank(pod.as_ref()))).collect();
    if count < pods.len() {
        ordered.sort_by(|left, right| deletion_order((left.0.as_ref(), left.1), (right.0.as_ref(), right.1), now));
    }
    ordered.into_iter().take(count).map(|(pod, _)| pod).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;

    fn pod(name: &str, node: &str, phase: &str, ready_at: Option<&str>, restarts: i32) -> Arc<Pod> {
        let conditions = ready_at.map(|at| json!([{"type": "Ready", "status": "True", "lastTransitionTime": at}]));
        let mut value = json!({
            "metadata": {"name": name, "uid": name, "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"containers": []},
            "status": {"phase": phase, "containerStatuses": [
                {"name": "c", "image": "", "imageID": "", "ready": true, "restartCount": restarts}]},
        });
        if !node.is_empty() {
            value["spec"]["nodeName"] = json!(node);
        }
        if let Some(conditions) = conditions {
            value["status"]["conditions"] = conditions;
        }
        Arc::new(serde_json::from_value(value).unwrap())
    }

    #[test]
    fn order_is_upstreams() {
        let now: Timestamp = "2026-01-01T01:00:00Z".parse().unwrap();
        let (early, late) = (Some("2026-01-01T00:00:01Z"), Some("2026-01-01T00:59:00Z"));
        let expected = [
            pod("unassigned", "", "Pending", None, 0),
            pod("pending", "n1", "Pending", None, 0),
            pod("not-ready", "n1", "Running", None, 0),
            pod("doubled", "n2", "Running", early, 0),
            pod("recent", "n3", "Running", late, 0),
            pod("restarted", "n4", "Running", early, 3),
            pod("stable", "n5", "Running", early, 0),
        ];
        let mut pods = expected.to_vec();
        pods.reverse();
        let mut related = pods.clone();
        related.push(pod("other", "n2", "Running", early, 0));
        let names = |pods: Vec<&Arc<Pod>>| pods.into_iter().filter_map(|pod| pod.metadata.name.clone()).collect::<Vec<_>>();
        let want: Vec<String> = expected.iter().filter_map(|pod| pod.metadata.name.clone()).collect();
        assert_eq!(names(to_delete(&pods, &related, 6, now)), want[..6]);
    }

    #[test]
    fn available_after_min_ready_seconds() {
        let now: Timestamp = "2026-01-01T00:00:10Z".parse().unwrap();
        let ready = pod("a", "n", "Running", Some("2026-01-01T00:00:04Z"), 0);
        assert_eq!(until_available(&ready, 0, now), Some(Duration::ZERO));
        assert_eq!(until_available(&ready, 10, now), Some(Duration::from_secs(4)));
        assert_eq!(until_available(&ready, 5, now), Some(Duration::ZERO));
        assert_eq!(until_available(&pod("b", "n", "Running", None, 0), 0, now), None);
    }
}
