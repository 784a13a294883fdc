//! The life of pods, with real containers and real kubectls. One cluster serves all cases: each has a namespace of its own, and they
//! run side by side.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use serde_json::{Value, json};

use crate::pods::{self, manifest, shell, with};
use crate::support::{Cluster, Kubectl, docker, sandbox_of, wait_for};

const MINUTE: Duration = Duration::from_secs(90);
/// Cases at one time.
const WIDTH: usize = 4;

struct World<'a> {
    cluster: &'a Cluster,
    kubectl: Kubectl,
}

impl World<'_> {
    /// Makes a pod of busybox containers; the spec's containers get image and pull policy.
    fn make(&self, name: &str, spec: Value) -> Result<String, String> {
        self.kubectl.manifest(&["create"], &manifest(name, spec).to_string())
    }

    fn get(&self, pod: &str, path: &str) -> String {
        pods::get(&self.kubectl, pod, path)
    }

    fn until(&self, pod: &str, path: &str, expected: &str) {
        pods::until_within(MINUTE, &self.kubectl, pod, path, expected);
    }

    fn until_ready(&self, pod: &str) {
        self.until(pod, "{.status.conditions[?(@.type==\"Ready\")].status}", "True");
    }

    fn until_event(&self, pod: &str, words: &str) {
        pods::until_event_within(MINUTE, &self.kubectl, pod, words);
    }

    fn sh(&self, pod: &str, command: &str) -> String {
        pods::sh(&self.kubectl, pod, command)
    }

    fn container_id(&self, pod: &str) -> String {
        pods::container_id(&self.kubectl, pod)
    }

    fn delete(&self, pod: &str) {
        self.kubectl.run(["delete", "pod", pod, "--timeout=60s"]);
    }
}

type Case = fn(&World<'_>);

#[test]
fn the_life_of_pods() {
    let cases: [(&str, Case); 12] = [
        ("sidecars", sidecars_come_first_and_go_last),
        ("hooks", hooks_hold_and_fail),
        ("refusals", the_node_refuses_what_it_cannot_do),
        ("security", containers_are_confined_as_asked),
        ("debug", debugging_shares_processes),
        ("resize", pods_are_resized_in_place),
        ("static", static_pods_follow_their_files),
        ("probes", probes_decide),
        ("ends", ends_say_why),
        ("invalid", wrong_specs_are_refused),
        ("values", environments_come_from_everywhere),
        ("hands", what_is_done_by_hand_heals),
    ];
    let cluster = Cluster::start_with(&["--allowed-unsafe-sysctls=net.core.*", "--system-reserved=cpu=100m,memory=100Mi"]);
    cluster.wait_ready();
    let waiting = Mutex::new(cases.into_iter());
    std::thread::scope(|scope| {
        for _ in 0..WIDTH {
            scope.spawn(|| {
                loop {
                    let Some((name, case)) = waiting.lock().unwrap().next() else { return };
                    let kubectl = cluster.kubectl("1.33");
                    kubectl.run(["create", "namespace", name]);
                    wait_for("the namespace's service account", MINUTE, || {
                        kubectl.in_namespace(name).try_run(["get", "serviceaccount", "default"])
                    });
                    case(&World { cluster: &cluster, kubectl: kubectl.in_namespace(name) });
                    kubectl.run(["delete", "namespace", name, "--timeout=90s"]);
                }
            });
        }
    });
    nothing_is_left(&cluster);
}

/// Neither containers, nor mounts, nor cgroups, nor interfaces of pods that are gone.
fn nothing_is_left(cluster: &Cluster) {
    wait_for("everything of the pods to be gone", MINUTE, || {
        let containers = cluster.containers();
        let pods = cluster.folder.path().join("data/agent/pods");
        let left: Vec<_> = fs::read_dir(&pods).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
        let folder = cluster.folder.path().display().to_string();
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let mounts: Vec<&str> = mounts.lines().filter(|line| line.contains(&folder)).collect();
        if containers.is_empty() && left.is_empty() && mounts.is_empty() {
            Ok(())
        } else {
            Err(format!("{containers:?} {left:?} {mounts:?}"))
        }
    });
}

fn sidecars_come_first_and_go_last(world: &World<'_>) {
    let folder = world.cluster.folder.path().join("sidecars");
    let log = |name: &str, seconds: u32| {
        let script = format!(
            "trap 'sleep {seconds}; echo {name} ends >> /o/log; exit 0' TERM; echo {name} begins >> /o/log; while :; do sleep 0.05; done"
        );
        with(shell(name, &script), json!({"volumeMounts": [{"name": "o", "mountPath": "/o"}]}))
    };
    let probe =
        json!({"restartPolicy": "Always", "startupProbe": {"exec": {"command": ["test", "-e", "/o/log"]}, "periodSeconds": 1}});
    let spec = json!({
        "terminationGracePeriodSeconds": 20,
        "initContainers": [
            with(log("s1", 0), probe),
            with(shell("i", "grep -q 's1 begins' /o/log && echo i ran >> /o/log"), json!({"volumeMounts": [{"name": "o", "mountPath": "/o"}]})),
            with(log("s2", 1), json!({"restartPolicy": "Always"}))],
        "containers": [log("a", 1)],
        "volumes": [{"name": "o", "hostPath": {"path": folder, "type": "DirectoryOrCreate"}}]});
    world.make("p", spec).unwrap();
    world.until_ready("p");
    assert_eq!(world.get("p", "{.status.initContainerStatuses[*].started}"), "true false true");
    assert_eq!(world.get("p", "{.status.initContainerStatuses[?(@.started)].user.linux.uid}"), "0 0");
    world.delete("p");
    let seen = fs::read_to_string(folder.join("log")).unwrap();
    assert_eq!(seen.lines().collect::<Vec<_>>(), ["s1 begins", "i ran", "s2 begins", "a begins", "a ends", "s2 ends", "s1 ends"]);
    // A job with a sidecar ends with its application.
    let spec = json!({"restartPolicy": "Never", "containers": [shell("a", "exit 0")],
        "initContainers": [with(shell("s", "sleep 1000"), json!({"restartPolicy": "Always"}))]});
    world.make("job", spec).unwrap();
    world.until("job", "{.status.phase}", "Succeeded");
    // One that fails holds the application back.
    let spec =
        json!({"restartPolicy": "Never", "initContainers": [shell("i", "exit 3")], "containers": [shell("a", "sleep 1000")]});
    world.make("failed", spec).unwrap();
    world.until("failed", "{.status.phase}", "Failed");
    assert_eq!(world.get("failed", "{.status.initContainerStatuses[0].state.terminated.exitCode}"), "3");
    assert!(world.kubectl.run(["get", "pod", "failed"]).contains("Init:Error"));
}

fn hooks_hold_and_fail(world: &World<'_>) {
    let hook = |start: &str| {
        let lifecycle = json!({"postStart": {"exec": {"command": ["sh", "-c", start]}}});
        json!({"containers": [with(shell("c", "sleep 1000"), json!({"lifecycle": lifecycle}))]})
    };
    world.make("slow", hook("while [ ! -e /go ]; do sleep 0.1; done")).unwrap();
    world.until_event("slow", "Started: Started container c");
    assert_eq!(world.get("slow", "{.status.containerStatuses[0].state.waiting.reason}"), "ContainerCreating");
    let id = docker([
        "ps",
        "-q",
        "--filter",
        &format!("label=io.kubernetes.pod.uid={}", world.get("slow", "{.metadata.uid}")),
        "--filter",
        "label=io.kubernetes.container.name=c",
    ]);
    docker(["exec", id.trim(), "touch", "/go"]);
    world.until_ready("slow");
    world.make("bad", hook("echo secret; exit 3")).unwrap();
    world.until_event("bad", "FailedPostStartHook: PostStartHook failed\n");
    world.until_event("bad", "Killing: FailedPostStartHook");
    let stop = |stop: Value| {
        json!({"terminationGracePeriodSeconds": 40, "containers": [with(shell("c", "trap 'exit 0' TERM; while :; do sleep 0.1; done"),
            json!({"lifecycle": {"preStop": stop}}))]})
    };
    world.make("sleeps", stop(json!({"sleep": {"seconds": 3}}))).unwrap();
    world.make("stopbad", stop(json!({"exec": {"command": ["false"]}}))).unwrap();
    world.until_ready("sleeps");
    world.until_ready("stopbad");
    let began = std::time::Instant::now();
    world.delete("sleeps");
    assert!((3..30).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    world.delete("stopbad");
    world.until_event("stopbad", "FailedPreStopHook: PreStopHook failed");
    // A second, shorter deletion shortens the first.
    let ignores =
        json!({"terminationGracePeriodSeconds": 600, "containers": [shell("c", "trap '' TERM; while :; do sleep 0.1; done")]});
    world.make("ignores", ignores).unwrap();
    world.until_ready("ignores");
    world.kubectl.run(["delete", "pod", "ignores", "--wait=false"]);
    world.kubectl.run(["delete", "pod", "ignores", "--grace-period=1", "--timeout=30s"]);
}

fn the_node_refuses_what_it_cannot_do(world: &World<'_>) {
    let container = || json!([shell("c", "sleep 1000")]);
    let node = &world.cluster.node;
    let table = [
        (
            "sysctl",
            json!({"securityContext": {"sysctls": [{"name": "kernel.msgmax", "value": "65536"}]}}),
            "SysctlForbidden",
            "forbidden sysctl: \"kernel.msgmax\" not allowlisted",
        ),
        (
            "affinity",
            json!({"nodeName": node, "nodeSelector": {"disk": "none"}}),
            "NodeAffinity",
            "Predicate NodeAffinity failed",
        ),
        (
            "windows",
            json!({"nodeName": node, "os": {"name": "windows"}}),
            "PodOSNotSupported",
            "Failed to admit pod as the OS field doesn't match node OS",
        ),
    ];
    for (name, mut spec, reason, message) in table {
        spec["containers"] = container();
        world.make(name, spec).unwrap();
        world.until(name, "{.status.phase} {.status.reason}", &format!("Failed {reason}"));
        assert_eq!(world.get(name, "{.status.message}"), format!("Pod was rejected: {message}"));
        world.until_event(name, &format!("{reason}: {message}"));
    }
    let big = with(shell("c", "sleep 1000"), json!({"resources": {"requests": {"cpu": "900"}}}));
    world.make("big", json!({"nodeName": node, "containers": [big]})).unwrap();
    world.until("big", "{.status.reason}", "OutOfcpu");
    assert!(world.kubectl.run(["get", "pod", "big"]).contains("OutOfcpu"));
    let unknown =
        json!({"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": "podlife"}, "handler": "nope"});
    world.kubectl.manifest(&["create"], &unknown.to_string()).unwrap();
    world.make("class", json!({"runtimeClassName": "podlife", "containers": container()})).unwrap();
    world.until_event("class", "unknown runtime handler \"nope\"");
    let missing = world.make("none", json!({"runtimeClassName": "none", "containers": container()})).unwrap_err();
    assert!(missing.contains("RuntimeClass \"none\" not found"), "{missing}");
    world.kubectl.run(["delete", "runtimeclass", "podlife"]);
    let capacity = world.kubectl.jsonpath(&["node", node], "{.status.capacity.cpu} {.status.allocatable.cpu}");
    let (all, rest) = capacity.split_once(' ').unwrap();
    assert_eq!(rest, format!("{}900m", all.parse::<u32>().unwrap() - 1), "100m are reserved for the system");
    world.kubectl.run([
        "patch",
        "node",
        node,
        "--subresource=status",
        "-p",
        r#"{"status": {"capacity": {"example.com/dongle": "2"}}}"#,
    ]);
    wait_for("the dongles to be allocatable", MINUTE, || {
        let seen = world.kubectl.jsonpath(&["node", node], "{.status.allocatable.example\\.com/dongle}");
        if seen == "2" { Ok(()) } else { Err(seen) }
    });
}

fn containers_are_confined_as_asked(world: &World<'_>) {
    let status = "grep -E 'Seccomp:|NoNewPrivs|CapEff' /proc/self/status | tr -s '\\t\\n' ' '";
    let secured = json!({"seccompProfile": {"type": "RuntimeDefault"}, "allowPrivilegeEscalation": false,
        "capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]}, "readOnlyRootFilesystem": true, "runAsUser": 1000, "runAsGroup": 2000});
    let spec = json!({
        "hostname": "h", "subdomain": "s", "hostAliases": [{"ip": "1.2.3.4", "hostnames": ["one", "two"]}],
        "securityContext": {"supplementalGroups": [3000], "fsGroup": 4000, "sysctls": [
            {"name": "net.ipv4.ip_unprivileged_port_start", "value": "99"}, {"name": "net.core.somaxconn", "value": "77"}]},
        "containers": [with(shell("c", "sleep 1000"), json!({"securityContext": secured}))]});
    world.make("p", spec).unwrap();
    world.until_ready("p");
    assert_eq!(world.sh("p", status).trim(), "CapEff: 0000000000000000 NoNewPrivs: 1 Seccomp: 2");
    assert_eq!(
        world.sh("p", "id -u; id -g; id -G").split_whitespace().collect::<Vec<_>>(),
        ["1000", "2000", "2000", "3000", "4000"]
    );
    let user = world.get("p", "{.status.containerStatuses[0].user.linux}");
    let user: Value = serde_json::from_str(&user).unwrap();
    assert_eq!(user, json!({"uid": 1000, "gid": 2000, "supplementalGroups": [2000, 3000, 4000]}));
    assert_eq!(world.sh("p", "cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/net/core/somaxconn"), "99\n77\n");
    assert!(world.sh("p", "touch /x 2>&1 || true").contains("Read-only"));
    let hosts = world.sh("p", "cat /etc/hosts");
    assert!(hosts.starts_with("# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n"), "{hosts}");
    assert!(
        hosts.ends_with("\th.s.security.svc.cluster.local\th\n\n# Entries added by HostAliases.\n1.2.3.4\tone\ttwo\n"),
        "{hosts}"
    );
    let host = json!({"hostNetwork": true, "hostPID": true, "hostAliases": [{"ip": "1.2.3.4", "hostnames": ["one"]}],
        "containers": [shell("c", "sleep 1000")]});
    world.make("host", host).unwrap();
    world.until_ready("host");
    let hosts = world.sh("host", "cat /etc/hosts");
    assert!(
        hosts.starts_with("# Kubernetes-managed hosts file (host network).\n") && hosts.ends_with("1.2.3.4\tone\n"),
        "{hosts}"
    );
    assert!(world.sh("host", "cat /proc/1/comm; grep Seccomp: /proc/self/status").contains("Seccomp:\t0"));
    let root = json!({"securityContext": {"runAsNonRoot": true}, "containers": [shell("c", "sleep 1000")]});
    world.make("root", root).unwrap();
    world.until("root", "{.status.containerStatuses[0].state.waiting.reason}", "CreateContainerConfigError");
    let message = world.get("root", "{.status.containerStatuses[0].state.waiting.message}");
    assert!(message.starts_with("container has runAsNonRoot and image will run as root (pod: \"root_security("), "{message}");
    localhost_profiles(world);
    let shared = json!({"shareProcessNamespace": true, "containers": [shell("a", "sleep 1001"), shell("b", "sleep 1002")]});
    world.make("shared", shared).unwrap();
    world.until_ready("shared");
    let seen = world.kubectl.run(["exec", "shared", "-c", "a", "--", "ps"]);
    assert!(seen.contains("sleep 1001") && seen.contains("sleep 1002"), "{seen}");
}

fn localhost_profiles(world: &World<'_>) {
    let folder = world.cluster.folder.path().join("data/agent/seccomp");
    fs::create_dir_all(&folder).unwrap();
    let profile =
        json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}]});
    fs::write(folder.join("nomkdir.json"), profile.to_string()).unwrap();
    let confined = |file: &str| {
        let context = json!({"seccompProfile": {"type": "Localhost", "localhostProfile": file}});
        json!({"securityContext": context, "containers": [shell("c", "sleep 1000")]})
    };
    world.make("local", confined("nomkdir.json")).unwrap();
    world.make("nofile", confined("none.json")).unwrap();
    world.until_ready("local");
    assert!(world.sh("local", "mkdir /x 2>&1 || true").contains("not permitted"));
    world.until("nofile", "{.status.containerStatuses[0].state.waiting.reason}", "CreateContainerError");
    world.until_event("nofile", "cannot load seccomp profile \"localhost/none.json\"");
}

fn debugging_shares_processes(world: &World<'_>) {
    world.make("p", json!({"containers": [shell("c", "sleep 1003")]})).unwrap();
    world.until_ready("p");
    for (version, name) in [("1.33", "dbg1"), ("1.37", "dbg2")] {
        let kubectl = world.cluster.kubectl(version).in_namespace("debug");
        kubectl.run([
            "debug",
            "p",
            "--image=busybox",
            "--image-pull-policy=Never",
            "--target=c",
            "--profile=general",
            "-c",
            name,
            "--",
            "sh",
            "-c",
            "ps; sleep 1",
        ]);
        let index = if name == "dbg1" { 0 } else { 1 };
        world.until("p", &format!("{{.status.ephemeralContainerStatuses[{index}].state.terminated.reason}}"), "Completed");
        let seen = kubectl.run(["logs", "p", "-c", name]);
        assert!(seen.contains("sleep 1003"), "{seen}");
        assert_eq!(world.get("p", &format!("{{.status.ephemeralContainerStatuses[{index}].user.linux.uid}}")), "0");
    }
    assert_eq!(world.get("p", "{.status.containerStatuses[0].restartCount}"), "0");
}

fn pods_are_resized_in_place(world: &World<'_>) {
    let resources = json!({"requests": {"cpu": "100m", "memory": "32Mi"}, "limits": {"cpu": "200m", "memory": "64Mi"}});
    let policy = json!([{"resourceName": "memory", "restartPolicy": "RestartContainer"}]);
    let container = with(
        shell("c", "trap 'exit 0' TERM; while :; do sleep 0.1; done"),
        json!({"resources": resources, "resizePolicy": policy}),
    );
    world.make("p", json!({"containers": [container]})).unwrap();
    world.until_ready("p");
    let id = world.container_id("p");
    let resize = |kubectl: &Kubectl, resources: Value| {
        let patch = json!({"spec": {"containers": [{"name": "c", "resources": resources}]}}).to_string();
        kubectl.try_run(["patch", "pod", "p", "--subresource=resize", "-p", &patch])
    };
    for (version, cpu, quota) in [("1.33", "400m", "40000"), ("1.37", "300m", "30000")] {
        let kubectl = world.cluster.kubectl(version).in_namespace("resize");
        resize(&kubectl, json!({"limits": {"cpu": cpu}})).unwrap();
        world.until("p", "{.status.containerStatuses[0].resources.limits.cpu}", cpu);
        assert_eq!(docker(["inspect", "-f", "{{.HostConfig.CpuQuota}}", &id]).trim(), quota);
    }
    world.until_event("p", "ResizeCompleted");
    assert_eq!(world.get("p", "{.status.containerStatuses[0].restartCount}"), "0");
    resize(&world.kubectl, json!({"limits": {"memory": "96Mi"}})).unwrap();
    world.until(
        "p",
        "{.status.containerStatuses[0].restartCount} {.status.containerStatuses[0].resources.limits.memory}",
        "1 96Mi",
    );
    let id = world.container_id("p");
    assert_eq!(docker(["inspect", "-f", "{{.HostConfig.Memory}}", &id]).trim(), (96 << 20).to_string());
    resize(&world.kubectl, json!({"requests": {"cpu": "900"}, "limits": {"cpu": "900"}})).unwrap();
    world.until("p", "{.status.conditions[?(@.type==\"PodResizePending\")].reason}", "Infeasible");
    assert_eq!(world.get("p", "{.status.containerStatuses[0].allocatedResources.cpu}"), "100m", "nothing half done");
    resize(&world.kubectl, json!({"requests": {"cpu": "150m"}, "limits": {"cpu": "500m"}})).unwrap();
    world.until("p", "{.status.conditions[?(@.type==\"PodResizePending\")].reason}", "");
    world.until("p", "{.status.containerStatuses[0].resources.limits.cpu}", "500m");
    let refused = resize(&world.kubectl, json!({"limits": {"cpu": "150m", "memory": "32Mi"}})).unwrap_err();
    assert!(refused.contains("Pod QOS Class may not change as a result of resizing"), "{refused}");
}

fn static_pods_follow_their_files(world: &World<'_>) {
    let file = world.cluster.folder.path().join("data/agent/static/web.yaml");
    let name = format!("web-{}", world.cluster.node);
    let write = |path: &Path, seconds: u32| {
        let mut pod = manifest("web", json!({"containers": [shell("c", &format!("echo {seconds}; sleep {seconds}"))]}));
        pod["metadata"]["namespace"] = json!("static");
        fs::write(path, pod.to_string()).unwrap();
    };
    write(&file, 1001);
    let kubectl = &world.kubectl;
    let seen = |path: &str| kubectl.try_run(["get", "pod", &name, "-o", &format!("jsonpath={path}")]);
    let until = |path: &str, expected: &str| {
        wait_for(&format!("the static pod: {path} to be {expected:?}"), MINUTE, || {
            let seen = seen(path)?;
            if seen == expected { Ok(()) } else { Err(seen) }
        });
    };
    until(
        "{.status.phase} {.metadata.ownerReferences[0].kind} {.metadata.annotations.kubernetes\\.io/config\\.source}",
        "Running Node file",
    );
    let (uid, id) = (seen("{.metadata.uid}").unwrap(), seen("{.status.containerStatuses[0].containerID}").unwrap());
    kubectl.run(["delete", "pod", &name, "--wait=false"]);
    wait_for("the mirror to come again", MINUTE, || {
        let now = seen("{.metadata.uid} {.status.phase}")?;
        if now.ends_with("Running") && !now.starts_with(&uid) { Ok(()) } else { Err(now) }
    });
    assert_eq!(seen("{.status.containerStatuses[0].containerID}").unwrap(), id, "the container did not notice");
    write(&file, 1002);
    until("{.status.phase} {.spec.containers[0].command[2]}", "Running echo 1002; sleep 1002");
    assert_eq!(kubectl.run(["logs", &name]), "1002\n");
    fs::write(&file, "kind: nonsense").unwrap();
    fs::remove_file(&file).unwrap();
    wait_for("the static pod to go", MINUTE, || match seen("{.status.phase}") {
        Err(error) if error.contains("NotFound") => Ok(()),
        other => Err(format!("{other:?}")),
    });
}

fn probes_decide(world: &World<'_>) {
    let web = "mkdir -p /www; echo ok > /www/ok; httpd -f -p 8080 -h /www";
    // A busy machine may need seconds for a command.
    let probe = |action: Value| with(json!({"periodSeconds": 1, "failureThreshold": 2, "timeoutSeconds": 20}), action);
    let spec = json!({"containers": [with(shell("c", web), json!({
        "ports": [{"name": "web", "containerPort": 8080}],
        "startupProbe": probe(json!({"tcpSocket": {"port": "web"}, "failureThreshold": 30})),
        "readinessProbe": probe(json!({"httpGet": {"path": "/ok", "port": "web"}})),
        "livenessProbe": with(probe(json!({"exec": {"command": ["sh", "-c", "test ! -e /ill || { echo ill; exit 1; }"]}})),
            json!({"terminationGracePeriodSeconds": 1}))}))]});
    world.make("p", spec).unwrap();
    world.until_ready("p");
    world.sh("p", "rm /www/ok");
    world.until("p", "{.status.conditions[?(@.type==\"Ready\")].status}", "False");
    world.until_event("p", "Unhealthy: Readiness probe failed: HTTP probe failed with statuscode: 404");
    world.sh("p", "echo ok > /www/ok");
    world.until_ready("p");
    world.sh("p", "touch /ill");
    world.until("p", "{.status.containerStatuses[0].restartCount}", "1");
    world.until_event("p", "Unhealthy: Liveness probe failed: ill");
    world.until_event("p", "Killing: Container c failed liveness probe, will be restarted");
    // A server that takes a moment to listen is found soon after, not a period later.
    let late = json!({"containers": [with(shell("c", &format!("sleep 2; {web}")), json!({
        "startupProbe": {"httpGet": {"path": "/ok", "port": 8080}, "periodSeconds": 600, "failureThreshold": 2},
        "readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 600, "failureThreshold": 1}}))]});
    world.make("late", late).unwrap();
    world.until_ready("late");
    assert_eq!(pods::events(&world.kubectl, "late").matches("Unhealthy").count(), 1, "looks in between are none");
    // A command that hangs is ended, and counts as a failure.
    let hangs = json!({"containers": [with(shell("c", "sleep 1000"), json!({
        "readinessProbe": {"exec": {"command": ["sleep", "777"]}, "periodSeconds": 1, "timeoutSeconds": 1, "failureThreshold": 1}}))]});
    world.make("hangs", hangs).unwrap();
    world.until_event("hangs", "Unhealthy: Readiness probe failed: command timed out");
    world.kubectl.run(["delete", "pod", "hangs", "--wait=false"]);
    let left = crate::support::run("sh", ["-c", "ps -e -o args | grep -c '^sleep 777' || true"]);
    assert!(left.trim().parse::<u32>().unwrap() <= 1, "{left}");
    let fails = json!({"containers": [with(shell("c", "sleep 1000"), json!({
        "startupProbe": {"tcpSocket": {"port": 9}, "periodSeconds": 1, "failureThreshold": 1, "terminationGracePeriodSeconds": 1}}))]});
    world.make("fails", fails).unwrap();
    world.until_event("fails", "Killing: Container c failed startup probe, will be restarted");
}

fn ends_say_why(world: &World<'_>) {
    let never = |container: Value| json!({"restartPolicy": "Never", "containers": [container]});
    let ended = "{.status.containerStatuses[0].state.terminated.reason} {.status.containerStatuses[0].state.terminated.exitCode} {.status.containerStatuses[0].state.terminated.message}";
    let fallback = json!({"terminationMessagePolicy": "FallbackToLogsOnError"});
    let allocate =
        json!({"name": "c", "image": "orch-test", "args": ["allocate", "200"], "resources": {"limits": {"memory": "32Mi"}}});
    let table = [
        ("message", never(shell("c", "echo -n bye > /dev/termination-log; exit 4")), "Failed", "Error 4 bye"),
        (
            "own-path",
            never(with(shell("c", "echo -n x > /tmp/end"), json!({"terminationMessagePath": "/tmp/end"}))),
            "Succeeded",
            "Completed 0 x",
        ),
        ("logs", never(with(shell("c", "echo last words; exit 5"), fallback)), "Failed", "Error 5 last words\n"),
        ("memory", never(allocate), "Failed", "OOMKilled 137 "),
    ];
    for (name, spec, ..) in &table {
        world.make(name, spec.clone()).unwrap();
    }
    let deadline = json!({"activeDeadlineSeconds": 2, "containers": [shell("c", "sleep 1000")]});
    world.make("deadline", deadline).unwrap();
    let rules = json!([{"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}}]);
    let ruled = with(
        shell("c", "test -e /v/x && exit 7; touch /v/x; exit 42"),
        json!({"restartPolicy": "Never", "restartPolicyRules": rules,
        "volumeMounts": [{"name": "v", "mountPath": "/v"}]}),
    );
    world
        .make("ruled", json!({"restartPolicy": "Never", "containers": [ruled], "volumes": [{"name": "v", "emptyDir": {}}]}))
        .unwrap();
    let often = json!({"restartPolicy": "OnFailure", "containers": [shell("c", "exit 1")]});
    world.make("often", often).unwrap();
    for (name, _, phase, words) in &table {
        world.until(name, "{.status.phase}", phase);
        assert_eq!(world.get(name, ended), *words, "{name}");
    }
    world.until(
        "deadline",
        "{.status.phase} {.status.reason} {.status.message}",
        "Failed DeadlineExceeded Pod was active on the node longer than the specified deadline",
    );
    world.until(
        "ruled",
        "{.status.phase} {.status.containerStatuses[0].restartCount} {.status.containerStatuses[0].state.terminated.exitCode}",
        "Failed 1 7",
    );
    world.until("often", "{.status.containerStatuses[0].state.waiting.reason}", "CrashLoopBackOff");
    let message = world.get("often", "{.status.containerStatuses[0].state.waiting.message}");
    assert!(message.contains("restarting failed container=c pod=often_ends("), "{message}");
    world.until_event("often", "BackOff: Back-off restarting failed container c in pod often_ends(");
}

fn wrong_specs_are_refused(world: &World<'_>) {
    let one = |more: Value| json!({"containers": [with(shell("c", "sleep 1"), more)]});
    let pod = |more: Value| with(one(json!({})), more);
    let port = json!({"ports": [{"containerPort": 80, "hostPort": 80}]});
    let twice = json!({"containers": [with(shell("a", ""), port.clone()), with(shell("b", ""), port)]});
    let mount = |mount: Value| {
        let mut spec = one(json!({"volumeMounts": [mount]}));
        spec["volumes"] = json!([{"name": "v", "emptyDir": {}}]);
        spec
    };
    let table = [
        (pod(json!({"hostUsers": false})), "spec.hostUsers: Invalid value: false: user namespaces of pods are not supported"),
        (
            pod(json!({"securityContext": {"windowsOptions": {"runAsUserName": "x"}}})),
            "windows options cannot be set for a linux pod",
        ),
        (one(json!({"lifecycle": {"stopSignal": "SIGUSR1"}})), "may not be set for containers with empty `spec.os.name`"),
        (
            with(one(json!({"lifecycle": {"stopSignal": "SIGFOO"}})), json!({"os": {"name": "linux"}})),
            "stopSignal: Unsupported value: \"SIGFOO\"",
        ),
        (one(json!({"resources": {"requests": {"cpu": "-1"}}})), "must be greater than or equal to 0"),
        (
            one(json!({"resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}})),
            "must be less than or equal to cpu limit of 1",
        ),
        (one(json!({"resources": {"limits": {"gpu": "1"}}})), "must be a standard resource for containers"),
        (
            mount(json!({"name": "v", "mountPath": "/x", "subPath": "/abs"})),
            "subPath: Invalid value: \"/abs\": must be a relative path",
        ),
        (mount(json!({"name": "v", "mountPath": "/x", "subPath": "a/../b"})), "must not contain '..'"),
        (mount(json!({"name": "w", "mountPath": "/x"})), "volumeMounts[0].name: Not found: \"w\""),
        (twice, "hostPort: Duplicate value"),
        (json!({"containers": [shell("Bad_Name", "")]}), "a lowercase RFC 1123 label must consist of"),
        (
            one(json!({"restartPolicyRules": [{"action": "Restart", "exitCodes": {"operator": "In", "values": [1]}}]})),
            "must specify restartPolicy",
        ),
        (
            pod(json!({"resources": {"requests": {"cpu": "1"}, "limits": {"example.com/x": "1"}}})),
            "Unsupported value: \"example.com/x\"",
        ),
    ];
    for (spec, words) in table {
        let refused = world.make("wrong", spec.clone()).expect_err(words);
        assert!(refused.contains(words), "{spec}: {refused}");
    }
    let resource = json!({"resources": {"requests": {"cpu": "1"}}});
    let too_little = with(one(resource), json!({"resources": {"requests": {"cpu": "500m"}}}));
    assert!(world.make("wrong", too_little).unwrap_err().contains("aggregate container requests of 1"));
    assert!(world.kubectl.run(["get", "pods"]).is_empty(), "nothing half done");
}

fn environments_come_from_everywhere(world: &World<'_>) {
    world.kubectl.run(["create", "configmap", "cm", "--from-literal=K=from-map", "--from-literal=a.b=dotted"]);
    let variables = json!([
        {"name": "A", "value": "$(K) $(none) $$(K)"},
        {"name": "FILE", "valueFrom": {"fileKeyRef": {"volumeName": "v", "path": "env", "key": "FROM"}}},
        {"name": "NONE", "valueFrom": {"fileKeyRef": {"volumeName": "v", "path": "other", "key": "FROM", "optional": true}}},
        {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu", "divisor": "1m"}}}]);
    let mounts = json!([{"name": "v", "mountPath": "/v"}]);
    let spec = json!({"restartPolicy": "Never", "volumes": [{"name": "v", "emptyDir": {}}],
        "initContainers": [with(shell("i", "echo \"FROM='a  b'\" > /v/env"), json!({"volumeMounts": mounts}))],
        "containers": [{"name": "c", "command": ["sh", "-c", "echo \"$A|$FILE|${NONE-unset}|$CPU|$1|$P_K|$(pwd)\"; tr '\\0' '\\n' < /proc/1/environ | grep -c ^P_"],
            "args": ["$(A)", "$(FILE)"], "env": variables, "workingDir": "/made/for/it", "resources": {"limits": {"cpu": "300m"}},
            "envFrom": [{"configMapRef": {"name": "cm"}}, {"prefix": "P_", "configMapRef": {"name": "cm"}}]}]});
    world.make("p", spec).unwrap();
    world.until("p", "{.status.phase}", "Succeeded");
    assert_eq!(world.kubectl.run(["logs", "p"]), "from-map $(none) $(K)|a  b|unset|300|a  b|from-map|/made/for/it\n2\n");
    let many: Vec<Value> = (0..10_000).map(|n| json!({"name": format!("V{n}"), "value": n.to_string()})).collect();
    let spec = json!({"restartPolicy": "Never", "containers": [with(shell("c", "env | grep -c ^V"), json!({"env": many}))]});
    world.make("many", spec).unwrap();
    world.until("many", "{.status.phase}", "Succeeded");
    assert_eq!(world.kubectl.run(["logs", "many"]), "10000\n");
    let missing = json!({"name": "X", "valueFrom": {"fileKeyRef": {"volumeName": "v", "path": "env", "key": "FROM"}}});
    let spec = json!({"volumes": [{"name": "v", "emptyDir": {}}], "containers": [with(shell("c", "sleep 1000"), json!({"env": [missing]}))]});
    world.make("missing", spec).unwrap();
    world.until(
        "missing",
        "{.status.containerStatuses[0].state.waiting.reason} {.status.containerStatuses[0].state.waiting.message}",
        "CreateContainerConfigError env file env not found in volume v",
    );
}

fn what_is_done_by_hand_heals(world: &World<'_>) {
    world.make("p", json!({"containers": [shell("c", "sleep 1000")]})).unwrap();
    world.until_ready("p");
    docker(["rm", "-f", &world.container_id("p")]);
    world.until("p", "{.status.containerStatuses[0].restartCount} {.status.containerStatuses[0].ready}", "1 true");
    let last = "{.status.containerStatuses[0].lastState.terminated.exitCode}";
    assert_eq!(world.get("p", last), "137");
    let uid = world.get("p", "{.metadata.uid}");
    docker(["kill", &sandbox_of(&uid)]);
    world.until_event("p", "SandboxChanged: Pod sandbox changed, it will be killed and re-created.");
    world.until("p", "{.status.containerStatuses[0].restartCount} {.status.containerStatuses[0].ready}", "2 true");
    let running = docker(["ps", "-q", "--filter", &format!("label=io.kubernetes.pod.uid={uid}")]);
    assert_eq!(running.lines().count(), 2);
}

/// Kills the server, its agent with it, at many moments while pods come and go. Whatever half was done, all ends well.
#[test]
fn killed_at_any_step() {
    const ROUNDS: u64 = 10;
    let mut cluster = Cluster::start();
    let kubectl = cluster.kubectl("1.33");
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let pod = |round: u64, place: u64| {
        let container = with(shell("c", "echo started; trap 'exit 0' TERM; while :; do sleep 0.1; done"), json!({}));
        let init = shell("i", "true");
        manifest(
            &format!("p{round}-{place}"),
            json!({"initContainers": [init], "containers": [container],
            "volumes": [{"name": "v", "emptyDir": {"medium": "Memory"}}]}),
        )
    };
    for round in 0..ROUNDS {
        for place in 0..2 {
            kubectl.manifest(&["create"], &pod(round, place).to_string()).unwrap();
        }
        if round > 0 {
            kubectl.run(["delete", "pod", &format!("p{}-0", round - 1), "--wait=false"]);
        }
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        std::thread::park_timeout(Duration::from_millis(50 + (seed >> 33) % 1_800));
        cluster.kill();
        cluster.spawn();
    }
    let wanted: BTreeSet<String> = (0..ROUNDS).map(|round| format!("p{round}-1")).chain([format!("p{}-0", ROUNDS - 1)]).collect();
    wait_for("the pods that were not deleted, and no other", MINUTE * 2, || {
        let seen = kubectl.run(["get", "pods", "-o", "jsonpath={range .items[*]}{.metadata.name} {.status.conditions[?(@.type==\"Ready\")].status} {.status.containerStatuses[0].restartCount}{\"\\n\"}{end}"]);
        let expected: BTreeSet<String> = wanted.iter().map(|name| format!("{name} True 0")).collect();
        let now: BTreeSet<String> = seen.lines().map(str::to_owned).collect();
        if now == expected { Ok(()) } else { Err(seen) }
    });
    // The sandbox, the init container that ended, the container: nothing was made twice, nothing is left over.
    wait_for("no more than three containers a pod", MINUTE, || {
        let count = cluster.containers().len();
        if count <= wanted.len() * 3 { Ok(()) } else { Err(format!("{count} containers for {} pods", wanted.len())) }
    });
    for name in &wanted {
        assert_eq!(kubectl.run(["logs", name]), "started\n", "{name} was started once");
    }
    kubectl.run(["delete", "pods", "--all", "--timeout=120s"]);
    nothing_is_left(&cluster);
}
