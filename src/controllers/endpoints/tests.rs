//! Tables for the Endpoints and slices of a Service.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{EndpointAddress, Endpoints, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::{Value, json};

use super::backend::{self, Backend, NodeView};
use super::object;
use super::slices::{Slices, Wishes, slices};
use super::trigger::{TRIGGER_TIME, TriggerTimes};
use crate::client::ObjectKey;

fn service_with(extra: &Value) -> Service {
    let mut spec =
        json!({"clusterIP": "10.43.0.9", "ipFamilies": ["IPv4"], "ports": [{"name": "http", "port": 80, "targetPort": "web"}]});
    for (key, value) in extra.as_object().into_iter().flatten() {
        spec[key] = value.clone();
    }
    serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "a", "uid": "s", "labels": {"x": "y"},
        "creationTimestamp": "2026-01-01T00:00:00Z"}, "spec": spec}))
    .unwrap()
}

fn service() -> Service {
    service_with(&json!({}))
}

fn pod(number: usize, ready: bool, extra: &Value) -> Arc<Pod> {
    let status = if ready { "True" } else { "False" };
    let mut pod = json!({"metadata": {"name": format!("p{number}"), "uid": format!("u{number}"), "namespace": "a"},
        "spec": {"nodeName": "n1", "hostname": "h", "subdomain": "web",
            "containers": [{"name": "c", "ports": [{"name": "web", "containerPort": 8080}]}]},
        "status": {"podIP": format!("10.42.{}.{}", number / 250, number % 250), "phase": "Running",
            "conditions": [{"type": "Ready", "status": status, "lastTransitionTime": "2026-01-01T00:00:01Z"}]}});
    for (path, value) in extra.as_object().into_iter().flatten() {
        let (part, field) = path.split_once('.').unwrap();
        pod[part][field] = value.clone();
    }
    Arc::new(serde_json::from_value(pod).unwrap())
}

fn behind(service: &Service, pods: &[Arc<Pod>]) -> Vec<Backend> {
    backend::backends(service, pods, |node| (node != "gone").then(|| NodeView { zone: Some("z1".to_owned()) }))
}

fn endpoints(service: &Service, pods: &[Arc<Pod>]) -> Endpoints {
    object::endpoints(service, &behind(service, pods), None, None).unwrap()
}

fn plan(service: &Service, pods: &[Arc<Pod>], existing: &[Arc<EndpointSlice>]) -> Slices {
    slices(service, &behind(service, pods), existing, Wishes::default())
}

fn ips(addresses: &Option<Vec<EndpointAddress>>) -> Vec<&str> {
    addresses.iter().flatten().map(|one| one.ip.as_str()).collect()
}

const GONE: &str = "2026-01-01T00:00:00Z";

#[test]
fn conditions_and_addresses() {
    let pods = [
        pod(1, true, &json!({})),
        pod(2, false, &json!({})),
        pod(3, true, &json!({"metadata.deletionTimestamp": GONE})),
        pod(4, true, &json!({"status.phase": "Succeeded"})),
        pod(5, true, &json!({"status.podIP": ""})),
    ];
    for (publish, ready, not_ready, flags) in [
        (false, vec!["10.42.0.1"], vec!["10.42.0.2"], vec!["RS-", "---", "-ST"]),
        (true, vec!["10.42.0.1", "10.42.0.2", "10.42.0.3"], vec![], vec!["RS-", "R--", "RST"]),
    ] {
        let service = service_with(&json!({"publishNotReadyAddresses": publish}));
        let object = endpoints(&service, &pods);
        let subset = &object.subsets.as_ref().unwrap()[0];
        assert_eq!((ips(&subset.addresses), ips(&subset.not_ready_addresses)), (ready, not_ready));
        assert_eq!(subset.ports.as_ref().unwrap()[0].port, 8080);
        let plan = plan(&service, &pods, &[]);
        let text = |flag: Option<bool>, letter| if flag == Some(true) { letter } else { '-' };
        let found: Vec<String> = (plan.create[0].endpoints.iter().flatten())
            .map(|one| one.conditions.clone().unwrap())
            .map(|one| [text(one.ready, 'R'), text(one.serving, 'S'), text(one.terminating, 'T')].iter().collect())
            .collect();
        assert_eq!(found, flags);
    }
}

#[test]
fn a_slice_says_all_that_upstreams_does() {
    let service = service_with(&json!({"clusterIP": "None", "trafficDistribution": "PreferSameNode"}));
    let backends = behind(&service, &[pod(1, true, &json!({}))]);
    let trigger = TriggerTimes::default().next(&ObjectKey::new("a", "web"), &service, &backends);
    let plan = slices(&service, &backends, &[], Wishes { trigger: trigger.as_deref(), shares: None });
    let expected = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {
            "generateName": "web-", "namespace": "a",
            "annotations": {TRIGGER_TIME: "2026-01-01T00:00:00Z"},
            "labels": {"x": "y", "kubernetes.io/service-name": "web", "service.kubernetes.io/headless": "",
                "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io"},
            "ownerReferences": [{"apiVersion": "v1", "kind": "Service", "name": "web", "uid": "s", "controller": true,
                "blockOwnerDeletion": true}],
        },
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": [{
            "addresses": ["10.42.0.1"], "conditions": {"ready": true, "serving": true, "terminating": false},
            "hostname": "h", "nodeName": "n1", "zone": "z1",
            "targetRef": {"kind": "Pod", "namespace": "a", "name": "p1", "uid": "u1"},
            "hints": {"forZones": [{"name": "z1"}], "forNodes": [{"name": "n1"}]},
        }],
    });
    assert_eq!(serde_json::to_value(&plan.create[0]).unwrap(), expected);
}

#[test]
fn pods_that_serve_other_ports_have_other_slices() {
    let other = json!({"spec.containers": [{"name": "c", "ports": [{"name": "web", "containerPort": 9090}]}]});
    let none = json!({"spec.containers": [{"name": "c"}]});
    let pods =
        [pod(1, true, &json!({})), pod(2, true, &other), pod(3, true, &none), pod(4, true, &json!({"spec.nodeName": "gone"}))];
    let plan = plan(&service(), &pods, &[]);
    let mut found: Vec<(i32, usize)> = (plan.create.iter())
        .map(|slice| {
            let port = slice.ports.iter().flatten().next().and_then(|port| port.port);
            (port.unwrap_or(0), slice.endpoints.as_ref().unwrap().len())
        })
        .collect();
    found.sort_unstable();
    assert_eq!(found, [(0, 1), (8080, 1), (9090, 1)], "a pod on a node that is not there is in none");
    let subsets = endpoints(&service(), &pods).subsets.unwrap();
    assert_eq!(subsets.len(), 2, "a pod without the port is no endpoint");
}

#[test]
fn each_family_has_its_slices() {
    let service = service_with(&json!({"ipFamilies": ["IPv4", "IPv6"]}));
    let both = json!({"status.podIPs": [{"ip": "10.42.0.1"}, {"ip": "fd00::1"}]});
    let plan_both = plan(&service, &[pod(1, true, &both)], &[]);
    let kinds: Vec<(&str, &str)> = (plan_both.create.iter())
        .map(|slice| (slice.address_type.as_str(), slice.endpoints.as_ref().unwrap()[0].addresses[0].as_str()))
        .collect();
    assert_eq!(kinds, [("IPv4", "10.42.0.1"), ("IPv6", "fd00::1")]);
    let existing: Vec<_> = plan_both.create.into_iter().map(Arc::new).collect();
    let single = plan(&self::service(), &[pod(1, true, &both)], &existing);
    assert_eq!((single.create.len(), single.update.len(), single.delete.len()), (0, 0, 1));
}

#[test]
fn slices_hold_a_hundred_and_change_little() {
    let mut pods: Vec<_> = (0..150).map(|number| pod(number, true, &json!({}))).collect();
    let first = plan(&service(), &pods, &[]);
    let sizes: Vec<usize> = first.create.iter().map(|slice| slice.endpoints.as_ref().unwrap().len()).collect();
    assert_eq!(sizes, [100, 50]);
    let existing: Vec<_> = first.create.into_iter().map(Arc::new).collect();
    assert!(plan(&service(), &pods, &existing).update.is_empty());
    pods.truncate(149);
    pods.push(pod(200, true, &json!({})));
    let second = plan(&service(), &pods, &existing);
    assert_eq!((second.create.len(), second.update.len(), second.delete.len()), (0, 1, 0));
    // Without endpoints one slice stays, and says that there are none.
    let none = plan(&service(), &[], &existing);
    assert_eq!((none.create.len(), none.update.len(), none.delete.len()), (0, 1, 1));
    assert!(none.update[0].endpoints.as_ref().unwrap().is_empty() && none.update[0].ports.is_none());
    let placeholder = [Arc::new(none.update[0].clone())];
    let still = plan(&service(), &[], &placeholder);
    assert!(still.create.is_empty() && still.update.is_empty() && still.delete.is_empty());
    let back = plan(&service(), &pods[..1], &placeholder);
    assert_eq!((back.create.len(), back.update.len(), back.delete.len()), (0, 1, 0), "the placeholder is used again");
}

#[test]
fn a_slice_of_a_service_that_was_replaced_goes() {
    let mut existing = plan(&service(), &[], &[]).create;
    existing[0].metadata.owner_references.as_mut().unwrap()[0].uid = "before".to_owned();
    let plan = plan(&service(), &[], &[Arc::new(existing[0].clone())]);
    assert_eq!((plan.create.len(), plan.delete.len()), (1, 1));
}

#[test]
fn endpoints_over_a_thousand_are_cut() {
    let pods = |ready: usize, not_ready: usize| -> Vec<Arc<Pod>> {
        (0..ready + not_ready).map(|number| pod(number, number < ready, &json!({}))).collect()
    };
    for (ready, not_ready, expected) in [(900, 100, (900, 100)), (900, 300, (900, 100)), (1_200, 50, (1_000, 0))] {
        let object = endpoints(&service(), &pods(ready, not_ready));
        let subset = &object.subsets.as_ref().unwrap()[0];
        assert_eq!((ips(&subset.addresses).len(), ips(&subset.not_ready_addresses).len()), expected);
        let annotation = object.metadata.annotations.as_ref().and_then(|all| all.get("endpoints.kubernetes.io/over-capacity"));
        assert_eq!(annotation.map(String::as_str), (ready + not_ready > 1_000).then_some("truncated"));
        let backends = behind(&service(), &pods(ready, not_ready));
        assert!(object::endpoints(&service(), &backends, Some(&object), None).is_none(), "nothing is left to do");
    }
}

#[test]
fn trigger_times_are_told_once() {
    let (times, key) = (TriggerTimes::default(), ObjectKey::new("a", "web"));
    let next = |pods: &[Arc<Pod>]| times.next(&key, &service(), &behind(&service(), pods));
    let one = [pod(1, true, &json!({}))];
    assert_eq!(next(&one).as_deref(), Some("2026-01-01T00:00:00Z"), "a new Service");
    assert_eq!(next(&one), None);
    assert_eq!(next(&[pod(1, true, &json!({})), pod(2, true, &json!({}))]).as_deref(), Some("2026-01-01T00:00:01Z"));
    times.forget(&key);
    assert_eq!(next(&one).as_deref(), Some("2026-01-01T00:00:00Z"));
}
