//! The handlers: one generic path for every kind ([`resource`]), and the connections to pods, services and nodes.

use std::sync::Arc;

use super::{RequestContext, Server};
use crate::api::ApiError;
use crate::http::{HttpRequest, HttpResponse};

pub mod auth;
mod body;
mod options;
mod render;
mod resource;
mod table;
mod watch;
mod write;

#[cfg(test)]
mod tests;

/// Serves a request for a resource that has passed all filters.
///
/// # Errors
/// Whatever the client is to be told.
pub async fn dispatch(server: &Arc<Server>, context: RequestContext, _request: HttpRequest) -> Result<HttpResponse, ApiError> {
    let info = &context.info;
    let kind = server.registry.kinds().find(&info.group, &info.version, &info.resource);
    let kind = kind.ok_or_else(ApiError::no_such_path)?;
    Err(ApiError::method_not_allowed(&info.verb, &kind.names().group_resource()))
}
