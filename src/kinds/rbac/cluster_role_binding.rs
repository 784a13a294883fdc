//! ClusterRoleBinding: gives rights in the whole cluster.

use jiff::Timestamp;
use k8s_openapi::api::rbac::v1::ClusterRoleBinding;
use serde_json::Value;

use super::rules;
use crate::api::field::FieldError;
use crate::api::kind::{Column, Subresource};
use crate::api::names;
use crate::kinds::print::{age, name};
use crate::kinds::typed::Definition;

/// The kind.
pub static CLUSTER_ROLE_BINDING: Definition<ClusterRoleBinding> = Definition {
    columns: &[
        Column::NAME,
        Column::text("Role"),
        Column::AGE,
        Column::wide("Users"),
        Column::wide("Groups"),
        Column::wide("ServiceAccounts"),
    ],
    row: Some(row),
    default: Some(|binding| rules::default_binding(&mut binding.role_ref, binding.subjects.as_mut())),
    validate: Some(validate),
    validate_update: Some(validate_update),
    name_rule: names::path_segment,
    ..Definition::cluster(
        "io.k8s.api.rbac.v1.ClusterRoleBinding",
        "rbac.authorization.k8s.io/clusterrolebindings",
        "clusterrolebinding",
    )
};

fn validate(binding: &ClusterRoleBinding) -> Vec<FieldError> {
    let mut errors = Vec::new();
    rules::binding(&mut errors, &binding.role_ref, binding.subjects.as_ref(), &["ClusterRole"], false);
    errors
}

fn validate_update(new: &ClusterRoleBinding, old: &ClusterRoleBinding, _subresource: Option<Subresource>) -> Vec<FieldError> {
    let mut errors = validate(new);
    rules::same_role(&mut errors, &new.role_ref, &old.role_ref);
    errors
}

fn row(binding: &ClusterRoleBinding, now: Timestamp) -> Vec<Value> {
    let [users, groups, accounts] = rules::subjects(binding.subjects.as_ref());
    let role = format!("{}/{}", binding.role_ref.kind, binding.role_ref.name);
    vec![name(&binding.metadata), role.into(), age(&binding.metadata, now), users.into(), groups.into(), accounts.into()]
}
