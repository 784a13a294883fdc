//! From POST of a pod to Ready, beside raw Docker (a pause container and an application container) in the same run.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use bytes::Bytes;
use hyper::Method;

use crate::{Runtime, Server, figure, median};

const ROUNDS: usize = 7;

pub fn run(runtime: &Runtime) {
    let server = Server::new(runtime, true);
    server.wait(runtime, "/api/v1/nodes/bench", |body| body.contains("KubeletReady"));
    server.wait(runtime, "/api/v1/namespaces/default/serviceaccounts/default", |_| true);
    let api = server.api();
    let (mut orch, mut docker) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        docker.push(raw_docker());
        let start = Instant::now();
        let body = format!(
            r#"{{"apiVersion":"v1","kind":"Pod","metadata":{{"name":"p{round}"}},"spec":{{"terminationGracePeriodSeconds":0,"containers":[{{"name":"c","image":"busybox:latest","imagePullPolicy":"IfNotPresent","command":["sleep","10000"]}}]}}}}"#
        );
        let posted = runtime.0.block_on(async {
            api.connect().await?.send(Method::POST, "/api/v1/namespaces/default/pods", Bytes::from(body)).await
        });
        assert_eq!(posted.expect("an answer").0, 201);
        server.wait(runtime, &format!("/api/v1/namespaces/default/pods/p{round}"), |body| body.contains(r#""ready":true"#));
        orch.push(start.elapsed().as_secs_f64() * 1e3);
    }
    let floor = median(docker);
    figure("raw Docker, pause and application", floor, "ms", None);
    figure("POST pod to Ready, image present", median(orch.clone()), "ms", Some(("raw Docker", floor)));
    figure("    over raw Docker", median(orch) - floor, "ms", Some(("limit", 40.0)));
    figure("memory with 7 pods", server.memory_mb(), "MB", None);
}

/// Create and start of a pause and an application container, one call after the other, over the engine's own API.
fn raw_docker() -> f64 {
    let start = Instant::now();
    let create = |name: &str, network: &str| {
        let body = format!(r#"{{"Image":"busybox:latest","Cmd":["sleep","10000"],"HostConfig":{{"NetworkMode":"{network}"}}}}"#);
        engine("POST", &format!("/containers/create?name={name}"), &body);
        engine("POST", &format!("/containers/{name}/start"), "");
    };
    create("bench-pause", "none");
    create("bench-app", "container:bench-pause");
    let elapsed = start.elapsed().as_secs_f64() * 1e3;
    for name in ["bench-app", "bench-pause"] {
        engine("DELETE", &format!("/containers/{name}?force=1"), "");
    }
    elapsed
}

pub fn engine(method: &str, path: &str, body: &str) {
    let mut stream = UnixStream::connect("/var/run/docker.sock").expect("a Docker engine");
    let head = format!("{method} {path} HTTP/1.1\r\nHost: docker\r\nConnection: close\r\nContent-Type: application/json\r\n");
    write!(stream, "{head}Content-Length: {}\r\n\r\n{body}", body.len()).expect("a request");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 2"), "{method} {path}: {answer}");
}
