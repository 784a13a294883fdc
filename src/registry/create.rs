//! Create: the order of `registry/rest/create.go` and `handlers/create.go`.

use std::sync::Arc;

use super::change::{Trust, invalid};
use super::get::commit_error;
use super::{Attributes, Operation, Outcome, Registry, WriteRequest, alloc, encode, key, managed};
use crate::api::status::GroupResource;
use crate::api::{ApiError, Kind, Object, meta};
use crate::rt::random;
use crate::store::{CommitError, Draft, Entry, Guard, Transaction, Write, Written};

/// How often a name is generated before the client is told that it is taken.
const NAME_ATTEMPTS: usize = 8;

const NAMESPACES: GroupResource<'static> = GroupResource { group: "", resource: "namespaces" };

impl Registry {
    /// Creates an object.
    ///
    /// # Errors
    /// 409 when the name is taken, 404 when the namespace is not there, 422 when the object is not valid, 403 of admission.
    pub async fn create(&self, request: &WriteRequest, object: Object) -> Result<Outcome, ApiError> {
        let mut object = object;
        if !request.name.is_empty() && object.name().is_empty() {
            object.set(&["metadata", "name"], request.name.as_str());
        }
        if !object.name().is_empty() || object.generate_name().is_empty() {
            return self.create_named(request, object, Trust::Client).await;
        }
        // The name comes first of all, so that what derives from it (labels of a Job, say) is right.
        let mut attempt = 0;
        loop {
            attempt += 1;
            let name = format!("{}{}", meta::generate_base(object.generate_name()), random::suffix(meta::SUFFIX_LENGTH));
            let mut named = object.clone();
            named.set(&["metadata", "name"], name.as_str());
            match self.create_named(request, named, Trust::Client).await {
                Err(error) if error.is_already_exists() && attempt < NAME_ATTEMPTS => {}
                Err(error) if error.is_already_exists() => return Err(no_unique_name(&*request.kind, &name)),
                outcome => return outcome,
            }
        }
    }

    pub(super) async fn create_named(
        &self,
        request: &WriteRequest,
        mut object: Object,
        trust: Trust,
    ) -> Result<Outcome, ApiError> {
        let (kind, mut warnings) = (&*request.kind, Vec::new());
        let sent = object.remove(&managed::PATH);
        meta::fill_for_create(&mut object, kind, &request.namespace, random::uid(), self.clock.now());
        kind.default(&mut object);
        let owners = managed::owners(request, trust, sent, &object, None, self.clock.now());
        let name = object.name().to_owned();
        let attributes = attributes(request, Operation::Create, &name);
        self.admit.mutate(&attributes, &mut object, None, &mut warnings).await?;
        kind.prepare_create(&mut object);
        let mut errors = meta::validate(&object, kind);
        errors.extend(kind.validate(&object));
        invalid(kind, object.name(), &errors)?;
        warnings.extend(kind.warnings(&object));
        managed::put(&mut object, owners, None);
        self.admit.validate(&attributes, Some(&object), None, &mut warnings).await?;
        let entry = self.insert(request, &mut object).await?;
        Ok(Outcome { entry, created: true, deleted: false, warnings })
    }

    async fn insert(&self, request: &WriteRequest, object: &mut Object) -> Result<Arc<Entry>, ApiError> {
        let kind = &*request.kind;
        let key = key(kind, object.namespace(), object.name());
        if self.store.snapshot().get(&key).is_some() {
            return Err(ApiError::already_exists(&kind.names().group_resource(), object.name()));
        }
        loop {
            let claims = alloc::claim(self, kind, object, None)?;
            if request.dry_run {
                return Ok(encode::unstored(key, kind, object));
            }
            let draft = encode::draft(kind, object)?;
            let transaction = insertion(kind, &key, object, draft, &claims);
            match self.store.commit(transaction).await {
                Ok(written) => return put(written),
                Err(CommitError::Guard { index: 0, .. }) => {
                    return Err(ApiError::already_exists(&kind.names().group_resource(), object.name()));
                }
                Err(CommitError::Guard { index: 1, .. }) if kind.names().is_namespaced() => {
                    return Err(ApiError::not_found(&NAMESPACES, object.namespace()));
                }
                // Another Service took the address or port first: the next claim sees it.
                Err(CommitError::Guard { .. }) => alloc::forget(object, &claims),
                Err(error) => return Err(commit_error(&error)),
            }
        }
    }
}

fn insertion(kind: &dyn Kind, key: &str, object: &Object, draft: Draft, claims: &alloc::Claims) -> Transaction {
    let key: Arc<str> = key.into();
    let mut guards = vec![Guard::Absent { key: Arc::clone(&key) }];
    if kind.names().is_namespaced() {
        guards.push(Guard::Present { key: format!("{}/{}", super::NAMESPACE_BUCKET, object.namespace()).into() });
    }
    guards.extend(claims.guards());
    let mut writes = vec![Write::Put { key, draft }];
    writes.extend(claims.writes());
    Transaction { guards, writes, durability: encode::durability(kind) }
}

/// The entry that the first write of a transaction made.
pub(super) fn put(written: Vec<Written>) -> Result<Arc<Entry>, ApiError> {
    match written.into_iter().next() {
        Some(Written::Put(entry) | Written::Deleted(Some(entry))) => Ok(entry),
        Some(Written::Deleted(None)) | None => Err(ApiError::internal("the store answered a write with nothing")),
    }
}

/// What admission is told of a write to `name`.
pub(super) fn attributes<'a>(request: &'a WriteRequest, operation: Operation, name: &'a str) -> Attributes<'a> {
    Attributes {
        kind: &*request.kind,
        namespace: &request.namespace,
        name,
        operation,
        subresource: request.subresource,
        user: &request.user,
        dry_run: request.dry_run,
    }
}

fn no_unique_name(kind: &dyn Kind, name: &str) -> ApiError {
    let mut error = ApiError::already_exists(&kind.names().group_resource(), name);
    error.message.push_str(", the server was not able to generate a unique name for the object");
    error.details.retry_after_seconds = Some(1);
    error
}
