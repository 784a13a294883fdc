//! PodTemplate: a template for pods, as an object of its own.

use k8s_openapi::api::core::v1::PodTemplate;

use crate::kinds::typed::Definition;

/// The kind.
pub static POD_TEMPLATE: Definition<PodTemplate> =
    Definition::namespaced("io.k8s.api.core.v1.PodTemplate", "core/podtemplates", "podtemplate");
