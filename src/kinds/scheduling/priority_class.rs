//! PriorityClass: a name for a priority.

use k8s_openapi::api::scheduling::v1::PriorityClass;

use crate::kinds::typed::Definition;

/// The kind.
pub static PRIORITY_CLASS: Definition<PriorityClass> =
    Definition::cluster("io.k8s.api.scheduling.v1.PriorityClass", "scheduling.k8s.io/priorityclasses", "priorityclass")
        .short(&["pc"]);
