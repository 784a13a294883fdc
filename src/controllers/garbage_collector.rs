//! Garbage collector: deletes objects whose owners are gone, and orphans or waits for dependents as the deletion of their owner
//! asks. It follows upstream's `controller/garbagecollector`.
//!
//! Only metadata is watched, of every kind that can be deleted. A key is the uid of an object; the graph of owners and dependents
//! is the indexes of the caches. An owner that no cache shows is asked for at the API before anything is deleted.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ::http::Method;
use async_trait::async_trait;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use parking_lot::RwLock;
use serde_json::json;

use super::metadata::{self, Meta};
use super::{Context, Controller, Error, Queue, Requeue, Seen, Watches};
use crate::api::Kind;
use crate::client::informer::Informer;
use crate::client::{Cached, Client, ClientError, DeleteOptions, ObjectKey, Preconditions, Source};
use crate::kinds::Kinds;

const FOREGROUND: &str = "foregroundDeletion";
const ORPHAN: &str = "orphan";
const BY_UID: &str = "uid";
const BY_OWNER: &str = "owner";
/// After this time an owner of an unknown kind is asked for again.
const UNKNOWN_KIND: Duration = Duration::from_secs(60);

/// The garbage collector.
pub(super) fn garbage_collector(context: &Context) -> Arc<dyn Controller> {
    let client = context.client("generic-garbage-collector");
    let start = |kind: Arc<dyn Kind>| {
        let source = Source {
            path: metadata::path(kind.names(), "", ""),
            query: String::new(),
            accept: metadata::ACCEPT_LIST.to_owned(),
            accept_watch: metadata::ACCEPT_ONE.to_owned(),
        };
        let informer = Informer::start_source(&context.tasks, client.clone(), source);
        informer.add_index(BY_UID, |object: &Meta| vec![object.uid().to_owned()]);
        informer.add_index(BY_OWNER, |object| object.owners().iter().map(|owner| owner.uid.clone()).collect());
        Monitor { kind, informer }
    };
    let kinds = Arc::clone(&context.config.kinds);
    let monitors = watched(&kinds).into_iter().map(start).collect();
    Arc::new(GarbageCollector { monitors: Arc::new(RwLock::new(monitors)), client, kinds })
}

/// The kinds whose objects own or are owned; one for each bucket.
fn watched(kinds: &Kinds) -> Vec<Arc<dyn Kind>> {
    let mut buckets: BTreeMap<&'static str, Arc<dyn Kind>> = BTreeMap::new();
    for kind in kinds.iter().filter(|kind| metadata::is_deletable(&**kind) && kind.names().plural != "events") {
        buckets.entry(kind.bucket()).or_insert(kind);
    }
    buckets.into_values().collect()
}

#[derive(Clone)]
struct Monitor {
    kind: Arc<dyn Kind>,
    informer: Arc<Informer<Meta>>,
}

struct GarbageCollector {
    monitors: Arc<RwLock<Vec<Monitor>>>,
    client: Client,
    kinds: Arc<Kinds>,
}

type Found = (Arc<dyn Kind>, Arc<Meta>);

/// What is known of an owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    /// It is there.
    Solid,
    /// It waits for its dependents to go.
    Waiting,
    /// It is gone.
    Dangling,
}

/// What is to be done with an object, given its owners.
#[derive(Debug, PartialEq)]
enum Action<'a> {
    Nothing,
    /// Drop the references to these owners.
    Detach(Vec<&'a str>),
    /// Delete with this propagation policy.
    Delete(&'static str),
}

/// Decides: `attemptToDeleteItem` of upstream.
fn plan<'a>(object: &Meta, owners: &[(&'a OwnerReference, Owner)], has_dependents: bool) -> Action<'a> {
    if owners.is_empty() {
        return Action::Nothing;
    }
    let in_state = |state| owners.iter().filter(move |(_, owner)| *owner == state);
    if in_state(Owner::Solid).next().is_some() {
        let gone: Vec<&str> =
            owners.iter().filter(|(_, owner)| *owner != Owner::Solid).map(|(reference, _)| reference.uid.as_str()).collect();
        return if gone.is_empty() { Action::Nothing } else { Action::Detach(gone) };
    }
    if in_state(Owner::Waiting).next().is_some() && has_dependents {
        return Action::Delete("Foreground");
    }
    Action::Delete(if object.has_finalizer(ORPHAN) {
        "Orphan"
    } else if object.has_finalizer(FOREGROUND) {
        "Foreground"
    } else {
        "Background"
    })
}

impl GarbageCollector {
    fn monitors(&self) -> Vec<Monitor> {
        self.monitors.read().clone()
    }

    fn find(&self, uid: &str) -> Option<Found> {
        let found = |monitor: &Monitor| {
            let object = monitor.informer.by_index(BY_UID, uid).into_iter().next()?;
            Some((Arc::clone(&monitor.kind), object))
        };
        self.monitors.read().iter().find_map(found)
    }

    fn dependents(&self, uid: &str) -> Vec<Found> {
        let of = |monitor: &Monitor| {
            let objects = monitor.informer.by_index(BY_OWNER, uid);
            let kind = Arc::clone(&monitor.kind);
            objects.into_iter().map(move |object| (Arc::clone(&kind), object))
        };
        self.monitors.read().iter().flat_map(of).collect()
    }

    /// Looks an owner up, in the caches and then at the API; `None` if its kind is not known.
    async fn look_up(&self, object: &Meta, reference: &OwnerReference) -> Result<Option<Owner>, ClientError> {
        if let Some((kind, owner)) = self.find(&reference.uid) {
            let is_there = !kind.names().is_namespaced() || owner.namespace() == object.namespace();
            let waits = owner.is_deleting() && owner.has_finalizer(FOREGROUND);
            return Ok(Some(match (is_there, waits) {
                (false, _) => Owner::Dangling,
                (true, true) => Owner::Waiting,
                (true, false) => Owner::Solid,
            }));
        }
        let (group, version) = reference.api_version.split_once('/').unwrap_or(("", &reference.api_version));
        let Some(kind) = self.kinds.find_kind(group, version, &reference.kind) else { return Ok(None) };
        if kind.names().is_namespaced() && object.namespace().is_empty() {
            return Ok(None);
        }
        let path = metadata::path(kind.names(), object.namespace(), &reference.name);
        match self.client.request::<Meta>(Method::GET, &path, "", None).await {
            Ok(live) if live.uid() == reference.uid => Ok(Some(Owner::Solid)),
            Ok(_) => Ok(Some(Owner::Dangling)),
            Err(error) if error.is_not_found() => Ok(Some(Owner::Dangling)),
            Err(error) => Err(error),
        }
    }

    /// An object that is being deleted in the foreground goes when no dependent blocks it any more.
    async fn finish_foreground(&self, (kind, object): &Found, queue: &[Found]) -> Result<(), Error> {
        let blocks = |dependent: &Meta| {
            let owner = dependent.owners().iter().find(|owner| owner.uid == object.uid());
            owner.is_some_and(|owner| owner.block_owner_deletion == Some(true))
        };
        let mut is_blocked = false;
        for (kind, dependent) in queue.iter().filter(|(_, dependent)| blocks(dependent)) {
            is_blocked = true;
            if !dependent.is_deleting() {
                self.collect(&(Arc::clone(kind), Arc::clone(dependent))).await?;
            }
        }
        if is_blocked { Ok(()) } else { self.remove_finalizer(kind, object, FOREGROUND).await }
    }

    /// Dependents of an object that is being deleted lose their reference to it, and stay.
    async fn orphan_dependents(&self, (kind, object): &Found, dependents: &[Found]) -> Result<(), Error> {
        for (kind, dependent) in dependents {
            self.detach(&**kind, dependent, &[object.uid()]).await?;
        }
        self.remove_finalizer(kind, object, ORPHAN).await
    }

    async fn remove_finalizer(&self, kind: &Arc<dyn Kind>, object: &Meta, name: &str) -> Result<(), Error> {
        let kept: Vec<&str> = object.finalizers().filter(|finalizer| *finalizer != name).collect();
        self.patch(&**kind, object, json!({"finalizers": kept})).await
    }

    async fn detach(&self, kind: &dyn Kind, object: &Meta, owners: &[&str]) -> Result<(), Error> {
        let kept: Vec<&OwnerReference> = object.owners().iter().filter(|owner| !owners.contains(&owner.uid.as_str())).collect();
        self.patch(kind, object, json!({"ownerReferences": kept})).await
    }

    async fn patch(&self, kind: &dyn Kind, object: &Meta, mut meta: serde_json::Value) -> Result<(), Error> {
        meta["uid"] = json!(object.uid());
        meta["resourceVersion"] = json!(object.resource_version());
        match metadata::patch(&self.client, kind.names(), object, &json!({"metadata": meta})).await {
            Err(error) if !error.is_not_found() => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Looks at the owners of an object and does what follows.
    async fn collect(&self, (kind, object): &Found) -> Result<Requeue, Error> {
        let mut owners = Vec::with_capacity(object.owners().len());
        for reference in object.owners() {
            match self.look_up(object, reference).await? {
                Some(owner) => owners.push((reference, owner)),
                None => return Ok(Requeue::After(UNKNOWN_KIND)),
            }
        }
        match plan(object, &owners, !self.dependents(object.uid()).is_empty()) {
            Action::Nothing => {}
            Action::Detach(gone) => self.detach(&**kind, object, &gone).await?,
            Action::Delete(policy) => {
                let preconditions = Preconditions { uid: Some(object.uid().to_owned()), resource_version: None };
                let options = DeleteOptions {
                    propagation_policy: Some(policy),
                    preconditions: Some(preconditions),
                    ..DeleteOptions::default()
                };
                let at = (object.namespace(), object.name());
                match metadata::delete(&self.client, kind.names(), at, &options).await {
                    Err(error) if !error.is_not_found() && !error.is_conflict() => return Err(error.into()),
                    _ => {}
                }
            }
        }
        Ok(Requeue::Done)
    }
}

fn by_uid(uid: &str) -> ObjectKey {
    ObjectKey::new("", uid)
}

/// Whether the change of an object concerns the collector.
fn matters(seen: &Seen<'_, Meta>) -> bool {
    match (seen.old, seen.new) {
        (Some(old), Some(new)) => {
            old.uid() != new.uid()
                || old.owners() != new.owners()
                || old.is_deleting() != new.is_deleting()
                || !old.finalizers().eq(new.finalizers())
        }
        (None, Some(new)) => !new.owners().is_empty() || new.is_deleting(),
        (_, None) => true,
    }
}

#[async_trait]
impl Controller for GarbageCollector {
    fn name(&self) -> &'static str {
        "garbagecollector"
    }

    fn watch(&self, watches: &mut Watches) {
        for monitor in self.monitors() {
            let monitors = Arc::clone(&self.monitors);
            watches.on(&monitor.informer, move |seen: Seen<'_, Meta>, queue: &Queue| {
                if !matters(&seen) {
                    return;
                }
                seen.new.into_iter().for_each(|object| queue.add(by_uid(object.uid())));
                let gone = seen.old.filter(|old| seen.new.is_none_or(|new| new.uid() != old.uid()));
                if let Some(object) = gone {
                    // Those who waited for it, and those who depended on it.
                    object.owners().iter().for_each(|owner| queue.add(by_uid(&owner.uid)));
                    for other in monitors.read().iter() {
                        let dependents = other.informer.by_index(BY_OWNER, object.uid());
                        dependents.iter().for_each(|dependent| queue.add(by_uid(dependent.uid())));
                    }
                }
            });
        }
    }

    fn workers(&self) -> usize {
        10
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Requeue, Error> {
        let Some(found) = self.find(&key.name) else { return Ok(Requeue::Done) };
        let object = &found.1;
        if !object.is_deleting() {
            return self.collect(&found).await;
        }
        if object.has_finalizer(ORPHAN) {
            self.orphan_dependents(&found, &self.dependents(object.uid())).await?;
        } else if object.has_finalizer(FOREGROUND) {
            self.finish_foreground(&found, &self.dependents(object.uid())).await?;
        }
        Ok(Requeue::Done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happens_to_a_dependent() {
        use Owner::{Dangling, Solid, Waiting};
        let object =
            |finalizers: &[&str]| -> Meta { serde_json::from_value(json!({"metadata": {"finalizers": finalizers}})).unwrap() };
        let references = ["a", "b"].map(|uid| OwnerReference { uid: uid.to_owned(), ..OwnerReference::default() });
        for (states, has_dependents, finalizers, expected) in [
            (vec![], false, vec![], Action::Nothing),
            (vec![Solid], false, vec![], Action::Nothing),
            (vec![Solid, Dangling], false, vec![], Action::Detach(vec!["b"])),
            (vec![Waiting, Solid], true, vec![], Action::Detach(vec!["a"])),
            (vec![Dangling, Dangling], false, vec![], Action::Delete("Background")),
            (vec![Waiting], true, vec![], Action::Delete("Foreground")),
            (vec![Waiting], false, vec![], Action::Delete("Background")),
            (vec![Dangling], true, vec![ORPHAN], Action::Delete("Orphan")),
            (vec![Dangling], true, vec![FOREGROUND], Action::Delete("Foreground")),
        ] {
            let owners: Vec<_> = references.iter().zip(states.iter().copied()).collect();
            assert_eq!(plan(&object(&finalizers), &owners, has_dependents), expected, "{states:?}");
        }
    }
}
