//! HorizontalPodAutoscaler, version 2 (the stored one): scales by any metrics.

use jiff::Timestamp;
use k8s_openapi::api::autoscaling::v2::{
    HorizontalPodAutoscaler, HorizontalPodAutoscalerStatus, MetricSpec, MetricTarget, ResourceMetricSource,
};
use serde_json::Value;

use crate::api::field::{FieldError, Path};
use crate::api::kind::{Column, Subresource};
use crate::kinds::check::{is_blank, required};
use crate::kinds::core::pod_spec::defaults::value;
use crate::kinds::print::{UNSET, age, name};
use crate::kinds::typed::{Definition, empty};

/// Percent of the requested cpu that is aimed at, unless metrics say otherwise.
const CPU_PERCENT: i32 = 80;

/// The columns of both versions.
pub const COLUMNS: &[Column] = &[
    Column::NAME,
    Column::text("Reference"),
    Column::text("Targets"),
    Column::text("MinPods"),
    Column::text("MaxPods"),
    Column::text("Replicas"),
    Column::AGE,
];

/// The kind.
pub static HORIZONTAL_POD_AUTOSCALER: Definition<HorizontalPodAutoscaler> = Definition {
    subresources: &[Subresource::Status],
    columns: COLUMNS,
    row: Some(row),
    default: Some(default),
    initial_status: Some(empty::<HorizontalPodAutoscalerStatus>),
    validate: Some(validate),
    generation: Some(false),
    ..Definition::namespaced(
        "io.k8s.api.autoscaling.v2.HorizontalPodAutoscaler",
        "autoscaling/horizontalpodautoscalers",
        "horizontalpodautoscaler",
    )
    .short(&["hpa"])
    .in_all()
};

fn default(scaler: &mut HorizontalPodAutoscaler) {
    let spec = &mut scaler.spec;
    value(&mut spec.min_replicas, 1);
    if is_blank(&spec.metrics) {
        let target =
            MetricTarget { type_: "Utilization".to_owned(), average_utilization: Some(CPU_PERCENT), ..MetricTarget::default() };
        let resource = Some(ResourceMetricSource { name: "cpu".to_owned(), target });
        spec.metrics = Some(vec![MetricSpec { type_: "Resource".to_owned(), resource, ..MetricSpec::default() }]);
    }
}

/// Checks an autoscaler.
pub fn validate(scaler: &HorizontalPodAutoscaler) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let path = Path::new("spec");
    let spec = &scaler.spec;
    let min = spec.min_replicas.unwrap_or(1);
    if min < 1 {
        let why = "must be greater than or equal to 1";
        errors.push(FieldError::invalid(path.child("minReplicas"), min, why));
    }
    if spec.max_replicas < 1 {
        errors.push(FieldError::invalid(path.child("maxReplicas"), spec.max_replicas, "must be greater than 0"));
    } else if spec.max_replicas < min {
        let why = "must be greater than or equal to `minReplicas`";
        errors.push(FieldError::invalid(path.child("maxReplicas"), spec.max_replicas, why));
    }
    let at = path.child("scaleTargetRef");
    required(&mut errors, &at.child("kind"), &spec.scale_target_ref.kind);
    required(&mut errors, &at.child("name"), &spec.scale_target_ref.name);
    errors
}

/// The cells of an autoscaler.
pub fn row(scaler: &HorizontalPodAutoscaler, now: Timestamp) -> Vec<Value> {
    let spec = &scaler.spec;
    let replicas = scaler.status.as_ref().and_then(|status| status.current_replicas).unwrap_or(0);
    let metrics: Vec<String> =
        spec.metrics.iter().flatten().enumerate().map(|(index, metric)| target(scaler, index, metric)).collect();
    let shown = match metrics.len() {
        0 => "<none>".to_owned(),
        count if count > 2 => format!("{} + {} more...", metrics[..2].join(", "), count - 2),
        _ => metrics.join(", "),
    };
    vec![
        name(&scaler.metadata),
        format!("{}/{}", spec.scale_target_ref.kind, spec.scale_target_ref.name).into(),
        shown.into(),
        spec.min_replicas.map_or_else(|| UNSET.to_owned(), |min| min.to_string()).into(),
        spec.max_replicas.into(),
        replicas.into(),
        age(&scaler.metadata, now),
    ]
}

fn target(scaler: &HorizontalPodAutoscaler, index: usize, metric: &MetricSpec) -> String {
    let metrics = scaler.status.as_ref().and_then(|status| status.current_metrics.as_deref()).unwrap_or_default();
    let status = metrics.get(index);
    let (label, target, current) = if let Some(source) = &metric.resource {
        let current = status.and_then(|status| status.resource.as_ref()).map(|status| &status.current);
        (format!("{}: ", source.name), &source.target, current)
    } else if let Some(source) = &metric.container_resource {
        let current = status.and_then(|status| status.container_resource.as_ref()).map(|status| &status.current);
        (format!("{}: ", source.name), &source.target, current)
    } else if let Some(source) = &metric.pods {
        (String::new(), &source.target, status.and_then(|status| status.pods.as_ref()).map(|status| &status.current))
    } else if let Some(source) = &metric.object {
        (String::new(), &source.target, status.and_then(|status| status.object.as_ref()).map(|status| &status.current))
    } else if let Some(source) = &metric.external {
        (String::new(), &source.target, status.and_then(|status| status.external.as_ref()).map(|status| &status.current))
    } else {
        return "<unknown type>".to_owned();
    };
    let unknown = || "<unknown>".to_owned();
    if let Some(percent) = target.average_utilization {
        let current = current.and_then(|current| current.average_utilization).map_or_else(unknown, |now| format!("{now}%"));
        return format!("{label}{current}/{percent}%");
    }
    if let Some(average) = &target.average_value {
        let current = current.and_then(|current| current.average_value.as_ref()).map_or_else(unknown, |now| now.0.clone());
        let suffix = if metric.external.is_some() || metric.object.is_some() { " (avg)" } else { "" };
        return format!("{label}{current}/{}{suffix}", average.0);
    }
    let current = current.and_then(|current| current.value.as_ref()).map_or_else(unknown, |now| now.0.clone());
    format!("{label}{current}/{}", target.value.as_ref().map_or("<auto>", |value| value.0.as_str()))
}
