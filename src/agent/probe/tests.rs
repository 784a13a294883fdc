//! The prober against real servers on loopback: HTTP, HTTPS, TCP and gRPC, well and ill.

use std::net::{IpAddr, Ipv4Addr};

use ::http::{HeaderMap, Response, StatusCode, header};
use async_trait::async_trait;
use http_body_util::{BodyExt, StreamBody};
use serde_json::{Value, json};

use super::*;
use crate::cri::fake::Fake;
use crate::http::listener::Listener;
use crate::http::tls::ServerTls;
use crate::http::{Handler, HttpRequest, HttpResponse, full};
use crate::pki::Pki;
use crate::rt::clock::SystemClock;

/// A server that does what the path says.
struct Server;

#[async_trait]
impl Handler for Server {
    async fn handle(self: Arc<Self>, request: HttpRequest) -> HttpResponse {
        let head = request.headers().clone();
        let text = |name: header::HeaderName| head.get(name).and_then(|value| value.to_str().ok()).unwrap_or("").to_owned();
        let (path, answer) = (request.uri().path().to_owned(), Response::builder());
        match path.as_str() {
            "/ok" => Response::new(full("fine")),
            "/agent" => answer.status(if text(header::USER_AGENT) == AGENT { 200 } else { 400 }).body(full("")).unwrap(),
            "/host" => answer.status(if text(header::HOST) == "web.example" { 200 } else { 400 }).body(full("")).unwrap(),
            "/to-bad" => answer.status(302).header(header::LOCATION, "/bad").body(full("")).unwrap(),
            "/to-ok" => answer.status(302).header(header::LOCATION, "ok").body(full("")).unwrap(),
            "/away" => answer.status(302).header(header::LOCATION, "http://other.example/").body(full("gone")).unwrap(),
            "/loop" => answer.status(302).header(header::LOCATION, "/loop").body(full("")).unwrap(),
            "/hang" => std::future::pending().await,
            "/grpc.health.v1.Health/Check" => health(request).await,
            _ => answer.status(StatusCode::INTERNAL_SERVER_ERROR).body(full("bad")).unwrap(),
        }
    }
}

async fn health(request: HttpRequest) -> HttpResponse {
    let asked = request.into_body().collect().await.unwrap().to_bytes();
    let trailers = |status: &str| HeaderMap::from_iter([("grpc-status".parse().unwrap(), status.parse().unwrap())]);
    let answer = Response::builder().header(header::CONTENT_TYPE, "application/grpc");
    let (status, message): (&str, Vec<u8>) = match asked.get(7..) {
        None => ("0", vec![0, 0, 0, 0, 2, 8, 1]),
        Some(b"ill") => ("0", vec![0, 0, 0, 0, 2, 8, 2]),
        _ => ("12", Vec::new()),
    };
    let frames = [http_body::Frame::data(message.into()), http_body::Frame::trailers(trailers(status))];
    let body = StreamBody::new(futures_util::stream::iter(frames.map(Ok::<_, crate::http::BoxError>)));
    answer.body(body.boxed_unsync()).unwrap()
}

async fn serve(tls: Option<Arc<ServerTls>>, tasks: &TaskGroup) -> u16 {
    let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), tls).await.unwrap();
    let (port, group) = (listener.local_addr().unwrap().port(), tasks.clone());
    tasks.spawn(async move { listener.serve(Arc::new(Server), group).await });
    port
}

fn prober(tasks: &TaskGroup) -> Prober {
    Prober::new(Fake::new(Arc::new(SystemClock)), tasks.clone()).unwrap()
}

async fn look(prober: &Prober, probe: Value) -> Result<Option<String>, String> {
    verdict(prober, probe).await.map_err(|ill| ill.words)
}

async fn verdict(prober: &Prober, probe: Value) -> Verdict {
    let (probe, container) = (serde_json::from_value::<Probe>(probe).unwrap(), Container::default());
    let target = Target { container: &container, id: "c", pod_ip: Some(IpAddr::V4(Ipv4Addr::LOCALHOST)) };
    prober.check(&probe, &target).await
}

#[tokio::test]
async fn http_answers_are_judged() {
    let tasks = TaskGroup::new();
    let now = jiff::Timestamp::now();
    let serving = Pki::generate(now).unwrap().serving("other", &["other.example".to_owned()], now).unwrap();
    let tls = Arc::new(ServerTls::new(&serving.chain_pem, &serving.key_pem, None).unwrap());
    let (plain, secure) = (serve(None, &tasks).await, serve(Some(tls), &tasks).await);
    let prober = prober(&tasks);
    for (scheme, port) in [("HTTP", plain), ("HTTPS", secure)] {
        let get = |path: &str| {
            json!({"httpGet": {"path": path, "port": port, "scheme": scheme,
            "httpHeaders": [{"name": "Host", "value": "web.example"}]}})
        };
        let url = format!("{}://127.0.0.1:{port}/hang", scheme.to_lowercase());
        let hangs = format!("Get \"{url}\": context deadline exceeded (Client.Timeout exceeded while awaiting headers)");
        let away = Ok(Some("Probe terminated redirects, Response body: gone".to_owned()));
        let table = [
            ("/ok", Ok(None)),
            ("/agent", Ok(None)),
            ("/host", Ok(None)),
            ("/to-ok", Ok(None)),
            ("/away", away),
            ("/bad", Err("HTTP probe failed with statuscode: 500".to_owned())),
            ("/to-bad", Err("HTTP probe failed with statuscode: 500".to_owned())),
            ("/hang", Err(hangs)),
        ];
        for (path, expected) in table {
            assert_eq!(look(&prober, get(path)).await, expected, "{scheme} {path}");
        }
        assert!(look(&prober, get("/loop")).await.unwrap_err().ends_with("stopped after 10 redirects"));
    }
    tasks.cancel();
}

#[tokio::test]
async fn tcp_and_grpc_answers_are_judged() {
    let tasks = TaskGroup::new();
    let (port, prober) = (serve(None, &tasks).await, prober(&tasks));
    assert_eq!(look(&prober, json!({"tcpSocket": {"port": port}})).await, Ok(None));
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    assert!(look(&prober, json!({"tcpSocket": {"port": closed}})).await.unwrap_err().contains("refused"));
    for probe in [json!({"tcpSocket": {"port": closed}}), json!({"httpGet": {"port": closed}}), json!({"grpc": {"port": closed}})]
    {
        assert!(verdict(&prober, probe.clone()).await.unwrap_err().is_refused, "{probe}");
    }
    assert!(!verdict(&prober, json!({"httpGet": {"path": "/bad", "port": port}})).await.unwrap_err().is_refused);
    assert_eq!(look(&prober, json!({"grpc": {"port": port}})).await, Ok(None));
    let ill = look(&prober, json!({"grpc": {"port": port, "service": "ill"}})).await;
    assert_eq!(ill, Err("service unhealthy (responded with \"NOT_SERVING\")".to_owned()));
    let unknown = look(&prober, json!({"grpc": {"port": port, "service": "other"}})).await.unwrap_err();
    assert!(unknown.starts_with("error: this server does not implement the grpc health protocol"), "{unknown}");
    assert!(look(&prober, json!({"grpc": {"port": closed}})).await.unwrap_err().starts_with("error: health rpc probe failed"));
    tasks.cancel();
}

/// A thousand probes of one node, each every ten seconds, are a hundred a second.
#[test]
fn a_thousand_probes_cost_little() {
    const PROBES: u32 = 1_000;
    let (tell, told) = std::sync::mpsc::channel();
    let server = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let tasks = TaskGroup::new();
            tell.send((serve(None, &tasks).await, tasks.clone())).unwrap();
            tasks.token().cancelled().await;
        });
    });
    let (port, server_tasks) = told.recv().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let used = || {
        let time = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_THREAD).unwrap();
        let both = [time.user_time(), time.system_time()];
        both.iter().map(|time| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6).sum::<f64>()
    };
    let before = used();
    runtime.block_on(async {
        let tasks = TaskGroup::new();
        let prober = prober(&tasks);
        for _ in 0..PROBES {
            assert_eq!(look(&prober, json!({"httpGet": {"path": "/ok", "port": port}, "timeoutSeconds": 10})).await, Ok(None));
        }
        tasks.cancel();
    });
    let share = (used() - before) / 10.0;
    println!(
        "1,000 HTTP probes every 10 s: {:.2} % of a core, {:.0} us each",
        share * 100.0,
        share * 10.0 / f64::from(PROBES) * 1e6
    );
    server_tasks.cancel();
    server.join().unwrap();
    // The budget is 5 % of a release build; this one is not optimized.
    assert!(share < 0.2, "{share}");
}
