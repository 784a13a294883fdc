//! The API under load: POST at 1, 64 and 256 clients, GET, LIST, memory an object, restart with many objects.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::Method;

use crate::client::Api;
use crate::{Runtime, Server, figure};

/// Figures of Kubernetes 1.20 with etcd on two such cores.
const KUBERNETES_POST: &[(usize, f64)] = &[(1, 300.0), (64, 1_160.0), (256, 1_155.0)];
const KUBERNETES_GET: f64 = 2_570.0;
const OBJECTS: usize = 31_000;

struct Load {
    per_second: f64,
    p50_ms: f64,
    p99_ms: f64,
    cpu_us: f64,
}

pub fn run(runtime: &Runtime) {
    let server = Server::new(runtime, false);
    figure("fdatasync of 4 KB", fdatasync_ms(&server), "ms", None);
    let created = Arc::new(AtomicUsize::new(0));
    fill(runtime, &server.api(), &created, OBJECTS);
    figure("memory with 31,000 ConfigMaps of 1 KB", server.memory_mb(), "MB", Some(("Kubernetes", 1_590.0)));
    lists(runtime, &server);
    let request = || (Method::GET, "/api/v1/namespaces/default/configmaps/c100".to_owned(), Bytes::new());
    report("GET one object, 64 clients", &measure(runtime, &server, 64, 200, request), Some(KUBERNETES_GET));
    for (clients, peer) in KUBERNETES_POST {
        let counter = Arc::clone(&created);
        let request = move || {
            let number = counter.fetch_add(1, Ordering::Relaxed);
            (Method::POST, "/api/v1/namespaces/default/configmaps".to_owned(), config_map(number))
        };
        let load = measure(runtime, &server, *clients, 201, request);
        report(&format!("POST ConfigMap 1 KB, {clients} clients"), &load, Some(*peer));
    }
    let count = created.load(Ordering::Relaxed);
    figure(&format!("memory with {count} ConfigMaps of 1 KB"), server.memory_mb(), "MB", None);
    let server = server.restart(runtime);
    figure(
        &format!("restart with {count} objects, to /readyz"),
        server.ready_after.as_secs_f64(),
        "s",
        Some(("limit, 100,000", 1.5)),
    );
}

fn report(name: &str, load: &Load, peer: Option<f64>) {
    figure(name, load.per_second, "/s", peer.map(|peer| ("Kubernetes", peer)));
    figure("    p50", load.p50_ms, "ms", None);
    figure("    p99", load.p99_ms, "ms", None);
    figure("    CPU of the server, each", load.cpu_us, "us", None);
}

fn config_map(number: usize) -> Bytes {
    let data = "x".repeat(900);
    Bytes::from(format!(
        r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"c{number}"}},"data":{{"key":"{data}"}}}}"#
    ))
}

fn measure(
    runtime: &Runtime,
    server: &Server,
    clients: usize,
    expected: u16,
    request: impl Fn() -> (Method, String, Bytes) + Send + Sync + 'static,
) -> Load {
    let (api, request) = (server.api(), Arc::new(request));
    let cpu = server.cpu_seconds();
    let (times, elapsed) = runtime.0.block_on(async {
        let mut connections = Vec::new();
        for _ in 0..clients {
            connections.push(api.connect().await.expect("a connection"));
        }
        let start = Instant::now();
        let tasks = connections.into_iter().map(|mut connection| {
            let request = Arc::clone(&request);
            tokio::spawn(async move {
                let mut times = Vec::new();
                while start.elapsed() < Duration::from_secs(4) {
                    let (method, path, body) = request();
                    let sent = Instant::now();
                    let (status, body) = connection.send(method, &path, body).await.expect("an answer");
                    assert_eq!(status, expected, "{}", String::from_utf8_lossy(&body));
                    times.push(sent.elapsed().as_secs_f64() * 1e3);
                }
                times
            })
        });
        let mut times = Vec::new();
        for task in tasks.collect::<Vec<_>>() {
            times.extend(task.await.expect("a client"));
        }
        (times, start.elapsed().as_secs_f64())
    });
    let cpu = server.cpu_seconds() - cpu;
    let count = times.len() as f64;
    let mut times = times;
    times.sort_by(f64::total_cmp);
    let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize];
    Load { per_second: count / elapsed, p50_ms: at(0.5), p99_ms: at(0.99), cpu_us: cpu / count * 1e6 }
}

fn fill(runtime: &Runtime, api: &Api, created: &Arc<AtomicUsize>, count: usize) {
    runtime.0.block_on(async {
        let target = created.load(Ordering::Relaxed) + count;
        let tasks = (0..64).map(|_| {
            let (api, created) = (api.clone(), Arc::clone(created));
            tokio::spawn(async move {
                let mut connection = api.connect().await.expect("a connection");
                while created.load(Ordering::Relaxed) < target {
                    let number = created.fetch_add(1, Ordering::Relaxed);
                    let path = "/api/v1/namespaces/default/configmaps";
                    connection.send(Method::POST, path, config_map(number)).await.expect("an answer");
                }
            })
        });
        for task in tasks.collect::<Vec<_>>() {
            task.await.expect("a client");
        }
    });
}

fn lists(runtime: &Runtime, server: &Server) {
    let api = server.api();
    let (memory, cpu) = (server.memory_mb(), server.cpu_seconds());
    let mut seconds = Vec::new();
    let mut megabytes = 0.0;
    for _ in 0..5 {
        let start = Instant::now();
        let (status, length) = runtime
            .0
            .block_on(async {
                let (status, body) = api.connect().await?.send(Method::GET, "/api/v1/configmaps", Bytes::new()).await?;
                Ok::<_, crate::client::BoxError>((status, body.len()))
            })
            .expect("a list");
        assert_eq!(status, 200);
        megabytes = length as f64 / 1e6;
        seconds.push(start.elapsed().as_secs_f64());
    }
    figure(&format!("LIST all, {megabytes:.0} MB"), crate::median(seconds), "s", Some(("Kubernetes", 1.9)));
    figure("    CPU of the server, each", (server.cpu_seconds() - cpu) / 5.0, "s", None);
    figure("    more memory", server.memory_mb() - memory, "MB", None);
}

fn fdatasync_ms(server: &Server) -> f64 {
    use std::io::Write;
    let mut file = std::fs::File::create(server.folder.path().join("sync")).expect("a file");
    let times = (0..50).map(|_| {
        file.write_all(&[0; 4096]).expect("a write");
        let start = Instant::now();
        file.sync_data().expect("fdatasync");
        start.elapsed().as_secs_f64() * 1e3
    });
    crate::median(times.collect())
}
