//! The Service proxy: from a change of an EndpointSlice to rules in force, and the time of a connection's first packets, with few
//! and with many Services. In a network namespace of its own.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::Instant;

use bytes::Bytes;
use hyper::Method;
use nix::sched::{CloneFlags, unshare};
use orch::network::nft::{Family, Monitor, Nft, Table};

use crate::client::{Api, Connection};
use crate::{Runtime, Server, figure, median};

const NODE: &str = "10.201.250.1";
const PORT: u16 = 18_080;
/// Services that there are when a row of figures is taken.
const SIZES: [usize; 3] = [10, 1_000, 10_000];
const ROUNDS: usize = 40;
const CONNECTIONS: usize = 200;
/// Requests at one time while Services are made.
const WRITERS: usize = 32;

pub fn run(_: &Runtime) {
    std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
        for line in [
            "link set lo up",
            "link add px0 type veth peer name px1",
            "link set px1 up",
            "link set px0 up",
            "addr add 10.201.250.1/24 dev px0",
            "route add default via 10.201.250.2",
        ] {
            assert!(Command::new("ip").args(line.split(' ')).status().expect("the program ip").success(), "ip {line}");
        }
        // One thread, so that all sockets are in the namespace.
        measure(&Runtime(tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")));
    })
    .join()
    .expect("the figures of the proxy");
}

fn measure(runtime: &Runtime) {
    let listener = TcpListener::bind(("0.0.0.0", PORT)).expect("a listener");
    std::thread::spawn(move || listener.incoming().for_each(drop));
    let server = Server::new(runtime, true);
    server.wait(runtime, "/api/v1/nodes/bench", |body| body.contains("KubeletReady"));
    let api = server.api();
    let mut made = 0;
    for size in SIZES {
        runtime.0.block_on(make(&api, made..size));
        made = size;
        let (answered, told) = runtime.0.block_on(changes(&api, size));
        figure(&format!("EndpointSlice to rules, {size} Services"), median(told), "ms", Some(("limit", 20.0)));
        figure("    from the API server's answer", median(answered), "ms", None);
        let first: Vec<f64> = (0..CONNECTIONS).map(|_| connect(address(size / 2))).collect();
        let direct: Vec<f64> = (0..CONNECTIONS).map(|_| connect(SocketAddr::from(([10, 201, 250, 1], PORT)))).collect();
        figure(&format!("connect to a ClusterIP, {size} Services"), median(first), "ms", Some(("direct", median(direct))));
    }
    figure("memory with 10,000 Services", server.memory_mb(), "MB", None);
}

/// The ClusterIP of a Service.
fn address(index: usize) -> SocketAddr {
    let index = u16::try_from(index + 256).expect("fewer than 65,000 Services");
    let [high, low] = index.to_be_bytes();
    SocketAddr::from(([10, 98, high, low], 80))
}

fn slice(index: usize, endpoints: &[&str]) -> Bytes {
    let endpoints: Vec<String> =
        endpoints.iter().map(|ip| format!(r#"{{"addresses":["{ip}"],"conditions":{{"ready":true}}}}"#)).collect();
    let text = format!(
        r#"{{"apiVersion":"discovery.k8s.io/v1","kind":"EndpointSlice","addressType":"IPv4","metadata":{{"name":"s{index}","labels":
           {{"kubernetes.io/service-name":"s{index}"}}}},"ports":[{{"name":"","port":{PORT},"protocol":"TCP"}}],"endpoints":[{}]}}"#,
        endpoints.join(",")
    );
    Bytes::from(text)
}

async fn make(api: &Api, numbers: std::ops::Range<usize>) {
    let writer = |first: usize| {
        let (api, numbers) = (api.clone(), numbers.clone());
        async move {
            let mut connection = api.connect().await.expect("a connection");
            for index in numbers.skip(first).step_by(WRITERS) {
                let service = format!(
                    r#"{{"apiVersion":"v1","kind":"Service","metadata":{{"name":"s{index}"}},"spec":
                       {{"clusterIP":"{}","ports":[{{"port":80,"targetPort":{PORT}}}]}}}}"#,
                    address(index).ip()
                );
                post(&mut connection, "/api/v1/namespaces/default/services", Bytes::from(service)).await;
                let slices = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
                post(&mut connection, slices, slice(index, &[NODE, "10.97.9.9", "10.97.9.10"])).await;
            }
        }
    };
    futures_util::future::join_all((0..WRITERS).map(writer)).await;
}

async fn post(connection: &mut Connection, path: &str, body: Bytes) {
    let (status, answer) = connection.send(Method::POST, path, body).await.expect("an answer");
    assert_eq!(status, 201, "{}", String::from_utf8_lossy(&answer));
}

/// Milliseconds from the answer to a PUT, and from the PUT, until the kernel tells that the rules changed.
async fn changes(api: &Api, size: usize) -> (Vec<f64>, Vec<f64>) {
    let nft = Nft::open().expect("nf_tables");
    let tables = nft.tables(Family::Ipv4).await.expect("the tables");
    let name = tables.iter().find(|name| name.ends_with("-proxy")).expect("the proxy's table");
    let mut monitor = nft.monitor(&Table::new(Family::Ipv4, name)).expect("a monitor");
    settle(&mut monitor).await;
    let mut connection = api.connect().await.expect("a connection");
    let (mut answered, mut told) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        // The last change is of the Service that is connected to, and leaves it an endpoint that answers.
        let is_last = round + 1 == ROUNDS;
        let mut index = (round * 7919) % size;
        if is_last || index == size / 2 {
            index = size / 2 + usize::from(!is_last);
        }
        // An address that the slice did not have: a write that changes nothing would be no change of the rules.
        let other = format!("10.97.{}.{}", 10 + size.ilog10(), 20 + round);
        let endpoints: &[&str] = if is_last { &[NODE] } else { &[NODE, "10.97.9.9", &other] };
        let path = format!("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/s{index}");
        let begin = Instant::now();
        let (status, answer) = connection.send(Method::PUT, &path, slice(index, endpoints)).await.expect("an answer");
        let put = begin.elapsed();
        assert_eq!(status, 200, "{}", String::from_utf8_lossy(&answer));
        monitor.changed().await.expect("events");
        let all = begin.elapsed();
        answered.push(all.saturating_sub(put).as_secs_f64() * 1e3);
        told.push(all.as_secs_f64() * 1e3);
    }
    (answered, told)
}

/// Waits until the kernel has been quiet for a while.
async fn settle(monitor: &mut Monitor) {
    const QUIET: std::time::Duration = std::time::Duration::from_secs(1);
    while let Ok(changed) = tokio::time::timeout(QUIET, monitor.changed()).await {
        changed.expect("events");
    }
}

/// Milliseconds until a connection stands.
fn connect(address: SocketAddr) -> f64 {
    let begin = Instant::now();
    let stream = TcpStream::connect(address).expect("a connection");
    let elapsed = begin.elapsed().as_secs_f64() * 1e3;
    drop(stream);
    elapsed
}
