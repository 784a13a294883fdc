//! DefaultTolerationSeconds: a pod that says nothing of nodes that are not ready or not reachable tolerates them for five minutes.

use async_trait::async_trait;
use serde_json::{Value, json};

use super::{Context, Plugin, list_mut};
use crate::api::{ApiError, Object};
use crate::registry::Operation;

const TAINTS: [&str; 2] = ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"];
const SECONDS: u32 = 300;

/// The plugin.
pub(super) struct DefaultTolerationSeconds;

#[async_trait]
impl Plugin for DefaultTolerationSeconds {
    fn name(&self) -> &'static str {
        "DefaultTolerationSeconds"
    }

    async fn mutate(&self, context: &mut Context<'_>, pod: &mut Object, _old: Option<&Object>) -> Result<(), ApiError> {
        if !context.is_core("Pod") || context.attributes.operation != Operation::Create {
            return Ok(());
        }
        let Some(tolerations) = pod.0.get_mut("spec").and_then(|spec| list_mut(spec, "tolerations")) else { return Ok(()) };
        for taint in TAINTS {
            if !tolerations.iter().any(|toleration| tolerates(toleration, taint)) {
                tolerations
                    .push(json!({"key": taint, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": SECONDS}));
            }
        }
        Ok(())
    }
}

/// Whether a toleration speaks of this taint with effect NoExecute.
fn tolerates(toleration: &Value, taint: &str) -> bool {
    let text = |field: &str| toleration[field].as_str().unwrap_or("");
    ["", taint].contains(&text("key")) && ["", "NoExecute"].contains(&text("effect"))
}
