//! When the change happened that Endpoints and EndpointSlices tell of: `endpoints.kubernetes.io/last-change-trigger-time`, from
//! which proxies measure how late they are (upstream's `TriggerTimeTracker`).

use std::collections::{BTreeMap, HashMap};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, Service};
use parking_lot::Mutex;

use super::super::pods;
use super::backend::Backend;
use crate::client::ObjectKey;

pub(super) const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";
pub(super) const HEADLESS: &str = "service.kubernetes.io/headless";

#[derive(Default)]
struct Seen {
    service: Option<Timestamp>,
    pods: HashMap<String, Timestamp>,
}

/// The times that were told already, by Service.
#[derive(Default)]
pub(super) struct TriggerTimes(Mutex<HashMap<ObjectKey, Seen>>);

impl TriggerTimes {
    /// The earliest change since the last call for this Service, as the annotation has it.
    pub(super) fn next(&self, key: &ObjectKey, service: &Service, backends: &[Backend]) -> Option<String> {
        let created = service.metadata.creation_timestamp.as_ref().map(|time| time.0);
        let pods: HashMap<String, Timestamp> = backends.iter().filter_map(|backend| changed(&backend.pod)).collect();
        let mut all = self.0.lock();
        let before = all.insert(key.clone(), Seen { service: created, pods: pods.clone() });
        let earliest = match before {
            None => created,
            Some(before) => {
                let is_new = |(name, at): &(&String, &Timestamp)| before.pods.get(*name).is_none_or(|known| *at > known);
                let of_pods = pods.iter().filter(is_new).map(|(_, at)| *at);
                of_pods.chain(created.filter(|at| before.service.is_none_or(|known| *at > known))).min()
            }
        };
        earliest.map(|at| at.to_string())
    }

    /// The Service is gone.
    pub(super) fn forget(&self, key: &ObjectKey) {
        self.0.lock().remove(key);
    }
}

/// When the pod's readiness last changed.
fn changed(pod: &Pod) -> Option<(String, Timestamp)> {
    let at = pods::condition(pod, "Ready")?.last_transition_time.as_ref()?.0;
    Some((pod.metadata.name.clone()?, at))
}

/// Annotations with this time, or without one.
pub(super) fn annotate(mut annotations: BTreeMap<String, String>, trigger: Option<&str>) -> BTreeMap<String, String> {
    match trigger {
        Some(at) => annotations.insert(TRIGGER_TIME.to_owned(), at.to_owned()),
        None => annotations.remove(TRIGGER_TIME),
    };
    annotations
}
