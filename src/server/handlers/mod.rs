//! The handlers: one generic path for every kind ([`resource`]), and the connections to pods, services and nodes.

use std::sync::Arc;

use ::http::StatusCode;
use serde_json::Value;

use super::{RequestContext, Server, negotiate, node};
use crate::api::kind::Subresource;
use crate::api::{ApiError, Kind};
use crate::http::{HttpRequest, HttpResponse};
use crate::kinds;

pub mod auth;
mod body;
mod metrics;
mod options;
mod pods;
mod proxy;
mod render;
mod resource;
mod socket;
mod table;
mod watch;
mod write;

#[cfg(test)]
mod tests;

/// Serves a request for a resource that has passed all filters.
///
/// # Errors
/// Whatever the client is to be told.
pub async fn dispatch(server: &Arc<Server>, context: RequestContext, request: HttpRequest) -> Result<HttpResponse, ApiError> {
    let (kind, subresource) = resource::target(&server.registry, &context)?;
    let verb = context.info.verb.as_str();
    if let Some(framing) = socket::framing(request.headers(), verb, subresource) {
        return socket::serve(server, context, request, framing).await;
    }
    match (subresource, kind.names().plural) {
        (Some(one @ (Subresource::Log | Subresource::Exec | Subresource::Attach | Subresource::PortForward)), _) => {
            pods::connect(server, &context, &*kind, one, request).await
        }
        (Some(Subresource::Proxy), "nodes") => node::serve_proxy(server, &context, request).await,
        (Some(Subresource::Proxy), _) => proxy::serve(server, &context, &*kind, request).await,
        (Some(Subresource::Token), _) => create_virtual(server, &context, kind, request).await,
        (None, "bindings") if kind.names().group.is_empty() => {
            let pods = server.registry.kinds().find("", "v1", "pods").ok_or_else(ApiError::no_such_path)?;
            resource::serve(&server.registry, &context, pods, Some(Subresource::Binding), request).await
        }
        (None, _) if kind.names().group == kinds::metrics::GROUP => metrics::serve(server, &context, kind, request).await,
        (None, _) if verb == "create" && matches!(kind.names().group, "authentication.k8s.io" | "authorization.k8s.io") => {
            create_virtual(server, &context, kind, request).await
        }
        _ => resource::serve(&server.registry, &context, kind, subresource, request).await,
    }
}

/// Answers a create of what is never stored: reviews and tokens.
async fn create_virtual(
    server: &Arc<Server>,
    context: &RequestContext,
    kind: Arc<dyn Kind>,
    request: HttpRequest,
) -> Result<HttpResponse, ApiError> {
    if context.info.verb != "create" {
        return Err(resource::method_not_allowed());
    }
    let (parts, stream) = request.into_parts();
    let bytes = body::read(stream).await?;
    let object = if context.info.subresource.is_empty() {
        body::object(&*kind, &context.info, &parts.headers, &bytes, options::field_validation(context)?)?.object
    } else {
        body::decode(negotiate::content_type(&parts.headers)?, &bytes, None)?.object
    };
    let renderer = render::Renderer::new(&server.registry, Arc::clone(&kind), context, &parts.headers)?;
    match auth::create_virtual(server, context, &*kind, object).await {
        Some(answer) => renderer.value(&Value::Object(answer?.0), StatusCode::CREATED, &[]),
        None => Err(resource::method_not_allowed()),
    }
}
