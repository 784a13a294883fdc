//! `apiserver_request_total` and `apiserver_request_duration_seconds`, under upstream's names and labels.

use std::sync::OnceLock;
use std::time::Duration;

use ::http::StatusCode;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;

use crate::rt::metrics;
use crate::server::{RequestInfo, Server};

const BUCKETS: [f64; 14] = [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

/// Verbs that are counted under their own name.
const VERBS: [(&str, &str); 9] = [
    ("get", "GET"),
    ("list", "LIST"),
    ("watch", "WATCH"),
    ("create", "POST"),
    ("update", "PUT"),
    ("patch", "PATCH"),
    ("delete", "DELETE"),
    ("deletecollection", "DELETECOLLECTION"),
    ("proxy", "CONNECT"),
];

/// What a request is counted under. All names are known ones, so that no client can make up series.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct Labels {
    verb: &'static str,
    group: &'static str,
    version: &'static str,
    resource: &'static str,
    subresource: &'static str,
    scope: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    verb: &'static str,
    group: &'static str,
    version: &'static str,
    resource: &'static str,
    subresource: &'static str,
    scope: &'static str,
    code: u16,
}

struct Families {
    requests: Family<Answered, Counter>,
    durations: Family<Labels, Histogram, fn() -> Histogram>,
}

fn families() -> &'static Families {
    static FAMILIES: OnceLock<Families> = OnceLock::new();
    FAMILIES.get_or_init(|| Families {
        requests: metrics::register(
            "apiserver_request",
            "Counter of apiserver requests broken out for each verb, group, version, resource, scope and HTTP response code",
            Family::default(),
        ),
        durations: metrics::register(
            "apiserver_request_duration_seconds",
            "Response latency distribution in seconds for each verb, group, version, resource, subresource and scope",
            Family::new_with_constructor(|| Histogram::new(BUCKETS)),
        ),
    })
}

impl Labels {
    pub(super) fn of(server: &Server, info: &RequestInfo) -> Self {
        let kind = info.is_resource.then(|| server.registry.kinds().find(&info.group, &info.version, &info.resource)).flatten();
        let names = kind.as_ref().map(|kind| *kind.names());
        let subresource = kind.as_ref().and_then(|kind| kind.subresources().iter().find(|sub| sub.as_str() == info.subresource));
        let scope = match (&names, info.name.is_empty(), info.namespace.is_empty()) {
            (None, ..) => "",
            (Some(_), false, _) => "resource",
            (Some(_), true, false) => "namespace",
            (Some(_), true, true) => "cluster",
        };
        Self {
            verb: VERBS.iter().find(|(verb, _)| *verb == info.verb).map_or("other", |(_, shown)| shown),
            group: names.map_or("", |names| names.group),
            version: names.map_or("", |names| names.version),
            resource: names.map_or("", |names| names.plural),
            subresource: subresource.map_or("", |sub| sub.as_str()),
            scope,
        }
    }

    /// Counts an answer.
    pub(super) fn observe(self, status: StatusCode, elapsed: Duration) {
        let families = families();
        families.durations.get_or_create(&self).observe(elapsed.as_secs_f64());
        let Self { verb, group, version, resource, subresource, scope } = self;
        let answered = Answered { verb, group, version, resource, subresource, scope, code: status.as_u16() };
        families.requests.get_or_create(&answered).inc();
    }
}
