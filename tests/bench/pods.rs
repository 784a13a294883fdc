//! From POST of a pod to Ready, beside raw Docker (a pause container and an application container) in the same run.

use std::process::{Command, Stdio};
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

fn raw_docker() -> f64 {
    let docker = |arguments: &[&str]| {
        let output = Command::new("docker").args(arguments).stderr(Stdio::inherit()).output().expect("docker");
        assert!(output.status.success());
    };
    let start = Instant::now();
    docker(&["run", "-d", "--network", "none", "--name", "bench-pause", "busybox:latest", "sleep", "10000"]);
    docker(&["run", "-d", "--network", "container:bench-pause", "--name", "bench-app", "busybox:latest", "sleep", "10000"]);
    let elapsed = start.elapsed().as_secs_f64() * 1e3;
    docker(&["rm", "-f", "bench-app", "bench-pause"]);
    elapsed
}
