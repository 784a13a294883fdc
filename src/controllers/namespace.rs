//! Namespace: deletes everything in a namespace that is being deleted, pods first, then lets it go. It follows upstream's
//! `controller/namespace/deletion`.

use std::collections::BTreeMap;
use std::sync::Arc;

use ::http::Method;
use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, NamespaceCondition, NamespaceStatus, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::metadata::{self, MetaList};
use super::{Context, Controller, Error, Queue, Requeue, Seen, Watches, status};
use crate::api::Kind;
use crate::api::kind::Verb;
use crate::client::informer::Informer;
use crate::client::{Cached, Client, ClientError, DeleteOptions, ObjectKey};
use crate::kinds::Kinds;
use crate::rt::clock::SharedClock;

const FINALIZER: &str = "kubernetes";
/// Objects of one kind that are counted.
const COUNTED: usize = 500;

/// The controller of namespaces.
pub(super) fn namespace(context: &Context) -> Arc<dyn Controller> {
    Arc::new(NamespaceController {
        namespaces: context.config.informers.of(),
        pods: context.config.informers.of(),
        client: context.client("namespace-controller"),
        kinds: Arc::clone(&context.config.kinds),
        clock: Arc::clone(&context.config.clock),
    })
}

struct NamespaceController {
    namespaces: Arc<Informer<Namespace>>,
    pods: Arc<Informer<Pod>>,
    client: Client,
    kinds: Arc<Kinds>,
    clock: SharedClock,
}

/// What is left in a namespace.
#[derive(Debug, Default)]
struct Left {
    /// By resource (`pods.`).
    objects: BTreeMap<String, usize>,
    finalizers: BTreeMap<String, usize>,
    failures: Vec<String>,
}

impl Left {
    fn is_empty(&self) -> bool {
        self.objects.is_empty() && self.failures.is_empty()
    }
}

impl NamespaceController {
    /// The namespaced kinds, one for each bucket (kinds that share objects count once), pods first.
    fn contents(&self) -> Vec<Arc<dyn Kind>> {
        let mut kinds: Vec<Arc<dyn Kind>> =
            self.kinds.iter().filter(|kind| kind.names().is_namespaced() && metadata::is_deletable(&**kind)).collect();
        kinds.sort_by_key(|kind| (kind.bucket() != "core/pods" && kind.names().plural != "pods", kind.bucket()));
        kinds.dedup_by_key(|kind| kind.bucket());
        kinds
    }

    /// Deletes the objects of a kind and counts what is left.
    async fn empty(&self, kind: &dyn Kind, namespace: &str, left: &mut Left) -> Result<(), ClientError> {
        let names = kind.names();
        let present = self.list(kind, namespace).await?;
        if present.items.is_empty() {
            return Ok(());
        }
        let options = DeleteOptions { propagation_policy: Some("Background"), ..DeleteOptions::default() };
        if kind.verbs().contains(&Verb::DeleteCollection) {
            metadata::delete(&self.client, names, (namespace, ""), &options).await?;
        } else {
            for object in &present.items {
                match metadata::delete(&self.client, names, (namespace, object.name()), &options).await {
                    Err(error) if !error.is_not_found() => return Err(error),
                    _ => {}
                }
            }
        }
        let after = self.list(kind, namespace).await?;
        if !after.items.is_empty() {
            left.objects.insert(format!("{}.{}", names.plural, names.group), after.items.len());
        }
        for finalizer in after.items.iter().flat_map(|object| object.finalizers()) {
            *left.finalizers.entry(finalizer.to_owned()).or_default() += 1;
        }
        Ok(())
    }

    async fn list(&self, kind: &dyn Kind, namespace: &str) -> Result<MetaList, ClientError> {
        let path = format!("{}?limit={COUNTED}", metadata::path(kind.names(), namespace, ""));
        self.client.request(Method::GET, &path, "", None).await
    }

    async fn empty_all(&self, namespace: &str) -> Left {
        let mut left = Left::default();
        for kind in self.contents() {
            if let Err(error) = self.empty(&*kind, namespace, &mut left).await {
                // A kind may go, with its definition, while this runs.
                if !error.is_not_found() {
                    left.failures.push(format!("{}: {error}", kind.names().group_resource()));
                }
            }
            if kind.names().plural == "pods" && kind.names().group.is_empty() && !left.is_empty() {
                // Nothing else goes before the pods have gone.
                break;
            }
        }
        left
    }

    async fn finalize(&self, namespace: &Namespace) -> Result<(), ClientError> {
        let mut namespace = namespace.clone();
        if let Some(finalizers) = namespace.spec.as_mut().and_then(|spec| spec.finalizers.as_mut()) {
            finalizers.retain(|finalizer| finalizer != FINALIZER);
        }
        match self.client.update_subresource(&namespace, "finalize").await {
            Err(error) if error.is_not_found() => Ok(()),
            other => other.map(drop),
        }
    }
}

/// The status that says what is left, with upstream's reasons and words.
fn new_status(old: Option<&NamespaceStatus>, left: &Left, now: Timestamp) -> NamespaceStatus {
    let listed = |counts: &BTreeMap<String, usize>, what: &str| {
        counts.iter().map(|(name, count)| format!("{name} {what} {count} resource instances")).collect::<Vec<_>>().join(", ")
    };
    let failed = left.failures.join(", ");
    let rows = [
        ("NamespaceDeletionDiscoveryFailure", None, ("ResourcesDiscovered", "All resources successfully discovered")),
        (
            "NamespaceDeletionGroupVersionParsingFailure",
            None,
            ("ParsedGroupVersions", "All legacy kube types successfully parsed"),
        ),
        (
            "NamespaceDeletionContentFailure",
            (!left.failures.is_empty()).then(|| {
                (
                    "ContentDeletionFailed",
                    format!("Failed to delete all resource types, {} remaining: {failed}", left.failures.len()),
                )
            }),
            ("ContentDeleted", "All content successfully deleted, may be waiting on finalization"),
        ),
        (
            "NamespaceContentRemaining",
            (!left.objects.is_empty())
                .then(|| ("SomeResourcesRemain", format!("Some resources are remaining: {}", listed(&left.objects, "has")))),
            ("ContentRemoved", "All content successfully removed"),
        ),
        (
            "NamespaceFinalizersRemaining",
            (!left.finalizers.is_empty()).then(|| {
                let text = listed(&left.finalizers, "in");
                ("SomeFinalizersRemain", format!("Some content in the namespace has finalizers remaining: {text}"))
            }),
            ("ContentHasNoFinalizers", "All content-preserving finalizers finished"),
        ),
    ];
    let mut conditions = old.and_then(|status| status.conditions.clone()).unwrap_or_default();
    for (kind, problem, (fine, words)) in rows {
        let (state, reason, message) = match problem {
            Some((reason, message)) => ("True", reason, message),
            None => ("False", fine, words.to_owned()),
        };
        set(&mut conditions, kind, state, reason, message, now);
    }
    NamespaceStatus { phase: Some("Terminating".to_owned()), conditions: Some(conditions) }
}

fn set(conditions: &mut Vec<NamespaceCondition>, kind: &str, state: &str, reason: &str, message: String, now: Timestamp) {
    let before = conditions.iter().find(|condition| condition.type_ == kind);
    let kept = before.filter(|before| before.status == state).and_then(|before| before.last_transition_time.clone());
    conditions.retain(|condition| condition.type_ != kind);
    conditions.push(NamespaceCondition {
        type_: kind.to_owned(),
        status: state.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message),
        last_transition_time: Some(kept.unwrap_or(Time(now))),
    });
}

fn waits_for_us(namespace: &Namespace) -> bool {
    let finalizers = namespace.spec.as_ref().and_then(|spec| spec.finalizers.as_ref());
    namespace.metadata.deletion_timestamp.is_some() && finalizers.is_some_and(|all| all.iter().any(|one| one == FINALIZER))
}

#[async_trait]
impl Controller for NamespaceController {
    fn name(&self) -> &'static str {
        "namespace"
    }

    fn watch(&self, watches: &mut Watches) {
        watches.on(&self.namespaces, |seen: Seen<'_, Namespace>, queue: &Queue| {
            let deleting = seen.new.filter(|namespace| waits_for_us(namespace));
            deleting.into_iter().for_each(|namespace| queue.add(ObjectKey::of(namespace)));
        });
        let namespaces = Arc::clone(&self.namespaces);
        watches.on(&self.pods, move |seen: Seen<'_, Pod>, queue: &Queue| {
            let gone = seen.old.filter(|_| seen.new.is_none()).and_then(|pod| namespaces.get("", pod.namespace()));
            if let Some(namespace) = gone.filter(|namespace| waits_for_us(namespace)) {
                queue.add(ObjectKey::of(&*namespace));
            }
        });
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Requeue, Error> {
        let Some(namespace) = self.namespaces.get("", &key.name).filter(|namespace| waits_for_us(namespace)) else {
            return Ok(Requeue::Done);
        };
        let left = self.empty_all(&key.name).await;
        let new_status = new_status(namespace.status.as_ref(), &left, self.clock.now());
        if !left.is_empty() {
            status::write(&self.client, &*namespace, namespace.status.as_ref(), &new_status).await?;
            let what: Vec<&String> = left.objects.keys().chain(&left.failures).collect();
            return Err(Error::Incomplete(format!("namespace {} still holds {what:?}", key.name)));
        }
        self.finalize(&namespace).await?;
        Ok(Requeue::Done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_say_what_is_left() {
        let left = Left {
            objects: [("pods.".to_owned(), 2)].into(),
            finalizers: [("x.io/y".to_owned(), 1)].into(),
            failures: Vec::new(),
        };
        let status = new_status(None, &left, Timestamp::UNIX_EPOCH);
        let message = |kind: &str| {
            let conditions = status.conditions.as_ref().unwrap();
            conditions.iter().find(|condition| condition.type_ == kind).and_then(|found| found.message.clone()).unwrap()
        };
        assert_eq!(message("NamespaceContentRemaining"), "Some resources are remaining: pods. has 2 resource instances");
        assert_eq!(
            message("NamespaceFinalizersRemaining"),
            "Some content in the namespace has finalizers remaining: x.io/y in 1 resource instances"
        );
        assert_eq!(message("NamespaceDeletionDiscoveryFailure"), "All resources successfully discovered");
    }
}
