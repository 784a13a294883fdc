//! ConfigMap: configuration as keys and values.

use k8s_openapi::api::core::v1::ConfigMap;

use crate::kinds::typed::Definition;

/// The kind.
pub static CONFIG_MAP: Definition<ConfigMap> =
    Definition::namespaced("io.k8s.api.core.v1.ConfigMap", "core/configmaps", "configmap").short(&["cm"]);
