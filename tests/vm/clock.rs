//! The machine's clock is set by hours, forward and back, while pods run.

use std::process::Command;

use serde_json::json;

use crate::support::wait_for;
use crate::world::{Case, MINUTE, World, pod};

pub const CASES: &[(&str, Case)] = &[("clock: set forward and back", steps)];

const HOURS: i64 = 2;

/// Sets the machine's clock by so many hours.
fn step(hours: i64) {
    let now = i64::try_from(std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs()).unwrap();
    let status = Command::new("date").arg("-s").arg(format!("@{}", now + hours * 3_600)).status().unwrap();
    assert!(status.success());
}

fn steps(world: &mut World) {
    let probe = json!({"exec": {"command": ["true"]}, "periodSeconds": 5, "timeoutSeconds": 10});
    let probed = json!({"livenessProbe": probe, "readinessProbe": probe,
        "volumeMounts": [{"name": "token", "mountPath": "/token"}]});
    let token = json!({"serviceAccountToken": {"path": "token", "expirationSeconds": 600}});
    let volumes = json!({"volumes": [{"name": "token", "projected": {"sources": [token]}}]});
    world.apply(&[
        pod("steady", "true", probed, volumes),
        pod("timed", "true", json!({}), json!({"activeDeadlineSeconds": 3_600, "restartPolicy": "Never"})),
    ]);
    world.ready(&["steady", "timed"]);
    let node = world.kubectl.run(["get", "nodes", "-o", "jsonpath={.items[0].metadata.name}"]);
    let before = (container(world), transition(world, &node));
    // Whether the API takes the token that the pod has now.
    let token = |world: &World, other_than: &str| {
        let mut text = String::new();
        wait_for("a token that is valid", MINUTE, || {
            text = world.sh("steady", "cat /token/token");
            if text == other_than {
                return Err("the old one".to_owned());
            }
            let (server, token) = (format!("--server=https://127.0.0.1:{}", world.cluster.port), format!("--token={text}"));
            let with = ["--kubeconfig=/dev/null", "--insecure-skip-tls-verify", &server, &token];
            let ask = ["auth", "whoami", "-o", "jsonpath={.status.userInfo.username}"];
            let answer = world.kubectl.try_run(with.into_iter().chain(ask))?;
            if answer == "system:serviceaccount:default:default" { Ok(()) } else { Err(answer) }
        });
        text
    };
    let first = token(world, "");
    step(HOURS);
    let second = token(world, &first);
    world.until("timed", "{.status.reason}", "DeadlineExceeded");
    world.apply(&[pod("later", "true", json!({}), json!({}))]);
    world.ready(&["later"]);
    step(-HOURS);
    token(world, &second);
    world.apply(&[pod("earlier", "true", json!({}), json!({}))]);
    world.ready(&["earlier", "steady", "later"]);
    assert_eq!((container(world), transition(world, &node)), before, "nothing restarted, and the node was always ready");
    assert!(!world.events("steady").contains("Unhealthy"), "{}", world.events("steady"));
    world.delete("pod", &["steady", "timed", "later", "earlier"]);
}

/// Which container runs, and how often it was restarted.
fn container(world: &World) -> String {
    world.get("steady", "{.status.containerStatuses[0].containerID} {.status.containerStatuses[0].restartCount}")
}

/// Since when the node is ready.
fn transition(world: &World, node: &str) -> String {
    world.kubectl.jsonpath(&["node", node], "{.status.conditions[?(@.type=='Ready')].lastTransitionTime}")
}
