//! A pod that uses everything that can be combined, and pods made by chance: each is admitted and runs, or is refused with a reason.
//! The seed is printed; `ORCH_TEST_SEED` gives another.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::pods::{MINUTE, get, make, manifest, sh, shell, until, until_ready, with};
use crate::support::{Cluster, Kubectl, text, wait_for};

/// Numbers by chance, the same ones from the same seed (xorshift).
struct Chance(u64);

impl Chance {
    fn seeded(default: u64) -> Self {
        let seed = std::env::var("ORCH_TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(default);
        println!("ORCH_TEST_SEED={seed}");
        Self(seed.max(1))
    }

    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).unwrap() % bound
    }

    fn one_in(&mut self, bound: usize) -> bool {
        self.below(bound) == 0
    }

    fn pick<'a, T: ?Sized>(&mut self, list: &[&'a T]) -> &'a T {
        list[self.below(list.len())]
    }

    fn value(&mut self, list: &[Value]) -> Value {
        list[self.below(list.len())].clone()
    }
}

/// Sets a field, one time in so many.
fn maybe(chance: &mut Chance, bound: usize, object: &mut Value, field: &str, value: impl FnOnce(&mut Chance) -> Value) {
    if chance.one_in(bound) {
        object[field] = value(chance);
    }
}

/// What the pods refer to.
fn objects(kubectl: &Kubectl) {
    kubectl.run(["create", "configmap", "cm", "--from-literal=K=from-map", "--from-literal=a.b=dotted"]);
    kubectl.run(["create", "secret", "generic", "s", "--from-literal=P=hidden"]);
    kubectl.run(["create", "serviceaccount", "robot"]);
    let claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "claim"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}}});
    kubectl.manifest(&["create"], &claim.to_string()).unwrap();
    let class = json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": "some"}, "value": 10});
    kubectl.manifest(&["create"], &class.to_string()).unwrap();
    let class = json!({"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": "runc"}, "handler": "runc"});
    kubectl.manifest(&["create"], &class.to_string()).unwrap();
}

const VOLUMES: usize = 14;

/// A volume of each kind that exists here.
fn volume(chance: &mut Chance, kind: usize, host: &str) -> Value {
    let mode = |chance: &mut Chance| chance.value(&[json!(420), json!(256), json!(493)]);
    match kind {
        0 => json!({"emptyDir": {}}),
        1 => json!({"emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}),
        2 => json!({"emptyDir": {"sizeLimit": "100Mi"}}),
        3 => json!({"configMap": {"name": "cm", "defaultMode": mode(chance)}}),
        4 => json!({"configMap": {"name": "cm", "items": [{"key": "K", "path": "d/k", "mode": 256}]}}),
        5 => json!({"configMap": {"name": "absent", "optional": true}}),
        6 => json!({"secret": {"secretName": "s", "defaultMode": mode(chance)}}),
        7 => json!({"downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}},
            {"path": "cpu", "resourceFieldRef": {"containerName": "c0", "resource": "limits.cpu", "divisor": "1m"}}]}}),
        8 => {
            json!({"projected": {"defaultMode": mode(chance), "sources": [{"serviceAccountToken": {"path": "token", "expirationSeconds": 600, "audience": "x"}},
            {"configMap": {"name": "cm", "items": [{"key": "K", "path": "k"}]}}, {"secret": {"name": "s"}},
            {"downwardAPI": {"items": [{"path": "name", "fieldRef": {"fieldPath": "metadata.name"}}]}}]}})
        }
        9 => json!({"hostPath": {"path": format!("{host}/dir"), "type": "DirectoryOrCreate"}}),
        10 => json!({"hostPath": {"path": format!("{host}/by-itself")}}),
        11 => json!({"persistentVolumeClaim": {"claimName": "claim"}}),
        12 => {
            json!({"ephemeral": {"volumeClaimTemplate": {"spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}}}}})
        }
        _ => json!({"image": {"reference": "busybox:latest", "pullPolicy": "IfNotPresent"}}),
    }
}

fn is_writable(kind: usize) -> bool {
    matches!(kind, 0..=2 | 9..=12)
}

fn probe(chance: &mut Chance, is_readiness: bool) -> Value {
    let mut probe = chance.value(&[
        json!({"exec": {"command": ["true"]}}),
        json!({"exec": {"command": ["sh", "-c", "test -d /"]}}),
        json!({"tcpSocket": {"port": 9}}),
        json!({"httpGet": {"port": 9, "path": "/x", "scheme": "HTTPS", "httpHeaders": [{"name": "X-Y", "value": "z"}]}}),
        json!({"grpc": {"port": 9, "service": "s"}}),
    ]);
    maybe(chance, 2, &mut probe, "periodSeconds", |_| json!(1));
    maybe(chance, 3, &mut probe, "initialDelaySeconds", |_| json!(1));
    maybe(chance, 3, &mut probe, "timeoutSeconds", |_| json!(2));
    maybe(chance, 3, &mut probe, "failureThreshold", |_| json!(30));
    if is_readiness {
        maybe(chance, 3, &mut probe, "successThreshold", |_| json!(2));
    } else {
        maybe(chance, 3, &mut probe, "terminationGracePeriodSeconds", |_| json!(1));
    }
    probe
}

fn hook(chance: &mut Chance) -> Value {
    chance.value(&[json!({"exec": {"command": ["true"]}}), json!({"sleep": {"seconds": 1}}), json!({"sleep": {"seconds": 0}})])
}

fn environment(chance: &mut Chance) -> Value {
    let all = [
        json!({"name": "PLAIN", "value": "x $(HOSTNAME) $$(NOT)"}),
        json!({"name": "with.dots-and_more", "value": ""}),
        json!({"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}),
        json!({"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}),
        json!({"name": "LABEL", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}}),
        json!({"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}}),
        json!({"name": "MAP", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "K"}}}),
        json!({"name": "SECRET", "valueFrom": {"secretKeyRef": {"name": "s", "key": "P"}}}),
        json!({"name": "NONE", "valueFrom": {"configMapKeyRef": {"name": "absent", "key": "K", "optional": true}}}),
    ];
    Value::Array(all.into_iter().filter(|_| chance.one_in(3)).collect())
}

fn resources(chance: &mut Chance) -> Value {
    chance.value(&[
        json!({}),
        json!({"requests": {"cpu": "1m"}}),
        json!({"limits": {"cpu": "100m", "memory": "32Mi"}}),
        json!({"requests": {"cpu": "0.005", "memory": "8Mi"}, "limits": {"cpu": "1", "memory": "64Mi"}}),
        json!({"requests": {"ephemeral-storage": "1Mi"}, "limits": {"ephemeral-storage": "1Gi"}}),
    ])
}

fn container_security(chance: &mut Chance) -> Value {
    let mut context = chance.value(&[
        json!({}),
        json!({"privileged": true}),
        json!({"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}}),
        json!({"runAsUser": 1000, "runAsGroup": 2000, "runAsNonRoot": true}),
        json!({"capabilities": {"add": ["NET_ADMIN", "SYS_PTRACE"], "drop": ["CHOWN"]}}),
    ]);
    maybe(chance, 4, &mut context, "readOnlyRootFilesystem", |_| json!(true));
    maybe(chance, 4, &mut context, "procMount", |_| json!("Default"));
    maybe(chance, 4, &mut context, "seccompProfile", |chance| json!({"type": chance.pick(&["RuntimeDefault", "Unconfined"])}));
    maybe(chance, 6, &mut context, "appArmorProfile", |_| json!({"type": "Unconfined"}));
    maybe(chance, 6, &mut context, "seLinuxOptions", |_| json!({"level": "s0:c1,c2"}));
    context
}

/// What a container does: it ends well or ill, or goes on.
fn script(chance: &mut Chance, ends: bool) -> &'static str {
    if ends {
        chance.pick(&["exit 0", "env > /dev/null", "exit 3", "sleep 0.2; id"])
    } else {
        "trap 'exit 0' TERM; while :; do sleep 0.2; done"
    }
}

fn container(chance: &mut Chance, name: &str, script: &str, volumes: &[usize], with_probes: bool) -> Value {
    let mut container = shell(name, script);
    if chance.one_in(3) {
        container = json!({"name": name, "command": ["sh"], "args": ["-c", script]});
    }
    container["image"] = json!(chance.pick(&["busybox", "busybox:latest", "tools"]));
    let mounts = volumes.iter().enumerate().map(|(place, kind)| (!chance.one_in(4)).then(|| mount(chance, place, *kind)));
    let mounts: Vec<Value> = mounts.collect::<Vec<_>>().into_iter().flatten().collect();
    if !mounts.is_empty() {
        container["volumeMounts"] = json!(mounts);
    }
    container["env"] = environment(chance);
    maybe(
        chance,
        4,
        &mut container,
        "envFrom",
        |_| json!([{"prefix": "P_", "configMapRef": {"name": "cm"}}, {"secretRef": {"name": "s"}}]),
    );
    container["resources"] = resources(chance);
    maybe(chance, 2, &mut container, "securityContext", container_security);
    maybe(chance, 5, &mut container, "workingDir", |_| json!("/tmp"));
    maybe(chance, 6, &mut container, "tty", |_| json!(true));
    maybe(chance, 6, &mut container, "stdin", |_| json!(true));
    maybe(chance, 5, &mut container, "terminationMessagePolicy", |_| json!("FallbackToLogsOnError"));
    maybe(chance, 6, &mut container, "terminationMessagePath", |_| json!("/dev/last-words"));
    maybe(
        chance,
        4,
        &mut container,
        "ports",
        |_| json!([{"name": "web", "containerPort": 8080}, {"containerPort": 53, "protocol": "UDP"}]),
    );
    if with_probes {
        maybe(chance, 4, &mut container, "readinessProbe", |chance| probe(chance, true));
        maybe(chance, 6, &mut container, "livenessProbe", |chance| probe(chance, false));
        maybe(chance, 6, &mut container, "startupProbe", |chance| probe(chance, false));
        maybe(chance, 4, &mut container, "lifecycle", |chance| json!({"postStart": hook(chance), "preStop": hook(chance)}));
        maybe(chance, 6, &mut container, "resizePolicy", |_| json!([{"resourceName": "cpu", "restartPolicy": "NotRequired"}]));
    }
    container
}

fn mount(chance: &mut Chance, place: usize, kind: usize) -> Value {
    let mut mount = json!({"name": format!("v{place}"), "mountPath": format!("/mnt/v{place}")});
    if is_writable(kind) {
        maybe(chance, 4, &mut mount, "subPath", |_| json!("sub/dir"));
        if mount.get("subPath").is_none() {
            maybe(chance, 6, &mut mount, "subPathExpr", |_| json!("made-$(SUB)"));
        }
    }
    maybe(chance, 4, &mut mount, "readOnly", |_| json!(true));
    if mount.get("readOnly").is_some() {
        maybe(chance, 3, &mut mount, "recursiveReadOnly", |chance| json!(chance.pick(&["Disabled", "IfPossible"])));
    }
    maybe(chance, 6, &mut mount, "mountPropagation", |_| json!("None"));
    mount
}

fn pod_security(chance: &mut Chance, own_network: bool, own_ipc: bool) -> Value {
    let mut context = json!({});
    maybe(chance, 4, &mut context, "fsGroup", |_| json!(3000));
    maybe(chance, 4, &mut context, "fsGroupChangePolicy", |chance| json!(chance.pick(&["Always", "OnRootMismatch"])));
    maybe(chance, 4, &mut context, "supplementalGroups", |_| json!([4000, 5000]));
    maybe(chance, 6, &mut context, "seccompProfile", |_| json!({"type": "RuntimeDefault"}));
    maybe(chance, 6, &mut context, "seLinuxChangePolicy", |_| json!("Recursive"));
    if chance.one_in(5) {
        context = with(
            context,
            json!({"runAsUser": 1001, "runAsGroup": 1002, "supplementalGroupsPolicy": chance.pick(&["Merge", "Strict"])}),
        );
    }
    if own_network {
        maybe(chance, 4, &mut context, "sysctls", |_| json!([{"name": "net.ipv4.tcp_syncookies", "value": "1"}]));
    } else if own_ipc {
        maybe(chance, 4, &mut context, "sysctls", |_| json!([{"name": "kernel.shm_rmid_forced", "value": "1"}]));
    }
    context
}

fn placement(chance: &mut Chance, spec: &mut Value) {
    let selector = json!({"matchLabels": {"app": "random"}});
    maybe(chance, 5, spec, "nodeSelector", |_| json!({"kubernetes.io/os": "linux"}));
    maybe(
        chance,
        5,
        spec,
        "tolerations",
        |_| json!([{"operator": "Exists"}, {"key": "k", "operator": "Equal", "value": "v", "effect": "NoExecute", "tolerationSeconds": 60}]),
    );
    maybe(
        chance,
        5,
        spec,
        "topologySpreadConstraints",
        |_| json!([{"maxSkew": 5, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway", "labelSelector": selector}]),
    );
    maybe(chance, 4, spec, "affinity", |chance| {
        let node = json!({"key": "kubernetes.io/arch", "operator": "Exists"});
        let term = json!({"topologyKey": "kubernetes.io/hostname", "labelSelector": selector});
        chance.value(&[
            json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchExpressions": [node]}]}}}),
            json!({"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 1, "preference": {"matchExpressions": [node]}}]}}),
            json!({"podAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "podAffinityTerm": term}]}}),
            json!({"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 1, "podAffinityTerm": term}]}}),
        ])
    });
    maybe(chance, 5, spec, "priorityClassName", |_| json!("some"));
    maybe(chance, 6, spec, "runtimeClassName", |_| json!("runc"));
    maybe(chance, 6, spec, "preemptionPolicy", |_| json!("PreemptLowerPriority"));
}

fn identity(chance: &mut Chance, spec: &mut Value) {
    maybe(chance, 5, spec, "hostname", |_| json!("named"));
    maybe(chance, 5, spec, "subdomain", |_| json!("below"));
    maybe(chance, 6, spec, "setHostnameAsFQDN", |_| json!(true));
    maybe(chance, 5, spec, "hostAliases", |_| json!([{"ip": "192.0.2.7", "hostnames": ["seven", "seven.example"]}]));
    maybe(chance, 4, spec, "dnsPolicy", |chance| {
        json!(chance.pick(&["ClusterFirst", "Default", "ClusterFirstWithHostNet", "None"]))
    });
    if spec["dnsPolicy"] == "None" || chance.one_in(5) {
        spec["dnsConfig"] = json!({"nameservers": ["192.0.2.53"], "searches": ["example.org"], "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}]});
    }
    maybe(chance, 6, spec, "serviceAccountName", |_| json!("robot"));
    maybe(chance, 6, spec, "automountServiceAccountToken", |_| json!(false));
    maybe(chance, 6, spec, "enableServiceLinks", |_| json!(false));
    maybe(chance, 6, spec, "imagePullSecrets", |_| json!([{"name": "absent"}]));
    maybe(chance, 6, spec, "os", |_| json!({"name": "linux"}));
    maybe(chance, 6, spec, "readinessGates", |_| json!([{"conditionType": "example.com/ready"}]));
    maybe(chance, 8, spec, "activeDeadlineSeconds", |_| json!(600));
}

/// A spec that is right, by construction.
fn right(chance: &mut Chance, host: &str) -> Value {
    let host_network = chance.one_in(6);
    let host_ipc = chance.one_in(8);
    let host_pid = chance.one_in(8);
    let volumes: Vec<usize> = (0..chance.below(4)).map(|_| chance.below(VOLUMES)).collect();
    let ends = chance.one_in(3);
    let mut spec = json!({"restartPolicy": if ends { chance.pick(&["Never", "OnFailure"]) } else { chance.pick(&["Always", "OnFailure", "Never"]) }});
    let containers: Vec<Value> = (0..=chance.below(2))
        .map(|number| {
            let script = script(chance, ends);
            container(chance, &format!("c{number}"), script, &volumes, !ends)
        })
        .collect();
    let init: Vec<Value> = (0..chance.below(3))
        .map(|number| {
            let is_sidecar = chance.one_in(2);
            let script = if is_sidecar { script(chance, false) } else { chance.pick(&["exit 0", "sleep 0.1"]) };
            let container = container(chance, &format!("i{number}"), script, &volumes, is_sidecar);
            if is_sidecar { with(container, json!({"restartPolicy": "Always"})) } else { container }
        })
        .collect();
    spec["containers"] = json!(containers);
    if !init.is_empty() {
        spec["initContainers"] = json!(init);
    }
    for list in ["containers", "initContainers"] {
        for container in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            let expressions = container["volumeMounts"]
                .as_array()
                .is_some_and(|all| all.iter().any(|mount| mount.get("subPathExpr").is_some()));
            if expressions {
                container["env"].as_array_mut().unwrap().push(json!({"name": "SUB", "value": "here"}));
            }
            if host_network {
                // Two pods on the host's network would clash.
                container.as_object_mut().unwrap().remove("ports");
            }
        }
    }
    if !volumes.is_empty() {
        let named = volumes
            .iter()
            .enumerate()
            .map(|(place, kind)| with(volume(chance, *kind, host), json!({"name": format!("v{place}")})));
        spec["volumes"] = named.collect();
    }
    for (field, is_on) in [("hostNetwork", host_network), ("hostIPC", host_ipc), ("hostPID", host_pid)] {
        if is_on {
            spec[field] = json!(true);
        }
    }
    if !host_pid {
        maybe(chance, 6, &mut spec, "shareProcessNamespace", |_| json!(true));
    }
    spec["securityContext"] = pod_security(chance, !host_network, !host_ipc);
    placement(chance, &mut spec);
    identity(chance, &mut spec);
    spec
}

/// A value that may fit nowhere, in the place of one that did; mostly of the same type.
fn wrong_value(chance: &mut Chance, right: &Value) -> Value {
    let others =
        [Value::Null, json!(5), json!(1.5), json!("x"), json!(true), json!([]), json!({}), json!([null]), json!({"a": "b"})];
    if chance.one_in(5) {
        return chance.value(&others);
    }
    match right {
        Value::String(_) => {
            chance.value(&[json!(""), json!("Not A Name"), json!("../.."), json!("x".repeat(300)), json!("/"), json!("1")])
        }
        Value::Number(_) => chance.value(&[json!(-1), json!(0), json!(70_000), json!(4_294_967_296_u64), json!(i64::MIN)]),
        Value::Bool(is_true) => json!(!is_true),
        Value::Array(list) => chance.value(&[json!([]), json!([list.first(), list.first()])]),
        Value::Object(_) => json!({}),
        Value::Null => json!("x"),
    }
}

/// Changes something in a spec, somewhere: the result may be right or wrong.
fn spoil(chance: &mut Chance, value: &mut Value) {
    let mut place = String::new();
    for _ in 0..chance.below(5) {
        let next = match value.pointer(&place).unwrap() {
            Value::Object(map) if !map.is_empty() => {
                map.keys().nth(chance.below(map.len())).unwrap().replace('~', "~0").replace('/', "~1")
            }
            Value::Array(list) if !list.is_empty() => chance.below(list.len()).to_string(),
            _ => break,
        };
        place = format!("{place}/{next}");
    }
    let place = value.pointer_mut(&place).unwrap();
    *place = wrong_value(chance, place);
}

/// Sends all pods with server-side dry run, and returns what was said of each that was refused.
fn dry_run(kubectl: &Kubectl, pods: &[Value]) -> BTreeMap<String, String> {
    let list = json!({"apiVersion": "v1", "kind": "List", "items": pods}).to_string();
    let mut command = kubectl.command(["create", "--dry-run=server", "--validate=false", "-o", "name", "-f", "-"]);
    let mut child = command
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let output = std::thread::scope(|scope| {
        scope.spawn(move || std::io::Write::write_all(&mut stdin, list.as_bytes()).unwrap());
        child.wait_with_output().unwrap()
    });
    let (taken, said) = (text(&output.stdout), text(&output.stderr));
    let taken: std::collections::BTreeSet<&str> = taken.lines().filter_map(|line| line.strip_prefix("pod/")).collect();
    let mut refused = BTreeMap::new();
    for pod in pods {
        let name = pod["metadata"]["name"].as_str().unwrap();
        if !taken.contains(name) {
            let lines: Vec<&str> =
                said.lines().filter(|line| line.contains(&format!("\"{name}\"")) || line.contains(&format!("/{name}"))).collect();
            refused.insert(name.to_owned(), lines.join("\n"));
        }
    }
    assert_eq!(taken.len() + refused.len(), pods.len());
    refused
}

/// A cluster without a node, and what the pods refer to.
fn api_only() -> (Cluster, Kubectl) {
    let cluster = Cluster::start_with(&["--disable-agent"]);
    let kubectl = cluster.kubectl("1.33");
    objects(&kubectl);
    wait_for("the service account", MINUTE, || kubectl.try_run(["get", "serviceaccount", "default"]));
    (cluster, kubectl)
}

#[test]
fn right_pods_by_chance_are_taken() {
    const PODS: usize = 700;
    let (_cluster, kubectl) = api_only();
    let mut chance = Chance::seeded(20_261_128);
    let mut pod = |number: usize| {
        let mut pod = manifest(&format!("right-{number}"), right(&mut chance, "/tmp/none"));
        pod["metadata"]["labels"] = json!({"app": "random"});
        pod
    };
    let pods: Vec<Value> = (0..PODS).map(&mut pod).collect();
    let began = Instant::now();
    let refused: BTreeMap<String, String> = std::thread::scope(|scope| {
        let halves: Vec<_> = pods.chunks(PODS / 2).map(|half| scope.spawn(|| dry_run(&kubectl, half))).collect();
        halves.into_iter().flat_map(|half| half.join().unwrap()).collect()
    });
    println!("{PODS} pods in {:?}", began.elapsed());
    for (name, said) in &refused {
        println!("{said}\n{}", pods.iter().find(|pod| pod["metadata"]["name"] == name.as_str()).unwrap());
    }
    assert!(refused.is_empty(), "{} right pods were refused", refused.len());
    assert_eq!(kubectl.run(["get", "pods", "-o", "name"]), "", "a dry run keeps nothing");
}

#[test]
fn spoilt_pods_by_chance_are_judged() {
    const PODS: usize = 300;
    let (cluster, kubectl) = api_only();
    let mut chance = Chance::seeded(28_112_026);
    let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
    let address = format!("https://127.0.0.1:{}/api/v1/namespaces/default/pods?dryRun=All", cluster.port);
    let curl = Curl::new(&cluster, &kubectl);
    for number in 0..PODS {
        let mut spec = right(&mut chance, "/tmp/none");
        for _ in 0..=chance.below(2) {
            spoil(&mut chance, &mut spec);
        }
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": format!("spoilt-{number}")}, "spec": spec});
        let answer: Value = serde_json::from_str(&curl.post(&address, &pod.to_string())).unwrap();
        let (kind, message) = (answer["kind"].as_str().unwrap(), answer["message"].as_str().unwrap_or(""));
        let reason = answer["reason"].as_str().unwrap_or("taken");
        *reasons.entry(reason.to_owned()).or_default() += 1;
        let is_of_field =
            |cause: &Value| cause["field"].as_str().is_some_and(|field| !field.is_empty()) && cause["message"] != "";
        let is_clear = match reason {
            "taken" => kind == "Pod",
            "Invalid" => answer["details"]["causes"].as_array().is_some_and(|causes| causes.iter().all(is_of_field)),
            "BadRequest" | "Forbidden" => !message.is_empty(),
            _ => false,
        };
        assert!(is_clear, "{answer}\n{pod}");
    }
    println!("{PODS} spoilt pods: {reasons:?}");
    assert!(reasons["Invalid"] > 20 && reasons["BadRequest"] > 20, "{reasons:?}");
    assert_eq!(kubectl.run(["get", "pods", "-o", "name"]), "", "a dry run keeps nothing");
}

/// The real curl with the admin's certificate.
struct Curl(Vec<String>);

impl Curl {
    fn new(cluster: &Cluster, kubectl: &Kubectl) -> Self {
        let raw = |path: &str| kubectl.run(["config", "view", "--raw", "-o", &format!("jsonpath={path}")]);
        let mut arguments = vec!["-sS".to_owned(), "-k".to_owned(), "--max-time".to_owned(), "20".to_owned()];
        for (flag, path) in
            [("--cert", "{.users[0].user.client-certificate-data}"), ("--key", "{.users[0].user.client-key-data}")]
        {
            let file = cluster.folder.path().join(&flag[2..]);
            let decoded = crate::support::run("sh", ["-c", &format!("echo {} | base64 -d", raw(path))]);
            fs::write(&file, decoded).unwrap();
            arguments.extend([flag.to_owned(), file.display().to_string()]);
        }
        Self(arguments)
    }

    fn post(&self, url: &str, body: &str) -> String {
        let mut command = std::process::Command::new("curl");
        command.args(&self.0).args(["-H", "Content-Type: application/json", "--data-binary", "@-", url]);
        let mut child = command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped()).spawn().unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), body.as_bytes()).unwrap();
        text(&child.wait_with_output().unwrap().stdout)
    }
}

/// Where a pod stands, and why it stands there; an error while neither is known.
fn outcome(pod: &Value) -> Result<String, String> {
    let status = &pod["status"];
    let phase = status["phase"].as_str().unwrap_or("");
    let lists = ["initContainerStatuses", "containerStatuses"];
    let states = lists.iter().flat_map(|list| status[*list].as_array().into_iter().flatten());
    let reasons: Vec<String> = states
        .filter_map(|one| {
            let state = one["state"]["waiting"]["reason"].as_str().or(one["state"]["terminated"]["reason"].as_str());
            state.map(str::to_owned)
        })
        .collect();
    let is_starting = |reason: &String| matches!(reason.as_str(), "ContainerCreating" | "PodInitializing" | "Completed");
    match phase {
        "Running" | "Succeeded" => Ok(phase.to_owned()),
        "Failed" if status["reason"].is_string() || !reasons.is_empty() => {
            Ok(format!("Failed {:?} {reasons:?}", status["reason"]))
        }
        "Pending" if reasons.iter().any(|reason| !is_starting(reason)) => Ok(format!("Pending {reasons:?}")),
        _ => Err(pod["status"].to_string()),
    }
}

#[test]
fn pods_by_chance_run() {
    // Where the kernel keeps capabilities from the engine, no container can be privileged.
    let may_be_privileged = can_be_privileged();
    const PODS: usize = 30;
    const AT_ONCE: usize = 10;
    let cluster = Cluster::start();
    let kubectl = cluster.kubectl("1.33");
    objects(&kubectl);
    let host = cluster.folder.path().join("host").display().to_string();
    let mut chance = Chance::seeded(7_031_128);
    let mut specs: Vec<Value> = (0..PODS).map(|_| right(&mut chance, &host)).collect();
    if !may_be_privileged {
        specs.iter_mut().for_each(unprivileged);
    }
    let mut outcomes: BTreeMap<String, usize> = BTreeMap::new();
    for (round, batch) in specs.chunks(AT_ONCE).enumerate() {
        for (number, spec) in batch.iter().enumerate() {
            make(&kubectl, &format!("random-{round}-{number}"), spec.clone());
        }
        for (number, spec) in batch.iter().enumerate() {
            let name = format!("random-{round}-{number}");
            let found = wait_for(&format!("{name} to come to something: {spec}"), Duration::from_secs(45), || {
                let pod: Value = serde_json::from_str(&kubectl.run(["get", "pod", &name, "-o", "json"])).unwrap();
                outcome(&pod)
            });
            // Probes of a port on which nobody listens end a container, as they should.
            let wants_failure = spec.to_string().contains("exit 3") || spec.to_string().contains("\"port\":9");
            let is_expected = matches!(found.as_str(), "Running" | "Succeeded") || wants_failure;
            assert!(
                is_expected,
                "{name}: {found}: {spec}\n{}\n{}",
                get(&kubectl, &name, "{.status}"),
                crate::pods::events(&kubectl, &name)
            );
            *outcomes.entry(found).or_default() += 1;
        }
        kubectl.run(["delete", "pods", "--all", "--timeout=90s"]);
    }
    println!("{PODS} pods: {outcomes:?}");
    wait_for("nothing to be left", MINUTE, || {
        let (containers, pods) = (cluster.containers(), cluster.folder.path().join("data/agent/pods"));
        let left: Vec<_> = fs::read_dir(pods).unwrap().flatten().map(|entry| entry.path()).collect();
        if containers.is_empty() && left.is_empty() { Ok(()) } else { Err(format!("{containers:?} {left:?}")) }
    });
}

fn can_be_privileged() -> bool {
    std::process::Command::new("docker")
        .args(["run", "--rm", "--privileged", "busybox", "true"])
        .output()
        .unwrap()
        .status
        .success()
}

/// Takes away what this machine does not give to any container.
fn unprivileged(spec: &mut Value) {
    for list in ["containers", "initContainers"] {
        for container in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            if let Some(context) = container.get_mut("securityContext") {
                context.as_object_mut().unwrap().remove("privileged");
            }
        }
    }
}

fn everything(host: &str) -> Value {
    let mut volumes: Vec<Value> = Vec::new();
    let mut mounts: Vec<Value> = Vec::new();
    let mut chance = Chance(1);
    for kind in 0..VOLUMES {
        volumes.push(with(volume(&mut chance, kind, host), json!({"name": format!("v{kind}")})));
        mounts.push(json!({"name": format!("v{kind}"), "mountPath": format!("/mnt/v{kind}")}));
    }
    mounts.push(json!({"name": "v0", "mountPath": "/sub", "subPath": "a/b"}));
    mounts.push(json!({"name": "v0", "mountPath": "/expr", "subPathExpr": "of-$(POD)"}));
    mounts.push(json!({"name": "v0", "mountPath": "/ro", "readOnly": true, "recursiveReadOnly": "IfPossible"}));
    let mut env: Vec<Value> = json!([
        {"name": "A", "value": "1"}, {"name": "B", "value": "$(A)2 $$(A) $(NONE)"},
        {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
        {"name": "ACCOUNT", "valueFrom": {"fieldRef": {"fieldPath": "spec.serviceAccountName"}}},
        {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu", "divisor": "1m"}}},
        {"name": "MAP", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "K"}}},
        {"name": "SECRET", "valueFrom": {"secretKeyRef": {"name": "s", "key": "P"}}}])
    .as_array()
    .unwrap()
    .clone();
    env.push(json!({"name": "FILE", "valueFrom": {"fileKeyRef": {"volumeName": "v0", "path": "env", "key": "FROM"}}}));
    let serve = "trap 'echo bye > /mnt/v9/bye; exit 0' TERM; mkdir -p /tmp/www; echo ok > /tmp/www/ok; httpd -p 8080 -h /tmp/www; while :; do sleep 0.1; done";
    let app = with(
        shell("c0", serve),
        json!({
        "env": env, "envFrom": [{"prefix": "P_", "configMapRef": {"name": "cm"}}, {"secretRef": {"name": "s"}}],
        "volumeMounts": mounts, "workingDir": "/tmp",
        "ports": [{"name": "web", "containerPort": 8080}],
        "startupProbe": {"tcpSocket": {"port": "web"}, "periodSeconds": 1, "failureThreshold": 60},
        "readinessProbe": {"httpGet": {"path": "/ok", "port": "web"}, "periodSeconds": 1},
        "livenessProbe": {"exec": {"command": ["test", "-e", "/tmp/www/ok"]}, "periodSeconds": 2},
        "lifecycle": {"postStart": {"exec": {"command": ["sh", "-c", "echo started > /mnt/v9/started"]}}, "preStop": {"exec": {"command": ["sh", "-c", "echo stopping > /mnt/v9/stopping"]}}},
        "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"cpu": "500m", "memory": "128Mi", "ephemeral-storage": "1Gi"}},
        "resizePolicy": [{"resourceName": "cpu", "restartPolicy": "NotRequired"}],
        "securityContext": {"runAsUser": 1000, "runAsGroup": 2000, "runAsNonRoot": true, "allowPrivilegeEscalation": false,
            "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"}, "procMount": "Default"},
        "terminationMessagePath": "/dev/last-words", "terminationMessagePolicy": "FallbackToLogsOnError", "stdin": true}),
    );
    let shared = json!({"volumeMounts": [{"name": "v0", "mountPath": "/mnt/v0"}]});
    json!({
        "initContainers": [
            with(shell("i0", "echo \"FROM='of-a-file'\" > /mnt/v0/env; mkdir -p /mnt/v0/a/b; echo deep > /mnt/v0/a/b/file"), shared.clone()),
            with(shell("i1", "trap 'exit 0' TERM; echo side > /mnt/v0/side; while :; do sleep 0.1; done"),
                with(shared, json!({"restartPolicy": "Always", "startupProbe": {"exec": {"command": ["test", "-e", "/mnt/v0/side"]}, "periodSeconds": 1}})))],
        "containers": [app, with(shell("c1", "exec sleep 1234"), json!({"securityContext": {"runAsUser": 1000}}))],
        "volumes": volumes,
        "securityContext": {"fsGroup": 3000, "fsGroupChangePolicy": "OnRootMismatch", "supplementalGroups": [4000],
            "sysctls": [{"name": "net.ipv4.ip_unprivileged_port_start", "value": "80"}]},
        "shareProcessNamespace": true, "hostname": "all", "subdomain": "things", "setHostnameAsFQDN": true,
        "hostAliases": [{"ip": "192.0.2.7", "hostnames": ["seven"]}],
        "dnsConfig": {"searches": ["example.org"], "options": [{"name": "ndots", "value": "2"}]},
        "serviceAccountName": "robot", "priorityClassName": "some", "runtimeClassName": "runc", "os": {"name": "linux"},
        "nodeSelector": {"kubernetes.io/os": "linux"}, "tolerations": [{"operator": "Exists"}],
        "affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 1, "preference": {"matchExpressions": [{"key": "x", "operator": "Exists"}]}}]}},
        "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": {"app": "everything"}}}],
        "readinessGates": [{"conditionType": "example.com/gate"}], "activeDeadlineSeconds": 600, "terminationGracePeriodSeconds": 20,
        "imagePullSecrets": [{"name": "absent"}], "enableServiceLinks": true})
}

#[test]
fn a_pod_that_uses_everything() {
    let cluster = Cluster::start();
    let kubectl = cluster.kubectl("1.37");
    objects(&kubectl);
    let host = cluster.folder.path().join("host");
    fs::create_dir_all(host.join("dir")).unwrap();
    crate::support::run("chmod", ["777", host.join("dir").to_str().unwrap()]);
    make(&kubectl, "p", everything(&host.display().to_string()));
    until(&kubectl, "p", "{.status.conditions[?(@.type==\"ContainersReady\")].status}", "True");
    assert_eq!(get(&kubectl, "p", "{.status.conditions[?(@.type==\"Ready\")].reason}"), "ReadinessGatesNotReady");
    let gate = json!({"status": {"conditions": [{"type": "example.com/gate", "status": "True"}]}}).to_string();
    kubectl.run(["patch", "pod", "p", "--subresource=status", "-p", &gate]);
    until_ready(&kubectl, "p");
    let inside = |script: &str| sh(&kubectl, "p", script).trim().to_owned();
    let (ip, node) = (get(&kubectl, "p", "{.status.podIP}"), cluster.node.clone());
    let table: Vec<(&str, String)> = vec![
        ("id -u; id -g; id -G", "1000\n2000\n2000 3000 4000".to_owned()),
        (
            "echo $A-$B-$POD-$IP-$NODE-$ACCOUNT-$CPU-$MAP-$SECRET-$FILE-$P_K-$P",
            format!("1-12 $(A) $(NONE)-p-{ip}-{node}-robot-500-from-map-hidden-of-a-file-from-map-hidden"),
        ),
        ("echo $KUBERNETES_SERVICE_PORT", "443".to_owned()),
        ("cat /mnt/v0/side /sub/file; ls -d /mnt/v0/of-p", "side\ndeep\n/mnt/v0/of-p".to_owned()),
        ("echo x > /expr/f && cat /mnt/v0/of-p/f; touch /ro/x 2>&1 | grep -c Read-only", "x\n1".to_owned()),
        ("df -k /mnt/v1 | tail -1 | tr -s ' ' | cut -d' ' -f1,2", "tmpfs 1024".to_owned()),
        ("cat /mnt/v3/K /mnt/v4/d/k /mnt/v6/P; ls /mnt/v5 | wc -l", "from-mapfrom-maphidden0".to_owned()),
        (
            "cat /mnt/v7/cpu /mnt/v8/k /mnt/v8/P /mnt/v8/name; cut -d. -f1 /mnt/v8/token | cut -c1-2",
            "500from-maphiddenpey".to_owned(),
        ),
        ("cat /mnt/v9/started; test -d /mnt/v10 && echo made", "started\nmade".to_owned()),
        (
            "echo kept > /mnt/v11/f; echo own > /mnt/v12/f; cat /mnt/v11/f /mnt/v12/f; ls /mnt/v13/bin/busybox",
            "kept\nown\n/mnt/v13/bin/busybox".to_owned(),
        ),
        ("stat -c %g /mnt/v0 /mnt/v11 /mnt/v12", "3000\n3000\n3000".to_owned()),
        (
            "hostname; grep -c seven /etc/hosts; grep -c 'example.org' /etc/resolv.conf; grep ndots /etc/resolv.conf",
            "all.things.default.svc.cluster.local\n1\n1\noptions ndots:2".to_owned(),
        ),
        (
            "grep -E 'NoNewPrivs|Seccomp:|CapBnd' /proc/self/status | tr -s '\\t\\n' ' '",
            "CapBnd: 0000000000000000 NoNewPrivs: 1 Seccomp: 2".to_owned(),
        ),
        ("cat /proc/sys/net/ipv4/ip_unprivileged_port_start; pwd; ps | grep -c '[s]leep 1234'", "80\n/tmp\n1".to_owned()),
        ("cat /var/run/secrets/kubernetes.io/serviceaccount/namespace", "default".to_owned()),
        ("cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.max", (128 << 20).to_string()),
    ];
    for (script, expected) in table {
        assert_eq!(inside(script), expected, "{script}");
    }
    assert_eq!(
        get(&kubectl, "p", "{.status.qosClass} {.spec.priority} {.status.initContainerStatuses[1].started}"),
        "Burstable 10 true"
    );
    assert!(inside("id").contains("1000"));
    let began = Instant::now();
    kubectl.run(["delete", "pod", "p", "--timeout=60s"]);
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    assert_eq!(fs::read_to_string(host.join("dir/stopping")).unwrap(), "stopping\n");
    assert_eq!(fs::read_to_string(host.join("dir/bye")).unwrap(), "bye\n");
    wait_for("the pod's own claim to go", MINUTE, || {
        let claims = kubectl.run(["get", "pvc", "-o", "name"]);
        if claims == "persistentvolumeclaim/claim\n" { Ok(()) } else { Err(claims) }
    });
}

/// An image with accounts of its own, which goes with the test.
struct Accounts(String);

impl Accounts {
    fn build(user: &str) -> Self {
        let name = format!("orch-accounts-{}-{user}", std::process::id());
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("passwd"), "root:x:0:0::/:/bin/sh\nalice:x:1000:1000::/:/bin/sh\n").unwrap();
        fs::write(folder.path().join("group"), "root:x:0:\nalice:x:1000:\nwheel:x:10:alice\nvideo:x:44:bob,alice\n").unwrap();
        fs::write(folder.path().join("Dockerfile"), format!("FROM busybox\nCOPY passwd group /etc/\nUSER {user}\n")).unwrap();
        crate::support::docker(["build", "-q", "-t", &name, folder.path().to_str().unwrap()]);
        Self(name)
    }
}

impl Drop for Accounts {
    fn drop(&mut self) {
        let _removed = std::process::Command::new("docker").args(["rmi", "-f", &self.0]).output();
    }
}

#[test]
fn users_and_groups_are_those_asked_for() {
    let (named, numbered) = (Accounts::build("alice"), Accounts::build("1000"));
    let cluster = Cluster::start();
    let kubectl = cluster.kubectl("1.37");
    let id = |name: &str, image: &Accounts, pod: Value, container: Value| {
        let container = with(shell("c", "id -u; id -g; id -G"), json!({"image": image.0, "securityContext": container}));
        make(&kubectl, name, json!({"restartPolicy": "Never", "securityContext": pod, "containers": [container]}));
    };
    let done = |name: &str| {
        until(&kubectl, name, "{.status.phase}", "Succeeded");
        kubectl.run(["logs", name]).split_whitespace().map(str::to_owned).collect::<Vec<_>>().join(" ")
    };
    let both = json!({"runAsUser": 1000, "runAsGroup": 2000});
    id("merge", &numbered, json!({"supplementalGroups": [3000]}), both.clone());
    id("merge-said", &numbered, json!({"supplementalGroupsPolicy": "Merge", "fsGroup": 4000}), both.clone());
    id("strict", &numbered, json!({"supplementalGroups": [3000], "supplementalGroupsPolicy": "Strict"}), both.clone());
    id("image-user", &named, json!({}), json!({}));
    id("user-only", &named, json!({}), json!({"runAsUser": 1000}));
    id("group-only", &named, json!({}), json!({"runAsGroup": 2000}));
    id("non-root", &numbered, json!({"runAsNonRoot": true}), json!({}));
    id("unverified", &named, json!({"runAsNonRoot": true}), json!({}));
    id("root", &numbered, json!({"runAsNonRoot": true}), json!({"runAsUser": 0}));
    id("unknown", &numbered, json!({"supplementalGroupsPolicy": "Strict"}), json!({"runAsUser": 1000}));
    id("armoured", &numbered, json!({}), json!({"appArmorProfile": {"type": "RuntimeDefault"}}));
    let groups = |words: &str| {
        let mut words: Vec<String> = words.split(' ').map(str::to_owned).collect();
        words[2..].sort();
        words.dedup();
        words.join(" ")
    };
    for (name, expected) in [
        ("merge", "1000 2000 10 2000 3000 44"),
        ("merge-said", "1000 2000 10 2000 4000 44"),
        ("strict", "1000 2000 3000"),
        ("image-user", "1000 10 44"),
        ("user-only", "1000 10 44"),
        ("group-only", "1000 2000 10 2000 44"),
        ("non-root", "1000 10 44"),
    ] {
        let seen = groups(&done(name));
        // The primary group may or may not stand in the list.
        let seen =
            if expected.starts_with("1000 10") { seen.replacen("1000 1000", "1000", 1).replace(" 1000", "") } else { seen };
        assert_eq!(seen, expected, "{name}");
    }
    let waiting = |name: &str, words: &str| {
        wait_for(&format!("{name} to be refused"), MINUTE, || {
            let seen = get(
                &kubectl,
                name,
                "{.status.containerStatuses[0].state.waiting.reason} {.status.containerStatuses[0].state.waiting.message}",
            );
            if seen.starts_with("CreateContainerConfigError ") && seen.contains(words) { Ok(()) } else { Err(seen) }
        });
    };
    waiting(
        "unverified",
        "container has runAsNonRoot and image has non-numeric user (alice), cannot verify user is non-root (pod: \"unverified_default(",
    );
    waiting("root", "container's runAsUser breaks non-root policy (pod: \"root_default(");
    until(&kubectl, "unknown", "{.status.phase} {.status.reason}", "Failed SupplementalGroupsPolicyNotSupported");
    let has_apparmor = fs::read_to_string("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.trim() == "Y");
    let expected = if has_apparmor { "Succeeded " } else { "Failed AppArmor" };
    until(&kubectl, "armoured", "{.status.phase} {.status.reason}", expected);
    kubectl.run(["delete", "pods", "--all", "--timeout=60s"]);
}

#[test]
fn mounts_propagate_as_asked() {
    let cluster = Cluster::start();
    let kubectl = cluster.kubectl("1.33");
    let (shared, private) = (cluster.folder.path().join("shared"), cluster.folder.path().join("private"));
    for (folder, how) in [(&shared, "--make-shared"), (&private, "--make-private")] {
        fs::create_dir_all(folder).unwrap();
        let folder = folder.to_str().unwrap();
        crate::support::run("mount", ["-t", "tmpfs", "tmpfs", folder]);
        crate::support::run("mount", [how, folder]);
    }
    let pod = |name: &str, folder: &std::path::Path, mount: Value| {
        let privileged = json!({"privileged": mount.get("mountPropagation").is_some_and(|mode| mode == "Bidirectional")});
        let mount = with(json!({"name": "v", "mountPath": "/v"}), mount);
        let container = with(shell("c", "exec sleep 1000"), json!({"volumeMounts": [mount], "securityContext": privileged}));
        let volume = json!({"name": "v", "hostPath": {"path": folder, "type": "Directory"}});
        make(&kubectl, name, json!({"containers": [container], "volumes": [volume]}));
    };
    let is_privileged = can_be_privileged();
    pod("none", &shared, json!({}));
    pod("follows", &shared, json!({"mountPropagation": "HostToContainer"}));
    pod("both", &shared, json!({"mountPropagation": "Bidirectional"}));
    pod("cannot", &private, json!({"mountPropagation": "Bidirectional"}));
    pod("recursive", &shared, json!({"readOnly": true, "recursiveReadOnly": "Enabled"}));
    pod("perhaps", &shared, json!({"readOnly": true, "recursiveReadOnly": "IfPossible"}));
    let running: &[&str] = if is_privileged { &["none", "follows", "perhaps", "both"] } else { &["none", "follows", "perhaps"] };
    for name in running {
        until_ready(&kubectl, name);
    }
    fs::create_dir_all(shared.join("late")).unwrap();
    crate::support::run("mount", ["-t", "tmpfs", "tmpfs", shared.join("late").to_str().unwrap()]);
    fs::write(shared.join("late/file"), "seen").unwrap();
    for (name, expected) in [("none", "no"), ("follows", "seen")] {
        assert_eq!(sh(&kubectl, name, "cat /v/late/file 2>/dev/null || printf no"), expected, "{name}");
    }
    if is_privileged {
        assert_eq!(sh(&kubectl, "both", "cat /v/late/file"), "seen");
        sh(&kubectl, "both", "mkdir /v/inner && mount -t tmpfs tmpfs /v/inner && printf out > /v/inner/file");
        assert_eq!(fs::read_to_string(shared.join("inner/file")).unwrap(), "out");
        assert_eq!(sh(&kubectl, "follows", "cat /v/inner/file"), "out");
        sh(&kubectl, "both", "umount /v/inner");
    }
    crate::pods::until_event(&kubectl, "cannot", "is not a shared");
    let version = crate::support::docker(["version", "-f", "{{.Server.APIVersion}}"]);
    let minor: u32 = version.trim().split('.').nth(1).unwrap().parse().unwrap();
    let status = |name: &str| get(&kubectl, name, "{.status.containerStatuses[0].volumeMounts[0].recursiveReadOnly}");
    if minor >= 44 {
        until_ready(&kubectl, "recursive");
        assert_eq!((status("recursive").as_str(), status("perhaps").as_str()), ("Enabled", "Enabled"));
    } else {
        let words = "recursive read-only mount is not supported by the container runtime";
        crate::pods::until_event(&kubectl, "recursive", words);
        assert_eq!(status("perhaps"), "Disabled");
    }
    kubectl.run(["delete", "pods", "--all", "--timeout=60s"]);
    for folder in [shared.join("late"), shared, private] {
        crate::support::run("umount", [folder.to_str().unwrap()]);
    }
}
