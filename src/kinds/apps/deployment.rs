//! Deployment: declarative updates of ReplicaSets.

use k8s_openapi::api::apps::v1::Deployment;

use crate::api::kind::Subresource;
use crate::kinds::typed::Definition;

/// The kind.
pub static DEPLOYMENT: Definition<Deployment> = Definition {
    subresources: &[Subresource::Scale, Subresource::Status],
    ..Definition::namespaced("io.k8s.api.apps.v1.Deployment", "apps/deployments", "deployment").short(&["deploy"]).in_all()
};
