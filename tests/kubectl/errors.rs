//! What a user does wrong, and what the real kubectls then say.

use std::time::Duration;

use crate::support::{Cluster, KUBECTLS, wait_for};

const UNKNOWN_FIELD: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: wrong}
spec:
  replica: 2
  selector: {matchLabels: {app: wrong}}
  template:
    metadata: {labels: {app: wrong}}
    spec:
      containers: [{name: main, image: "busybox:latest", imagee: x}]
"#;

const WRONG_TYPE: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: wrong}
data: {number: 5}
"#;

const INVALID: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: Wrong_Name}
spec:
  restartPolicy: Sometimes
  containers: [{name: main}]
"#;

const NO_PULL: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: no-pull}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: main, image: "127.0.0.1:1/nothing/here:1"}]
"#;

const TOO_LARGE: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: too-large}
spec:
  containers: [{name: main, image: "busybox:latest", resources: {requests: {cpu: "1000"}}}]
"#;

#[test]
fn errors_are_kubernetes_own() {
    let cluster = Cluster::start();
    for version in KUBECTLS {
        let kubectl = cluster.kubectl(version);
        let refused = |manifest: &str, expected: &[&str]| {
            let said = kubectl.manifest(&["apply"], manifest).unwrap_err();
            for part in expected {
                assert!(said.contains(part), "kubectl {version}: no {part:?} in {said}");
            }
        };
        // The oldest kubectl checks against the schema by itself; the others leave it to the server.
        match version {
            "1.20" => refused(UNKNOWN_FIELD, &["unknown field \"replica\""]),
            _ => refused(
                UNKNOWN_FIELD,
                &[
                    "strict decoding error",
                    "unknown field \"spec.replica\"",
                    "unknown field \"spec.template.spec.containers[0].imagee\"",
                ],
            ),
        }
        refused(WRONG_TYPE, &["data"]);
        refused(
            INVALID,
            &[
                "metadata.name: Invalid value: \"Wrong_Name\"",
                "spec.restartPolicy: Unsupported value: \"Sometimes\"",
                "spec.containers[0].image: Required value",
            ],
        );
        let missing = kubectl.fails(["get", "pod", "nowhere"]);
        assert_eq!(missing.trim(), "Error from server (NotFound): pods \"nowhere\" not found");
        let unknown = kubectl.fails(["get", "nothings"]);
        assert!(unknown.contains("the server doesn't have a resource type \"nothings\""), "{unknown}");
    }
    immutable_fields_stay(&cluster);
    images_that_cannot_be_pulled(&cluster);
    pods_that_fit_nowhere(&cluster);
}

fn immutable_fields_stay(cluster: &Cluster) {
    let kubectl = cluster.kubectl("1.33");
    kubectl.run(["create", "deployment", "fixed", "--image=busybox:latest", "--replicas=0"]);
    let patch = r#"{"spec":{"selector":{"matchLabels":{"app":"other"}},"template":{"metadata":{"labels":{"app":"other"}}}}}"#;
    let said = kubectl.fails(["patch", "deployment", "fixed", "-p", patch]);
    assert!(said.contains("spec.selector: Invalid value") && said.contains("field is immutable"), "{said}");
}

fn images_that_cannot_be_pulled(cluster: &Cluster) {
    let kubectl = cluster.kubectl("1.37");
    kubectl.manifest(&["apply"], NO_PULL).unwrap();
    let reason = "{.status.containerStatuses[0].state.waiting.reason}";
    for expected in ["ErrImagePull", "ImagePullBackOff"] {
        wait_for(expected, Duration::from_secs(30), || {
            let now = kubectl.jsonpath(&["pod", "no-pull"], reason);
            if now == expected { Ok(()) } else { Err(now) }
        });
    }
    let events = kubectl.run(["get", "events", "--field-selector", "involvedObject.name=no-pull"]);
    assert!(
        events.contains("Failed to pull image \"127.0.0.1:1/nothing/here:1\"") && events.contains("connection refused"),
        "{events}"
    );
    kubectl.run(["delete", "pod", "no-pull"]);
}

fn pods_that_fit_nowhere(cluster: &Cluster) {
    let kubectl = cluster.kubectl("1.37");
    kubectl.manifest(&["apply"], TOO_LARGE).unwrap();
    let message = "{.status.conditions[?(@.type==\"PodScheduled\")].message}";
    let said = wait_for("the reason why it waits", Duration::from_secs(20), || {
        let now = kubectl.jsonpath(&["pod", "too-large"], message);
        if now.is_empty() { Err("no condition yet".to_owned()) } else { Ok(now) }
    });
    assert!(said.contains("0/1 nodes are available: 1 Insufficient cpu") && said.contains(&cluster.node), "{said}");
    wait_for("the event", Duration::from_secs(20), || {
        let events = kubectl.run(["get", "events", "--field-selector", "involvedObject.name=too-large"]);
        if events.contains("FailedScheduling") { Ok(()) } else { Err(events) }
    });
}
