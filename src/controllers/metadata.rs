//! Calls on kinds that are known at run time only, by their metadata.

use ::http::Method;
use bytes::Bytes;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

use crate::api::Kind;
use crate::api::kind::{Names, Verb};
use crate::client::{Cached, Client, ClientError, DeleteOptions, PatchKind};

/// The media type of a list of metadata; of one object, and of a watch, without `List`.
pub(super) const ACCEPT_LIST: &str = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json";
/// The media type of the metadata of one object.
pub(super) const ACCEPT_ONE: &str = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json";

/// What namespace deletion and garbage collection know of an object.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Meta {
    metadata: Inner,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[derive(Default)]
struct Inner {
    name: Box<str>,
    namespace: Box<str>,
    uid: Box<str>,
    resource_version: Box<str>,
    deletion_timestamp: Option<IgnoredAny>,
    finalizers: Vec<Box<str>>,
    owner_references: Vec<OwnerReference>,
}

impl Meta {
    pub(super) fn is_deleting(&self) -> bool {
        self.metadata.deletion_timestamp.is_some()
    }

    pub(super) fn finalizers(&self) -> impl Iterator<Item = &str> {
        self.metadata.finalizers.iter().map(|finalizer| &**finalizer)
    }

    pub(super) fn has_finalizer(&self, name: &str) -> bool {
        self.finalizers().any(|finalizer| finalizer == name)
    }

    pub(super) fn owners(&self) -> &[OwnerReference] {
        &self.metadata.owner_references
    }
}

impl Cached for Meta {
    fn namespace(&self) -> &str {
        &self.metadata.namespace
    }

    fn name(&self) -> &str {
        &self.metadata.name
    }

    fn uid(&self) -> &str {
        &self.metadata.uid
    }

    fn resource_version(&self) -> &str {
        &self.metadata.resource_version
    }

    fn trim(&mut self) {
        self.metadata.finalizers.shrink_to_fit();
        self.metadata.owner_references.shrink_to_fit();
    }
}

/// A page of metadata.
#[derive(Debug, Deserialize)]
pub(super) struct MetaList {
    #[serde(default)]
    pub(super) items: Vec<Meta>,
}

/// Whether the objects of a kind can be found and deleted.
pub(super) fn is_deletable(kind: &dyn Kind) -> bool {
    [Verb::Delete, Verb::List, Verb::Watch].iter().all(|verb| kind.verbs().contains(verb))
}

/// The URL path of a collection (name "") or an object.
pub(super) fn path(names: &Names, namespace: &str, name: &str) -> String {
    let mut path = if names.group.is_empty() { "/api".to_owned() } else { format!("/apis/{}", names.group) };
    path.push('/');
    path.push_str(names.version);
    if names.is_namespaced() && !namespace.is_empty() {
        path.push_str("/namespaces/");
        path.push_str(namespace);
    }
    for part in [names.plural, name] {
        if !part.is_empty() {
            path.push('/');
            path.push_str(part);
        }
    }
    path
}

/// Deletes an object, or with name "" all objects of a collection.
///
/// # Errors
/// [`ClientError`].
pub(super) async fn delete(
    client: &Client,
    names: &Names,
    (namespace, name): (&str, &str),
    options: &DeleteOptions,
) -> Result<(), ClientError> {
    let path = path(names, namespace, name);
    let body = serde_json::to_vec(options).map_err(|source| ClientError::Decode {
        method: Method::DELETE,
        path: path.clone(),
        source,
    })?;
    client.request::<IgnoredAny>(Method::DELETE, &path, "application/json", Some(body.into())).await.map(drop)
}

/// Changes an object by a merge patch.
///
/// # Errors
/// [`ClientError`].
pub(super) async fn patch(client: &Client, names: &Names, object: &Meta, patch: &Value) -> Result<(), ClientError> {
    let path = path(names, object.namespace(), object.name());
    let body = Bytes::from(patch.to_string());
    client.request::<IgnoredAny>(Method::PATCH, &path, PatchKind::Merge.content_type(), Some(body)).await.map(drop)
}
