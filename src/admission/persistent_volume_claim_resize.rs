//! PersistentVolumeClaimResize: a claim may ask for more only if its class says that its volumes can grow.

use async_trait::async_trait;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use serde_json::Value;

use super::{Context, Plugin};
use crate::api::{ApiError, Object};
use crate::kinds::storage::binding;
use crate::registry::Operation;

/// The plugin.
pub(super) struct PersistentVolumeClaimResize;

#[async_trait]
impl Plugin for PersistentVolumeClaimResize {
    fn name(&self) -> &'static str {
        "PersistentVolumeClaimResize"
    }

    async fn validate(&self, context: &mut Context<'_>, object: Option<&Object>, old: Option<&Object>) -> Result<(), ApiError> {
        if !context.is_core("PersistentVolumeClaim") || context.attributes.operation != Operation::Update {
            return Ok(());
        }
        let typed = |object: Option<&Object>| {
            object.and_then(|object| serde_json::from_value::<PersistentVolumeClaim>(Value::Object(object.0.clone())).ok())
        };
        let (Some(claim), Some(old)) = (typed(object), typed(old)) else { return Ok(()) };
        if binding::requested(&claim) <= binding::requested(&old) {
            return Ok(());
        }
        let is_bound = old.status.as_ref().is_some_and(|status| status.phase.as_deref() == Some("Bound"));
        if !is_bound {
            return Err(context.forbidden("Only bound persistent volume claims can be expanded"));
        }
        let classes = context.reader.list("storage.k8s.io/storageclasses", "");
        let class = classes.iter().find(|class| class.name() == binding::claim_class(&old));
        if class.is_some_and(|class| class.get(&["allowVolumeExpansion"]) == Some(&Value::Bool(true))) {
            return Ok(());
        }
        let why =
            "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize";
        Err(context.forbidden(why))
    }
}
