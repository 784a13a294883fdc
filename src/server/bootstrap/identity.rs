//! The Service `kubernetes` follows the servers. Each server renews a Lease of its own (`kube-system/apiserver-…`), as upstream's
//! identity leases and its lease endpoint reconciler do; the endpoints of the Service are the addresses of all servers whose Lease
//! lives. Whoever edits or deletes the Service or its endpoints sees them come back at once.
//!
//! Other servers' Leases are judged by when a renewal was seen here; only at the first sight by what they say.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Server, Writer, kubernetes_service, writer};
use crate::api::{ApiError, Object};
use crate::rt::clock;
use crate::store::{Expired, Indexed, Watch};

/// Time between renewals, and from a renewal until the server counts as gone.
const RENEW: Duration = Duration::from_secs(10);
const LIFE: Duration = Duration::from_secs(25);
const LEASES: &str = "coordination.k8s.io/leases/kube-system/";
/// Label of the Leases of API servers, and its value.
const IDENTITY: (&str, &str) = ("apiserver.kubernetes.io/identity", "kube-apiserver");
/// Annotation of such a Lease: where the server is reached.
const ADVERTISE: &str = "orch.io/advertise-address";
/// What is watched: prefix, and the label by which it is told from all else there.
const WATCHED: [(&str, (&str, &str)); 4] = [
    (LEASES, IDENTITY),
    ("core/services/default/", ("component", "apiserver")),
    ("core/endpoints/default/", ("endpointslice.kubernetes.io/skip-mirror", "true")),
    ("discovery.k8s.io/endpointslices/default/", ("kubernetes.io/service-name", "kubernetes")),
];

/// Keeps this server's Lease, and the endpoints of the Service `kubernetes`, until the token is cancelled.
pub async fn follow(server: Arc<Server>, token: CancellationToken) {
    let mut keeper = Keeper { server, seen: HashMap::new() };
    while !token.is_cancelled() {
        token.run_until_cancelled(keeper.watch()).await;
    }
}

/// Registers this server once and sets the endpoints: the last step of the bootstrap.
pub(super) async fn register(server: &Arc<Server>) -> Result<(), ApiError> {
    let mut keeper = Keeper { server: Arc::clone(server), seen: HashMap::new() };
    if !keeper.is_registered() {
        keeper.renew().await?;
    }
    keeper.settle().await
}

struct Keeper {
    server: Arc<Server>,
    /// By the name of another server's Lease: the renewal last seen, and when.
    seen: HashMap<String, (String, Option<Instant>)>,
}

/// A server, as its Lease tells.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Member {
    lease: String,
    address: SocketAddr,
    renewed: String,
}

fn member(lease: &Object) -> Option<Member> {
    let address = lease.annotation(ADVERTISE)?.parse().ok()?;
    let renewed = lease.str_at(&["spec", "renewTime"]).unwrap_or("").to_owned();
    Some(Member { lease: lease.name().to_owned(), address, renewed })
}

/// `apiserver-10.0.0.1-6443`.
fn lease_name(advertise: SocketAddr) -> String {
    format!("apiserver-{}-{}", advertise.ip().to_string().replace(':', "-"), advertise.port())
}

impl Keeper {
    /// Acts on what changes, until a watch has to be opened anew.
    async fn watch(&mut self) {
        let (store, from) = (Arc::clone(self.server.registry.store()), self.server.registry.store().snapshot().revision());
        let open = |(prefix, (label, value)): (&str, (&str, &str))| -> Result<Watch, Expired> {
            Ok(store.watch(prefix, from)?.narrowed_to(Indexed::Label, label, value))
        };
        let [Ok(mut leases), Ok(mut services), Ok(mut endpoints), Ok(mut slices)] = WATCHED.map(open) else { return };
        let mut renewal = tokio::time::interval_at(clock::instant(), RENEW);
        renewal.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let own = format!("{LEASES}{}", lease_name(self.server.config.advertise));
        loop {
            let change = tokio::select! {
                _ = renewal.tick() => {
                    self.told(self.renew().await, "this server's Lease was not renewed");
                    None
                }
                change = leases.next() => Some(change),
                change = services.next() => Some(change),
                change = endpoints.next() => Some(change),
                change = slices.next() => Some(change),
            };
            match change {
                Some(None | Some(Err(_))) => return,
                // A renewal of its own is no news; its removal is.
                Some(Some(Ok(event))) if **event.key() == own => {
                    if store.snapshot().get(&own).is_some() {
                        continue;
                    }
                    self.told(self.renew().await, "this server's Lease was not renewed");
                }
                _ => {}
            }
            let settled = self.settle().await;
            self.told(settled, "the endpoints of the Service kubernetes were not set");
        }
    }

    fn told(&self, outcome: Result<(), ApiError>, what: &str) {
        if let Err(error) = outcome {
            tracing::warn!(%error, "{what}; trying again");
        }
    }

    /// Whether this server's Lease was renewed just now: a new leader that registers again has nothing to write.
    fn is_registered(&self) -> bool {
        let (registry, name) = (&self.server.registry, lease_name(self.server.config.advertise));
        let kind = registry.kinds().find("coordination.k8s.io", "v1", "leases");
        let lease = kind.and_then(|kind| registry.get_object(&*kind, "kube-system", &name).ok());
        let member = lease.as_ref().and_then(member).filter(|member| member.address == self.server.config.advertise);
        let renewed = member.and_then(|member| member.renewed.parse::<Timestamp>().ok());
        let recent = SignedDuration::try_from(RENEW).unwrap_or(SignedDuration::ZERO);
        renewed.is_some_and(|renewed| registry.clock().now().duration_since(renewed).abs() < recent)
    }

    async fn renew(&self) -> Result<(), ApiError> {
        let (advertise, now) = (self.server.config.advertise, self.server.registry.clock().now());
        let name = lease_name(advertise);
        let now = now.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string();
        let lease = json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {
                "name": name, "namespace": "kube-system", "labels": {IDENTITY.0: IDENTITY.1},
                "annotations": {ADVERTISE: advertise.to_string()},
            },
            "spec": {"holderIdentity": name, "leaseDurationSeconds": LIFE.as_secs(), "renewTime": now},
        });
        writer(&self.server).set(lease, &["spec"]).await
    }

    /// The servers that live, this one included.
    fn members(&mut self) -> Result<(BTreeSet<SocketAddr>, Vec<String>), ApiError> {
        let registry = &self.server.registry;
        let (own, now) = (self.server.config.advertise, registry.clock().now());
        let Some(kind) = registry.kinds().find("coordination.k8s.io", "v1", "leases") else { return Ok(Default::default()) };
        let (mut alive, mut gone, mut present) = (BTreeSet::from([own]), Vec::new(), Vec::new());
        for entry in registry.store().snapshot().by_label(LEASES, IDENTITY.0, IDENTITY.1) {
            let Some(member) = member(&registry.decode(&*kind, entry)?).filter(|member| member.address != own) else { continue };
            if is_alive(&mut self.seen, &member, now) {
                alive.insert(member.address);
            } else {
                gone.push(member.lease.clone());
            }
            present.push(member.lease);
        }
        self.seen.retain(|lease, _| present.contains(lease));
        Ok((alive, gone))
    }

    async fn settle(&mut self) -> Result<(), ApiError> {
        let (alive, gone) = self.members()?;
        let writer = writer(&self.server);
        writer.ensure(kubernetes_service(&self.server)).await?;
        writer.set(endpoints(&alive), &["subsets"]).await?;
        let slices = slices(&alive);
        for slice in &slices {
            writer.set(slice.clone(), &["endpoints", "ports", "addressType"]).await?;
        }
        self.remove_slices(&writer, &slices).await?;
        for lease in gone {
            tracing::info!(lease, "an API server is gone: it leaves the endpoints of the Service kubernetes");
            writer.remove("coordination.k8s.io", "leases", ("kube-system", &lease)).await?;
        }
        Ok(())
    }

    /// Slices of ports that no server has any more.
    async fn remove_slices(&self, writer: &Writer<'_>, wanted: &[Value]) -> Result<(), ApiError> {
        let (prefix, (label, value)) = WATCHED[3];
        let names: Vec<String> = self
            .server
            .registry
            .store()
            .snapshot()
            .by_label(prefix, label, value)
            .filter_map(|entry| entry.key.rsplit('/').next().map(str::to_owned))
            .filter(|name| {
                name.starts_with("kubernetes-") && !wanted.iter().any(|slice| slice["metadata"]["name"] == name.as_str())
            })
            .collect();
        for name in names {
            writer.remove("discovery.k8s.io", "endpointslices", ("default", &name)).await?;
        }
        Ok(())
    }
}

/// Whether a server lives: at the first sight by the time in its Lease, then by when that changed.
fn is_alive(seen: &mut HashMap<String, (String, Option<Instant>)>, member: &Member, now: Timestamp) -> bool {
    let fresh = |renewed: &str| {
        let life = SignedDuration::try_from(LIFE).unwrap_or(SignedDuration::ZERO);
        renewed.parse::<Timestamp>().is_ok_and(|renewed| now.duration_since(renewed) < life)
    };
    let (known, at) =
        seen.entry(member.lease.clone()).or_insert_with(|| (member.renewed.clone(), fresh(&member.renewed).then(clock::instant)));
    if *known != member.renewed {
        (*known, *at) = (member.renewed.clone(), Some(clock::instant()));
    }
    at.is_some_and(|at| at.elapsed() < LIFE)
}

fn by_port(servers: &BTreeSet<SocketAddr>) -> BTreeMap<u16, BTreeSet<IpAddr>> {
    let mut ports: BTreeMap<u16, BTreeSet<IpAddr>> = BTreeMap::new();
    for server in servers {
        ports.entry(server.port()).or_default().insert(server.ip());
    }
    ports
}

fn endpoints(servers: &BTreeSet<SocketAddr>) -> Value {
    let subsets: Vec<Value> = by_port(servers)
        .into_iter()
        .map(|(port, ips)| {
            let addresses: Vec<Value> = ips.iter().map(|ip| json!({"ip": ip.to_string()})).collect();
            json!({"addresses": addresses, "ports": [{"name": "https", "port": port, "protocol": "TCP"}]})
        })
        .collect();
    json!({
        "apiVersion": "v1", "kind": "Endpoints",
        "metadata": {
            "name": "kubernetes", "namespace": "default",
            "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"},
        },
        "subsets": subsets,
    })
}

/// One slice for each port; where all servers have the same, its name is that of the Service.
fn slices(servers: &BTreeSet<SocketAddr>) -> Vec<Value> {
    let slice = |(at, (port, ips)): (usize, (u16, BTreeSet<IpAddr>))| {
        let name = if at == 0 { "kubernetes".to_owned() } else { format!("kubernetes-{port}") };
        let endpoints: Vec<Value> =
            ips.iter().map(|ip| json!({"addresses": [ip.to_string()], "conditions": {"ready": true}})).collect();
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": name, "namespace": "default", "labels": {"kubernetes.io/service-name": "kubernetes"}},
            "addressType": if ips.iter().all(IpAddr::is_ipv4) { "IPv4" } else { "IPv6" },
            "endpoints": endpoints,
            "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
        })
    };
    by_port(servers).into_iter().enumerate().map(slice).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn servers(list: &[&str]) -> BTreeSet<SocketAddr> {
        list.iter().map(|address| address.parse().unwrap()).collect()
    }

    #[test]
    fn objects_list_every_server() {
        let three = servers(&["10.0.0.2:6443", "10.0.0.1:6443", "10.0.0.3:7443"]);
        let subsets = endpoints(&three)["subsets"].clone();
        assert_eq!(subsets[0]["addresses"], json!([{"ip": "10.0.0.1"}, {"ip": "10.0.0.2"}]));
        assert_eq!((&subsets[1]["addresses"], &subsets[1]["ports"][0]["port"]), (&json!([{"ip": "10.0.0.3"}]), &json!(7443)));
        let names: Vec<_> = slices(&three).iter().map(|slice| slice["metadata"]["name"].clone()).collect();
        assert_eq!(names, ["kubernetes", "kubernetes-7443"]);
        assert_eq!(lease_name("[fd00::1]:6443".parse().unwrap()), "apiserver-fd00--1-6443");
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_lives_while_its_renewals_are_seen() {
        let now: Timestamp = "2026-01-01T01:00:00Z".parse().unwrap();
        let at = |renewed: &str| Member {
            lease: "apiserver-a".to_owned(),
            address: "10.0.0.1:6443".parse().unwrap(),
            renewed: renewed.to_owned(),
        };
        let mut seen = HashMap::new();
        assert!(!is_alive(&mut seen, &at("2026-01-01T00:00:00.000000Z"), now), "a Lease from before");
        assert!(is_alive(&mut seen, &at("2026-01-01T00:00:10.000000Z"), now), "renewed, by a clock that is an hour behind");
        tokio::time::advance(LIFE).await;
        assert!(!is_alive(&mut seen, &at("2026-01-01T00:00:10.000000Z"), now));
        assert!(is_alive(&mut seen, &at("2026-01-01T00:00:20.000000Z"), now));
    }

    #[tokio::test]
    async fn what_is_deleted_or_edited_comes_back() {
        let server = crate::server::tests::server();
        super::super::run(&server).await.unwrap();
        let mut keeper = Keeper { server: Arc::clone(&server), seen: HashMap::new() };
        let settled = server.registry.store().snapshot().revision();
        keeper.settle().await.unwrap();
        assert_eq!(server.registry.store().snapshot().revision(), settled, "nothing is written when nothing changed");
        let token = CancellationToken::new();
        let following = follow(Arc::clone(&server), token.clone());
        let registry = Arc::clone(&server.registry);
        let kind = |group: &str, plural: &str| registry.kinds().find(group, "v1", plural).unwrap();
        let check = async {
            let writer = writer(&server);
            for (group, plural, field) in
                [("", "endpoints", "subsets"), ("discovery.k8s.io", "endpointslices", "endpoints"), ("", "services", "spec")]
            {
                let before = registry.get_object(&*kind(group, plural), "default", "kubernetes").unwrap().0[field].clone();
                writer.remove(group, plural, ("default", "kubernetes")).await.unwrap();
                loop {
                    let now = registry.get_object(&*kind(group, plural), "default", "kubernetes");
                    if now.is_ok_and(|now| now.0[field] == before) {
                        break;
                    }
                    tokio::task::yield_now().await;
                }
            }
            let endpoints = kind("", "endpoints");
            let mut edited = registry.get_object(&*endpoints, "default", "kubernetes").unwrap();
            let before = edited.0["subsets"].clone();
            edited.0.insert("subsets".to_owned(), json!([{"addresses": [{"ip": "9.9.9.9"}], "ports": [{"port": 1}]}]));
            writer.update(&endpoints, edited).await.unwrap();
            while registry.get_object(&*endpoints, "default", "kubernetes").unwrap().0["subsets"] != before {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            () = following => unreachable!("it follows until it is told to stop"),
            done = tokio::time::timeout(Duration::from_secs(10), check) => done.expect("they come back"),
        }
    }
}
