//! Authorization against a store in memory.

use std::sync::Arc;

use serde_json::{Value, json};

use super::*;
use crate::api::Object;
use crate::kinds::Kinds;
use crate::rt::SystemClock;
use crate::store::memory::MemoryStore;
use crate::store::{Draft, Durability, Index, Transaction, Write};

/// A store in memory that holds these objects by key.
pub(in crate::auth) async fn memory_with(objects: &[(&str, Value)]) -> Arc<dyn Store> {
    let store: Arc<dyn Store> = MemoryStore::new(Arc::new(SystemClock));
    let writes = objects.iter().map(|(key, object)| {
        let mut object = object.clone();
        if !object.is_object() {
            object = json!({});
        }
        object["metadata"]["resourceVersion"] = json!("");
        let node = object["spec"]["nodeName"].as_str().map(|node| (Arc::from("spec.nodeName"), Arc::from(node)));
        let body = object.to_string();
        let at = body.find("\"resourceVersion\":\"").unwrap() + "\"resourceVersion\":\"".len();
        let index = Index { labels: Vec::new(), fields: node.into_iter().collect() };
        let draft = Draft { body: body.into(), revision_at: u32::try_from(at).unwrap(), index };
        Write::Put { key: (*key).into(), draft }
    });
    let transaction = Transaction { guards: Vec::new(), writes: writes.collect(), durability: Durability::Synced };
    store.commit(transaction).await.unwrap();
    store
}

fn rule(groups: &[&str], resources: &[&str], verbs: &[&str], names: &[&str]) -> Value {
    json!({"apiGroups": groups, "resources": resources, "verbs": verbs, "resourceNames": names})
}

fn role(name: &str, namespace: Option<&str>, rules: Value) -> Value {
    json!({"metadata": {"name": name, "namespace": namespace}, "rules": rules})
}

fn binding(name: &str, namespace: Option<&str>, role: (&str, &str), subject: Value) -> Value {
    let (kind, to) = role;
    let role = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": to});
    json!({"metadata": {"name": name, "namespace": namespace}, "roleRef": role, "subjects": [subject]})
}

async fn authorizer() -> Authorizer {
    let rbac = "rbac.authorization.k8s.io";
    let user = |name: &str| json!({"kind": "User", "name": name});
    let reader = json!([rule(&[""], &["pods", "pods/log", "*/scale"], &["get", "list"], &[])]);
    let named = json!([rule(&["apps"], &["*"], &["*"], &["web"])]);
    let health = json!([{"verbs": ["get"], "nonResourceURLs": ["/healthz", "/live*"]}]);
    let objects = [
        (format!("{rbac}/clusterroles/reader"), role("reader", None, reader)),
        (format!("{rbac}/clusterroles/health"), role("health", None, health)),
        (format!("{rbac}/roles/ns/named"), role("named", Some("ns"), named)),
        (format!("{rbac}/clusterrolebindings/a"), binding("a", None, ("ClusterRole", "reader"), user("anna"))),
        (
            format!("{rbac}/clusterrolebindings/h"),
            binding("h", None, ("ClusterRole", "health"), json!({"kind": "Group", "name": "g"})),
        ),
        (format!("{rbac}/clusterrolebindings/m"), binding("m", None, ("ClusterRole", "gone"), user("mia"))),
        (format!("{rbac}/rolebindings/ns/b"), binding("b", Some("ns"), ("Role", "named"), user("bob"))),
        (
            format!("{rbac}/rolebindings/ns/s"),
            binding(
                "s",
                Some("ns"),
                ("ClusterRole", "reader"),
                json!({"kind": "ServiceAccount", "name": "sa", "namespace": "other"}),
            ),
        ),
    ];
    let objects: Vec<(&str, Value)> = objects.iter().map(|(key, object)| (key.as_str(), object.clone())).collect();
    Authorizer::new(memory_with(&objects).await)
}

#[tokio::test]
async fn rbac_by_table() {
    let authorizer = authorizer().await;
    // User, groups, verb, group, resource/subresource, namespace, name, allowed.
    let table: &[(&str, &[&str], &str, &str, &str, &str, &str, bool)] = &[
        ("anna", &[], "get", "", "pods", "ns", "p", true),
        ("anna", &[], "list", "", "pods", "", "", true),
        ("anna", &[], "delete", "", "pods", "ns", "p", false),
        ("anna", &[], "get", "", "pods/log", "ns", "p", true),
        ("anna", &[], "get", "", "pods/exec", "ns", "p", false),
        ("anna", &[], "get", "", "foos/scale", "ns", "p", true),
        ("anna", &[], "get", "apps", "pods", "ns", "p", false),
        ("bob", &[], "delete", "apps", "deployments", "ns", "web", true),
        ("bob", &[], "delete", "apps", "deployments/status", "ns", "web", true),
        ("bob", &[], "delete", "apps", "deployments", "ns", "api", false),
        ("bob", &[], "list", "apps", "deployments", "ns", "", false),
        ("bob", &[], "delete", "apps", "deployments", "other", "web", false),
        ("system:serviceaccount:other:sa", &[], "get", "", "pods", "ns", "p", true),
        ("system:serviceaccount:other:sa", &[], "get", "", "pods", "other", "p", false),
        ("root", &["system:masters"], "delete", "x", "y", "z", "", true),
        ("mia", &[], "get", "", "pods", "ns", "p", false),
    ];
    for (user, groups, verb, group, resource, namespace, name, allowed) in table {
        let (resource, sub) = resource.split_once('/').unwrap_or((resource, ""));
        let mut wanted = Attributes::resource(verb, group, resource, namespace, name);
        wanted.subresource = sub.to_owned();
        let decision = authorizer.authorize(&UserInfo::new(user, groups), &wanted);
        assert_eq!(decision.is_allowed(), *allowed, "{user} {wanted:?}: {decision:?}");
    }
    let decision = authorizer.authorize(&UserInfo::new("mia", &[]), &Attributes::resource("get", "", "pods", "", ""));
    let reason = "RBAC: clusterrole.rbac.authorization.k8s.io \"gone\" not found".to_owned();
    assert_eq!(decision, Decision::NoOpinion { reason });
    for (path, allowed) in [("/healthz", true), ("/livez", true), ("/live", true), ("/healthz/x", false), ("/", false)] {
        let decision = authorizer.authorize(&UserInfo::new("x", &["g"]), &Attributes::path("get", path));
        assert_eq!(decision.is_allowed(), allowed, "{path}");
    }
}

#[tokio::test]
async fn nobody_gives_what_they_lack() {
    let (authorizer, kinds) = (authorizer().await, Kinds::builtin());
    let anna = UserInfo::new("anna", &["g"]);
    let roles = kinds.find("rbac.authorization.k8s.io", "v1", "clusterroles").unwrap();
    let bindings = kinds.find("rbac.authorization.k8s.io", "v1", "clusterrolebindings").unwrap();
    let object = |value: Value| Object(value.as_object().unwrap().clone());
    let checked = |rules: Value| check_role(&authorizer, &anna, &*roles, &object(role("x", None, json!([rules]))));
    fn check_role(authorizer: &Authorizer, user: &UserInfo, kind: &dyn crate::api::Kind, object: &Object) -> Result<(), String> {
        escalation::check(authorizer, user, kind, "", object, None).map_err(|error| error.message)
    }
    assert_eq!(checked(rule(&[""], &["pods"], &["get"], &[])), Ok(()));
    assert_eq!(checked(rule(&[""], &["pods"], &["get"], &["one"])), Ok(()));
    let lacking = "clusterroles.rbac.authorization.k8s.io \"x\" is forbidden: user \"anna\" (groups=[\"g\"]) is attempting to grant \
                   RBAC permissions not currently held:\n{APIGroups:[\"\"], Resources:[\"pods\"], Verbs:[\"delete\"]}";
    assert_eq!(checked(rule(&[""], &["pods"], &["get", "delete"], &[])), Err(lacking.to_owned()));
    assert!(checked(rule(&["*"], &["*"], &["*"], &[])).is_err());
    for (to, allowed) in [("reader", true), ("health", true), ("gone", false)] {
        let object = object(binding("x", None, ("ClusterRole", to), json!({"kind": "User", "name": "eve"})));
        let bound = escalation::check(&authorizer, &anna, &*bindings, "", &object, None);
        assert_eq!(bound.is_ok(), allowed, "{to}: {bound:?}");
    }
}

#[tokio::test]
async fn a_node_reads_what_its_pods_refer_to() {
    let spec = json!({
        "nodeName": "n1", "containers": [{"name": "c", "envFrom": [{"configMapRef": {"name": "env"}}]}],
        "volumes": [{"name": "v", "secret": {"secretName": "vol"}}, {"name": "c", "persistentVolumeClaim": {"claimName": "data"}}],
        "imagePullSecrets": [{"name": "pull"}],
    });
    let objects = [
        ("core/pods/ns/a", json!({"metadata": {"name": "a", "namespace": "ns"}, "spec": spec})),
        ("core/pods/ns/b", json!({"metadata": {"name": "b", "namespace": "ns"}, "spec": {"nodeName": "n2", "containers": []}})),
    ];
    let asked = |node: &str| json!({"apiVersion": "certificates.k8s.io/v1", "kind": "PodCertificateRequest", "metadata": {}, "spec": {"nodeName": node}});
    let requests = [
        ("certificates.k8s.io/podcertificaterequests/ns/mine", asked("n1")),
        ("certificates.k8s.io/podcertificaterequests/ns/other", asked("n2")),
    ];
    let authorizer = Authorizer::new(memory_with(&[&objects[..], &requests[..]].concat()).await);
    let node = UserInfo::new("system:node:n1", &["system:nodes"]);
    let table: &[(&str, &str, &str, &str, &str, bool)] = &[
        ("get", "", "secrets", "ns", "vol", true),
        ("get", "", "secrets", "ns", "pull", true),
        ("get", "", "secrets", "ns", "other", false),
        ("get", "", "secrets", "other", "vol", false),
        ("list", "", "secrets", "ns", "", false),
        ("list", "", "secrets", "", "", false),
        ("get", "", "configmaps", "ns", "env", true),
        ("get", "", "configmaps", "ns", "vol", false),
        ("get", "", "persistentvolumeclaims", "ns", "data", true),
        ("create", "", "serviceaccounts/token", "ns", "default", true),
        ("create", "", "serviceaccounts/token", "ns", "other", false),
        ("patch", "", "nodes/status", "", "n1", true),
        ("patch", "", "nodes/status", "", "n2", false),
        ("update", "", "pods/status", "ns", "a", true),
        ("update", "", "pods/status", "ns", "b", false),
        ("delete", "", "pods", "ns", "a", true),
        ("delete", "", "pods", "ns", "b", false),
        ("update", "coordination.k8s.io", "leases", "kube-node-lease", "n1", true),
        ("update", "coordination.k8s.io", "leases", "kube-node-lease", "n2", false),
        ("update", "coordination.k8s.io", "leases", "default", "n1", false),
        ("get", "", "services", "", "", true),
        ("create", "", "namespaces", "", "", false),
        ("create", "certificates.k8s.io", "podcertificaterequests", "ns", "", true),
        ("get", "certificates.k8s.io", "podcertificaterequests", "ns", "mine", true),
        ("get", "certificates.k8s.io", "podcertificaterequests", "ns", "other", false),
        ("list", "certificates.k8s.io", "podcertificaterequests", "", "", false),
        ("update", "certificates.k8s.io", "podcertificaterequests/status", "ns", "mine", false),
        ("delete", "certificates.k8s.io", "podcertificaterequests", "ns", "mine", false),
    ];
    for (verb, group, resource, namespace, name, allowed) in table {
        let (resource, sub) = resource.split_once('/').unwrap_or((resource, ""));
        let mut wanted = Attributes::resource(verb, group, resource, namespace, name);
        wanted.subresource = sub.to_owned();
        assert_eq!(authorizer.authorize(&node, &wanted).is_allowed(), *allowed, "{wanted:?}");
    }
    for (selector, allowed) in [("spec.nodeName=n1", true), ("spec.nodeName=n2", false), ("spec.nodeName!=n1", false)] {
        let mut wanted = Attributes::resource("watch", "certificates.k8s.io", "podcertificaterequests", "", "");
        wanted.field_selector = selector.to_owned();
        assert_eq!(authorizer.authorize(&node, &wanted).is_allowed(), allowed, "{selector}");
    }
}
