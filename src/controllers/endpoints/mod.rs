//! Endpoints and EndpointSlice: which pods serve a Service. It follows upstream's `controller/endpoint` and `endpointslice`, and in
//! [`mirror`] `endpointslicemirroring`.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{Endpoints, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;

use super::expectations::Expectations;
use super::node_lifecycle::{BY_NODE, node_of};
use super::{Context, Controller, Error, Queue, Requeue, Seen, Watches};
use crate::api::selector::label::Selector;
use crate::client::informer::Informer;
use crate::client::{Cached, Client, ClientError, DeleteOptions, ObjectKey};

mod backend;
mod hints;
pub(super) mod mirror;
mod object;
mod slices;
#[cfg(test)]
mod tests;
mod trigger;

use backend::{Backend, NodeView};
use hints::{Mode, ZONE};
pub(super) use slices::SERVICE_NAME;
use slices::{MANAGED_BY, MANAGER, Wishes};
use trigger::TriggerTimes;

const BY_SERVICE: &str = "service";
/// The annotation of Endpoints by which old components elect a leader; no Service stands behind them.
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";

/// The controller of Endpoints and EndpointSlices.
pub(super) fn endpoints(context: &Context) -> Arc<dyn Controller> {
    let informers = &context.config.informers;
    let slices = informers.of::<EndpointSlice>();
    slices.add_index(BY_SERVICE, |slice| service_of(slice, MANAGER).map(|key| key.to_string()).into_iter().collect());
    let pods = informers.of::<Pod>();
    pods.add_index(BY_NODE, node_of);
    Arc::new(EndpointsController {
        services: informers.of(),
        pods,
        nodes: informers.of(),
        endpoints: informers.of(),
        slices,
        client: context.client("endpoint-controller"),
        expectations: Expectations::default(),
        triggers: TriggerTimes::default(),
    })
}

struct EndpointsController {
    services: Arc<Informer<Service>>,
    pods: Arc<Informer<Pod>>,
    nodes: Arc<Informer<Node>>,
    endpoints: Arc<Informer<Endpoints>>,
    slices: Arc<Informer<EndpointSlice>>,
    client: Client,
    expectations: Expectations,
    triggers: TriggerTimes,
}

/// The Service of a slice that this manager made.
fn service_of(slice: &EndpointSlice, manager: &str) -> Option<ObjectKey> {
    let labels = slice.metadata.labels.as_ref()?;
    let is_ours = labels.get(MANAGED_BY).is_some_and(|by| by == manager);
    labels.get(SERVICE_NAME).filter(|_| is_ours).map(|name| ObjectKey::new(slice.namespace(), name))
}

/// The selector of a Service whose endpoints this controller makes.
fn selector(service: &Service) -> Option<Selector> {
    let spec = service.spec.as_ref()?;
    let labels = spec.selector.as_ref().filter(|labels| !labels.is_empty())?;
    (spec.type_.as_deref() != Some("ExternalName")).then(|| Selector::from_labels(labels))
}

fn has_value(map: &Option<BTreeMap<String, String>>, name: &str, value: &str) -> bool {
    map.as_ref().and_then(|map| map.get(name)).is_some_and(|found| found == value)
}

fn zone(node: &Node) -> Option<String> {
    node.metadata.labels.as_ref()?.get(ZONE).filter(|zone| !zone.is_empty()).cloned()
}

impl EndpointsController {
    fn backends(&self, service: &Service, selector: &Selector) -> Vec<Backend> {
        let mut pods = self.pods.in_namespace(service.namespace());
        pods.retain(|pod| selector.matches(&pod.metadata.labels));
        backend::backends(service, &pods, |node| Some(NodeView { zone: zone(&*self.nodes.get("", node)?) }))
    }

    async fn write_endpoints(&self, service: &Service, backends: &[Backend], trigger: Option<&str>) -> Result<(), ClientError> {
        let present = self.endpoints.get(service.namespace(), service.name());
        match object::endpoints(service, backends, present.as_deref(), trigger) {
            None => Ok(()),
            Some(_) if present.is_none() && service.metadata.deletion_timestamp.is_some() => Ok(()),
            Some(wanted) if present.is_none() => self.client.create(&wanted).await.map(drop),
            Some(wanted) => self.client.update(&wanted).await.map(drop),
        }
    }

    async fn write_slices(
        &self,
        key: &ObjectKey,
        service: &Service,
        backends: &[Backend],
        trigger: Option<&str>,
    ) -> Result<(), ClientError> {
        let shares = self.shares(service);
        let wishes = Wishes { shares: shares.as_ref(), trigger };
        let plan = slices::slices(service, backends, &self.slices.by_index(BY_SERVICE, &key.to_string()), wishes);
        write(&self.client, &self.expectations, key, &plan).await
    }

    fn shares(&self, service: &Service) -> Option<BTreeMap<String, f64>> {
        let nodes = (hints::mode(service) == Mode::Auto).then(|| self.nodes.list())?;
        hints::cpu_shares(nodes.iter().map(|node| &**node))
    }

    /// The Service is gone, or has no endpoints of ours any more. Endpoints that somebody else made for a Service without a
    /// selector stay while there is the Service.
    async fn remove_all(&self, key: &ObjectKey, is_gone: bool) -> Result<(), ClientError> {
        self.expectations.forget(key);
        self.triggers.forget(key);
        for slice in self.slices.by_index(BY_SERVICE, &key.to_string()) {
            delete::<EndpointSlice>(&self.client, slice.namespace(), slice.name()).await?;
        }
        let Some(endpoints) = self.endpoints.get(&key.namespace, &key.name) else { return Ok(()) };
        let is_ours = has_value(&endpoints.metadata.labels, object::MANAGED_BY, object::MANAGER);
        let elects = endpoints.metadata.annotations.as_ref().is_some_and(|all| all.contains_key(LEADER));
        if (is_gone || is_ours) && !elects {
            delete::<Endpoints>(&self.client, &key.namespace, &key.name).await?;
        }
        Ok(())
    }
}

/// Performs a plan for slices.
async fn write(client: &Client, expectations: &Expectations, key: &ObjectKey, plan: &slices::Slices) -> Result<(), ClientError> {
    for slice in &plan.create {
        expectations.created(key, &client.create(slice).await?);
    }
    for slice in &plan.update {
        expectations.created(key, &client.update(slice).await?);
    }
    for slice in &plan.delete {
        delete::<EndpointSlice>(client, slice.namespace(), slice.name()).await?;
    }
    Ok(())
}

async fn delete<K: crate::client::ApiObject>(client: &Client, namespace: &str, name: &str) -> Result<(), ClientError> {
    match client.delete::<K>(namespace, name, &DeleteOptions::default()).await {
        Err(error) if !error.is_not_found() => Err(error),
        _ => Ok(()),
    }
}

/// Whether the change of a pod can change what stands behind a Service.
fn matters(seen: &Seen<'_, Pod>) -> bool {
    let (Some(old), Some(new)) = (seen.old, seen.new) else { return true };
    let view = |pod: &Pod| {
        let is_deleting = pod.metadata.deletion_timestamp.is_some();
        (backend::pod_ips(pod), super::pods::is_ready(pod), super::pods::has_ended(pod), is_deleting)
    };
    old.metadata.uid != new.metadata.uid
        || old.metadata.labels != new.metadata.labels
        || view(old) != view(new)
        || old.spec.as_ref().map(|spec| &spec.node_name) != new.spec.as_ref().map(|spec| &spec.node_name)
}

/// Adds the Services that select a pod in any of these states.
fn add_services<'a>(services: &Informer<Service>, states: impl Iterator<Item = &'a Pod> + Clone, queue: &Queue) {
    let Some(namespace) = states.clone().next().map(Cached::namespace) else { return };
    for service in services.in_namespace(namespace) {
        let Some(selector) = selector(&service) else { continue };
        if states.clone().any(|pod| selector.matches(&pod.metadata.labels)) {
            queue.add(ObjectKey::of(&*service));
        }
    }
}

#[async_trait]
impl Controller for EndpointsController {
    fn name(&self) -> &'static str {
        "endpoints"
    }

    fn watch(&self, watches: &mut Watches) {
        watches.on(&self.services, |seen: Seen<'_, Service>, queue: &Queue| {
            seen.newest().into_iter().for_each(|service| queue.add(ObjectKey::of(service)));
        });
        let services = Arc::clone(&self.services);
        watches.on(&self.pods, move |seen: Seen<'_, Pod>, queue: &Queue| {
            if matters(&seen) {
                let states: Vec<&Pod> = seen.states().collect();
                add_services(&services, states.into_iter(), queue);
            }
        });
        let (services, pods) = (Arc::clone(&self.services), Arc::clone(&self.pods));
        watches.on(&self.nodes, move |seen: Seen<'_, Node>, queue: &Queue| {
            // A node that comes, goes or moves to another zone.
            if seen.old.map(zone) != seen.new.map(zone)
                && let Some(node) = seen.newest()
            {
                pods.by_index(BY_NODE, node.name())
                    .iter()
                    .for_each(|pod| add_services(&services, std::iter::once(&**pod), queue));
            }
        });
        watches.on(&self.slices, |seen: Seen<'_, EndpointSlice>, queue: &Queue| {
            seen.states().filter_map(|slice| service_of(slice, MANAGER)).for_each(|key| queue.add(key));
        });
        let services = Arc::clone(&self.services);
        watches.on(&self.endpoints, move |seen: Seen<'_, Endpoints>, queue: &Queue| {
            // Those of others may come before their Service; one of ours whose Service is gone goes.
            let concerns = |endpoints: &&Endpoints| {
                has_value(&endpoints.metadata.labels, object::MANAGED_BY, object::MANAGER)
                    || services.get(endpoints.namespace(), endpoints.name()).is_some()
            };
            seen.newest().filter(concerns).into_iter().for_each(|endpoints| queue.add(ObjectKey::of(endpoints)));
        });
    }

    fn workers(&self) -> usize {
        16
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Requeue, Error> {
        let revision = self.slices.revision();
        let Some(service) = self.services.get(&key.namespace, &key.name) else {
            self.remove_all(key, true).await?;
            return Ok(Requeue::Done);
        };
        let Some(selector) = selector(&service) else {
            self.remove_all(key, false).await?;
            return Ok(Requeue::Done);
        };
        if !self.expectations.are_met(key, revision, std::iter::empty()) {
            // The event that brings the cache up to date comes back here.
            return Ok(Requeue::Done);
        }
        let backends = self.backends(&service, &selector);
        let trigger = self.triggers.next(key, &service, &backends);
        let trigger = trigger.as_deref();
        let slices = self.write_slices(key, &service, &backends, trigger);
        let endpoints = self.write_endpoints(&service, &backends, trigger);
        let (slices, endpoints) = futures_util::future::join(slices, endpoints).await;
        slices?;
        endpoints?;
        Ok(Requeue::Done)
    }
}
