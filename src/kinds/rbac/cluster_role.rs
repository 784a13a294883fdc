//! ClusterRole: rights in the whole cluster, or to be given within namespaces.

use k8s_openapi::api::rbac::v1::ClusterRole;

use super::rules;
use crate::api::field::{FieldError, Path};
use crate::api::kind::Column;
use crate::api::names;
use crate::kinds::check::label_selector;
use crate::kinds::print::{CREATED_AT, created_at, name};
use crate::kinds::typed::Definition;

/// The kind.
pub static CLUSTER_ROLE: Definition<ClusterRole> = Definition {
    columns: &[Column::NAME, CREATED_AT],
    row: Some(|role, _now| vec![name(&role.metadata), created_at(&role.metadata)]),
    validate: Some(validate),
    name_rule: names::path_segment,
    ..Definition::cluster("io.k8s.api.rbac.v1.ClusterRole", "rbac.authorization.k8s.io/clusterroles", "clusterrole")
};

fn validate(role: &ClusterRole) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (index, rule) in role.rules.iter().flatten().enumerate() {
        rules::rule(&mut errors, &Path::new("rules").index(index), rule, false);
    }
    let selectors = role.aggregation_rule.iter().flat_map(|rule| rule.cluster_role_selectors.iter().flatten());
    for (index, selector) in selectors.enumerate() {
        let path = Path::new("aggregationRule").child("clusterRoleSelectors").index(index);
        label_selector(&mut errors, &path, selector);
    }
    errors
}
