//! Node: a machine that runs pods.

use std::collections::HashSet;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use serde_json::Value;

use super::pod_spec::defaults::quantities;
use super::pod_spec::{resources, scheduling};
use crate::api::field::{FieldError, Path};
use crate::api::kind::{Column, Subresource};
use crate::api::names;
use crate::kinds::check::{Errors, cidr, required_one_of, required_rule, rule, str_of};
use crate::kinds::print::{NONE, age, name};
use crate::kinds::typed::{Definition, Selectable, names_of};

const ROLE_PREFIX: &str = "node-role.kubernetes.io/";
const ROLE: &str = "kubernetes.io/role";

const FIELDS: [Selectable; 1] =
    [Selectable { name: "spec.unschedulable", paths: &[&["spec", "unschedulable"]], absent: "false" }];

/// The kind.
pub static NODE: Definition<Node> = Definition {
    subresources: &[Subresource::Proxy, Subresource::Status],
    columns: &[
        Column::NAME,
        Column::text("Status"),
        Column::text("Roles"),
        Column::AGE,
        Column::text("Version"),
        Column::wide("Internal-IP"),
        Column::wide("External-IP"),
        Column::wide("OS-Image"),
        Column::wide("Kernel-Version"),
        Column::wide("Container-Runtime"),
    ],
    row: Some(row),
    selectable: &FIELDS,
    selectable_names: &names_of(&FIELDS),
    default: Some(default),
    keeps_status: true,
    validate: Some(validate),
    validate_update: Some(validate_update),
    warnings: Some(warnings),
    generation: Some(false),
    ..Definition::cluster("io.k8s.api.core.v1.Node", "core/nodes", "node").short(&["no"])
};

fn default(node: &mut Node) {
    node.spec.get_or_insert_default();
    let status = node.status.get_or_insert_default();
    quantities(&mut status.capacity);
    quantities(&mut status.allocatable);
    if status.allocatable.is_none() {
        status.allocatable.clone_from(&status.capacity);
    }
}

fn validate(node: &Node) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let path = Path::new("spec");
    let spec = node.spec.clone().unwrap_or_default();
    let mut seen = HashSet::new();
    for (index, taint) in spec.taints.iter().flatten().enumerate() {
        let path = path.child("taints").index(index);
        rule(&mut errors, &path.child("key"), &taint.key, names::qualified_name);
        rule(&mut errors, &path.child("value"), str_of(&taint.value), names::label_value);
        required_one_of(&mut errors, &path.child("effect"), &taint.effect, scheduling::EFFECTS);
        if !seen.insert((&taint.key, &taint.effect)) {
            let value = serde_json::to_value(taint).unwrap_or_default();
            let mut error = FieldError::duplicate(path, value);
            error.detail = "taints must be unique by key and effect pair".to_owned();
            errors.push(error);
        }
    }
    for (index, range) in spec.pod_cidrs.iter().flatten().enumerate() {
        cidr(&mut errors, &path.child("podCIDRs").index(index), range);
    }
    amounts(&mut errors, node);
    errors
}

fn amounts(errors: &mut Errors, node: &Node) {
    let status = node.status.clone().unwrap_or_default();
    for (field, list) in [("capacity", &status.capacity), ("allocatable", &status.allocatable)] {
        for (resource, amount) in list.iter().flatten() {
            let path = Path::new("status").child(field).key(resource);
            required_rule(errors, &path, resource, names::qualified_name);
            resources::named_amount(errors, &path, resource, amount);
        }
    }
}

fn validate_update(new: &Node, old: &Node, _subresource: Option<Subresource>) -> Vec<FieldError> {
    let mut errors = validate(new);
    let (spec, before) = (new.spec.clone().unwrap_or_default(), old.spec.clone().unwrap_or_default());
    let path = Path::new("spec");
    let ranges = before.pod_cidrs.unwrap_or_default();
    if !ranges.is_empty() && spec.pod_cidrs.unwrap_or_default() != ranges {
        let why = "node updates may not change podCIDR except from \"\" to valid";
        errors.push(FieldError::forbidden(path.child("podCIDRs"), why));
    }
    if !str_of(&before.provider_id).is_empty() && spec.provider_id != before.provider_id {
        let why = "node updates may not change providerID except from \"\" to valid";
        errors.push(FieldError::forbidden(path.child("providerID"), why));
    }
    errors
}

fn warnings(node: &Node) -> Vec<String> {
    let mut texts = Vec::new();
    if node.spec.as_ref().is_some_and(|spec| spec.config_source.is_some()) {
        texts.push("spec.configSource: the feature is no longer supported".to_owned());
    }
    texts
}

fn row(node: &Node, now: Timestamp) -> Vec<Value> {
    let status = node.status.clone().unwrap_or_default();
    let address = |kind: &str| {
        let found = status.addresses.iter().flatten().find(|address| address.type_ == kind);
        found.map_or(NONE, |address| address.address.as_str()).to_owned()
    };
    let info = status.node_info.clone().unwrap_or_default();
    let known = |text: String| if text.is_empty() { "<unknown>".to_owned() } else { text };
    vec![
        name(&node.metadata),
        state(node).into(),
        roles(node).into(),
        age(&node.metadata, now),
        info.kubelet_version.into(),
        address("InternalIP").into(),
        address("ExternalIP").into(),
        known(info.os_image).into(),
        known(info.kernel_version).into(),
        known(info.container_runtime_version).into(),
    ]
}

fn state(node: &Node) -> String {
    let ready =
        node.status.iter().flat_map(|status| status.conditions.iter().flatten()).find(|condition| condition.type_ == "Ready");
    let mut text = match ready {
        Some(condition) if condition.status == "True" => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    }
    .to_owned();
    if node.spec.as_ref().is_some_and(|spec| spec.unschedulable == Some(true)) {
        text.push_str(",SchedulingDisabled");
    }
    text
}

fn roles(node: &Node) -> String {
    let mut roles: Vec<&str> = node
        .metadata
        .labels
        .iter()
        .flatten()
        .filter_map(|(key, value)| match key.strip_prefix(ROLE_PREFIX) {
            Some(role) => Some(role).filter(|role| !role.is_empty()),
            None => (key == ROLE && !value.is_empty()).then_some(value.as_str()),
        })
        .collect();
    roles.sort_unstable();
    roles.dedup();
    if roles.is_empty() { NONE.to_owned() } else { roles.join(",") }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::api::{Kind, Object};

    #[test]
    fn row_as_kubectl_prints_it() {
        let object = Object::from_json(
            &serde_json::to_vec(&json!({
                "apiVersion": "v1", "kind": "Node",
                "metadata": {"name": "n1", "creationTimestamp": "2024-01-01T00:00:00Z",
                    "labels": {"node-role.kubernetes.io/worker": "", "node-role.kubernetes.io/control-plane": "true"}},
                "spec": {"unschedulable": true},
                "status": {"conditions": [{"type": "Ready", "status": "True"}],
                    "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}],
                    "nodeInfo": {"kubeletVersion": "v1.36.0", "osImage": "Debian", "kernelVersion": "6.1", "containerRuntimeVersion": "docker://20"}},
            }))
            .unwrap(),
        )
        .unwrap();
        let row = NODE.row(&object, "2024-01-03T03:00:00Z".parse().unwrap());
        let expected = json!([
            "n1",
            "Ready,SchedulingDisabled",
            "control-plane,worker",
            "2d3h",
            "v1.36.0",
            "10.0.0.1",
            "<none>",
            "Debian",
            "6.1",
            "docker://20"
        ]);
        assert_eq!(Value::Array(row), expected);
    }
}
