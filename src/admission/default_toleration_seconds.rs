//! DefaultTolerationSeconds: a pod that says nothing of nodes that are not ready or not reachable tolerates them for five minutes,
//! or what `--default-not-ready-toleration-seconds` and `--default-unreachable-toleration-seconds` say.

use async_trait::async_trait;
use serde_json::{Value, json};

use super::{Context, Plugin, list_mut};
use crate::api::{ApiError, Object};
use crate::registry::Operation;

const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";

/// For how long a pod stays on a lost node when it does not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TolerationSeconds {
    pub not_ready: u32,
    pub unreachable: u32,
}

impl Default for TolerationSeconds {
    fn default() -> Self {
        Self { not_ready: 300, unreachable: 300 }
    }
}

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
        let seconds = context.toleration_seconds;
        let Some(tolerations) = pod.0.get_mut("spec").and_then(|spec| list_mut(spec, "tolerations")) else { return Ok(()) };
        for (taint, seconds) in [(NOT_READY, seconds.not_ready), (UNREACHABLE, seconds.unreachable)] {
            if !tolerations.iter().any(|toleration| tolerates(toleration, taint)) {
                tolerations
                    .push(json!({"key": taint, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds}));
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
