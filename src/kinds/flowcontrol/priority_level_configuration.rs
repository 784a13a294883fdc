//! PriorityLevelConfiguration: how many requests of a level run at a time.

use k8s_openapi::api::flowcontrol::v1::PriorityLevelConfiguration;

use crate::api::kind::Subresource;
use crate::kinds::typed::Definition;

/// The kind.
pub static PRIORITY_LEVEL_CONFIGURATION: Definition<PriorityLevelConfiguration> = Definition {
    subresources: &[Subresource::Status],
    ..Definition::cluster(
        "io.k8s.api.flowcontrol.v1.PriorityLevelConfiguration",
        "flowcontrol.apiserver.k8s.io/prioritylevelconfigurations",
        "prioritylevelconfiguration",
    )
};
