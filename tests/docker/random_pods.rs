//! A pod that uses everything that can be combined, and pods made by chance: each is admitted and runs, or is refused with a reason.
//! The seed is printed; `ORCH_TEST_SEED` gives another.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::pods::{MINUTE, get, make, manifest, sh, shell, until, until_ready, with};
use crate::random_outcome::{Fate, Seen, TROUBLES, fate, troubled};
use crate::random_spec::{Chance, VOLUMES, right, volume};
use crate::support::{Cluster, Kubectl, text, wait_for};

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
    let class = json!({"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": "heavy"}, "handler": "runc",
        "overhead": {"podFixed": {"cpu": "1m", "memory": "1Mi"}}});
    kubectl.manifest(&["create"], &class.to_string()).unwrap();
    let class =
        json!({"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": "odd"}, "handler": "nothing"});
    kubectl.manifest(&["create"], &class.to_string()).unwrap();
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
    const PODS: usize = 1_000;
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

/// A number from the environment.
fn setting(name: &str, default: usize) -> usize {
    let number = std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")));
    number.unwrap_or(default)
}

/// A pod that is on its way.
struct Case {
    name: String,
    manifest: Value,
    fate: Fate,
    began: Instant,
    /// Since when it is to go.
    leaves: Option<Instant>,
}

impl Case {
    /// One in eight cannot run, each for its own reason.
    fn new(number: usize, chance: &mut Chance, host: &str, may_be_privileged: bool) -> Self {
        let mut spec = right(chance, host);
        if !may_be_privileged {
            unprivileged(&mut spec);
        }
        let mut fate = fate(&spec);
        if chance.one_in(8) {
            let index = chance.below(TROUBLES.len());
            troubled(&mut spec, index);
            fate = Fate::Trouble(index);
        }
        let name = format!("random-{number}");
        let mut manifest = manifest(&name, spec);
        manifest["metadata"]["labels"] = json!({"app": "random"});
        Self { name, manifest, fate, began: Instant::now(), leaves: None }
    }
}

/// Runs pods, so many at a time, each until it has come to what its specification says; then it is deleted.
struct Course<'a> {
    kubectl: &'a Kubectl,
    alive: Vec<Case>,
    outcomes: BTreeMap<String, usize>,
    uids: Vec<String>,
    wrong: Vec<String>,
}

impl Course<'_> {
    const TO_COME_UP: Duration = Duration::from_secs(180);
    const TO_LEAVE: Duration = Duration::from_secs(90);

    fn create(&mut self, mut cases: Vec<Case>) {
        let items: Vec<&Value> = cases.iter().map(|case| &case.manifest).collect();
        let list = json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string();
        self.kubectl.manifest(&["create", "--validate=false"], &list).unwrap_or_else(|error| panic!("{error}"));
        cases.iter_mut().for_each(|case| case.began = Instant::now());
        self.alive.extend(cases);
    }

    fn json(&self, arguments: &[&str]) -> Vec<Value> {
        let list: Value = serde_json::from_str(&self.kubectl.run([arguments, &["-o", "json"]].concat())).unwrap();
        list["items"].as_array().unwrap().clone()
    }

    /// Looks at all pods once.
    fn look(&mut self) {
        let pods: BTreeMap<String, Value> =
            self.json(&["get", "pods"]).into_iter().map(|pod| (name_of(&pod).to_owned(), pod)).collect();
        let mut warnings: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for event in self.json(&["get", "events", "--field-selector=type=Warning,involvedObject.kind=Pod"]) {
            let text = format!("{}: {}", event["reason"].as_str().unwrap_or(""), event["message"].as_str().unwrap_or(""));
            warnings.entry(event["involvedObject"]["name"].as_str().unwrap_or("").to_owned()).or_default().push(text);
        }
        let mut done = Vec::new();
        let (mut outcomes, mut wrong) = (Vec::new(), Vec::new());
        self.alive.retain_mut(|case| {
            let Some(pod) = pods.get(&case.name) else {
                if case.leaves.is_none() {
                    wrong.push(format!("{} is gone by itself", case.name));
                }
                return false;
            };
            if let Some(since) = case.leaves {
                let stays = since.elapsed() > Self::TO_LEAVE;
                if stays {
                    wrong.push(format!("{} does not go: {}\n{}", case.name, pod["metadata"], pod["status"]));
                }
                return !stays;
            }
            let none = Vec::new();
            let seen = Seen { pod, warnings: warnings.get(&case.name).unwrap_or(&none) };
            let has_met = seen.has_met(case.fate);
            if has_met {
                outcomes.push(match case.fate {
                    Fate::Trouble(index) => TROUBLES[index].name.to_owned(),
                    fate => format!("{fate:?}"),
                });
            } else if case.began.elapsed() > Self::TO_COME_UP {
                let (spec, status) = (&case.manifest["spec"], &pod["status"]);
                wrong.push(format!("{} is not {:?}: {spec}\n{status}\n{}", case.name, case.fate, seen.evidence()));
            } else {
                return true;
            }
            case.leaves = Some(Instant::now());
            done.push((case.name.clone(), pod["metadata"]["uid"].as_str().unwrap().to_owned()));
            true
        });
        outcomes.into_iter().for_each(|outcome| *self.outcomes.entry(outcome).or_default() += 1);
        wrong.iter().for_each(|wrong| println!("{wrong}\n"));
        self.wrong.extend(wrong);
        if !done.is_empty() {
            let names = done.iter().map(|(name, _)| name.as_str());
            self.kubectl.run(["delete", "pod", "--wait=false"].into_iter().chain(names).collect::<Vec<_>>());
            self.uids.extend(done.into_iter().map(|(_, uid)| uid));
        }
    }
}

fn name_of(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap()
}

/// The cgroups, at any depth, that are named after one of these pods.
fn cgroups_of(uids: &[String]) -> Vec<std::path::PathBuf> {
    let mut folders: Vec<std::path::PathBuf> = vec!["/sys/fs/cgroup".into()];
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten().filter(|entry| entry.path().is_dir()) {
            let name = entry.file_name().to_string_lossy().replace('_', "-");
            if uids.iter().any(|uid| name.contains(uid.as_str())) {
                found.push(entry.path());
            } else if !entry.path().is_symlink() {
                folders.push(entry.path());
            }
        }
    }
    found
}

/// `ORCH_TEST_PODS` pods, `ORCH_TEST_PODS_AT_ONCE` at a time.
#[test]
fn pods_by_chance_run() {
    let (pods, at_once) = (setting("ORCH_TEST_PODS", 40), setting("ORCH_TEST_PODS_AT_ONCE", 20));
    // Where the kernel keeps capabilities from the engine, no container can be privileged.
    let may_be_privileged = can_be_privileged();
    let cluster = Cluster::start();
    let kubectl = cluster.kubectl("1.33");
    objects(&kubectl);
    wait_for("the service account", MINUTE, || kubectl.try_run(["get", "serviceaccount", "default"]));
    let host = cluster.folder.path().join("host").display().to_string();
    let mut chance = Chance::seeded(7_031_128);
    let began = Instant::now();
    let mut course =
        Course { kubectl: &kubectl, alive: Vec::new(), outcomes: BTreeMap::new(), uids: Vec::new(), wrong: Vec::new() };
    let mut made = 0;
    while made < pods || !course.alive.is_empty() {
        let more = (at_once - course.alive.len().min(at_once)).min(pods - made);
        if more > 0 {
            course.create((made..made + more).map(|number| Case::new(number, &mut chance, &host, may_be_privileged)).collect());
            made += more;
        }
        course.look();
        std::thread::park_timeout(Duration::from_millis(200));
    }
    println!("{pods} pods, {at_once} at a time, in {:?}: {:?}", began.elapsed(), course.outcomes);
    assert!(course.wrong.is_empty(), "{} of {pods} pods went wrong:\n{}", course.wrong.len(), course.wrong.join("\n\n"));
    let (folder, uids) = (cluster.folder.path().display().to_string(), course.uids);
    wait_for("nothing to be left", MINUTE, || {
        let (containers, directory) = (cluster.containers(), cluster.folder.path().join("data/agent/pods"));
        let directories: Vec<_> = fs::read_dir(directory).unwrap().flatten().map(|entry| entry.path()).collect();
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mounts: Vec<&str> = table.lines().filter(|line| line.contains(&folder)).collect();
        let cgroups = cgroups_of(&uids);
        if containers.is_empty() && directories.is_empty() && mounts.is_empty() && cgroups.is_empty() {
            return Ok(());
        }
        Err(format!("{containers:?} {directories:?} {mounts:?} {cgroups:?}"))
    });
}

/// What an old client applies comes back with defaults that the API leaves alone when they are applied again.
#[test]
fn defaults_stay_what_they_are() {
    const PODS: usize = 20;
    let (cluster, _) = api_only();
    let kubectl = cluster.kubectl("1.20");
    let mut chance = Chance::seeded(11_281_130);
    for number in 0..PODS {
        let mut pod = manifest(&format!("default-{number}"), right(&mut chance, "/tmp/none"));
        pod["metadata"]["labels"] = json!({"app": "random"});
        let apply = |pod: &Value| -> Value {
            // What 1.20 checks by itself it knows from this server's OpenAPI.
            let said = kubectl.manifest(&["apply", "--dry-run=server", "-o", "json"], &pod.to_string());
            serde_json::from_str(&said.unwrap_or_else(|error| panic!("{error}\n{pod}"))).unwrap()
        };
        let first = apply(&pod);
        pod["spec"] = first["spec"].clone();
        let second = apply(&pod);
        assert_eq!(first["spec"], second["spec"], "{pod}");
    }
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
