//! Waits until the cache shows a controller's own writes, so that a stale cache never makes it create or delete twice.
//!
//! It has the purpose of upstream's `ControllerExpectations`, without counting: a create is seen when the cache has reached its
//! revision, a delete when the object is gone or marked.

use std::collections::{HashMap, HashSet};

use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;

use crate::client::{Cached, ObjectKey};

#[derive(Default)]
struct Awaited {
    revision: u64,
    deleted: HashSet<String>,
}

/// What each key still waits for.
#[derive(Default)]
pub(super) struct Expectations(Mutex<HashMap<ObjectKey, Awaited>>);

impl Expectations {
    /// The controller created this object.
    pub(super) fn created<T: Cached>(&self, key: &ObjectKey, object: &T) {
        if let Ok(revision) = object.resource_version().parse::<u64>() {
            let mut awaited = self.0.lock();
            let entry = awaited.entry(key.clone()).or_default();
            entry.revision = entry.revision.max(revision);
        }
    }

    /// The controller deleted the object of this uid.
    pub(super) fn deleted(&self, key: &ObjectKey, uid: &str) {
        self.0.lock().entry(key.clone()).or_default().deleted.insert(uid.to_owned());
    }

    /// Whether a cache that reached `revision` and shows `pods` for this key holds all of the controller's writes.
    pub(super) fn are_met<'a>(&self, key: &ObjectKey, revision: u64, pods: impl Iterator<Item = &'a Pod>) -> bool {
        let mut all = self.0.lock();
        let Some(awaited) = all.get_mut(key) else { return true };
        let alive: HashSet<&str> = pods.filter(|pod| pod.metadata.deletion_timestamp.is_none()).map(Cached::uid).collect();
        awaited.deleted.retain(|uid| alive.contains(uid.as_str()));
        let met = revision >= awaited.revision && awaited.deleted.is_empty();
        if met {
            all.remove(key);
        }
        met
    }

    /// The object of this key is gone.
    pub(super) fn forget(&self, key: &ObjectKey) {
        self.0.lock().remove(key);
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

    use super::*;

    #[test]
    fn creates_by_revision_and_deletes_by_uid() {
        let (expectations, key) = (Expectations::default(), ObjectKey::new("a", "web"));
        let metadata = ObjectMeta { uid: Some("u".into()), resource_version: Some("7".into()), ..ObjectMeta::default() };
        let pod = Pod { metadata, ..Pod::default() };
        assert!(expectations.are_met(&key, 0, [].into_iter()));
        expectations.created(&key, &pod);
        assert!(!expectations.are_met(&key, 6, [].into_iter()));
        assert!(expectations.are_met(&key, 7, [].into_iter()));
        expectations.deleted(&key, "u");
        assert!(!expectations.are_met(&key, 9, [&pod].into_iter()));
        assert!(expectations.are_met(&key, 9, [].into_iter()));
    }
}
