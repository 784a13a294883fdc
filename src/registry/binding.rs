//! The `binding` subresource of pods: what a scheduler posts (`registry/core/pod/storage.BindingREST`).

use serde_json::{Value, json};

use super::change::Trust;
use super::{Outcome, Registry, WriteRequest};
use crate::api::field::{FieldError, Path};
use crate::api::status::GroupResource;
use crate::api::{ApiError, Object, meta};

const BINDING: GroupResource<'static> = GroupResource { group: "", resource: "pods/binding" };

impl Registry {
    /// Binds the pod that the request names to the node that `binding` names.
    ///
    /// # Errors
    /// 404, 409 when the pod is bound or being deleted, 422 for a binding without a target.
    pub async fn bind(&self, request: &WriteRequest, binding: &Object) -> Result<Outcome, ApiError> {
        let node = target(binding)?;
        let now = meta::time_text(self.clock.now());
        self.change(request, Trust::System, |old, _| {
            let name = old.name();
            let version = binding.resource_version();
            if old.is_deleting() {
                let why = format!("pod {name} is being deleted, cannot be assigned to a host");
                return Err(ApiError::conflict(&BINDING, name, why));
            }
            if let Some(bound) = old.str_at(&["spec", "nodeName"]).filter(|bound| !bound.is_empty()) {
                let why = format!("pod {name} is already assigned to node {bound:?}");
                return Err(ApiError::conflict(&BINDING, name, why));
            }
            if old.get(&["spec", "schedulingGates"]).and_then(Value::as_array).is_some_and(|gates| !gates.is_empty()) {
                return Err(ApiError::conflict(&BINDING, name, format!("pod {name} has non-empty .spec.schedulingGates")));
            }
            let mut pod = old.clone();
            pod.set(&["spec", "nodeName"], node);
            for (key, value) in binding.annotations() {
                pod.set(&["metadata", "annotations", key], value);
            }
            if !version.is_empty() {
                pod.set(&["metadata", "resourceVersion"], version);
            }
            if !binding.uid().is_empty() {
                pod.set(&["metadata", "uid"], binding.uid());
            }
            set_scheduled(&mut pod, &now);
            Ok(pod)
        })
        .await
    }
}

fn target(binding: &Object) -> Result<&str, ApiError> {
    let kind = binding.str_at(&["target", "kind"]).unwrap_or("");
    let name = binding.str_at(&["target", "name"]).unwrap_or("");
    let mut errors = Vec::new();
    if !matches!(kind, "" | "Node") {
        errors.push(FieldError::not_supported(Path::from("target.kind"), kind, &["Node", "<empty>"]));
    }
    if name.is_empty() {
        errors.push(FieldError::required(Path::from("target.name"), ""));
    }
    if errors.is_empty() { Ok(name) } else { Err(ApiError::invalid("", "Binding", binding.name(), &errors)) }
}

/// The condition `PodScheduled` is true from now.
fn set_scheduled(pod: &mut Object, now: &str) {
    let mut conditions = pod.get(&["status", "conditions"]).and_then(Value::as_array).cloned().unwrap_or_default();
    conditions.retain(|condition| condition.get("type").and_then(Value::as_str) != Some("PodScheduled"));
    conditions.push(json!({"type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": now}));
    pod.set(&["status", "conditions"], Value::Array(conditions));
}
