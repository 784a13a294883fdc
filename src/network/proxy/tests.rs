//! The proxy against the kernel: a node, its pods, another node and a client outside are network namespaces of threads; endpoints
//! are plain sockets that answer with their name and the address that they see.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use nix::sched::{CloneFlags, unshare};
use serde_json::{Value, json};

use super::endpoints::NodeView;
use super::hostport::PodPorts;
use super::*;

type Work = Box<dyn FnOnce() + Send>;

/// A network namespace: the thread that lives in it.
struct Host {
    work: mpsc::Sender<Work>,
    thread_id: String,
}

impl Host {
    fn new() -> Self {
        let (work, todo) = mpsc::channel::<Work>();
        let (told, id) = mpsc::channel();
        std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            told.send(nix::unistd::gettid().to_string()).unwrap();
            todo.into_iter().for_each(|work| work());
        });
        Self { work, thread_id: id.recv().unwrap() }
    }

    fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let (told, answer) = mpsc::channel();
        self.work.send(Box::new(move || drop(told.send(work())))).unwrap();
        answer.recv().expect("the work failed")
    }

    fn ip(&self, commands: &str) {
        let commands = commands.to_owned();
        self.run(move || {
            for line in commands.lines().map(str::trim).filter(|line| !line.is_empty()) {
                let output = Command::new("ip").args(line.split_whitespace()).output().unwrap();
                assert!(output.status.success(), "ip {line}: {}", String::from_utf8_lossy(&output.stderr));
            }
        });
    }

    /// Answers every TCP connection and UDP packet with `NAME SOURCE`.
    fn serve(&self, name: &'static str, address: &str) {
        let address: SocketAddr = address.parse().unwrap();
        self.run(move || {
            let (tcp, udp) = (TcpListener::bind(address).unwrap(), UdpSocket::bind(address).unwrap());
            std::thread::spawn(move || {
                for stream in tcp.incoming() {
                    let mut stream = stream.unwrap();
                    let text = format!("{name} {}", stream.peer_addr().unwrap().ip());
                    // Goes on answering, one byte at a time, for connections that stay.
                    std::thread::spawn(move || {
                        let mut byte = [0];
                        while stream.read_exact(&mut byte).is_ok() {
                            if stream.write_all(format!("{text}\n").as_bytes()).is_err() {
                                return;
                            }
                        }
                    });
                }
            });
            std::thread::spawn(move || {
                let mut buffer = [0; 16];
                while let Ok((_, peer)) = udp.recv_from(&mut buffer) {
                    udp.send_to(format!("{name} {}", peer.ip()).as_bytes(), peer).ok();
                }
            });
        });
    }

    fn connect(&self, to: &str) -> Result<TcpStream, String> {
        let to: SocketAddr = to.parse().unwrap();
        self.run(move || {
            let stream = TcpStream::connect_timeout(&to, Duration::from_secs(3)).map_err(|error| error.kind().to_string())?;
            stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
            Ok(stream)
        })
    }

    /// `NAME SOURCE` of whoever answers, or the kind of the error.
    fn ask(&self, to: &str) -> String {
        self.connect(to).map_or_else(|error| error, |mut stream| said(&mut stream))
    }

    /// The names of those that answer many connections.
    fn who(&self, to: &str) -> BTreeSet<String> {
        (0..40).map(|_| self.ask(to)).map(|answer| answer.split(' ').next().unwrap().to_owned()).collect()
    }

    /// One UDP packet from a socket; what comes back.
    fn ask_udp(&self, socket: &Arc<UdpSocket>, to: &str) -> String {
        let (socket, to) = (Arc::clone(socket), to.to_owned());
        self.run(move || {
            let mut buffer = [0; 64];
            match socket.send_to(b"x", to).and_then(|_| socket.recv(&mut buffer)) {
                Ok(length) => String::from_utf8_lossy(&buffer[..length]).into_owned(),
                Err(error) => error.kind().to_string(),
            }
        })
    }

    fn udp(&self) -> Arc<UdpSocket> {
        self.run(|| {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
            Arc::new(socket)
        })
    }
}

/// One byte there, one line back.
fn said(stream: &mut TcpStream) -> String {
    let mut text = String::new();
    if let Err(error) = stream.write_all(b"x") {
        return error.kind().to_string();
    }
    let mut byte = [0];
    while let Ok(1) = stream.read(&mut byte) {
        if byte == *b"\n" {
            return text;
        }
        text.push(byte[0].into());
    }
    "nothing".to_owned()
}

/// The node with its proxy, two pods on it, another node with a pod, a client outside that knows only this node.
struct Lab {
    node: Host,
    pod_a: Host,
    pod_b: Host,
    other: Host,
    client: Host,
    kernel: Kernel,
    stale: Arc<Stale>,
}

const POD_A: &str = "10.42.1.2";
const POD_B: &str = "10.42.1.3";
const POD_C: &str = "10.42.2.2";
const NODE: &str = "192.168.77.1";
const CLIENT: &str = "192.168.88.2";

impl Lab {
    async fn new() -> Self {
        let [node, pod_a, pod_b, other, client] = std::array::from_fn(|_| Host::new());
        node.run(|| std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")).unwrap();
        for (host, name, ip) in [(&pod_a, "pa", POD_A), (&pod_b, "pb", POD_B)] {
            node.ip(&format!(
                "link add {name} type veth peer name eth0 netns {}
                 addr add 169.254.1.1/32 dev {name}
                 link set {name} up
                 route add {ip}/32 dev {name}",
                host.thread_id
            ));
            host.ip(&format!(
                "link set lo up
                 addr add {ip}/32 dev eth0
                 link set eth0 up
                 route add 169.254.1.1 dev eth0
                 route add default via 169.254.1.1"
            ));
        }
        node.ip(&format!(
            "link set lo up
             link add eth0 type veth peer name eth0 netns {}
             addr add {NODE}/24 dev eth0
             link set eth0 up
             link add eth1 type veth peer name eth0 netns {}
             addr add 192.168.88.1/24 dev eth1
             link set eth1 up",
            other.thread_id, client.thread_id
        ));
        // The other node has no way to the client: what comes from there must have this node's address.
        other.ip(&format!(
            "link set lo up
             addr add 192.168.77.2/24 dev eth0
             link set eth0 up
             addr add {POD_C}/32 dev lo
             route add 10.42.1.0/24 via {NODE}"
        ));
        node.ip("route add 10.42.2.0/24 via 192.168.77.2\nroute add default via 192.168.77.2");
        client.ip(&format!(
            "link set lo up
             addr add {CLIENT}/24 dev eth0
             link set eth0 up
             route add default via 192.168.88.1"
        ));
        pod_a.serve("a", &format!("{POD_A}:8080"));
        pod_b.serve("b", &format!("{POD_B}:8080"));
        other.serve("c", &format!("{POD_C}:8080"));
        // A new link drops packets until the kernel has noticed that it is up.
        for (host, to) in [(&client, POD_A), (&client, POD_B), (&node, POD_C), (&other, POD_A), (&other, POD_B)] {
            assert!((0..10).any(|_| host.connect(&format!("{to}:8080")).is_ok()), "no way to {to}");
        }
        let nft = node.run(|| Nft::open().unwrap());
        let layout = Layout::new("n1", "10.42.1.0/24".parse().unwrap(), "10.43.0.0/16".parse().unwrap());
        let (kernel, stale) = (Kernel::new(nft, layout), Arc::new(Stale::default()));
        let mut lab = Self { node, pod_a, pod_b, other, client, kernel, stale };
        lab.sync().await;
        lab
    }

    async fn sync(&mut self) {
        self.kernel.sync(&self.stale).await.unwrap();
    }

    /// Makes a Service of these fields and endpoints (address, node, ready), and has the rules in force.
    async fn service(&mut self, spec: Value, status: Value, endpoints: &[(&str, &str, bool)]) {
        let (service, slice) = objects(spec, status, endpoints);
        let view = NodeView { name: "n1".into(), zone: None };
        let plan = plan::plan(&service, &[Arc::new(slice)], &view, NODE.parse().unwrap());
        self.kernel.desired.set_service(&ObjectKey::new("default", "web"), plan);
        self.sync().await;
    }

    fn ruleset(&self) -> String {
        self.node.run(|| {
            let output = Command::new("nft").args(["list", "ruleset"]).output().expect("the program nft is needed by this test");
            assert!(output.status.success());
            String::from_utf8(output.stdout).unwrap()
        })
    }
}

fn objects(spec: Value, status: Value, endpoints: &[(&str, &str, bool)]) -> (Service, EndpointSlice) {
    let service = json!({"metadata": {"name": "web", "namespace": "default"}, "spec": spec, "status": status});
    let endpoint = |(ip, node, ready): &(&str, &str, bool)| json!({"addresses": [ip], "nodeName": node, "conditions": {"ready": ready, "serving": ready, "terminating": false}});
    let ports = json!([{"name": "", "port": 8080, "protocol": "TCP"}, {"name": "u", "port": 8080, "protocol": "UDP"}]);
    let endpoints: Vec<Value> = endpoints.iter().map(endpoint).collect();
    let slice = json!({"metadata": {"name": "web-x"}, "addressType": "IPv4", "endpoints": endpoints, "ports": ports});
    (serde_json::from_value(service).unwrap(), serde_json::from_value(slice).unwrap())
}

fn spec(more: Value) -> Value {
    let ports = json!([
        {"port": 80, "nodePort": 30080, "protocol": "TCP"},
        {"name": "u", "port": 80, "nodePort": 30080, "protocol": "UDP"}
    ]);
    let mut spec = json!({"clusterIP": "10.43.0.80", "type": "NodePort", "ports": ports});
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    spec
}

fn names(all: &[&str]) -> BTreeSet<String> {
    all.iter().map(|name| (*name).to_owned()).collect()
}

fn block_on<F: Future<Output = ()>>(test: F) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
}

const ALL: [(&str, &str, bool); 3] = [(POD_A, "n1", true), (POD_B, "n1", true), (POD_C, "n2", true)];
const VIP: &str = "10.43.0.80:80";
const NODE_PORT: &str = "192.168.77.1:30080";

#[test]
fn connections_reach_ready_endpoints_from_everywhere() {
    block_on(async {
        let mut lab = Lab::new().await;
        lab.service(spec(json!({"externalIPs": ["192.168.88.1"]})), json!({}), &ALL).await;
        lab.node.run(|| std::fs::write("/proc/sys/net/ipv4/conf/all/route_localnet", "1")).unwrap();
        assert_eq!(lab.node.who("127.0.0.1:30080"), names(&["a", "b", "c"]));
        for host in [&lab.node, &lab.pod_a, &lab.client] {
            assert_eq!(host.who(VIP), names(&["a", "b", "c"]));
            assert_eq!(host.who(NODE_PORT), names(&["a", "b", "c"]));
            assert_eq!(host.who("192.168.88.1:80"), names(&["a", "b", "c"]));
        }
        let udp = lab.client.udp();
        assert_eq!(lab.client.ask_udp(&udp, NODE_PORT).len(), "a 192.168.88.2".len(), "UDP on the same port");
        assert_eq!(lab.client.ask(&format!("{NODE}:81")), "connection refused");

        // The source is kept where the answer comes back by itself.
        lab.service(spec(json!({})), json!({}), &ALL[..1]).await;
        assert_eq!(lab.client.ask(NODE_PORT), format!("a {CLIENT}"));
        assert_eq!(lab.pod_b.ask(VIP), format!("a {POD_B}"));
        assert_ne!(lab.pod_a.ask(VIP), format!("a {POD_A}"), "a pod that connects to itself sees another address");
        assert!(lab.pod_a.ask(VIP).starts_with("a "));
        lab.service(spec(json!({})), json!({}), &ALL[2..]).await;
        assert_eq!(lab.client.ask(NODE_PORT), format!("c {NODE}"), "the endpoint cannot answer to the client");
        assert_eq!(lab.pod_b.ask(VIP), format!("c {POD_B}"));
        assert_eq!(lab.other.ask(NODE_PORT), format!("c {NODE}"));
    });
}

#[test]
fn a_connection_outlives_its_endpoints_place() {
    block_on(async {
        let mut lab = Lab::new().await;
        lab.service(spec(json!({})), json!({}), &ALL[..1]).await;
        let mut stream = lab.pod_b.connect(VIP).unwrap();
        assert_eq!(said(&mut stream), format!("a {POD_B}"));
        lab.service(spec(json!({})), json!({}), &ALL[1..2]).await;
        assert_eq!(said(&mut stream), format!("a {POD_B}"));
        assert_eq!(lab.client.who(NODE_PORT), names(&["b"]));
        // A table that is made anew changes nothing for those that are connected.
        lab.kernel.distrust();
        lab.sync().await;
        assert_eq!(said(&mut stream), format!("a {POD_B}"));
        assert_eq!(lab.client.who(NODE_PORT), names(&["b"]));
        // Not ready: refused at once, everywhere. Gone: the port is closed, and the address is nobody's.
        lab.service(spec(json!({})), json!({}), &[(POD_A, "n1", false)]).await;
        for host in [&lab.node, &lab.pod_b, &lab.client] {
            assert_eq!(host.ask(VIP), "connection refused");
            assert_eq!(host.ask(NODE_PORT), "connection refused");
            assert_eq!(host.ask("10.43.0.80:81"), "connection refused", "a port that the Service does not have");
            let udp = host.udp();
            host.run({
                let udp = Arc::clone(&udp);
                move || udp.connect(VIP).unwrap()
            });
            // The kernel does not even send what it would refuse itself.
            let refused = if std::ptr::eq(host, &raw const lab.node) { "permission denied" } else { "connection refused" };
            assert_eq!(host.ask_udp(&udp, VIP), refused);
        }
        lab.kernel.desired.set_service(&ObjectKey::new("default", "web"), None);
        lab.sync().await;
        assert_eq!(lab.client.ask(NODE_PORT), "connection refused");
        assert_eq!(lab.client.ask(VIP), "timed out", "an address that no Service has is not let out");
        assert!(!lab.ruleset().contains("balance-"), "nothing is left of a Service");
    });
}

#[test]
fn local_policies_keep_to_this_node() {
    block_on(async {
        let mut lab = Lab::new().await;
        let external = || spec(json!({"externalTrafficPolicy": "Local"}));
        lab.service(external(), json!({}), &ALL).await;
        assert_eq!(lab.client.who(NODE_PORT), names(&["a", "b"]));
        assert!(lab.client.ask(NODE_PORT).ends_with(CLIENT), "the source is kept");
        assert_eq!(lab.pod_a.who(NODE_PORT), names(&["a", "b", "c"]), "from within it is as policy Cluster");
        assert_eq!(lab.node.who(NODE_PORT), names(&["a", "b", "c"]));
        lab.service(external(), json!({}), &ALL[2..]).await;
        assert_eq!(lab.client.ask(NODE_PORT), "timed out", "dropped: the load balancer finds another node");
        assert_eq!(lab.pod_a.who(NODE_PORT), names(&["c"]));
        assert_eq!(lab.client.who(VIP), names(&["c"]));
        let internal = || spec(json!({"internalTrafficPolicy": "Local"}));
        lab.service(internal(), json!({}), &ALL).await;
        assert_eq!(lab.pod_a.who(VIP), names(&["a", "b"]));
        assert_eq!(lab.client.who(NODE_PORT), names(&["a", "b", "c"]));
        lab.service(internal(), json!({}), &ALL[2..]).await;
        assert_eq!(lab.pod_a.ask(VIP), "timed out");
    });
}

#[test]
fn a_client_stays_with_its_endpoint() {
    block_on(async {
        let mut lab = Lab::new().await;
        let sticky = || spec(json!({"sessionAffinity": "ClientIP"}));
        lab.service(sticky(), json!({}), &ALL).await;
        let mut stays = Vec::new();
        for (host, address) in [(&lab.client, NODE_PORT), (&lab.client, VIP), (&lab.pod_b, VIP), (&lab.node, VIP)] {
            let who = host.who(address);
            assert_eq!(who.len(), 1, "{address}: {who:?}");
            stays.push(who);
        }
        // Also over a change of other endpoints and over a table that is made anew.
        let with_more: Vec<_> = [("10.42.2.9", "n2", false)].into_iter().chain(ALL).collect();
        lab.service(sticky(), json!({}), &with_more).await;
        lab.kernel.distrust();
        lab.sync().await;
        assert_eq!(lab.client.who(NODE_PORT), stays[0]);
        assert_eq!(lab.pod_b.who(VIP), stays[2]);
        // An endpoint that has gone is left, and the new one is stayed with.
        let others = ALL.into_iter().filter(|(ip, _, _)| {
            let name = [(POD_A, "a"), (POD_B, "b"), (POD_C, "c")].iter().find(|(known, _)| known == ip).unwrap().1;
            !stays[0].contains(name)
        });
        let others: Vec<_> = others.collect();
        lab.service(sticky(), json!({}), &others).await;
        let now = lab.client.who(NODE_PORT);
        assert_eq!(now.len(), 1, "{now:?}");
        assert_ne!(now, stays[0]);
        // After its time a client is anybody's.
        let short = json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 1}}});
        lab.service(spec(short), json!({}), &ALL[..2]).await;
        let mut seen = BTreeSet::new();
        for _ in 0..12 {
            seen.extend([lab.pod_a.ask(VIP).chars().next().unwrap().to_string()]);
            tokio::time::sleep(Duration::from_millis(1_100)).await;
            if seen.len() == 2 {
                return;
            }
        }
        panic!("always {seen:?}");
    });
}

#[test]
fn a_load_balancers_address_lets_in_whom_it_shall() {
    block_on(async {
        let mut lab = Lab::new().await;
        let more = |ranges: &[&str]| json!({"type": "LoadBalancer", "loadBalancerSourceRanges": ranges});
        let status = json!({"loadBalancer": {"ingress": [{"ip": "198.51.100.7"}]}});
        lab.service(spec(more(&["203.0.113.0/24"])), status.clone(), &ALL).await;
        assert_eq!(lab.client.ask("198.51.100.7:80"), "timed out");
        assert_eq!(lab.client.who(NODE_PORT), names(&["a", "b", "c"]));
        lab.service(spec(more(&["203.0.113.0/24", "192.168.88.0/24"])), status.clone(), &ALL).await;
        assert_eq!(lab.client.who("198.51.100.7:80"), names(&["a", "b", "c"]));
        let proxied = json!({"loadBalancer": {"ingress": [{"ip": "198.51.100.7", "ipMode": "Proxy"}]}});
        lab.service(spec(more(&[])), proxied, &ALL).await;
        assert!(!lab.ruleset().contains("198.51.100.7"));
    });
}

#[test]
fn udp_leaves_an_endpoint_that_has_gone() {
    block_on(async {
        let mut lab = Lab::new().await;
        let (stale, nft) = (Arc::clone(&lab.stale), lab.node.run(|| Nft::open().unwrap()));
        let forgetting = async move { stale.run(nft).await };
        let test = async {
            let (client, pod) = (lab.client.udp(), lab.pod_b.udp());
            assert_eq!(lab.client.ask_udp(&client, NODE_PORT), "operation would block", "nobody is there");
            lab.service(spec(json!({})), json!({}), &ALL[..1]).await;
            for (endpoints, wanted) in [(&ALL[..1], "a"), (&ALL[1..2], "b"), (&ALL[2..], "c")] {
                lab.service(spec(json!({})), json!({}), endpoints).await;
                // The same socket, so the same connection to the kernel.
                let mut last = (String::new(), String::new());
                for _ in 0..20 {
                    last = (lab.client.ask_udp(&client, NODE_PORT), lab.pod_b.ask_udp(&pod, VIP));
                    if last.0.starts_with(wanted) && last.1.starts_with(wanted) {
                        break;
                    }
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                assert!(last.0.starts_with(wanted) && last.1.starts_with(wanted), "{wanted}: {last:?}");
            }
        };
        tokio::select! {
            () = forgetting => panic!("it runs for ever"),
            () = test => {}
        }
    });
}

#[test]
fn host_ports_lead_to_their_pod() {
    block_on(async {
        let mut lab = Lab::new().await;
        let key = ObjectKey::new("default", "a");
        let ports = json!([{"containerPort": 8080, "hostPort": 8000}, {"containerPort": 8080, "hostPort": 8001, "hostIP": "192.168.88.1"},
            {"containerPort": 8080, "hostPort": 8000, "protocol": "UDP"}]);
        let pod = json!({"metadata": {"name": "a", "namespace": "default"}, "spec": {"containers": [{"ports": ports}]},
            "status": {"phase": "Running", "podIP": POD_A}});
        let pod: PodPorts = serde_json::from_value(pod).unwrap();
        lab.kernel.desired.set_host_ports(&key, pod.host_ports());
        lab.sync().await;
        assert_eq!(lab.client.ask("192.168.77.1:8000"), format!("a {CLIENT}"));
        assert_eq!(lab.client.ask("192.168.88.1:8001"), format!("a {CLIENT}"));
        assert_eq!(lab.client.ask("192.168.77.1:8001"), "connection refused", "not at this address");
        assert_eq!(lab.client.ask_udp(&lab.client.udp(), "192.168.77.1:8000"), format!("a {CLIENT}"));
        assert!(lab.pod_a.ask("192.168.77.1:8000").starts_with("a "), "a pod's own host port");
        assert!(lab.node.ask("192.168.77.1:8000").starts_with("a "));
        lab.node.run(|| std::fs::write("/proc/sys/net/ipv4/conf/all/route_localnet", "1")).unwrap();
        assert!(lab.node.ask("127.0.0.1:8000").starts_with("a "), "localhost too");
        lab.kernel.desired.set_host_ports(&key, Vec::new());
        lab.sync().await;
        assert_eq!(lab.client.ask("192.168.77.1:8000"), "connection refused");
    });
}

#[test]
fn a_flush_by_somebody_else_is_seen_and_repaired() {
    block_on(async {
        let mut lab = Lab::new().await;
        lab.service(spec(json!({})), json!({}), &ALL[..1]).await;
        assert_eq!(lab.client.ask(NODE_PORT), format!("a {CLIENT}"));
        let runtime = tokio::runtime::Handle::current();
        // A monitor is of the namespace of the thread that opens it.
        let nft = lab.node.run(|| Nft::open().unwrap());
        let table = super::Layout::new("n1", "10.42.1.0/24".parse().unwrap(), "10.43.0.0/16".parse().unwrap()).table;
        let mut monitor = lab.node.run(move || {
            let _entered = runtime.enter();
            nft.monitor(&table).unwrap()
        });
        lab.node.run(|| assert!(Command::new("nft").args(["flush", "ruleset"]).status().unwrap().success()));
        assert_eq!(lab.client.ask(NODE_PORT), "connection refused");
        let begin = std::time::Instant::now();
        tokio::time::timeout(Duration::from_secs(5), monitor.changed()).await.unwrap().unwrap();
        lab.kernel.distrust();
        lab.sync().await;
        assert!(begin.elapsed() < Duration::from_secs(3));
        assert_eq!(lab.client.ask(NODE_PORT), format!("a {CLIENT}"));
    });
}

/// Changes at random, sent as differences: after each the kernel has what is desired, and no chain too many.
#[test]
fn differences_add_up_to_the_whole() {
    block_on(async {
        let mut lab = Lab::new().await;
        let nft = lab.node.run(|| Nft::open().unwrap());
        let table = super::Layout::new("n1", "10.42.1.0/24".parse().unwrap(), "10.43.0.0/16".parse().unwrap()).table;
        let mut state = 7_u64;
        let mut random = move |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        for round in 0..80 {
            for _ in 0..=random(3) {
                let number = random(6);
                let key = ObjectKey::new("default", &format!("s{number}"));
                let ips: Vec<String> = (1..6).filter(|_| random(2) == 0).map(|last| format!("10.42.1.{last}")).collect();
                let endpoints: Vec<_> =
                    ips.iter().map(|ip| (&**ip, if random(2) == 0 { "n1" } else { "n2" }, random(4) > 0)).collect();
                let word = |local| if local == 0 { "Local" } else { "Cluster" };
                let spec = json!({
                    "clusterIP": format!("10.43.0.{number}"), "type": "LoadBalancer", "externalTrafficPolicy": word(random(2)),
                    "internalTrafficPolicy": word(random(3)), "sessionAffinity": if random(2) == 0 { "ClientIP" } else { "None" },
                    "externalIPs": if random(2) == 0 { vec!["198.51.100.1"] } else { vec![] },
                    "loadBalancerSourceRanges": if random(2) == 0 { vec!["203.0.113.0/24"] } else { vec![] },
                    "ports": [{"port": 80, "nodePort": 30000 + number}, {"name": "u", "port": 80, "protocol": "UDP"}],
                });
                let status = json!({"loadBalancer": {"ingress": [{"ip": format!("198.51.100.{}", 10 + random(3))}]}});
                let (service, slice) = objects(spec, status, &endpoints);
                let view = NodeView { name: "n1".into(), zone: None };
                let plan = plan::plan(&service, &[Arc::new(slice)], &view, NODE.parse().unwrap()).filter(|_| random(5) > 0);
                lab.kernel.desired.set_service(&key, plan);
            }
            lab.sync().await;
            for map in super::layout::Map::ALL {
                let mut found = nft.elements(&table, &map.set()).await.unwrap();
                found.sort_by(|one, other| one.key.cmp(&other.key));
                assert_eq!(found, lab.kernel.desired.elements_of(map), "round {round}, {map:?}");
            }
            let chains: BTreeSet<String> = nft.chains(&table).await.unwrap().into_iter().collect();
            let wanted: BTreeSet<String> = lab.kernel.desired.chain_names().collect();
            let always = ["translate", "reject", "unserved"];
            let shared = chains.iter().filter(|name| {
                !always.contains(&&***name) && !["firewall-", "filter-", "nat-"].iter().any(|prefix| name.starts_with(prefix))
            });
            assert_eq!(shared.cloned().collect::<BTreeSet<_>>(), wanted, "round {round}");
        }
        lab.ruleset();
    });
}
