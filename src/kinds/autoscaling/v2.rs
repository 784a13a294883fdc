//! HorizontalPodAutoscaler, version 2 (the stored one): scales by any metrics.

use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;

use crate::api::kind::Subresource;
use crate::kinds::typed::Definition;

/// The kind.
pub static HORIZONTAL_POD_AUTOSCALER: Definition<HorizontalPodAutoscaler> = Definition {
    subresources: &[Subresource::Status],
    ..Definition::namespaced(
        "io.k8s.api.autoscaling.v2.HorizontalPodAutoscaler",
        "autoscaling/horizontalpodautoscalers",
        "horizontalpodautoscaler",
    )
    .short(&["hpa"])
    .in_all()
};
