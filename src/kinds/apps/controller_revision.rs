//! ControllerRevision: a snapshot of a template, for rollback.

use k8s_openapi::api::apps::v1::ControllerRevision;

use crate::kinds::typed::Definition;

/// The kind.
pub static CONTROLLER_REVISION: Definition<ControllerRevision> =
    Definition::namespaced("io.k8s.api.apps.v1.ControllerRevision", "apps/controllerrevisions", "controllerrevision");
