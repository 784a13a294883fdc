//! Priority: resolves a pod's `priorityClassName` to a number, and keeps the global default class unique.

use async_trait::async_trait;
use serde_json::Value;

use super::{Context, Plugin};
use crate::api::{ApiError, Object};
use crate::registry::Operation;

const BUCKET: &str = "scheduling.k8s.io/priorityclasses";

/// The plugin.
pub(super) struct Priority;

#[async_trait]
impl Plugin for Priority {
    fn name(&self) -> &'static str {
        "Priority"
    }

    async fn mutate(&self, context: &mut Context<'_>, pod: &mut Object, _old: Option<&Object>) -> Result<(), ApiError> {
        if !context.is_core("Pod") || context.attributes.operation != Operation::Create {
            return Ok(());
        }
        let class = class_of(context, pod)?;
        let value = class.as_ref().and_then(|class| class.get(&["value"])).and_then(Value::as_i64).unwrap_or(0);
        if let Some(given) = pod.get(&["spec", "priority"]).and_then(Value::as_i64).filter(|given| *given != value) {
            return Err(context.forbidden(format_args!(
                "the integer value of priority ({given}) must not be provided in pod spec; priority admission controller computed {value} from the given PriorityClass name"
            )));
        }
        pod.set(&["spec", "priority"], value);
        if let Some(class) = &class {
            pod.set(&["spec", "priorityClassName"], class.name());
        }
        let policy =
            class.as_ref().and_then(|class| class.str_at(&["preemptionPolicy"])).unwrap_or("PreemptLowerPriority").to_owned();
        if let Some(given) = pod.str_at(&["spec", "preemptionPolicy"]).filter(|given| *given != policy) {
            return Err(context.forbidden(format_args!(
                "the string value of PreemptionPolicy ({given}) must not be provided in pod spec; priority admission controller computed {policy} from the given PriorityClass name"
            )));
        }
        pod.set(&["spec", "preemptionPolicy"], policy);
        Ok(())
    }

    async fn validate(&self, context: &mut Context<'_>, object: Option<&Object>, _old: Option<&Object>) -> Result<(), ApiError> {
        let Some(class) = object.filter(|class| is_default(class) && context.attributes.kind.bucket() == BUCKET) else {
            return Ok(());
        };
        match context.reader.list(BUCKET, "").into_iter().find(|other| is_default(other) && other.name() != class.name()) {
            Some(other) => Err(context.forbidden(format_args!(
                "PriorityClass {} is already marked as default. Only one default can exist",
                other.name()
            ))),
            None => Ok(()),
        }
    }
}

fn is_default(class: &Object) -> bool {
    class.get(&["globalDefault"]).and_then(Value::as_bool).unwrap_or(false)
}

/// The class the pod names, or the global default if it names none.
fn class_of(context: &Context<'_>, pod: &Object) -> Result<Option<Object>, ApiError> {
    match pod.str_at(&["spec", "priorityClassName"]).filter(|name| !name.is_empty()) {
        Some(name) => match context.reader.get(BUCKET, "", name) {
            Some(class) => Ok(Some(class)),
            None => Err(context.forbidden(format_args!("no PriorityClass with name {name} was found"))),
        },
        None => Ok(context.reader.list(BUCKET, "").into_iter().find(is_default)),
    }
}
