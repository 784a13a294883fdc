//! The pod network on the real kernel: pods reach each other, the node and what lies outside; nothing is left behind.

use std::net::Ipv4Addr;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use orch::cri::Runtime;
use orch::network::{ExistingPod, NetworkConfig, PodNetwork};
use orch::rt::{TaskGroup, random};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::runtime::Pod;

fn config() -> NetworkConfig {
    // A range of its own for each test, beside what a cluster on this machine uses.
    let third = random::below(250);
    NetworkConfig {
        node: format!("test-{}", random::suffix(6)),
        pod_cidr: format!("10.199.{third}.0/24").parse().unwrap(),
        cluster_cidr: "10.199.0.0/16".parse().unwrap(),
        mtu: 1450,
    }
}

fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Fetches the page of the first pod from within another; the server may need a moment.
async fn get(from: &Pod, container: &str, ip: Ipv4Addr) {
    let request = "printf 'GET / HTTP/1.0\\r\\n\\r\\n'";
    let script = format!("for i in 1 2 3 4 5 6; do {request} | nc -w 2 {ip} 8080 | grep from-a && exit; sleep 0.3; done; exit 1");
    let (code, text) = from.shell(container, &script).await;
    assert!(code == 0 && text.ends_with("from-a\n"), "{text}");
}

async fn pid(pod: &Pod) -> u32 {
    pod.docker.inspect(&pod.sandbox).await.unwrap().pid.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_reach_each_other_the_node_and_the_outside() {
    let tasks = TaskGroup::new();
    let config = config();
    let network = PodNetwork::start(config.clone(), &tasks).await.unwrap();
    let (first, second) = (Pod::start().await, Pod::start().await);
    let a = network.attach(&first.uid, pid(&first).await).await.unwrap().ip;
    let started = std::time::Instant::now();
    let b = network.attach(&second.uid, pid(&second).await).await.unwrap().ip;
    println!("attach took {:?}", started.elapsed());
    assert!(a != b && config.pod_cidr.contains(&a) && config.pod_cidr.contains(&b));
    assert_eq!(network.attach(&first.uid, pid(&first).await).await.unwrap().ip, a, "idempotent");

    let server = first.run(&first.container("server", "echo -n from-a > /tmp/index.html; httpd -f -p 8080 -h /tmp")).await;
    let client = second.run(&second.container("client", "sleep 1000")).await;
    get(&second, &client, a).await;
    let links = second.shell(&client, "ip addr; ip route").await.1;
    assert!(links.contains("mtu 1450") && links.contains("default via 169.254.1.1"), "{links}");

    // The node reaches the pod, and the pod what listens on the node.
    let mut stream = tokio::net::TcpStream::connect((a, 8080)).await.unwrap();
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.ends_with("from-a"), "{answer}");
    assert!(second.shell(&client, &format!("ping -c1 -W2 {}", node_ip())).await.1.contains("1 packets received"));

    // Port-forward dials the pod's loopback.
    let mut stream = orch::network::connect(pid(&first).await, 8080).await.unwrap();
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.ends_with("from-a"), "{answer}");
    assert!(orch::network::connect(pid(&first).await, 9).await.is_err());
    first.shell(&server, "true").await;

    // Another container of the engine, by way of Docker's bridge: pod traffic leaves masqueraded and is let through.
    let name = format!("test-outside-{}", random::suffix(6));
    output("docker", &["run", "-d", "--name", &name, "busybox:latest", "nc", "-ll", "-p", "7000", "-e", "hostname"]);
    let ip = output("docker", &["inspect", "-f", "{{.NetworkSettings.IPAddress}}", &name]);
    let dial = format!("for i in 1 2 3 4 5; do nc -w 2 {} 7000 </dev/null && exit; sleep 0.3; done; exit 1", ip.trim());
    let (code, text) = second.shell(&client, &dial).await;
    output("docker", &["rm", "-f", &name]);
    assert_eq!(code, 0, "{text}");

    restart(&config, &first, &second, a, b, &client).await;
    network.cleanup().await.unwrap();
    assert!(!output("ip", &["-d", "link"]).contains(&config.node));
    assert!(!output("iptables", &["-S", "DOCKER-USER"]).contains(&config.cluster_cidr.to_string()));
    first.remove().await;
    second.remove().await;
    tasks.shutdown(Duration::from_secs(5)).await;
}

/// A new agent takes the pods over: traffic goes on, rules come back, and what belongs to nobody goes.
async fn restart(config: &NetworkConfig, first: &Pod, second: &Pod, a: Ipv4Addr, b: Ipv4Addr, client: &str) {
    let tasks = TaskGroup::new();
    output("iptables", &["-F", "DOCKER-USER"]);
    let network = PodNetwork::start(config.clone(), &tasks).await.unwrap();
    assert!(output("iptables", &["-S", "DOCKER-USER"]).contains(&config.cluster_cidr.to_string()));
    let gone = Pod::start().await;
    network.attach(&gone.uid, pid(&gone).await).await.unwrap();
    drop(network);
    let network = PodNetwork::start(config.clone(), &tasks).await.unwrap();
    let existing = vec![
        ExistingPod { uid: first.uid.clone(), ip: a, sandbox_pid: pid(first).await },
        ExistingPod { uid: second.uid.clone(), ip: b, sandbox_pid: pid(second).await },
        ExistingPod { uid: "other-range".to_owned(), ip: Ipv4Addr::new(10, 1, 2, 3), sandbox_pid: 1 },
    ];
    let lost = network.restore(existing).await.unwrap();
    assert_eq!(lost.iter().map(|pod| pod.uid.as_str()).collect::<Vec<_>>(), ["other-range"]);
    assert_eq!(network.address(&first.uid).unwrap().ip, a);
    get(second, client, a).await;
    let interfaces = output("ip", &["-d", "link"]).matches(&config.node).count();
    assert_eq!(interfaces, 2, "the interface of the pod that is gone was removed");
    gone.remove().await;

    network.detach(&first.uid).await.unwrap();
    network.detach(&first.uid).await.unwrap();
    assert!(!output("ip", &["route"]).contains(&a.to_string()));
    let again = network.attach(&first.uid, pid(first).await).await.unwrap().ip;
    assert_ne!(again, a, "an address rests");
    get(second, client, again).await;
    tasks.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn attaching_many_at_once_is_quick() {
    let tasks = TaskGroup::new();
    let network = PodNetwork::start(config(), &tasks).await.unwrap();
    let pod = Pod::start().await;
    let process = pid(&pod).await;
    // The same sandbox under many names: each takes the place of the one before, which is the slowest case.
    let mut slowest = Duration::ZERO;
    for n in 0..20 {
        let started = std::time::Instant::now();
        network.attach(&format!("pod-{n}"), process).await.unwrap();
        slowest = slowest.max(started.elapsed());
    }
    println!("slowest attach {slowest:?}");
    let network = Arc::clone(&network);
    let error = network.attach("no-process", 4_194_303).await.unwrap_err();
    assert!(error.to_string().contains("enter the network namespace"), "{error}");
    network.cleanup().await.unwrap();
    pod.remove().await;
    tasks.shutdown(Duration::from_secs(5)).await;
}

/// An address of this machine that is not the loopback's.
fn node_ip() -> String {
    let route = output("ip", &["-4", "-o", "addr", "show", "scope", "global"]);
    let address = route.split_whitespace().skip_while(|word| *word != "inet").nth(1).unwrap();
    address.split('/').next().unwrap().to_owned()
}
