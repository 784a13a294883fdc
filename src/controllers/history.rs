//! ControllerRevisions: the history of a workload's pod template, which StatefulSet and DaemonSet share. It follows upstream's
//! `controller/history`.
//!
//! A revision holds a strategic merge patch that brings its template back, which is what `kubectl rollout undo` sends.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use serde::Serialize;
use serde_json::{Value, json};

use super::pod_control::is_namespace_terminating;
use super::{Context, Error, Queue, Watches, owners, status};
use crate::api::selector::label::Selector;
use crate::client::informer::{BY_CONTROLLER, Informer, by_controller};
use crate::client::{ApiObject, Client, DeleteOptions, ObjectKey, PatchKind, Preconditions};
use crate::kinds::check::same;
use crate::kinds::core::pod_spec::defaults;

/// The label of a pod that says which revision it is of.
pub(super) const POD_HASH: &str = "controller-revision-hash";
/// The label of a StatefulSet's revision with the hash of its data; the rest of its name.
pub(super) const REVISION_HASH: &str = "controller.kubernetes.io/hash";
/// The alphabet of apimachinery's `rand.SafeEncodeString`.
const SAFE: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
/// Longest part of a revision's name before the hash, in bytes.
const PREFIX: usize = 223;

/// A stable hash in characters that are safe in names; `collisions` makes another of the same bytes.
pub(super) fn hash(mut bytes: Vec<u8>, collisions: Option<i32>) -> String {
    if let Some(collisions) = collisions {
        bytes.extend_from_slice(&collisions.to_le_bytes());
    }
    let hash = bytes.iter().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
    hash.to_string().bytes().map(|digit| char::from(SAFE[usize::from(digit) % SAFE.len()])).collect()
}

/// The patch that a revision of this template holds.
fn patch_to(template: &PodTemplateSpec) -> Value {
    let mut template = json!(template);
    template["$patch"] = json!("replace");
    json!({"spec": {"template": template}})
}

/// The template that a revision brings back; `None` if it holds something else.
pub(super) fn template_of(revision: &ControllerRevision) -> Option<PodTemplateSpec> {
    let mut template = revision.data.as_ref()?.0.pointer("/spec/template")?.clone();
    template.as_object_mut()?.remove("$patch");
    let mut template: PodTemplateSpec = serde_json::from_value(template).ok()?;
    // A default that is newer than the revision is no change of the template.
    defaults::template(&mut template);
    Some(template)
}

/// Whether a revision brings this template back.
pub(super) fn matches(revision: &ControllerRevision, template: &PodTemplateSpec) -> bool {
    template_of(revision).is_some_and(|of_revision| same(&of_revision, template))
}

/// The revision that stands for the present template.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Choice {
    /// It is there, and is the newest.
    Found(Arc<ControllerRevision>),
    /// It is there, but older ones of another template came after it: a rollback. It gets this number.
    Renumber(Arc<ControllerRevision>, i64),
    /// There is none; the one to make gets this number.
    Create(i64),
}

/// Chooses among the revisions of a workload.
pub(super) fn choose(revisions: &[Arc<ControllerRevision>], template: &PodTemplateSpec) -> Choice {
    let (same, other): (Vec<_>, Vec<_>) = revisions.iter().partition(|revision| matches(revision, template));
    let next = other.iter().map(|revision| revision.revision).max().unwrap_or(0) + 1;
    match same.into_iter().max_by_key(|revision| revision.revision) {
        Some(newest) if newest.revision >= next => Choice::Found(Arc::clone(newest)),
        Some(newest) => Choice::Renumber(Arc::clone(newest), next),
        None => Choice::Create(next),
    }
}

/// The name of a thing of the API; "" if it has none.
pub(super) fn name_of(meta: &ObjectMeta) -> &str {
    meta.name.as_deref().unwrap_or("")
}

/// What a revision is made of.
pub(super) struct Snapshot<'a> {
    pub(super) template: &'a PodTemplateSpec,
    /// `status.collisionCount`.
    pub(super) collisions: Option<i32>,
    /// The label that carries the hash.
    pub(super) hash_label: &'static str,
}

impl Snapshot<'_> {
    fn revision<K: ApiObject>(&self, owner: &K, number: i64) -> ControllerRevision {
        let (meta, data) = (owner.metadata(), patch_to(self.template));
        let hash = hash(data.to_string().into_bytes(), self.collisions.filter(|collisions| *collisions > 0));
        let mut labels = self.template.metadata.as_ref().and_then(|meta| meta.labels.clone()).unwrap_or_default();
        labels.insert(self.hash_label.to_owned(), hash.clone());
        let mut prefix = name_of(meta).to_owned();
        prefix.truncate(PREFIX);
        let metadata = ObjectMeta {
            name: Some(format!("{prefix}-{hash}")),
            namespace: meta.namespace.clone(),
            labels: Some(labels),
            annotations: meta.annotations.clone(),
            owner_references: Some(vec![owners::controller_reference(owner)]),
            ..ObjectMeta::default()
        };
        ControllerRevision { metadata, data: Some(RawExtension(data)), revision: number }
    }
}

/// The revisions of all workloads, and how they are changed.
pub(super) struct Histories {
    revisions: Arc<Informer<ControllerRevision>>,
    client: Client,
}

impl Histories {
    /// For the controller of this component.
    pub(super) fn new(context: &Context, component: &str) -> Self {
        let revisions = context.config.informers.of::<ControllerRevision>();
        revisions.add_index(BY_CONTROLLER, by_controller);
        Self { revisions, client: context.client(component) }
    }

    /// Adds the owner, of the kind, of each revision that changes.
    pub(super) fn watch(&self, watches: &mut Watches, kind: &'static str) {
        watches.on(&self.revisions, move |seen, queue: &Queue| {
            for revision in seen.states() {
                if let Some(owner) = owners::controller_of(&revision.metadata).filter(|owner| owner.kind == kind) {
                    queue.add(ObjectKey::new(revision.metadata.namespace.as_deref().unwrap_or(""), &owner.name));
                }
            }
        });
    }

    /// The revisions that `owner` has after adopting and releasing, oldest first.
    ///
    /// # Errors
    /// [`Error::Client`], [`Error::Incomplete`]; to be tried again.
    pub(super) async fn claim<K: ApiObject>(
        &self,
        owner: &K,
        selector: &Selector,
    ) -> Result<Vec<Arc<ControllerRevision>>, Error> {
        let is_meant = |revision: &ControllerRevision| selector.matches(&revision.metadata.labels);
        let mut owned = owners::claim_all(&self.client, owner, &self.revisions, is_meant, None).await?;
        owned.sort_by_key(|revision| {
            (revision.revision, revision.metadata.creation_timestamp.clone(), revision.metadata.name.clone())
        });
        Ok(owned)
    }

    /// Makes sure that the present template has a revision. `None` if its name is taken by another: the `collision_count` of the
    /// owner's status went up, which makes another name.
    ///
    /// # Errors
    /// [`Error::Client`], [`Error::Incomplete`]; to be tried again.
    pub(super) async fn establish<K: ApiObject, S: Serialize + Clone + Default>(
        &self,
        owner: &K,
        revisions: &[Arc<ControllerRevision>],
        (template, hash_label): (&PodTemplateSpec, &'static str),
        status: Option<&S>,
        collision_count: fn(&mut S) -> &mut Option<i32>,
    ) -> Result<Option<Arc<ControllerRevision>>, Error> {
        let mut raised = status.cloned().unwrap_or_default();
        let collisions = *collision_count(&mut raised);
        let number = match choose(revisions, template) {
            Choice::Found(revision) => return Ok(Some(revision)),
            Choice::Renumber(revision, number) => {
                let meta = &revision.metadata;
                let patch = json!({"metadata": {"resourceVersion": meta.resource_version, "uid": meta.uid}, "revision": number});
                let namespace = meta.namespace.as_deref().unwrap_or("");
                let renumbered = self.client.patch(namespace, name_of(meta), None, PatchKind::Merge, &patch).await?;
                return Ok(Some(Arc::new(renumbered)));
            }
            Choice::Create(number) => number,
        };
        let wanted = Snapshot { template, collisions, hash_label }.revision(owner, number);
        let created = self.create(owner, &wanted, template).await?;
        if created.is_none() {
            *collision_count(&mut raised) = Some(collisions.unwrap_or(0) + 1);
            status::write(&self.client, owner, status, &raised).await?;
        }
        Ok(created.map(Arc::new))
    }

    /// Makes a revision; `None` if its name is taken by another.
    async fn create<K: ApiObject>(
        &self,
        owner: &K,
        wanted: &ControllerRevision,
        template: &PodTemplateSpec,
    ) -> Result<Option<ControllerRevision>, Error> {
        match self.client.create(wanted).await {
            Ok(created) => Ok(Some(created)),
            // Made a moment ago, and the cache does not show it yet; or somebody else's.
            Err(error) if error.is_already_exists() => {
                let namespace = wanted.metadata.namespace.as_deref().unwrap_or("");
                let live: ControllerRevision = self.client.get(namespace, name_of(&wanted.metadata)).await?;
                let controller = owners::controller_of(&live.metadata).map(|controller| &controller.uid);
                let is_ours = controller == owner.metadata().uid.as_ref();
                Ok(Some(live).filter(|live| is_ours && matches(live, template)))
            }
            Err(error) if is_namespace_terminating(&error) => {
                Err(Error::Incomplete("its namespace is being terminated".to_owned()))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Deletes revisions beyond the history limit.
    ///
    /// # Errors
    /// [`Error::Client`]; to be tried again.
    pub(super) async fn delete(&self, revisions: &[Arc<ControllerRevision>]) -> Result<(), Error> {
        for revision in revisions {
            let meta = &revision.metadata;
            let preconditions = Some(Preconditions { uid: meta.uid.clone(), resource_version: meta.resource_version.clone() });
            let options = DeleteOptions { preconditions, ..DeleteOptions::default() };
            let namespace = meta.namespace.as_deref().unwrap_or("");
            match self.client.delete::<ControllerRevision>(namespace, name_of(meta), &options).await {
                Err(error) if !error.is_not_found() => return Err(error.into()),
                _ => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(image: &str) -> PodTemplateSpec {
        let mut template = serde_json::from_value(json!({"metadata": {"labels": {"app": "db"}},
            "spec": {"containers": [{"name": "c", "image": image}]}}))
        .unwrap();
        defaults::template(&mut template);
        template
    }

    fn revision(image: &str, number: i64) -> Arc<ControllerRevision> {
        let owner: k8s_openapi::api::apps::v1::StatefulSet = serde_json::from_value(
            json!({"metadata": {"name": "db", "namespace": "a", "uid": "u", "annotations": {"kubernetes.io/change-cause": "x"}}}),
        )
        .unwrap();
        let template = template(image);
        let snapshot = Snapshot { template: &template, collisions: Some(0), hash_label: REVISION_HASH };
        Arc::new(snapshot.revision(&owner, number))
    }

    #[test]
    fn a_revision_brings_its_template_back() {
        let one = revision("redis:1", 1);
        assert_eq!(template_of(&one), Some(template("redis:1")));
        assert!(matches(&one, &template("redis:1")) && !matches(&one, &template("redis:2")));
        assert_eq!(one.data.as_ref().unwrap().0["spec"]["template"]["$patch"], "replace");
        let labels = one.metadata.labels.as_ref().unwrap();
        assert_eq!(labels["app"], "db");
        assert_eq!(one.metadata.name.as_deref(), Some(format!("db-{}", labels[REVISION_HASH]).as_str()));
        assert_eq!(one.metadata.annotations.as_ref().unwrap()["kubernetes.io/change-cause"], "x");
    }

    #[test]
    fn a_default_that_was_not_known_yet_is_no_change() {
        let mut old = ControllerRevision::clone(&revision("redis:1", 1));
        let spec = old.data.as_mut().unwrap().0.pointer_mut("/spec/template/spec").unwrap().as_object_mut().unwrap();
        assert!(spec.remove("terminationGracePeriodSeconds").is_some());
        assert!(matches(&old, &template("redis:1")));
        old.data = Some(RawExtension(json!({"spec": "of something else"})));
        assert!(!matches(&old, &template("redis:1")));
    }

    #[test]
    fn choices() {
        let (one, two, three) = (revision("r:1", 1), revision("r:2", 2), revision("r:1", 3));
        for (revisions, image, expected) in [
            (vec![], "r:1", Choice::Create(1)),
            (vec![one.clone()], "r:1", Choice::Found(one.clone())),
            (vec![one.clone()], "r:2", Choice::Create(2)),
            (vec![one.clone(), two.clone()], "r:2", Choice::Found(two.clone())),
            (vec![one.clone(), two.clone()], "r:1", Choice::Renumber(one.clone(), 3)),
            (vec![two.clone(), three.clone()], "r:1", Choice::Found(three)),
            (vec![one, two], "r:4", Choice::Create(3)),
        ] {
            assert_eq!(choose(&revisions, &template(image)), expected);
        }
    }

    #[test]
    fn a_hash_depends_on_collisions() {
        let of = |collisions| hash(b"data".to_vec(), collisions);
        assert_eq!(of(None), of(None));
        assert_ne!(of(None), of(Some(1)));
        assert!(of(Some(1)).bytes().all(|byte| SAFE.contains(&byte)));
    }
}
