//! Service: one address for a set of pods. Addresses and node ports are handed out by the registry.

mod update;
mod validate;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::{Value, json};

use super::pod_spec::defaults::{text, value};
use crate::api::kind::{Column, Subresource};
use crate::api::names;
use crate::kinds::check::str_of;
use crate::kinds::print::{NONE, age, labels, name, or_none};
use crate::kinds::typed::{Definition, Selectable, names_of};

/// Seconds for which a client keeps its pod, unless the Service says otherwise.
const AFFINITY_SECONDS: i32 = 10_800;

const FIELDS: [Selectable; 2] =
    [Selectable::text("spec.clusterIP", &[&["spec", "clusterIP"]]), Selectable::text("spec.type", &[&["spec", "type"]])];

/// The kind.
pub static SERVICE: Definition<Service> = Definition {
    subresources: &[Subresource::Proxy, Subresource::Status],
    columns: &[
        Column::NAME,
        Column::text("Type"),
        Column::text("Cluster-IP"),
        Column::text("External-IP"),
        Column::text("Port(s)"),
        Column::AGE,
        Column::wide("Selector"),
    ],
    row: Some(row),
    selectable: &FIELDS,
    selectable_names: &names_of(&FIELDS),
    default: Some(default),
    initial_status: Some(|| json!({"loadBalancer": {}})),
    prepare_create: Some(|service| {
        if let Some(spec) = &mut service.spec {
            update::addresses(spec);
        }
    }),
    prepare_update: Some(update::prepare),
    validate: Some(validate::create),
    validate_update: Some(validate::update),
    name_rule: names::dns1035_label,
    generation: Some(false),
    ..Definition::namespaced("io.k8s.api.core.v1.Service", "core/services", "service").short(&["svc"]).in_all()
};

/// Whether traffic from outside the cluster reaches the Service.
fn is_external(spec: &ServiceSpec) -> bool {
    let by_address = spec.external_ips.as_ref().is_some_and(|addresses| !addresses.is_empty());
    matches!(str_of(&spec.type_), "LoadBalancer" | "NodePort") || (str_of(&spec.type_) == "ClusterIP" && by_address)
}

fn default(service: &mut Service) {
    let spec = service.spec.get_or_insert_default();
    text(&mut spec.session_affinity, "None");
    match str_of(&spec.session_affinity) {
        "None" => spec.session_affinity_config = None,
        "ClientIP" => {
            let config = spec.session_affinity_config.get_or_insert_default();
            value(&mut config.client_ip.get_or_insert_default().timeout_seconds, AFFINITY_SECONDS);
        }
        _ => {}
    }
    text(&mut spec.type_, "ClusterIP");
    spec.ports.iter_mut().flatten().for_each(port);
    if is_external(spec) {
        text(&mut spec.external_traffic_policy, "Cluster");
    }
    if matches!(str_of(&spec.type_), "ClusterIP" | "LoadBalancer" | "NodePort") {
        text(&mut spec.internal_traffic_policy, "Cluster");
    }
    if str_of(&spec.type_) == "LoadBalancer" {
        value(&mut spec.allocate_load_balancer_node_ports, true);
    }
    let balancer = service.status.get_or_insert_default().load_balancer.get_or_insert_default();
    for ingress in balancer.ingress.iter_mut().flatten().filter(|ingress| ingress.ip.is_some()) {
        text(&mut ingress.ip_mode, "VIP");
    }
}

fn port(port: &mut ServicePort) {
    text(&mut port.protocol, "TCP");
    let is_unset = match &port.target_port {
        None | Some(IntOrString::Int(0)) => true,
        Some(IntOrString::String(name)) => name.is_empty(),
        Some(IntOrString::Int(_)) => false,
    };
    if is_unset {
        port.target_port = Some(IntOrString::Int(port.port));
    }
    port.node_port = port.node_port.filter(|port| *port != 0);
}

fn row(service: &Service, now: Timestamp) -> Vec<Value> {
    let spec = service.spec.clone().unwrap_or_default();
    let address = spec.cluster_ips.iter().flatten().next().or(spec.cluster_ip.as_ref());
    vec![
        name(&service.metadata),
        spec.type_.clone().unwrap_or_default().into(),
        or_none(address.map(String::as_str)).into(),
        external(service, &spec).into(),
        ports(spec.ports.as_deref().unwrap_or_default()).into(),
        age(&service.metadata, now),
        labels(spec.selector.as_ref()).into(),
    ]
}

fn external(service: &Service, spec: &ServiceSpec) -> String {
    let mut addresses: Vec<String> = Vec::new();
    match str_of(&spec.type_) {
        "ExternalName" => return spec.external_name.clone().unwrap_or_default(),
        "LoadBalancer" => {
            let ingress =
                service.status.as_ref().and_then(|status| status.load_balancer.as_ref()).and_then(|it| it.ingress.as_ref());
            addresses.extend(ingress.into_iter().flatten().filter_map(|it| it.ip.clone().or_else(|| it.hostname.clone())));
        }
        "ClusterIP" | "NodePort" => {}
        _ => return "<unknown>".to_owned(),
    }
    addresses.extend(spec.external_ips.iter().flatten().cloned());
    match (addresses.is_empty(), str_of(&spec.type_)) {
        (false, _) => addresses.join(","),
        (true, "LoadBalancer") => "<pending>".to_owned(),
        (true, _) => NONE.to_owned(),
    }
}

fn ports(ports: &[ServicePort]) -> String {
    let text = |port: &ServicePort| match port.node_port.unwrap_or(0) {
        0 => format!("{}/{}", port.port, str_of(&port.protocol)),
        node => format!("{}:{node}/{}", port.port, str_of(&port.protocol)),
    };
    let texts: Vec<String> = ports.iter().map(text).collect();
    if texts.is_empty() { NONE.to_owned() } else { texts.join(",") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{Kind, Object};

    fn service(spec: Value) -> Object {
        let mut object = Object::default();
        object.set(&["apiVersion"], "v1");
        object.set(&["kind"], "Service");
        object.set(&["metadata"], json!({"name": "web", "creationTimestamp": "2024-01-01T00:00:00Z"}));
        object.set(&["spec"], spec);
        SERVICE.default(&mut object);
        object
    }

    #[test]
    fn defaults_and_rows() {
        let object = service(json!({"selector": {"app": "web"}, "ports": [{"port": 80}]}));
        let expected = json!({"selector": {"app": "web"}, "type": "ClusterIP", "sessionAffinity": "None",
            "internalTrafficPolicy": "Cluster", "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}]});
        assert_eq!(object.spec(), Some(&expected));
        let table = [
            (json!({"clusterIP": "10.0.0.1", "ports": [{"port": 80}]}), json!(["ClusterIP", "10.0.0.1", "<none>", "80/TCP"])),
            (
                json!({"type": "NodePort", "clusterIP": "10.0.0.1", "ports": [{"port": 80, "nodePort": 30080}, {"port": 53, "protocol": "UDP"}]}),
                json!(["NodePort", "10.0.0.1", "<none>", "80:30080/TCP,53/UDP"]),
            ),
            (json!({"type": "LoadBalancer", "ports": [{"port": 1}]}), json!(["LoadBalancer", "<none>", "<pending>", "1/TCP"])),
            (json!({"type": "ExternalName", "externalName": "a.b"}), json!(["ExternalName", "<none>", "a.b", "<none>"])),
        ];
        for (spec, expected) in table {
            let row = SERVICE.row(&service(spec), "2024-01-01T00:00:09Z".parse().unwrap());
            assert_eq!(json!(row[1..5]), expected);
        }
    }

    #[test]
    fn errors_in_upstreams_words() {
        let table = [
            (json!({}), vec!["spec.ports: Required value"]),
            (json!({"clusterIP": "None"}), vec![]),
            (
                json!({"ports": [{"port": 0}]}),
                vec![
                    "spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive",
                    "spec.ports[0].targetPort: Invalid value: 0: must be between 1 and 65535, inclusive",
                ],
            ),
            (
                json!({"ports": [{"port": 80}, {"port": 81}]}),
                vec!["spec.ports[0].name: Required value", "spec.ports[1].name: Required value"],
            ),
            (
                json!({"type": "X", "ports": [{"port": 80}]}),
                vec![
                    "spec.type: Unsupported value: \"X\": supported values: \"ClusterIP\", \"ExternalName\", \"LoadBalancer\", \"NodePort\"",
                ],
            ),
            (
                json!({"ports": [{"port": 80, "nodePort": 30000}]}),
                vec!["spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'"],
            ),
            (json!({"type": "ExternalName"}), vec!["spec.externalName: Required value"]),
        ];
        for (spec, expected) in table {
            let texts: Vec<String> = SERVICE.validate(&service(spec.clone())).iter().map(ToString::to_string).collect();
            assert_eq!(texts, expected, "{spec}");
        }
    }

    #[test]
    fn updates_keep_what_was_allocated() {
        let old = service(
            json!({"type": "NodePort", "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"], "ports": [{"port": 80, "nodePort": 30080}]}),
        );
        let mut new = service(json!({"type": "NodePort", "ports": [{"port": 80}]}));
        SERVICE.prepare_update(&mut new, &old, None);
        assert_eq!(new.str_at(&["spec", "clusterIP"]), Some("10.0.0.1"));
        assert_eq!(new.get(&["spec", "ports"]).unwrap()[0]["nodePort"], json!(30080));
        let mut new = old.clone();
        new.set(&["spec", "type"], "ClusterIP");
        SERVICE.prepare_update(&mut new, &old, None);
        assert_eq!(new.get(&["spec", "ports"]).unwrap()[0].get("nodePort"), None);
        let mut new = old.clone();
        new.set(&["spec", "clusterIP"], "10.0.0.2");
        SERVICE.prepare_update(&mut new, &old, None);
        let texts: Vec<String> = SERVICE.validate_update(&new, &old, None).iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["spec.clusterIPs[0]: Invalid value: [\"10.0.0.2\"]: may not change once set"]);
    }

    #[test]
    fn what_may_not_change() {
        let balanced =
            json!({"type": "LoadBalancer", "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"], "ports": [{"port": 80}]});
        for (change, expected) in [
            (
                json!({"clusterIP": "None", "clusterIPs": ["None"], "type": "ClusterIP"}),
                "spec.clusterIPs[0]: Invalid value: [\"None\"]: may not change once set",
            ),
            (json!({"loadBalancerClass": "a.b/c"}), "spec.loadBalancerClass: Invalid value: \"a.b/c\": may not change once set"),
            (
                json!({"externalIPs": ["127.0.0.1"]}),
                "spec.externalIPs[0]: Invalid value: \"127.0.0.1\": may not be in the loopback range (127.0.0.0/8, ::1/128)",
            ),
            (
                json!({"healthCheckNodePort": 30000}),
                "spec.healthCheckNodePort: Invalid value: 30000: may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'",
            ),
        ] {
            let old = service(balanced.clone());
            let mut new = old.clone();
            for (field, value) in change.as_object().unwrap() {
                new.set(&["spec", field], value.clone());
            }
            SERVICE.prepare_update(&mut new, &old, None);
            let texts: Vec<String> = SERVICE.validate_update(&new, &old, None).iter().map(ToString::to_string).collect();
            assert_eq!(texts, [expected]);
        }
    }

    #[test]
    fn a_balancer_has_addresses_and_no_other_service_does() {
        let mut old = service(
            json!({"type": "LoadBalancer", "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"], "ports": [{"port": 80}]}),
        );
        old.set(&["status", "loadBalancer", "ingress"], json!([{"ip": "1.2.3.4"}]));
        SERVICE.default(&mut old);
        assert_eq!(old.get(&["status", "loadBalancer", "ingress"]).unwrap()[0]["ipMode"], json!("VIP"));
        let mut new = old.clone();
        new.set(&["spec", "type"], "ClusterIP");
        SERVICE.prepare_update(&mut new, &old, None);
        assert_eq!(new.get(&["status", "loadBalancer", "ingress"]), None);
        assert_eq!(new.get(&["spec", "allocateLoadBalancerNodePorts"]), None);
        let mut wrong = old.clone();
        wrong.set(&["status", "loadBalancer", "ingress"], json!([{"ip": "1.2.3", "ipMode": "X"}]));
        assert_eq!(SERVICE.validate_update(&wrong, &old, Some(Subresource::Status)).len(), 2);
    }
}
