//! The load balancer that is built in: a Service of type LoadBalancer gets the addresses of the nodes that serve it, as with k3s'
//! ServiceLB but without pods; each node's proxy takes what arrives there. Events are those of upstream's service controller.
//!
//! It takes care of Services without a `loadBalancerClass` and of the class `orch.io/node`; `--disable servicelb` turns it off.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{LoadBalancerIngress, Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use parking_lot::Mutex;
use serde_json::json;

use super::endpoints::SERVICE_NAME;
use super::{Context, Controller, Error, Queue, Requeue, Seen, Watches};
use crate::client::informer::Informer;
use crate::client::recorder::{EventType, Recorder, reference};
use crate::client::{Cached, Client, ObjectKey, PatchKind};

mod plan;

use plan::{Address, Balanced, Outcome, view};

const BY_NAME: &str = "service-name";

/// The controller of load balancers.
pub(super) fn service_lb(context: &Context) -> Arc<dyn Controller> {
    let informers = &context.config.informers;
    let slices = informers.of::<EndpointSlice>();
    slices.add_index(BY_NAME, |slice| service_of(slice).map(|key| key.to_string()).into_iter().collect());
    Arc::new(ServiceLb {
        services: informers.of(),
        nodes: informers.of(),
        slices,
        client: context.client("service-lb-controller"),
        recorder: context.recorder("service-controller"),
        is_enabled: context.config.service_lb,
        told: Mutex::default(),
    })
}

struct ServiceLb {
    services: Arc<Informer<Service>>,
    nodes: Arc<Informer<Node>>,
    slices: Arc<Informer<EndpointSlice>>,
    client: Client,
    recorder: Recorder,
    is_enabled: bool,
    /// What each Service was last told of why it waits.
    told: Mutex<HashMap<ObjectKey, String>>,
}

fn service_of(slice: &EndpointSlice) -> Option<ObjectKey> {
    let name = slice.metadata.labels.as_ref()?.get(SERVICE_NAME)?;
    Some(ObjectKey::new(slice.namespace(), name))
}

/// Everything is worked out together: Services compete for the ports of nodes.
fn all() -> ObjectKey {
    ObjectKey::new("", "all")
}

fn ingress(service: &Service) -> &[LoadBalancerIngress] {
    let status = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    status.and_then(|balancer| balancer.ingress.as_deref()).unwrap_or_default()
}

impl ServiceLb {
    /// The nodes that have a ready endpoint of a Service.
    fn serving_nodes(&self, key: &ObjectKey) -> BTreeSet<String> {
        let slices = self.slices.by_index(BY_NAME, &key.to_string());
        let endpoints = slices.iter().flat_map(|slice| slice.endpoints.iter().flatten());
        let ready = endpoints.filter(|one| one.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true));
        ready.filter_map(|endpoint| endpoint.node_name.clone()).collect()
    }

    async fn settle(&self, service: &Service, outcome: &Outcome) -> Result<(), Error> {
        let key = ObjectKey::of(service);
        let about = reference(service);
        if let Some(why) = &outcome.refused {
            let is_news = self.told.lock().insert(key, why.clone()).as_ref() != Some(why);
            if is_news {
                let message = format!("Error syncing load balancer: {why}");
                self.recorder.event(&about, EventType::Warning, "SyncLoadBalancerFailed", message);
            }
        } else {
            self.told.lock().remove(&key);
        }
        let wanted: Vec<LoadBalancerIngress> = outcome.addresses.iter().map(of_address).collect();
        let present = ingress(service);
        if present == wanted {
            return Ok(());
        }
        let (had, has) = (!present.is_empty(), !wanted.is_empty());
        let event = |reason, message| self.recorder.event(&about, EventType::Normal, reason, message);
        match (had, has) {
            (false, true) => event("EnsuringLoadBalancer", "Ensuring load balancer"),
            (true, false) if !outcome.is_balanced => event("DeletingLoadBalancer", "Deleting load balancer"),
            _ => {}
        }
        // Written out: a merge patch with an empty map would leave what is there.
        let meta = &service.metadata;
        let patch = json!({
            "metadata": {"resourceVersion": meta.resource_version, "uid": meta.uid},
            "status": {"loadBalancer": {"ingress": has.then_some(wanted)}},
        });
        self.client.patch::<Service>(service.namespace(), service.name(), Some("status"), PatchKind::Merge, &patch).await?;
        match (had, has) {
            (false, true) => event("EnsuredLoadBalancer", "Ensured load balancer"),
            (true, false) if !outcome.is_balanced => event("DeletedLoadBalancer", "Deleted load balancer"),
            _ => event("UpdatedLoadBalancer", "Updated load balancer with new hosts"),
        }
        Ok(())
    }
}

fn of_address(address: &Address) -> LoadBalancerIngress {
    LoadBalancerIngress { ip: Some(address.to_string()), ip_mode: Some("VIP".to_owned()), ..LoadBalancerIngress::default() }
}

#[async_trait]
impl Controller for ServiceLb {
    fn name(&self) -> &'static str {
        "servicelb"
    }

    fn watch(&self, watches: &mut Watches) {
        if !self.is_enabled {
            return;
        }
        watches.on(&self.services, |seen: Seen<'_, Service>, queue: &Queue| {
            let concerns = |service: &Service| plan::is_ours(service) || !ingress(service).is_empty();
            let same = |old: &Service, new: &Service| old.spec == new.spec && old.status == new.status;
            let is_same = seen.old.zip(seen.new).is_some_and(|(old, new)| same(old, new));
            if !is_same && seen.states().any(concerns) {
                queue.add(all());
            }
        });
        watches.on(&self.nodes, |seen: Seen<'_, Node>, queue: &Queue| {
            if seen.old.map(view) != seen.new.map(view) {
                queue.add(all());
            }
        });
        let services = Arc::clone(&self.services);
        watches.on(&self.slices, move |seen: Seen<'_, EndpointSlice>, queue: &Queue| {
            let service = seen.newest().and_then(service_of).and_then(|key| services.get(&key.namespace, &key.name));
            if service.is_some_and(|service| plan::is_ours(&service) && plan::is_local(&service)) {
                queue.add(all());
            }
        });
    }

    fn workers(&self) -> usize {
        1
    }

    async fn reconcile(&self, _: &ObjectKey) -> Result<Requeue, Error> {
        let services = self.services.list();
        let nodes: Vec<_> = self.nodes.list().iter().map(|node| view(node)).collect();
        let balanced: Vec<Balanced> = (services.iter().filter(|service| plan::is_ours(service)))
            .map(|service| {
                let key = ObjectKey::of(&**service);
                let serving = plan::is_local(service).then(|| self.serving_nodes(&key));
                Balanced { service: Arc::clone(service), key, serving }
            })
            .collect();
        let api_port = self.services.get("default", "kubernetes").as_deref().and_then(plan::target_of_first_port);
        self.told.lock().retain(|key, _| balanced.iter().any(|one| one.key == *key));
        let outcomes = plan::assign(&balanced, &nodes, api_port);
        let mut failed = None;
        for (one, outcome) in balanced.iter().zip(&outcomes) {
            let Some(outcome) = outcome else { continue };
            failed = self.settle(&one.service, outcome).await.err().or(failed);
        }
        let has_type = |service: &Service| service.spec.as_ref().and_then(|spec| spec.type_.as_deref()) == Some("LoadBalancer");
        for service in services.iter().filter(|service| !has_type(service) && !ingress(service).is_empty()) {
            failed = self.settle(service, &Outcome::none()).await.err().or(failed);
        }
        failed.map_or(Ok(Requeue::Done), Err)
    }
}
