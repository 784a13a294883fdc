//! DefaultStorageClass: a claim that names no class gets the default one, if there is one.

use async_trait::async_trait;

use super::{Context, Plugin};
use crate::api::{ApiError, Object};
use crate::registry::Operation;

const IS_DEFAULT: &str = "storageclass.kubernetes.io/is-default-class";

/// The plugin.
pub(super) struct DefaultStorageClass;

#[async_trait]
impl Plugin for DefaultStorageClass {
    fn name(&self) -> &'static str {
        "DefaultStorageClass"
    }

    async fn mutate(&self, context: &mut Context<'_>, claim: &mut Object, _old: Option<&Object>) -> Result<(), ApiError> {
        let names_class = claim.get(&["spec", "storageClassName"]).is_some_and(|class| !class.is_null());
        if !context.is_core("PersistentVolumeClaim") || context.attributes.operation != Operation::Create || names_class {
            return Ok(());
        }
        let classes = context.reader.list("storage.k8s.io/storageclasses", "");
        let defaults = classes.iter().filter(|class| class.annotation(IS_DEFAULT) == Some("true"));
        // Where there are several, the newest is taken, then the first by name.
        let newest =
            defaults.max_by(|one, other| (one.creation_timestamp(), other.name()).cmp(&(other.creation_timestamp(), one.name())));
        if let Some(class) = newest {
            claim.set(&["spec", "storageClassName"], class.name());
        }
        Ok(())
    }
}
