//! How every component talks to the API: typed calls over a [`Transport`], and informers (reflector and cache).
//!
//! The transport is HTTPS for an agent and loopback inside a server; both go through authentication, authorization and
//! admission. No component reads or writes the store in another way.

pub mod https;
pub mod kubeconfig;

use std::sync::Arc;

use ::http::{Method, Request, StatusCode, header};
use async_trait::async_trait;
use bytes::Bytes;
use http_body_util::BodyExt;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::{ClusterResourceScope, Metadata, NamespaceResourceScope, Resource};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::api::ApiError;
use crate::http::{BoxError, HttpRequest, HttpResponse, full};

mod cache;
mod correlator;
pub mod informer;
pub mod recorder;
mod reflector;
pub mod servers;
mod snapshot;
mod subscription;
pub mod watch;

pub use cache::{Cached, IndexFn, ObjectKey};
pub use reflector::{Source, encode};

/// Sends one request to an API server and returns its answer, whatever its status; the body streams.
///
/// The URI of the request is a path and query only (`/api/v1/pods?watch=1`); the transport adds authority and credentials.
#[async_trait]
pub trait Transport: Send + Sync + 'static {
    /// # Errors
    /// Only when no answer came: a retry may help.
    async fn send(&self, request: HttpRequest) -> Result<HttpResponse, BoxError>;
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The server answered with an error.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// No answer, or half of one: try again.
    #[error("{method} {path}: no answer from the API server")]
    Transport {
        method: Method,
        path: String,
        #[source]
        source: BoxError,
    },
    /// An answer that does not decode.
    #[error("{method} {path}: cannot decode the answer")]
    Decode {
        method: Method,
        path: String,
        #[source]
        source: serde_json::Error,
    },
}

impl ClientError {
    /// The API's error, if it answered with one.
    pub fn api(&self) -> Option<&ApiError> {
        if let Self::Api(error) = self { Some(error) } else { None }
    }

    /// Whether the object was not there.
    pub fn is_not_found(&self) -> bool {
        self.api().is_some_and(ApiError::is_not_found)
    }

    /// Whether optimistic locking refused the write.
    pub fn is_conflict(&self) -> bool {
        self.api().is_some_and(ApiError::is_conflict)
    }

    /// Whether the name was taken.
    pub fn is_already_exists(&self) -> bool {
        self.api().is_some_and(ApiError::is_already_exists)
    }

    /// Whether the revision asked for is gone: list again.
    pub fn is_expired(&self) -> bool {
        self.api().is_some_and(ApiError::is_expired)
    }
}

/// A typed API object: any of `k8s-openapi` with `ObjectMeta`.
pub trait ApiObject:
    Resource + Metadata<Ty = ObjectMeta> + DeserializeOwned + Serialize + Clone + std::fmt::Debug + Send + Sync + 'static
{
    /// Whether the kind lives in namespaces.
    const NAMESPACED: bool;
}

/// Whether a scope of `k8s-openapi` has namespaces.
pub trait ScopeIs {
    const NAMESPACED: bool;
}
impl ScopeIs for NamespaceResourceScope {
    const NAMESPACED: bool = true;
}
impl ScopeIs for ClusterResourceScope {
    const NAMESPACED: bool = false;
}

impl<K> ApiObject for K
where
    K: Resource + Metadata<Ty = ObjectMeta> + DeserializeOwned + Serialize + Clone + std::fmt::Debug + Send + Sync + 'static,
    K::Scope: ScopeIs,
{
    const NAMESPACED: bool = <K::Scope as ScopeIs>::NAMESPACED;
}

/// A list as the server sends it.
#[derive(Debug, Clone, Deserialize)]
pub struct ObjectList<K> {
    pub metadata: ListMeta,
    #[serde(default = "Vec::new")]
    pub items: Vec<K>,
}

/// `metadata` of a list.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ListMeta {
    pub resource_version: String,
    pub r#continue: String,
}

/// The form of a patch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PatchKind {
    Json,
    Merge,
    Strategic,
}

impl PatchKind {
    /// The media type of the body.
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json-patch+json",
            Self::Merge => "application/merge-patch+json",
            Self::Strategic => "application/strategic-merge-patch+json",
        }
    }
}

/// What a delete asks for; all absent means the server's defaults.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DeleteOptions {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grace_period_seconds: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub propagation_policy: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preconditions: Option<Preconditions>,
}

/// What must be true of the object to be deleted.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Preconditions {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource_version: Option<String>,
}

/// Typed calls to an API server. Clones share the transport. Every call can be cancelled by dropping it; a write that was
/// dropped may or may not have happened.
#[derive(Clone)]
pub struct Client {
    transport: Arc<dyn Transport>,
    user_agent: Arc<str>,
}

impl Client {
    /// A client that says it is `user_agent` (`orch/deployment-controller`).
    pub fn new(transport: Arc<dyn Transport>, user_agent: &str) -> Self {
        Self { transport, user_agent: user_agent.into() }
    }

    /// The same connection under another name.
    #[must_use]
    pub fn named(&self, user_agent: &str) -> Self {
        Self::new(Arc::clone(&self.transport), user_agent)
    }

    /// Reads one object.
    ///
    /// # Errors
    /// [`ClientError`]; `is_not_found` if it is not there.
    pub async fn get<K: ApiObject>(&self, namespace: &str, name: &str) -> Result<K, ClientError> {
        self.call(Method::GET, &path::<K>(namespace, Some(name), None), "", None).await
    }

    /// Reads all objects that match: `query` is e.g. `labelSelector=app%3Dweb`; namespace "" means all.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn list<K: ApiObject>(&self, namespace: &str, query: &str) -> Result<ObjectList<K>, ClientError> {
        let path = path::<K>(namespace, None, None);
        let path = if query.is_empty() { path } else { format!("{path}?{query}") };
        self.call(Method::GET, &path, "", None).await
    }

    /// Creates an object in the namespace of its metadata.
    ///
    /// # Errors
    /// [`ClientError`]; `is_already_exists` if the name is taken.
    pub async fn create<K: ApiObject>(&self, object: &K) -> Result<K, ClientError> {
        let namespace = object.metadata().namespace.as_deref().unwrap_or("");
        self.send_object(Method::POST, &path::<K>(namespace, None, None), object).await
    }

    /// Replaces an object; the `resourceVersion` in its metadata must be the present one.
    ///
    /// # Errors
    /// [`ClientError`]; `is_conflict` if it changed: read again.
    pub async fn update<K: ApiObject>(&self, object: &K) -> Result<K, ClientError> {
        self.send_object(Method::PUT, &object_path(object, None), object).await
    }

    /// Replaces the status of an object.
    ///
    /// # Errors
    /// As [`update`](Self::update).
    pub async fn update_status<K: ApiObject>(&self, object: &K) -> Result<K, ClientError> {
        self.send_object(Method::PUT, &object_path(object, Some("status")), object).await
    }

    /// Patches an object, or a subresource of it (`status`, `scale`).
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn patch<K: ApiObject>(
        &self,
        namespace: &str,
        name: &str,
        subresource: Option<&str>,
        kind: PatchKind,
        patch: &Value,
    ) -> Result<K, ClientError> {
        let body = Bytes::from(patch.to_string());
        self.call(Method::PATCH, &path::<K>(namespace, Some(name), subresource), kind.content_type(), Some(body)).await
    }

    /// Deletes an object. That it was not there is an error; the caller says whether it minds.
    ///
    /// # Errors
    /// [`ClientError`]; `is_not_found`, and `is_conflict` if a precondition failed.
    pub async fn delete<K: ApiObject>(&self, namespace: &str, name: &str, options: &DeleteOptions) -> Result<(), ClientError> {
        self.send_object::<_, serde::de::IgnoredAny>(Method::DELETE, &path::<K>(namespace, Some(name), None), options)
            .await
            .map(drop)
    }

    /// Posts a body to a path (`/api/v1/namespaces/x/pods/y/binding`) and decodes the answer.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn post<B: Serialize, R: DeserializeOwned>(&self, path: &str, body: &B) -> Result<R, ClientError> {
        self.send_object(Method::POST, path, body).await
    }

    /// Replaces a subresource (`finalize`, `approval`) of an object.
    ///
    /// # Errors
    /// As [`update`](Self::update).
    pub async fn update_subresource<K: ApiObject>(&self, object: &K, subresource: &str) -> Result<K, ClientError> {
        self.send_object(Method::PUT, &object_path(object, Some(subresource)), object).await
    }

    /// Sends any request and decodes the answer: for kinds that are known at run time only.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn request<R: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        content_type: &str,
        body: Option<Bytes>,
    ) -> Result<R, ClientError> {
        self.call(method, path, content_type, body).await
    }

    /// Sends a request and hands back the streaming answer, whatever its status: for watch, log and the like.
    ///
    /// # Errors
    /// [`ClientError::Transport`].
    pub async fn stream(
        &self,
        method: Method,
        path: &str,
        content_type: &str,
        body: Option<Bytes>,
    ) -> Result<HttpResponse, ClientError> {
        self.stream_as(method, path, "application/json", content_type, body).await
    }

    /// As [`stream`](Self::stream), asking for another media type than JSON.
    ///
    /// # Errors
    /// [`ClientError::Transport`].
    pub async fn stream_as(
        &self,
        method: Method,
        path: &str,
        accept: &str,
        content_type: &str,
        body: Option<Bytes>,
    ) -> Result<HttpResponse, ClientError> {
        let failed = |source: BoxError| ClientError::Transport { method: method.clone(), path: path.to_owned(), source };
        let mut request = Request::builder().method(&method).uri(path).header(header::USER_AGENT, &*self.user_agent);
        request = request.header(header::ACCEPT, accept);
        if body.is_some() {
            request = request.header(header::CONTENT_TYPE, content_type);
        }
        let request = request.body(full(body.unwrap_or_default())).map_err(|error| failed(error.into()))?;
        self.transport.send(request).await.map_err(failed)
    }

    async fn send_object<B: Serialize, R: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        object: &B,
    ) -> Result<R, ClientError> {
        let body = serde_json::to_vec(object).map_err(|source| ClientError::Decode {
            method: method.clone(),
            path: path.to_owned(),
            source,
        })?;
        self.call(method, path, "application/json", Some(body.into())).await
    }

    async fn call<R: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        content_type: &str,
        body: Option<Bytes>,
    ) -> Result<R, ClientError> {
        let response = self.stream(method.clone(), path, content_type, body).await?;
        let status = response.status();
        let body = response.into_body().collect().await;
        let body =
            body.map_err(|source| ClientError::Transport { method: method.clone(), path: path.to_owned(), source })?.to_bytes();
        if status.is_success() {
            serde_json::from_slice(&body).map_err(|source| ClientError::Decode { method, path: path.to_owned(), source })
        } else {
            Err(error_of(status, &body).into())
        }
    }
}

/// The error in an answer that is no success: its Status, or its text where it is none.
pub fn error_of(status: StatusCode, body: &[u8]) -> ApiError {
    match serde_json::from_slice::<Value>(body) {
        Ok(value) if value["kind"] == "Status" => ApiError::from_value(status.as_u16(), &value),
        _ => ApiError::new(status.as_u16(), crate::api::status::Reason::Unknown, String::from_utf8_lossy(body).trim().to_owned()),
    }
}

/// The URL path of a collection, object or subresource.
pub fn path<K: ApiObject>(namespace: &str, name: Option<&str>, subresource: Option<&str>) -> String {
    let mut path =
        if K::GROUP.is_empty() { format!("/api/{}", K::VERSION) } else { format!("/apis/{}/{}", K::GROUP, K::VERSION) };
    if K::NAMESPACED && !namespace.is_empty() {
        path.push_str("/namespaces/");
        path.push_str(namespace);
    }
    for part in [Some(K::URL_PATH_SEGMENT), name, subresource].into_iter().flatten() {
        path.push('/');
        path.push_str(part);
    }
    path
}

fn object_path<K: ApiObject>(object: &K, subresource: Option<&str>) -> String {
    let meta = object.metadata();
    path::<K>(meta.namespace.as_deref().unwrap_or(""), Some(meta.name.as_deref().unwrap_or("")), subresource)
}
