//! How long a job waits before it creates pods again after failures: 10 s, doubled by every failure in a row, 10 minutes at most.
//! It follows upstream's `backoff_utils.go`; like there, what is known of a job's failures is lost when the process ends.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;

use super::super::pods;
use super::failure;
use crate::rt::backoff;

const BASE: Duration = Duration::from_secs(10);
const CAP: Duration = Duration::from_secs(600);

/// The failures of a job since a pod of it last succeeded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Failures {
    count: u32,
    last: Option<Timestamp>,
}

impl Failures {
    /// With the pods that ended since.
    pub(super) fn after(self, succeeded: &[Arc<Pod>], failed: &[Arc<Pod>]) -> Self {
        let times = |pods: &[Arc<Pod>]| pods.iter().filter_map(|pod| finished_at(pod)).collect::<Vec<_>>();
        let (mut failures, last_success) = (times(failed), times(succeeded).into_iter().max());
        let before = if let Some(success) = last_success {
            failures.retain(|failure| *failure > success);
            Self::default()
        } else {
            self
        };
        let count = before.count.saturating_add(u32::try_from(failures.len()).unwrap_or(u32::MAX));
        Self { count, last: failures.into_iter().max().or(before.last) }
    }

    /// How long pods must not be created yet.
    pub(super) fn remaining(self, now: Timestamp) -> Duration {
        match (self.count.checked_sub(1), self.last) {
            (Some(doublings), Some(last)) => {
                let due =
                    last.saturating_add(SignedDuration::try_from(backoff::exponential(BASE, CAP, doublings)).unwrap_or_default());
                let left = due.unwrap_or(Timestamp::MAX).duration_since(now);
                Duration::try_from(left).unwrap_or(Duration::ZERO)
            }
            _ => Duration::ZERO,
        }
    }
}

/// How long the pod that replaces this failed one of its index must not be created yet.
pub(super) fn remaining_for_index(failed: &Pod, now: Timestamp) -> Duration {
    let count = u32::try_from(failure::total_count(failed)).unwrap_or(0).saturating_add(1);
    Failures { count, last: finished_at(failed) }.remaining(now)
}

/// When a pod ended: when its last container did; else when it ceased to be ready; else when its deletion was asked for; else
/// when it was created.
pub(super) fn finished_at(pod: &Pod) -> Option<Timestamp> {
    let meta = &pod.metadata;
    let containers = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
    let ends: Option<Vec<Timestamp>> =
        containers.map(|container| Some(container.state.as_ref()?.terminated.as_ref()?.finished_at.as_ref()?.0)).collect();
    let unready = pods::condition(pod, "Ready").filter(|ready| ready.status == "False");
    let grace = SignedDuration::from_secs(meta.deletion_grace_period_seconds.unwrap_or(0));
    ends.and_then(|ends| ends.into_iter().max())
        .or_else(|| unready?.last_transition_time.as_ref().map(|time| time.0))
        .or_else(|| meta.deletion_timestamp.as_ref().and_then(|time| time.0.saturating_sub(grace).ok()))
        .or_else(|| meta.creation_timestamp.as_ref().map(|time| time.0))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(value: Value) -> Arc<Pod> {
        Arc::new(serde_json::from_value(value).unwrap())
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn ended(second: i64) -> Arc<Pod> {
        pod(json!({"metadata": {}, "status": {"containerStatuses": [{"name": "a", "image": "", "imageID": "", "ready": false,
            "restartCount": 0, "state": {"terminated": {"exitCode": 1, "finishedAt": at(second).to_string()}}}]}}))
    }

    #[test]
    fn delays_double_and_end_with_a_success() {
        let one = Failures::default().after(&[], &[ended(100)]);
        assert_eq!(one, Failures { count: 1, last: Some(at(100)) });
        assert_eq!((one.remaining(at(100)), one.remaining(at(111))), (Duration::from_secs(10), Duration::ZERO));
        let three = one.after(&[], &[ended(130), ended(120)]);
        assert_eq!(three.remaining(at(135)), Duration::from_secs(35));
        assert_eq!(three.after(&[], &[]), three);
        let many = Failures { count: 40, last: Some(at(0)) };
        assert_eq!(many.remaining(at(0)), Duration::from_secs(600));
        assert_eq!(three.after(&[ended(140)], &[]), Failures::default());
        let mixed = three.after(&[ended(140)], &[ended(139), ended(150)]);
        assert_eq!(mixed, Failures { count: 1, last: Some(at(150)) });
    }

    #[test]
    fn ends_of_pods() {
        let deleted = json!({"metadata": {"deletionTimestamp": at(50).to_string(), "deletionGracePeriodSeconds": 30}});
        let unready = json!({"metadata": {}, "status": {"conditions": [
            {"type": "Ready", "status": "False", "lastTransitionTime": at(7).to_string()}]}});
        for (value, end) in [(deleted, 20), (unready, 7), (json!({"metadata": {"creationTimestamp": at(3).to_string()}}), 3)] {
            assert_eq!(finished_at(&pod(value)), Some(at(end)));
        }
        assert_eq!(finished_at(&ended(9)), Some(at(9)));
    }
}
