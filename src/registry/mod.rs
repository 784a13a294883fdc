//! Generic REST semantics over `Kind` and `Store`: the only writer of objects. One verb per file.
//!
//! A verb is: read current, apply the change, default, mutate (admission), prepare, validate, validate (admission), commit; on a
//! conflict that the client did not ask for, again from "read current".

use std::sync::Arc;

mod read;

pub use read::Reader;

use async_trait::async_trait;

use crate::api::kind::Subresource;
use crate::api::prune::FieldValidation;
use crate::api::{ApiError, Kind, Object};
use crate::auth::UserInfo;
use crate::kinds::Kinds;
use crate::rt::clock::SharedClock;
use crate::store::{Entry, Store};

mod alloc;
mod apply;
mod binding;
mod change;
mod create;
mod delete;
mod deletion;
mod encode;
mod eviction;
mod get;
mod list;
mod managed;
mod patch;
mod scale;
mod subresource;
mod update;
mod watch;

pub use alloc::PortRange;
pub use apply::ApplyOptions;
pub use delete::DeleteOptions;
pub use deletion::{Preconditions, Propagation};
pub use list::{ListOptions, Listing};
pub use patch::PatchType;
pub use watch::{WatchEvent, WatchOptions, WatchStream};

/// What admission is told of a write.
pub struct Attributes<'a> {
    pub kind: &'a dyn Kind,
    pub namespace: &'a str,
    pub name: &'a str,
    pub operation: Operation,
    pub subresource: Option<Subresource>,
    pub user: &'a UserInfo,
    pub dry_run: bool,
}

/// The operation that admission is asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    Create,
    Update,
    Delete,
    Connect,
}

/// Admission, handed in by `server`: the registry does not know the plugins. Texts pushed to `warnings` become `Warning` headers.
#[async_trait]
pub trait Admit: Send + Sync {
    /// May change the object.
    ///
    /// # Errors
    /// The refusal, as the client gets it.
    async fn mutate(
        &self,
        attributes: &Attributes<'_>,
        object: &mut Object,
        old: Option<&Object>,
        warnings: &mut Vec<String>,
    ) -> Result<(), ApiError>;

    /// Sees the object as it will be stored (`None` on delete).
    ///
    /// # Errors
    /// The refusal, as the client gets it.
    async fn validate(
        &self,
        attributes: &Attributes<'_>,
        object: Option<&Object>,
        old: Option<&Object>,
        warnings: &mut Vec<String>,
    ) -> Result<(), ApiError>;
}

/// Admission that lets everything through.
#[derive(Debug, Default, Clone, Copy)]
pub struct AdmitAll;

#[async_trait]
impl Admit for AdmitAll {
    async fn mutate(
        &self,
        _attributes: &Attributes<'_>,
        _object: &mut Object,
        _old: Option<&Object>,
        _warnings: &mut Vec<String>,
    ) -> Result<(), ApiError> {
        Ok(())
    }

    async fn validate(
        &self,
        _attributes: &Attributes<'_>,
        _object: Option<&Object>,
        _old: Option<&Object>,
        _warnings: &mut Vec<String>,
    ) -> Result<(), ApiError> {
        Ok(())
    }
}

/// Who writes what, and how.
#[derive(Clone)]
pub struct WriteRequest {
    pub kind: Arc<dyn Kind>,
    /// "" for a cluster-scoped kind.
    pub namespace: String,
    /// "" for a create whose name is in the object or to be generated.
    pub name: String,
    pub user: Arc<UserInfo>,
    pub subresource: Option<Subresource>,
    /// Everything but the commit.
    pub dry_run: bool,
    pub field_validation: FieldValidation,
    /// Who owns the fields that the write sets, where an object has owners; "" is `unknown`.
    pub field_manager: String,
    /// Of a write that may create the object where it is not there: why the user may not.
    pub create_refused: Option<ApiError>,
}

impl WriteRequest {
    /// A plain write of one object.
    pub fn new(kind: Arc<dyn Kind>, namespace: &str, name: &str, user: Arc<UserInfo>) -> Self {
        Self {
            kind,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            user,
            subresource: None,
            dry_run: false,
            field_validation: FieldValidation::default(),
            field_manager: String::new(),
            create_refused: None,
        }
    }
}

/// What a write came to.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The object as it is stored now, or was before it was deleted.
    pub entry: Arc<Entry>,
    pub created: bool,
    /// The object is gone from the store.
    pub deleted: bool,
    /// Texts for `Warning` headers.
    pub warnings: Vec<String>,
}

/// The registry: all verbs on all kinds.
pub struct Registry {
    store: Arc<dyn Store>,
    kinds: Arc<Kinds>,
    admit: Arc<dyn Admit>,
    clock: SharedClock,
    /// Ports that Services of type NodePort and LoadBalancer get.
    node_ports: PortRange,
}

impl Registry {
    /// A registry over a store.
    pub fn new(store: Arc<dyn Store>, kinds: Arc<Kinds>, admit: Arc<dyn Admit>, clock: SharedClock) -> Arc<Self> {
        Arc::new(Self { store, kinds, admit, clock, node_ports: PortRange::NODE_PORTS })
    }

    /// The same, with another range of node ports.
    #[must_use]
    pub fn with_node_ports(&self, node_ports: PortRange) -> Arc<Self> {
        let Self { store, kinds, admit, clock, .. } = self;
        let (store, kinds, admit, clock) = (Arc::clone(store), Arc::clone(kinds), Arc::clone(admit), Arc::clone(clock));
        Arc::new(Self { store, kinds, admit, clock, node_ports })
    }

    /// The store below.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// The kinds that are served.
    pub fn kinds(&self) -> &Arc<Kinds> {
        &self.kinds
    }

    /// The clock of every timestamp that the registry sets.
    pub fn clock(&self) -> &SharedClock {
        &self.clock
    }
}

/// Bucket of the namespaces, in which every namespaced object must have one.
const NAMESPACE_BUCKET: &str = "core/namespaces";

/// The store's key of an object: `bucket/namespace/name`, or `bucket/name` for a cluster-scoped kind.
pub fn key(kind: &dyn Kind, namespace: &str, name: &str) -> String {
    let mut key = prefix(kind, namespace);
    key.push_str(name);
    key
}

/// The store's prefix of a collection; namespace "" means all of them.
pub fn prefix(kind: &dyn Kind, namespace: &str) -> String {
    let bucket = kind.bucket();
    let mut prefix = String::with_capacity(bucket.len() + namespace.len() + 64);
    prefix.push_str(bucket);
    prefix.push('/');
    if kind.names().is_namespaced() && !namespace.is_empty() {
        prefix.push_str(namespace);
        prefix.push('/');
    }
    prefix
}

#[cfg(test)]
mod tests;
