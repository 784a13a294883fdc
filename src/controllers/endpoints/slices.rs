//! The EndpointSlices of a Service (upstream's `k8s.io/endpointslice` reconciler).

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort as SlicePort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::super::owners;
use super::backend::{Backend, Port, families, is_headless, pod_reference, publishes_not_ready};
use super::hints::{self, Mode};
use super::trigger::{self, HEADLESS};

/// Endpoints in one slice.
const SLICE: usize = 100;
/// The label by which a slice names its Service.
pub(in crate::controllers) const SERVICE_NAME: &str = "kubernetes.io/service-name";
pub(super) const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
pub(super) const MANAGER: &str = "endpointslice-controller.k8s.io";

/// What is to be done with slices.
#[derive(Debug, Default)]
pub(super) struct Slices {
    pub(super) create: Vec<EndpointSlice>,
    pub(super) update: Vec<EndpointSlice>,
    pub(super) delete: Vec<Arc<EndpointSlice>>,
}

impl Slices {
    /// What would be made takes the place of what would be removed, and keeps its name.
    pub(super) fn recycle(&mut self) {
        let mut kept = Vec::new();
        for old in self.delete.drain(..) {
            let fits = |new: &EndpointSlice| new.address_type == old.address_type;
            match self.create.iter().position(fits) {
                Some(at) => {
                    let mut new = self.create.swap_remove(at);
                    new.metadata.generate_name.clone_from(&old.metadata.generate_name);
                    new.metadata.name.clone_from(&old.metadata.name);
                    new.metadata.resource_version.clone_from(&old.metadata.resource_version);
                    self.update.push(new);
                }
                None => kept.push(old),
            }
        }
        self.delete = kept;
    }
}

/// What the slices of a Service are made for, beside its pods.
#[derive(Clone, Copy, Default)]
pub(super) struct Wishes<'a> {
    /// The share of each zone in the CPUs of the cluster, for the topology mode Auto.
    pub(super) shares: Option<&'a BTreeMap<String, f64>>,
    /// When what is told happened.
    pub(super) trigger: Option<&'a str>,
}

/// Compares the slices that a Service has with those that it should have. An endpoint stays in its slice, so that a change touches
/// few slices.
pub(super) fn slices(service: &Service, backends: &[Backend], existing: &[Arc<EndpointSlice>], wishes: Wishes<'_>) -> Slices {
    let families = families(service);
    let mut plan = Slices::default();
    let is_owned = |slice: &EndpointSlice| {
        owners::controller_of(&slice.metadata).is_some_and(|owner| Some(&owner.uid) == service.metadata.uid.as_ref())
    };
    let (ours, stale): (Vec<_>, Vec<_>) =
        existing.iter().cloned().partition(|slice| families.contains(&slice.address_type.as_str()) && is_owned(slice));
    for family in families {
        let ours: Vec<Arc<EndpointSlice>> = ours.iter().filter(|slice| slice.address_type == family).cloned().collect();
        let mut of_family = of_family(service, family, backends, &ours, wishes);
        of_family.recycle();
        plan.create.append(&mut of_family.create);
        plan.update.append(&mut of_family.update);
        plan.delete.append(&mut of_family.delete);
    }
    plan.delete.extend(stale);
    if service.metadata.deletion_timestamp.is_some() {
        plan.create.clear();
    }
    plan
}

/// The endpoints of one group, by the uid of their pods.
#[derive(Default)]
struct Group {
    /// In the order of the Service.
    ports: Vec<Port>,
    endpoints: HashMap<String, Endpoint>,
}

fn groups(service: &Service, family: &str, backends: &[Backend], wishes: Wishes<'_>) -> BTreeMap<Vec<Port>, Group> {
    let publish = publishes_not_ready(service);
    let mut groups: BTreeMap<Vec<Port>, Group> = BTreeMap::new();
    for backend in backends {
        // A pod on a node that is not there serves nobody, unless it is to be published whatever its state.
        let Some(ip) = backend.ip(family).filter(|_| publish || backend.node.is_some()) else { continue };
        let group = groups.entry(sorted(backend.ports.clone())).or_default();
        if group.ports.is_empty() {
            group.ports.clone_from(&backend.ports);
        }
        group.endpoints.insert(backend.pod.metadata.uid.clone().unwrap_or_default(), endpoint(backend, ip));
    }
    let mode = hints::mode(service);
    if mode != Mode::Anywhere {
        let mut all: Vec<&mut Endpoint> = groups.values_mut().flat_map(|group| group.endpoints.values_mut()).collect();
        all.sort_by(|left, right| left.addresses.cmp(&right.addresses));
        hints::apply(mode, &mut all, wishes.shares);
    }
    groups
}

fn of_family(
    service: &Service,
    family: &str,
    backends: &[Backend],
    existing: &[Arc<EndpointSlice>],
    wishes: Wishes<'_>,
) -> Slices {
    let mut plan = Slices::default();
    let mut by_ports: BTreeMap<Vec<Port>, Vec<&Arc<EndpointSlice>>> = BTreeMap::new();
    for slice in existing {
        by_ports.entry(ports_of(slice)).or_default().push(slice);
    }
    for (ports, mut group) in groups(service, family, backends, wishes) {
        let mut present = by_ports.remove(&ports).unwrap_or_default();
        present.sort_by_key(|slice| std::cmp::Reverse(slice.endpoints.as_ref().map_or(0, Vec::len)));
        let kept: Vec<Vec<Endpoint>> = present.iter().map(|slice| keep(slice, &mut group.endpoints)).collect();
        let mut rest: Vec<Endpoint> = group.endpoints.into_values().collect();
        rest.sort_by(|left, right| left.addresses.cmp(&right.addresses));
        for (slice, mut kept) in present.into_iter().zip(kept) {
            let room = SLICE.saturating_sub(kept.len()).min(rest.len());
            kept.extend(rest.drain(..room));
            if kept.is_empty() {
                plan.delete.push(Arc::clone(slice));
            } else {
                plan.update.extend(changed(service, slice, kept, wishes));
            }
        }
        while !rest.is_empty() {
            let part = rest.drain(..SLICE.min(rest.len())).collect();
            plan.create.push(new_slice(service, family, &group.ports, part, wishes));
        }
    }
    plan.delete.extend(by_ports.into_values().flatten().cloned());
    // A Service without endpoints still has a slice, which says so.
    if plan.delete.len() == existing.len() && plan.create.is_empty() {
        let is_placeholder =
            |slice: &Arc<EndpointSlice>| slice.endpoints.as_ref().is_none_or(Vec::is_empty) && ports_of(slice).is_empty();
        match plan.delete.iter().position(is_placeholder) {
            Some(at) => {
                let placeholder = plan.delete.swap_remove(at);
                plan.update.extend(changed(service, &placeholder, Vec::new(), wishes));
            }
            None => plan.create.push(new_slice(service, family, &[], Vec::new(), wishes)),
        }
    }
    plan
}

fn endpoint(backend: &Backend, ip: &str) -> Endpoint {
    Endpoint {
        addresses: vec![ip.to_owned()],
        conditions: Some(EndpointConditions {
            ready: Some(backend.is_ready),
            serving: Some(backend.is_serving),
            terminating: Some(backend.is_terminating),
        }),
        hostname: backend.hostname.clone(),
        node_name: backend.node_name().map(str::to_owned),
        target_ref: Some(pod_reference(&backend.pod)),
        zone: backend.node.as_ref().and_then(|node| node.zone.clone()),
        ..Endpoint::default()
    }
}

fn sorted(mut ports: Vec<Port>) -> Vec<Port> {
    ports.sort();
    ports
}

/// The ports of a slice, in an order by which slices compare.
pub(super) fn ports_of(slice: &EndpointSlice) -> Vec<Port> {
    let port = |port: &SlicePort| Port {
        name: port.name.clone().unwrap_or_default(),
        protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
        number: port.port.unwrap_or(0),
        app_protocol: port.app_protocol.clone(),
    };
    sorted(slice.ports.iter().flatten().map(port).collect())
}

/// Ports in the form of a slice.
pub(super) fn slice_ports(ports: &[Port]) -> Option<Vec<SlicePort>> {
    let port = |port: &Port| SlicePort {
        name: Some(port.name.clone()),
        port: Some(port.number),
        protocol: Some(port.protocol.clone()),
        app_protocol: port.app_protocol.clone(),
    };
    (!ports.is_empty()).then(|| ports.iter().map(port).collect())
}

/// Takes out of `wanted`, in their new form, the endpoints that a slice has already.
fn keep(slice: &EndpointSlice, wanted: &mut HashMap<String, Endpoint>) -> Vec<Endpoint> {
    let uids = slice.endpoints.iter().flatten().filter_map(|endpoint| endpoint.target_ref.as_ref()?.uid.as_ref());
    uids.filter_map(|uid| wanted.remove(uid)).collect()
}

fn slice_labels(service: &Service) -> BTreeMap<String, String> {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.remove(HEADLESS);
    if is_headless(service) {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    labels.insert(SERVICE_NAME.to_owned(), service.metadata.name.clone().unwrap_or_default());
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    labels
}

fn changed(service: &Service, slice: &EndpointSlice, endpoints: Vec<Endpoint>, wishes: Wishes<'_>) -> Option<EndpointSlice> {
    let labels = slice_labels(service);
    if slice.endpoints.as_deref().unwrap_or_default() == endpoints && slice.metadata.labels.as_ref() == Some(&labels) {
        return None;
    }
    let mut slice = slice.clone();
    slice.metadata.annotations = annotations(slice.metadata.annotations.take().unwrap_or_default(), wishes);
    (slice.endpoints, slice.metadata.labels) = (Some(endpoints), Some(labels));
    Some(slice)
}

fn annotations(present: BTreeMap<String, String>, wishes: Wishes<'_>) -> Option<BTreeMap<String, String>> {
    Some(trigger::annotate(present, wishes.trigger)).filter(|all| !all.is_empty())
}

fn new_slice(service: &Service, family: &str, ports: &[Port], endpoints: Vec<Endpoint>, wishes: Wishes<'_>) -> EndpointSlice {
    let metadata = ObjectMeta {
        generate_name: Some(format!("{}-", service.metadata.name.as_deref().unwrap_or(""))),
        namespace: service.metadata.namespace.clone(),
        labels: Some(slice_labels(service)),
        annotations: annotations(BTreeMap::new(), wishes),
        owner_references: Some(vec![owners::controller_reference(service)]),
        ..ObjectMeta::default()
    };
    EndpointSlice { address_type: family.to_owned(), endpoints: Some(endpoints), metadata, ports: slice_ports(ports) }
}
