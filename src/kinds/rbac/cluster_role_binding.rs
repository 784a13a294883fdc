//! ClusterRoleBinding: see upstream `pkg/apis/rbac`.

use k8s_openapi::api::rbac::v1::ClusterRoleBinding;

use crate::api::names;
use crate::kinds::typed::Definition;

/// The kind.
pub static CLUSTER_ROLE_BINDING: Definition<ClusterRoleBinding> = Definition {
    name_rule: names::path_segment,
    ..Definition::cluster(
        "io.k8s.api.rbac.v1.ClusterRoleBinding",
        "rbac.authorization.k8s.io/clusterrolebindings",
        "clusterrolebinding",
    )
};
