//! RoleBinding: see upstream `pkg/apis/rbac`.

use k8s_openapi::api::rbac::v1::RoleBinding;

use crate::api::names;
use crate::kinds::typed::Definition;

/// The kind.
pub static ROLE_BINDING: Definition<RoleBinding> = Definition {
    name_rule: names::path_segment,
    ..Definition::namespaced("io.k8s.api.rbac.v1.RoleBinding", "rbac.authorization.k8s.io/rolebindings", "rolebinding")
};
