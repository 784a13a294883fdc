//! Event of events.k8s.io: the same objects as the core Event.

use k8s_openapi::api::events::v1::Event;

use crate::kinds::typed::Definition;

/// The kind.
pub static EVENT: Definition<Event> = Definition::namespaced("io.k8s.api.events.v1.Event", "core/events", "event").short(&["ev"]);
