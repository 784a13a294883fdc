//! ComponentStatus: deprecated health of the control plane.

use k8s_openapi::api::core::v1::ComponentStatus;

use crate::api::kind::{Column, Verb};
use crate::kinds::check::str_of;
use crate::kinds::print::name;
use crate::kinds::typed::Definition;

/// The kind.
pub static COMPONENT_STATUS: Definition<ComponentStatus> = Definition {
    verbs: &[Verb::Get, Verb::List],
    columns: &[Column::NAME, Column::text("Status"), Column::text("Message"), Column::text("Error")],
    row: Some(|component, _now| {
        let condition = component.conditions.iter().flatten().find(|condition| condition.type_ == "Healthy");
        let is_healthy = condition.is_some_and(|condition| condition.status == "True");
        let status = match condition {
            None => "Unknown",
            Some(_) if is_healthy => "Healthy",
            Some(_) => "Unhealthy",
        };
        let (message, error) = condition.map_or(("", ""), |condition| (str_of(&condition.message), str_of(&condition.error)));
        vec![name(&component.metadata), status.into(), message.into(), error.into()]
    }),
    ..Definition::cluster("io.k8s.api.core.v1.ComponentStatus", "core/componentstatuses", "componentstatus").short(&["cs"])
};
