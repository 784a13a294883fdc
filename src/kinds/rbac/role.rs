//! Role: see upstream `pkg/apis/rbac`.

use k8s_openapi::api::rbac::v1::Role;

use crate::api::names;
use crate::kinds::typed::Definition;

/// The kind.
pub static ROLE: Definition<Role> = Definition {
    name_rule: names::path_segment,
    ..Definition::namespaced("io.k8s.api.rbac.v1.Role", "rbac.authorization.k8s.io/roles", "role")
};
