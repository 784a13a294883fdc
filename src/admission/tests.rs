//! The chain over a store in memory: what is added, what is refused, in upstream's words.

use serde_json::{Value, json};

use super::*;
use crate::auth::UserInfo;
use crate::kinds::Kinds;
use crate::registry::Operation;
use crate::rt::{SystemClock, clock::SharedClock};
use crate::store::memory::MemoryStore;
use crate::store::{Draft, Durability, Index, Store, Transaction, Write};

async fn chain(objects: &[(&str, Value)]) -> Chain {
    let clock: SharedClock = std::sync::Arc::new(SystemClock);
    let store = MemoryStore::new(clock);
    for (key, object) in objects {
        let mut object = object.clone();
        object["metadata"]["resourceVersion"] = json!("");
        let text = object.to_string();
        let revision_at = text.find("\"resourceVersion\":\"").unwrap() + "\"resourceVersion\":\"".len();
        let draft = Draft { body: text.into(), revision_at: u32::try_from(revision_at).unwrap(), index: Index::default() };
        let write = Write::Put { key: (*key).into(), draft };
        store.commit(Transaction { guards: Vec::new(), writes: vec![write], durability: Durability::Synced }).await.unwrap();
    }
    Chain::new(Reader::new(store.clone()), Arc::new(Authorizer::new(store)))
}

fn named(name: &str) -> Value {
    json!({"metadata": {"name": name}})
}

async fn admit(chain: &Chain, user: &UserInfo, operation: Operation, plural: &str, object: &mut Object) -> Result<(), String> {
    let (group, plural) = plural.split_once('/').unwrap_or(("", plural));
    let kind = Kinds::builtin().find(group, "v1", plural).unwrap();
    let name = object.name().to_owned();
    let namespace = if kind.names().is_namespaced() { "default" } else { "" };
    let attributes = Attributes { kind: &*kind, namespace, name: &name, operation, subresource: None, user, dry_run: false };
    let mut warnings = Vec::new();
    let outcome = async {
        chain.mutate(&attributes, object, None, &mut warnings).await?;
        chain.validate(&attributes, Some(object), None, &mut warnings).await
    };
    outcome.await.map_err(|error| error.message)
}

#[tokio::test]
async fn a_plain_pod_gets_account_token_priority_and_tolerations() {
    let chain =
        chain(&[("core/namespaces/default", named("default")), ("core/serviceaccounts/default/default", named("default"))]).await;
    let mut pod = Object::from_json(br#"{"metadata":{"name":"p"},"spec":{"containers":[{"name":"c"}]}}"#).unwrap();
    admit(&chain, &UserInfo::default(), Operation::Create, "pods", &mut pod).await.unwrap();
    assert_eq!(pod.str_at(&["spec", "serviceAccountName"]), Some("default"));
    assert_eq!(pod.get(&["spec", "priority"]), Some(&json!(0)));
    assert_eq!(pod.get(&["spec", "tolerations"]).unwrap().as_array().unwrap().len(), 2);
    let (volume, mount) = (&pod.spec().unwrap()["volumes"][0], &pod.spec().unwrap()["containers"][0]["volumeMounts"][0]);
    assert!(volume["name"].as_str().unwrap().starts_with("kube-api-access-"));
    assert_eq!((&mount["name"], &mount["readOnly"]), (&volume["name"], &json!(true)));
}

#[tokio::test]
async fn refusals_have_upstreams_words() {
    let chain =
        chain(&[("core/namespaces/default", named("default")), ("core/serviceaccounts/default/default", named("default"))]).await;
    let node = UserInfo::new("system:node:n1", &["system:nodes"]);
    let cases = [
        (
            UserInfo::default(),
            "pods",
            json!({"metadata": {"name": "p"}, "spec": {"serviceAccountName": "x"}}),
            "pods \"p\" is forbidden: error looking up service account default/x: serviceaccount \"x\" not found",
        ),
        (
            UserInfo::default(),
            "pods",
            json!({"metadata": {"name": "p"}, "spec": {"priorityClassName": "x"}}),
            "pods \"p\" is forbidden: no PriorityClass with name x was found",
        ),
        (node.clone(), "nodes", named("n2"), "nodes \"n2\" is forbidden: node \"n1\" is not allowed to modify node \"n2\""),
        (
            node,
            "pods",
            json!({"metadata": {"name": "p"}, "spec": {}}),
            "pods \"p\" is forbidden: pod does not have \"kubernetes.io/config.mirror\" annotation, node \"n1\" can only create mirror pods",
        ),
    ];
    for (user, plural, object, expected) in cases {
        let mut object = Object::from_json(object.to_string().as_bytes()).unwrap();
        assert_eq!(admit(&chain, &user, Operation::Create, plural, &mut object).await, Err(expected.to_owned()));
    }
    let mut default = Object::from_json(br#"{"metadata":{"name":"default"}}"#).unwrap();
    let refused = admit(&chain, &UserInfo::default(), Operation::Delete, "namespaces", &mut default).await;
    assert_eq!(refused, Err("namespaces \"default\" is forbidden: this namespace may not be deleted".to_owned()));
}

#[tokio::test]
async fn a_node_asks_for_certificates_of_its_own_pods_alone() {
    let object = |name: &str, uid: &str, spec: Value| json!({"metadata": {"name": name, "uid": uid}, "spec": spec});
    let mut mirror = object("m", "um", json!({"nodeName": "n1", "serviceAccountName": "s"}));
    mirror["metadata"]["annotations"] = json!({"kubernetes.io/config.mirror": "x"});
    let chain = chain(&[
        ("core/namespaces/default", named("default")),
        ("core/serviceaccounts/default/s", object("s", "us", json!({}))),
        ("core/nodes/n1", object("n1", "un", json!({}))),
        ("core/pods/default/p", object("p", "up", json!({"nodeName": "n1", "serviceAccountName": "s"}))),
        ("core/pods/default/q", object("q", "uq", json!({"nodeName": "n2", "serviceAccountName": "s"}))),
        ("core/pods/default/m", mirror),
    ])
    .await;
    let node = UserInfo::new("system:node:n1", &["system:nodes"]);
    let right = json!({"nodeName": "n1", "nodeUID": "un", "podName": "p", "podUID": "up", "serviceAccountName": "s",
        "serviceAccountUID": "us"});
    let differs = "PodCertificateRequest for pod ";
    let cases = [
        (json!({}), ""),
        (json!({"nodeName": "n2"}), "PodCertificateRequest.Spec.NodeName=\"n2\", which is not the requesting node \"n1\""),
        (json!({"podName": "x"}), "while retrieving pod named in the PodCertificateRequest: pod \"x\" not found"),
        (json!({"podName": "m", "podUID": "um"}), "pod \"m\" is a mirror pod, which gets no certificate"),
        (json!({"podName": "q", "podUID": "uq"}), differs),
        (json!({"podUID": "x"}), differs),
        (json!({"nodeUID": "x"}), differs),
        (json!({"serviceAccountName": "x"}), differs),
        (json!({"serviceAccountUID": "x"}), differs),
    ];
    for (other, words) in cases {
        let mut spec = right.clone();
        other.as_object().unwrap().iter().for_each(|(field, value)| spec[field] = value.clone());
        let mut request = Object(json!({"metadata": {"name": "r"}, "spec": spec}).as_object().unwrap().clone());
        let answer = admit(&chain, &node, Operation::Create, "certificates.k8s.io/podcertificaterequests", &mut request).await;
        match answer {
            Ok(()) => assert!(words.is_empty(), "{other}"),
            Err(error) => assert!(!words.is_empty() && error.contains(words), "{other}: {error}"),
        }
    }
    let mut request = Object(json!({"metadata": {"name": "r"}, "spec": right}).as_object().unwrap().clone());
    let deleted = admit(&chain, &node, Operation::Delete, "certificates.k8s.io/podcertificaterequests", &mut request).await;
    assert!(deleted.unwrap_err().contains("can only create PodCertificateRequests"));
    assert_eq!(
        admit(&chain, &UserInfo::default(), Operation::Update, "certificates.k8s.io/podcertificaterequests", &mut request).await,
        Ok(())
    );
}

#[tokio::test]
async fn limit_ranges_fill_and_bound() {
    let limits = json!([{"type": "Container", "default": {"cpu": "500m"}, "defaultRequest": {"cpu": "100m"},
        "max": {"cpu": "1"}, "min": {"cpu": "50m"}}, {"type": "Pod", "max": {"cpu": "1500m"}}]);
    let chain = chain(&[
        ("core/namespaces/default", named("default")),
        ("core/serviceaccounts/default/default", named("default")),
        ("core/limitranges/default/l", json!({"metadata": {"name": "l"}, "spec": {"limits": limits}})),
    ])
    .await;
    let pod = |resources: &[Value]| {
        let containers: Vec<Value> =
            resources.iter().enumerate().map(|(at, one)| json!({"name": format!("c{at}"), "resources": one})).collect();
        Object(json!({"metadata": {"name": "p"}, "spec": {"containers": containers}}).as_object().unwrap().clone())
    };
    let mut filled = pod(&[json!({})]);
    admit(&chain, &UserInfo::default(), Operation::Create, "pods", &mut filled).await.unwrap();
    let resources = &filled.spec().unwrap()["containers"][0]["resources"];
    assert_eq!(*resources, json!({"requests": {"cpu": "100m"}, "limits": {"cpu": "500m"}}));
    assert_eq!(
        filled.annotation("kubernetes.io/limit-ranger"),
        Some("LimitRanger plugin set: cpu request for container c0; cpu limit for container c0")
    );
    for (resources, why) in [
        (
            vec![json!({"limits": {"cpu": "2"}})],
            "[maximum cpu usage per Container is 1, but limit is 2, maximum cpu usage per Pod is 1500m, but limit is 2]",
        ),
        (vec![json!({"requests": {"cpu": "10m"}})], "minimum cpu usage per Container is 50m, but request is 10m"),
        (vec![json!({"limits": {"cpu": "900m"}}); 2], "maximum cpu usage per Pod is 1500m, but limit is 1800m"),
    ] {
        let refused = admit(&chain, &UserInfo::default(), Operation::Create, "pods", &mut pod(&resources)).await;
        assert_eq!(refused, Err(format!("pods \"p\" is forbidden: {why}")));
    }
}

#[tokio::test]
async fn a_certificate_request_says_who_asks() {
    let chain = chain(&[]).await;
    let kind = Kinds::builtin().find("certificates.k8s.io", "v1", "certificatesigningrequests").unwrap();
    let user = UserInfo::new("jane", &["dev"]);
    let attributes = Attributes {
        kind: &*kind,
        namespace: "",
        name: "r",
        operation: Operation::Create,
        subresource: None,
        user: &user,
        dry_run: false,
    };
    let forged = br#"{"metadata":{"name":"r"},"spec":{"username":"system:admin","groups":["system:masters"]},"status":{"certificate":"eA=="}}"#;
    let mut request = Object::from_json(forged).unwrap();
    chain.mutate(&attributes, &mut request, None, &mut Vec::new()).await.unwrap();
    assert_eq!(request.str_at(&["spec", "username"]), Some("jane"));
    assert_eq!(request.get(&["spec", "groups"]), Some(&json!(["dev"])));
    assert_eq!(request.status(), None);
}
