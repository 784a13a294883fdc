//! TaintNodesByCondition: a new node takes no pods until its agent has said that it is ready.

use async_trait::async_trait;
use serde_json::json;

use super::{Context, Plugin, list_mut};
use crate::api::{ApiError, Object};
use crate::registry::Operation;

const NOT_READY: &str = "node.kubernetes.io/not-ready";

/// The plugin.
pub(super) struct TaintNodesByCondition;

#[async_trait]
impl Plugin for TaintNodesByCondition {
    fn name(&self) -> &'static str {
        "TaintNodesByCondition"
    }

    async fn mutate(&self, context: &mut Context<'_>, node: &mut Object, _old: Option<&Object>) -> Result<(), ApiError> {
        if !context.is_core("Node") || context.attributes.operation != Operation::Create {
            return Ok(());
        }
        let spec = node.0.entry("spec").or_insert_with(|| json!({}));
        if let Some(taints) = list_mut(spec, "taints").filter(|taints| taints.iter().all(|taint| taint["key"] != NOT_READY)) {
            taints.push(json!({"key": NOT_READY, "effect": "NoSchedule"}));
        }
        Ok(())
    }
}
