//! The snapshot: every node with the pods on it, kept up to date change by change, and with the pods that were placed but whose
//! binding the cache does not show yet.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Taint};

use super::pod_info::PodInfo;
use super::resources::Resources;
use super::volumes::Lookup;

const ZONE: &str = "topology.kubernetes.io/zone";
const HOSTNAME: &str = "kubernetes.io/hostname";

/// A node and what is placed on it.
#[derive(Debug, Default)]
pub struct NodeInfo {
    /// `None` while only pods are known that name the node.
    pub node: Option<Arc<Node>>,
    pub name: String,
    pub allocatable: Resources,
    pub requested: Resources,
    pub scored: Resources,
    pub is_unschedulable: bool,
    pub taints: Vec<Taint>,
    pub zone: Option<Arc<str>>,
    /// Images on the node, by every name, with their sizes.
    pub images: HashMap<String, i64>,
    pub pods: HashMap<String, Arc<PodInfo>>,
    /// Pods of `pods` that want ports of the host.
    with_ports: Vec<Arc<PodInfo>>,
}

impl NodeInfo {
    fn set_node(&mut self, node: Arc<Node>) {
        let (spec, status) = (node.spec.as_ref(), node.status.as_ref());
        self.allocatable = Resources::parse(status.and_then(|status| status.allocatable.as_ref()));
        self.is_unschedulable = spec.and_then(|spec| spec.unschedulable).unwrap_or(false);
        self.taints = spec.and_then(|spec| spec.taints.clone()).unwrap_or_default();
        self.images.clear();
        for image in status.iter().filter_map(|status| status.images.as_ref()).flatten() {
            for name in image.names.iter().flatten() {
                self.images.insert(name.clone(), image.size_bytes.unwrap_or(0));
            }
        }
        self.node = Some(node);
        self.zone = self.label(ZONE).map(Into::into);
    }

    /// A label of the node.
    pub fn label(&self, key: &str) -> Option<&str> {
        let labels = self.node.as_ref()?.metadata.labels.as_ref();
        let value = labels.and_then(|labels| labels.get(key)).map(String::as_str);
        // A node without the label is a host of its own all the same.
        if key == HOSTNAME { value.or(Some(&self.name)) } else { value }
    }

    /// Whether a pod on the node has a port that collides with one of these.
    pub fn has_port_conflict(&self, pod: &PodInfo) -> bool {
        let taken = self.with_ports.iter().flat_map(|pod| &pod.host_ports);
        !pod.host_ports.is_empty() && taken.into_iter().any(|port| pod.host_ports.iter().any(|wanted| wanted.collides(port)))
    }

    fn add(&mut self, pod: Arc<PodInfo>) {
        self.requested.add(&pod.requests);
        self.scored.add(&pod.scored);
        if !pod.host_ports.is_empty() {
            self.with_ports.push(Arc::clone(&pod));
        }
        self.pods.insert(pod.uid().to_owned(), pod);
    }

    fn remove(&mut self, uid: &str) -> Option<Arc<PodInfo>> {
        let pod = self.pods.remove(uid)?;
        self.requested.subtract(&pod.requests);
        self.scored.subtract(&pod.scored);
        self.with_ports.retain(|other| other.uid() != uid);
        Some(pod)
    }
}

/// How many pods of one owner are where.
#[derive(Debug, Default)]
pub struct Spread {
    pub on_node: HashMap<usize, i64>,
    pub in_zone: HashMap<Arc<str>, i64>,
}

/// Labels of namespaces, by which terms of affinity select them.
#[derive(Debug, Default)]
pub struct Namespaces(HashMap<String, BTreeMap<String, String>>);

impl Namespaces {
    /// The labels of a namespace that is known.
    pub fn labels(&self, namespace: &str) -> Option<&BTreeMap<String, String>> {
        self.0.get(namespace)
    }

    /// Notes the labels of a namespace; whether they are new.
    pub fn set(&mut self, namespace: &str, labels: BTreeMap<String, String>) -> bool {
        let is_new = self.0.get(namespace) != Some(&labels);
        if is_new {
            self.0.insert(namespace.to_owned(), labels);
        }
        is_new
    }

    /// Forgets a namespace.
    pub fn remove(&mut self, namespace: &str) {
        self.0.remove(namespace);
    }
}

/// All nodes. Slots are stable while a node or pods on it are known.
#[derive(Debug, Default)]
pub struct Snapshot {
    slots: Vec<NodeInfo>,
    by_name: HashMap<String, usize>,
    /// Slots that hold a node.
    live: Vec<usize>,
    /// The slot of each pod.
    placed: HashMap<String, usize>,
    owners: HashMap<Arc<str>, Spread>,
    /// Pods with required anti-affinity, which every later pod must respect.
    guarded: HashMap<String, usize>,
    /// Pods that are drawn to others or would like to stay away from them, which counts in scores.
    drawn: HashMap<String, usize>,
    pub namespaces: Namespaces,
    /// Nodes that hold each image.
    image_nodes: HashMap<String, i64>,
    storage: StorageSlot,
}

/// Where claims and volumes are looked up; nowhere in a snapshot of nodes alone.
#[derive(Default)]
struct StorageSlot(Option<Arc<dyn Lookup>>);

impl std::fmt::Debug for StorageSlot {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(if self.0.is_some() { "storage" } else { "no storage" })
    }
}

impl Snapshot {
    /// A snapshot without nodes that looks up claims and volumes there.
    pub fn with_storage(storage: Arc<dyn Lookup>) -> Self {
        Self { storage: StorageSlot(Some(storage)), ..Self::default() }
    }

    /// Where claims and volumes are looked up.
    pub fn storage(&self) -> Option<&dyn Lookup> {
        self.storage.0.as_deref()
    }

    /// The slots of nodes that exist.
    pub fn live(&self) -> &[usize] {
        &self.live
    }

    /// The node in a slot.
    pub fn node(&self, slot: usize) -> &NodeInfo {
        &self.slots[slot]
    }

    /// All nodes that exist.
    pub fn nodes(&self) -> impl Iterator<Item = &NodeInfo> {
        self.live.iter().map(|slot| &self.slots[*slot])
    }

    /// The slot of a node that exists.
    pub fn find(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied().filter(|slot| self.slots[*slot].node.is_some())
    }

    /// Where the pods of an owner are.
    pub fn spread_of(&self, owner: &str) -> Option<&Spread> {
        self.owners.get(owner)
    }

    /// Pods with required anti-affinity, and the nodes that they are on.
    pub fn guarded(&self) -> impl Iterator<Item = (&PodInfo, &NodeInfo)> {
        self.guarded.iter().filter_map(|(uid, slot)| Some((&**self.slots[*slot].pods.get(uid)?, &self.slots[*slot])))
    }

    /// Pods with affinity or preferences, and the nodes that they are on.
    pub fn drawn(&self) -> impl Iterator<Item = (&PodInfo, &NodeInfo)> {
        self.drawn.iter().filter_map(|(uid, slot)| Some((&**self.slots[*slot].pods.get(uid)?, &self.slots[*slot])))
    }

    /// Whether any pod has affinity or preferences.
    pub fn has_drawn(&self) -> bool {
        !self.drawn.is_empty()
    }

    /// How many nodes hold an image.
    pub fn nodes_with_image(&self, image: &str) -> i64 {
        self.image_nodes.get(image).copied().unwrap_or(0)
    }

    fn slot(&mut self, name: &str) -> usize {
        if let Some(slot) = self.by_name.get(name) {
            return *slot;
        }
        self.slots.push(NodeInfo { name: name.to_owned(), ..NodeInfo::default() });
        self.by_name.insert(name.to_owned(), self.slots.len() - 1);
        self.slots.len() - 1
    }

    /// Adds or changes a node.
    pub fn set_node(&mut self, node: Arc<Node>) {
        let slot = self.slot(node.metadata.name.as_deref().unwrap_or(""));
        self.count_images(slot, -1);
        let zone = self.slots[slot].zone.clone();
        if self.slots[slot].node.is_none() {
            self.live.push(slot);
        }
        self.slots[slot].set_node(node);
        self.count_images(slot, 1);
        if self.slots[slot].zone != zone {
            self.move_zone(slot, zone.as_ref());
        }
    }

    /// Forgets a node; pods on it are kept until they are deleted.
    pub fn remove_node(&mut self, name: &str) {
        let Some(slot) = self.by_name.get(name).copied() else { return };
        self.count_images(slot, -1);
        self.live.retain(|live| *live != slot);
        let info = &mut self.slots[slot];
        (info.node, info.allocatable) = (None, Resources::default());
        info.images.clear();
    }

    fn count_images(&mut self, slot: usize, by: i64) {
        for image in self.slots[slot].images.keys() {
            let count = self.image_nodes.entry(image.clone()).or_default();
            *count += by;
            if *count <= 0 {
                self.image_nodes.remove(image);
            }
        }
    }

    fn move_zone(&mut self, slot: usize, from: Option<&Arc<str>>) {
        let to = self.slots[slot].zone.clone();
        for pod in self.slots[slot].pods.values() {
            let Some(spread) = pod.owner.as_ref().and_then(|owner| self.owners.get_mut(owner)) else { continue };
            for (zone, by) in [(from, -1), (to.as_ref(), 1)] {
                if let Some(zone) = zone {
                    *spread.in_zone.entry(Arc::clone(zone)).or_default() += by;
                }
            }
        }
    }

    /// The node of a placed pod.
    pub fn node_of(&self, uid: &str) -> Option<&NodeInfo> {
        self.placed.get(uid).map(|slot| &self.slots[*slot])
    }

    /// The placed pod of a uid.
    pub fn pod(&self, uid: &str) -> Option<&Arc<PodInfo>> {
        self.node_of(uid)?.pods.get(uid)
    }

    /// Places a pod on a node, or changes it there.
    pub fn place(&mut self, pod: Arc<PodInfo>, node: &str) {
        self.remove_pod(pod.uid());
        let slot = self.slot(node);
        self.placed.insert(pod.uid().to_owned(), slot);
        if !pod.anti_affinity.is_empty() {
            self.guarded.insert(pod.uid().to_owned(), slot);
        }
        if !pod.affinity.is_empty() || !pod.preferred.is_empty() {
            self.drawn.insert(pod.uid().to_owned(), slot);
        }
        self.count_owner(&pod, slot, 1);
        self.slots[slot].add(pod);
    }

    /// Takes a pod off its node; whether it was on one.
    pub fn remove_pod(&mut self, uid: &str) -> bool {
        let Some(slot) = self.placed.remove(uid) else { return false };
        self.guarded.remove(uid);
        self.drawn.remove(uid);
        if let Some(pod) = self.slots[slot].remove(uid) {
            self.count_owner(&pod, slot, -1);
        }
        true
    }

    fn count_owner(&mut self, pod: &PodInfo, slot: usize, by: i64) {
        let Some(owner) = &pod.owner else { return };
        let spread = self.owners.entry(Arc::clone(owner)).or_default();
        let count = spread.on_node.entry(slot).or_default();
        *count += by;
        if *count <= 0 {
            spread.on_node.remove(&slot);
        }
        if let Some(zone) = &self.slots[slot].zone {
            *spread.in_zone.entry(Arc::clone(zone)).or_default() += by;
        }
        if spread.on_node.is_empty() {
            self.owners.remove(owner);
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::{Value, json};

    use super::*;

    pub(in crate::scheduler) fn node(name: &str, cpu: &str, labels: &Value) -> Arc<Node> {
        let value = json!({"metadata": {"name": name, "labels": labels},
            "status": {"allocatable": {"cpu": cpu, "memory": "8Gi", "pods": "110"}}});
        Arc::new(serde_json::from_value(value).unwrap())
    }

    pub(in crate::scheduler) fn pod(name: &str, cpu: &str, extra: &Value) -> Arc<PodInfo> {
        let mut value = json!({"metadata": {"name": name, "uid": name, "namespace": "a", "labels": {"app": "web"}},
            "spec": {"containers": [{"name": "c", "image": "nginx", "resources": {"requests": {"cpu": cpu}}}]}});
        for (key, extra) in extra.as_object().into_iter().flatten() {
            value["spec"][key] = extra.clone();
        }
        Arc::new(PodInfo::new(Arc::new(serde_json::from_value(value).unwrap())))
    }

    #[test]
    fn pods_come_and_go() {
        let mut snapshot = Snapshot::default();
        snapshot.place(pod("early", "500m", &json!({})), "n1");
        assert!(snapshot.find("n1").is_none());
        snapshot.set_node(node("n1", "2", &json!({})));
        let slot = snapshot.find("n1").unwrap();
        assert_eq!(snapshot.node(slot).requested.cpu_millis, 500);
        snapshot.place(pod("early", "700m", &json!({})), "n1");
        assert_eq!((snapshot.node(slot).requested.cpu_millis, snapshot.node(slot).requested.pods), (700, 1));
        assert!(snapshot.remove_pod("early") && !snapshot.remove_pod("early"));
        assert_eq!(snapshot.node(slot).requested.cpu_millis, 0);
        snapshot.remove_node("n1");
        assert!(snapshot.find("n1").is_none() && snapshot.live().is_empty());
    }
}
