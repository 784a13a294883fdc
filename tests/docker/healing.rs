//! `docker kill` of a container and of a sandbox, SIGKILL of `orch`: each heals, and what ran goes on running.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::json;

use crate::pods;
use crate::support::{Cluster, Kubectl, docker, sandbox_of, wait_for};

const MINUTE: Duration = Duration::from_secs(60);

fn container_id(kubectl: &Kubectl, selector: &str) -> String {
    let id = kubectl.jsonpath(&["pods", "-l", selector], "{.items[0].status.containerStatuses[0].containerID}");
    id.trim_start_matches("docker://").to_owned()
}

fn deploy(kubectl: &Kubectl, name: &str, replicas: u32) {
    kubectl.run(["create", "deployment", name, "--image=nginx:1.14", &format!("--replicas={replicas}")]);
    kubectl.run(["rollout", "status", &format!("deploy/{name}"), "--timeout=120s"]);
}

#[test]
fn a_killed_container_is_restarted() {
    let cluster = Cluster::start();
    let kubectl = cluster.kubectl("1.33");
    deploy(&kubectl, "web", 1);
    let (before, pod) =
        (container_id(&kubectl, "app=web"), kubectl.jsonpath(&["pods", "-l", "app=web"], "{.items[0].metadata.name}"));
    docker(["kill", &before]);
    wait_for("the container to run again", MINUTE, || {
        let now =
            kubectl.jsonpath(&["pod", &pod], "{.status.containerStatuses[0].restartCount} {.status.containerStatuses[0].ready}");
        if now == "1 true" { Ok(()) } else { Err(now) }
    });
    assert_ne!(container_id(&kubectl, "app=web"), before);
    let last = kubectl.jsonpath(
        &["pod", &pod],
        "{.status.containerStatuses[0].lastState.terminated.exitCode} {.status.containerStatuses[0].lastState.terminated.reason}",
    );
    assert_eq!(last, "137 Error");
    let previous = kubectl.run(["logs", "--previous", &pod]);
    assert!(previous.contains("start worker process"), "{previous}");
}

#[test]
fn a_killed_sandbox_is_replaced() {
    let cluster = Cluster::start();
    let kubectl = cluster.kubectl("1.33");
    deploy(&kubectl, "web", 1);
    let uid = kubectl.jsonpath(&["pods", "-l", "app=web"], "{.items[0].metadata.uid}");
    docker(["kill", &sandbox_of(&uid)]);
    wait_for("the pod to serve again", MINUTE, || {
        let running = docker(["ps", "-q", "--filter", &format!("label=io.kubernetes.pod.uid={uid}")]);
        let ready = kubectl.jsonpath(
            &["pods", "-l", "app=web"],
            "{.items[0].status.conditions[?(@.type==\"Ready\")].status} {.items[0].status.podIP}",
        );
        let (status, ip) = ready.split_once(' ').unwrap_or_default();
        let page = crate::support::curl(&format!("http://{ip}/"))?;
        if status == "True" && running.lines().count() == 2 && page.contains("nginx") { Ok(()) } else { Err(ready) }
    });
}

#[test]
fn killing_orch_stops_nothing_and_it_finds_all_again() {
    let mut cluster = Cluster::start();
    let kubectl = cluster.kubectl("1.33");
    deploy(&kubectl, "web", 2);
    let running = |cluster: &Cluster| cluster.containers().into_iter().collect::<BTreeSet<_>>();
    let before = running(&cluster);
    assert_eq!(before.len(), 4);
    cluster.kill();
    assert_eq!(running(&cluster), before);
    cluster.spawn();
    cluster.wait_ready();
    assert!(cluster.stop(), "SIGTERM ends it well");
    cluster.spawn();
    cluster.wait_ready();
    kubectl.run(["rollout", "status", "deploy/web", "--timeout=60s"]);
    assert_eq!(running(&cluster), before, "no container was restarted or replaced");
    let restarts = kubectl.jsonpath(&["pods", "-l", "app=web"], "{.items[*].status.containerStatuses[0].restartCount}");
    assert_eq!(restarts, "0 0");
}

#[test]
fn killing_orch_during_a_rollout_loses_nothing() {
    let mut cluster = Cluster::start();
    let kubectl = cluster.kubectl("1.33");
    deploy(&kubectl, "web", 4);
    kubectl.run(["set", "image", "deploy/web", "nginx=nginx:1.15"]);
    for _ in 0..3 {
        cluster.kill();
        cluster.spawn();
    }
    kubectl.run(["rollout", "status", "deploy/web", "--timeout=120s"]);
    wait_for("the four new pods alone", MINUTE, || {
        let images = kubectl.jsonpath(&["pods", "-l", "app=web"], "{.items[*].spec.containers[0].image}");
        let containers = cluster.containers().len();
        if images == ["nginx:1.15"; 4].join(" ") && containers == 8 {
            Ok(())
        } else {
            Err(format!("{images}; {containers} containers"))
        }
    });
}

#[test]
fn whom_a_container_began_as_outlives_the_agent() {
    let mut cluster = Cluster::start();
    let kubectl = cluster.kubectl("1.33");
    let wait_then_change = "while [ ! -e /tmp/go ]; do sleep 0.1; done; exec su -s /bin/sh nobody -c 'exec sleep 1000'";
    let probe = json!({"readinessProbe": {"exec": {"command": ["test", "-e", "/tmp/ready"]}, "periodSeconds": 1}});
    pods::make(&kubectl, "p", json!({"containers": [pods::with(pods::shell("c", wait_then_change), probe)]}));
    pods::until(&kubectl, "p", "{.status.phase}", "Running");
    let user = || pods::get(&kubectl, "p", "{.status.containerStatuses[0].user.linux}");
    let before = user();
    assert!(before.contains("\"uid\":0"), "{before}");
    pods::sh(&kubectl, "p", "touch /tmp/go");
    wait_for("the process to become somebody else", MINUTE, || {
        let now = pods::sh(&kubectl, "p", "grep Uid /proc/1/status");
        if now.contains("65534") { Ok(()) } else { Err(now) }
    });
    cluster.kill();
    cluster.spawn();
    // The new agent looks at the pod, and brings what it sees to the API.
    pods::sh(&kubectl, "p", "touch /tmp/ready");
    pods::until_ready(&kubectl, "p");
    assert_eq!(user(), before);
}

#[test]
fn a_node_that_has_just_started_answers_about_its_pods() {
    let mut cluster = Cluster::start();
    let kubectl = cluster.kubectl("1.33");
    deploy(&kubectl, "web", 5);
    let pods = kubectl.jsonpath(&["pods", "-l", "app=web"], "{.items[*].metadata.name}");
    for pod in pods.split(' ') {
        cluster.kill();
        cluster.spawn();
        // The first that is asked of the API: nothing is tried twice.
        assert_eq!(kubectl.run(["exec", pod, "--", "hostname"]).trim(), pod);
        assert!(kubectl.run(["logs", pod]).contains("start worker process"));
    }
    cluster.kill();
    cluster.spawn();
    let path = format!("/api/v1/nodes/{}/proxy/containerLogs/default/none/c", cluster.node);
    let refused = kubectl.fails(["get", "--raw", &path]);
    assert!(refused.contains("NotFound"), "{refused}");
    let pod = pods.split(' ').next().unwrap();
    assert!(kubectl.run(["logs", pod]).contains("start worker process"));
}
