//! HorizontalPodAutoscaler, version 1: scales by CPU. Stored as version 2; what version 1 can't say travels in annotations.

use jiff::Timestamp;
use k8s_openapi::api::autoscaling::v1::{HorizontalPodAutoscaler, HorizontalPodAutoscalerStatus};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler as Stored;
use serde_json::{Value, json};

use super::v2;
use crate::api::Object;
use crate::api::field::FieldError;
use crate::api::kind::Subresource;
use crate::kinds::core::pod_spec::defaults::value;
use crate::kinds::print::name;
use crate::kinds::typed::{Definition, empty};

const CPU_PERCENT: &[&str] = &["spec", "targetCPUUtilizationPercentage"];
const CURRENT_PERCENT: &[&str] = &["status", "currentCPUUtilizationPercentage"];
/// What version 1 lacks: where it is stored, and the annotation that holds it in version 1.
const CARRIED: [(&[&str], &str); 4] = [
    (&["spec", "metrics"], "autoscaling.alpha.kubernetes.io/metrics"),
    (&["spec", "behavior"], "autoscaling.alpha.kubernetes.io/behavior"),
    (&["status", "currentMetrics"], "autoscaling.alpha.kubernetes.io/current-metrics"),
    (&["status", "conditions"], "autoscaling.alpha.kubernetes.io/conditions"),
];

/// The kind.
pub static HORIZONTAL_POD_AUTOSCALER: Definition<HorizontalPodAutoscaler> = Definition {
    subresources: &[Subresource::Status],
    columns: v2::COLUMNS,
    row: Some(row),
    default: Some(|scaler| value(&mut scaler.spec.min_replicas, 1)),
    initial_status: Some(empty::<HorizontalPodAutoscalerStatus>),
    validate: Some(validate),
    generation: Some(false),
    from_storage: Some(from_storage),
    to_storage: Some(to_storage),
    ..Definition::namespaced(
        "io.k8s.api.autoscaling.v1.HorizontalPodAutoscaler",
        "autoscaling/horizontalpodautoscalers",
        "horizontalpodautoscaler",
    )
    .short(&["hpa"])
    .in_all()
};

/// Takes the metric of cpu utilization out of a list; `field` holds the number.
fn take_cpu(list: &mut Value, field: &str) -> Option<Value> {
    let metrics = list.as_array_mut()?;
    let percent = |metric: &Value| {
        let resource = metric.get("resource")?;
        let is_cpu = resource.get("name")?.as_str() == Some("cpu");
        resource.get(field)?.get("averageUtilization").cloned().filter(|_| is_cpu)
    };
    let index = metrics.iter().position(|metric| percent(metric).is_some())?;
    percent(&metrics.remove(index))
}

fn from_storage(object: &mut Object) {
    object.set(&["apiVersion"], "autoscaling/v1");
    for (path, annotation) in CARRIED {
        let Some(mut value) = object.remove(path) else { continue };
        let (field, into) = match path {
            ["spec", "metrics"] => ("target", Some(CPU_PERCENT)),
            ["status", "currentMetrics"] => ("current", Some(CURRENT_PERCENT)),
            _ => ("", None),
        };
        if let Some((percent, into)) = into.and_then(|into| Some((take_cpu(&mut value, field)?, into))) {
            object.set(into, percent);
        }
        if value.as_array().is_none_or(|list| !list.is_empty()) {
            object.set(&["metadata", "annotations", annotation], value.to_string());
        }
    }
}

fn to_storage(object: &mut Object) {
    object.set(&["apiVersion"], "autoscaling/v2");
    for (path, annotation) in CARRIED {
        let carried = object.remove(&["metadata", "annotations", annotation]);
        let value = carried.as_ref().and_then(Value::as_str).and_then(|text| serde_json::from_str::<Value>(text).ok());
        if let Some(value) = value {
            object.set(path, value);
        }
    }
    if object.get(&["metadata", "annotations"]).and_then(Value::as_object).is_some_and(|map| map.is_empty()) {
        object.remove(&["metadata", "annotations"]);
    }
    if let Some(percent) = object.remove(CPU_PERCENT) {
        let target = json!({"type": "Utilization", "averageUtilization": percent});
        prepend(object, &["spec", "metrics"], json!({"type": "Resource", "resource": {"name": "cpu", "target": target}}));
    }
    if let Some(percent) = object.remove(CURRENT_PERCENT) {
        let current = json!({"averageUtilization": percent});
        prepend(
            object,
            &["status", "currentMetrics"],
            json!({"type": "Resource", "resource": {"name": "cpu", "current": current}}),
        );
    }
}

fn prepend(object: &mut Object, path: &[&str], metric: Value) {
    let mut list = object.remove(path).and_then(|value| value.as_array().cloned()).unwrap_or_default();
    list.insert(0, metric);
    object.set(path, list);
}

fn stored(scaler: &HorizontalPodAutoscaler) -> Option<Stored> {
    let mut object = Object::from_typed(scaler).ok()?;
    to_storage(&mut object);
    object.typed().ok()
}

fn validate(scaler: &HorizontalPodAutoscaler) -> Vec<FieldError> {
    stored(scaler).map_or_else(Vec::new, |scaler| v2::validate(&scaler))
}

fn row(scaler: &HorizontalPodAutoscaler, now: Timestamp) -> Vec<Value> {
    stored(scaler).map_or_else(|| vec![name(&scaler.metadata); v2::COLUMNS.len()], |scaler| v2::row(&scaler, now))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Kind;

    #[test]
    fn converts_there_and_back_and_prints() {
        let mut object = Object::default();
        object.set(&["apiVersion"], "autoscaling/v1");
        object.set(&["kind"], "HorizontalPodAutoscaler");
        object.set(&["metadata", "name"], "web");
        object.set(&["spec"], json!({"scaleTargetRef": {"kind": "Deployment", "name": "web"}, "minReplicas": 1, "maxReplicas": 5, "targetCPUUtilizationPercentage": 50}));
        let before = object.clone();
        HORIZONTAL_POD_AUTOSCALER.convert_to_storage(&mut object);
        assert_eq!(object.get(&["spec", "metrics"]).unwrap()[0]["resource"]["target"]["averageUtilization"], json!(50));
        let row = v2::HORIZONTAL_POD_AUTOSCALER.row(&object, Timestamp::UNIX_EPOCH);
        assert_eq!(json!(row[..6]), json!(["web", "Deployment/web", "cpu: <unknown>/50%", "1", 5, 0]));
        HORIZONTAL_POD_AUTOSCALER.convert_from_storage(&mut object);
        assert_eq!(object, before);
    }
}
