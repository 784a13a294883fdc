//! Secret: confidential data as keys and values.

use k8s_openapi::api::core::v1::Secret;

use crate::kinds::typed::Definition;

/// The kind.
pub static SECRET: Definition<Secret> = Definition::namespaced("io.k8s.api.core.v1.Secret", "core/secrets", "secret");
