//! Wrong input: clear errors with upstream's words and field paths, nothing half done; and input at the edge of what is right, which
//! must work.

use std::fs;
use std::io::Write;
use std::process::Stdio;

use serde_json::{Value, json};

use crate::pods::{events, get, make, manifest, sh, shell, until, until_event, until_ready, with};
use crate::support::{Cluster, KUBECTLS, Kubectl, text, wait_for};

fn one(more: Value) -> Value {
    json!({"containers": [with(shell("c", "sleep 1"), more)]})
}

fn pod(more: Value) -> Value {
    with(one(json!({})), more)
}

fn mounted(mount: Value, volume: Value) -> Value {
    let container = with(shell("c", "sleep 1"), json!({"volumeMounts": [mount]}));
    json!({"containers": [container], "volumes": [with(json!({"name": "v"}), volume)]})
}

/// Specs that are wrong, and what is said of them.
fn wrong_specs() -> Vec<(Value, &'static str)> {
    let volume = |volume: Value| mounted(json!({"name": "v", "mountPath": "/v"}), volume);
    let requests = |amounts: Value| one(json!({"resources": {"requests": amounts}}));
    let env = |variable: Value| one(json!({"env": [variable]}));
    let probe = |probe: Value| one(json!({"livenessProbe": probe}));
    let context = |context: Value| one(json!({"securityContext": context}));
    vec![
        (
            requests(json!({"cpu": "abc"})),
            "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
        ),
        (requests(json!({"cpu": "1.5.5"})), "quantities must match the regular expression"),
        (requests(json!({"memory": ""})), "quantities must match the regular expression"),
        (
            requests(json!({"memory": "-1Mi"})),
            "spec.containers[0].resources.requests[memory]: Invalid value: \"-1Mi\": must be greater than or equal to 0",
        ),
        (
            requests(json!({"example.com/x": "1"})),
            "spec.containers[0].resources.limits: Required value: Limit must be set for non overcommitable resources",
        ),
        (json!({"containers": []}), "spec.containers: Required value"),
        (json!({"containers": [shell("c", ""), shell("c", "")]}), "spec.containers[1].name: Duplicate value: \"c\""),
        (json!({"containers": [shell(&"x".repeat(64), "")]}), "spec.containers[0].name: Invalid value: \"xxx"),
        (
            pod(json!({"restartPolicy": "Sometimes"})),
            "spec.restartPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"OnFailure\", \"Never\"",
        ),
        (
            pod(json!({"dnsPolicy": "Best"})),
            "spec.dnsPolicy: Unsupported value: \"Best\": supported values: \"ClusterFirstWithHostNet\", \"ClusterFirst\", \"Default\", \"None\"",
        ),
        (pod(json!({"dnsPolicy": "None"})), "spec.dnsConfig: Required value: must provide `dnsConfig` when `dnsPolicy` is None"),
        (
            pod(json!({"activeDeadlineSeconds": 0})),
            "spec.activeDeadlineSeconds: Invalid value: 0: must be between 1 and 2147483647, inclusive",
        ),
        (
            pod(json!({"nodeSelector": {"a b": "c"}})),
            "spec.nodeSelector: Invalid value: \"a b\": name part must consist of alphanumeric characters",
        ),
        (pod(json!({"nodeSelector": {"a": "x".repeat(64)}})), "must be no more than 63 bytes"),
        (pod(json!({"hostname": "Not.A.Label"})), "spec.hostname: Invalid value: \"Not.A.Label\""),
        (
            pod(json!({"hostAliases": [{"ip": "1.2.3", "hostnames": ["a"]}]})),
            "spec.hostAliases[0].ip: Invalid value: \"1.2.3\": must be a valid IP address",
        ),
        (
            pod(json!({"hostPID": true, "shareProcessNamespace": true})),
            "ShareProcessNamespace and HostPID cannot both be enabled",
        ),
        (
            pod(json!({"securityContext": {"seLinuxChangePolicy": "Never"}})),
            "spec.securityContext.seLinuxChangePolicy: Unsupported value: \"Never\": supported values: \"MountOption\", \"Recursive\"",
        ),
        (pod(json!({"schedulingGroup": {"podGroupName": "x"}})), "spec.schedulingGroup: Forbidden"),
        (
            pod(json!({"serviceAccountName": "nobody"})),
            "error looking up service account badinput/nobody: serviceaccount \"nobody\" not found",
        ),
        (pod(json!({"priorityClassName": "none"})), "no PriorityClass with name none was found"),
        (pod(json!({"runtimeClassName": "none"})), "RuntimeClass \"none\" not found"),
        (
            one(json!({"image": " busybox"})),
            "spec.containers[0].image: Invalid value: \" busybox\": must not have leading or trailing whitespace",
        ),
        (
            one(json!({"imagePullPolicy": "Maybe"})),
            "spec.containers[0].imagePullPolicy: Unsupported value: \"Maybe\": supported values: \"Always\", \"IfNotPresent\", \"Never\"",
        ),
        (
            one(json!({"ports": [{"containerPort": 70000}]})),
            "spec.containers[0].ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive",
        ),
        (
            one(json!({"ports": [{"containerPort": 80, "protocol": "tcp"}]})),
            "spec.containers[0].ports[0].protocol: Unsupported value: \"tcp\": supported values: \"SCTP\", \"TCP\", \"UDP\"",
        ),
        (
            one(json!({"ports": [{"name": "web", "containerPort": 1}, {"name": "web", "containerPort": 2}]})),
            "spec.containers[0].ports[1].name: Duplicate value: \"web\"",
        ),
        (env(json!({"name": "", "value": "x"})), "spec.containers[0].env[0].name: Required value"),
        (env(json!({"name": "A=B", "value": "x"})), "spec.containers[0].env[0].name: Invalid value: \"A=B\""),
        (
            env(json!({"name": "A", "valueFrom": {}})),
            "spec.containers[0].env[0].valueFrom: Invalid value: \"\": must specify one of",
        ),
        (
            env(json!({"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "spec.none"}}})),
            "error converting fieldPath: field label not supported: spec.none",
        ),
        (probe(json!({})), "spec.containers[0].livenessProbe: Required value: must specify a handler type"),
        (probe(json!({"exec": {"command": ["x"]}, "tcpSocket": {"port": 1}})), "may not specify more than 1 handler type"),
        (
            probe(json!({"tcpSocket": {"port": 1}, "successThreshold": 2})),
            "spec.containers[0].livenessProbe.successThreshold: Invalid value: 2: must be 1",
        ),
        (
            context(json!({"privileged": true, "allowPrivilegeEscalation": false})),
            "cannot set `allowPrivilegeEscalation` to false and `privileged` to true",
        ),
        (
            context(json!({"runAsUser": -1})),
            "spec.containers[0].securityContext.runAsUser: Invalid value: -1: must be between 0 and 2147483647, inclusive",
        ),
        (
            context(json!({"procMount": "Unmasked"})),
            "spec.containers[0].securityContext.procMount: Invalid value: \"Unmasked\": `hostUsers` must be false to use `Unmasked`",
        ),
        (
            context(json!({"seccompProfile": {"type": "Localhost", "localhostProfile": "../x"}})),
            "spec.containers[0].securityContext.seccompProfile.localhostProfile: Invalid value: \"../x\": must not contain '..'",
        ),
        (
            mounted(json!({"name": "v", "mountPath": ""}), json!({})),
            "spec.containers[0].volumeMounts[0].mountPath: Required value",
        ),
        (
            mounted(json!({"name": "v", "mountPath": "/x", "mountPropagation": "Bidirectional"}), json!({})),
            "Bidirectional mount propagation is available only to privileged containers",
        ),
        (
            mounted(json!({"name": "v", "mountPath": "/x", "subPathExpr": "../$(A)"}), json!({})),
            "spec.containers[0].volumeMounts[0].subPathExpr: Invalid value: \"../$(A)\": must not contain '..'",
        ),
        (
            mounted(json!({"name": "v", "mountPath": "/x", "recursiveReadOnly": "Enabled"}), json!({})),
            "may only be specified when readOnly is true",
        ),
        (
            volume(json!({"hostPath": {"path": "/a/../b"}})),
            "spec.volumes[0].hostPath.path: Invalid value: \"/a/../b\": must not contain '..'",
        ),
        (volume(json!({"hostPath": {"path": ""}})), "spec.volumes[0].hostPath.path: Required value"),
        (
            volume(json!({"hostPath": {"path": "/x", "type": "Pipe"}})),
            "spec.volumes[0].hostPath.type: Unsupported value: \"Pipe\"",
        ),
        (
            volume(json!({"configMap": {"name": "x", "items": [{"key": "a", "path": "../../etc/passwd"}]}})),
            "spec.volumes[0].configMap.items[0].path: Invalid value: \"../../etc/passwd\": must not contain '..'",
        ),
        (
            volume(json!({"configMap": {"name": "x", "items": [{"key": "a", "path": "/etc/passwd"}]}})),
            "spec.volumes[0].configMap.items[0].path: Invalid value: \"/etc/passwd\": must be a relative path",
        ),
        (
            volume(json!({"configMap": {"name": "x", "defaultMode": 512}})),
            "spec.volumes[0].configMap.defaultMode: Invalid value: 512: must be a number between 0 and 0777 (octal), both inclusive",
        ),
        (volume(json!({"emptyDir": {}, "hostPath": {"path": "/x"}})), "may not specify more than 1 volume type"),
        (volume(json!({"emptyDir": {"sizeLimit": "-1"}})), "spec.volumes[0].emptyDir.sizeLimit"),
        (
            volume(json!({"projected": {"sources": [{"serviceAccountToken": {"path": "t", "expirationSeconds": 10}}]}})),
            "may not specify a duration less than 10 minutes",
        ),
    ]
}

#[test]
fn wrong_input_is_refused_in_upstreams_words() {
    let cluster = Cluster::start();
    let admin = cluster.kubectl("1.33");
    admin.run(["create", "namespace", "badinput"]);
    let kubectl = admin.in_namespace("badinput");
    make(&kubectl, "right", one(json!({})));
    for (spec, words) in wrong_specs() {
        let refused = kubectl.manifest(&["create"], &manifest("wrong", spec.clone()).to_string()).expect_err(words);
        assert!(refused.contains(words), "{spec}: no {words:?} in {refused}");
    }
    names_and_sizes(&kubectl);
    texts_that_are_no_objects(&admin, &kubectl);
    for version in KUBECTLS {
        large_maps(&cluster, &cluster.kubectl(version).in_namespace("badinput"), version);
    }
    let left = kubectl.run(["get", "pods,configmaps,secrets", "-o", "name"]);
    assert_eq!(left.lines().collect::<Vec<_>>(), ["pod/right", "configmap/kube-root-ca.crt"], "nothing half done");
}

fn names_and_sizes(kubectl: &Kubectl) {
    let named = |name: &str| kubectl.manifest(&["create"], &manifest(name, one(json!({}))).to_string()).unwrap_err();
    let rule = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.'";
    for name in ["Bad_Name", "-a", "a..b", "a/b", "..", "ä"] {
        let refused = named(name);
        let is_path = refused.contains("may not contain '/'") || refused.contains("may not be '..'");
        assert!(is_path || refused.contains(&format!("metadata.name: Invalid value: \"{name}\": {rule}")), "{name}: {refused}");
    }
    let long = "a".repeat(254);
    assert!(named(&long).contains("must be no more than 253 bytes"), "{}", named(&long));
    let mut annotated = manifest("wrong", one(json!({})));
    annotated["metadata"]["annotations"] = json!({"a": "x".repeat(262_144)});
    let refused = kubectl.manifest(&["create"], &annotated.to_string()).unwrap_err();
    assert!(refused.contains("metadata.annotations: Too long: may not be more than 262144 bytes"), "{refused}");
    let mut labelled = manifest("wrong", one(json!({})));
    labelled["metadata"]["labels"] = json!({"a": "x y"});
    let refused = kubectl.manifest(&["create"], &labelled.to_string()).unwrap_err();
    assert!(
        refused.contains("metadata.labels: Invalid value: \"x y\": a valid label must be an empty string or consist of"),
        "{refused}"
    );
    let nowhere = kubectl.in_namespace("nowhere").manifest(&["create"], &manifest("wrong", one(json!({}))).to_string());
    assert!(nowhere.unwrap_err().contains("namespaces \"nowhere\" not found"));
    let many: Vec<Value> = (0..20_000).map(|n| json!({"name": format!("V{n}"), "value": "x".repeat(60)})).collect();
    let refused = kubectl.manifest(&["create"], &manifest("wrong", one(json!({"env": many}))).to_string()).unwrap_err();
    assert!(refused.contains("Too long: may not be more than 1572864 bytes"), "{refused}");
}

/// Sends a body as it is; the answer, which may be no success.
fn post(kubectl: &Kubectl, body: &[u8]) -> String {
    let mut command = kubectl.command(["create", "--raw", "/api/v1/namespaces/badinput/pods", "-f", "-"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(body).unwrap();
    let output = child.wait_with_output().unwrap();
    format!("{}{}", text(&output.stdout), text(&output.stderr))
}

fn texts_that_are_no_objects(admin: &Kubectl, kubectl: &Kubectl) {
    let deep = "[".repeat(100_000);
    let object = format!("{{\"metadata\": {}}}", "{\"a\":".repeat(50_000));
    for body in ["", "{", "null", "[]", "\u{0}", "{\"spec\": 5}", "{\"metadata\": {\"name\": 7}}", &deep, &object] {
        let answer = post(kubectl, body.as_bytes());
        assert!(answer.contains("Error from server (BadRequest)") || answer.contains("Invalid"), "{}: {answer}", body.len());
    }
    let large = post(kubectl, format!("{{\"x\": \"{}\"}}", "x".repeat(3 << 20)).as_bytes());
    assert!(large.contains("RequestEntityTooLarge") || large.contains("Request entity too large: limit is 3145728"), "{large}");
    assert_eq!(admin.run(["get", "--raw", "/readyz"]), "ok");
}

fn large_maps(cluster: &Cluster, kubectl: &Kubectl, version: &str) {
    const LIMIT: usize = 1 << 20;
    let file = cluster.folder.path().join("large");
    for (size, is_taken) in [(2 << 20, false), (LIMIT + 1, false), (LIMIT, true)] {
        fs::write(&file, "x".repeat(size)).unwrap();
        for kind in ["configmap", "secret"] {
            let from = format!("--from-file=key={}", file.display());
            let arguments = match kind {
                "secret" => vec!["create", "secret", "generic", "large", &from],
                _ => vec!["create", kind, "large", &from],
            };
            let made = kubectl.try_run(&arguments);
            match (is_taken, made) {
                (true, Ok(_)) => {}
                (false, Err(refused)) => {
                    let words = "Too long: may not be more than 1048576 bytes";
                    assert!(
                        refused.contains(words) || refused.contains("Too long: must have at most 1048576"),
                        "{version} {kind} {size}: {refused}"
                    );
                }
                (_, other) => panic!("{version} {kind} {size}: {other:?}"),
            }
        }
    }
    let spec = json!({"containers": [with(shell("c", "exec sleep 1000"), json!({"volumeMounts": [
            {"name": "m", "mountPath": "/m"}, {"name": "s", "mountPath": "/s"}]}))],
        "volumes": [{"name": "m", "configMap": {"name": "large"}}, {"name": "s", "secret": {"secretName": "large"}}]});
    make(kubectl, "large", spec);
    until_ready(kubectl, "large");
    assert_eq!(sh(kubectl, "large", "wc -c /m/key /s/key | head -2 | tr -s ' '").trim(), "1048576 /m/key\n 1048576 /s/key");
    kubectl.run(["delete", "pod/large", "configmap/large", "secret/large", "--timeout=60s"]);
}

#[test]
fn clashes_and_edges() {
    let cluster = Cluster::start();
    let kubectl = cluster.kubectl("1.37");
    let port = crate::support::free_port();
    let host_port = |name: &str| {
        let ports = json!({"ports": [{"containerPort": 80, "hostPort": port}]});
        make(&kubectl, name, json!({"containers": [with(shell("c", "exec sleep 1000"), ports)]}));
    };
    host_port("first");
    until_ready(&kubectl, "first");
    host_port("second");
    let words = "0/1 nodes are available: 1 node(s) didn't have free ports for the requested pod ports.";
    until_event(&kubectl, "second", &format!("FailedScheduling: {words}"));
    let message = get(&kubectl, "second", "{.status.conditions[?(@.type==\"PodScheduled\")].message}");
    assert!(message.starts_with(words), "{message}");
    kubectl.run(["delete", "pod", "first", "--timeout=60s"]);
    until_ready(&kubectl, "second");
    kubectl.run(["delete", "pod", "second", "--wait=false"]);

    let twice = json!({"ports": [{"containerPort": 80}, {"name": "again", "containerPort": 80}]});
    let mut warned = kubectl.command(["create", "-f", "-"]);
    let mut child = warned.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let body = manifest("twice", json!({"containers": [with(shell("c", "exec sleep 1000"), twice)]})).to_string();
    child.stdin.take().unwrap().write_all(body.as_bytes()).unwrap();
    let said = text(&child.wait_with_output().unwrap().stderr);
    assert_eq!(said.trim(), "Warning: spec.containers[0].ports[1]: duplicate port definition with spec.containers[0].ports[0]");

    // Names as long as they may be: the pod runs, and its events come.
    let long = "a".repeat(253);
    let names = json!({"containers": [shell(&"c".repeat(63), "hostname; exec sleep 1000")]});
    make(&kubectl, &long, names);
    until_ready(&kubectl, &long);
    assert_eq!(kubectl.run(["logs", &long]).trim(), "a".repeat(63));
    until_event(&kubectl, &long, &format!("Started: Started container {}", "c".repeat(63)));
    // What refers to nothing waits and says for what, and goes on when it is there.
    let volumes = json!({"containers": [with(shell("c", "exec sleep 1000"), json!({"volumeMounts": [{"name": "v", "mountPath": "/v"}],
            "env": [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "late", "key": "a"}}}]}))],
        "volumes": [{"name": "v", "secret": {"secretName": "late"}}]});
    make(&kubectl, "late", volumes);
    until_event(&kubectl, "late", "FailedMount: MountVolume.SetUp failed for volume \"v\" : secret \"late\" not found");
    kubectl.run(["create", "secret", "generic", "late", "--from-literal=a=b"]);
    until(&kubectl, "late", "{.status.containerStatuses[0].state.waiting.reason}", "CreateContainerConfigError");
    assert_eq!(get(&kubectl, "late", "{.status.containerStatuses[0].state.waiting.message}"), "configmap \"late\" not found");
    kubectl.run(["create", "configmap", "late", "--from-literal=b=c"]);
    wait_for("the missing key", crate::pods::MINUTE, || {
        let seen = get(&kubectl, "late", "{.status.containerStatuses[0].state.waiting.message}");
        if seen.starts_with("couldn't find key a in ConfigMap default/late") {
            Ok(())
        } else {
            Err(format!("{seen}; {}", events(&kubectl, "late")))
        }
    });
    kubectl.run(["patch", "configmap", "late", "-p", "{\"data\": {\"a\": \"x\"}}"]);
    until_ready(&kubectl, "late");
    kubectl.run(["delete", "pods", "--all", "--timeout=60s"]);
}
