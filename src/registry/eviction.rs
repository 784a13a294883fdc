//! The `eviction` subresource of pods: a delete that respects PodDisruptionBudgets (`registry/core/pod/storage/eviction.go`).

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde::Deserialize;
use serde_json::Value;

use super::change::Trust;
use super::{DeleteOptions, ListOptions, Outcome, Registry, WriteRequest};
use crate::api::selector::label::Selector;
use crate::api::status::Cause;
use crate::api::{ApiError, Object, meta};

impl Registry {
    /// Evicts the pod that the request names.
    ///
    /// # Errors
    /// 404; 429 while a budget forbids it: try again; 409 and 403 as a delete.
    pub async fn evict(&self, request: &WriteRequest, options: &DeleteOptions) -> Result<Outcome, ApiError> {
        let pod = self.get_object(&*request.kind, &request.namespace, &request.name)?;
        let phase = pod.str_at(&["status", "phase"]).unwrap_or("");
        let is_free = matches!(phase, "Succeeded" | "Failed" | "Pending") || pod.is_deleting();
        if !is_free {
            self.spend_budget(request, &pod).await?;
        }
        let mut delete = request.clone();
        delete.subresource = None;
        self.delete(&delete, options).await
    }

    /// Takes one disruption from the budget that covers the pod, if one does.
    async fn spend_budget(&self, request: &WriteRequest, pod: &Object) -> Result<(), ApiError> {
        let Some(kind) = self.kinds.find("policy", "v1", "poddisruptionbudgets") else { return Ok(()) };
        let mut covering = Vec::new();
        for entry in self.list(&*kind, &request.namespace, &ListOptions::default())?.entries {
            let budget = self.decode(&*kind, &entry)?;
            let selector = budget.get(&["spec", "selector"]).and_then(|value| LabelSelector::deserialize(value).ok());
            if Selector::from_typed(selector.as_ref()).is_ok_and(|selector| selector.matches(pod)) {
                covering.push(budget);
            }
        }
        let budget = match covering.as_slice() {
            [] => return Ok(()),
            [budget] => budget,
            _ => {
                return Err(ApiError::internal(
                    "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
                ));
            }
        };
        if !is_ready(pod) && frees_unhealthy(budget) {
            return Ok(());
        }
        let mut write = WriteRequest::new(Arc::clone(&kind), &request.namespace, budget.name(), Arc::clone(&request.user));
        write.dry_run = request.dry_run;
        let now = meta::time_text(self.clock.now());
        self.change(&write, Trust::System, |budget, _| spend(budget, pod.name(), &now)).await.map(drop)
    }
}

fn is_ready(pod: &Object) -> bool {
    let conditions = pod.get(&["status", "conditions"]).and_then(Value::as_array).into_iter().flatten();
    conditions.into_iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

/// Whether a pod that does not serve may go without being counted: always, or while enough others serve.
fn frees_unhealthy(budget: &Object) -> bool {
    let number = |field: &str| budget.get(&["status", field]).and_then(Value::as_i64).unwrap_or(0);
    let serves_enough = number("currentHealthy") >= number("desiredHealthy") && number("desiredHealthy") > 0;
    budget.str_at(&["spec", "unhealthyPodEvictionPolicy"]) == Some("AlwaysAllow") || serves_enough
}

fn spend(budget: &Object, pod: &str, now: &str) -> Result<Object, ApiError> {
    let number = |path: &[&str]| budget.get(path).and_then(Value::as_i64).unwrap_or(0);
    if number(&["status", "observedGeneration"]) < budget.generation() {
        return Err(refused(budget, "The disruption budget is still being processed by the server.", 10));
    }
    let allowed = number(&["status", "disruptionsAllowed"]);
    if allowed <= 0 {
        return Err(refused(budget, "", 0));
    }
    let mut spent = budget.clone();
    spent.set(&["status", "disruptionsAllowed"], allowed - 1);
    spent.set(&["status", "disruptedPods", pod], now);
    Ok(spent)
}

fn refused(budget: &Object, why: &str, retry_after_seconds: u32) -> ApiError {
    let mut error =
        ApiError::too_many_requests("Cannot evict pod as it would violate the pod's disruption budget.", retry_after_seconds);
    if retry_after_seconds == 0 {
        error.details.retry_after_seconds = None;
    }
    let number = |path: &[&str]| budget.get(path).and_then(Value::as_i64).unwrap_or(0);
    let message = if why.is_empty() {
        format!(
            "The disruption budget {} needs {} healthy pods and has {} currently",
            budget.name(),
            number(&["status", "desiredHealthy"]),
            number(&["status", "currentHealthy"])
        )
    } else {
        format!("The disruption budget {} is still being processed by the server.", budget.name())
    };
    error.details.causes = vec![Cause { reason: "DisruptionBudget".to_owned(), message, field: String::new() }];
    error
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn pods_that_do_not_serve() {
        for (spec, status, expected) in [
            (json!({"unhealthyPodEvictionPolicy": "AlwaysAllow"}), json!({}), true),
            (json!({}), json!({"currentHealthy": 2, "desiredHealthy": 2}), true),
            (json!({}), json!({"currentHealthy": 1, "desiredHealthy": 2}), false),
            (json!({}), json!({"currentHealthy": 0, "desiredHealthy": 0}), false),
        ] {
            let budget = Object(json!({"spec": spec, "status": status}).as_object().unwrap().clone());
            assert_eq!(frees_unhealthy(&budget), expected, "{spec} {status}");
        }
    }
}
