//! `matchLabelKeys` and `mismatchLabelKeys`: when a pod is created, the values of its own labels go into the selectors (upstream
//! `pod.mutatePodAffinity` and `mutateTopologySpreadConstraints`), so that whoever reads the selector knows all of it.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Pod, PodAffinityTerm};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};

type Labels = BTreeMap<String, String>;

/// Writes the pod's own values into its selectors.
pub fn merge(pod: &mut Pod) {
    let labels = pod.metadata.labels.clone().unwrap_or_default();
    let Some(spec) = &mut pod.spec else { return };
    for constraint in spec.topology_spread_constraints.iter_mut().flatten() {
        add(constraint.label_selector.as_mut(), constraint.match_label_keys.as_ref(), "In", &labels);
    }
    let Some(affinity) = &mut spec.affinity else { return };
    if let Some(near) = &mut affinity.pod_affinity {
        near.required_during_scheduling_ignored_during_execution.iter_mut().flatten().for_each(|term| of_term(term, &labels));
        let preferred = near.preferred_during_scheduling_ignored_during_execution.iter_mut().flatten();
        preferred.for_each(|weighted| of_term(&mut weighted.pod_affinity_term, &labels));
    }
    if let Some(far) = &mut affinity.pod_anti_affinity {
        far.required_during_scheduling_ignored_during_execution.iter_mut().flatten().for_each(|term| of_term(term, &labels));
        let preferred = far.preferred_during_scheduling_ignored_during_execution.iter_mut().flatten();
        preferred.for_each(|weighted| of_term(&mut weighted.pod_affinity_term, &labels));
    }
}

fn of_term(term: &mut PodAffinityTerm, labels: &Labels) {
    add(term.label_selector.as_mut(), term.match_label_keys.as_ref(), "In", labels);
    add(term.label_selector.as_mut(), term.mismatch_label_keys.as_ref(), "NotIn", labels);
}

/// A selector that is not there matches no pod: nothing is added to it.
fn add(selector: Option<&mut LabelSelector>, keys: Option<&Vec<String>>, operator: &str, labels: &Labels) {
    let Some(selector) = selector else { return };
    for (key, value) in keys.into_iter().flatten().filter_map(|key| Some((key, labels.get(key)?))) {
        let requirement =
            LabelSelectorRequirement { key: key.clone(), operator: operator.to_owned(), values: Some(vec![value.clone()]) };
        let expressions = selector.match_expressions.get_or_insert_default();
        if !expressions.contains(&requirement) {
            expressions.push(requirement);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn own_labels_go_into_selectors() {
        let term = json!({"topologyKey": "zone", "labelSelector": {}, "matchLabelKeys": ["hash", "none"], "mismatchLabelKeys": ["tenant"]});
        let without = json!({"topologyKey": "zone", "matchLabelKeys": ["hash"]});
        let pod = json!({"metadata": {"labels": {"hash": "1", "tenant": "t"}}, "spec": {"containers": [],
            "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule",
                "labelSelector": {"matchLabels": {"app": "web"}}, "matchLabelKeys": ["hash"]}],
            "affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]},
                "podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 1, "podAffinityTerm": without}]}}}});
        let mut pod: Pod = serde_json::from_value(pod).unwrap();
        merge(&mut pod);
        merge(&mut pod);
        let spec = serde_json::to_value(pod.spec).unwrap();
        let hash = json!({"key": "hash", "operator": "In", "values": ["1"]});
        let tenant = json!({"key": "tenant", "operator": "NotIn", "values": ["t"]});
        let near = &spec["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][0];
        let far = &spec["affinity"]["podAntiAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"][0];
        assert_eq!(near["labelSelector"], json!({"matchExpressions": [hash, tenant]}));
        assert_eq!(far["podAffinityTerm"]["labelSelector"], json!(null));
        let spread = &spec["topologySpreadConstraints"][0]["labelSelector"];
        assert_eq!(*spread, json!({"matchLabels": {"app": "web"}, "matchExpressions": [hash]}));
    }
}
