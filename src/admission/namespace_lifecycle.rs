//! NamespaceLifecycle: nothing new in a namespace that is not there or is going away, and the namespaces that must stay do.

use async_trait::async_trait;

use super::{Context, Plugin};
use crate::api::status::{Cause, GroupResource};
use crate::api::{ApiError, Object};
use crate::registry::Operation;

/// Namespaces that cannot be deleted.
const IMMORTAL: &[&str] = &["default", "kube-system", "kube-public"];

/// The plugin.
pub(super) struct NamespaceLifecycle;

#[async_trait]
impl Plugin for NamespaceLifecycle {
    fn name(&self) -> &'static str {
        "NamespaceLifecycle"
    }

    async fn mutate(&self, context: &mut Context<'_>, _object: &mut Object, _old: Option<&Object>) -> Result<(), ApiError> {
        let (attributes, names) = (context.attributes, context.attributes.kind.names());
        let is_review = names.group == "authorization.k8s.io";
        if attributes.operation != Operation::Create || !names.is_namespaced() || is_review {
            return Ok(());
        }
        let Some(namespace) = context.reader.get("core/namespaces", "", attributes.namespace) else {
            return Err(ApiError::not_found(&GroupResource { group: "", resource: "namespaces" }, attributes.namespace));
        };
        if !namespace.is_deleting() {
            return Ok(());
        }
        let namespace = attributes.namespace;
        let mut error = context
            .forbidden(format_args!("unable to create new content in namespace {namespace} because it is being terminated"));
        error.details.causes.push(Cause {
            reason: "NamespaceTerminating".to_owned(),
            message: format!("namespace {namespace} is being terminated"),
            field: "metadata.namespace".to_owned(),
        });
        Err(error)
    }

    async fn validate(&self, context: &mut Context<'_>, _object: Option<&Object>, _old: Option<&Object>) -> Result<(), ApiError> {
        let is_delete = context.attributes.operation == Operation::Delete;
        if is_delete && context.is_core("Namespace") && IMMORTAL.contains(&context.attributes.name) {
            return Err(context.forbidden("this namespace may not be deleted"));
        }
        Ok(())
    }
}
