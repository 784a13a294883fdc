//! Discovery: which groups, versions and resources there are. Legacy (`/api`, `/apis`, `/apis/G`, `/apis/G/V`) and aggregated
//! (`apidiscovery.k8s.io` v2 and v2beta1, by Accept), all derived from the table of kinds.
//!
//! Source: `k8s.io/apiserver/pkg/endpoints/discovery`, KEP-3352.

use std::sync::Arc;

use ::http::{Response, StatusCode, header};
use serde_json::{Value, json};

use crate::api::Kind;
use crate::api::kind::{Names, Scope, Subresource, Verb};
use crate::http::{HttpRequest, HttpResponse, full};
use crate::kinds::Kinds;

/// Groups in the order upstream lists them (by priority, then as installed); others follow by name. Clients resolve a short name
/// that two groups have to the group that comes first.
const GROUP_ORDER: &[&str] = &[
    "",
    "apiregistration.k8s.io",
    "apps",
    "events.k8s.io",
    "authentication.k8s.io",
    "authorization.k8s.io",
    "autoscaling",
    "batch",
    "certificates.k8s.io",
    "networking.k8s.io",
    "policy",
    "rbac.authorization.k8s.io",
    "storage.k8s.io",
    "admissionregistration.k8s.io",
    "apiextensions.k8s.io",
    "scheduling.k8s.io",
    "coordination.k8s.io",
    "node.k8s.io",
    "discovery.k8s.io",
    "flowcontrol.apiserver.k8s.io",
];

/// Media type of an aggregated answer; `{}` is the version of `apidiscovery.k8s.io`.
const AGGREGATED: [(&str, &str); 2] = [
    ("v2", "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"),
    ("v2beta1", "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList"),
];

/// Answers a discovery path; `None` when the path is no discovery path, or names a group or version that is not served.
/// `address` is `host:port` of this server, which `/api` tells its clients.
pub fn serve(kinds: &Kinds, address: &str, request: &HttpRequest) -> Option<HttpResponse> {
    let path = request.uri().path().trim_matches('/');
    let parts: Vec<&str> = path.split('/').collect();
    let groups = groups(kinds);
    let aggregated = accepted_aggregated(request).filter(|_| parts.len() == 1);
    let (document, media_type) = match (parts.as_slice(), aggregated) {
        (["api"], Some((version, media_type))) => {
            (aggregate(version, groups.iter().filter(|group| group.name.is_empty())), media_type)
        }
        (["apis"], Some((version, media_type))) => {
            (aggregate(version, groups.iter().filter(|group| !group.name.is_empty())), media_type)
        }
        (["api"], None) => (core_versions(address), "application/json"),
        (["apis"], None) => (group_list(&groups), "application/json"),
        (["apis", group], None) => (groups.iter().find(|known| known.name == *group)?.legacy(true), "application/json"),
        (["api", version], None) => (resource_list(&groups, "", version)?, "application/json"),
        (["apis", group, version], None) => (resource_list(&groups, group, version)?, "application/json"),
        _ => return None,
    };
    Some(respond(request, &document, media_type))
}

/// Sends a document with its ETag, or 304 where the client has it.
fn respond(request: &HttpRequest, document: &Value, media_type: &str) -> HttpResponse {
    let body = document.to_string();
    let digest = ring::digest::digest(&ring::digest::SHA256, body.as_bytes());
    let etag: String = std::iter::once("\"".to_owned())
        .chain(digest.as_ref().iter().map(|byte| format!("{byte:02X}")))
        .chain(std::iter::once("\"".to_owned()))
        .collect();
    let known = request.headers().get(header::IF_NONE_MATCH).is_some_and(|value| value.as_bytes() == etag.as_bytes());
    let (status, body) = if known { (StatusCode::NOT_MODIFIED, String::new()) } else { (StatusCode::OK, body) };
    let mut response = Response::new(full(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::VARY, header::HeaderValue::from_static("Accept"));
    for (name, text) in [(header::CONTENT_TYPE, media_type), (header::ETAG, etag.as_str())] {
        if let Ok(value) = header::HeaderValue::from_str(text) {
            headers.insert(name, value);
        }
    }
    response
}

/// The aggregated form that the client wants most, if it wants one before the legacy form.
fn accepted_aggregated(request: &HttpRequest) -> Option<(&'static str, &'static str)> {
    let accept = request.headers().get(header::ACCEPT)?.to_str().ok()?;
    for clause in accept.split(',') {
        let parameters: Vec<&str> = clause.split(';').map(str::trim).collect();
        if parameters.contains(&"g=apidiscovery.k8s.io") && parameters.contains(&"as=APIGroupDiscoveryList") {
            let known =
                AGGREGATED.iter().find(|(version, _)| parameters.iter().any(|parameter| *parameter == format!("v={version}")));
            if let Some(form) = known.filter(|_| parameters[0] == "application/json") {
                return Some(*form);
            }
        } else if parameters[0] == "application/json" {
            return None;
        }
    }
    None
}

/// One group, its versions in order of preference, and their kinds by plural.
struct Group {
    name: &'static str,
    versions: Vec<(&'static str, Vec<Arc<dyn Kind>>)>,
}

fn groups(kinds: &Kinds) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for kind in kinds.iter() {
        let names = *kind.names();
        let at = groups.iter().position(|group| group.name == names.group).unwrap_or_else(|| {
            groups.push(Group { name: names.group, versions: Vec::new() });
            groups.len() - 1
        });
        let versions = &mut groups[at].versions;
        match versions.iter_mut().find(|(version, _)| *version == names.version) {
            Some((_, kinds)) => kinds.push(kind),
            None => versions.push((names.version, vec![kind])),
        }
    }
    let rank = |name: &str| GROUP_ORDER.iter().position(|known| *known == name).unwrap_or(GROUP_ORDER.len());
    groups.sort_by_key(|group| (rank(group.name), group.name));
    for group in &mut groups {
        group.versions.sort_by_key(|(version, _)| std::cmp::Reverse(version_priority(version)));
        for (_, kinds) in &mut group.versions {
            kinds.sort_by_key(|kind| kind.names().plural);
        }
    }
    groups
}

/// Order of versions as `apimachinery/pkg/version.CompareKubeAwareVersionStrings`: GA, then beta, then alpha; newer first.
pub fn version_priority(version: &str) -> (u8, u32, u32) {
    let Some(rest) = version.strip_prefix('v') else { return (0, 0, 0) };
    let digits = rest.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(rest.len());
    let (major, stage) = rest.split_at(digits);
    let number = |text: &str| text.parse::<u32>().unwrap_or(0);
    match (stage.strip_prefix("beta"), stage.strip_prefix("alpha")) {
        _ if major.is_empty() => (0, 0, 0),
        (Some(minor), _) => (2, number(major), number(minor)),
        (_, Some(minor)) => (1, number(major), number(minor)),
        _ if stage.is_empty() => (3, number(major), 0),
        _ => (0, 0, 0),
    }
}

impl Group {
    fn legacy(&self, whole: bool) -> Value {
        let version = |version: &str| json!({"groupVersion": format!("{}/{version}", self.name), "version": version});
        let versions: Vec<Value> = self.versions.iter().map(|(name, _)| version(name)).collect();
        let preferred = self.versions.first().map(|(name, _)| version(name));
        let mut group = json!({"name": self.name, "versions": versions, "preferredVersion": preferred});
        if whole {
            group["kind"] = json!("APIGroup");
            group["apiVersion"] = json!("v1");
        }
        group
    }
}

fn core_versions(address: &str) -> Value {
    json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": address}]})
}

fn group_list(groups: &[Group]) -> Value {
    let groups: Vec<Value> = groups.iter().filter(|group| !group.name.is_empty()).map(|group| group.legacy(false)).collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

fn resource_list(groups: &[Group], group: &str, version: &str) -> Option<Value> {
    let group = groups.iter().find(|known| known.name == group)?;
    let (_, kinds) = group.versions.iter().find(|(known, _)| *known == version)?;
    let resources: Vec<Value> = kinds.iter().flat_map(|kind| legacy_resources(&**kind)).collect();
    let group_version = if group.name.is_empty() { version.to_owned() } else { format!("{}/{version}", group.name) };
    let mut list = json!({"kind": "APIResourceList", "groupVersion": group_version, "resources": resources});
    if !group.name.is_empty() {
        list["apiVersion"] = json!("v1");
    }
    Some(list)
}

fn verbs(kind: &dyn Kind) -> Vec<&'static str> {
    kind.verbs().iter().copied().map(Verb::as_str).collect()
}

fn legacy_resources(kind: &dyn Kind) -> Vec<Value> {
    let names = kind.names();
    let mut resource = json!({"name": names.plural, "singularName": names.singular, "namespaced": names.is_namespaced(), "kind": names.kind, "verbs": verbs(kind)});
    for (field, words) in [("shortNames", names.short), ("categories", names.categories)] {
        if !words.is_empty() {
            resource[field] = json!(words);
        }
    }
    if kind.verbs().contains(&Verb::List) {
        resource["storageVersionHash"] = json!(storage_version_hash(kind));
    }
    let subresource = |subresource: &Subresource| {
        let facts = SubresourceFacts::of(*subresource, names);
        let mut entry = json!({
            "name": format!("{}/{}", names.plural, subresource.as_str()),
            "singularName": "",
            "namespaced": names.is_namespaced(),
            "kind": facts.kind,
            "verbs": facts.verbs,
        });
        if let Some((group, version)) = facts.group_version {
            entry["group"] = json!(group);
            entry["version"] = json!(version);
        }
        entry
    };
    std::iter::once(resource).chain(kind.subresources().iter().map(subresource)).collect()
}

/// Eight bytes that change when the stored form does, as `discovery.StorageVersionHash`.
fn storage_version_hash(kind: &dyn Kind) -> String {
    use base64::Engine as _;
    let names = kind.names();
    let digest =
        ring::digest::digest(&ring::digest::SHA256, format!("{}/{}/{}", names.group, names.version, names.kind).as_bytes());
    base64::engine::general_purpose::STANDARD.encode(&digest.as_ref()[..8])
}

/// What discovery says of a subresource.
struct SubresourceFacts {
    kind: &'static str,
    /// Where its kind is of another group than the resource.
    group_version: Option<(&'static str, &'static str)>,
    verbs: &'static [&'static str],
}

impl SubresourceFacts {
    fn of(subresource: Subresource, names: &Names) -> Self {
        const CONNECT: &[&str] = &["create", "get"];
        const PROXY: &[&str] = &["create", "delete", "get", "patch", "update"];
        const CHANGE: &[&str] = &["get", "patch", "update"];
        let own = |kind, verbs| Self { kind, group_version: None, verbs };
        match subresource {
            Subresource::Attach => own("PodAttachOptions", CONNECT),
            Subresource::Exec => own("PodExecOptions", CONNECT),
            Subresource::PortForward => own("PodPortForwardOptions", CONNECT),
            Subresource::Proxy => own(
                match names.kind {
                    "Node" => "NodeProxyOptions",
                    "Service" => "ServiceProxyOptions",
                    _ => "PodProxyOptions",
                },
                PROXY,
            ),
            Subresource::Log => own(names.kind, &["get"]),
            Subresource::Binding => own("Binding", &["create"]),
            Subresource::Finalize => own(names.kind, &["update"]),
            Subresource::Approval | Subresource::EphemeralContainers | Subresource::Resize | Subresource::Status => {
                own(names.kind, CHANGE)
            }
            Subresource::Eviction => Self { kind: "Eviction", group_version: Some(("policy", "v1")), verbs: &["create"] },
            Subresource::Scale => Self { kind: "Scale", group_version: Some(("autoscaling", "v1")), verbs: CHANGE },
            Subresource::Token => {
                Self { kind: "TokenRequest", group_version: Some(("authentication.k8s.io", "v1")), verbs: &["create"] }
            }
        }
    }
}

fn aggregate<'a>(version: &str, groups: impl Iterator<Item = &'a Group>) -> Value {
    let items: Vec<Value> = groups.map(aggregated_group).collect();
    json!({"kind": "APIGroupDiscoveryList", "apiVersion": format!("apidiscovery.k8s.io/{version}"), "metadata": {}, "items": items})
}

fn aggregated_group(group: &Group) -> Value {
    let version = |(version, kinds): &(&str, Vec<Arc<dyn Kind>>)| {
        let resources: Vec<Value> = kinds.iter().map(|kind| aggregated_resource(&**kind)).collect();
        json!({"version": version, "resources": resources, "freshness": "Current"})
    };
    let versions: Vec<Value> = group.versions.iter().map(version).collect();
    let metadata = if group.name.is_empty() {
        json!({"creationTimestamp": null})
    } else {
        json!({"name": group.name, "creationTimestamp": null})
    };
    json!({"metadata": metadata, "versions": versions})
}

fn aggregated_resource(kind: &dyn Kind) -> Value {
    let names = kind.names();
    let scope = if names.scope == Scope::Namespaced { "Namespaced" } else { "Cluster" };
    let mut resource = json!({
        "resource": names.plural,
        "responseKind": {"group": names.group, "version": names.version, "kind": names.kind},
        "scope": scope,
        "singularResource": names.singular,
        "verbs": verbs(kind),
    });
    for (field, words) in [("shortNames", names.short), ("categories", names.categories)] {
        if !words.is_empty() {
            resource[field] = json!(words);
        }
    }
    let subresource = |subresource: &Subresource| {
        let facts = SubresourceFacts::of(*subresource, names);
        let (group, version) = facts.group_version.unwrap_or((names.group, names.version));
        json!({"subresource": subresource.as_str(), "responseKind": {"group": group, "version": version, "kind": facts.kind}, "verbs": facts.verbs})
    };
    let subresources: Vec<Value> = kind.subresources().iter().map(subresource).collect();
    if !subresources.is_empty() {
        resource["subresources"] = Value::Array(subresources);
    }
    resource
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;
    use crate::http::empty;

    async fn ask(path: &str, accept: &str) -> Option<(String, Value)> {
        let request = ::http::Request::builder().uri(path).header(header::ACCEPT, accept).body(empty()).unwrap();
        let response = serve(&Kinds::builtin(), "10.0.0.1:6443", &request)?;
        let media_type = response.headers()[header::CONTENT_TYPE].to_str().unwrap().to_owned();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        Some((media_type, serde_json::from_slice(&body).unwrap()))
    }

    #[tokio::test]
    async fn legacy_and_aggregated() {
        let (_, groups) = ask("/apis", "application/json").await.unwrap();
        assert_eq!(groups["kind"], "APIGroupList");
        let autoscaling = groups["groups"].as_array().unwrap().iter().find(|group| group["name"] == "autoscaling").unwrap();
        assert_eq!(autoscaling["preferredVersion"]["groupVersion"], "autoscaling/v2");
        let (_, core) = ask("/api/v1", "*/*").await.unwrap();
        let log = core["resources"].as_array().unwrap().iter().find(|resource| resource["name"] == "pods/log").unwrap();
        assert_eq!((&log["kind"], &log["verbs"]), (&json!("Pod"), &json!(["get"])));
        let (_, apps) = ask("/apis/apps/v1/", "application/json").await.unwrap();
        let scale =
            apps["resources"].as_array().unwrap().iter().find(|resource| resource["name"] == "deployments/scale").unwrap();
        assert_eq!((&scale["group"], &scale["kind"]), (&json!("autoscaling"), &json!("Scale")));
        let accept = format!("{},{},application/json", AGGREGATED[0].1, AGGREGATED[1].1);
        let (media_type, all) = ask("/apis", &accept).await.unwrap();
        assert_eq!((media_type.as_str(), &all["apiVersion"]), (AGGREGATED[0].1, &json!("apidiscovery.k8s.io/v2")));
        let (media_type, _) = ask("/api", AGGREGATED[1].1).await.unwrap();
        assert_eq!(media_type, AGGREGATED[1].1);
        assert!(ask("/apis/nothing/v1", "*/*").await.is_none() && ask("/apis/apps/v9", "*/*").await.is_none());
    }

    #[test]
    fn versions_are_ordered_as_upstream() {
        let mut versions = ["v1beta1", "v2", "v1", "v1alpha1", "foo", "v1beta2", "v10"];
        versions.sort_by_key(|version| std::cmp::Reverse(version_priority(version)));
        assert_eq!(versions, ["v10", "v2", "v1", "v1beta2", "v1beta1", "v1alpha1", "foo"]);
    }
}
