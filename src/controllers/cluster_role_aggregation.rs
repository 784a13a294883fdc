//! ClusterRole aggregation: a role with an `aggregationRule` has the rules of all roles that its selectors match.

use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule};
use serde_json::json;

use super::{Context, Controller, Error, Queue, Requeue, Seen, Watches};
use crate::api::selector::label::Selector;
use crate::client::informer::Informer;
use crate::client::{Client, ObjectKey, PatchKind};

/// The controller of aggregated roles.
pub(super) fn cluster_role_aggregation(context: &Context) -> Arc<dyn Controller> {
    let client = context.client("clusterrole-aggregation-controller");
    Arc::new(Aggregation { roles: context.config.informers.of(), client })
}

struct Aggregation {
    roles: Arc<Informer<ClusterRole>>,
    client: Client,
}

/// The rules that a role should have, in the order of the names of the roles that they come from; `None` if it does not aggregate.
fn rules(role: &ClusterRole, roles: &[Arc<ClusterRole>]) -> Result<Option<Vec<PolicyRule>>, String> {
    let Some(selectors) = role.aggregation_rule.as_ref().and_then(|rule| rule.cluster_role_selectors.as_ref()) else {
        return Ok(None);
    };
    let mut rules: Vec<PolicyRule> = Vec::new();
    for selector in selectors {
        let selector = Selector::from_typed(Some(selector))?;
        let matching = roles.iter().filter(|other| other.metadata.name != role.metadata.name);
        for other in matching.filter(|other| selector.matches(&other.metadata.labels)) {
            for rule in other.rules.iter().flatten() {
                if !rules.contains(rule) {
                    rules.push(rule.clone());
                }
            }
        }
    }
    Ok(Some(rules))
}

#[async_trait]
impl Controller for Aggregation {
    fn name(&self) -> &'static str {
        "clusterroleaggregation"
    }

    fn watch(&self, watches: &mut Watches) {
        let roles = Arc::clone(&self.roles);
        watches.on(&self.roles, move |_: Seen<'_, ClusterRole>, queue: &Queue| {
            let aggregating = roles.list().into_iter().filter(|role| role.aggregation_rule.is_some());
            aggregating.for_each(|role| queue.add(ObjectKey::of(&*role)));
        });
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Requeue, Error> {
        let Some(role) = self.roles.get("", &key.name) else { return Ok(Requeue::Done) };
        let invalid = |message| Error::Invalid { object: format!("ClusterRole {key}"), message };
        if let Some(rules) = rules(&role, &self.roles.list()).map_err(invalid)?
            && role.rules.as_deref().unwrap_or_default() != rules
        {
            let meta = json!({"resourceVersion": role.metadata.resource_version});
            let patch = json!({"metadata": meta, "rules": rules});
            self.client.patch::<ClusterRole>("", &key.name, None, PatchKind::Merge, &patch).await?;
        }
        Ok(Requeue::Done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_united_without_repeats() {
        let role = |name: &str, label: &str, verb: &str| -> Arc<ClusterRole> {
            let value = json!({"metadata": {"name": name, "labels": {"to": label}}, "rules": [{"verbs": [verb]}]});
            Arc::new(serde_json::from_value(value).unwrap())
        };
        let view: ClusterRole = serde_json::from_value(json!({"metadata": {"name": "view"}, "rules": [{"verbs": ["old"]}],
            "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"to": "view"}}]}}))
        .unwrap();
        let roles = [role("a", "view", "get"), role("b", "edit", "patch"), role("c", "view", "get"), role("d", "view", "list")];
        let verbs: Vec<String> = rules(&view, &roles).unwrap().unwrap().into_iter().flat_map(|rule| rule.verbs).collect();
        assert_eq!(verbs, ["get", "list"]);
        assert_eq!(rules(&roles[0], &roles).unwrap(), None);
    }
}
