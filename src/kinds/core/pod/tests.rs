//! Tests of pods: defaults, errors, updates, rows.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::POD;
use crate::api::kind::Subresource;
use crate::api::{Kind, Object};

fn pod(spec: Value) -> Object {
    let mut pod = Object::default();
    pod.set(&["apiVersion"], "v1");
    pod.set(&["kind"], "Pod");
    pod.set(&["metadata"], json!({"name": "a", "namespace": "default", "creationTimestamp": "2024-01-01T00:00:00Z"}));
    pod.set(&["spec"], spec);
    pod
}

fn created(spec: Value) -> Object {
    let mut pod = pod(spec);
    POD.default(&mut pod);
    POD.prepare_create(&mut pod);
    pod
}

fn texts(errors: &[crate::api::field::FieldError]) -> Vec<String> {
    errors.iter().map(ToString::to_string).collect()
}

#[test]
fn defaults_as_upstream() {
    let pod = created(json!({
        "containers": [{"name": "c", "image": "nginx", "ports": [{"containerPort": 80}],
            "env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
            "resources": {"limits": {"cpu": 0.5, "memory": "1024Mi"}},
            "livenessProbe": {"httpGet": {"port": 80}}}],
        "volumes": [{"name": "v"}, {"name": "s", "secret": {"secretName": "x"}}],
        "serviceAccountName": "default",
    }));
    let expected = json!({
        "containers": [{"name": "c", "image": "nginx", "ports": [{"containerPort": 80, "protocol": "TCP"}],
            "env": [{"name": "A", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.name"}}}],
            "resources": {"limits": {"cpu": "500m", "memory": "1Gi"}, "requests": {"cpu": "500m", "memory": "1Gi"}},
            "resizePolicy": [
                {"resourceName": "cpu", "restartPolicy": "NotRequired"},
                {"resourceName": "memory", "restartPolicy": "NotRequired"}],
            "livenessProbe": {"httpGet": {"path": "/", "port": 80, "scheme": "HTTP"},
                "failureThreshold": 3, "periodSeconds": 10, "successThreshold": 1, "timeoutSeconds": 1},
            "imagePullPolicy": "Always", "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File"}],
        "volumes": [{"name": "v", "emptyDir": {}}, {"name": "s", "secret": {"secretName": "x", "defaultMode": 420}}],
        "serviceAccountName": "default", "serviceAccount": "default",
        "dnsPolicy": "ClusterFirst", "enableServiceLinks": true, "restartPolicy": "Always", "schedulerName": "default-scheduler",
        "securityContext": {}, "terminationGracePeriodSeconds": 30,
    });
    assert_eq!(pod.spec(), Some(&expected));
    assert_eq!(pod.status(), Some(&json!({"phase": "Pending", "qosClass": "Guaranteed"})));
    assert_eq!(texts(&POD.validate(&pod)), Vec::<String>::new());
}

#[test]
fn errors_in_upstreams_words() {
    let c = json!({"name": "c", "image": "nginx:1"});
    let with = |key: &str, value: Value| {
        let mut container = c.clone();
        container[key] = value;
        json!({"containers": [container]})
    };
    let table = [
        (json!({}), vec!["spec.containers: Required value"]),
        (json!({"containers": [{"name": "c"}]}), vec!["spec.containers[0].image: Required value"]),
        (json!({"containers": [c, c]}), vec!["spec.containers[1].name: Duplicate value: \"c\""]),
        (
            with("image", json!(" a")),
            vec!["spec.containers[0].image: Invalid value: \" a\": must not have leading or trailing whitespace"],
        ),
        (
            with("imagePullPolicy", json!("Sometimes")),
            vec![
                "spec.containers[0].imagePullPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"IfNotPresent\", \"Never\"",
            ],
        ),
        (with("ports", json!([{}])), vec!["spec.containers[0].ports[0].containerPort: Required value"]),
        (
            with("ports", json!([{"containerPort": 70000}])),
            vec!["spec.containers[0].ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive"],
        ),
        (
            with("env", json!([{"name": "A", "value": "b", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}])),
            vec!["spec.containers[0].env[0].valueFrom: Invalid value: \"\": may not be specified when `value` is not empty"],
        ),
        (
            with("volumeMounts", json!([{"name": "v", "mountPath": "/v"}])),
            vec!["spec.containers[0].volumeMounts[0].name: Not found: \"v\""],
        ),
        (
            with("resources", json!({"requests": {"cpu": "2"}, "limits": {"cpu": "1"}})),
            vec!["spec.containers[0].resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1"],
        ),
        (with("livenessProbe", json!({})), vec!["spec.containers[0].livenessProbe: Required value: must specify a handler type"]),
        (
            json!({"containers": [c], "restartPolicy": "Maybe"}),
            vec!["spec.restartPolicy: Unsupported value: \"Maybe\": supported values: \"Always\", \"OnFailure\", \"Never\""],
        ),
        (
            json!({"containers": [c], "volumes": [{"name": "v", "emptyDir": {}, "hostPath": {"path": "/x"}}]}),
            vec!["spec.volumes[0].hostPath: Forbidden: may not specify more than 1 volume type"],
        ),
        (
            json!({"containers": [c], "initContainers": [{"name": "i", "image": "x", "readinessProbe": {"exec": {"command": ["a"]}}}]}),
            vec![
                "spec.initContainers[0].readinessProbe: Forbidden: may not be set for init containers without restartPolicy=Always",
            ],
        ),
        (
            json!({"containers": [c], "dnsPolicy": "None"}),
            vec!["spec.dnsConfig: Required value: must provide `dnsConfig` when `dnsPolicy` is None"],
        ),
        (
            json!({"containers": [c], "tolerations": [{"operator": "Equal"}]}),
            vec![
                "spec.tolerations[0].operator: Invalid value: \"Equal\": operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
            ],
        ),
    ];
    for (spec, expected) in table {
        assert_eq!(texts(&POD.validate(&created(spec.clone()))), expected, "{spec}");
    }
}

#[test]
fn updates_change_images_and_little_else() {
    let old = created(json!({"containers": [{"name": "c", "image": "nginx:1"}]}));
    let changed = |path: &[&str], value: Value| {
        let mut new = old.clone();
        new.set(path, value);
        let first = texts(&POD.validate_update(&new, &old, None)).into_iter().next().unwrap_or_default();
        first.lines().next().unwrap_or_default().to_owned()
    };
    let mut image = old.get(&["spec", "containers"]).cloned().unwrap();
    image[0]["image"] = json!("nginx:2");
    assert_eq!(changed(&["spec", "containers"], image.clone()), "");
    image[0]["command"] = json!(["x"]);
    assert!(changed(&["spec", "containers"], image.clone()).starts_with(
        "spec: Forbidden: pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`"
    ));
    let two = json!([image[0], {"name": "d", "image": "x", "imagePullPolicy": "Always", "terminationMessagePolicy": "File"}]);
    assert_eq!(changed(&["spec", "containers"], two), "spec.containers: Forbidden: pod updates may not add or remove containers");
    assert_eq!(changed(&["spec", "activeDeadlineSeconds"], json!(5)), "");
    let mut bound = old.clone();
    bound.set(&["spec", "nodeName"], "n1");
    assert_eq!(texts(&POD.validate_update(&bound, &old, Some(Subresource::Binding))), Vec::<String>::new());
}

#[test]
fn rows_as_kubectl_prints_them() {
    let now: Timestamp = "2024-01-01T00:05:00Z".parse().unwrap();
    let waiting = |reason: &str| json!({"waiting": {"reason": reason}});
    let ended = |code: i32, reason: &str| json!({"terminated": {"exitCode": code, "reason": reason}});
    let status = |state: Value, ready: bool| json!({"name": "c", "ready": ready, "restartCount": 0, "image": "", "imageID": "", "state": state});
    let init = |state: Value| json!({"name": "i", "ready": false, "restartCount": 0, "image": "", "imageID": "", "state": state});
    let mut crashed = status(waiting("CrashLoopBackOff"), false);
    crashed["restartCount"] = json!(3);
    crashed["lastState"] = json!({"terminated": {"exitCode": 1, "finishedAt": "2024-01-01T00:04:00Z"}});
    let table = [
        (json!({"phase": "Pending"}), "0/1", "Pending", "0"),
        (
            json!({"phase": "Pending", "containerStatuses": [status(waiting("ContainerCreating"), false)]}),
            "0/1",
            "ContainerCreating",
            "0",
        ),
        (json!({"phase": "Running", "containerStatuses": [status(json!({"running": {}}), true)]}), "1/1", "Running", "0"),
        (json!({"phase": "Running", "containerStatuses": [crashed]}), "0/1", "CrashLoopBackOff", "3 (60s ago)"),
        (json!({"phase": "Succeeded", "containerStatuses": [status(ended(0, "Completed"), false)]}), "0/1", "Completed", "0"),
        (json!({"phase": "Failed", "containerStatuses": [status(ended(2, ""), false)]}), "0/1", "ExitCode:2", "0"),
        (json!({"phase": "Failed", "reason": "Evicted"}), "0/1", "Evicted", "0"),
        (json!({"phase": "Pending", "initContainerStatuses": [init(waiting("PodInitializing"))]}), "0/1", "Init:0/1", "0"),
        (json!({"phase": "Pending", "initContainerStatuses": [init(ended(1, "Error"))]}), "0/1", "Init:Error", "0"),
        (
            json!({"phase": "Pending", "initContainerStatuses": [init(ended(0, "Completed"))], "containerStatuses": [status(waiting("PodInitializing"), false)]}),
            "0/1",
            "PodInitializing",
            "0",
        ),
        (
            json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}]}),
            "0/1",
            "SchedulingGated",
            "0",
        ),
    ];
    for (status, ready, reason, restarts) in table {
        let mut object = pod(json!({"containers": [{"name": "c"}], "initContainers": [{"name": "i"}], "nodeName": "n1"}));
        object.set(&["status"], status.clone());
        let none = "<none>";
        let expected: Vec<Value> =
            ["a", ready, reason, restarts, "5m", none, "n1", none, none].into_iter().map(Value::from).collect();
        assert_eq!(POD.row(&object, now), expected, "{status}");
    }
    let mut object = pod(json!({"containers": [{"name": "c"}]}));
    object.set(&["metadata", "deletionTimestamp"], "2024-01-01T00:04:00Z");
    object.set(&["status"], json!({"phase": "Running", "podIP": "10.0.0.1"}));
    assert_eq!(POD.row(&object, now)[2], json!("Terminating"));
    assert_eq!(POD.row(&object, now)[5], json!("10.0.0.1"));
}

#[test]
fn fields_and_grace() {
    let mut object = created(json!({"containers": [{"name": "c", "image": "x"}], "nodeName": "n1"}));
    assert_eq!(
        POD.field_values(&object),
        ["n1", "Always", "default-scheduler", "", "false", "Pending", "", ""].map(str::to_owned).to_vec()
    );
    assert_eq!(POD.deletion_grace_seconds(&object, None), Some(30));
    assert_eq!(POD.deletion_grace_seconds(&object, Some(5)), Some(5));
    object.set(&["status", "phase"], "Succeeded");
    assert_eq!(POD.deletion_grace_seconds(&object, None), Some(0));
    object.remove(&["spec", "nodeName"]);
    object.set(&["status", "phase"], "Pending");
    assert_eq!(POD.deletion_grace_seconds(&object, Some(30)), Some(0));
}
