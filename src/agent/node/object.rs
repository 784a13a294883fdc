//! The Node object: what it is registered as, and its status. Pure functions of the machine's facts and the node's health.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ContainerImage, DaemonEndpoint, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeSpec, NodeStatus, NodeSystemInfo,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Typed;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use serde_json::{Value, json};

use super::facts::{Capacity, architecture};
use crate::agent::AgentConfig;
use crate::agent::eviction::signal::Pressure;
use crate::agent::pod::resources::GPU;
use crate::api::quantity::{Format, Quantity};
use crate::kinds::storage::local_path;

/// Whether the node can run pods.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Health {
    /// What keeps the node from being ready, in the kubelet's words; empty when nothing does.
    pub problems: Vec<String>,
    /// What the node is short of.
    pub pressures: BTreeSet<Pressure>,
}

/// Labels that every node carries.
fn own_labels(config: &AgentConfig) -> BTreeMap<String, String> {
    let table = [
        ("kubernetes.io/hostname", config.node_name.as_str()),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", architecture()),
        ("beta.kubernetes.io/os", "linux"),
        ("beta.kubernetes.io/arch", architecture()),
    ];
    let own = table.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned()));
    let role = config.is_control_plane.then(|| ("node-role.kubernetes.io/control-plane".to_owned(), "true".to_owned()));
    own.chain(role).collect()
}

/// Annotations that every node carries.
fn own_annotations(config: &AgentConfig) -> BTreeMap<String, String> {
    BTreeMap::from([(local_path::NODE_DIRECTORY.to_owned(), config.storage_dir.display().to_string())])
}

/// The Node as it is registered.
pub fn registration(config: &AgentConfig, status: NodeStatus) -> Node {
    let mut labels = own_labels(config);
    labels.extend(config.labels.clone());
    Node {
        metadata: ObjectMeta {
            name: Some(config.node_name.clone()),
            labels: Some(labels),
            annotations: Some(own_annotations(config)),
            ..ObjectMeta::default()
        },
        spec: Some(NodeSpec { taints: Some(config.taints.clone()).filter(|taints| !taints.is_empty()), ..NodeSpec::default() }),
        status: Some(status),
    }
}

/// The patch that gives a node that is already registered the labels and annotations it must have; `None` if it has them.
pub fn label_patch(config: &AgentConfig, node: &Node) -> Option<Value> {
    let missing = |wanted: BTreeMap<String, String>, present: Option<&BTreeMap<String, String>>| -> BTreeMap<String, String> {
        let has = |key: &String, value: &String| present.is_some_and(|present| present.get(key) == Some(value));
        wanted.into_iter().filter(|(key, value)| !has(key, value)).collect()
    };
    let labels = missing(own_labels(config), node.metadata.labels.as_ref());
    let annotations = missing(own_annotations(config), node.metadata.annotations.as_ref());
    let is_complete = labels.is_empty() && annotations.is_empty();
    (!is_complete).then(|| json!({"metadata": {"labels": labels, "annotations": annotations}}))
}

/// What a node's status is computed from.
pub struct StatusInput<'a> {
    pub config: &'a AgentConfig,
    pub capacity: Capacity,
    pub info: NodeSystemInfo,
    pub health: &'a Health,
    pub images: Option<Vec<ContainerImage>>,
    /// The status before: whose conditions keep their times, and which fields are not ours.
    pub known: &'a NodeStatus,
    pub now: Timestamp,
}

/// The status of the node.
pub fn status(input: StatusInput<'_>) -> NodeStatus {
    let StatusInput { config, capacity, info, health, images, known, now } = input;
    let allocatable = config.reserve.allocatable(&capacity, &config.eviction);
    let (capacity, allocatable) = with_foreign(amounts(config, &capacity), amounts(config, &allocatable), known);
    let address = |type_: &str, address: String| NodeAddress { type_: type_.to_owned(), address };
    NodeStatus {
        addresses: Some(
            [
                Some(address("InternalIP", config.node_ip.to_string())),
                config.external_ip.map(|ip| address("ExternalIP", ip.to_string())),
                Some(address("Hostname", config.node_name.clone())),
            ]
            .into_iter()
            .flatten()
            .collect(),
        ),
        allocatable: Some(allocatable),
        capacity: Some(capacity),
        conditions: Some(conditions(health, known, now)),
        daemon_endpoints: Some(NodeDaemonEndpoints {
            kubelet_endpoint: Some(DaemonEndpoint { port: i32::from(config.kubelet_port) }),
        }),
        images: images.or_else(|| known.images.clone()),
        node_info: Some(info),
        ..known.clone()
    }
}

fn amounts(config: &AgentConfig, capacity: &Capacity) -> BTreeMap<String, Typed> {
    let table = [
        ("cpu", Quantity::from_milli(capacity.cpu_milli, Format::DecimalSi).to_string()),
        ("memory", format!("{}Ki", capacity.memory_bytes >> 10)),
        ("ephemeral-storage", format!("{}Ki", capacity.ephemeral_storage_bytes >> 10)),
        ("pods", config.max_pods.to_string()),
    ];
    let huge = capacity.huge_pages.iter().map(|(name, bytes)| (name.clone(), format!("{}Ki", bytes >> 10)));
    let gpus = (capacity.gpus > 0).then(|| (GPU.to_owned(), capacity.gpus.to_string()));
    let own = table.into_iter().map(|(name, text)| (name.to_owned(), text)).chain(huge).chain(gpus);
    // In the API server's own form, so that what comes back is no change.
    own.map(|(name, text)| (name, Quantity::parse(&text).map_or(Typed(text), Quantity::to_typed))).collect()
}

/// Adds the resources that others have put into the status: extended resources, as an administrator or a device plugin does.
fn with_foreign(
    mut capacity: BTreeMap<String, Typed>,
    mut allocatable: BTreeMap<String, Typed>,
    known: &NodeStatus,
) -> (BTreeMap<String, Typed>, BTreeMap<String, Typed>) {
    for (name, amount) in known.capacity.iter().flatten().filter(|(name, _)| name.contains('/') && *name != GPU) {
        let at_most =
            |given: &&Typed| Quantity::try_from(*given).ok().zip(Quantity::try_from(amount).ok()).is_some_and(|(a, b)| a <= b);
        let given = known.allocatable.as_ref().and_then(|amounts| amounts.get(name)).filter(at_most);
        allocatable.insert(name.clone(), given.unwrap_or(amount).clone());
        capacity.insert(name.clone(), amount.clone());
    }
    (capacity, allocatable)
}

fn conditions(health: &Health, known: &NodeStatus, now: Timestamp) -> Vec<NodeCondition> {
    let pressure = |pressure: Pressure| {
        let is_on = health.pressures.contains(&pressure);
        let (reason, message) = pressure.words(is_on);
        let status = if is_on { "True" } else { "False" };
        (pressure.condition().to_owned(), status, reason.to_owned(), message.to_owned())
    };
    let ready = if health.problems.is_empty() {
        ("Ready".to_owned(), "True", "KubeletReady".to_owned(), "kubelet is posting ready status".to_owned())
    } else {
        ("Ready".to_owned(), "False", "KubeletNotReady".to_owned(), health.problems.join(", "))
    };
    let [memory, disk, pid] = Pressure::ALL.map(pressure);
    let own = [memory, disk, pid, ready];
    let before = known.conditions.as_deref().unwrap_or(&[]);
    let foreign = before.iter().filter(|known| own.iter().all(|(type_, ..)| *type_ != known.type_)).cloned();
    let now = Time(Timestamp::from_second(now.as_second()).unwrap_or(now));
    let conditions = own.iter().map(|(type_, status, reason, message)| {
        let same = before.iter().find(|known| known.type_ == *type_ && known.status == *status);
        NodeCondition {
            type_: type_.clone(),
            status: (*status).to_owned(),
            reason: Some(reason.clone()),
            message: Some(message.clone()),
            last_heartbeat_time: Some(now.clone()),
            last_transition_time: same.and_then(|same| same.last_transition_time.clone()).or_else(|| Some(now.clone())),
        }
    });
    foreign.chain(conditions.collect::<Vec<_>>()).collect()
}

/// Whether two statuses say the same, heartbeats aside.
pub fn says_the_same(one: &NodeStatus, other: &NodeStatus) -> bool {
    let essence = |status: &NodeStatus| {
        let mut status = status.clone();
        for condition in status.conditions.iter_mut().flatten() {
            condition.last_heartbeat_time = None;
        }
        status
    };
    essence(one) == essence(other)
}

/// The patch of a node's status: the fields that the agent owns and that differ.
///
/// # Errors
/// Only when a status does not serialize, which it always does.
pub fn status_patch(known: &NodeStatus, wanted: &NodeStatus) -> Result<Value, serde_json::Error> {
    let (known, wanted) = (serde_json::to_value(known)?, serde_json::to_value(wanted)?);
    let fields = wanted.as_object().into_iter().flatten();
    let mut changed: serde_json::Map<String, Value> = fields
        .filter(|(field, value)| known.get(field.as_str()) != Some(value))
        .map(|(field, value)| (field.clone(), value.clone()))
        .collect();
    // A condition that others keep must not be set back to what it was when it was last read.
    if let Some(Value::Array(conditions)) = changed.get_mut("conditions") {
        let before = known.get("conditions").and_then(Value::as_array);
        conditions.retain(|condition| !before.is_some_and(|before| before.contains(condition)));
    }
    Ok(json!({"status": changed}))
}
