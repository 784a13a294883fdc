//! What update, patch and the writing subresources share: read current, change, check, commit; again when somebody was faster.

use std::sync::Arc;

use serde_json::Value;

use super::create::{attributes, put};
use super::get::commit_error;
use super::{Operation, Outcome, Registry, WriteRequest, alloc, encode, key, managed, subresource};
use crate::api::field::FieldError;
use crate::api::{ApiError, Kind, Object, meta};
use crate::store::{CommitError, Entry, Guard, Transaction, Write};

/// How a change is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trust {
    /// A client wrote the object: defaulting, admission, preparation and validation. The fields it changed are its own.
    Client,
    /// The same, through the `scale` subresource.
    Scale,
    /// The same, and the object says already who owns which field.
    Applied,
    /// The registry made the change itself (binding): nothing but the commit.
    System,
}

/// How often a write that asked for no revision is tried against other writers.
const ATTEMPTS: usize = 64;

impl Registry {
    /// Changes a stored object: `produce` makes the new object of the current one, and is called again when another writer was
    /// faster. A `resourceVersion` in what it makes must be the current one.
    ///
    /// # Errors
    /// 404; what `produce` says; 409 of optimistic locking; 422; 403 of admission.
    pub(super) async fn change(
        &self,
        request: &WriteRequest,
        trust: Trust,
        mut produce: impl FnMut(&Object, &mut Vec<String>) -> Result<Object, ApiError> + Send,
    ) -> Result<Outcome, ApiError> {
        let kind = &*request.kind;
        let key = key(kind, &request.namespace, &request.name);
        for _ in 0..ATTEMPTS {
            let mut warnings = Vec::new();
            let entry = self.store.snapshot().get(&key);
            let entry = entry.ok_or_else(|| ApiError::not_found(&kind.names().group_resource(), &request.name))?;
            let old = encode::decode(kind, &entry)?;
            let mut object = produce(&old, &mut warnings)?;
            check_identity(kind, &object, &old)?;
            if trust != Trust::System {
                self.prepare_and_check(request, trust, &mut object, &old, &mut warnings).await?;
            }
            match self.replace(request, &entry, &old, object).await {
                Ok((entry, deleted)) => return Ok(Outcome { entry, created: false, deleted, warnings }),
                Err(Refused::Overtaken) => {}
                Err(Refused::For(error)) => return Err(error),
            }
        }
        Err(ApiError::modified(&kind.names().group_resource(), &request.name))
    }

    async fn prepare_and_check(
        &self,
        request: &WriteRequest,
        trust: Trust,
        object: &mut Object,
        old: &Object,
        warnings: &mut Vec<String>,
    ) -> Result<(), ApiError> {
        let kind = &*request.kind;
        let sent = object.remove(&managed::PATH);
        subresource::keep(kind, request.subresource, object, old);
        object.remove(&managed::PATH);
        meta::fill_for_update(object, old);
        kind.default(object);
        let owners = managed::owners(request, trust, sent, object, Some(old), self.clock.now());
        let attributes = attributes(request, Operation::Update, &request.name);
        self.admit.mutate(&attributes, object, Some(old), warnings).await?;
        kind.prepare_update(object, old, request.subresource);
        if kind.has_generation() && !is_same_spec(object, old) {
            object.set(&["metadata", "generation"], old.generation() + 1);
        }
        let mut errors = meta::validate_update(object, old, kind);
        errors.extend(kind.validate_update(object, old, request.subresource));
        invalid(kind, object.name(), &errors)?;
        warnings.extend(kind.warnings(object));
        managed::put(object, owners, Some(old));
        self.admit.validate(&attributes, Some(object), Some(old), warnings).await
    }

    /// Commits the new object, or removes it when nothing holds up its deletion any more.
    async fn replace(
        &self,
        request: &WriteRequest,
        entry: &Arc<Entry>,
        old: &Object,
        mut object: Object,
    ) -> Result<(Arc<Entry>, bool), Refused> {
        let kind = &*request.kind;
        if is_finished(&object, old) {
            if request.dry_run {
                return Ok((Arc::clone(entry), true));
            }
            return self.remove(kind, entry, old).await.map(|entry| (entry, true));
        }
        let claims = alloc::claim(self, kind, &mut object, Some(old)).map_err(Refused::For)?;
        let draft = encode::draft(kind, &object).map_err(Refused::For)?;
        if encode::is_unchanged(&draft, entry) {
            return Ok((Arc::clone(entry), false));
        }
        if request.dry_run {
            return Ok((encode::unstored(entry.key.to_string(), kind, &object), false));
        }
        let mut guards = vec![Guard::Unchanged { key: Arc::clone(&entry.key), revision: entry.revision }];
        guards.extend(claims.guards());
        let mut writes = vec![Write::Put { key: Arc::clone(&entry.key), draft }];
        writes.extend(claims.writes());
        self.commit_change(Transaction { guards, writes, durability: encode::durability(kind) }).await.map(|entry| (entry, false))
    }

    /// Removes an entry, and what its object had claimed.
    pub(super) async fn remove(&self, kind: &dyn Kind, entry: &Arc<Entry>, old: &Object) -> Result<Arc<Entry>, Refused> {
        let guards = vec![Guard::Unchanged { key: Arc::clone(&entry.key), revision: entry.revision }];
        let mut writes = vec![Write::Delete { key: Arc::clone(&entry.key) }];
        writes.extend(alloc::release(kind, old));
        self.commit_change(Transaction { guards, writes, durability: encode::durability(kind) }).await
    }

    pub(super) async fn commit_change(&self, transaction: Transaction) -> Result<Arc<Entry>, Refused> {
        match self.store.commit(transaction).await {
            Ok(written) => put(written).map_err(Refused::For),
            Err(CommitError::Guard { .. }) => Err(Refused::Overtaken),
            Err(error) => Err(Refused::For(commit_error(&error))),
        }
    }
}

/// Why a change was not committed.
pub(super) enum Refused {
    /// Another writer was faster: read again.
    Overtaken,
    For(ApiError),
}

/// 422 if there are errors.
pub(super) fn invalid(kind: &dyn Kind, name: &str, errors: &[FieldError]) -> Result<(), ApiError> {
    if errors.is_empty() { Ok(()) } else { Err(ApiError::invalid(kind.names().group, kind.names().kind, name, errors)) }
}

/// Optimistic locking, and that the object is still the one the client means.
fn check_identity(kind: &dyn Kind, object: &Object, old: &Object) -> Result<(), ApiError> {
    let (resource, name) = (kind.names().group_resource(), old.name());
    if !object.uid().is_empty() && object.uid() != old.uid() {
        let why = format!("Precondition failed: UID in precondition: {}, UID in object meta: {}", object.uid(), old.uid());
        return Err(ApiError::conflict(&resource, name, why));
    }
    let version = object.resource_version();
    if !version.is_empty() && version != old.resource_version() {
        return Err(ApiError::modified(&resource, name));
    }
    Ok(())
}

fn is_same_spec(object: &Object, old: &Object) -> bool {
    let counted = |key: &&String| !matches!(key.as_str(), "apiVersion" | "kind" | "metadata" | "status");
    let same = |(key, value): (&String, &Value)| !counted(&key) || old.0.get(key) == Some(value);
    object.0.iter().all(same) && old.0.keys().filter(counted).all(|key| object.0.contains_key(key))
}

/// Whether an object that is being deleted has nothing left to wait for.
fn is_finished(object: &Object, old: &Object) -> bool {
    old.is_deleting()
        && object.is_deleting()
        && object.finalizers().next().is_none()
        && object.get(&["metadata", "deletionGracePeriodSeconds"]).and_then(Value::as_i64).unwrap_or(0) == 0
        && !has_spec_finalizers(object)
}

/// Whether this is a Namespace whose content is still there.
pub(super) fn has_spec_finalizers(object: &Object) -> bool {
    object.kind() == "Namespace"
        && object.api_version() == "v1"
        && object.get(&["spec", "finalizers"]).and_then(Value::as_array).is_some_and(|list| !list.is_empty())
}
