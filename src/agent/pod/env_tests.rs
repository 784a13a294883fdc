//! Tables for the environment of containers.

use serde_json::json;

use super::super::fields::Allocatable;
use super::*;

#[test]
fn expansion_as_upstream() {
    let lookup = |name: &str| match name {
        "A" => Some("a"),
        "E" => Some(""),
        _ => None,
    };
    let table = [
        ("$(A)-$(A)", "a-a"),
        ("$$(A)", "$(A)"),
        ("$(B)", "$(B)"),
        ("$(E)x", "x"),
        ("$(A", "$(A"),
        ("$", "$"),
        ("a$b", "a$b"),
        ("$$$(A)", "$a"),
    ];
    for (text, expanded) in table {
        assert_eq!(expand(text, lookup), expanded, "{text}");
    }
}

fn variables(container: serde_json::Value, references: &References) -> Result<Vec<(String, String)>, String> {
    let container: Container = serde_json::from_value(container).unwrap();
    let pod = serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "ns"}})).unwrap();
    let allocatable = Allocatable { cpu_milli: 1_000, memory_bytes: 1, ephemeral_storage_bytes: 1 };
    let context = FieldContext { pod: &pod, host_ip: [192, 0, 2, 1].into(), pod_ip: None, allocatable };
    let services = BTreeMap::from([("S".to_owned(), "svc".to_owned()), ("X".to_owned(), "svc".to_owned())]);
    environment(&container, &context, references, &services)
}

fn references() -> References {
    let config_map = serde_json::from_value(json!({"metadata": {"name": "cm"}, "data": {"k": "v", "X": "from"}})).unwrap();
    let secret = serde_json::from_value(json!({"metadata": {"name": "s"}, "data": {"password": "MTIz"}})).unwrap();
    References {
        files: BTreeMap::new(),
        config_maps: BTreeMap::from([("cm".to_owned(), Arc::new(config_map))]),
        secrets: BTreeMap::from([("s".to_owned(), Arc::new(secret))]),
    }
}

#[test]
fn sources_win_in_order() {
    let container = json!({"name": "c",
        "envFrom": [{"prefix": "P_", "configMapRef": {"name": "cm"}}, {"configMapRef": {"name": "cm"}},
                    {"secretRef": {"name": "none", "optional": true}}],
        "env": [{"name": "A", "value": "$(P_k)-$(S)-$(later)"}, {"name": "k", "value": "own"},
                {"name": "PW", "valueFrom": {"secretKeyRef": {"name": "s", "key": "password"}}},
                {"name": "O", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "none", "optional": true}}},
                {"name": "N", "valueFrom": {"fieldRef": {"fieldPath": "metadata.namespace"}}}]});
    let got = variables(container, &references()).unwrap();
    let got: Vec<String> = got.iter().map(|(name, value)| format!("{name}={value}")).collect();
    assert_eq!(got, ["P_X=from", "P_k=v", "X=from", "k=own", "A=v-svc-$(later)", "PW=123", "N=ns", "S=svc"]);
}

#[test]
fn what_is_missing_is_named() {
    let table = [
        (json!({"configMapKeyRef": {"name": "no", "key": "k"}}), "configmap \"no\" not found"),
        (json!({"configMapKeyRef": {"name": "cm", "key": "no"}}), "couldn't find key no in ConfigMap ns/cm"),
        (json!({"secretKeyRef": {"name": "no", "key": "k"}}), "secret \"no\" not found"),
        (json!({"secretKeyRef": {"name": "s", "key": "no"}}), "couldn't find key no in Secret ns/s"),
    ];
    for (source, words) in table {
        let container = json!({"name": "c", "env": [{"name": "A", "valueFrom": source}]});
        assert_eq!(variables(container, &references()), Err(words.to_owned()));
    }
}

#[test]
fn services_become_variables() {
    let service = |namespace: &str, name: &str, ip: &str| -> Arc<Service> {
        Arc::new(
            serde_json::from_value(json!({"metadata": {"name": name, "namespace": namespace},
                "spec": {"clusterIP": ip, "ports": [{"name": "https", "port": 443, "protocol": "TCP"}]}}))
            .unwrap(),
        )
    };
    let services =
        [service("default", "kubernetes", "10.43.0.1"), service("ns", "my-db", "10.43.0.9"), service("ns", "h", "None")];
    let all = service_variables(&services, "ns", true);
    let table = [
        ("KUBERNETES_SERVICE_HOST", "10.43.0.1"),
        ("KUBERNETES_SERVICE_PORT", "443"),
        ("KUBERNETES_SERVICE_PORT_HTTPS", "443"),
        ("KUBERNETES_PORT", "tcp://10.43.0.1:443"),
        ("MY_DB_PORT_443_TCP", "tcp://10.43.0.9:443"),
        ("MY_DB_PORT_443_TCP_ADDR", "10.43.0.9"),
    ];
    for (name, value) in table {
        assert_eq!(all.get(name).map(String::as_str), Some(value), "{name}");
    }
    assert!(!all.contains_key("H_SERVICE_HOST"));
    assert_eq!(service_variables(&services, "ns", false).keys().filter(|name| name.starts_with("MY_DB")).count(), 0);
}
