//! Mirroring: the slices of Endpoints that somebody wrote by hand for a Service without a selector (upstream's
//! `controller/endpointslicemirroring`).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort, Endpoints, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::super::expectations::Expectations;
use super::super::{Context, Controller, Error, Queue, Requeue, Seen, Watches, owners};
use super::backend::Port;
use super::slices::{MANAGED_BY, SERVICE_NAME, Slices, ports_of, slice_ports};
use super::trigger::TRIGGER_TIME;
use super::{LEADER, has_value, service_of};
use crate::client::informer::Informer;
use crate::client::recorder::{EventType, Recorder, reference};
use crate::client::{Client, ObjectKey};

const MANAGER: &str = "endpointslicemirroring-controller.k8s.io";
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
const APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
const BY_SERVICE: &str = "mirrored";
/// Addresses of a subset that are mirrored: what one slice holds.
const MOST: usize = 1_000;

/// The controller of mirrored slices.
pub(in crate::controllers) fn mirroring(context: &Context) -> Arc<dyn Controller> {
    let informers = &context.config.informers;
    let slices = informers.of::<EndpointSlice>();
    slices.add_index(BY_SERVICE, |slice| service_of(slice, MANAGER).map(|key| key.to_string()).into_iter().collect());
    Arc::new(Mirroring {
        services: informers.of(),
        endpoints: informers.of(),
        slices,
        client: context.client("endpointslicemirroring-controller"),
        recorder: context.recorder("endpoint-slice-mirroring-controller"),
        expectations: Expectations::default(),
    })
}

struct Mirroring {
    services: Arc<Informer<Service>>,
    endpoints: Arc<Informer<Endpoints>>,
    slices: Arc<Informer<EndpointSlice>>,
    client: Client,
    recorder: Recorder,
    expectations: Expectations,
}

fn is_mirrored(endpoints: &Endpoints) -> bool {
    let elects = endpoints.metadata.annotations.as_ref().is_some_and(|all| all.contains_key(LEADER));
    !elects && !has_value(&endpoints.metadata.labels, SKIP, "true")
}

fn has_selector(service: &Service) -> bool {
    service.spec.as_ref().and_then(|spec| spec.selector.as_ref()).is_some_and(|selector| !selector.is_empty())
}

/// What could not be mirrored.
#[derive(Debug, Default, PartialEq, Eq)]
struct Skipped {
    invalid: usize,
    too_many: usize,
}

/// Endpoints by address type and ports.
type Wanted = BTreeMap<(&'static str, Vec<Port>), Vec<Endpoint>>;

fn wanted(endpoints: &Endpoints) -> (Wanted, Skipped) {
    let (mut wanted, mut skipped) = (Wanted::new(), Skipped::default());
    let port = |port: &EndpointPort| Port {
        name: port.name.clone().unwrap_or_default(),
        protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
        number: port.port,
        app_protocol: port.app_protocol.clone(),
    };
    for subset in endpoints.subsets.iter().flatten() {
        let mut ports: Vec<Port> = subset.ports.iter().flatten().map(port).collect();
        ports.sort();
        let ready = subset.addresses.iter().flatten().map(|address| (address, true));
        let not_ready = subset.not_ready_addresses.iter().flatten().map(|address| (address, false));
        let mut count = 0;
        for (address, is_ready) in ready.chain(not_ready) {
            if count >= MOST {
                skipped.too_many += 1;
            } else if let Some((kind, endpoint)) = endpoint(address, is_ready) {
                wanted.entry((kind, ports.clone())).or_default().push(endpoint);
                count += 1;
            } else {
                skipped.invalid += 1;
            }
        }
    }
    for list in wanted.values_mut() {
        list.dedup_by(|left, right| left.addresses == right.addresses && left.target_ref == right.target_ref);
        skipped.too_many += list.len().saturating_sub(MOST);
        list.truncate(MOST);
    }
    (wanted, skipped)
}

fn endpoint(address: &EndpointAddress, is_ready: bool) -> Option<(&'static str, Endpoint)> {
    let ip: IpAddr = address.ip.parse().ok()?;
    let endpoint = Endpoint {
        addresses: vec![ip.to_string()],
        conditions: Some(EndpointConditions { ready: Some(is_ready), ..EndpointConditions::default() }),
        hostname: address.hostname.clone().filter(|host| !host.is_empty()),
        node_name: address.node_name.clone(),
        target_ref: address.target_ref.clone(),
        ..Endpoint::default()
    };
    Some((if ip.is_ipv4() { "IPv4" } else { "IPv6" }, endpoint))
}

fn plan(endpoints: &Endpoints, wanted: Wanted, existing: &[Arc<EndpointSlice>]) -> Slices {
    let mut plan = Slices::default();
    let mut present: Vec<&Arc<EndpointSlice>> = existing.iter().collect();
    for ((kind, ports), list) in wanted {
        let at = present.iter().position(|slice| slice.address_type == kind && ports_of(slice) == ports);
        let slice = new_slice(endpoints, kind, &ports, list);
        match at.map(|at| present.swap_remove(at)) {
            None => plan.create.push(slice),
            Some(old) if is_same(old, &slice) => {}
            Some(old) => plan.update.push(EndpointSlice {
                metadata: ObjectMeta {
                    labels: slice.metadata.labels,
                    annotations: slice.metadata.annotations,
                    owner_references: slice.metadata.owner_references,
                    ..old.metadata.clone()
                },
                ..slice
            }),
        }
    }
    plan.delete = present.into_iter().cloned().collect();
    plan.recycle();
    plan
}

fn is_same(old: &EndpointSlice, new: &EndpointSlice) -> bool {
    let same_owner = owners::controller_of(&old.metadata).map(|owner| &owner.uid)
        == owners::controller_of(&new.metadata).map(|owner| &owner.uid);
    let annotations = |slice: &EndpointSlice| slice.metadata.annotations.clone().unwrap_or_default();
    same_owner
        && old.endpoints == new.endpoints
        && old.metadata.labels == new.metadata.labels
        && annotations(old) == annotations(new)
}

fn new_slice(endpoints: &Endpoints, kind: &str, ports: &[Port], list: Vec<Endpoint>) -> EndpointSlice {
    let name = endpoints.metadata.name.clone().unwrap_or_default();
    let mut labels = endpoints.metadata.labels.clone().unwrap_or_default();
    labels.insert(SERVICE_NAME.to_owned(), name.clone());
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    let mut annotations = endpoints.metadata.annotations.clone().unwrap_or_default();
    annotations.retain(|key, _| key != TRIGGER_TIME && key != APPLIED);
    let metadata = ObjectMeta {
        generate_name: Some(format!("{name}-")),
        namespace: endpoints.metadata.namespace.clone(),
        labels: Some(labels),
        annotations: (!annotations.is_empty()).then_some(annotations),
        owner_references: Some(vec![owners::controller_reference(endpoints)]),
        ..ObjectMeta::default()
    };
    EndpointSlice { address_type: kind.to_owned(), endpoints: Some(list), metadata, ports: slice_ports(ports) }
}

impl Mirroring {
    fn report(&self, endpoints: &Endpoints, skipped: &Skipped) {
        if skipped.invalid > 0 {
            let message = format!("Skipped {} invalid IP addresses when mirroring to EndpointSlices", skipped.invalid);
            self.recorder.event(&reference(endpoints), EventType::Warning, "InvalidIPAddress", message);
        }
        if skipped.too_many > 0 {
            let message = format!(
                "A max of {MOST} addresses can be mirrored to EndpointSlices per Endpoints subset. {} addresses were skipped",
                skipped.too_many
            );
            self.recorder.event(&reference(endpoints), EventType::Warning, "TooManyAddressesToMirror", message);
        }
    }
}

#[async_trait]
impl Controller for Mirroring {
    fn name(&self) -> &'static str {
        "endpointslicemirroring"
    }

    fn watch(&self, watches: &mut Watches) {
        watches.on(&self.services, |seen: Seen<'_, Service>, queue: &Queue| {
            let selects = |service: Option<&Service>| service.map(has_selector);
            if selects(seen.old) != selects(seen.new) {
                seen.newest().into_iter().for_each(|service| queue.add(ObjectKey::of(service)));
            }
        });
        watches.on(&self.endpoints, |seen: Seen<'_, Endpoints>, queue: &Queue| {
            if seen.states().any(is_mirrored) {
                seen.newest().into_iter().for_each(|endpoints| queue.add(ObjectKey::of(endpoints)));
            }
        });
        watches.on(&self.slices, |seen: Seen<'_, EndpointSlice>, queue: &Queue| {
            seen.states().filter_map(|slice| service_of(slice, MANAGER)).for_each(|key| queue.add(key));
        });
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Requeue, Error> {
        let revision = self.slices.revision();
        let existing = self.slices.by_index(BY_SERVICE, &key.to_string());
        let endpoints = self.endpoints.get(&key.namespace, &key.name).filter(|endpoints| is_mirrored(endpoints));
        let is_wanted = self.services.get(&key.namespace, &key.name).is_some_and(|service| !has_selector(&service));
        let Some(endpoints) = endpoints.filter(|_| is_wanted) else {
            self.expectations.forget(key);
            let plan = Slices { delete: existing, ..Slices::default() };
            super::write(&self.client, &self.expectations, key, &plan).await?;
            return Ok(Requeue::Done);
        };
        if !self.expectations.are_met(key, revision, std::iter::empty()) {
            // The event that brings the cache up to date comes back here.
            return Ok(Requeue::Done);
        }
        let (wanted, skipped) = wanted(&endpoints);
        let mut plan = plan(&endpoints, wanted, &existing);
        if endpoints.metadata.deletion_timestamp.is_some() {
            plan.create.clear();
        }
        if !plan.create.is_empty() || !plan.update.is_empty() {
            self.report(&endpoints, &skipped);
        }
        super::write(&self.client, &self.expectations, key, &plan).await?;
        Ok(Requeue::Done)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn endpoints(subsets: serde_json::Value) -> Endpoints {
        serde_json::from_value(json!({"metadata": {"name": "db", "namespace": "a", "uid": "e", "labels": {"x": "y"},
            "annotations": {APPLIED: "{}", "note": "1"}}, "subsets": subsets}))
        .unwrap()
    }

    #[test]
    fn one_slice_for_each_subset_and_family() {
        let of_hand = endpoints(json!([
            {"addresses": [{"ip": "1.2.3.4", "hostname": "h"}, {"ip": "fd00::1"}, {"ip": "no"}],
             "notReadyAddresses": [{"ip": "1.2.3.5"}], "ports": [{"name": "pg", "port": 5432, "protocol": "TCP"}]},
        ]));
        let (wanted_now, skipped) = wanted(&of_hand);
        assert_eq!(skipped, Skipped { invalid: 1, too_many: 0 });
        let first = plan(&of_hand, wanted_now, &[]);
        let kinds: Vec<(&str, usize)> =
            first.create.iter().map(|slice| (slice.address_type.as_str(), slice.endpoints.as_ref().unwrap().len())).collect();
        assert_eq!(kinds, [("IPv4", 2), ("IPv6", 1)]);
        let slice = serde_json::to_value(&first.create[0]).unwrap();
        assert_eq!(slice["metadata"]["annotations"], json!({"note": "1"}));
        let labels = json!({"x": "y", SERVICE_NAME: "db", MANAGED_BY: MANAGER});
        assert_eq!(slice["metadata"]["labels"], labels);
        let conditions: Vec<_> = slice["endpoints"].as_array().unwrap().iter().map(|one| one["conditions"].clone()).collect();
        assert_eq!(conditions, [json!({"ready": true}), json!({"ready": false})]);

        let existing: Vec<_> = first.create.into_iter().map(Arc::new).collect();
        let again = plan(&of_hand, wanted(&of_hand).0, &existing);
        assert!(again.create.is_empty() && again.update.is_empty() && again.delete.is_empty());
        // Another port: the slice of the same family is used again, the other goes.
        let other =
            endpoints(json!([{"addresses": [{"ip": "1.2.3.4"}], "ports": [{"name": "pg", "port": 6432, "protocol": "TCP"}]}]));
        let changed = plan(&other, wanted(&other).0, &existing);
        assert_eq!((changed.create.len(), changed.update.len(), changed.delete.len()), (0, 1, 1));
    }

    #[test]
    fn what_is_not_mirrored() {
        let mut labelled = endpoints(json!([]));
        assert!(is_mirrored(&labelled));
        labelled.metadata.labels = Some([(SKIP.to_owned(), "true".to_owned())].into());
        assert!(!is_mirrored(&labelled));
        let many: Vec<_> = (0..1_100).map(|number| json!({"ip": format!("10.0.{}.{}", number / 250, number % 250)})).collect();
        let (wanted, skipped) = wanted(&endpoints(json!([{"addresses": many}])));
        assert_eq!((wanted.values().map(Vec::len).sum::<usize>(), skipped.too_many), (1_000, 100));
    }
}
