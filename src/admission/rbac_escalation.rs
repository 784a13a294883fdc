//! RBACEscalation: nobody gives rights that they do not have. Upstream checks this in the storage of the RBAC kinds
//! (`pkg/registry/rbac/*/policybased`); here it is the last word on their writes.

use async_trait::async_trait;

use super::{Context, Plugin};
use crate::api::{ApiError, Object};
use crate::auth::authz::escalation;

/// The plugin.
pub(super) struct RbacEscalation;

#[async_trait]
impl Plugin for RbacEscalation {
    fn name(&self) -> &'static str {
        "RBACEscalation"
    }

    async fn validate(&self, context: &mut Context<'_>, object: Option<&Object>, old: Option<&Object>) -> Result<(), ApiError> {
        let Some(object) = object else { return Ok(()) };
        let attributes = context.attributes;
        escalation::check(context.authorizer, attributes.user, attributes.kind, attributes.namespace, object, old)
    }
}
