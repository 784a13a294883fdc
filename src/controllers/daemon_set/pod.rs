//! The pods of a DaemonSet: on which nodes they belong, and how they are made so that the scheduler puts them there. It follows
//! upstream's `controller/daemon/util`.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{
    Affinity, Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec, Toleration,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::super::history::{POD_HASH, name_of};
use super::super::owners;
use crate::kinds::core::pod_spec::placement::{matches_node, tolerates};

/// The annotation of a DaemonSet that counts the changes of its template.
const GENERATION: &str = "deprecated.daemonset.template.generation";
/// The label of a pod that says of which of them it is.
const POD_GENERATION: &str = "pod-template-generation";
/// The field of a node by which a pod is bound to it.
const NODE_NAME: &str = "metadata.name";

/// Taints that every daemon pod tolerates: key and effect.
const TOLERATED: [(&str, &str); 6] = [
    ("node.kubernetes.io/not-ready", "NoExecute"),
    ("node.kubernetes.io/unreachable", "NoExecute"),
    ("node.kubernetes.io/disk-pressure", "NoSchedule"),
    ("node.kubernetes.io/memory-pressure", "NoSchedule"),
    ("node.kubernetes.io/pid-pressure", "NoSchedule"),
    ("node.kubernetes.io/unschedulable", "NoSchedule"),
];
/// The same for pods in the network of the host.
const TOLERATED_ON_HOST: (&str, &str) = ("node.kubernetes.io/network-unavailable", "NoSchedule");

/// What a DaemonSet has to do with a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fit {
    /// A pod belongs there.
    Run,
    /// None is started there, but one that runs may stay.
    Stay,
    /// No pod belongs there.
    Leave,
}

/// The specification of the set's pods, but for the node.
pub(super) fn spec(set: &DaemonSet) -> PodSpec {
    let mut spec = set.spec.as_ref().and_then(|spec| spec.template.spec.clone()).unwrap_or_default();
    let on_host = (spec.host_network == Some(true)).then_some(TOLERATED_ON_HOST);
    for (key, effect) in TOLERATED.into_iter().chain(on_host) {
        let toleration = Toleration {
            key: Some(key.to_owned()),
            operator: Some("Exists".to_owned()),
            effect: Some(effect.to_owned()),
            ..Toleration::default()
        };
        let tolerations = spec.tolerations.get_or_insert_default();
        let is_same = |one: &&mut Toleration| {
            one.key == toleration.key
                && one.effect == toleration.effect
                && one.operator == toleration.operator
                && one.value.as_deref().unwrap_or("").is_empty()
        };
        match tolerations.iter_mut().find(is_same) {
            Some(same) => *same = toleration,
            None => tolerations.push(toleration),
        }
    }
    spec
}

/// Whether a pod of this specification belongs on a node: `NodeShouldRunDaemonPod`.
pub(super) fn fit(spec: &PodSpec, node: &Node) -> Fit {
    let wanted = spec.node_name.as_deref().unwrap_or("");
    if (!wanted.is_empty() && wanted != name_of(&node.metadata)) || !matches_node(spec, node) {
        return Fit::Leave;
    }
    let taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    let mut untolerated =
        taints.filter(|taint| !spec.tolerations.iter().flatten().any(|toleration| tolerates(toleration, taint))).peekable();
    let effects: Vec<&str> = std::iter::from_fn(|| untolerated.next()).map(|taint| taint.effect.as_str()).collect();
    match (effects.contains(&"NoExecute"), effects.contains(&"NoSchedule")) {
        (true, _) => Fit::Leave,
        (false, true) => Fit::Stay,
        (false, false) => Fit::Run,
    }
}

/// A new pod of the set that only this node will do for: `CreatePodTemplate`, `ReplaceDaemonSetPodNodeNameNodeAffinity`.
pub(super) fn new(set: &DaemonSet, spec: &PodSpec, hash: &str, node: &str) -> Pod {
    let from = set.spec.as_ref().and_then(|spec| spec.template.metadata.clone()).unwrap_or_default();
    let mut labels = from.labels.unwrap_or_default();
    labels.extend(generation(set).map(|generation| (POD_GENERATION.to_owned(), generation.to_owned())));
    labels.insert(POD_HASH.to_owned(), hash.to_owned());
    let metadata = ObjectMeta {
        generate_name: Some(format!("{}-", name_of(&set.metadata))),
        namespace: set.metadata.namespace.clone(),
        labels: Some(labels),
        annotations: from.annotations,
        finalizers: from.finalizers,
        owner_references: Some(vec![owners::controller_reference(set)]),
        ..ObjectMeta::default()
    };
    let mut spec = spec.clone();
    let requirement =
        NodeSelectorRequirement { key: NODE_NAME.to_owned(), operator: "In".to_owned(), values: Some(vec![node.to_owned()]) };
    let term = NodeSelectorTerm { match_fields: Some(vec![requirement]), match_expressions: None };
    let affinity: &mut Affinity = spec.affinity.get_or_insert_default();
    affinity.node_affinity.get_or_insert_default().required_during_scheduling_ignored_during_execution =
        Some(NodeSelector { node_selector_terms: vec![term] });
    Pod { metadata, spec: Some(spec), status: None }
}

fn label<'a>(labels: &'a Option<BTreeMap<String, String>>, name: &str) -> Option<&'a str> {
    labels.as_ref()?.get(name).map(String::as_str)
}

fn generation(set: &DaemonSet) -> Option<&str> {
    label(&set.metadata.annotations, GENERATION).filter(|text| text.parse::<i64>().is_ok())
}

/// The hash of the revision that a pod is of; "" if it does not say.
pub(super) fn hash_of(pod: &Pod) -> &str {
    label(&pod.metadata.labels, POD_HASH).unwrap_or("")
}

/// Whether a pod is of the present template: `IsPodUpdated`.
pub(super) fn is_updated(set: &DaemonSet, pod: &Pod, hash: &str) -> bool {
    let is_of_generation = generation(set).is_some_and(|wanted| label(&pod.metadata.labels, POD_GENERATION) == Some(wanted));
    is_of_generation || (!hash.is_empty() && hash_of(pod) == hash)
}

/// The node that a pod is on or is meant for: `GetTargetNodeName`.
pub(super) fn target_node(pod: &Pod) -> Option<&str> {
    let spec = pod.spec.as_ref()?;
    if let Some(node) = spec.node_name.as_deref().filter(|node| !node.is_empty()) {
        return Some(node);
    }
    let affinity = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref())?;
    let required = affinity.required_during_scheduling_ignored_during_execution.as_ref()?;
    let mut fields = required.node_selector_terms.iter().flat_map(|term| term.match_fields.iter().flatten());
    let named = fields.find(|requirement| requirement.key == NODE_NAME && requirement.operator == "In")?;
    match named.values.as_deref() {
        Some([node]) => Some(node),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn set(template: Value) -> DaemonSet {
        serde_json::from_value(json!({"metadata": {"name": "agent", "namespace": "a", "annotations": {GENERATION: "3"}},
            "spec": {"selector": {"matchLabels": {"app": "x"}}, "template": {"metadata": {"labels": {"app": "x"}}, "spec": template}}}))
        .unwrap()
    }

    fn node(labels: Value, taints: Value) -> Node {
        serde_json::from_value(json!({"metadata": {"name": "n1", "labels": labels}, "spec": {"taints": taints}})).unwrap()
    }

    #[test]
    fn a_pod_belongs_where_selector_affinity_and_taints_let_it() {
        let taint = |key: &str, effect: &str| json!([{"key": key, "effect": effect}]);
        let affinity = |terms: Value| json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}});
        let disk = || json!({"disk": "ssd"});
        for (spec, labels, taints, expected) in [
            (json!({}), json!({}), json!([]), Fit::Run),
            (json!({"nodeSelector": {"disk": "ssd"}}), disk(), json!([]), Fit::Run),
            (json!({"nodeSelector": {"disk": "ssd"}}), json!({}), json!([]), Fit::Leave),
            (json!({"nodeName": "n1"}), json!({}), json!([]), Fit::Run),
            (json!({"nodeName": "n2"}), json!({}), json!([]), Fit::Leave),
            (
                affinity(json!([{"matchExpressions": [{"key": "disk", "operator": "In", "values": ["ssd"]}]}])),
                disk(),
                json!([]),
                Fit::Run,
            ),
            (
                affinity(json!([{"matchExpressions": [{"key": "disk", "operator": "DoesNotExist"}]}])),
                disk(),
                json!([]),
                Fit::Leave,
            ),
            (
                affinity(json!([{"matchFields": [{"key": "metadata.name", "operator": "NotIn", "values": ["n1"]}]}])),
                disk(),
                json!([]),
                Fit::Leave,
            ),
            (json!({}), json!({}), taint("gpu", "NoSchedule"), Fit::Stay),
            (json!({}), json!({}), taint("gpu", "NoExecute"), Fit::Leave),
            (json!({}), json!({}), taint("gpu", "PreferNoSchedule"), Fit::Run),
            (json!({"tolerations": [{"key": "gpu", "operator": "Exists"}]}), json!({}), taint("gpu", "NoExecute"), Fit::Run),
            (json!({}), json!({}), taint("node.kubernetes.io/not-ready", "NoExecute"), Fit::Run),
            (json!({}), json!({}), taint("node.kubernetes.io/not-ready", "NoSchedule"), Fit::Stay),
            (json!({}), json!({}), taint("node.kubernetes.io/unschedulable", "NoSchedule"), Fit::Run),
            (json!({}), json!({}), taint("node.kubernetes.io/network-unavailable", "NoSchedule"), Fit::Stay),
            (json!({"hostNetwork": true}), json!({}), taint("node.kubernetes.io/network-unavailable", "NoSchedule"), Fit::Run),
        ] {
            let mut template = spec.clone();
            template["containers"] = json!([]);
            assert_eq!(fit(&super::spec(&set(template)), &node(labels, taints.clone())), expected, "{spec} {taints}");
        }
    }

    #[test]
    fn a_new_pod_is_for_one_node() {
        let terms = json!([{"matchExpressions": [{"key": "disk", "operator": "Exists"}]}]);
        let set = set(
            json!({"containers": [], "tolerations": [{"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5}],
            "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}}),
        );
        let pod = new(&set, &spec(&set), "abc", "n1");
        assert_eq!(target_node(&pod), Some("n1"));
        assert_eq!(pod.metadata.generate_name.as_deref(), Some("agent-"));
        let labels = pod.metadata.labels.as_ref().unwrap();
        assert_eq!((labels["app"].as_str(), labels[POD_HASH].as_str(), labels[POD_GENERATION].as_str()), ("x", "abc", "3"));
        let tolerations = pod.spec.as_ref().unwrap().tolerations.as_ref().unwrap();
        assert_eq!((tolerations.len(), tolerations[0].toleration_seconds), (6, None));
        let with = |hash: &str, generation: &str| {
            let mut other = pod.clone();
            other
                .metadata
                .labels
                .get_or_insert_default()
                .extend([(POD_HASH.to_owned(), hash.to_owned()), (POD_GENERATION.to_owned(), generation.to_owned())]);
            is_updated(&set, &other, "abc")
        };
        assert_eq!([with("abc", "3"), with("abc", "2"), with("def", "3"), with("def", "2")], [true, true, true, false]);
    }
}
