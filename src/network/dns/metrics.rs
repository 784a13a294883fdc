//! Counters under CoreDNS's names. Those of the fast path are looked up once and then only counted.

use std::net::SocketAddr;
use std::sync::OnceLock;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

use super::message::rtype;
use crate::rt::metrics::register;

type Labels = Vec<(&'static str, String)>;

/// The types that are counted by name; others count as `other`.
const TYPES: [(u16, &str); 10] = [
    (rtype::A, "A"),
    (rtype::AAAA, "AAAA"),
    (rtype::SRV, "SRV"),
    (rtype::PTR, "PTR"),
    (rtype::TXT, "TXT"),
    (rtype::MX, "MX"),
    (rtype::NS, "NS"),
    (rtype::SOA, "SOA"),
    (rtype::CNAME, "CNAME"),
    (0, "other"),
];
const RCODES: [&str; 7] = ["NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED", "other"];
const PROTOCOLS: [&str; 2] = ["udp", "tcp"];

/// All families.
pub(super) struct Metrics {
    requests: Family<Labels, Counter>,
    responses: Family<Labels, Counter>,
    hits: Family<Labels, Counter>,
    pub(super) cache_misses: Counter,
    pub(super) cache_entries: Gauge,
    pub(super) served_stale: Counter,
    pub(super) rejects: Counter,
}

/// The families of the process.
pub(super) fn metrics() -> &'static Metrics {
    static METRICS: OnceLock<Metrics> = OnceLock::new();
    METRICS.get_or_init(|| Metrics {
        requests: register("coredns_dns_requests", "DNS requests.", Family::default()),
        responses: register("coredns_dns_responses", "DNS answers by their code.", Family::default()),
        hits: register("coredns_cache_hits", "Answers out of the cache.", Family::default()),
        cache_misses: register("coredns_cache_misses", "Questions that had to be asked.", Counter::default()),
        cache_entries: register("coredns_cache_entries", "Answers in the cache.", Gauge::default()),
        served_stale: register(
            "coredns_cache_served_stale",
            "Old answers told because no upstream answered.",
            Counter::default(),
        ),
        rejects: register("coredns_forward_max_concurrent_rejects", "Questions too many at one time.", Counter::default()),
    })
}

impl Metrics {
    pub(super) fn cache_hit(&self, is_denial: bool) {
        let kind = if is_denial { "denial" } else { "success" };
        self.hits.get_or_create(&vec![("type", kind.to_owned())]).inc();
    }
}

/// How a request came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    Udp,
    Tcp,
}

/// The counters of one listening address.
pub(super) struct Counters {
    requests: [[Counter; TYPES.len()]; PROTOCOLS.len()],
    responses: [Counter; RCODES.len()],
}

impl Counters {
    pub(super) fn new(server: SocketAddr) -> Self {
        let name = format!("dns://{server}");
        let family = if server.is_ipv4() { "1" } else { "2" };
        let request = |protocol: &str, kind: &str| {
            let labels =
                [("family", family), ("proto", protocol), ("server", &name), ("type", kind), ("view", ""), ("zone", ".")];
            metrics().requests.get_or_create_owned(&labels.map(|(key, value)| (key, value.to_owned())).to_vec())
        };
        let response = |code: &str| {
            let labels = [("plugin", ""), ("rcode", code), ("server", &name), ("view", ""), ("zone", ".")];
            metrics().responses.get_or_create_owned(&labels.map(|(key, value)| (key, value.to_owned())).to_vec())
        };
        Self {
            requests: PROTOCOLS.map(|protocol| TYPES.map(|(_, kind)| request(protocol, kind))),
            responses: RCODES.map(response),
        }
    }

    /// Counts an answer and the request that it is for.
    pub(super) fn count(&self, protocol: Protocol, qtype: u16, answer: &[u8]) {
        let kind = TYPES.iter().position(|(known, _)| *known == qtype).unwrap_or(TYPES.len() - 1);
        self.requests[protocol as usize][kind].inc();
        let code = answer.get(3).map_or(RCODES.len() - 1, |flags| usize::from(flags & 0x0f).min(RCODES.len() - 1));
        self.responses[code].inc();
    }
}
