//! Role: rights within a namespace.

use k8s_openapi::api::rbac::v1::Role;

use super::rules;
use crate::api::field::{FieldError, Path};
use crate::api::kind::Column;
use crate::api::names;
use crate::kinds::print::{CREATED_AT, created_at, name};
use crate::kinds::typed::Definition;

/// The kind.
pub static ROLE: Definition<Role> = Definition {
    columns: &[Column::NAME, CREATED_AT],
    row: Some(|role, _now| vec![name(&role.metadata), created_at(&role.metadata)]),
    validate: Some(validate),
    name_rule: names::path_segment,
    ..Definition::namespaced("io.k8s.api.rbac.v1.Role", "rbac.authorization.k8s.io/roles", "role")
};

fn validate(role: &Role) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (index, rule) in role.rules.iter().flatten().enumerate() {
        rules::rule(&mut errors, &Path::new("rules").index(index), rule, true);
    }
    errors
}
