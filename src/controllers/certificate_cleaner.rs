//! Old certificate requests are deleted: a cluster whose nodes renew their certificates would keep them all. It follows upstream's
//! `controller/certificates/cleaner`.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;

use super::{Context, Controller, Error, Queue, Requeue, Seen, Watches};
use crate::client::informer::Informer;
use crate::client::{Client, DeleteOptions, ObjectKey, Preconditions};
use crate::rt::clock::SharedClock;

/// How long a request stays after it was approved, denied or could not be signed.
const DECIDED: Duration = Duration::from_secs(3_600);
/// How long one waits for somebody to decide.
const PENDING: Duration = Duration::from_secs(24 * 3_600);

/// The controller that deletes old certificate requests.
pub(super) fn certificate_cleaner(context: &Context) -> Arc<dyn Controller> {
    Arc::new(Cleaner {
        requests: context.config.informers.of(),
        client: context.client("certificate-cleaner"),
        clock: Arc::clone(&context.config.clock),
    })
}

struct Cleaner {
    requests: Arc<Informer<CertificateSigningRequest>>,
    client: Client,
    clock: SharedClock,
}

/// How long a request may still stay; zero when its time is over.
fn time_left(request: &CertificateSigningRequest, now: Timestamp) -> Duration {
    let conditions = request.status.iter().filter_map(|status| status.conditions.as_ref()).flatten();
    let decided = conditions.filter(|condition| ["Approved", "Denied", "Failed"].contains(&condition.type_.as_str()));
    let changed = decided.filter_map(|condition| condition.last_update_time.as_ref().or(condition.last_transition_time.as_ref()));
    let (since, stays) = match changed.map(|time| time.0).min() {
        Some(decided) => (decided, DECIDED),
        None => (request.metadata.creation_timestamp.as_ref().map_or(now, |time| time.0), PENDING),
    };
    // A time in the future counts as now.
    let age = Duration::try_from(now.duration_since(since)).unwrap_or(Duration::ZERO);
    stays.saturating_sub(age)
}

#[async_trait]
impl Controller for Cleaner {
    fn name(&self) -> &'static str {
        "csrcleaner"
    }

    fn watch(&self, watches: &mut Watches) {
        watches.on(&self.requests, |seen: Seen<'_, CertificateSigningRequest>, queue: &Queue| {
            seen.new.into_iter().for_each(|request| queue.add(ObjectKey::of(request)));
        });
    }

    fn workers(&self) -> usize {
        1
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Requeue, Error> {
        let Some(request) = self.requests.get("", &key.name) else { return Ok(Requeue::Done) };
        let left = time_left(&request, self.clock.now());
        if left > Duration::ZERO {
            return Ok(Requeue::After(left));
        }
        let preconditions = Preconditions { uid: request.metadata.uid.clone(), resource_version: None };
        let options = DeleteOptions { preconditions: Some(preconditions), ..DeleteOptions::default() };
        match self.client.delete::<CertificateSigningRequest>("", &key.name, &options).await {
            Err(error) if !error.is_not_found() => Err(error.into()),
            _ => Ok(Requeue::Done),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn requests_stay_as_long_as_upstream_keeps_them() {
        let now: Timestamp = "2026-01-02T00:00:00Z".parse().unwrap();
        let made = |hours: u64, condition: Option<(&str, u64)>| -> CertificateSigningRequest {
            let before = |hours: u64| (now - Duration::from_secs(hours * 3_600)).to_string();
            let condition =
                condition.map(|(kind, hours)| json!({"type": kind, "status": "True", "lastUpdateTime": before(hours)}));
            let spec = json!({"request": "", "signerName": "s"});
            serde_json::from_value(json!({
                "metadata": {"name": "a", "creationTimestamp": before(hours)},
                "spec": spec, "status": {"conditions": condition.into_iter().collect::<Vec<_>>()},
            }))
            .unwrap()
        };
        for (hours, condition, left) in [
            (0, None, 24),
            (23, None, 1),
            (24, None, 0),
            (20, Some(("Approved", 0)), 1),
            (1, Some(("Approved", 1)), 0),
            (9, Some(("Denied", 9)), 0),
            (9, Some(("Failed", 0)), 1),
            (23, Some(("Other", 9)), 1),
        ] {
            let request = made(hours, condition);
            assert_eq!(time_left(&request, now), Duration::from_secs(left * 3_600), "{hours} h old, {condition:?}");
        }
    }
}
