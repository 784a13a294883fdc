//! The `scale` subresource: an `autoscaling/v1` `Scale` over the replicas of a workload.

use serde_json::{Value, json};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde::Deserialize;

use super::apply::check_config;
use super::change::Trust;
use super::patch::Patch;
use super::{ApplyOptions, Outcome, PatchType, Registry, WriteRequest, managed};
use crate::api::field::{FieldError, Path};
use crate::api::managed::{Entry, Managed, Rule, Set};
use crate::api::selector::label::Selector;
use crate::api::{ApiError, Kind, Object};

const SCALE: &str = "io.k8s.api.autoscaling.v1.Scale";
const REPLICAS: &[&str] = &["spec", "replicas"];

impl Registry {
    /// The Scale of a workload.
    ///
    /// # Errors
    /// 404.
    pub fn scale(&self, kind: &dyn Kind, namespace: &str, name: &str) -> Result<Object, ApiError> {
        scale_of(&self.get_object(kind, namespace, name)?)
    }

    /// Replaces the Scale of a workload: its replicas.
    ///
    /// # Errors
    /// As [`update`](Self::update).
    pub async fn update_scale(&self, request: &WriteRequest, scale: &Object) -> Result<(Object, Outcome), ApiError> {
        self.change_scale(request, |_| Ok(scale.clone())).await
    }

    /// Patches the Scale of a workload.
    ///
    /// # Errors
    /// As [`patch`](Self::patch).
    pub async fn patch_scale(
        &self,
        request: &WriteRequest,
        patch_type: PatchType,
        patch: &[u8],
    ) -> Result<(Object, Outcome), ApiError> {
        // A Scale has no lists: a strategic merge is a merge.
        let patch_type = if patch_type == PatchType::Strategic { PatchType::Merge } else { patch_type };
        let patch = Patch::parse(patch_type, patch)?;
        self.change_scale(request, |scale| patch.apply(&*request.kind, scale)).await
    }

    /// Applies a Scale: as the request's field manager, the workload has these replicas.
    ///
    /// # Errors
    /// As [`apply`](Self::apply), and 404.
    pub async fn apply_scale(
        &self,
        request: &WriteRequest,
        config: &Object,
        options: &ApplyOptions,
    ) -> Result<(Object, Outcome), ApiError> {
        let rule = Rule::of_object(Some(SCALE));
        check_config(config, ("autoscaling", "v1", "Scale"), rule)?;
        let mut plain = request.clone();
        plain.subresource = None;
        let outcome = self
            .change(&plain, Trust::Applied, |old, _| {
                let mut live = old.clone();
                let stored = live.remove(&managed::PATH);
                let owners = self.owners_before_apply(&plain, &live, stored.as_ref())?;
                let reset = Set::of(&[&["status"]]);
                let (scale, of_scale) =
                    self.run_apply(request, config, &scale_of(&live)?, (rule, &reset), narrow(&owners), options.force)?;
                let mut object = with_scale(&live, &scale)?;
                let owners = widen(owners, of_scale);
                if !owners.is_empty() {
                    object.set(&managed::PATH, owners.to_value());
                }
                Ok(object)
            })
            .await?;
        let scale = scale_of(&self.decode(&*request.kind, &outcome.entry)?)?;
        Ok((scale, outcome))
    }

    async fn change_scale(
        &self,
        request: &WriteRequest,
        change: impl Fn(&Object) -> Result<Object, ApiError> + Send + Sync,
    ) -> Result<(Object, Outcome), ApiError> {
        let mut request = request.clone();
        // To the workload it is a plain write of its spec.
        request.subresource = None;
        let outcome = self
            .change(&request, Trust::Scale, |old, _| {
                let scale = change(&scale_of(old)?)?;
                with_scale(old, &scale)
            })
            .await?;
        let scale = scale_of(&self.decode(&*request.kind, &outcome.entry)?)?;
        Ok((scale, outcome))
    }
}

/// The owners of a workload's replicas, as owners of its Scale (upstream's `ScaleHandler.ToSubresource`).
fn narrow(owners: &Managed) -> Managed {
    let replicas = Set::of(&[REPLICAS]);
    let of_scale = owners.entries.iter().map(|entry| Entry { fields: entry.fields.intersection(&replicas), ..entry.clone() });
    Managed { entries: of_scale.filter(|entry| !entry.fields.is_empty()).collect() }
}

/// The owners of a workload, those of its replicas being the owners of its Scale (upstream's `ScaleHandler.ToParent`).
fn widen(owners: Managed, of_scale: Managed) -> Managed {
    let replicas = Set::of(&[REPLICAS]);
    let keep = |entry: Entry| Entry {
        fields: if of_scale.get(&entry.manager).is_some() { entry.fields } else { entry.fields.difference(&replicas) },
        ..entry
    };
    let mut out = Managed { entries: owners.entries.into_iter().map(keep).filter(|entry| !entry.fields.is_empty()).collect() };
    for entry in of_scale.entries {
        let fields = entry.fields.intersection(&replicas);
        if out.get(&entry.manager).is_none() && !fields.is_empty() {
            out.put(Entry { fields, ..entry });
        }
    }
    out
}

/// The workload with the replicas of a Scale.
fn with_scale(old: &Object, scale: &Object) -> Result<Object, ApiError> {
    let replicas = scale.get(&["spec", "replicas"]).and_then(Value::as_i64).unwrap_or(0);
    if replicas < 0 {
        let error = FieldError::invalid(Path::from("spec.replicas"), replicas, "must be greater than or equal to 0");
        return Err(ApiError::invalid("autoscaling", "Scale", old.name(), &[error]));
    }
    let mut object = old.clone();
    object.set(&["spec", "replicas"], replicas);
    for key in ["resourceVersion", "uid"] {
        if let Some(value) = scale.str_at(&["metadata", key]).filter(|value| !value.is_empty()) {
            object.set(&["metadata", key], value);
        }
    }
    Ok(object)
}

/// The Scale of a workload.
fn scale_of(object: &Object) -> Result<Object, ApiError> {
    let number = |path: &[&str]| object.get(path).and_then(Value::as_i64).unwrap_or(0);
    let mut metadata = serde_json::Map::new();
    for key in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = object.get(&["metadata", key]) {
            metadata.insert(key.to_owned(), value.clone());
        }
    }
    let mut status = json!({"replicas": number(&["status", "replicas"])});
    let selector = selector_of(object)?;
    if !selector.is_empty() {
        status["selector"] = Value::String(selector);
    }
    let mut scale = Object::default();
    scale.set(&["apiVersion"], "autoscaling/v1");
    scale.set(&["kind"], "Scale");
    scale.set(&["metadata"], Value::Object(metadata));
    scale.set(&["spec"], json!({"replicas": number(&["spec", "replicas"])}));
    scale.set(&["status"], status);
    Ok(scale)
}

fn selector_of(object: &Object) -> Result<String, ApiError> {
    let Some(selector) = object.get(&["spec", "selector"]) else { return Ok(String::new()) };
    // A ReplicationController has a plain map of labels.
    if object.kind() == "ReplicationController" {
        let pairs = selector.as_object().into_iter().flatten();
        let texts: Vec<String> = pairs.map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or(""))).collect();
        return Ok(texts.join(","));
    }
    let typed = LabelSelector::deserialize(selector).map_err(ApiError::internal)?;
    Ok(Selector::from_typed(Some(&typed)).map_err(ApiError::internal)?.to_string())
}
