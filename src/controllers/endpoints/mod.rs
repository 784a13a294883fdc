//! Endpoints and EndpointSlice: which pods serve a Service. It follows upstream's `controller/endpoint` and `endpointslice`.

use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{Endpoints, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;

use super::expectations::Expectations;
use super::{Context, Controller, Error, Queue, Requeue, Seen, Watches};
use crate::api::selector::label::Selector;
use crate::client::informer::Informer;
use crate::client::{Cached, Client, ClientError, DeleteOptions, ObjectKey};

mod plan;

use plan::{Backend, MANAGED_BY, MANAGER, SERVICE_NAME};

const BY_SERVICE: &str = "service";
const ZONE: &str = "topology.kubernetes.io/zone";

/// The controller of Endpoints and EndpointSlices.
pub(super) fn endpoints(context: &Context) -> Arc<dyn Controller> {
    let informers = &context.config.informers;
    let slices = informers.of::<EndpointSlice>();
    slices.add_index(BY_SERVICE, |slice| owned_service(slice).map(|key| key.to_string()).into_iter().collect());
    Arc::new(EndpointsController {
        services: informers.of(),
        pods: informers.of(),
        nodes: informers.of(),
        endpoints: informers.of(),
        slices,
        client: context.client("endpoint-controller"),
        expectations: Expectations::default(),
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
}

/// The Service of a slice that this controller made.
fn owned_service(slice: &EndpointSlice) -> Option<ObjectKey> {
    let labels = slice.metadata.labels.as_ref()?;
    let is_ours = labels.get(MANAGED_BY).is_some_and(|manager| manager == MANAGER);
    labels.get(SERVICE_NAME).filter(|_| is_ours).map(|name| ObjectKey::new(slice.namespace(), name))
}

/// The selector of a Service whose endpoints this controller makes.
fn selector(service: &Service) -> Option<Selector> {
    let spec = service.spec.as_ref()?;
    let labels = spec.selector.as_ref().filter(|labels| !labels.is_empty())?;
    (spec.type_.as_deref() != Some("ExternalName")).then(|| Selector::from_labels(labels))
}

impl EndpointsController {
    fn backends(&self, service: &Service, selector: &Selector) -> Vec<Backend> {
        let mut pods = self.pods.in_namespace(service.namespace());
        pods.retain(|pod| selector.matches(&pod.metadata.labels));
        plan::backends(service, &pods, |node| {
            self.nodes.get("", node)?.metadata.labels.as_ref().and_then(|labels| labels.get(ZONE)).cloned()
        })
    }

    async fn write_endpoints(&self, service: &Service, backends: &[Backend]) -> Result<(), ClientError> {
        let mut wanted = plan::endpoints(service, backends);
        let Some(present) = self.endpoints.get(service.namespace(), service.name()) else {
            return self.client.create(&wanted).await.map(drop);
        };
        if present.subsets == wanted.subsets && present.metadata.labels == wanted.metadata.labels {
            return Ok(());
        }
        wanted.metadata.resource_version.clone_from(&present.metadata.resource_version);
        wanted.metadata.annotations.clone_from(&present.metadata.annotations);
        self.client.update(&wanted).await.map(drop)
    }

    async fn write_slices(&self, key: &ObjectKey, service: &Service, backends: &[Backend]) -> Result<(), ClientError> {
        let plan = plan::slices(service, backends, &self.slices.by_index(BY_SERVICE, &key.to_string()));
        for slice in &plan.create {
            let created = self.client.create(slice).await?;
            self.expectations.created(key, &created);
        }
        for slice in &plan.update {
            let updated = self.client.update(slice).await?;
            self.expectations.created(key, &updated);
        }
        for slice in &plan.delete {
            delete::<EndpointSlice>(&self.client, slice.namespace(), slice.name()).await?;
        }
        Ok(())
    }

    async fn remove_all(&self, key: &ObjectKey) -> Result<(), ClientError> {
        self.expectations.forget(key);
        for slice in self.slices.by_index(BY_SERVICE, &key.to_string()) {
            delete::<EndpointSlice>(&self.client, slice.namespace(), slice.name()).await?;
        }
        if self.endpoints.get(&key.namespace, &key.name).is_some() {
            delete::<Endpoints>(&self.client, &key.namespace, &key.name).await?;
        }
        Ok(())
    }
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
        let status = pod.status.as_ref();
        let ip = status.and_then(|status| status.pod_ip.clone());
        (ip, super::pods::is_ready(pod), super::pods::is_finished(pod), pod.metadata.deletion_timestamp.is_some())
    };
    old.metadata.uid != new.metadata.uid
        || old.metadata.labels != new.metadata.labels
        || view(old) != view(new)
        || old.spec.as_ref().map(|spec| &spec.node_name) != new.spec.as_ref().map(|spec| &spec.node_name)
}

#[async_trait]
impl Controller for EndpointsController {
    fn name(&self) -> &'static str {
        "endpoints"
    }

    fn watch(&self, watches: &mut Watches) {
        watches.after(&self.nodes);
        watches.on(&self.services, |seen: Seen<'_, Service>, queue: &Queue| {
            seen.newest().into_iter().for_each(|service| queue.add(ObjectKey::of(service)));
        });
        let services = Arc::clone(&self.services);
        watches.on(&self.pods, move |seen: Seen<'_, Pod>, queue: &Queue| {
            if !matters(&seen) {
                return;
            }
            for service in seen.newest().map(|pod| services.in_namespace(pod.namespace())).into_iter().flatten() {
                let Some(selector) = selector(&service) else { continue };
                if seen.states().any(|pod| selector.matches(&pod.metadata.labels)) {
                    queue.add(ObjectKey::of(&*service));
                }
            }
        });
        watches.on(&self.slices, |seen: Seen<'_, EndpointSlice>, queue: &Queue| {
            seen.states().filter_map(owned_service).for_each(|key| queue.add(key));
        });
        let services = Arc::clone(&self.services);
        watches.on(&self.endpoints, move |seen: Seen<'_, Endpoints>, queue: &Queue| {
            let of_service = seen.newest().filter(|endpoints| services.get(endpoints.namespace(), endpoints.name()).is_some());
            of_service.into_iter().for_each(|endpoints| queue.add(ObjectKey::of(endpoints)));
        });
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Requeue, Error> {
        let revision = self.slices.revision();
        let Some(service) = self.services.get(&key.namespace, &key.name) else {
            self.remove_all(key).await?;
            return Ok(Requeue::Done);
        };
        let Some(selector) = selector(&service).filter(|_| service.metadata.deletion_timestamp.is_none()) else {
            return Ok(Requeue::Done);
        };
        if !self.expectations.are_met(key, revision, std::iter::empty()) {
            // The event that brings the cache up to date comes back here.
            return Ok(Requeue::Done);
        }
        let backends = self.backends(&service, &selector);
        self.write_slices(key, &service, &backends).await?;
        self.write_endpoints(&service, &backends).await?;
        Ok(Requeue::Done)
    }
}
