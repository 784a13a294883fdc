//! DaemonSet: one pod on every matching node.

use k8s_openapi::api::apps::v1::DaemonSet;

use crate::api::kind::Subresource;
use crate::kinds::typed::Definition;

/// The kind.
pub static DAEMON_SET: Definition<DaemonSet> = Definition {
    subresources: &[Subresource::Status],
    ..Definition::namespaced("io.k8s.api.apps.v1.DaemonSet", "apps/daemonsets", "daemonset").short(&["ds"]).in_all()
};
