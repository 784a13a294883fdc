//! Requests and answers, over the in-memory store.

use std::sync::Arc;

use ::http::{Request, StatusCode};
use http_body_util::BodyExt;
use serde_json::{Value, json};

use super::super::{RequestContext, RequestInfo};
use super::resource;
use crate::auth::UserInfo;
use crate::http::{HttpResponse, full};
use crate::kinds::Kinds;
use crate::registry::{AdmitAll, Registry};
use crate::rt::clock::FakeClock;
use crate::store::memory::MemoryStore;

const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";

struct Api(Arc<Registry>);

struct Answer {
    status: u16,
    warnings: Vec<String>,
    body: Value,
}

impl Api {
    async fn new() -> Self {
        let clock = FakeClock::new("2026-01-01T00:00:00Z".parse().unwrap());
        let store = MemoryStore::new(clock.clone());
        let api = Self(Registry::new(store, Arc::new(Kinds::builtin()), Arc::new(AdmitAll), clock));
        api.call("POST", "/api/v1/namespaces", &json!({"metadata": {"name": "default"}})).await;
        api
    }

    /// The context that the request info filter would make of `/api/v1/…` and `/apis/G/V/…`.
    fn context(method: &str, target: &str) -> RequestContext {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let query: Vec<(String, String)> = query
            .split('&')
            .filter(|pair| !pair.is_empty())
            .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
            .map(|(key, value)| (key.to_owned(), value.replace("%3D", "=")))
            .collect();
        let mut parts: Vec<String> = path.trim_start_matches('/').split('/').map(ToOwned::to_owned).collect();
        let mut info = RequestInfo { is_resource: true, path: path.to_owned(), ..RequestInfo::default() };
        if parts.remove(0) == "apis" {
            info.group = parts.remove(0);
        }
        info.version = parts.remove(0);
        if parts[0] == "namespaces" && parts.len() > 2 {
            parts.remove(0);
            info.namespace = parts.remove(0);
        }
        let mut parts = parts.into_iter();
        info.resource = parts.next().unwrap_or_default();
        info.name = parts.next().unwrap_or_default();
        info.subresource = parts.next().unwrap_or_default();
        let watches = query.iter().any(|(key, _)| key == "watch");
        info.verb = match (method, info.name.is_empty()) {
            ("GET", _) if watches => "watch",
            ("GET", true) => "list",
            ("GET", false) => "get",
            ("POST", _) => "create",
            ("PUT", _) => "update",
            ("PATCH", _) => "patch",
            ("DELETE", true) => "deletecollection",
            _ => "delete",
        }
        .to_owned();
        RequestContext { info, user: Arc::new(UserInfo::new("tester", &[])), query, create_refused: None }
    }

    async fn send(&self, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> HttpResponse {
        let context = Self::context(method, target);
        let mut request = Request::builder().method(method).uri(target);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(full(body.to_vec())).unwrap();
        let found = resource::target(&self.0, &context);
        let answer = match found {
            Ok((kind, subresource)) => resource::serve(&self.0, &context, kind, subresource, request).await,
            Err(error) => Err(error),
        };
        answer.unwrap_or_else(|error| {
            let mut response = HttpResponse::new(full(error.to_value().to_string()));
            *response.status_mut() = StatusCode::from_u16(error.code).unwrap();
            response
        })
    }

    async fn call(&self, method: &str, target: &str, body: &Value) -> Answer {
        let content_type = if method == "PATCH" { "application/strategic-merge-patch+json" } else { "application/json" };
        let text = if body.is_null() { String::new() } else { body.to_string() };
        read(self.send(method, target, &[("content-type", content_type)], text.as_bytes()).await).await
    }

    async fn get(&self, target: &str, accept: &str) -> Value {
        read(self.send("GET", target, &[("accept", accept)], b"").await).await.body
    }
}

async fn read(response: HttpResponse) -> Answer {
    let status = response.status().as_u16();
    let warnings = response.headers().get_all("warning").iter().map(|value| value.to_str().unwrap().to_owned()).collect();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    Answer { status, warnings, body: serde_json::from_slice(&bytes).unwrap_or(Value::Null) }
}

#[tokio::test]
async fn the_life_of_an_object() {
    let api = Api::new().await;
    let maps = "/api/v1/namespaces/default/configmaps";
    let one = format!("{maps}/a");
    let made = api
        .call("POST", maps, &json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"k": "v"}}))
        .await;
    assert_eq!((made.status, &made.body["kind"]), (201, &json!("ConfigMap")));
    let version = made.body["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    assert_eq!(api.get(&one, "application/json").await, made.body);
    let patched = api.call("PATCH", &one, &json!({"data": {"k": null, "l": "w"}})).await;
    assert_eq!((patched.status, &patched.body["data"]), (200, &json!({"l": "w"})));
    let stale = api.call("PUT", &one, &made.body).await;
    assert_eq!((stale.status, &stale.body["reason"]), (409, &json!("Conflict")));
    assert_ne!(patched.body["metadata"]["resourceVersion"], json!(version));
    let gone = api.call("DELETE", &one, &Value::Null).await;
    assert_eq!(
        (gone.status, &gone.body["status"], &gone.body["details"]["kind"]),
        (200, &json!("Success"), &json!("configmaps"))
    );
    assert_eq!(api.call("GET", &one, &Value::Null).await.body["message"], json!("configmaps \"a\" not found"));
}

#[tokio::test]
async fn bodies_must_match_the_url_and_the_type() {
    let api = Api::new().await;
    let maps = "/api/v1/namespaces/default/configmaps";
    for (target, body, code, words) in [
        (maps, json!({"kind": "Secret", "metadata": {"name": "a"}}), 400, "cannot be handled as a ConfigMap"),
        (maps, json!({"apiVersion": "apps/v1"}), 400, "the API version in the data (apps/v1) does not match"),
        (
            maps,
            json!({"metadata": {"name": "a", "namespace": "other"}}),
            400,
            "the namespace of the provided object does not match",
        ),
        (maps, json!({"metadata": {"name": "A"}}), 422, "ConfigMap \"A\" is invalid: metadata.name: Invalid value: \"A\""),
        (maps, json!([1]), 400, "json parse error"),
        ("/api/v1/namespaces/none/configmaps", json!({"metadata": {"name": "a"}}), 404, "namespaces \"none\" not found"),
        ("/api/v1/configmaps", json!({"metadata": {"name": "a"}}), 400, "an empty namespace may not be set during creation"),
        ("/api/v1/namespaces/default/nodes", json!({"metadata": {"name": "a"}}), 404, "could not find the requested resource"),
        ("/api/v1/namespaces/default/things", json!({}), 404, "could not find the requested resource"),
    ] {
        let answer = api.call("POST", target, &body).await;
        let message = answer.body["message"].as_str().unwrap_or("");
        assert!(answer.status == code && message.contains(words), "{target} {body}: {} {message}", answer.status);
    }
    let unknown = json!({"metadata": {"name": "a"}, "dato": {}});
    let warned = api.call("POST", maps, &unknown).await;
    assert_eq!((warned.status, warned.warnings), (201, vec!["299 - \"unknown field \\\"dato\\\"\"".to_owned()]));
    let strict = api.call("POST", &format!("{maps}?fieldValidation=Strict"), &unknown).await;
    assert_eq!(
        strict.body["message"],
        json!("ConfigMap in version \"v1\" cannot be handled as a ConfigMap: strict decoding error: unknown field \"dato\"")
    );
    let text = api.send("POST", maps, &[("content-type", "text/plain")], b"x").await;
    assert_eq!(text.status(), 415);
    let yaml = api.send("POST", maps, &[("content-type", "application/yaml")], b"metadata: {name: yam}\ndata: {a: b}\n").await;
    assert_eq!(yaml.status(), 201);
    let dry = api.call("POST", &format!("{maps}?dryRun=All"), &json!({"metadata": {"name": "dry"}})).await;
    assert_eq!((dry.status, api.call("GET", &format!("{maps}/dry"), &Value::Null).await.status), (201, 404));
    assert_eq!(api.call("POST", "/api/v1/namespaces/default/pods/x/nothing", &json!({})).await.status, 404);
    assert_eq!(api.call("DELETE", "/api/v1/namespaces", &Value::Null).await.status, 405);
}

#[tokio::test]
async fn lists_in_every_form() {
    let api = Api::new().await;
    let maps = "/api/v1/namespaces/default/configmaps";
    for index in 0..3 {
        api.call("POST", maps, &json!({"metadata": {"name": format!("a{index}"), "labels": {"n": index.to_string()}}, "data": {"k": "v".repeat(70_000)}})).await;
    }
    let list = api.get(maps, "application/json").await;
    assert_eq!((&list["kind"], list["items"].as_array().unwrap().len()), (&json!("ConfigMapList"), 3));
    let zipped = api.send("GET", maps, &[("accept-encoding", "gzip")], b"").await;
    assert_eq!(zipped.headers()["content-encoding"], "gzip");
    let bytes = zipped.into_body().collect().await.unwrap().to_bytes();
    let mut text = String::new();
    std::io::Read::read_to_string(&mut flate2::read::GzDecoder::new(&bytes[..]), &mut text).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), list);
    let table = api.get(maps, TABLE).await;
    assert_eq!((&table["kind"], table["rows"][0]["cells"][0].as_str()), (&json!("Table"), Some("a0")));
    assert_eq!(table["rows"][0]["object"]["kind"], json!("PartialObjectMetadata"));
    let metadata = api.get(maps, "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io").await;
    assert_eq!(
        (&metadata["kind"], &metadata["items"][2]["metadata"]["name"]),
        (&json!("PartialObjectMetadataList"), &json!("a2"))
    );
    let page = api.get(&format!("{maps}?limit=2"), "application/json").await;
    assert_eq!((&page["metadata"]["remainingItemCount"], page["metadata"]["continue"].is_string()), (&json!(1), true));
    let one = api.get(&format!("{maps}?labelSelector=n%3D1"), "application/json").await;
    assert_eq!(one["items"][0]["metadata"]["name"], json!("a1"));
    let bad = api.get(&format!("{maps}?fieldSelector=spec.x%3D1"), "application/json").await;
    assert_eq!(bad["message"], json!("\"spec.x\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\""));
    let all = api.call("DELETE", maps, &Value::Null).await;
    assert_eq!((all.status, all.body["items"].as_array().unwrap().len()), (200, 3));
    assert_eq!(api.get(maps, "application/json").await["items"], json!([]));
}

#[tokio::test]
async fn watches_stream_lines() {
    let api = Api::new().await;
    let maps = "/api/v1/namespaces/default/configmaps";
    api.call("POST", maps, &json!({"metadata": {"name": "a"}})).await;
    let target = format!("{maps}?watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true");
    let mut body = api.send("GET", &target, &[], b"").await.into_body();
    let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
    let lines: Vec<Value> = first
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_slice(line).unwrap())
        .collect();
    assert_eq!((&lines[0]["type"], &lines[0]["object"]["metadata"]["name"]), (&json!("ADDED"), &json!("a")));
    assert_eq!(lines[1]["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], json!("true"));
    api.call("DELETE", &format!("{maps}/a"), &Value::Null).await;
    let next = body.frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&next).unwrap()["type"], json!("DELETED"));
    let mut table = api.send("GET", &format!("{maps}?watch=1"), &[("accept", TABLE)], b"").await.into_body();
    api.call("POST", maps, &json!({"metadata": {"name": "b"}})).await;
    let event: Value = serde_json::from_slice(&table.frame().await.unwrap().unwrap().into_data().unwrap()).unwrap();
    assert_eq!((&event["object"]["kind"], &event["object"]["rows"][0]["cells"][0]), (&json!("Table"), &json!("b")));
}

#[tokio::test]
async fn applies() {
    const APPLY: &str = "application/apply-patch+yaml";
    let api = Api::new().await;
    let one = "/api/v1/namespaces/default/configmaps/a";
    let send = async |query: &str, media: &str, agent: &str, body: &str| {
        let headers = [("content-type", media), ("user-agent", agent)];
        read(api.send("PATCH", &format!("{one}{query}"), &headers, body.as_bytes()).await).await
    };
    let map = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata: {x: '1'}\n";
    let merge = "application/merge-patch+json";
    for (query, media, body, code, message) in [
        (
            "",
            APPLY,
            map,
            422,
            "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required for apply patch",
        ),
        (
            "?force=true",
            merge,
            "{}",
            422,
            "PatchOptions.meta.k8s.io \"\" is invalid: force: Forbidden: may not be specified for non-apply patch",
        ),
        (
            "?fieldManager=x",
            "application/apply-patch+cbor",
            map,
            415,
            "the body of the request was in an unknown format - accepted media types include: application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json, application/apply-patch+yaml",
        ),
        (
            "?fieldManager=x",
            APPLY,
            "a",
            400,
            "error decoding YAML: error unmarshaling JSON: while decoding JSON: json: cannot unmarshal string into Go value of type map[string]interface {}",
        ),
    ] {
        let answer = send(query, media, "curl/8", body).await;
        assert_eq!((answer.status, &answer.body["message"]), (code, &json!(message)));
    }
    let made = send("?fieldManager=x", APPLY, "curl/8", map).await;
    assert_eq!((made.status, &made.body["metadata"]["managedFields"][0]["manager"]), (201, &json!("x")));
    let same = send("?fieldManager=x", APPLY, "curl/8", map).await;
    assert_eq!((same.status, &same.body), (200, &made.body));
    // A key that stands twice.
    let twice = format!("{map}data: {{x: '1'}}\n");
    let strict = send("?fieldManager=x&fieldValidation=Strict", APPLY, "curl/8", &twice).await;
    assert!(strict.status == 400 && strict.body["message"].as_str().unwrap().starts_with("error strict decoding YAML"));
    let warned = send("?fieldManager=x", APPLY, "curl/8", &twice).await;
    assert_eq!((warned.status, warned.warnings.len()), (200, 1));
    // A program that does not say who it is is named by its agent; one that empties the list ends it.
    let patched = send("", merge, "tool/1.0 (linux)", r#"{"data": {"y": "2"}}"#).await;
    let entry = &patched.body["metadata"]["managedFields"][1];
    assert_eq!((&entry["manager"], &entry["operation"]), (&json!("tool"), &json!("Update")));
    assert_eq!((&entry["fieldsV1"], &entry["time"]), (&json!({"f:data": {"f:y": {}}}), &json!("2026-01-01T00:00:00Z")));
    let cleared = send("", merge, "curl/8", r#"{"metadata": {"managedFields": []}}"#).await;
    assert_eq!((cleared.status, &cleared.body["metadata"]["managedFields"]), (200, &Value::Null));
    let again = send("?fieldManager=z", APPLY, "curl/8", &map.replace("'1'", "'3'")).await;
    assert_eq!(
        again.body["message"],
        json!("Apply failed with 1 conflict: conflict with \"before-first-apply\" using v1: .data.x")
    );
}
