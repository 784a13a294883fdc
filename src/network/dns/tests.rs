//! Tables of names and what is answered, over the whole way from the bytes of a question to those of its answer; and the forwarding
//! against real servers on loopback.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Namespace, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::{Value, json};

use super::forward::{Forwarder, Routes};
use super::index::Part;
use super::message::tests::query;
use super::message::{Query, Record, UDP_PLAIN, rtype};
use super::resolver::Step;
use super::settings::Settings;
use super::zone::Scratch;
use super::*;
use crate::rt::clock;

fn service(name: &str, spec: Value) -> Service {
    serde_json::from_value(json!({"metadata": {"name": name, "namespace": "shop"}, "spec": spec})).unwrap()
}

fn slice(name: &str, of: &str, endpoints: Value, ports: Value) -> EndpointSlice {
    let labels = json!({"kubernetes.io/service-name": of});
    serde_json::from_value(json!({"metadata": {"name": name, "namespace": "shop", "labels": labels}, "addressType": "IPv4",
        "endpoints": endpoints, "ports": ports}))
    .unwrap()
}

fn namespace(name: &str) -> Namespace {
    serde_json::from_value(json!({"metadata": {"name": name}})).unwrap()
}

fn filled() -> Index {
    let mut index = Index::new(1);
    for name in ["shop", "empty"] {
        index.set_namespace(&namespace(name), true);
    }
    let http = json!([{"name": "http", "port": 80, "protocol": "TCP"}, {"name": "metrics", "port": 9090, "protocol": "TCP"}]);
    index.set_service(&service("web", json!({"clusterIP": "10.43.0.20", "clusterIPs": ["10.43.0.20"], "ports": http})));
    index.set_service(&service(
        "dual",
        json!({"clusterIP": "10.43.0.21", "clusterIPs": ["10.43.0.21", "fd00::21"],
        "ports": [{"port": 53, "protocol": "UDP"}]}),
    ));
    index.set_service(&service("db", json!({"clusterIP": "None", "ports": [{"name": "sql", "port": 5432, "protocol": "TCP"}]})));
    index.set_service(&service("bare", json!({"clusterIP": "None"})));
    index.set_service(&service("idle", json!({"clusterIP": "None"})));
    for (name, target) in [
        ("out", "www.example.com"),
        ("alias", "web.shop.svc.cluster.local"),
        ("lost", "no.shop.svc.cluster.local"),
        ("round", "round.shop.svc.cluster.local"),
        ("ip", "1.2.3.4"),
    ] {
        index.set_service(&service(name, json!({"type": "ExternalName", "externalName": target})));
    }
    let sql = json!([{"name": "sql", "port": 5432, "protocol": "TCP"}]);
    let endpoints = json!([
        {"addresses": ["10.42.0.7"], "hostname": "db-0", "conditions": {"ready": true}},
        {"addresses": ["10.42.0.8"], "conditions": {}},
        {"addresses": ["10.42.0.9"], "conditions": {"ready": false}},
    ]);
    index.set_slice(None, &slice("db-1", "db", endpoints, sql));
    index.set_slice(None, &slice("bare-1", "bare", json!([{"addresses": ["10.42.0.5"]}]), json!([])));
    let web = json!([{"addresses": ["10.42.0.6"], "conditions": {"ready": true}}]);
    index.set_slice(None, &slice("web-1", "web", web, json!([{"name": "http", "port": 8080, "protocol": "TCP"}])));
    for part in [Part::Services, Part::Slices, Part::Namespaces] {
        index.fill(part);
    }
    index
}

fn resolver_on(resolv_conf: &std::path::Path, index: Index) -> Resolver {
    let server: SocketAddr = "10.43.0.10:53".parse().unwrap();
    Resolver {
        zone: Zone {
            domain: Name::from_text("cluster.local").unwrap(),
            server: server.ip(),
            ranges: vec!["10.43.0.0/16".parse().unwrap(), "10.42.0.0/16".parse().unwrap()],
        },
        index: RwLock::new(index),
        hosts: ArcSwap::default(),
        forwarder: Forwarder::new(resolv_conf.to_owned(), server, TaskGroup::new()),
    }
}

/// A message in the words of dig: `CODE FLAGS | answers | authority | additional`.
fn text(message: &[u8]) -> String {
    let code = ["NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED"][usize::from(message[3] & 15)];
    let mut words =
        vec![format!("{code}{}{}", if message[2] & 4 != 0 { " aa" } else { "" }, if message[2] & 2 != 0 { " tc" } else { "" })];
    let Some((_, at)) = Name::parse(message, 12) else { return words.remove(0) };
    let mut at = at + 4;
    for section in 0..3 {
        let count = u16::from_be_bytes([message[6 + 2 * section], message[7 + 2 * section]]);
        let mut records = Vec::new();
        for _ in 0..count {
            let record = Record::parse(message, at).unwrap();
            at = record.end;
            records.extend(record_text(message, &record));
        }
        records.sort();
        words.push(records.join(", "));
    }
    assert_eq!(at, message.len(), "nothing after the last record");
    words.join(" | ").trim_end_matches([' ', '|']).to_owned()
}

fn record_text(message: &[u8], record: &Record) -> Option<String> {
    let data = &message[record.data.clone()];
    let name = |skip: usize| Name::parse(message, record.data.start + skip).unwrap().0.to_string();
    let word = |at: usize| u16::from_be_bytes([data[at], data[at + 1]]);
    let short = |name: String| name.replace("shop.svc.cluster.local.", "~");
    let value = match record.rtype {
        rtype::A => Ipv4Addr::from(<[u8; 4]>::try_from(data).unwrap()).to_string(),
        rtype::AAAA => std::net::Ipv6Addr::from(<[u8; 16]>::try_from(data).unwrap()).to_string(),
        rtype::CNAME | rtype::PTR | rtype::NS => short(name(0)),
        rtype::SRV => format!("{} {} {} {}", word(0), word(2), word(4), short(name(6))),
        rtype::TXT => String::from_utf8_lossy(&data[1..]).into_owned(),
        rtype::SOA => return Some(format!("soa {}", record.owner)),
        rtype::OPT => return None,
        other => panic!("type {other}"),
    };
    Some(format!("{} {value}", short(record.owner.to_string())))
}

fn ask(resolver: &Resolver, message: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    let step = resolver.start(&resolver.index(), message, None, clock::instant(), &mut Scratch::new(7), &mut out);
    matches!(step, Step::Reply(_)).then_some(out)
}

async fn ask_wholly(resolver: &Resolver, message: &[u8]) -> String {
    let (mut out, mut scratch) = (Vec::new(), Scratch::new(7));
    let step = resolver.start(&resolver.index(), message, None, clock::instant(), &mut scratch, &mut out);
    if let Step::Ask(job) = step {
        resolver.finish(job, &mut scratch, &mut out).await;
    }
    text(&out)
}

const NO_DATA: &str = "NOERROR aa |  | soa cluster.local.";
const NO_NAME: &str = "NXDOMAIN aa |  | soa cluster.local.";

#[tokio::test]
async fn the_clusters_names() {
    use rtype::{A, AAAA, CNAME, NS, SOA, SRV, TXT};
    let resolver = resolver_on(std::path::Path::new("/nowhere"), filled());
    let table = [
        ("web.shop.svc.cluster.local", A, "NOERROR aa | web.~ 10.43.0.20"),
        ("WEB.Shop.SVC.Cluster.Local", A, "NOERROR aa | web.~ 10.43.0.20"),
        ("web.shop.svc.cluster.local", AAAA, NO_DATA),
        ("web.shop.svc.cluster.local", TXT, NO_DATA),
        ("dual.shop.svc.cluster.local", AAAA, "NOERROR aa | dual.~ fd00::21"),
        ("no.shop.svc.cluster.local", A, NO_NAME),
        ("web.other.svc.cluster.local", A, NO_NAME),
        ("db.shop.svc.cluster.local", A, "NOERROR aa | db.~ 10.42.0.7, db.~ 10.42.0.8"),
        ("db.shop.svc.cluster.local", AAAA, NO_DATA),
        ("bare.shop.svc.cluster.local", A, "NOERROR aa | bare.~ 10.42.0.5"),
        ("bare.shop.svc.cluster.local", SRV, NO_DATA),
        ("idle.shop.svc.cluster.local", A, NO_NAME),
        ("db-0.db.shop.svc.cluster.local", A, "NOERROR aa | db-0.db.~ 10.42.0.7"),
        ("10-42-0-8.db.shop.svc.cluster.local", A, "NOERROR aa | 10-42-0-8.db.~ 10.42.0.8"),
        ("10-42-0-7.db.shop.svc.cluster.local", A, NO_NAME),
        ("10-42-0-9.db.shop.svc.cluster.local", A, NO_NAME),
        ("10-42-0-6.web.shop.svc.cluster.local", A, "NOERROR aa | 10-42-0-6.web.~ 10.42.0.6"),
        ("_http._tcp.web.shop.svc.cluster.local", SRV, "NOERROR aa | _http._tcp.web.~ 0 100 80 web.~ |  | web.~ 10.43.0.20"),
        ("web.shop.svc.cluster.local", SRV, "NOERROR aa | web.~ 0 50 80 web.~, web.~ 0 50 9090 web.~ |  | web.~ 10.43.0.20"),
        ("_http._udp.web.shop.svc.cluster.local", SRV, NO_NAME),
        ("_no._tcp.web.shop.svc.cluster.local", SRV, NO_NAME),
        ("http.tcp.web.shop.svc.cluster.local", SRV, NO_NAME),
        ("_tcp.web.shop.svc.cluster.local", SRV, NO_DATA),
        ("_udp.web.shop.svc.cluster.local", SRV, NO_NAME),
        ("a._http._tcp.web.shop.svc.cluster.local", SRV, NO_NAME),
        (
            "_sql._tcp.db.shop.svc.cluster.local",
            SRV,
            "NOERROR aa | _sql._tcp.db.~ 0 50 5432 10-42-0-8.db.~, _sql._tcp.db.~ 0 50 5432 db-0.db.~ |  | 10-42-0-8.db.~ 10.42.0.8, db-0.db.~ 10.42.0.7",
        ),
        ("_http._tcp.web.shop.svc.cluster.local", A, "NOERROR aa | _http._tcp.web.~ 10.43.0.20"),
        ("alias.shop.svc.cluster.local", A, "NOERROR aa | alias.~ web.~, web.~ 10.43.0.20"),
        ("alias.shop.svc.cluster.local", CNAME, "NOERROR aa | alias.~ web.~"),
        ("alias.shop.svc.cluster.local", AAAA, "NOERROR aa | alias.~ web.~ | soa cluster.local."),
        ("lost.shop.svc.cluster.local", A, "NXDOMAIN aa | lost.~ no.~ | soa cluster.local."),
        ("a.alias.shop.svc.cluster.local", A, NO_NAME),
        ("ip.shop.svc.cluster.local", A, NO_NAME),
        ("1-2-3-4.shop.pod.cluster.local", A, "NOERROR aa | 1-2-3-4.shop.pod.cluster.local. 1.2.3.4"),
        ("1-2-3-4.shop.pod.cluster.local", AAAA, NO_DATA),
        ("fd00--1.shop.pod.cluster.local", AAAA, "NOERROR aa | fd00--1.shop.pod.cluster.local. fd00::1"),
        ("1-2-3-4.other.pod.cluster.local", A, NO_NAME),
        ("x.shop.pod.cluster.local", A, NO_NAME),
        ("cluster.local", A, NO_DATA),
        ("svc.cluster.local", A, NO_DATA),
        ("pod.cluster.local", A, NO_DATA),
        ("shop.svc.cluster.local", A, NO_DATA),
        ("empty.svc.cluster.local", A, NO_DATA),
        ("other.svc.cluster.local", A, NO_NAME),
        ("shop.pod.cluster.local", A, NO_DATA),
        ("other.pod.cluster.local", A, NO_NAME),
        ("other.cluster.local", A, NO_NAME),
        ("a.b.c.d.e.f.cluster.local", A, NO_NAME),
        ("cluster.local", SOA, "NOERROR aa | soa cluster.local."),
        ("cluster.local", NS, "NOERROR aa | cluster.local. ns.dns.cluster.local. |  | ns.dns.cluster.local. 10.43.0.10"),
        ("ns.dns.cluster.local", A, "NOERROR aa | ns.dns.cluster.local. 10.43.0.10"),
        ("ns.dns.cluster.local", AAAA, NO_DATA),
        ("dns.cluster.local", A, NO_DATA),
        ("dns-version.cluster.local", TXT, "NOERROR aa | dns-version.cluster.local. 1.1.0"),
        ("dns-version.cluster.local", A, NO_DATA),
    ];
    for (name, qtype, expected) in table {
        for edns in [None, Some(4_096)] {
            let message = query(name, qtype, edns);
            let answer = ask(&resolver, &message).unwrap_or_else(|| panic!("{name} was not answered"));
            assert_eq!(text(&answer), expected, "{name} {qtype}");
            assert_eq!(answer[..2], message[..2]);
            let end = Query::parse(&message).unwrap().question_end;
            assert_eq!(answer[12..end], message[12..end], "the question as it was asked");
        }
    }
    let round = ask(&resolver, &query("round.shop.svc.cluster.local", A, None)).unwrap();
    assert_eq!(text(&round), "SERVFAIL | round.~ round.~", "an end to every chain");
}

#[tokio::test]
async fn reverse_names() {
    let resolver = resolver_on(std::path::Path::new("/nowhere"), filled());
    let denied = |code: &str| format!("{code} aa |  | soa in-addr.arpa.");
    let table = [
        ("20.0.43.10.in-addr.arpa", rtype::PTR, "NOERROR aa | 20.0.43.10.in-addr.arpa. web.~".to_owned()),
        ("20.0.43.10.in-addr.arpa", rtype::TXT, denied("NOERROR")),
        ("7.0.42.10.in-addr.arpa", rtype::PTR, "NOERROR aa | 7.0.42.10.in-addr.arpa. db-0.db.~".to_owned()),
        ("8.0.42.10.in-addr.arpa", rtype::PTR, "NOERROR aa | 8.0.42.10.in-addr.arpa. 10-42-0-8.db.~".to_owned()),
        ("6.0.42.10.in-addr.arpa", rtype::PTR, denied("NXDOMAIN")),
        ("99.0.43.10.in-addr.arpa", rtype::PTR, denied("NXDOMAIN")),
        ("43.10.in-addr.arpa", rtype::PTR, denied("NOERROR")),
    ];
    for (name, qtype, expected) in table {
        let answer = ask(&resolver, &query(name, qtype, None)).unwrap_or_else(|| panic!("{name} was not answered"));
        assert_eq!(text(&answer), expected, "{name}");
    }
    let six = format!("1.2.{}0.0.d.f.ip6.arpa", "0.".repeat(26));
    assert_eq!(text(&ask(&resolver, &query(&six, rtype::PTR, None)).unwrap()), format!("NOERROR aa | {six}. dual.~"));
    for foreign in ["8.8.8.8.in-addr.arpa", "10.in-addr.arpa", "x.43.10.in-addr.arpa", "in-addr.arpa", "www.example.com", "local"]
    {
        assert!(ask(&resolver, &query(foreign, rtype::PTR, None)).is_none(), "{foreign} is somebody else's");
    }
}

#[tokio::test]
async fn changes_and_what_is_not_known_yet() {
    let resolver = resolver_on(std::path::Path::new("/nowhere"), Index::new(1));
    let of = |name: &str| text(&ask(&resolver, &query(&format!("{name}.shop.svc.cluster.local"), rtype::A, None)).unwrap());
    assert_eq!(of("web"), "SERVFAIL", "what is not known yet is not denied");
    *resolver.index.write() = filled();
    let old =
        slice("db-1", "db", json!([{"addresses": ["10.42.0.7"], "hostname": "db-0"}, {"addresses": ["10.42.0.8"]}]), json!([]));
    let moved = slice("db-1", "idle", json!([{"addresses": ["10.42.0.3"]}]), json!([]));
    let before = resolver.index().serial();
    resolver.index.write().set_slice(Some(&old), &moved);
    assert!(resolver.index().serial() > before);
    assert_eq!((of("db").as_str(), of("idle").as_str()), (NO_NAME, "NOERROR aa | idle.~ 10.42.0.3"));
    assert_eq!(resolver.index().endpoints_at([10, 42, 0, 7].into()).count(), 0);
    resolver.index.write().remove_slice(&moved);
    assert_eq!(of("idle"), NO_NAME);
    let web = service("web", json!({"clusterIP": "10.43.0.99", "clusterIPs": ["10.43.0.99"]}));
    resolver.index.write().set_service(&web);
    assert_eq!(of("web"), "NOERROR aa | web.~ 10.43.0.99");
    assert_eq!(resolver.index().services_at([10, 43, 0, 20].into()).count(), 0);
    resolver.index.write().remove_service(&web);
    assert_eq!((of("web").as_str(), resolver.index().services_at([10, 43, 0, 99].into()).count()), (NO_NAME, 0));
    resolver.index.write().set_namespace(&namespace("empty"), false);
    let gone = ask(&resolver, &query("empty.svc.cluster.local", rtype::A, None)).unwrap();
    assert_eq!(text(&gone), NO_NAME);
}

#[tokio::test]
async fn many_endpoints_are_cut_for_udp_and_shuffled() {
    let resolver = resolver_on(std::path::Path::new("/nowhere"), filled());
    let endpoints: Vec<Value> = (0..250).map(|number| json!({"addresses": [format!("10.42.1.{number}")]})).collect();
    resolver.index.write().set_slice(None, &slice("idle-1", "idle", json!(endpoints), json!([])));
    let mut seen = std::collections::BTreeSet::new();
    let mut scratch = Scratch::new(3);
    for (edns, limit, truncated, counted) in
        [(None, None, true, 29), (Some(1_232), None, true, 73), (Some(4_096), None, false, 250), (None, Some(65_535), false, 250)]
    {
        let message = query("idle.shop.svc.cluster.local", rtype::A, edns);
        let mut out = Vec::new();
        resolver.start(&resolver.index(), &message, limit, clock::instant(), &mut scratch, &mut out);
        assert_eq!((out[2] & 2 != 0, u16::from_be_bytes([out[6], out[7]])), (truncated, counted), "{edns:?} {limit:?}");
        assert!(out.len() <= limit.unwrap_or(edns.map_or(UDP_PLAIN, usize::from)));
        seen.insert(out[45 + 12..45 + 16].to_vec());
    }
    assert!(seen.len() > 1, "not always the same first");
}

#[tokio::test]
async fn hosts_of_the_user_come_first() {
    let resolver = resolver_on(std::path::Path::new("/nowhere"), filled());
    let map = serde_json::from_value(json!({"data": {"hosts": "10.9.0.1 db.corp web.shop.svc.cluster.local"}})).unwrap();
    resolver.hosts.store(Arc::new(Settings::default().updated(Some(&map)).0.hosts));
    let table = [
        ("db.corp", rtype::A, "NOERROR aa | db.corp. 10.9.0.1"),
        ("db.corp", rtype::AAAA, "NOERROR aa"),
        ("web.shop.svc.cluster.local", rtype::A, "NOERROR aa | web.~ 10.9.0.1"),
        ("1.0.9.10.in-addr.arpa", rtype::PTR, "NOERROR aa | 1.0.9.10.in-addr.arpa. db.corp., 1.0.9.10.in-addr.arpa. web.~"),
    ];
    for (name, qtype, expected) in table {
        assert_eq!(text(&ask(&resolver, &query(name, qtype, None)).unwrap()), expected, "{name}");
    }
}

/// An upstream on loopback: what it answers with, and how often it was asked.
struct Upstream {
    address: SocketAddr,
    asked: Arc<AtomicUsize>,
    stop: tokio_util::sync::DropGuard,
}

/// Answers every question with a CNAME to `target.example` and an address, `ttl` old; "nx.example" is not there, and what begins with
/// "big" comes over TCP only.
fn upstream(ttl: u8) -> Upstream {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let tcp = std::net::TcpListener::bind(address).unwrap();
    socket.set_nonblocking(true).unwrap();
    tcp.set_nonblocking(true).unwrap();
    let (asked, token) = (Arc::new(AtomicUsize::new(0)), tokio_util::sync::CancellationToken::new());
    let (count, udp_token) = (Arc::clone(&asked), token.clone());
    let group = TaskGroup::new();
    let socket = tokio::net::UdpSocket::from_std(socket).unwrap();
    group.spawn(async move {
        let mut buffer = [0; 600];
        while let Some(Ok((length, client))) = udp_token.run_until_cancelled(socket.recv_from(&mut buffer)).await {
            count.fetch_add(1, Ordering::Relaxed);
            let mut answer = reply_of(&buffer[..length], ttl);
            if buffer[13..].starts_with(b"big") {
                answer = buffer[..length].to_vec();
                answer[2] = 0x83;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
            socket.send_to(&answer, client).await.unwrap();
        }
    });
    let (tcp, tcp_token) = (TcpListener::from_std(tcp).unwrap(), token.clone());
    group.spawn(async move {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        while let Some(Ok((mut stream, _))) = tcp_token.run_until_cancelled(tcp.accept()).await {
            let mut message = vec![0; stream.read_u16().await.unwrap().into()];
            stream.read_exact(&mut message).await.unwrap();
            let answer = reply_of(&message, ttl);
            stream.write_u16(answer.len() as u16).await.unwrap();
            stream.write_all(&answer).await.unwrap();
        }
    });
    Upstream { address, asked, stop: token.drop_guard() }
}

fn reply_of(message: &[u8], ttl: u8) -> Vec<u8> {
    let query = Query::parse(message).unwrap();
    let mut answer = message[..query.question_end].to_vec();
    answer[2] = 0x81;
    answer[6..12].fill(0);
    if query.name.label(0) == b"nx" {
        answer[3] = 0x83;
        answer[9] = 1;
        // The SOA of `example`, whose minimum is 60.
        answer.extend(b"\xc0\x0f\x00\x06\x00\x01\x00\x00\x00");
        answer.extend([ttl, 0, 24, 0xc0, 15, 0xc0, 15]);
        answer.extend([[0, 0, 0, 1], [0, 0, 0, 2], [0, 0, 0, 3], [0, 0, 0, 4], [0, 0, 0, 60]].concat());
    } else {
        answer[3] = 0x80;
        answer[7] = 2;
        answer.extend(b"\xc0\x0c\x00\x05\x00\x01\x00\x00\x00");
        answer.extend([ttl, 0, 9]);
        let target = u8::try_from(answer.len()).unwrap();
        // `target` and a pointer to the question's second label.
        let second = 12 + 1 + message[12];
        answer.extend([6]);
        answer.extend(b"target");
        answer.extend([0xc0, second]);
        answer.extend([0xc0, target, 0, 1, 0, 1, 0, 0, 0, ttl, 0, 4, 192, 0, 2, 7]);
    }
    answer[11] = 1;
    answer.extend([0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0]);
    answer
}

fn routed(servers: Vec<SocketAddr>) -> Arc<Resolver> {
    let resolver = resolver_on(std::path::Path::new("/nowhere"), filled());
    resolver.forwarder.reroute(Routes { stubs: Vec::new(), servers });
    Arc::new(resolver)
}

#[tokio::test]
async fn foreign_names_are_asked_once_and_remembered() {
    let upstream = upstream(60);
    let resolver = routed(vec![upstream.address]);
    let expected = "NOERROR | target.example. 192.0.2.7, www.example. target.example.";
    let message = query("WWW.example", rtype::A, Some(1_232));
    let all = futures_util::future::join_all((0..20).map(|_| ask_wholly(&resolver, &message))).await;
    assert!(all.iter().all(|answer| answer == expected), "{all:?}");
    assert_eq!(upstream.asked.load(Ordering::Relaxed), 1, "one flight for all");
    let plain = query("www.Example", rtype::A, None);
    let answer = ask(&resolver, &plain);
    assert!(answer.is_none(), "a question with another flag is another question");
    assert_eq!(ask_wholly(&resolver, &plain).await, expected);
    let cached = ask(&resolver, &plain).expect("out of the cache");
    assert_eq!((text(&cached).as_str(), &cached[12..plain.len()]), (expected, &plain[12..]));
    let denied = "NXDOMAIN |  | soa example.";
    for _ in 0..2 {
        assert_eq!(ask_wholly(&resolver, &query("nx.example", rtype::A, None)).await, denied);
    }
    let big = ask_wholly(&resolver, &query("big.example", rtype::A, None)).await;
    assert_eq!(big, "NOERROR | big.example. target.example., target.example. 192.0.2.7");
    assert_eq!(upstream.asked.load(Ordering::Relaxed), 4);
    let chased = ask_wholly(&resolver, &query("out.shop.svc.cluster.local", rtype::A, None)).await;
    assert_eq!(chased, "NOERROR | out.~ www.example.com., target.example.com. 192.0.2.7, www.example.com. target.example.com.");
}

#[tokio::test]
async fn a_dead_upstream_is_passed_over_and_an_old_answer_beats_none() {
    let dead = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let upstream = upstream(1);
    let resolver = routed(vec![dead, upstream.address]);
    let message = query("www.example", rtype::A, None);
    let expected = "NOERROR | target.example. 192.0.2.7, www.example. target.example.";
    assert_eq!(ask_wholly(&resolver, &message).await, expected);
    let Upstream { stop, .. } = upstream;
    drop(stop);
    let end = clock::instant() + Duration::from_millis(1_200);
    tokio::time::sleep_until(end).await;
    assert!(ask(&resolver, &message).is_none(), "it is old");
    assert_eq!(ask_wholly(&resolver, &message).await, expected);
    let again = ask(&resolver, &message).expect("told at once for a while");
    let record = Record::parse(&again, Query::parse(&message).unwrap().question_end).unwrap();
    assert_eq!(record.ttl, 30);
    assert_eq!(ask_wholly(&resolver, &query("other.example", rtype::A, None)).await, "SERVFAIL");
}

#[tokio::test]
async fn without_any_upstream_the_answer_says_so() {
    let resolver = routed(vec!["10.43.0.10:53".parse().unwrap()]);
    assert_eq!(ask_wholly(&resolver, &query("www.example", rtype::A, None)).await, "SERVFAIL", "never ourselves");
    let ip: IpAddr = [10, 43, 0, 10].into();
    assert_eq!(resolver.zone.server, ip);
}
