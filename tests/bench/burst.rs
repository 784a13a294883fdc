//! A hundred pods on one node: made, probed, replaced by a rollout, deleted, beside the best that a loop over the Docker engine's own
//! API does with as many pairs of containers in the same run.

use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::Method;
use serde_json::{Value, json};

use crate::client::Connection;
use crate::pods::engine;
use crate::{Runtime, Server, figure};

const PODS: usize = 100;
/// Requests to the engine at one time in the raw loop: more was not faster.
const AT_ONCE: usize = 8;
const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";
const QUIET: Duration = Duration::from_secs(20);

pub fn run(runtime: &Runtime) {
    let server = Server::new(runtime, true);
    server.wait(runtime, "/api/v1/nodes/bench", |body| body.contains("KubeletReady"));
    server.wait(runtime, "/api/v1/namespaces/default/serviceaccounts/default", |_| true);
    let (raw_made, raw_removed) = raw_docker();
    let mut api = runtime.0.block_on(server.api().connect()).expect("a connection");
    let mut run = Run { runtime, api: &mut api };
    let (memory, cpu) = (server.memory_mb(), server.cpu_seconds());

    let begin = Instant::now();
    run.send(Method::POST, DEPLOYMENTS, &deployment("one", 10));
    run.until("all pods ready", |status| status["readyReplicas"] == PODS && status["updatedReplicas"] == PODS);
    let made = begin.elapsed().as_secs_f64();
    figure("100 pods, POST of a Deployment to all Ready", made, "s", Some(("raw Docker, 8 at once", raw_made)));
    figure("    CPU of the process, each pod", (server.cpu_seconds() - cpu) * 1e3 / PODS as f64, "ms", None);
    figure("    memory, each pod", (server.memory_mb() - memory) * 1024.0 / PODS as f64, "KB", None);

    figure("idle CPU, 100 pods with an HTTP probe each 10 s", quiet_share(&server), "% core", None);

    let begin = Instant::now();
    let path = format!("{DEPLOYMENTS}/burst");
    run.send(Method::PUT, &path, &deployment("two", 1));
    run.until("all pods replaced", |status| {
        status["readyReplicas"] == PODS && status["updatedReplicas"] == PODS && status["replicas"] == PODS
    });
    let raw = raw_made + raw_removed;
    figure("100 pods, replaced by a rollout", begin.elapsed().as_secs_f64(), "s", Some(("raw Docker, made and removed", raw)));
    let share = quiet_share(&server);
    figure("CPU, 100 HTTP probes a second (1,000 each 10 s)", share, "% core", Some(("limit", 5.0)));

    let begin = Instant::now();
    run.send(Method::DELETE, &format!("{path}?propagationPolicy=Foreground"), &json!({}));
    run.poll("/api/v1/namespaces/default/pods", "all pods gone", |list| list["items"].as_array().is_some_and(Vec::is_empty));
    figure("100 pods, deleted", begin.elapsed().as_secs_f64(), "s", Some(("raw Docker, 8 at once", raw_removed)));
}

/// Percent of a core over a while in which nobody asks for anything.
fn quiet_share(server: &Server) -> f64 {
    std::thread::park_timeout(Duration::from_secs(5));
    let (cpu, begin) = (server.cpu_seconds(), Instant::now());
    std::thread::park_timeout(QUIET);
    (server.cpu_seconds() - cpu) / begin.elapsed().as_secs_f64() * 100.0
}

struct Run<'a> {
    runtime: &'a Runtime,
    api: &'a mut Connection,
}

impl Run<'_> {
    fn send(&mut self, method: Method, path: &str, body: &Value) -> Value {
        let (status, answer) =
            self.runtime.0.block_on(self.api.send(method, path, Bytes::from(body.to_string()))).expect("an answer");
        assert!(status < 300, "{path}: {}", String::from_utf8_lossy(&answer));
        serde_json::from_slice(&answer).expect("JSON")
    }

    fn until(&mut self, what: &str, suits: impl Fn(&Value) -> bool) {
        self.poll(&format!("{DEPLOYMENTS}/burst"), what, |object| {
            // Before the controller has seen the change, the status is that of the state before.
            object["status"]["observedGeneration"] == object["metadata"]["generation"] && suits(&object["status"])
        });
    }

    fn poll(&mut self, path: &str, what: &str, suits: impl Fn(&Value) -> bool) {
        let end = Instant::now() + Duration::from_secs(240);
        while Instant::now() < end {
            let (status, answer) = self.runtime.0.block_on(self.api.send(Method::GET, path, Bytes::new())).expect("an answer");
            if status == 200 && suits(&serde_json::from_slice(&answer).expect("JSON")) {
                return;
            }
            std::thread::park_timeout(Duration::from_millis(50));
        }
        panic!("{what}: not within four minutes");
    }
}

/// Server and probe are `orch-test`; what `version` says differs from one rollout to the next. A probe every `period` seconds.
fn deployment(version: &str, period: u32) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "burst"},
        "spec": {
            "replicas": PODS,
            "selector": {"matchLabels": {"app": "burst"}},
            // No more pods at one time than a node may hold.
            "strategy": {"rollingUpdate": {"maxSurge": 0, "maxUnavailable": "25%"}},
            "template": {
                "metadata": {"labels": {"app": "burst", "version": version}},
                "spec": {
                    "terminationGracePeriodSeconds": 0,
                    "containers": [{
                        "name": "main", "image": "orch-test", "imagePullPolicy": "Never",
                        "readinessProbe": {"httpGet": {"path": "/health", "port": 8080}, "periodSeconds": period},
                    }],
                },
            },
        },
    })
}

/// Seconds to make, and to remove, as many pairs of a pause and an application container, several at one time.
fn raw_docker() -> (f64, f64) {
    let all = |work: fn(usize)| {
        let begin = Instant::now();
        std::thread::scope(|scope| {
            for first in 0..AT_ONCE {
                scope.spawn(move || (first..PODS).step_by(AT_ONCE).for_each(work));
            }
        });
        begin.elapsed().as_secs_f64()
    };
    let made = all(|number| {
        for (name, network) in [
            (format!("burst-pause-{number}"), "none".to_owned()),
            (format!("burst-app-{number}"), format!("container:burst-pause-{number}")),
        ] {
            let body = format!(r#"{{"Image":"orch-test","Cmd":["serve"],"HostConfig":{{"NetworkMode":"{network}"}}}}"#);
            engine("POST", &format!("/containers/create?name={name}"), &body);
            engine("POST", &format!("/containers/{name}/start"), "");
        }
    });
    let removed = all(|number| {
        for name in [format!("burst-app-{number}"), format!("burst-pause-{number}")] {
            engine("DELETE", &format!("/containers/{name}?force=1"), "");
        }
    });
    (made, removed)
}
