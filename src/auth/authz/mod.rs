//! Authorization: `system:masters`, then the node authorizer, then RBAC. Who is allowed by none is refused.

use std::sync::Arc;

use k8s_openapi::api::rbac::v1::PolicyRule;

use super::{Attributes, Decision, UserInfo};
use crate::store::Store;

pub mod escalation;
mod node;
mod rbac;
pub mod rules;

pub use rbac::Grant;

/// Answers whether a user may do something, from the RBAC objects as they stand now.
pub struct Authorizer {
    store: Arc<dyn Store>,
    rbac: rbac::Cache,
}

impl Authorizer {
    /// An authorizer over a store.
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self { store, rbac: rbac::Cache::default() }
    }

    /// Whether `user` may do what `attributes` say. Never waits.
    pub fn authorize(&self, user: &UserInfo, attributes: &Attributes) -> Decision {
        if user.is_master() {
            return Decision::Allow { reason: String::new() };
        }
        let snapshot = self.store.snapshot();
        let mut reasons = Vec::new();
        if let Some(node) = user.node_name() {
            match node::authorize(node, attributes, &snapshot) {
                node::Verdict::Allow => return Decision::Allow { reason: String::new() },
                node::Verdict::Deny(reason) => return Decision::NoOpinion { reason },
                node::Verdict::NoOpinion(reason) => reasons.extend(reason),
            }
        }
        let policies = self.rbac.current(&snapshot);
        let mut missing = Vec::new();
        for grant in policies.grants(user, &attributes.namespace) {
            match &grant.rules {
                Ok(granted) if granted.iter().any(|rule| rules::allows(rule, attributes)) => {
                    return Decision::Allow { reason: format!("RBAC: allowed by {}", grant.source) };
                }
                Ok(_) => {}
                Err(error) if !missing.contains(error) => missing.push(error.clone()),
                Err(_) => {}
            }
        }
        match missing.as_slice() {
            [] => {}
            [one] => reasons.push(format!("RBAC: {one}")),
            many => reasons.push(format!("RBAC: [{}]", many.join(", "))),
        }
        Decision::NoOpinion { reason: reasons.join(", ") }
    }

    /// All rules that a user has in a namespace, those for the whole cluster included; and whether some could not be found.
    pub fn rules_for(&self, user: &UserInfo, namespace: &str) -> (Vec<PolicyRule>, Vec<String>) {
        let snapshot = self.store.snapshot();
        let policies = self.rbac.current(&snapshot);
        let (mut rules, mut errors) = (Vec::new(), Vec::new());
        if user.is_master() {
            rules.extend(rules::everything());
        }
        for grant in policies.grants(user, namespace) {
            match &grant.rules {
                Ok(granted) => rules.extend(granted.iter().cloned()),
                Err(error) => errors.push(error.clone()),
            }
        }
        (rules, errors)
    }

    /// The rules that a role reference stands for.
    ///
    /// # Errors
    /// The text that says that the role is not there.
    pub fn rules_of_role(&self, kind: &str, namespace: &str, name: &str) -> Result<Arc<[PolicyRule]>, String> {
        self.rbac.current(&self.store.snapshot()).role(kind, namespace, name)
    }
}

#[cfg(test)]
pub(in crate::auth) mod tests;
