//! What a spec asks of the node is there: identity, limits in the kernel, devices, kinds of paths. One cluster serves all cases; each
//! has a namespace of its own.

use std::fs;
use std::io::Write;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::pods::{self, cgroup, get, make, sh, shell, until, until_event, until_ready, with};
use crate::support::{Cluster, Kubectl, docker, run, text, wait_for};

const MINUTE: Duration = Duration::from_secs(90);
const MIB: u64 = 1 << 20;
const HUGE_PAGES: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";

type Case = fn(&Cluster, &Kubectl);

#[test]
fn what_a_spec_asks_for_is_there() {
    let cases: [(&str, Case); 8] = [
        ("status", statuses_tell_all),
        ("groups", groups_come_from_the_image_or_not),
        ("host", namespaces_of_the_host),
        ("limits", limits_are_the_kernels),
        ("overhead", runtime_classes_cost_something),
        ("devices", devices_are_counted),
        ("paths", paths_are_of_the_kind_that_is_asked_for),
        ("huge", huge_pages_are_given_and_limited),
    ];
    let pages = HugePages::set(8);
    let cluster = Cluster::start_with(&["--pod-max-pids=64"]);
    cluster.wait_ready();
    std::thread::scope(|scope| {
        for (name, case) in cases {
            let cluster = &cluster;
            scope.spawn(move || {
                let kubectl = cluster.kubectl("1.37");
                kubectl.run(["create", "namespace", name]);
                case(cluster, &kubectl.in_namespace(name));
                kubectl.run(["delete", "namespace", name, "--timeout=90s"]);
            });
        }
    });
    drop(pages);
}

/// Pages of 2 MiB that the kernel keeps, as long as this lives.
struct HugePages(String);

impl HugePages {
    fn set(count: u32) -> Self {
        let before = fs::read_to_string(HUGE_PAGES).unwrap();
        fs::write(HUGE_PAGES, count.to_string()).unwrap();
        Self(before)
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        fs::write(HUGE_PAGES, &self.0).unwrap();
    }
}

fn statuses_tell_all(_: &Cluster, kubectl: &Kubectl) {
    make(kubectl, "p", json!({"containers": [shell("c", "sleep 1000")]}));
    until_ready(kubectl, "p");
    let conditions = "{range .status.conditions[*]}{.type}={.status} {.observedGeneration}{\"\\n\"}{end}";
    let mut seen: Vec<String> = get(kubectl, "p", conditions).lines().map(str::to_owned).collect();
    seen.sort();
    let types = ["ContainersReady", "Initialized", "PodReadyToStartContainers", "PodScheduled", "Ready"];
    assert_eq!(seen, types.map(|name| format!("{name}=True 1")));
    let one_of = "{.status.hostIP} {.status.podIP} {.metadata.generation} {.status.observedGeneration}";
    let first_of = "{.status.hostIPs[0].ip} {.status.podIPs[0].ip} 1 1";
    assert_eq!(get(kubectl, "p", one_of), get(kubectl, "p", first_of));
    // Another image in the same pod: another generation, and another instance.
    kubectl.run(["set", "image", "pod/p", "c=tools"]);
    until(
        kubectl,
        "p",
        "{.metadata.generation} {.status.observedGeneration} {.status.containerStatuses[0].restartCount}",
        "2 2 1",
    );
    until(kubectl, "p", "{.status.containerStatuses[0].image} {.status.containerStatuses[0].ready}", "tools true");
    let never = json!({"restartPolicy": "Never", "containers": [shell("c", "true")]});
    make(kubectl, "ends", never);
    until(kubectl, "ends", "{.status.phase}", "Succeeded");
    let reasons = "{.status.conditions[?(@.type==\"Ready\")].reason} {.status.conditions[?(@.type==\"Initialized\")].reason}";
    until(kubectl, "ends", reasons, "PodCompleted PodCompleted");
}

/// An image that `docker build` made on the node is used as it is; the groups that it gives a user count, unless they shall not.
fn groups_come_from_the_image_or_not(cluster: &Cluster, kubectl: &Kubectl) {
    let image = format!("built-here-{}:1", cluster.node);
    let mut build = Command::new("docker");
    build.args(["build", "-q", "--network=none", "-t", &image, "-"]).env("DOCKER_BUILDKIT", "0");
    let mut build = build.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let recipe = b"FROM busybox\nRUN echo extra:x:7777:nobody >> /etc/group\n";
    build.stdin.take().unwrap().write_all(recipe).unwrap();
    let output = build.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    for (name, policy) in [("merge", "Merge"), ("strict", "Strict")] {
        let security =
            json!({"runAsUser": 65_534, "runAsGroup": 1000, "supplementalGroups": [2000], "supplementalGroupsPolicy": policy});
        let container = json!({"name": "c", "image": image, "imagePullPolicy": "IfNotPresent", "command": ["sleep", "1000"]});
        make(kubectl, name, json!({"securityContext": security, "containers": [container]}));
    }
    for (name, groups) in [("merge", "1000 2000 7777\n"), ("strict", "1000 2000\n")] {
        until_ready(kubectl, name);
        let seen = sh(kubectl, name, "grep ^Groups /proc/1/status | tr -s '\\t ' '\\n\\n' | tail -n +2 | cat - /dev/null; id -g");
        let mut seen: Vec<&str> = seen.split_whitespace().collect();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(format!("{}\n", seen.join(" ")), groups, "{name}");
    }
    kubectl.run(["delete", "pod", "merge", "strict"]);
    docker(["rmi", &image]);
}

fn namespaces_of_the_host(_: &Cluster, kubectl: &Kubectl) {
    for (field, kind) in [("hostIPC", "ipc"), ("hostPID", "pid"), ("hostNetwork", "net")] {
        let name = kind;
        make(kubectl, name, json!({field: true, "containers": [shell("c", "sleep 1000")]}));
        until_ready(kubectl, name);
        for other in ["ipc", "pid", "net", "uts"] {
            let link = format!("/proc/self/ns/{other}");
            let (inside, outside) = (sh(kubectl, name, &format!("readlink {link}")), fs::read_link(&link).unwrap());
            // The host's name belongs to its network.
            let is_shared = other == kind || (kind == "net" && other == "uts");
            assert_eq!(Path::new(inside.trim()) == outside, is_shared, "{field}: {link} is {inside}");
        }
    }
}

fn limits_are_the_kernels(_: &Cluster, kubectl: &Kubectl) {
    let pod = |resources: Value| json!({"containers": [with(shell("c", "sleep 1000"), json!({"resources": resources}))]});
    let total = fs::read_to_string("/proc/meminfo").unwrap();
    let total: f64 = total.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() * 1024.0;
    let burstable = 1_000 - (1_000.0 * (64 * MIB) as f64 / total) as i64;
    let table = [
        ("guaranteed", json!({"limits": {"cpu": "200m", "memory": "64Mi"}}), "Guaranteed", 204, 20_000, Some(64), -997),
        (
            "burstable",
            json!({"requests": {"cpu": "100m", "memory": "64Mi"}, "limits": {"cpu": "1500m"}}),
            "Burstable",
            102,
            150_000,
            None,
            burstable.clamp(3, 999),
        ),
        ("besteffort", json!({}), "BestEffort", 2, -1, None, 1_000),
    ];
    for (name, resources, ..) in &table {
        make(kubectl, name, pod(resources.clone()));
    }
    for (name, _, class, shares, quota, memory, score) in table {
        until_ready(kubectl, name);
        assert_eq!(get(kubectl, name, "{.status.qosClass}"), class);
        let uid = get(kubectl, name, "{.metadata.uid}");
        let weight = 1 + (shares - 2) * 9_999 / 262_142;
        let of = |controller: &str, legacy: &str, unified: &str| cgroup(&uid, controller, legacy, unified);
        let cpu = of("cpu", "cpu.shares", "cpu.weight");
        assert!(cpu == shares.to_string() || cpu == weight.to_string(), "{name}: {cpu}");
        let limit = of("cpu", "cpu.cfs_quota_us", "cpu.max");
        let unified = if quota < 0 { "max 100000".to_owned() } else { format!("{quota} 100000") };
        assert!(limit == quota.to_string() || limit == unified, "{name}: {limit}");
        let bytes = of("memory", "memory.limit_in_bytes", "memory.max");
        assert_eq!(bytes == (64 * MIB).to_string(), memory.is_some(), "{name}: {bytes}");
        assert_eq!(of("pids", "pids.max", "pids.max"), "64", "{name}");
        let id = pods::container_id(kubectl, name);
        let pid = docker(["inspect", "-f", "{{.State.Pid}}", &id]);
        let seen = fs::read_to_string(format!("/proc/{}/oom_score_adj", pid.trim())).unwrap();
        // An engine that is confined itself may not lower it.
        let seen: i64 = seen.trim().parse().unwrap();
        assert!(seen == score || (score < 0 && seen >= 0), "{name}: {seen}");
    }
    let forks = "i=0; while [ $i -lt 100 ]; do sleep 1000 & i=$((i+1)); done";
    make(kubectl, "forks", json!({"restartPolicy": "Never", "containers": [shell("c", forks)]}));
    until(kubectl, "forks", "{.status.phase}", "Failed");
    assert!(kubectl.run(["logs", "forks"]).contains("can't fork"));
}

fn runtime_classes_cost_something(_: &Cluster, kubectl: &Kubectl) {
    let class = json!({"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": "costly"}, "handler": "runc",
        "overhead": {"podFixed": {"cpu": "250m", "memory": "32Mi"}}});
    kubectl.manifest(&["create"], &class.to_string()).unwrap();
    let container = with(shell("c", "sleep 1000"), json!({"resources": {"limits": {"cpu": "250m", "memory": "32Mi"}}}));
    make(kubectl, "p", json!({"runtimeClassName": "costly", "containers": [container]}));
    until_ready(kubectl, "p");
    assert_eq!(get(kubectl, "p", "{.spec.overhead.cpu} {.spec.overhead.memory}"), "250m 32Mi");
    let uid = get(kubectl, "p", "{.metadata.uid}");
    assert_eq!(cgroup(&uid, "memory", "memory.limit_in_bytes", "memory.max"), (64 * MIB).to_string());
    assert!(["50000", "50000 100000"].contains(&cgroup(&uid, "cpu", "cpu.cfs_quota_us", "cpu.max").as_str()));
    let in_container = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.max";
    assert_eq!(sh(kubectl, "p", in_container).trim(), (32 * MIB).to_string(), "the overhead is not the container's");
    kubectl.run(["delete", "runtimeclass", "costly"]);
}

fn devices_are_counted(cluster: &Cluster, kubectl: &Kubectl) {
    let capacity = r#"{"status": {"capacity": {"example.com/dongle": "2"}}}"#;
    kubectl.run(["patch", "node", &cluster.node, "--subresource=status", "-p", capacity]);
    let needs = |name: &str, count: &str| json!({"containers": [with(shell("c", "sleep 1000"), json!({"resources": {"limits": {name: count}}}))]});
    // The machine has none.
    make(kubectl, "gpu", needs("nvidia.com/gpu", "1"));
    until_event(kubectl, "gpu", "Insufficient nvidia.com/gpu");
    make(kubectl, "two", needs("example.com/dongle", "2"));
    until_ready(kubectl, "two");
    make(kubectl, "one", needs("example.com/dongle", "1"));
    until_event(kubectl, "one", "Insufficient example.com/dongle");
    kubectl.run(["delete", "pod", "two"]);
    until_ready(kubectl, "one");
    let refused = kubectl.manifest(&["create"], &pods::manifest("half", needs("example.com/dongle", "500m")).to_string());
    assert!(refused.unwrap_err().contains("must be an integer"));
}

fn paths_are_of_the_kind_that_is_asked_for(cluster: &Cluster, kubectl: &Kubectl) {
    let folder = cluster.folder.path().join("paths");
    fs::create_dir(&folder).unwrap();
    let at = |name: &str| folder.join(name).display().to_string();
    fs::create_dir(at("dir")).unwrap();
    fs::write(at("file"), "x").unwrap();
    let _socket = UnixListener::bind(at("socket")).unwrap();
    fs::File::create(at("disk.img")).unwrap().set_len(MIB).unwrap();
    let disk = run("losetup", ["--find", "--show", &at("disk.img")]).trim().to_owned();
    let right = [
        ("DirectoryOrCreate", at("made")),
        ("Directory", at("dir")),
        ("FileOrCreate", at("new")),
        ("File", at("file")),
        ("Socket", at("socket")),
        ("CharDevice", "/dev/null".to_owned()),
        ("BlockDevice", disk.clone()),
        ("", at("dir")),
    ];
    let volume =
        |number: usize, kind: &str, path: &str| json!({"name": format!("v{number}"), "hostPath": {"type": kind, "path": path}});
    let volumes: Vec<Value> = right.iter().enumerate().map(|(number, (kind, path))| volume(number, kind, path)).collect();
    let mounts: Vec<Value> = (0..right.len()).map(|n| json!({"name": format!("v{n}"), "mountPath": format!("/v{n}")})).collect();
    let tests =
        "test -d /v0 && test -d /v1 && test -f /v2 && test -f /v3 && test -S /v4 && test -c /v5 && test -b /v6 && test -d /v7";
    let container = with(shell("c", &format!("{tests} && echo all; sleep 1000")), json!({"volumeMounts": mounts}));
    make(kubectl, "right", json!({"volumes": volumes, "containers": [container]}));
    until_ready(kubectl, "right");
    wait_for("the pod to have looked", MINUTE, || match kubectl.run(["logs", "right"]) {
        all if all == "all\n" => Ok(()),
        other => Err(other),
    });
    let wrong = [
        ("Directory", at("none"), "is not a directory"),
        ("Directory", at("file"), "is not a directory"),
        ("File", at("dir"), "is not a file"),
        ("Socket", at("file"), "is not a socket file"),
        ("CharDevice", at("file"), "is not a character device"),
        ("BlockDevice", "/dev/null".to_owned(), "is not a block device"),
    ];
    let container = with(shell("c", "sleep 1000"), json!({"volumeMounts": [{"name": "v0", "mountPath": "/v"}]}));
    for (number, (kind, path, _)) in wrong.iter().enumerate() {
        make(kubectl, &format!("wrong-{number}"), json!({"volumes": [volume(0, kind, path)], "containers": [container]}));
    }
    for (number, (_, path, words)) in wrong.iter().enumerate() {
        until_event(kubectl, &format!("wrong-{number}"), &format!("hostPath type check failed: {path} {words}"));
    }
    assert!(!folder.join("none").exists());
    kubectl.run(["delete", "pods", "--all"]);
    run("losetup", ["--detach", &disk]);
}

fn huge_pages_are_given_and_limited(cluster: &Cluster, kubectl: &Kubectl) {
    wait_for("the node to offer pages", MINUTE, || {
        let seen = kubectl.jsonpath(&["node", &cluster.node], "{.status.allocatable.hugepages-2Mi}");
        if seen == "16Mi" { Ok(()) } else { Err(seen) }
    });
    let resources = json!({"limits": {"hugepages-2Mi": "4Mi", "memory": "16Mi", "cpu": "100m"}});
    let container =
        with(shell("c", "sleep 1000"), json!({"resources": resources, "volumeMounts": [{"name": "v", "mountPath": "/huge"}]}));
    make(kubectl, "p", json!({"volumes": [{"name": "v", "emptyDir": {"medium": "HugePages"}}], "containers": [container]}));
    until_ready(kubectl, "p");
    let mounted = sh(kubectl, "p", "grep ' /huge ' /proc/mounts | cut -d' ' -f1,3,4");
    assert!(mounted.starts_with("hugetlbfs hugetlbfs ") && mounted.contains("pagesize=2M"), "{mounted}");
    let alone = with(shell("c", "sleep 1"), json!({"resources": {"limits": {"hugepages-2Mi": "4Mi"}}}));
    let refused =
        kubectl.manifest(&["create"], &pods::manifest("alone", json!({"containers": [alone]})).to_string()).unwrap_err();
    assert!(refused.contains("HugePages require cpu or memory"), "{refused}");
    let many = with(shell("c", "sleep 1"), json!({"resources": {"limits": {"hugepages-2Mi": "32Mi", "memory": "16Mi"}}}));
    make(kubectl, "many", json!({"containers": [many]}));
    until_event(kubectl, "many", "Insufficient hugepages-2Mi");
}
