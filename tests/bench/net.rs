//! The network between nodes: throughput of one TCP stream and the time of a round trip, from pod to pod on one subnet and by VXLAN
//! across a router, beside the same between the hosts themselves, in the same run. Sender and receiver are threads of this program in
//! the network namespaces of hosts and pods.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::Method;
use nix::sched::{CloneFlags, setns};

use crate::client::Api;
use crate::cluster::{NetCluster, NetPod};
use crate::hosts::Host;
use crate::{Runtime, figure, median};

const SENDING: Duration = Duration::from_secs(3);
const TRIPS: usize = 2_000;

/// Where a thread stands, and what it is reached by.
struct Place {
    namespace: PathBuf,
    ip: Ipv4Addr,
}

impl Place {
    fn host(host: &Host) -> Self {
        Self { namespace: format!("/proc/{}/ns/net", host.pid()).into(), ip: host.ip }
    }

    fn pod(cluster: &NetCluster, pod: &NetPod<'_>) -> Self {
        let host = cluster.host(pod.node);
        let pid = host.exec(&format!("docker inspect -f '{{{{.State.Pid}}}}' {}", pod.container()));
        // The number is one of the host's own process namespace.
        Self { namespace: format!("/proc/{}/root/proc/{}/ns/net", host.pid(), pid.trim()).into(), ip: pod.ip }
    }

    fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> thread::JoinHandle<T> {
        let namespace = std::fs::File::open(&self.namespace).expect("a network namespace");
        thread::spawn(move || {
            setns(namespace, CloneFlags::CLONE_NEWNET).expect("enter the network namespace");
            work()
        })
    }

    /// A connection from here to `to`, handed to `work` at both ends.
    fn connected<T: Send + 'static>(&self, to: &Self, serve: fn(TcpStream), work: fn(TcpStream) -> T) -> T {
        let (sender, port) = mpsc::channel();
        let serving = to.run(move || {
            let listener = TcpListener::bind("0.0.0.0:0").expect("a port");
            sender.send(listener.local_addr().expect("its address").port()).expect("the other thread");
            serve(listener.accept().expect("a connection").0);
        });
        let address = (to.ip, port.recv().expect("a port"));
        let result = self.run(move || work(TcpStream::connect(address).expect("a connection"))).join().expect("the sender");
        serving.join().expect("the receiver");
        result
    }

    /// Gbit/s of one stream, counted when the other side has read all.
    fn throughput(&self, to: &Self) -> f64 {
        let drain = |mut stream: TcpStream| {
            let mut buffer = vec![0; 1 << 17];
            while stream.read(&mut buffer).expect("bytes") > 0 {}
        };
        self.connected(to, drain, |mut stream| {
            let (buffer, start) = (vec![7; 1 << 17], Instant::now());
            let mut sent = 0_u64;
            while start.elapsed() < SENDING {
                stream.write_all(&buffer).expect("the other side reads");
                sent += buffer.len() as u64;
            }
            stream.shutdown(Shutdown::Write).expect("the end");
            let _end = stream.read(&mut [0]).expect("the other side's end");
            sent as f64 * 8.0 / 1e9 / start.elapsed().as_secs_f64()
        })
    }

    /// Median microseconds for one byte there and back.
    fn round_trip(&self, to: &Self) -> f64 {
        let echo = |mut stream: TcpStream| {
            stream.set_nodelay(true).expect("an option");
            let mut byte = [0];
            while stream.read(&mut byte).expect("a byte") > 0 {
                stream.write_all(&byte).expect("a byte");
            }
        };
        self.connected(to, echo, |mut stream| {
            stream.set_nodelay(true).expect("an option");
            let mut trip = || {
                let start = Instant::now();
                stream.write_all(&[7]).expect("a byte");
                stream.read_exact(&mut [0]).expect("a byte");
                start.elapsed().as_secs_f64() * 1e6
            };
            median((0..TRIPS).map(|_| trip()).collect())
        })
    }
}

/// An agent on its own: from its start with a token to its node Ready, and what it takes.
fn join(runtime: &Runtime, cluster: &mut NetCluster) {
    const AGENT: usize = 3;
    let api = Api::from_kubeconfig(&cluster.host(1).folder.join("kubeconfig")).expect("a kubeconfig");
    let node = format!("/api/v1/nodes/{}", cluster.host(AGENT).name);
    let join = |cluster: &mut NetCluster| {
        cluster.leave(AGENT);
        runtime.0.block_on(async {
            let mut api = api.connect().await.expect("a connection");
            let begin = Instant::now();
            cluster.restart(AGENT);
            loop {
                let (_, body) = api.send(Method::GET, &node, Bytes::new()).await.expect("an answer");
                if String::from_utf8_lossy(&body).contains("KubeletReady") {
                    return begin.elapsed().as_secs_f64();
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        })
    };
    let joined = (0..5).map(|_| join(cluster)).collect();
    figure("orch agent --join to node Ready", median(joined), "s", Some(("limit", 2.0)));
    // Until it has given back what only the start needed.
    thread::park_timeout(Duration::from_secs(25));
    let status = std::fs::read_to_string(format!("/proc/{}/status", cluster.orch(AGENT).pid())).expect("status");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("VmRSS");
    let kilobytes: f64 = line.split_whitespace().nth(1).expect("a number").parse().expect("a number");
    figure("idle memory, agent", kilobytes / 1024.0, "MB", Some(("limit", 20.0)));
}

pub fn run(runtime: &Runtime) {
    let mut cluster = NetCluster::start(&[0, 0, 1]);
    join(runtime, &mut cluster);
    let hosts: Vec<Place> = (1..=3).map(|number| Place::host(cluster.host(number))).collect();
    let pods: Vec<Place> =
        (1..=3).map(|number| Place::pod(&cluster, &cluster.shell_pod(&format!("p{number}"), number))).collect();
    for (to, way, floor) in [(1, "one subnet", "host to host"), (2, "VXLAN", "host to host, routed")] {
        let bare = hosts[0].throughput(&hosts[to]);
        figure(&format!("pod to pod, {way}: throughput"), pods[0].throughput(&pods[to]), "Gbit/s", Some((floor, bare)));
        let bare = hosts[0].round_trip(&hosts[to]);
        figure(&format!("pod to pod, {way}: round trip"), pods[0].round_trip(&pods[to]), "us", Some((floor, bare)));
    }
}
