//! Repair of Service addresses: each address of a Service has its IPAddress, and each IPAddress its Service (upstream's
//! `ipallocator/controller`). A Service and its IPAddress are written in one transaction; this heals what others changed.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::networking::v1::{IPAddress, IPAddressSpec, ParentReference, ServiceCIDR};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::service_cidr::{MANAGED_BY, MANAGER, is_allocated, networks};
use super::{Context, Controller, Error, Queue, Requeue, Seen, Watches};
use crate::client::informer::Informer;
use crate::client::recorder::{EventType, Recorder, reference};
use crate::client::{Cached, Client, ClientError, DeleteOptions, ObjectKey, Preconditions};
use crate::rt::clock::SharedClock;

const FAMILY: &str = "ipaddress.kubernetes.io/ip-family";
/// Time after which a Service and its address are in the caches.
const SETTLED: Duration = Duration::from_secs(1);
/// Age from which an address without a Service counts as leaked.
const GRACE: Duration = Duration::from_secs(60);

/// The controller that repairs addresses. A key is a Service, or an IPAddress, which has no namespace.
pub(super) fn address_repair(context: &Context) -> Arc<dyn Controller> {
    let informers = &context.config.informers;
    Arc::new(AddressRepair {
        services: informers.of(),
        addresses: informers.of(),
        ranges: informers.of(),
        client: context.client("ipallocator-repair-controller"),
        recorder: context.recorder("ipallocator-repair-controller"),
        clock: Arc::clone(&context.config.clock),
    })
}

struct AddressRepair {
    services: Arc<Informer<Service>>,
    addresses: Arc<Informer<IPAddress>>,
    ranges: Arc<Informer<ServiceCIDR>>,
    client: Client,
    recorder: Recorder,
    clock: SharedClock,
}

/// The addresses of a Service that has some.
fn cluster_ips(service: &Service) -> Vec<&str> {
    let ips = service.spec.iter().flat_map(|spec| spec.cluster_ips.iter().flatten());
    ips.map(String::as_str).filter(|ip| !matches!(*ip, "" | "None")).collect()
}

fn family(ip: IpAddr) -> &'static str {
    if ip.is_ipv4() { "IPv4" } else { "IPv6" }
}

fn is_of(address: &IPAddress, service: &Service) -> bool {
    let parent = &address.spec.parent_ref;
    is_of_service(parent)
        && parent.namespace == service.metadata.namespace
        && Some(&parent.name) == service.metadata.name.as_ref()
}

fn is_of_service(parent: &ParentReference) -> bool {
    parent.group.as_deref().unwrap_or("").is_empty() && parent.resource == "services"
}

fn has_labels(address: &IPAddress, ip: IpAddr) -> bool {
    let labels = address.metadata.labels.as_ref();
    let label = |name: &str| labels.and_then(|labels| labels.get(name)).map(String::as_str);
    label(FAMILY) == Some(family(ip)) && label(MANAGED_BY) == Some(MANAGER)
}

fn new_address(ip: IpAddr, service: &Service) -> IPAddress {
    let labels = [(FAMILY, family(ip)), (MANAGED_BY, MANAGER)];
    IPAddress {
        metadata: ObjectMeta {
            name: Some(ip.to_string()),
            labels: Some(labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into()),
            ..ObjectMeta::default()
        },
        spec: IPAddressSpec {
            parent_ref: ParentReference {
                group: Some(String::new()),
                resource: "services".to_owned(),
                namespace: service.metadata.namespace.clone(),
                name: service.metadata.name.clone().unwrap_or_default(),
            },
        },
    }
}

impl AddressRepair {
    fn warn(&self, service: &Service, reason: &str, message: String) {
        tracing::warn!(service = %ObjectKey::of(service), message, "a Service's address");
        self.recorder.event(&reference(service), EventType::Warning, reason, message);
    }

    async fn delete(&self, address: &IPAddress) -> Result<(), ClientError> {
        let preconditions = Some(Preconditions { uid: address.metadata.uid.clone(), resource_version: None });
        let options = DeleteOptions { preconditions, ..DeleteOptions::default() };
        match self.client.delete::<IPAddress>("", address.name(), &options).await {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }

    async fn recreate(&self, address: &IPAddress, ip: IpAddr, service: &Service) -> Result<(), ClientError> {
        self.delete(address).await?;
        self.client.create(&new_address(ip, service)).await.map(drop)
    }

    async fn check_service(&self, service: &Service) -> Result<(), ClientError> {
        for text in cluster_ips(service) {
            let Ok(ip) = text.parse::<IpAddr>() else {
                let message = format!("Cluster IP {text} is not a valid IP; please recreate Service");
                self.warn(service, "ClusterIPNotValid", message);
                continue;
            };
            let family = family(ip);
            if !self.ranges.list().iter().any(|range| networks(range).iter().any(|network| network.contains(&ip))) {
                let message =
                    format!("Cluster IP [{family}]: {ip} is not within any configured Service CIDR; please recreate service");
                self.warn(service, "ClusterIPOutOfRange", message);
                continue;
            }
            self.check_address(service, ip).await?;
        }
        Ok(())
    }

    async fn check_address(&self, service: &Service, ip: IpAddr) -> Result<(), ClientError> {
        let (family, key) = (family(ip), ObjectKey::of(service));
        let Some(address) = self.addresses.get("", &ip.to_string()) else {
            // Caches may be behind, of Services or of addresses: the API has the last word.
            let newest = match self.client.get::<Service>(service.namespace(), service.name()).await {
                Err(error) if error.is_not_found() => return Ok(()),
                other => other?,
            };
            if newest.metadata.deletion_timestamp.is_some() || !cluster_ips(&newest).contains(&ip.to_string().as_str()) {
                return Ok(());
            }
            let created = self.client.create(&new_address(ip, service)).await;
            return match created {
                Err(error) if error.is_already_exists() => Ok(()),
                Err(error) => Err(error),
                Ok(_) => {
                    let message = format!("Cluster IP [{family}]: {ip} is not allocated; repairing");
                    self.warn(service, "ClusterIPNotAllocated", message);
                    Ok(())
                }
            };
        };
        if !is_of(&address, service) {
            let parent = &address.spec.parent_ref;
            let other = self.services.get(parent.namespace.as_deref().unwrap_or(""), &parent.name);
            let other = other.filter(|other| is_of_service(parent) && cluster_ips(other).contains(&ip.to_string().as_str()));
            if other.is_some() {
                let message = format!("Cluster IP [{family}]:{ip} was assigned to multiple services; please recreate service");
                self.warn(service, "ClusterIPAlreadyAllocated", message);
                return Ok(());
            }
            let message = format!("the ClusterIP [{family}]: {ip} for Service {key} has a wrong reference; repairing");
            self.warn(service, "ClusterIPNotAllocated", message);
            return self.recreate(&address, ip, service).await;
        }
        if !has_labels(&address, ip) {
            return self.recreate(&address, ip, service).await;
        }
        Ok(())
    }

    async fn check_orphan(&self, address: &IPAddress) -> Result<Requeue, ClientError> {
        let (parent, name) = (&address.spec.parent_ref, address.name());
        let warn = |reason: &str, message: String| {
            tracing::warn!(address = name, message, "a Service's address");
            self.recorder.event(&reference(address), EventType::Warning, reason, message);
        };
        if !is_of_service(parent) {
            let message = format!("IPAddress {name} appears to have been modified, not referencing a Service: cleaning up");
            warn("IPAddressNotAllocated", message);
            return self.delete(address).await.map(|()| Requeue::Done);
        }
        let namespace = parent.namespace.as_deref().unwrap_or("");
        let Some(service) = self.services.get(namespace, &parent.name) else {
            let created = address.metadata.creation_timestamp.as_ref().map_or(self.clock.now(), |time| time.0);
            let age = Duration::try_from(self.clock.now().duration_since(created)).unwrap_or(Duration::ZERO);
            if let Some(wait) = GRACE.checked_sub(age).filter(|wait| !wait.is_zero()) {
                return Ok(Requeue::After(wait));
            }
            let message =
                format!("IPAddress: {name} for Service {namespace}/{} appears to have leaked: cleaning up", parent.name);
            warn("IPAddressNotAllocated", message);
            return self.delete(address).await.map(|()| Requeue::Done);
        };
        if cluster_ips(&service).contains(&name) {
            return Ok(Requeue::Done);
        }
        let newest = self.client.get::<Service>(namespace, &parent.name).await;
        if !newest.is_ok_and(|service| cluster_ips(&service).contains(&name)) {
            let message = format!("IPAddress: {name} for Service {namespace}/{} has a wrong reference; cleaning up", parent.name);
            warn("IPAddressWrongReference", message);
            self.delete(address).await?;
        }
        Ok(Requeue::Done)
    }
}

#[async_trait]
impl Controller for AddressRepair {
    fn name(&self) -> &'static str {
        "addressrepair"
    }

    fn watch(&self, watches: &mut Watches) {
        watches.after(&self.ranges);
        watches.on(&self.services, |seen: Seen<'_, Service>, queue: &Queue| {
            // Another address, or the first look; a status is no concern.
            let same = seen.old.zip(seen.new).is_some_and(|(old, new)| cluster_ips(old) == cluster_ips(new));
            // By then the cache of addresses shows what was written with the Service.
            seen.new.filter(|_| !same).into_iter().for_each(|service| queue.add_after(ObjectKey::of(service), SETTLED));
            // What it had is looked at as soon as it can have leaked.
            let gone = seen.old.filter(|_| !same).map(cluster_ips).unwrap_or_default();
            gone.iter().for_each(|ip| queue.add_after(ObjectKey::new("", ip), GRACE));
        });
        watches.on(&self.addresses, |seen: Seen<'_, IPAddress>, queue: &Queue| {
            seen.new.into_iter().for_each(|address| queue.add(ObjectKey::of(address)));
            for address in seen.states() {
                let parent = &address.spec.parent_ref;
                queue.add(ObjectKey::new(parent.namespace.as_deref().unwrap_or(""), &parent.name));
            }
        });
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Requeue, Error> {
        if !key.namespace.is_empty() {
            if let Some(service) = self.services.get(&key.namespace, &key.name)
                && service.metadata.deletion_timestamp.is_none()
            {
                self.check_service(&service).await?;
            }
            return Ok(Requeue::Done);
        }
        match self.addresses.get("", &key.name).filter(|address| is_allocated(address)) {
            Some(address) => Ok(self.check_orphan(&address).await?),
            None => Ok(Requeue::Done),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_address_knows_its_service() {
        let service: Service =
            serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "a"}, "spec": {"clusterIPs": ["10.43.0.9"]}}))
                .unwrap();
        let ip: IpAddr = cluster_ips(&service)[0].parse().unwrap();
        let address = new_address(ip, &service);
        assert!(is_of(&address, &service) && has_labels(&address, ip) && is_allocated(&address));
        for (field, value) in [("namespace", "b"), ("name", "db"), ("resource", "gateways"), ("group", "x.y")] {
            let mut other = serde_json::to_value(&address).unwrap();
            other["spec"]["parentRef"][field] = json!(value);
            assert!(!is_of(&serde_json::from_value(other).unwrap(), &service), "{field}");
        }
        let headless: Service = serde_json::from_value(json!({"spec": {"clusterIPs": ["None"]}})).unwrap();
        assert!(cluster_ips(&headless).is_empty());
    }
}
