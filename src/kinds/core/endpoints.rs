//! Endpoints: the addresses behind a Service, in the oldest form.

use k8s_openapi::api::core::v1::Endpoints;

use crate::kinds::typed::Definition;

/// The kind.
pub static ENDPOINTS: Definition<Endpoints> =
    Definition::namespaced("io.k8s.api.core.v1.Endpoints", "core/endpoints", "endpoints").short(&["ep"]);
