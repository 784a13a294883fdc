//! The table in a real kernel, in a network namespace of the test's own: pods with the wires that they have on a node, real
//! packets, and what arrived is counted.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::networking::v1::NetworkPolicy;
use nix::sched::{CloneFlags, unshare};
use rtnetlink::Handle;
use serde_json::{Value, json};

use super::super::facts::PodFacts;
use super::super::planner::{Local, Planner};
use super::super::table::PolicyTable;
use crate::network::attach::Wire;
use crate::network::netns;
use crate::rt::TaskGroup;

const NODE: &str = "pl-kernel";
const NODE_IP: Ipv4Addr = Ipv4Addr::new(10, 205, 200, 1);
const DNS: Ipv4Addr = Ipv4Addr::new(10, 205, 143, 10);
const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 205, 143, 20);
/// Long enough for a packet on one machine.
const ARRIVES: Duration = Duration::from_millis(150);

pub(super) fn run(command: &str) -> String {
    let words: Vec<&str> = command.split(' ').collect();
    let output = Command::new(words[0]).args(&words[1..]).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A pod: a process in a network namespace of its own, wired as pods are.
pub(super) struct TestPod {
    name: &'static str,
    pub(super) ip: Ipv4Addr,
    process: Child,
}

impl Drop for TestPod {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

impl TestPod {
    async fn start(name: &'static str, ip: Ipv4Addr, host: &Handle, tasks: &TaskGroup) -> Self {
        let process = Command::new("unshare").args(["--net", "sleep", "300"]).stdin(Stdio::null()).spawn().unwrap();
        let own = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
        let theirs = format!("/proc/{}/ns/net", process.id());
        while std::fs::read_link(&theirs).unwrap() == own {
            tokio::task::yield_now().await;
        }
        Wire { node: NODE, pod_uid: name, ip, mtu: 1450 }.lay(host, process.id(), tasks).await.unwrap();
        Self { name, ip, process }
    }

    /// Opens something in the pod.
    async fn open<T: Send + 'static>(&self, open: impl FnOnce() -> std::io::Result<T> + Send + 'static) -> std::io::Result<T> {
        netns::within(self.process.id(), open).await
    }

    /// What arrives of packets from a port that was not used before: they begin a connection.
    async fn count(&self, to: &UdpSocket, address: Ipv4Addr) -> usize {
        count(&self.udp(0).await, to, address)
    }

    pub(super) async fn udp(&self, port: u16) -> UdpSocket {
        self.open(move || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))).await.unwrap()
    }

    fn facts(&self, namespace: &str, labels: &Value) -> Arc<PodFacts> {
        let ports = json!([{ "ports": [{ "name": "web", "containerPort": 80, "protocol": "UDP" }] }]);
        let pod = json!({
            "metadata": { "namespace": namespace, "name": self.name, "uid": self.name, "labels": labels },
            "spec": { "containers": ports },
            "status": { "podIP": self.ip.to_string() },
        });
        Arc::new(serde_json::from_value(pod).unwrap())
    }
}

/// How many of some packets arrive.
pub(super) fn count(from: &UdpSocket, to: &UdpSocket, address: Ipv4Addr) -> usize {
    let address = SocketAddr::from((address, to.local_addr().unwrap().port()));
    for number in 0..5 {
        from.send_to(&[number], address).unwrap();
    }
    to.set_read_timeout(Some(ARRIVES)).unwrap();
    let mut buffer = [0; 8];
    (0..5).take_while(|_| to.recv_from(&mut buffer).is_ok()).count()
}

pub(super) fn policy(spec: &str) -> NetworkPolicy {
    let spec: Value = serde_yaml::from_str(spec).unwrap();
    serde_json::from_value(json!({ "metadata": { "namespace": "shop", "name": "p" }, "spec": spec })).unwrap()
}

/// A node of three pods: `a` and `b` in one namespace, `c` in another.
pub(super) struct Node {
    pub(super) pods: [TestPod; 3],
    pub(super) planner: Planner,
    pub(super) table: PolicyTable,
    pub(super) tasks: TaskGroup,
}

impl Node {
    async fn start() -> Self {
        let tasks = TaskGroup::new();
        run("ip link set lo up");
        for ip in [NODE_IP, DNS] {
            run(&format!("ip address add {ip}/32 dev lo"));
        }
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
        let (connection, host, _) = rtnetlink::new_connection().unwrap();
        tasks.spawn(connection);
        let mut pods = Vec::new();
        for (name, last) in [("a", 1), ("b", 2), ("c", 3)] {
            pods.push(TestPod::start(name, Ipv4Addr::new(10, 205, 201, last), &host, &tasks).await);
        }
        let pods: [TestPod; 3] = pods.try_into().unwrap_or_else(|_| panic!("three"));
        let mut planner = Planner::new("10.205.0.0/16".parse().unwrap());
        for (pod, namespace, labels) in [(&pods[0], "shop", "a"), (&pods[1], "shop", "b"), (&pods[2], "ops", "c")] {
            planner.put_pod(&pod.facts(namespace, &json!({ "app": labels })));
            planner.set_local(pod.name, Some(Local { ip: pod.ip, facts: None }));
        }
        for (name, team) in [("shop", "one"), ("ops", "two")] {
            planner.set_namespace(name, Some(std::collections::BTreeMap::from([("team".to_owned(), team.to_owned())]).into()));
        }
        let table = PolicyTable::open(NODE, DNS).unwrap();
        table.replace(&planner.whole()).await.unwrap();
        Self { pods, planner, table, tasks }
    }

    /// Puts one policy in force.
    pub(super) async fn enforce(&mut self, spec: &str) {
        self.planner.put_policy(&policy(spec));
        self.table.apply(&self.planner.changes()).await.unwrap_or_else(|error| panic!("{error}\n{spec}"));
    }
}

/// Runs a test in a network namespace that goes with its thread.
pub(super) fn on_a_node<F: Future<Output = ()> + 'static>(test: fn(Node) -> F) {
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { test(Node::start().await).await });
    });
    thread.join().unwrap();
}

#[test]
fn packets_pass_or_are_dropped_as_the_policy_says() {
    on_a_node(|mut node| async move {
        let (to_a, to_b) = (node.pods[0].udp(80).await, node.pods[1].udp(80).await);
        let other_port = node.pods[1].udp(95).await;
        let (outside, dns) = (UdpSocket::bind((NODE_IP, 7000)).unwrap(), UdpSocket::bind((DNS, 53)).unwrap());
        let [ip_a, ip_b, _] = [node.pods[0].ip, node.pods[1].ip, node.pods[2].ip];
        let ingress = |rest: &str| format!("podSelector: {{matchLabels: {{app: b}}}}\ningress: [{rest}]");
        let egress = |rest: &str| format!("podSelector: {{matchLabels: {{app: a}}}}\npolicyTypes: [Egress]\negress: [{rest}]");
        assert_eq!((node.pods[0].count(&to_b, ip_b).await, node.pods[2].count(&to_b, ip_b).await), (5, 5));

        // From a in the same namespace, from c in another, to another port: what arrives.
        for (rest, expected) in [
            ("", [0, 0, 0]),
            ("{}", [5, 5, 5]),
            ("{from: [{podSelector: {matchLabels: {app: a}}}]}", [5, 0, 5]),
            ("{from: [{namespaceSelector: {matchLabels: {team: two}}}]}", [0, 5, 0]),
            ("{from: [{namespaceSelector: {}, podSelector: {matchLabels: {app: c}}}]}", [0, 5, 0]),
            ("{from: [{ipBlock: {cidr: 10.205.201.0/24, except: [10.205.201.1/32]}}]}", [0, 5, 0]),
            ("{from: [{ipBlock: {cidr: 10.205.201.0/24, except: [10.205.201.3/32]}}, {podSelector: {}}]}", [5, 0, 5]),
            ("{ports: [{port: web, protocol: UDP}]}", [5, 5, 0]),
            ("{ports: [{port: 90, endPort: 99, protocol: UDP}]}", [0, 0, 5]),
            ("{ports: [{protocol: UDP}]}", [5, 5, 5]),
            ("{ports: [{port: 80}, {protocol: SCTP}]}", [0, 0, 0]),
            ("{from: [{podSelector: {}}], ports: [{port: 80, protocol: UDP}]}", [5, 0, 0]),
        ] {
            node.enforce(&ingress(rest)).await;
            let [a, b, c] = &node.pods;
            let seen = [a.count(&to_b, ip_b).await, c.count(&to_b, ip_b).await, a.count(&other_port, ip_b).await];
            assert_eq!(seen, expected, "{rest}\n{}", run("nft list ruleset"));
            let from_node = UdpSocket::bind((NODE_IP, 0)).unwrap();
            assert_eq!(count(&from_node, &to_b, ip_b), 5, "the node reaches its pods");
            assert_eq!(b.count(&to_a, ip_a).await, 5, "nothing is said about what b sends");
        }

        // From a to b, to another port of b, to the node, to DNS.
        for (rest, expected) in [
            ("", [0, 0, 0, 0]),
            ("{to: [{podSelector: {}}], ports: [{port: web, protocol: UDP}]}", [5, 0, 0, 0]),
            ("{ports: [{port: web, protocol: UDP}]}", [5, 0, 0, 0]),
            ("{to: [{ipBlock: {cidr: 10.205.200.1/32}}]}", [0, 0, 5, 0]),
            ("{to: [{ipBlock: {cidr: 0.0.0.0/0, except: [10.205.201.0/24]}}]}", [0, 0, 5, 5]),
            ("{ports: [{port: 53, protocol: UDP}]}", [0, 0, 0, 5]),
            (
                "{to: [{ipBlock: {cidr: 10.205.0.0/16}}], ports: [{port: 53, protocol: UDP}, {port: 95, protocol: UDP}]}",
                [0, 5, 0, 5],
            ),
        ] {
            node.enforce(&egress(rest)).await;
            let [a, _, c] = &node.pods;
            let to_pods = [a.count(&to_b, ip_b).await, a.count(&other_port, ip_b).await];
            let seen = [to_pods[0], to_pods[1], a.count(&outside, NODE_IP).await, a.count(&dns, DNS).await];
            assert_eq!(seen, expected, "{rest}\n{}", run("nft list ruleset"));
            assert_eq!(c.count(&to_b, ip_b).await, 5, "nothing is said about others");
        }
        node.planner.set_namespace("kube-system", Some(std::collections::BTreeMap::new().into()));
        node.enforce(&egress("{to: [{namespaceSelector: {}, podSelector: {matchLabels: {k8s-app: kube-dns}}}]}")).await;
        let a = &node.pods[0];
        assert_eq!((a.count(&dns, DNS).await, a.count(&outside, NODE_IP).await), (5, 0));
        node.tasks.cancel();
    });
}

#[test]
fn changes_services_and_established_connections() {
    on_a_node(|mut node| async move {
        let ips = [node.pods[0].ip, node.pods[1].ip, node.pods[2].ip];
        let to_b = node.pods[1].udp(80).await;
        let server = node.pods[1].open(|| TcpListener::bind("0.0.0.0:81")).await.unwrap();
        let connect = |ip: Ipv4Addr| move || TcpStream::connect_timeout(&SocketAddr::from((ip, 81)), ARRIVES);
        let mut client = node.pods[0].open(connect(ips[1])).await.unwrap();
        let mut accepted = server.accept().unwrap().0;
        let mut exchange = || {
            let mut buffer = [0];
            client.write_all(b"x").unwrap();
            accepted.read_exact(&mut buffer).unwrap();
            accepted.write_all(&buffer).unwrap();
            client.read_exact(&mut buffer).unwrap();
        };
        exchange();
        node.enforce("podSelector: {}\npolicyTypes: [Ingress, Egress]").await;
        exchange();
        assert!(node.pods[0].open(connect(ips[1])).await.is_err(), "no new connection");

        // By way of a Service: a pod reaches itself, and the address is that of the pod behind it.
        run("nft add table ip pl-service");
        run("nft add chain ip pl-service pre { type nat hook prerouting priority dstnat; }");
        run("nft add chain ip pl-service post { type nat hook postrouting priority srcnat; }");
        run(&format!("nft add rule ip pl-service pre ip daddr {SERVICE} dnat to {}", ips[1]));
        run(&format!("nft add rule ip pl-service post ip saddr {0} ip daddr {0} masquerade", ips[1]));
        assert_eq!(node.pods[1].count(&to_b, SERVICE).await, 5, "{}", run("nft list ruleset"));
        assert_eq!(node.pods[0].count(&to_b, SERVICE).await, 0);
        node.enforce("podSelector: {matchLabels: {app: a}}\npolicyTypes: [Egress]\negress: [{to: [{podSelector: {matchLabels: {app: b}}}], ports: [{port: web, protocol: UDP}]}]").await;
        assert_eq!(node.pods[0].count(&to_b, SERVICE).await, 5);

        // A label changes: one element is added, and the chains stay.
        node.enforce("podSelector: {matchLabels: {app: b}}\ningress: [{from: [{namespaceSelector: {}, podSelector: {matchLabels: {app: friend}}}]}]").await;
        assert_eq!(node.pods[2].count(&to_b, ips[1]).await, 0);
        node.planner.put_pod(&node.pods[2].facts("ops", &json!({ "app": "friend" })));
        node.table.apply(&node.planner.changes()).await.unwrap();
        assert_eq!((node.pods[2].count(&to_b, ips[1]).await, node.pods[0].count(&to_b, ips[1]).await), (5, 0));

        // The policy goes, and with it everything but the frame.
        node.planner.remove_policy(&policy("podSelector: {}"));
        node.table.apply(&node.planner.changes()).await.unwrap();
        assert_eq!(node.pods[0].count(&to_b, ips[1]).await, 5);
        let left = run("nft list ruleset");
        assert!(!left.contains("pods-") && !left.contains("ingress-") && !left.contains("elements"), "{left}");

        // Somebody else's `flush ruleset` is noticed, our own changes are not; the table comes back whole.
        let mut monitor = node.table.monitor().unwrap();
        node.enforce("podSelector: {}").await;
        assert!(tokio::time::timeout(ARRIVES, monitor.changed()).await.is_err());
        run("nft flush ruleset");
        assert_eq!(node.pods[0].count(&to_b, ips[1]).await, 5);
        tokio::time::timeout(Duration::from_secs(5), monitor.changed()).await.unwrap().unwrap();
        node.table.replace(&node.planner.whole()).await.unwrap();
        assert_eq!(node.pods[0].count(&to_b, ips[1]).await, 0);
        node.tasks.cancel();
    });
}
