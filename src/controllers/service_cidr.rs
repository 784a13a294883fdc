//! ServiceCIDRs: one that is used is not removed (upstream's `controller/servicecidrs`).

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use ipnet::IpNet;
use jiff::Timestamp;
use k8s_openapi::api::networking::v1::{IPAddress, ServiceCIDR, ServiceCIDRStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use serde_json::json;

use super::{Context, Controller, Error, Queue, Requeue, Seen, Watches, status};
use crate::client::informer::Informer;
use crate::client::recorder::{EventType, Recorder, reference};
use crate::client::{Cached, Client, ObjectKey, PatchKind};
use crate::rt::clock::SharedClock;

const FINALIZER: &str = "networking.k8s.io/service-cidr-finalizer";
/// Time from the deletion until the finalizer goes, in which every allocator hears of it.
const PROPAGATION: Duration = Duration::from_secs(10);
const IN_USE: &str = "There are still IPAddresses referencing the ServiceCIDR, please remove them or create a new ServiceCIDR";
pub(super) const MANAGED_BY: &str = "ipaddress.kubernetes.io/managed-by";
pub(super) const MANAGER: &str = "ipallocator.k8s.io";

/// The controller of ServiceCIDRs.
pub(super) fn service_cidr(context: &Context) -> Arc<dyn Controller> {
    Arc::new(ServiceCidrs {
        ranges: context.config.informers.of(),
        addresses: context.config.informers.of(),
        client: context.client("service-cidrs-controller"),
        recorder: context.recorder("service-cidr-controller"),
        clock: Arc::clone(&context.config.clock),
    })
}

struct ServiceCidrs {
    ranges: Arc<Informer<ServiceCIDR>>,
    addresses: Arc<Informer<IPAddress>>,
    client: Client,
    recorder: Recorder,
    clock: SharedClock,
}

/// The networks of a ServiceCIDR.
pub(super) fn networks(range: &ServiceCIDR) -> Vec<IpNet> {
    let cidrs = range.spec.iter().flat_map(|spec| spec.cidrs.iter().flatten());
    cidrs.filter_map(|cidr| cidr.parse().ok()).collect()
}

/// Whether the allocator made this address.
pub(super) fn is_allocated(address: &IPAddress) -> bool {
    address.metadata.labels.as_ref().and_then(|labels| labels.get(MANAGED_BY)).is_some_and(|manager| manager == MANAGER)
}

/// Whether every address that is in use lies in another ServiceCIDR too.
fn is_removable(range: &ServiceCIDR, all: &[Arc<ServiceCIDR>], used: &[IpAddr]) -> bool {
    let others: Vec<IpNet> =
        all.iter().filter(|other| other.metadata.name != range.metadata.name).flat_map(|other| networks(other)).collect();
    let own = networks(range);
    let is_orphaned = |address: &&IpAddr| {
        own.iter().any(|network| network.contains(*address)) && !others.iter().any(|network| network.contains(*address))
    };
    own.iter().all(|network| others.iter().any(|other| other.contains(network))) || !used.iter().any(|used| is_orphaned(&used))
}

fn condition(range: &ServiceCIDR, status: &str, reason: &str, message: &str, now: Timestamp) -> Option<ServiceCIDRStatus> {
    let before = range.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let before = before.into_iter().find(|condition| condition.type_ == "Ready");
    if before.is_some_and(|before| before.status == status && before.reason == reason) {
        return None;
    }
    let ready = Condition {
        type_: "Ready".to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        last_transition_time: Time(now),
        observed_generation: None,
    };
    Some(ServiceCIDRStatus { conditions: Some(vec![ready]) })
}

impl ServiceCidrs {
    async fn set(&self, range: &ServiceCIDR, (status, reason, message): (&str, &str, &str)) -> Result<(), Error> {
        let Some(wanted) = condition(range, status, reason, message, self.clock.now()) else { return Ok(()) };
        status::write(&self.client, range, range.status.as_ref(), &wanted).await
    }

    async fn set_finalizers(&self, range: &ServiceCIDR, finalizers: Vec<String>) -> Result<(), Error> {
        let meta = &range.metadata;
        let patch = json!({"metadata": {"uid": meta.uid, "resourceVersion": meta.resource_version, "finalizers": finalizers}});
        self.client.patch::<ServiceCIDR>("", range.name(), None, PatchKind::Merge, &patch).await?;
        Ok(())
    }

    async fn finish(&self, range: &ServiceCIDR, mut finalizers: Vec<String>) -> Result<Requeue, Error> {
        let addresses = self.addresses.list();
        let used: Vec<IpAddr> = (addresses.iter().filter(|address| is_allocated(address)))
            .filter_map(|address| address.name().parse().ok())
            .collect();
        if !is_removable(range, &self.ranges.list(), &used) {
            // The end of an address, or another range, comes back here.
            self.set(range, ("False", "Terminating", IN_USE)).await?;
            return Ok(Requeue::Done);
        }
        let since = range.metadata.deletion_timestamp.as_ref().map_or(self.clock.now(), |time| time.0);
        let age = Duration::try_from(self.clock.now().duration_since(since)).unwrap_or(Duration::ZERO);
        if let Some(wait) = PROPAGATION.checked_sub(age).filter(|wait| !wait.is_zero()) {
            return Ok(Requeue::After(wait));
        }
        if finalizers.iter().any(|finalizer| finalizer == FINALIZER) {
            finalizers.retain(|finalizer| finalizer != FINALIZER);
            self.set_finalizers(range, finalizers).await?;
        }
        Ok(Requeue::Done)
    }
}

#[async_trait]
impl Controller for ServiceCidrs {
    fn name(&self) -> &'static str {
        "servicecidr"
    }

    fn watch(&self, watches: &mut Watches) {
        let ranges = Arc::clone(&self.ranges);
        watches.on(&self.ranges, move |seen: Seen<'_, ServiceCIDR>, queue: &Queue| {
            seen.new.into_iter().for_each(|range| queue.add(ObjectKey::of(range)));
            // Another range may be what one that is being deleted waits for.
            let waiting = ranges.list().into_iter().filter(|range| range.metadata.deletion_timestamp.is_some());
            waiting.for_each(|range| queue.add(ObjectKey::of(&*range)));
        });
        let ranges = Arc::clone(&self.ranges);
        watches.on(&self.addresses, move |seen: Seen<'_, IPAddress>, queue: &Queue| {
            let is_news = seen.old.is_none() || seen.new.is_none();
            let address = seen.newest().filter(|_| is_news).and_then(|address| address.name().parse::<IpAddr>().ok());
            let Some(address) = address else { return };
            for range in ranges.list().iter().filter(|range| range.metadata.deletion_timestamp.is_some()) {
                if networks(range).iter().any(|network| network.contains(&address)) {
                    queue.add(ObjectKey::of(&**range));
                }
            }
        });
    }

    fn workers(&self) -> usize {
        1
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Requeue, Error> {
        let Some(range) = self.ranges.get("", &key.name) else { return Ok(Requeue::Done) };
        let mut finalizers = range.metadata.finalizers.clone().unwrap_or_default();
        if range.metadata.deletion_timestamp.is_some() {
            return self.finish(&range, finalizers).await;
        }
        if !finalizers.iter().any(|finalizer| finalizer == FINALIZER) {
            finalizers.push(FINALIZER.to_owned());
            // The change comes back here, for its condition.
            self.set_finalizers(&range, finalizers).await?;
            return Ok(Requeue::Done);
        }
        let set = self.set(&range, ("True", "", "Kubernetes Service CIDR is ready")).await;
        if set.is_err() {
            let message = "The ServiceCIDR Status can not be set to Ready=True";
            self.recorder.event(&reference(&*range), EventType::Warning, "KubernetesServiceCIDRError", message);
        }
        set.map(|()| Requeue::Done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_goes_when_no_address_needs_it() {
        let range = |name: &str, cidr: &str| -> Arc<ServiceCIDR> {
            Arc::new(serde_json::from_value(json!({"metadata": {"name": name}, "spec": {"cidrs": [cidr]}})).unwrap())
        };
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        for (what, others, used, expected) in [
            ("nothing is used", vec![], vec![], true),
            ("an address of its own", vec![], vec![ip("10.0.1.5")], false),
            ("an address of another range", vec![range("b", "10.9.0.0/16")], vec![ip("10.9.0.5")], true),
            ("a larger range", vec![range("b", "10.0.0.0/16")], vec![ip("10.0.1.5")], true),
            ("a range that has the address too", vec![range("b", "10.0.1.0/28")], vec![ip("10.0.1.5")], true),
        ] {
            let own = range("a", "10.0.1.0/24");
            let all: Vec<_> = others.into_iter().chain([Arc::clone(&own)]).collect();
            assert_eq!(is_removable(&own, &all, &used), expected, "{what}");
        }
    }
}
