//! The verbs, over the in-memory store.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::*;
use crate::api::selector::{field, label};
use crate::rt::clock::FakeClock;
use crate::store::memory::MemoryStore;
use crate::store::watch::Window;

struct Bed {
    registry: Arc<Registry>,
    user: Arc<UserInfo>,
}

impl Bed {
    async fn new() -> Self {
        Self::with_window(Window::default()).await
    }

    async fn with_window(window: Window) -> Self {
        let clock = FakeClock::new("2026-01-01T00:00:00Z".parse().unwrap());
        let store = MemoryStore::with_window(clock.clone(), window);
        let registry = Registry::new(store, Arc::new(Kinds::builtin()), Arc::new(AdmitAll), clock);
        let bed = Self { registry, user: Arc::new(UserInfo::new("tester", &[])) };
        bed.create("namespaces", "", json!({"metadata": {"name": "default"}})).await.unwrap();
        bed.registry.ensure_service_cidr("10.96.0.0/24").await.unwrap();
        bed
    }

    fn kind(&self, plural: &str) -> Arc<dyn Kind> {
        let groups = [("", "v1"), ("apps", "v1"), ("policy", "v1"), ("coordination.k8s.io", "v1")];
        groups.iter().find_map(|(group, version)| self.registry.kinds.find(group, version, plural)).unwrap()
    }

    fn request(&self, plural: &str, namespace: &str, name: &str) -> WriteRequest {
        WriteRequest::new(self.kind(plural), namespace, name, Arc::clone(&self.user))
    }

    async fn create(&self, plural: &str, namespace: &str, value: Value) -> Result<Object, ApiError> {
        let request = self.request(plural, namespace, "");
        let mut object: Object = serde_json::from_value(value).unwrap();
        object.set(&["apiVersion"], request.kind.names().api_version());
        object.set(&["kind"], request.kind.names().kind);
        let outcome = self.registry.create(&request, object).await?;
        self.registry.decode(&*request.kind, &outcome.entry)
    }

    async fn config_map(&self, name: &str, labels: Value) -> Object {
        self.create("configmaps", "default", json!({"metadata": {"name": name, "labels": labels}})).await.unwrap()
    }

    async fn update(&self, plural: &str, object: &Object) -> Result<Object, ApiError> {
        let request = self.request(plural, object.namespace(), object.name());
        let outcome = self.registry.update(&request, object.clone()).await?;
        self.registry.decode(&*request.kind, &outcome.entry)
    }

    fn list(&self, options: &ListOptions) -> Result<Listing, ApiError> {
        self.registry.list(&*self.kind("configmaps"), "default", options)
    }
}

fn names(listing: &Listing) -> Vec<String> {
    listing.entries.iter().map(|entry| list::names_of(&entry.key).1.to_owned()).collect()
}

#[tokio::test]
async fn who_may_not_create_does_so_by_no_other_verb() {
    let bed = Bed::new().await;
    let refused =
        |plural: &str| WriteRequest { create_refused: Some(ApiError::bad_request("no")), ..bed.request(plural, "default", "a") };
    let object = |kind: &str| {
        let value = json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": "a", "namespace": "default"}});
        serde_json::from_value::<Object>(value).unwrap()
    };
    let put = bed.registry.update(&refused("endpoints"), object("Endpoints")).await;
    assert_eq!(put.unwrap_err().message, "no");
    let applied = bed.registry.apply(&refused("configmaps"), &object("ConfigMap"), &ApplyOptions::default()).await;
    assert_eq!(applied.unwrap_err().message, "no");
    // What is there is changed all the same.
    let made = bed.config_map("a", json!({})).await;
    let changed = bed.registry.update(&refused("configmaps"), made).await;
    assert!(changed.is_ok(), "{changed:?}");
}

#[tokio::test]
async fn create_sets_what_the_system_sets() {
    let bed = Bed::new().await;
    let made = bed.create("configmaps", "default", json!({"metadata": {"generateName": "a-", "uid": "mine"}})).await.unwrap();
    assert!(made.name().starts_with("a-") && made.name().len() == 7, "{}", made.name());
    assert!(made.uid() != "mine" && !made.uid().is_empty() && made.resource_version() != "");
    assert_eq!(made.str_at(&["metadata", "creationTimestamp"]), Some("2026-01-01T00:00:00Z"));
    assert_eq!(made.namespace(), "default");
    let taken = bed.create("configmaps", "default", json!({"metadata": {"name": made.name()}})).await.unwrap_err();
    assert_eq!((taken.code, taken.message), (409, format!("configmaps {:?} already exists", made.name())));
    let nowhere = bed.create("configmaps", "nowhere", json!({"metadata": {"name": "a"}})).await.unwrap_err();
    assert_eq!((nowhere.code, nowhere.message.as_str()), (404, "namespaces \"nowhere\" not found"));
    let nameless = bed.create("configmaps", "default", json!({"metadata": {}})).await.unwrap_err();
    assert_eq!(nameless.message, "ConfigMap \"\" is invalid: metadata.name: Required value: name or generateName is required");
}

#[tokio::test]
async fn update_locks_and_a_no_op_writes_nothing() {
    let bed = Bed::new().await;
    let mut first = bed.config_map("a", json!({})).await;
    let same = bed.update("configmaps", &first).await.unwrap();
    assert_eq!(same, first);
    let old = first.clone();
    first.set(&["data", "key"], "1");
    let second = bed.update("configmaps", &first).await.unwrap();
    assert_ne!(second.resource_version(), first.resource_version());
    let mut late = old;
    late.set(&["data", "key"], "2");
    let conflict = bed.update("configmaps", &late).await.unwrap_err();
    assert!(conflict.is_conflict());
    assert_eq!(
        conflict.message,
        "Operation cannot be fulfilled on configmaps \"a\": the object has been modified; please apply your changes to the latest version and try again"
    );
    late.remove(&["metadata", "resourceVersion"]);
    assert_eq!(bed.update("configmaps", &late).await.unwrap().str_at(&["data", "key"]), Some("2"));
    late.set(&["metadata", "uid"], "other");
    assert!(bed.update("configmaps", &late).await.unwrap_err().is_conflict());
}

#[tokio::test]
async fn patches_apply_and_retry_without_a_revision() {
    let bed = Bed::new().await;
    bed.config_map("a", json!({})).await;
    let request = bed.request("configmaps", "default", "a");
    for (patch_type, patch, key, value) in [
        (PatchType::Merge, r#"{"data":{"a":"1","b":"2"}}"#, "a", Some("1")),
        (PatchType::Merge, r#"{"data":{"b":null}}"#, "b", None),
        (PatchType::Json, r#"[{"op":"replace","path":"/data/a","value":"3"}]"#, "a", Some("3")),
    ] {
        let outcome = bed.registry.patch(&request, patch_type, patch.as_bytes()).await.unwrap();
        let object = bed.registry.decode(&*request.kind, &outcome.entry).unwrap();
        assert_eq!(object.str_at(&["data", key]), value, "{patch}");
    }
    for (patch, code) in [
        (r#"[{"op":"test","path":"/data/a","value":"9"}]"#, 422),
        (r#"[{"op":"remove","path":"/data/none"}]"#, 422),
        ("[1]", 400),
        ("{", 400),
    ] {
        assert_eq!(bed.registry.patch(&request, PatchType::Json, patch.as_bytes()).await.unwrap_err().code, code, "{patch}");
    }
    let stale = r#"{"metadata":{"resourceVersion":"1"}}"#;
    assert!(bed.registry.patch(&request, PatchType::Merge, stale.as_bytes()).await.unwrap_err().is_conflict());
    let (one, two) = tokio::join!(
        bed.registry.patch(&request, PatchType::Merge, br#"{"data":{"x":"1"}}"#),
        bed.registry.patch(&request, PatchType::Merge, br#"{"data":{"y":"1"}}"#),
    );
    assert!(one.is_ok() && two.is_ok());
}

#[tokio::test]
async fn finalizers_and_preconditions_hold_a_delete() {
    let bed = Bed::new().await;
    let object = bed.create("configmaps", "default", json!({"metadata": {"name": "a", "finalizers": ["x.io/y"]}})).await.unwrap();
    let request = bed.request("configmaps", "default", "a");
    let wrong = DeleteOptions {
        preconditions: Preconditions { uid: Some("other".to_owned()), resource_version: None },
        ..DeleteOptions::default()
    };
    assert!(bed.registry.delete(&request, &wrong).await.unwrap_err().is_conflict());
    let outcome = bed.registry.delete(&request, &DeleteOptions::default()).await.unwrap();
    assert!(!outcome.deleted);
    let mut marked = bed.registry.get_object(&*request.kind, "default", "a").unwrap();
    assert!(marked.is_deleting() && marked.uid() == object.uid());
    crate::api::meta::set_finalizers(&mut marked, &[]);
    let outcome = bed.registry.update(&request, marked).await.unwrap();
    assert!(outcome.deleted);
    assert!(bed.registry.get(&*request.kind, "default", "a").unwrap_err().is_not_found());
}

#[tokio::test]
async fn status_and_scale_are_apart_from_spec() {
    let bed = Bed::new().await;
    let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let spec = json!({"replicas": 1, "selector": {"matchLabels": {"a": "b"}}, "template": template});
    let made = bed.create("deployments", "default", json!({"metadata": {"name": "a"}, "spec": spec})).await.unwrap();
    assert_eq!(made.generation(), 1);
    let mut request = bed.request("deployments", "default", "a");
    request.subresource = Some(Subresource::Status);
    let mut object = made.clone();
    object.set(&["status", "replicas"], 1);
    object.set(&["spec", "replicas"], 7);
    let outcome = bed.registry.update(&request, object).await.unwrap();
    let object = bed.registry.decode(&*request.kind, &outcome.entry).unwrap();
    assert_eq!((object.get(&["spec", "replicas"]), object.get(&["status", "replicas"])), (Some(&json!(1)), Some(&json!(1))));
    assert_eq!(object.generation(), 1);
    request.subresource = Some(Subresource::Scale);
    let patch = br#"{"spec":{"replicas":5}}"#;
    let (scale, _) = bed.registry.patch_scale(&request, PatchType::Merge, patch).await.unwrap();
    assert_eq!(scale.get(&["spec", "replicas"]), Some(&json!(5)));
    assert_eq!(scale.str_at(&["status", "selector"]), Some("a=b"));
    let object = bed.registry.get_object(&*request.kind, "default", "a").unwrap();
    assert_eq!((object.generation(), object.get(&["status", "replicas"])), (2, Some(&json!(1))));
}

#[tokio::test]
async fn pages_are_one_snapshot() {
    let bed = Bed::new().await;
    for index in 0..7 {
        bed.config_map(&format!("a{index}"), json!({"even": (index % 2 == 0).to_string()})).await;
    }
    let mut options = ListOptions { limit: 3, ..ListOptions::default() };
    let (mut seen, mut revisions) = (Vec::new(), Vec::new());
    loop {
        let page = bed.list(&options).unwrap();
        seen.extend(names(&page));
        revisions.push(page.revision);
        if page.continue_token.is_empty() {
            break;
        }
        assert_eq!(page.remaining, Some(7 - seen.len()));
        bed.config_map(&format!("a{}z", seen.len()), json!({})).await;
        options.continue_token = page.continue_token;
    }
    assert_eq!(seen, ["a0", "a1", "a2", "a3", "a4", "a5", "a6"]);
    assert!(revisions.iter().all(|revision| *revision == revisions[0]));
    for (labels, fields, found) in [
        ("even=true", "", 4),
        ("even in (true,false)", "", 7),
        ("even!=true,even", "", 3),
        ("", "metadata.name=a1", 1),
        ("even=false", "metadata.name!=a1", 2),
    ] {
        let options = ListOptions {
            labels: label::Selector::parse(labels).unwrap(),
            fields: field::Selector::parse(fields).unwrap(),
            ..ListOptions::default()
        };
        assert_eq!(bed.list(&options).unwrap().entries.len(), found, "{labels} {fields}");
    }
    let unknown = ListOptions { fields: field::Selector::parse("spec.x=1").unwrap(), ..ListOptions::default() };
    assert_eq!(bed.list(&unknown).unwrap_err().code, 400);
}

#[tokio::test]
async fn revisions_of_lists() {
    let bed = Bed::new().await;
    let first = bed.config_map("a", json!({})).await;
    bed.config_map("b", json!({})).await;
    for (version, wanted, found) in [
        ("", "", Ok(2)),
        ("0", "", Ok(2)),
        ("first", "Exact", Ok(1)),
        ("first", "NotOlderThan", Ok(2)),
        ("999", "", Err(504)),
        ("x", "", Err(400)),
        ("", "Exact", Err(422)),
    ] {
        let version = version.replace("first", first.resource_version());
        let options =
            ListOptions { resource_version: version, resource_version_match: wanted.to_owned(), ..ListOptions::default() };
        assert_eq!(bed.list(&options).map(|page| page.entries.len()).map_err(|error| error.code), found, "{options:?}");
    }
    let late = ListOptions { resource_version: "999".to_owned(), ..ListOptions::default() };
    assert!(bed.list(&late).unwrap_err().message.contains("Too large resource version: 999, current: "));
}

#[tokio::test]
async fn what_is_too_old_is_expired() {
    let window = Window { revisions: 3, age: Duration::from_secs(600), bytes: 1 << 20 };
    let bed = Bed::with_window(window).await;
    let first = bed.config_map("a", json!({})).await;
    let page = bed.config_map("b", json!({})).await;
    let token = bed.list(&ListOptions { limit: 1, ..ListOptions::default() }).unwrap().continue_token;
    for index in 0..9 {
        bed.config_map(&format!("c{index}"), json!({})).await;
    }
    let expired = bed.list(&ListOptions { limit: 100, continue_token: token, ..ListOptions::default() }).unwrap_err();
    assert!(expired.is_expired());
    let token = expired.details.continue_token.clone();
    let rest = bed.list(&ListOptions { limit: 100, continue_token: token, ..ListOptions::default() }).unwrap();
    assert_eq!(names(&rest).first().map(String::as_str), Some(page.name()));
    let list = ListOptions { resource_version: first.resource_version().to_owned(), ..ListOptions::default() };
    let watch = bed.registry.watch(&*bed.kind("configmaps"), "default", WatchOptions { list, ..WatchOptions::default() });
    assert!(watch.err().unwrap().is_expired());
}

#[tokio::test]
async fn a_watch_sees_objects_enter_and_leave_its_selection() {
    let bed = Bed::new().await;
    let mut object = bed.config_map("a", json!({"app": "web"})).await;
    let list = ListOptions { labels: label::Selector::parse("app=web").unwrap(), ..ListOptions::default() };
    let options = WatchOptions { list, send_initial_events: None, allow_bookmarks: true };
    let mut watch = bed.registry.watch(&*bed.kind("configmaps"), "default", options).unwrap();
    object.set(&["metadata", "labels", "app"], "api");
    object = bed.update("configmaps", &object).await.unwrap();
    let left = object.resource_version().to_owned();
    bed.config_map("other", json!({})).await;
    object.set(&["metadata", "labels", "app"], "web");
    object = bed.update("configmaps", &object).await.unwrap();
    object.set(&["data", "x"], "1");
    bed.update("configmaps", &object).await.unwrap();
    bed.registry.delete(&bed.request("configmaps", "default", "a"), &DeleteOptions::default()).await.unwrap();
    let mut seen = Vec::new();
    while seen.len() < 5 {
        for event in watch.next_batch().await.unwrap().unwrap() {
            seen.push(match event {
                WatchEvent::Added(_) => "ADDED",
                WatchEvent::Modified(_) => "MODIFIED",
                WatchEvent::Deleted(entry) => {
                    let object = bed.registry.decode(&*bed.kind("configmaps"), &entry).unwrap();
                    if seen.len() == 1 {
                        assert_eq!(
                            (object.resource_version(), object.str_at(&["metadata", "labels", "app"])),
                            (&*left, Some("web"))
                        );
                    }
                    "DELETED"
                }
                WatchEvent::Bookmark { .. } => "BOOKMARK",
            });
        }
    }
    assert_eq!(seen, ["ADDED", "DELETED", "ADDED", "MODIFIED", "DELETED"]);
}

#[tokio::test]
async fn a_pod_is_bound_once() {
    let bed = Bed::new().await;
    let spec = json!({"containers": [{"name": "c", "image": "i"}]});
    bed.create("pods", "default", json!({"metadata": {"name": "a"}, "spec": spec})).await.unwrap();
    let mut request = bed.request("pods", "default", "a");
    request.subresource = Some(Subresource::Binding);
    let binding: Object =
        serde_json::from_value(json!({"metadata": {"name": "a"}, "target": {"kind": "Node", "name": "n1"}})).unwrap();
    bed.registry.bind(&request, &binding).await.unwrap();
    let pod = bed.registry.get_object(&*request.kind, "default", "a").unwrap();
    assert_eq!(pod.str_at(&["spec", "nodeName"]), Some("n1"));
    let again = bed.registry.bind(&request, &binding).await.unwrap_err();
    assert_eq!(again.message, "Operation cannot be fulfilled on pods/binding \"a\": pod a is already assigned to node \"n1\"");
    request.subresource = None;
    let outcome = bed.registry.delete(&request, &DeleteOptions::default()).await.unwrap();
    assert!(!outcome.deleted);
    let now = DeleteOptions { grace_period_seconds: Some(0), ..DeleteOptions::default() };
    assert!(bed.registry.delete(&request, &now).await.unwrap().deleted);
}

#[tokio::test]
async fn families_and_node_ports_are_those_of_the_cluster() {
    let bed = Bed::new().await;
    let ports = json!([{"port": 80, "protocol": "TCP"}]);
    for (spec, expected) in [
        (json!({"ipFamilyPolicy": "PreferDualStack"}), Ok("PreferDualStack [\"IPv4\"]")),
        (json!({"ipFamilies": ["IPv4"]}), Ok("SingleStack [\"IPv4\"]")),
        (json!({"clusterIP": "None"}), Ok("RequireDualStack [\"IPv4\",\"IPv6\"]")),
        (
            json!({"clusterIP": "None", "selector": {"a": "b"}, "ipFamilyPolicy": "PreferDualStack"}),
            Ok("PreferDualStack [\"IPv4\"]"),
        ),
        (
            json!({"ipFamilyPolicy": "RequireDualStack"}),
            Err(
                "spec.ipFamilyPolicy: Invalid value: \"RequireDualStack\": this cluster is not configured for dual-stack services",
            ),
        ),
        (json!({"ipFamilies": ["IPv6"]}), Err("spec.ipFamilies[0]: Invalid value: \"IPv6\": not configured on this cluster")),
        (
            json!({"ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": "SingleStack"}),
            Err("must be RequireDualStack or PreferDualStack when multiple 'ipFamilies' are specified"),
        ),
        (json!({"clusterIP": "fd00::1"}), Err("IPv6 is not configured on this cluster")),
    ] {
        let mut spec = spec;
        spec["ports"] = ports.clone();
        let made = bed.create("services", "default", json!({"metadata": {"generateName": "family-"}, "spec": spec})).await;
        let shown = |made: &Object| {
            format!("{} {}", made.str_at(&["spec", "ipFamilyPolicy"]).unwrap(), made.get(&["spec", "ipFamilies"]).unwrap())
        };
        match (made, expected) {
            (Ok(made), Ok(expected)) => assert_eq!(shown(&made), expected, "{spec}"),
            (Err(error), Err(expected)) => assert!(error.code == 422 && error.message.contains(expected), "{spec}: {error}"),
            (made, _) => panic!("{spec}: {made:?}"),
        }
    }
    let narrow = bed.registry.with_node_ports("31000-31001".parse().unwrap());
    let make = |name: &'static str, node_port: i64| {
        let ports = json!([{"port": 80, "protocol": "TCP", "nodePort": node_port}]);
        let spec = json!({"type": "NodePort", "ports": ports});
        let other = Bed { registry: Arc::clone(&narrow), user: Arc::clone(&bed.user) };
        async move {
            let made = other.create("services", "default", json!({"metadata": {"name": name}, "spec": spec})).await;
            made.map(drop).map_err(|error| error.message)
        }
    };
    let error = make("low", 30_999).await.unwrap_err();
    assert!(error.contains("provided port is not in the valid range. The range of valid ports is 31000-31001"), "{error}");
    make("five", 0).await.unwrap();
    make("six", 0).await.unwrap();
    let error = make("seven", 31_001).await.unwrap_err();
    assert!(error.contains("spec.ports[0].nodePort: Invalid value: 31001: provided port is already allocated"), "{error}");
    assert!(make("eight", 0).await.unwrap_err().contains("range is full"));
}

#[tokio::test]
async fn services_get_addresses_and_ports_that_nobody_else_has() {
    let bed = Bed::new().await;
    let service = |name: &str, spec: Value| json!({"metadata": {"name": name}, "spec": spec});
    let ports = json!([{"port": 80, "protocol": "TCP"}]);
    let make = |name: &'static str| bed.create("services", "default", service(name, json!({"type": "NodePort", "ports": ports})));
    let (one, two) = tokio::join!(make("one"), make("two"));
    let (one, two) = (one.unwrap(), two.unwrap());
    let address = one.str_at(&["spec", "clusterIP"]).unwrap().to_owned();
    assert!(address.starts_with("10.96.0.") && two.str_at(&["spec", "clusterIP"]) != Some(&address));
    let node_port = |service: &Object| service.get(&["spec", "ports"]).unwrap()[0]["nodePort"].as_i64().unwrap();
    assert!((30_000..=32_767).contains(&node_port(&one)) && node_port(&one) != node_port(&two));
    for spec in [json!({"clusterIP": address, "ports": ports}), json!({"clusterIP": "192.168.1.1", "ports": ports})] {
        let error = bed.create("services", "default", service("three", spec)).await.unwrap_err();
        assert!(error.code == 422 && error.message.contains("failed to allocate IP"), "{error}");
    }
    bed.registry.delete(&bed.request("services", "default", "one"), &DeleteOptions::default()).await.unwrap();
    let three = bed.create("services", "default", service("three", json!({"clusterIP": address, "ports": ports}))).await.unwrap();
    assert_eq!(three.str_at(&["spec", "clusterIP"]), Some(&*address));
    let headless =
        bed.create("services", "default", service("four", json!({"clusterIP": "None", "ports": ports}))).await.unwrap();
    assert_eq!(headless.str_at(&["spec", "clusterIP"]), Some("None"));
}

impl Bed {
    async fn apply(&self, plural: &str, manager: &str, config: Value, options: &ApplyOptions) -> Result<Object, ApiError> {
        let config: Object = serde_json::from_value(config).unwrap();
        let mut request = self.request(plural, "default", config.name());
        request.field_manager = manager.to_owned();
        let outcome = self.registry.apply(&request, &config, options).await?;
        self.registry.decode(&*request.kind, &outcome.entry)
    }
}

fn owners(object: &Object) -> Vec<String> {
    let list = object.get(&managed::PATH).and_then(Value::as_array).into_iter().flatten();
    list.map(|entry| {
        let text = |key: &str| entry[key].as_str().unwrap_or("-").to_owned();
        format!("{} {} {}", text("manager"), text("operation"), text("subresource"))
    })
    .collect()
}

#[tokio::test]
async fn an_apply_creates_and_from_then_on_every_writer_is_kept() {
    let bed = Bed::new().await;
    let plain = ApplyOptions::default();
    let config = |replicas: i64| {
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "creationTimestamp": null}, "spec": {
            "replicas": replicas, "selector": {"matchLabels": {"app": "web"}}, "template": {
                "metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "main", "image": "nginx:1.14"}]}}}, "status": {}})
    };
    let made = bed.apply("deployments", "one", config(1), &plain).await.unwrap();
    assert_eq!((owners(&made), made.generation()), (vec!["one Apply -".to_owned()], 1));
    // The same again writes nothing.
    assert_eq!(bed.apply("deployments", "one", config(1), &plain).await.unwrap(), made);
    // A status, a scale, an update.
    let mut request = bed.request("deployments", "default", "web");
    request.subresource = Some(Subresource::Status);
    request.field_manager = "controller".to_owned();
    let mut status = made.clone();
    status.set(&["status", "replicas"], 1);
    bed.registry.update(&request, status).await.unwrap();
    request.subresource = Some(Subresource::Scale);
    request.field_manager = "scaler".to_owned();
    let mut scale = bed.registry.scale(&*request.kind, "default", "web").unwrap();
    scale.set(&["spec", "replicas"], 3);
    bed.registry.update_scale(&request, &scale).await.unwrap();
    let said = bed.apply("deployments", "one", config(2), &plain).await.unwrap_err();
    assert_eq!(
        (said.code, said.message.as_str()),
        (409, "Apply failed with 1 conflict: conflict with \"scaler\" with subresource \"scale\" using apps/v1: .spec.replicas")
    );
    assert_eq!(said.details.causes[0].reason, "FieldManagerConflict");
    let forced = ApplyOptions { force: true, ..ApplyOptions::default() };
    let taken = bed.apply("deployments", "one", config(2), &forced).await.unwrap();
    assert_eq!(taken.get(&["spec", "replicas"]), Some(&json!(2)));
    assert_eq!(owners(&taken), ["one Apply -", "controller Update status"]);
    // Who clears the list ends it.
    let mut cleared = taken.clone();
    cleared.set(&managed::PATH, json!([{}]));
    let cleared = bed.update("deployments", &cleared).await.unwrap();
    assert_eq!(owners(&cleared), [""; 0]);
}

#[tokio::test]
async fn an_apply_to_a_scale_and_what_was_there_before() {
    let bed = Bed::new().await;
    let spec = json!({"replicas": 1, "selector": {"matchLabels": {"app": "web"}}, "template": {
        "metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "main", "image": "nginx:1.14"}]}}});
    let made = bed.create("deployments", "default", json!({"metadata": {"name": "web"}, "spec": spec})).await.unwrap();
    assert_eq!(owners(&made), [""; 0]);
    let mut request = bed.request("deployments", "default", "web");
    request.subresource = Some(Subresource::Scale);
    request.field_manager = "scaler".to_owned();
    let scale = json!({"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": {"name": "web"}, "spec": {"replicas": 4}});
    let scale: Object = serde_json::from_value(scale).unwrap();
    let said = bed.registry.apply_scale(&request, &scale, &ApplyOptions::default()).await.unwrap_err();
    assert_eq!(said.message, "Apply failed with 1 conflict: conflict with \"before-first-apply\" using apps/v1: .spec.replicas");
    let forced = ApplyOptions { force: true, ..ApplyOptions::default() };
    let (scale, _) = bed.registry.apply_scale(&request, &scale, &forced).await.unwrap();
    assert_eq!(scale.get(&["spec", "replicas"]), Some(&json!(4)));
    let entry = bed.registry.get(&*request.kind, "default", "web").unwrap();
    let stored = bed.registry.decode(&*request.kind, &entry).unwrap();
    assert_eq!(owners(&stored), ["scaler Apply scale", "before-first-apply Update -"]);
}

#[tokio::test]
async fn applies_that_are_refused() {
    let bed = Bed::new().await;
    let plain = ApplyOptions::default();
    bed.config_map("a", json!({})).await;
    let map = |extra: Value| {
        let mut config = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}});
        config.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        config
    };
    for (config, code, message) in [
        (map(json!({"kind": "Secret"})), 400, "invalid object type: /v1, Kind=Secret"),
        (map(json!({"metadata": {"name": "a", "managedFields": [{}]}})), 400, "metadata.managedFields must be nil"),
        (
            map(json!({"spec": 1})),
            500,
            "failed to create typed patch object (/a; /v1, Kind=ConfigMap): .spec: field not declared in schema",
        ),
        (
            map(json!({"metadata": {"name": "a", "namespace": "other"}})),
            400,
            "the namespace of the object (other) does not match the namespace on the request (default)",
        ),
        (
            map(json!({"metadata": {"name": "a", "resourceVersion": "1"}})),
            409,
            "Operation cannot be fulfilled on configmaps \"a\": the object has been modified; please apply your changes to the latest version and try again",
        ),
        (
            map(json!({"metadata": {"name": "b", "uid": "x"}})),
            409,
            "Operation cannot be fulfilled on configmaps \"b\": uid mismatch: the provided object specified uid x, and no existing object was found",
        ),
    ] {
        let error = bed.apply("configmaps", "one", config, &plain).await.unwrap_err();
        assert_eq!((error.code, error.message.as_str()), (code, message));
    }
}
