//! The verbs on every kind: one generic path.

use std::sync::Arc;

use ::http::StatusCode;
use serde_json::Value;

use super::super::RequestContext;
use super::render::Renderer;
use super::write::Call;
use super::{options, watch};
use crate::api::kind::{Subresource, Verb};
use crate::api::status::Reason;
use crate::api::{ApiError, Kind};
use crate::http::{HttpRequest, HttpResponse};
use crate::registry::Registry;

/// Verbs on a collection: with a field selector on `metadata.name` they carry a name all the same.
const COLLECTION_VERBS: &[&str] = &["list", "watch", "deletecollection"];

/// The kind and the subresource that a request names.
///
/// # Errors
/// 404 when there is no such path, 405 when the path does not take the verb.
pub fn target(registry: &Registry, context: &RequestContext) -> Result<(Arc<dyn Kind>, Option<Subresource>), ApiError> {
    let info = &context.info;
    let kind = registry.kinds().find(&info.group, &info.version, &info.resource).ok_or_else(ApiError::no_such_path)?;
    if !kind.names().is_namespaced() && !info.namespace.is_empty() && kind.names().plural != "namespaces" {
        return Err(ApiError::no_such_path());
    }
    if kind.names().is_namespaced()
        && info.namespace.is_empty()
        && !info.name.is_empty()
        && !COLLECTION_VERBS.contains(&info.verb.as_str())
    {
        return Err(ApiError::no_such_path());
    }
    if info.subresource.is_empty() {
        let verb = Verb::ALL.iter().find(|verb| verb.as_str() == info.verb);
        return match verb {
            Some(verb) if kind.verbs().contains(verb) => Ok((kind, None)),
            _ => Err(method_not_allowed()),
        };
    }
    let subresource = kind.subresources().iter().find(|one| one.as_str() == info.subresource).copied();
    subresource.map(|subresource| (kind, Some(subresource))).ok_or_else(ApiError::no_such_path)
}

/// 405 for a method that a path does not take.
pub fn method_not_allowed() -> ApiError {
    ApiError::new(405, Reason::MethodNotAllowed, "the server does not allow this method on the requested resource")
}

/// Serves a verb on an object or collection, or on a subresource that is stored with its object.
///
/// # Errors
/// As the verb.
pub async fn serve(
    registry: &Arc<Registry>,
    context: &RequestContext,
    kind: Arc<dyn Kind>,
    subresource: Option<Subresource>,
    request: HttpRequest,
) -> Result<HttpResponse, ApiError> {
    let renderer = Renderer::new(registry, kind, context, request.headers())?;
    let call = Call { registry, renderer, context, subresource };
    match (subresource, context.info.verb.as_str()) {
        (Some(Subresource::Scale), "get") => {
            fresh(registry, context).await?;
            let scale = registry.scale(&*call.renderer.kind, &context.info.namespace, &context.info.name)?;
            call.renderer.value(&Value::Object(scale.0), StatusCode::OK, &[])
        }
        (Some(Subresource::Binding), "create") => call.bind(request).await,
        (Some(Subresource::Eviction), "create") => call.evict(request).await,
        (Some(Subresource::Binding | Subresource::Eviction), _) => Err(method_not_allowed()),
        (_, "get") => {
            fresh(registry, context).await?;
            let entry = registry.get(&*call.renderer.kind, &context.info.namespace, &context.info.name)?;
            call.renderer.entry(&entry, StatusCode::OK, &[])
        }
        (None, "list") => {
            fresh(registry, context).await?;
            let listing = registry.list(&*call.renderer.kind, &context.info.namespace, &options::list(context)?)?;
            call.renderer.list(listing)
        }
        (None, "watch") => watch::serve(call.renderer, context),
        (None, "create") => call.create(request).await,
        (_, "update") => call.update(request).await,
        (_, "patch") => call.patch(request).await,
        (None, "delete") => call.delete(request).await,
        (None, "deletecollection") => call.delete_collection(request).await,
        _ => Err(method_not_allowed()),
    }
}

/// A read that names no revision sees every write that was acknowledged before it.
async fn fresh(registry: &Registry, context: &RequestContext) -> Result<(), ApiError> {
    match context.query("resourceVersion") {
        None | Some("") => registry.fresh().await,
        Some(_) => Ok(()),
    }
}
