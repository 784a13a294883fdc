//! DefaultIngressClass: an Ingress that names no class gets the one that is marked as default.

use async_trait::async_trait;

use super::{Context, Plugin};
use crate::api::{ApiError, Object};
use crate::registry::Operation;

const ANNOTATION: &str = "ingressclass.kubernetes.io/is-default-class";
/// How a class was named before `spec.ingressClassName`.
const OLD_ANNOTATION: &str = "kubernetes.io/ingress.class";

/// The plugin.
pub(super) struct DefaultIngressClass;

#[async_trait]
impl Plugin for DefaultIngressClass {
    fn name(&self) -> &'static str {
        "DefaultIngressClass"
    }

    async fn mutate(&self, context: &mut Context<'_>, ingress: &mut Object, _old: Option<&Object>) -> Result<(), ApiError> {
        let (attributes, names) = (context.attributes, context.attributes.kind.names());
        let is_create = attributes.operation == Operation::Create && attributes.subresource.is_none();
        if !is_create || names.group != "networking.k8s.io" || names.kind != "Ingress" {
            return Ok(());
        }
        if ingress.get(&["spec", "ingressClassName"]).is_some() || ingress.annotation(OLD_ANNOTATION).is_some() {
            return Ok(());
        }
        let mut classes = context.reader.list("networking.k8s.io/ingressclasses", "");
        classes.retain(|class| class.annotation(ANNOTATION) == Some("true"));
        // The newest of several, and the first by name among those of one age, as upstream picks it.
        classes.sort_by(|left, right| {
            right.creation_timestamp().cmp(&left.creation_timestamp()).then_with(|| left.name().cmp(right.name()))
        });
        if let Some(class) = classes.first() {
            ingress.set(&["spec", "ingressClassName"], class.name());
        }
        Ok(())
    }
}
