//! [`Kind`]: everything known about a resource kind, and the words to say it with.
//!
//! Routes, discovery, OpenAPI, RBAC names, printed columns, storage keys, watch, garbage collection and namespace clean-up
//! derive from this trait. Built-in kinds are rows of `kinds::KINDS`; a CustomResourceDefinition builds the same trait object at
//! run time.

use jiff::Timestamp;
use serde_json::Value;

use super::field::{FieldError, Path};
use super::names;
use super::object::Object;
use super::status::GroupResource;

/// Whether objects of a kind live in a namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    Namespaced,
    Cluster,
}

/// The names of a kind. All are `'static`: those of custom resources are interned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Names {
    /// "" for the core group.
    pub group: &'static str,
    pub version: &'static str,
    pub kind: &'static str,
    pub plural: &'static str,
    pub singular: &'static str,
    pub short: &'static [&'static str],
    pub categories: &'static [&'static str],
    pub scope: Scope,
}

impl Names {
    /// `apps/v1`, or `v1` for the core group.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.to_owned() } else { format!("{}/{}", self.group, self.version) }
    }

    /// Group and plural as they stand in messages.
    pub fn group_resource(&self) -> GroupResource<'static> {
        GroupResource { group: self.group, resource: self.plural }
    }

    /// Whether objects live in a namespace.
    pub fn is_namespaced(&self) -> bool {
        self.scope == Scope::Namespaced
    }
}

/// What a client may do with a resource, in the order discovery lists them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Verb {
    Create,
    Delete,
    DeleteCollection,
    Get,
    List,
    Patch,
    Update,
    Watch,
}

impl Verb {
    /// All verbs, in alphabetical order.
    pub const ALL: &'static [Self] =
        &[Self::Create, Self::Delete, Self::DeleteCollection, Self::Get, Self::List, Self::Patch, Self::Update, Self::Watch];

    /// The word in discovery and RBAC.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Delete => "delete",
            Self::DeleteCollection => "deletecollection",
            Self::Get => "get",
            Self::List => "list",
            Self::Patch => "patch",
            Self::Update => "update",
            Self::Watch => "watch",
        }
    }
}

/// A path below an object. Each is served by one file in `registry` or `server/handlers`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Subresource {
    Approval,
    Attach,
    Binding,
    EphemeralContainers,
    Eviction,
    Exec,
    Finalize,
    Log,
    PortForward,
    Proxy,
    Resize,
    Scale,
    Status,
    Token,
}

impl Subresource {
    /// The path segment.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Approval => "approval",
            Self::Attach => "attach",
            Self::Binding => "binding",
            Self::EphemeralContainers => "ephemeralcontainers",
            Self::Eviction => "eviction",
            Self::Exec => "exec",
            Self::Finalize => "finalize",
            Self::Log => "log",
            Self::PortForward => "portforward",
            Self::Proxy => "proxy",
            Self::Resize => "resize",
            Self::Scale => "scale",
            Self::Status => "status",
            Self::Token => "token",
        }
    }
}

/// A printed column: what `kubectl get` shows. `priority` 0 is always shown, 1 only with `-o wide`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Column {
    pub name: &'static str,
    /// OpenAPI type: `string`, `integer`, `boolean`, `date`.
    pub kind: &'static str,
    /// OpenAPI format: `name` for the first column, else "".
    pub format: &'static str,
    pub description: &'static str,
    pub priority: i32,
}

impl Column {
    /// A text column that is always shown.
    pub const fn text(name: &'static str) -> Self {
        Self { name, kind: "string", format: "", description: "", priority: 0 }
    }

    /// A text column that only `-o wide` shows.
    pub const fn wide(name: &'static str) -> Self {
        Self { name, kind: "string", format: "", description: "", priority: 1 }
    }

    /// A number that is always shown.
    pub const fn integer(name: &'static str) -> Self {
        Self { name, kind: "integer", format: "", description: "", priority: 0 }
    }

    /// The first column of every kind.
    pub const NAME: Self = Self {
        name: "Name",
        kind: "string",
        format: "name",
        description: "Name must be unique within a namespace.",
        priority: 0,
    };
    /// The last always-shown column of most kinds.
    pub const AGE: Self = Self {
        name: "Age",
        kind: "string",
        format: "",
        description: "CreationTimestamp is a timestamp representing the server time when this object was created.",
        priority: 0,
    };
}

/// Everything known about a resource kind.
///
/// Hooks are called in upstream's order: decode, [`default`](Self::default), mutate, prepare, [`validate`](Self::validate),
/// admission-validate, store. A hook sees a whole object and never fails for a missing field. `Subresource::Status` and friends
/// are passed where a hook must tell a status write from a spec write.
pub trait Kind: Send + Sync + 'static {
    /// The names.
    fn names(&self) -> &Names;

    /// The verbs served on the resource itself.
    fn verbs(&self) -> &[Verb] {
        Verb::ALL
    }

    /// The paths below an object.
    fn subresources(&self) -> &[Subresource] {
        &[]
    }

    /// The bucket of the store, `group/plural`, that holds the objects. Kinds that share objects (the two Events) share it.
    fn bucket(&self) -> &'static str;

    /// Name of the type in `api::schema` (`io.k8s.api.apps.v1.Deployment`); `None` for kinds without a schema.
    fn schema(&self) -> Option<&'static str>;

    /// The columns of a Table.
    fn columns(&self) -> &[Column] {
        &[Column::NAME, Column::AGE]
    }

    /// The cells of a Table row, one for each of [`columns`](Self::columns).
    fn row(&self, object: &Object, now: Timestamp) -> Vec<Value>;

    /// Fields, besides `metadata.name` and `metadata.namespace`, that a field selector may name.
    fn selectable_fields(&self) -> &[&'static str] {
        &[]
    }

    /// The values of [`selectable_fields`](Self::selectable_fields) in this object, in the same order.
    fn field_values(&self, _object: &Object) -> Vec<String> {
        Vec::new()
    }

    /// Turns a stored object into this kind's form, where kinds share a bucket or have several versions.
    /// Called only if [`is_stored_form`](Self::is_stored_form) is false.
    fn convert_from_storage(&self, _object: &mut Object) {}

    /// The reverse of [`convert_from_storage`](Self::convert_from_storage).
    fn convert_to_storage(&self, _object: &mut Object) {}

    /// Whether stored bytes are sent as they are.
    fn is_stored_form(&self) -> bool {
        true
    }

    /// Fills in defaults, on every write, and drops what the type does not know.
    fn default(&self, _object: &mut Object) {}

    /// Clears what a client may not set, before a create.
    fn prepare_create(&self, _object: &mut Object) {}

    /// Carries over what this update may not change. The registry has already kept `status` from spec writes, everything but
    /// `status` from status writes, and the system's metadata.
    fn prepare_update(&self, _object: &mut Object, _old: &Object, _subresource: Option<Subresource>) {}

    /// Checks a new object. Metadata has been checked.
    fn validate(&self, _object: &Object) -> Vec<FieldError> {
        Vec::new()
    }

    /// Checks a changed object against the old one. Metadata has been checked.
    fn validate_update(&self, object: &Object, _old: &Object, _subresource: Option<Subresource>) -> Vec<FieldError> {
        self.validate(object)
    }

    /// Texts for `Warning` headers.
    fn warnings(&self, _object: &Object) -> Vec<String> {
        Vec::new()
    }

    /// Checks `metadata.name`; the default is a DNS-1123 subdomain.
    fn validate_name(&self, name: &str, path: Path) -> Vec<FieldError> {
        names::dns1123_subdomain(name).into_iter().map(|why| FieldError::invalid(path.clone(), name, why)).collect()
    }

    /// Whether `metadata.generation` counts changes of everything but metadata and status.
    fn has_generation(&self) -> bool {
        self.subresources().contains(&Subresource::Status)
    }

    /// Seconds of grace on delete; `None`: the kind is deleted at once. `requested` is what the client asked for.
    fn deletion_grace_seconds(&self, _object: &Object, _requested: Option<i64>) -> Option<i64> {
        None
    }

    /// What happens to dependents if the client does not say: `true` orphans them (only the oldest APIs do).
    fn orphans_by_default(&self) -> bool {
        false
    }
}
