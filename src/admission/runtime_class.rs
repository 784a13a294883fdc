//! RuntimeClass: a pod that names a class gets its overhead and its scheduling (upstream `plugin/pkg/admission/runtimeclass`).

use async_trait::async_trait;
use serde_json::Value;

use super::{Context, Plugin, list_mut};
use crate::api::{ApiError, Object};
use crate::registry::Operation;

const BUCKET: &str = "node.k8s.io/runtimeclasses";

/// The plugin.
pub(super) struct RuntimeClass;

#[async_trait]
impl Plugin for RuntimeClass {
    fn name(&self) -> &'static str {
        "RuntimeClass"
    }

    async fn mutate(&self, context: &mut Context<'_>, pod: &mut Object, _old: Option<&Object>) -> Result<(), ApiError> {
        if !context.is_core("Pod") || context.attributes.operation != Operation::Create {
            return Ok(());
        }
        let Some(class) = class_of(context, pod)? else { return Ok(()) };
        if let Some(fixed) = class.get(&["overhead", "podFixed"]) {
            match pod.get(&["spec", "overhead"]) {
                Some(given) if given != fixed => {
                    return Err(context.forbidden("pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead"));
                }
                _ => pod.set(&["spec", "overhead"], fixed.clone()),
            }
        }
        for (key, value) in class.get(&["scheduling", "nodeSelector"]).and_then(Value::as_object).into_iter().flatten() {
            match pod.str_at(&["spec", "nodeSelector", key]) {
                Some(given) if Some(given) != value.as_str() => {
                    let why = format!(
                        "pod rejected: conflict: node selector key {key:?} of the pod and of its RuntimeClass have different values"
                    );
                    return Err(context.forbidden(why));
                }
                _ => pod.set(&["spec", "nodeSelector", key], value.clone()),
            }
        }
        let more = class.get(&["scheduling", "tolerations"]).and_then(Value::as_array).cloned().unwrap_or_default();
        if let Some(tolerations) =
            pod.0.get_mut("spec").and_then(|spec| list_mut(spec, "tolerations")).filter(|_| !more.is_empty())
        {
            let missing: Vec<Value> = more.into_iter().filter(|toleration| !tolerations.contains(toleration)).collect();
            tolerations.extend(missing);
        }
        Ok(())
    }

    async fn validate(&self, context: &mut Context<'_>, object: Option<&Object>, _old: Option<&Object>) -> Result<(), ApiError> {
        let Some(pod) = object.filter(|_| context.is_core("Pod") && context.attributes.operation == Operation::Create) else {
            return Ok(());
        };
        let has_overhead = pod.get(&["spec", "overhead"]).and_then(Value::as_object).is_some_and(|overhead| !overhead.is_empty());
        let class = class_of(context, pod)?;
        if has_overhead && class.is_none_or(|class| class.get(&["overhead", "podFixed"]).is_none()) {
            return Err(context.forbidden("pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead"));
        }
        Ok(())
    }
}

fn class_of(context: &Context<'_>, pod: &Object) -> Result<Option<Object>, ApiError> {
    let Some(name) = pod.str_at(&["spec", "runtimeClassName"]).filter(|name| !name.is_empty()) else { return Ok(None) };
    match context.reader.get(BUCKET, "", name) {
        Some(class) => Ok(Some(class)),
        None => Err(context.forbidden(format_args!("pod rejected: RuntimeClass {name:?} not found"))),
    }
}
