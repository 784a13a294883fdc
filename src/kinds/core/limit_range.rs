//! LimitRange: bounds and defaults of resources in a namespace.

use k8s_openapi::api::core::v1::LimitRange;

use crate::kinds::typed::Definition;

/// The kind.
pub static LIMIT_RANGE: Definition<LimitRange> =
    Definition::namespaced("io.k8s.api.core.v1.LimitRange", "core/limitranges", "limitrange").short(&["limits"]);
