//! ComponentStatus: deprecated health of the control plane.

use k8s_openapi::api::core::v1::ComponentStatus;

use crate::api::kind::Verb;
use crate::kinds::typed::Definition;

/// The kind.
pub static COMPONENT_STATUS: Definition<ComponentStatus> = Definition {
    verbs: &[Verb::Get, Verb::List],
    ..Definition::cluster("io.k8s.api.core.v1.ComponentStatus", "core/componentstatuses", "componentstatus").short(&["cs"])
};
