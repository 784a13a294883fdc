//! StorageObjectInUseProtection: claims and volumes get the finalizer that keeps them while they are used.

use async_trait::async_trait;

use super::{Context, Plugin};
use crate::api::{ApiError, Object, meta};
use crate::kinds::storage::binding;
use crate::registry::Operation;

/// The plugin.
pub(super) struct StorageObjectInUseProtection;

#[async_trait]
impl Plugin for StorageObjectInUseProtection {
    fn name(&self) -> &'static str {
        "StorageObjectInUseProtection"
    }

    async fn mutate(&self, context: &mut Context<'_>, object: &mut Object, _old: Option<&Object>) -> Result<(), ApiError> {
        let finalizer = if context.is_core("PersistentVolumeClaim") {
            binding::CLAIM_PROTECTION
        } else if context.is_core("PersistentVolume") {
            binding::VOLUME_PROTECTION
        } else {
            return Ok(());
        };
        if context.attributes.operation == Operation::Create && !object.finalizers().any(|own| own == finalizer) {
            let all: Vec<String> = object.finalizers().map(str::to_owned).chain([finalizer.to_owned()]).collect();
            meta::set_finalizers(object, &all);
        }
        Ok(())
    }
}
