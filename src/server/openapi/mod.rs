//! OpenAPI: v3 (`/openapi/v3`, one document a group and version) and v2 (`/openapi/v2`, JSON or gnostic's protobuf), derived from
//! the served kinds and the table of types.
//!
//! A document is built when it is first asked for and kept compressed. Its hash comes from what it is built of, so that the index
//! builds none. Source: `k8s.io/kube-openapi/pkg/{handler,handler3}`.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::sync::Arc;

use ::http::{HeaderName, Response, StatusCode, header};
use bytes::Bytes;
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::api::Kind;
use crate::api::schema::{self, Descriptions, Type};
use crate::http::{HttpRequest, HttpResponse, empty, full};
use crate::kinds::Kinds;

mod gnostic;
mod paths;
mod schemas;
mod v2;
mod v3;

use paths::{Parameter, PathItem};
use schemas::Dialect;

const JSON: &str = "application/json";
/// What kubectl asks for, and what it takes for a media type: `@` is not allowed in one.
const PROTOBUF_ASKED: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
const PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// Types that every group has beside its kinds.
const COMMON: &[&str] = &["DeleteOptions", "Patch", "Status", "WatchEvent"];

const PRETTY: Parameter =
    Parameter { name: "pretty", kind: "string", description: "If 'true', then the output is pretty printed." };

fn path_description(name: &str) -> &'static str {
    if name == "namespace" { "object name and auth scope, such as for teams and projects" } else { "name of the object" }
}

/// Documents that were asked for, compressed, by what they are and their hash.
static BUILT: Mutex<BTreeMap<(String, String), Bytes>> = Mutex::new(BTreeMap::new());
/// No more than this many documents are kept; then all are forgotten.
const BUILT_MAX: usize = 128;

/// Answers a path below `/openapi`; `None` when it is no such path, or names a group or version that is not served.
pub fn serve(kinds: &Kinds, request: &HttpRequest) -> Option<HttpResponse> {
    match request.uri().path().trim_end_matches('/') {
        "/openapi/v2" => Some(v2(kinds, request)),
        "/openapi/v3" => Some(v3_index(kinds, request)),
        path if path.starts_with("/openapi/v3/") => v3_group(kinds, request),
        _ => None,
    }
}

/// The index of the v3 documents.
pub fn v3_index(kinds: &Kinds, request: &HttpRequest) -> HttpResponse {
    let mut index = serde_json::Map::new();
    for (path, group) in groups(kinds) {
        let url = format!("/openapi/v3/{path}?hash={}", hash(&path, &group));
        index.insert(path, json!({"serverRelativeURL": url}));
    }
    let body = json!({"paths": index}).to_string();
    let hash = digest(body.as_bytes());
    respond(request, &hash, JSON, false, || compress(body.as_bytes()))
}

/// The v3 document of a group and version; `None` if it is not served.
pub fn v3_group(kinds: &Kinds, request: &HttpRequest) -> Option<HttpResponse> {
    let path = request.uri().path().strip_prefix("/openapi/v3/")?.trim_end_matches('/');
    let group = groups(kinds).remove(path)?;
    let hash = hash(path, &group);
    let asked = request.uri().query().into_iter().flat_map(|query| query.split('&')).find_map(|pair| pair.strip_prefix("hash="));
    if asked.is_some_and(|asked| asked != hash) {
        return Some(moved(&format!("/openapi/v3/{path}?hash={hash}")));
    }
    Some(respond(request, &hash, JSON, asked.is_some(), || built(path, &hash, || v3_document(&group))))
}

/// The v2 document, as protobuf if the client wants it so.
pub fn v2(kinds: &Kinds, request: &HttpRequest) -> HttpResponse {
    let all: Vec<_> = groups(kinds).into_values().flatten().collect();
    let hash = hash("v2", &all);
    let accept = request.headers().get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or("");
    if accept.contains(PROTOBUF_ASKED) || accept.contains(PROTOBUF) {
        respond(request, &hash, PROTOBUF, false, || built("v2 protobuf", &hash, || v2_protobuf(&all)))
    } else {
        respond(request, &hash, JSON, false, || built("v2", &hash, || v2_document(&all)))
    }
}

/// The kinds of each group and version, by the path of its document: `api/v1`, `apis/apps/v1`.
fn groups(kinds: &Kinds) -> BTreeMap<String, Vec<Arc<dyn Kind>>> {
    let mut groups: BTreeMap<String, Vec<Arc<dyn Kind>>> = BTreeMap::new();
    for kind in kinds.iter().filter(|kind| kind.schema().is_some()) {
        let names = kind.names();
        let path = if names.group.is_empty() {
            format!("api/{}", names.version)
        } else {
            format!("apis/{}/{}", names.group, names.version)
        };
        groups.entry(path).or_default().push(kind);
    }
    groups
}

/// Changes whenever the document would.
fn hash(path: &str, kinds: &[Arc<dyn Kind>]) -> String {
    let mut text = format!("{} {path}", env!("CARGO_PKG_VERSION"));
    for kind in kinds {
        text.push_str(&format!("\n{:?} {:?} {:?} {:?}", kind.names(), kind.verbs(), kind.subresources(), kind.schema()));
    }
    digest(text.as_bytes())
}

fn digest(bytes: &[u8]) -> String {
    ring::digest::digest(&ring::digest::SHA256, bytes).as_ref().iter().map(|byte| format!("{byte:02X}")).collect()
}

/// A document from the ones that are kept, or built now.
fn built(path: &str, hash: &str, build: impl FnOnce() -> Vec<u8>) -> Bytes {
    let key = (path.to_owned(), hash.to_owned());
    if let Some(found) = BUILT.lock().get(&key) {
        return found.clone();
    }
    let document = compress(&build());
    let mut kept = BUILT.lock();
    if kept.len() >= BUILT_MAX {
        kept.clear();
    }
    kept.insert(key, document.clone());
    document
}

/// The types that a document needs.
fn types(kinds: &[Arc<dyn Kind>]) -> Vec<&'static Type> {
    let mut names: BTreeSet<String> = COMMON.iter().map(|name| format!("io.k8s.apimachinery.pkg.apis.meta.v1.{name}")).collect();
    for kind in kinds {
        if let Some(name) = kind.schema() {
            names.insert(name.to_owned());
            names.insert(format!("{name}List"));
        }
        for item in path_items(&**kind) {
            for operation in item.operations {
                names.insert(operation.response);
                if let paths::Body::Object(name) = operation.body {
                    names.insert(name);
                }
            }
        }
    }
    schemas::reachable(names.iter().filter_map(|name| schema::get(name)))
}

fn path_items(kind: &dyn Kind) -> Vec<PathItem> {
    kind.schema().map_or_else(Vec::new, |schema| paths::of_kind(kind, schema))
}

/// `x-kubernetes-group-version-kind` of a type: its own kind, or each served group and version for those that all groups share.
fn kinds_of(of: &Type, kinds: &[Arc<dyn Kind>]) -> Vec<Value> {
    if matches!(of.short_name(), "DeleteOptions" | "WatchEvent") {
        let versions: BTreeSet<_> = kinds.iter().map(|kind| (kind.names().group, kind.names().version)).collect();
        return versions
            .into_iter()
            .map(|(group, version)| json!({"group": group, "version": version, "kind": of.short_name()}))
            .collect();
    }
    of.kind.iter().map(|kind| json!({"group": kind.group, "version": kind.version, "kind": kind.kind})).collect()
}

fn info() -> Value {
    json!({"title": "Kubernetes", "version": super::nonresource::GIT_VERSION})
}

fn v3_document(kinds: &[Arc<dyn Kind>]) -> Vec<u8> {
    let descriptions = Descriptions::load();
    let mut out = Json::open(&format!("{{\"openapi\":\"3.0.0\",\"info\":{},\"paths\":{{", info()));
    for item in kinds.iter().flat_map(|kind| path_items(&**kind)) {
        out.entry(&item.path, &v3::path(&item));
    }
    out.section("},\"components\":{\"schemas\":{");
    for of in types(kinds) {
        out.entry(of.name, &schemas::schema(of, &kinds_of(of, kinds), &descriptions, Dialect::V3));
    }
    out.section("}}}");
    out.text
}

fn v2_document(kinds: &[Arc<dyn Kind>]) -> Vec<u8> {
    let descriptions = Descriptions::load();
    let mut out = Json::open(&format!("{{\"swagger\":\"2.0\",\"info\":{},\"paths\":{{", info()));
    for item in kinds.iter().flat_map(|kind| path_items(&**kind)) {
        out.entry(&item.path, &v2::path(&item));
    }
    out.section("},\"definitions\":{");
    for of in types(kinds) {
        out.entry(of.name, &schemas::schema(of, &kinds_of(of, kinds), &descriptions, Dialect::V2));
    }
    out.section("}}");
    out.text
}

fn v2_protobuf(kinds: &[Arc<dyn Kind>]) -> Vec<u8> {
    let descriptions = Descriptions::load();
    let mut document = gnostic::Document::new(&info());
    for item in kinds.iter().flat_map(|kind| path_items(&**kind)) {
        document.path(&item.path, &v2::path(&item));
    }
    for of in types(kinds) {
        document.definition(of.name, &schemas::schema(of, &kinds_of(of, kinds), &descriptions, Dialect::V2));
    }
    document.finish()
}

/// JSON that is written entry by entry, so that the tree of a whole document never stands in memory.
struct Json {
    text: Vec<u8>,
    is_first: bool,
}

impl Json {
    fn open(text: &str) -> Self {
        Self { text: text.as_bytes().to_vec(), is_first: true }
    }

    fn entry(&mut self, key: &str, value: &Value) {
        let comma = if self.is_first { "" } else { "," };
        self.is_first = false;
        self.text.extend_from_slice(format!("{comma}{}:{value}", Value::from(key)).as_bytes());
    }

    fn section(&mut self, text: &str) {
        self.text.extend_from_slice(text.as_bytes());
        self.is_first = true;
    }
}

fn compress(bytes: &[u8]) -> Bytes {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    let written = encoder.write_all(bytes).and_then(|()| encoder.finish());
    written.map(Bytes::from).unwrap_or_else(|error| {
        tracing::error!(%error, "compressing an OpenAPI document failed, which memory cannot");
        Bytes::new()
    })
}

/// Sends a document (`body` is gzip), or 304 where the client has it.
fn respond(
    request: &HttpRequest,
    hash: &str,
    media_type: &str,
    is_immutable: bool,
    body: impl FnOnce() -> Bytes,
) -> HttpResponse {
    let etag = format!("\"{hash}\"");
    let text = |name: HeaderName| request.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or("");
    let caching = if is_immutable { "public, immutable" } else { "no-cache, private" };
    let mut headers =
        vec![(header::ETAG, etag.as_str()), (header::CACHE_CONTROL, caching), (header::VARY, "Accept, Accept-Encoding")];
    let mut response = Response::new(empty());
    if text(header::IF_NONE_MATCH).split(',').any(|known| known.trim() == etag) {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
    } else {
        let compressed = body();
        headers.push((header::CONTENT_TYPE, media_type));
        let is_plain = !text(header::ACCEPT_ENCODING).contains("gzip");
        if is_plain {
            let mut plain = Vec::new();
            if let Err(error) = flate2::read::GzDecoder::new(&*compressed).read_to_end(&mut plain) {
                tracing::error!(%error, "an OpenAPI document that was compressed here does not unpack");
            }
            *response.body_mut() = full(plain);
        } else {
            headers.push((header::CONTENT_ENCODING, "gzip"));
            *response.body_mut() = full(compressed);
        }
    }
    for (name, text) in headers {
        if let Ok(value) = header::HeaderValue::from_str(text) {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

fn moved(location: &str) -> HttpResponse {
    let mut response = Response::new(empty());
    *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
    if let Ok(value) = header::HeaderValue::from_str(location) {
        response.headers_mut().insert(header::LOCATION, value);
    }
    response
}

#[cfg(test)]
mod tests;
