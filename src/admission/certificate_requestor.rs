//! CertificateRequestor: a request for a certificate says who asks, whatever the client wrote. Upstream does the same in the
//! strategy of the kind (`pkg/registry/certificates/certificates/strategy.go`), which there knows the user.

use async_trait::async_trait;
use serde_json::json;

use super::{Context, Plugin};
use crate::api::{ApiError, Object};
use crate::registry::Operation;

/// The plugin.
pub(super) struct CertificateRequestor;

#[async_trait]
impl Plugin for CertificateRequestor {
    fn name(&self) -> &'static str {
        "CertificateRequestor"
    }

    async fn mutate(&self, context: &mut Context<'_>, request: &mut Object, _old: Option<&Object>) -> Result<(), ApiError> {
        let attributes = context.attributes;
        if attributes.kind.names().kind != "CertificateSigningRequest" || attributes.operation != Operation::Create {
            return Ok(());
        }
        let user = attributes.user;
        request.set(&["spec", "username"], user.name.as_str());
        request.set(&["spec", "uid"], user.uid.as_str());
        request.set(&["spec", "groups"], json!(user.groups));
        request.set(&["spec", "extra"], json!(user.extra));
        // A decision is made on the approval subresource only.
        request.remove(&["status"]);
        Ok(())
    }
}
