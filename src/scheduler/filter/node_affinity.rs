//! NodeAffinity: `nodeSelector` and required node affinity.

use k8s_openapi::api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm};

use super::{Filter, HelpedBy, NodeInfo, Reason};
use crate::scheduler::pod_info::PodInfo;

pub(super) const FILTER: Filter = Filter {
    name: "NodeAffinity",
    passes: |cycle, node| matches_required(cycle.pod, node),
    explain: |_, _| {
        let head = "node(s) didn't match Pod's node affinity/selector";
        Reason::new(head, "does not have the labels that the pod's nodeSelector or node affinity asks for")
    },
    helped_by: HelpedBy::Nodes,
    yields_to_removal: |_, _| false,
};

/// Whether a node has the labels that a pod requires.
pub fn matches_required(pod: &PodInfo, node: &NodeInfo) -> bool {
    let Some(spec) = pod.spec() else { return true };
    let selector = spec.node_selector.iter().flatten();
    if !selector.into_iter().all(|(key, value)| node.label(key) == Some(value)) {
        return false;
    }
    let affinity = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
    let required = affinity.and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref());
    required.is_none_or(|required| required.node_selector_terms.iter().any(|term| term_matches(term, node)))
}

/// Whether a node matches a term; a term that says nothing matches no node.
pub fn term_matches(term: &NodeSelectorTerm, node: &NodeInfo) -> bool {
    let (labels, fields) = (term.match_expressions.as_deref().unwrap_or(&[]), term.match_fields.as_deref().unwrap_or(&[]));
    let field = |key: &str| (key == "metadata.name").then_some(node.name.as_str());
    (!labels.is_empty() || !fields.is_empty())
        && labels.iter().all(|requirement| requirement_holds(requirement, node.label(&requirement.key)))
        && fields.iter().all(|requirement| requirement_holds(requirement, field(&requirement.key)))
}

fn requirement_holds(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or(&[]);
    let contains = |value: &str| values.iter().any(|candidate| candidate == value);
    let compare = |holds: fn(i64, i64) -> bool| {
        let bound = values.first().and_then(|bound| bound.parse().ok());
        value.and_then(|value| value.parse().ok()).zip(bound).is_some_and(|(value, bound)| holds(value, bound))
    };
    match requirement.operator.as_str() {
        "In" => value.is_some_and(contains),
        "NotIn" => !value.is_some_and(contains),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compare(|value, bound| value > bound),
        "Lt" => compare(|value, bound| value < bound),
        _ => false,
    }
}
