//! What a request wants, read from method, path and query. Follows upstream's `apiserver/pkg/endpoints/request/requestinfo.go`.

use ::http::Method;

/// What a request wants.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RequestInfo {
    /// Whether the path names an API resource.
    pub is_resource: bool,
    /// The path of the URL, without query.
    pub path: String,
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`, `proxy`; lower-case method otherwise.
    pub verb: String,
    /// "" for the core group.
    pub group: String,
    pub version: String,
    /// "" where the request names none.
    pub namespace: String,
    /// Plural.
    pub resource: String,
    pub subresource: String,
    pub name: String,
    /// Of a list or watch, as it was sent.
    pub label_selector: String,
    /// The same.
    pub field_selector: String,
    /// What follows the subresource (`…/proxy/a/b`), as it was sent, without the leading slash.
    pub rest: String,
}

/// Paths of a namespace that are its own, and not resources in it.
const NAMESPACE_SUBRESOURCES: [&str; 2] = ["status", "finalize"];

/// The path's segments, each with where it ends.
struct Segments<'a> {
    path: &'a str,
    all: Vec<(String, usize)>,
    at: usize,
}

impl<'a> Segments<'a> {
    fn of(path: &'a str) -> Self {
        let mut all = Vec::new();
        let mut start = 0;
        for segment in path.split('/') {
            let end = start + segment.len();
            if !segment.is_empty() {
                all.push((percent_decode(segment, false), end));
            }
            start = end + 1;
        }
        Self { path, all, at: 0 }
    }

    fn left(&self) -> usize {
        self.all.len() - self.at
    }

    fn peek(&self, ahead: usize) -> Option<&str> {
        self.all.get(self.at + ahead).map(|(text, _)| text.as_str())
    }

    fn text(&self, ahead: usize) -> String {
        self.peek(ahead).unwrap_or("").to_owned()
    }

    /// What stands behind a segment, as it was sent.
    fn after(&self, ahead: usize) -> &'a str {
        self.all.get(self.at + ahead).and_then(|(_, end)| self.path.get(end + 1..)).unwrap_or("")
    }
}

impl RequestInfo {
    /// Reads method, path and decoded query.
    pub fn parse(method: &Method, path: &str, query: &[(String, String)]) -> Self {
        let mut info = Self { path: percent_decode(path, false), verb: method.as_str().to_ascii_lowercase(), ..Self::default() };
        let mut segments = Segments::of(path);
        let core = match segments.peek(0) {
            Some("api") => true,
            Some("apis") => false,
            _ => return info,
        };
        if segments.left() < if core { 3 } else { 4 } {
            return info;
        }
        segments.at = 1;
        if !core {
            info.group = segments.text(0);
            segments.at += 1;
        }
        info.version = segments.text(0);
        segments.at += 1;
        info.is_resource = true;
        info.verb = verb_of(method).to_owned();
        if matches!(segments.peek(0), Some("watch" | "proxy")) && segments.left() > 1 {
            info.verb = segments.text(0);
            segments.at += 1;
        }
        info.read_resource(&mut segments);
        info.refine_verb(query);
        info
    }

    fn read_resource(&mut self, segments: &mut Segments<'_>) {
        if segments.peek(0) == Some("namespaces") && segments.left() > 1 {
            self.namespace = segments.text(1);
            if segments.peek(2).is_some_and(|third| !NAMESPACE_SUBRESOURCES.contains(&third)) {
                segments.at += 2;
            }
        }
        self.resource = segments.text(0);
        self.name = segments.text(1);
        if self.verb == "proxy" {
            self.rest = segments.after(1).to_owned();
        } else {
            self.subresource = segments.text(2);
            self.rest = segments.after(2).to_owned();
        }
    }

    /// `get` without a name is `list` or `watch`; `delete` without one is `deletecollection`.
    fn refine_verb(&mut self, query: &[(String, String)]) {
        if !self.name.is_empty() {
            return;
        }
        let value = |key: &str| query.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str());
        if matches!(self.verb.as_str(), "get" | "watch") {
            self.name = value("fieldSelector").and_then(exact_name).unwrap_or_default();
            self.label_selector = value("labelSelector").unwrap_or("").to_owned();
            self.field_selector = value("fieldSelector").unwrap_or("").to_owned();
        }
        self.verb = match self.verb.as_str() {
            "get" if value("watch").is_some_and(is_true) => "watch",
            "get" => "list",
            "delete" => "deletecollection",
            other => other,
        }
        .to_owned();
    }

    /// Whether answering may take as long as the client likes: upstream's long-running requests.
    pub fn is_long_running(&self) -> bool {
        matches!(self.verb.as_str(), "watch" | "proxy")
            || (self.is_resource && matches!(self.subresource.as_str(), "attach" | "exec" | "log" | "portforward" | "proxy"))
    }

    /// Whether nothing is changed by it.
    pub fn is_read_only(&self) -> bool {
        matches!(self.verb.as_str(), "get" | "list" | "watch" | "head" | "options")
    }
}

fn verb_of(method: &Method) -> &'static str {
    match *method {
        Method::POST => "create",
        Method::GET | Method::HEAD => "get",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "",
    }
}

/// The name that a field selector asks for: `metadata.name=x`, alone or among others.
fn exact_name(selector: &str) -> Option<String> {
    let name = selector.split(',').find_map(|term| {
        let value = term.trim().strip_prefix("metadata.name=")?;
        Some(value.strip_prefix('=').unwrap_or(value))
    })?;
    let plain = !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '%', '\\']);
    plain.then(|| name.to_owned())
}

/// Whether the value of a query parameter says yes, as upstream's conversion of `*bool`.
pub fn is_true(value: &str) -> bool {
    !matches!(value.to_ascii_lowercase().as_str(), "false" | "0")
}

/// Decodes `%41`, and `+` as a space where `plus` says so. What is no valid escape stays as it is.
pub fn percent_decode(text: &str, plus: bool) -> String {
    if !(text.contains('%') || plus && text.contains('+')) {
        return text.to_owned();
    }
    let bytes = text.as_bytes();
    let digit = |at: usize| bytes.get(at).and_then(|byte| char::from(*byte).to_digit(16));
    let (mut out, mut at) = (Vec::with_capacity(bytes.len()), 0);
    while let Some(byte) = bytes.get(at) {
        match (byte, digit(at + 1), digit(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                out.extend(u8::try_from(high * 16 + low));
                at += 3;
                continue;
            }
            (b'+', ..) if plus => out.push(b' '),
            _ => out.push(*byte),
        }
        at += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// The parameters of a query string, decoded, in order.
pub fn parse_query(query: &str) -> Vec<(String, String)> {
    let pair = |text: &str| {
        let (key, value) = text.split_once('=').unwrap_or((text, ""));
        (percent_decode(key, true), percent_decode(value, true))
    };
    query.split('&').filter(|text| !text.is_empty()).map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(method: &str, url: &str) -> RequestInfo {
        let (path, query) = url.split_once('?').unwrap_or((url, ""));
        RequestInfo::parse(&method.parse().unwrap(), path, &parse_query(query))
    }

    #[test]
    fn resources_by_table() {
        // Method, URL, verb, group, version, namespace, resource, subresource, name, rest.
        let table: &[(&str, &str, [&str; 8])] = &[
            ("GET", "/api/v1/namespaces", ["list", "", "v1", "", "namespaces", "", "", ""]),
            ("GET", "/api/v1/namespaces/other", ["get", "", "v1", "other", "namespaces", "", "other", ""]),
            ("GET", "/api/v1/namespaces/other/pods", ["list", "", "v1", "other", "pods", "", "", ""]),
            ("GET", "/api/v1/namespaces/other/pods/foo", ["get", "", "v1", "other", "pods", "", "foo", ""]),
            ("HEAD", "/api/v1/namespaces/other/pods/foo", ["get", "", "v1", "other", "pods", "", "foo", ""]),
            ("GET", "/api/v1/pods", ["list", "", "v1", "", "pods", "", "", ""]),
            ("GET", "/api/v1/pods?watch=1", ["watch", "", "v1", "", "pods", "", "", ""]),
            ("GET", "/api/v1/pods?watch=true", ["watch", "", "v1", "", "pods", "", "", ""]),
            ("GET", "/api/v1/pods?watch=false", ["list", "", "v1", "", "pods", "", "", ""]),
            ("GET", "/api/v1/watch/pods", ["watch", "", "v1", "", "pods", "", "", ""]),
            ("GET", "/api/v1/watch/namespaces/other/pods/foo", ["watch", "", "v1", "other", "pods", "", "foo", ""]),
            ("GET", "/api/v1/proxy/namespaces/other/pods/foo/a/b", ["proxy", "", "v1", "other", "pods", "", "foo", "a/b"]),
            ("GET", "/api/v1/namespaces/other/pods/foo/proxy/a/b/", ["get", "", "v1", "other", "pods", "proxy", "foo", "a/b/"]),
            ("POST", "/api/v1/nodes/n/proxy/a%20b?x=1", ["create", "", "v1", "", "nodes", "proxy", "n", "a%20b"]),
            ("GET", "/api/v1/namespaces/ns/pods/foo/log", ["get", "", "v1", "ns", "pods", "log", "foo", ""]),
            ("PUT", "/api/v1/namespaces/ns/finalize", ["update", "", "v1", "ns", "namespaces", "finalize", "ns", ""]),
            ("PUT", "/api/v1/namespaces/ns/status", ["update", "", "v1", "ns", "namespaces", "status", "ns", ""]),
            ("POST", "/apis/apps/v1/namespaces/ns/deployments", ["create", "apps", "v1", "ns", "deployments", "", "", ""]),
            (
                "PATCH",
                "/apis/apps/v1/namespaces/ns/deployments/a/scale",
                ["patch", "apps", "v1", "ns", "deployments", "scale", "a", ""],
            ),
            ("DELETE", "/api/v1/namespaces/ns/pods", ["deletecollection", "", "v1", "ns", "pods", "", "", ""]),
            ("DELETE", "/api/v1/namespaces/ns/pods/a", ["delete", "", "v1", "ns", "pods", "", "a", ""]),
            ("GET", "/api/v1/namespaces/ns/pods?fieldSelector=metadata.name%3Da", ["list", "", "v1", "ns", "pods", "", "a", ""]),
            ("GET", "/api/v1/pods?watch=1&fieldSelector=metadata.name==a,x=y", ["watch", "", "v1", "", "pods", "", "a", ""]),
            ("GET", "/api/v1/pods?fieldSelector=metadata.name!%3Da", ["list", "", "v1", "", "pods", "", "", ""]),
            (
                "GET",
                "/apis/rbac.authorization.k8s.io/v1/clusterroles/system%3Anode",
                ["get", "rbac.authorization.k8s.io", "v1", "", "clusterroles", "", "system:node", ""],
            ),
        ];
        for (method, url, [verb, group, version, namespace, resource, subresource, name, rest]) in table {
            let info = parse(method, url);
            let found = [
                &info.verb,
                &info.group,
                &info.version,
                &info.namespace,
                &info.resource,
                &info.subresource,
                &info.name,
                &info.rest,
            ];
            assert_eq!(found, [verb, group, version, namespace, resource, subresource, name, rest], "{method} {url}");
            assert!(info.is_resource, "{url}");
        }
    }

    #[test]
    fn other_paths_are_no_resources() {
        for path in ["/", "/api", "/api/v1", "/apis", "/apis/apps", "/apis/apps/v1", "/healthz", "/version/x/y/z", "/metrics"] {
            let info = parse("GET", path);
            assert_eq!((info.is_resource, info.verb.as_str(), info.path.as_str()), (false, "get", path));
        }
        assert_eq!(parse("POST", "/healthz").verb, "post");
    }

    #[test]
    fn queries_decode() {
        let query = parse_query("labelSelector=a%3Db%2Cc+in+%28d%29&watch&x=%zz");
        let expected = [("labelSelector", "a=b,c in (d)"), ("watch", ""), ("x", "%zz")];
        assert_eq!(query, expected.map(|(key, value)| (key.to_owned(), value.to_owned())));
    }
}
