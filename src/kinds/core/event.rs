//! Event of the core group: what happened to an object.

use k8s_openapi::api::core::v1::Event;

use crate::kinds::typed::Definition;

/// The kind.
pub static EVENT: Definition<Event> = Definition::namespaced("io.k8s.api.core.v1.Event", "core/events", "event").short(&["ev"]);
