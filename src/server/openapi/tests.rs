//! Tests of the OpenAPI documents.

use http_body_util::BodyExt;

use super::*;

async fn get(path: &str, headers: &[(&str, &str)]) -> (StatusCode, ::http::HeaderMap, Vec<u8>) {
    let mut request = ::http::Request::builder().uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = serve(&Kinds::builtin(), &request.body(empty()).unwrap());
    let Some(response) = response else { return (StatusCode::NOT_FOUND, ::http::HeaderMap::new(), Vec::new()) };
    let (parts, body) = response.into_parts();
    (parts.status, parts.headers, body.collect().await.unwrap().to_bytes().to_vec())
}

async fn document(path: &str) -> Value {
    serde_json::from_slice(&get(path, &[]).await.2).unwrap()
}

fn references(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                match (key.as_str(), value) {
                    ("$ref", Value::String(to)) => drop(found.insert(to.clone())),
                    _ => references(value, found),
                }
            }
        }
        Value::Array(list) => list.iter().for_each(|value| references(value, found)),
        _ => {}
    }
}

#[tokio::test]
async fn every_document_is_complete() {
    let index = document("/openapi/v3").await;
    let paths = index["paths"].as_object().unwrap();
    assert!(paths.contains_key("api/v1") && paths.contains_key("apis/apps/v1"));
    for entry in paths.values() {
        let found = document(entry["serverRelativeURL"].as_str().unwrap()).await;
        let mut names = BTreeSet::new();
        references(&found, &mut names);
        for name in names {
            assert!(found["components"]["schemas"].get(name.strip_prefix("#/components/schemas/").unwrap()).is_some(), "{name}");
        }
    }
    let swagger = document("/openapi/v2").await;
    let mut names = BTreeSet::new();
    references(&swagger, &mut names);
    assert!(names.len() > 300);
    for name in names {
        assert!(swagger["definitions"].get(name.strip_prefix("#/definitions/").unwrap()).is_some(), "{name}");
    }
    let ids = swagger["paths"].as_object().unwrap().values().flat_map(|item| item.as_object().unwrap().values());
    let ids: Vec<_> = ids.filter_map(|operation| operation["operationId"].as_str()).collect();
    assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len());
}

#[tokio::test]
async fn a_document_says_what_kubectl_reads() {
    let apps = document("/openapi/v3/apis/apps/v1").await;
    let patch = &apps["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
    assert_eq!(patch["x-kubernetes-group-version-kind"], json!({"group": "apps", "version": "v1", "kind": "Deployment"}));
    assert_eq!(
        (&patch["x-kubernetes-action"], &patch["operationId"]),
        (&json!("patch"), &json!("patchAppsV1NamespacedDeployment"))
    );
    let has = |name: &str| patch["parameters"].as_array().unwrap().iter().any(|parameter| parameter["name"] == name);
    assert!(has("fieldValidation") && has("dryRun"));
    assert!(patch["requestBody"]["content"].get("application/strategic-merge-patch+json").is_some());
    let schemas = &apps["components"]["schemas"];
    assert_eq!(
        schemas["io.k8s.api.apps.v1.Deployment"]["x-kubernetes-group-version-kind"],
        json!([{"group": "apps", "version": "v1", "kind": "Deployment"}])
    );
    let containers = &schemas["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"];
    for (key, value) in [
        ("patch-merge-key", json!("name")),
        ("patch-strategy", json!("merge")),
        ("list-type", json!("map")),
        ("list-map-keys", json!(["name"])),
    ] {
        assert_eq!(containers[format!("x-kubernetes-{key}")], value);
    }
    assert_eq!(schemas["io.k8s.api.core.v1.PodSpec"]["properties"]["volumes"]["x-kubernetes-patch-strategy"], "merge,retainKeys");
    let core = document("/openapi/v3/api/v1").await;
    for path in ["/api/v1/pods", "/api/v1/namespaces/{namespace}/pods/{name}/log", "/api/v1/namespaces/{name}/finalize"] {
        assert!(core["paths"].get(path).is_some(), "{path}");
    }
}

#[tokio::test]
async fn answers_are_cached_by_hash() {
    let index = document("/openapi/v3").await;
    let url = index["paths"]["apis/apps/v1"]["serverRelativeURL"].as_str().unwrap().to_owned();
    let (status, headers, body) = get(&url, &[("accept-encoding", "gzip")]).await;
    assert_eq!(
        (status, &headers[header::CACHE_CONTROL], &headers[header::CONTENT_ENCODING]),
        (StatusCode::OK, &"public, immutable".parse().unwrap(), &"gzip".parse().unwrap())
    );
    assert!(body.starts_with(&[0x1f, 0x8b]));
    let etag = headers[header::ETAG].to_str().unwrap().to_owned();
    let (status, _, body) = get(&url, &[("if-none-match", &etag)]).await;
    assert_eq!((status, body.len()), (StatusCode::NOT_MODIFIED, 0));
    let (status, headers, _) = get("/openapi/v3/apis/apps/v1?hash=old", &[]).await;
    assert_eq!((status, headers[header::LOCATION].to_str().unwrap()), (StatusCode::MOVED_PERMANENTLY, url.as_str()));
    assert_eq!(get("/openapi/v3/apis/none/v1", &[]).await.0, StatusCode::NOT_FOUND);
    let (_, headers, body) = get("/openapi/v2", &[("accept", PROTOBUF_ASKED)]).await;
    assert_eq!(headers[header::CONTENT_TYPE], PROTOBUF);
    assert!(body.starts_with(b"\x0a\x032.0"));
}
