//! Delete and deletecollection.

use std::sync::Arc;

use super::change::Refused;
use super::create::attributes;
use super::deletion::{self, Plan, Preconditions, Propagation};
use super::{ListOptions, Listing, Operation, Outcome, Registry, WriteRequest, encode, key};
use crate::api::{ApiError, Object};
use crate::store::{Entry, Guard, Transaction, Write};

/// What a delete asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeleteOptions {
    pub grace_period_seconds: Option<i64>,
    /// `None`: as the kind has it by default.
    pub propagation: Option<Propagation>,
    pub preconditions: Preconditions,
}

/// How often a delete is tried against other writers.
const ATTEMPTS: usize = 64;

impl Registry {
    /// Deletes an object, or marks it for deletion where it has a grace period or finalizers.
    ///
    /// # Errors
    /// 404, 409 when a precondition fails, 403 of admission.
    pub async fn delete(&self, request: &WriteRequest, options: &DeleteOptions) -> Result<Outcome, ApiError> {
        let kind = &*request.kind;
        let resource = kind.names().group_resource();
        let key = key(kind, &request.namespace, &request.name);
        for _ in 0..ATTEMPTS {
            let mut warnings = Vec::new();
            let entry = self.store.snapshot().get(&key);
            let entry = entry.ok_or_else(|| ApiError::not_found(&resource, &request.name))?;
            let old = encode::decode(kind, &entry)?;
            options.preconditions.check(kind, &old)?;
            let attributes = attributes(request, Operation::Delete, &request.name);
            self.admit.validate(&attributes, None, Some(&old), &mut warnings).await?;
            match self.perform(request, &entry, &old, options).await {
                Ok((entry, deleted)) => return Ok(Outcome { entry, created: false, deleted, warnings }),
                Err(Refused::Overtaken) => {}
                Err(Refused::For(error)) => return Err(error),
            }
        }
        Err(ApiError::modified(&resource, &request.name))
    }

    async fn perform(
        &self,
        request: &WriteRequest,
        entry: &Arc<Entry>,
        old: &Object,
        options: &DeleteOptions,
    ) -> Result<(Arc<Entry>, bool), Refused> {
        let kind = &*request.kind;
        match deletion::plan(kind, old, options.grace_period_seconds, options.propagation, self.clock.now()) {
            Plan::Leave => Ok((Arc::clone(entry), false)),
            Plan::Remove if request.dry_run => Ok((Arc::clone(entry), true)),
            Plan::Remove => self.remove(kind, entry, old).await.map(|entry| (entry, true)),
            Plan::Mark(object) if request.dry_run => Ok((encode::unstored(entry.key.to_string(), kind, &object), false)),
            Plan::Mark(object) => {
                let draft = encode::draft(kind, &object).map_err(Refused::For)?;
                let key = Arc::clone(&entry.key);
                let transaction = Transaction {
                    guards: vec![Guard::Unchanged { key: Arc::clone(&key), revision: entry.revision }],
                    writes: vec![Write::Put { key, draft }],
                    durability: encode::durability(kind),
                };
                self.commit_change(transaction).await.map(|entry| (entry, false))
            }
        }
    }

    /// Deletes what matches; objects that are gone meanwhile do not matter. Returns what was matched.
    ///
    /// # Errors
    /// The first error of a delete; what was deleted before it stays deleted.
    pub async fn delete_collection(
        &self,
        request: &WriteRequest,
        list: &ListOptions,
        options: &DeleteOptions,
    ) -> Result<Listing, ApiError> {
        let listing = self.list(&*request.kind, &request.namespace, list)?;
        for entry in &listing.entries {
            let (namespace, name) = super::list::names_of(&entry.key);
            let one = WriteRequest {
                namespace: if request.kind.names().is_namespaced() { namespace.to_owned() } else { String::new() },
                name: name.to_owned(),
                ..request.clone()
            };
            match self.delete(&one, options).await {
                Err(error) if !error.is_not_found() => return Err(error),
                _ => {}
            }
        }
        Ok(listing)
    }
}
