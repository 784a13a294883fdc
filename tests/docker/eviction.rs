//! Resources of the node: pods are evicted when it runs short, and when they keep more than they may; CPUs of their own; limits of
//! whole pods. Every hog is bounded, by its own limits and by the size of what it writes.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::engine::Engine;
use crate::pods;
use crate::support::{Cluster, Kubectl, run, text, wait_for};

const MINUTE: Duration = Duration::from_secs(90);
const MIB: u64 = 1 << 20;

struct Node<'a> {
    cluster: &'a Cluster,
    kubectl: Kubectl,
}

impl<'a> Node<'a> {
    fn new(cluster: &'a Cluster) -> Self {
        Self { cluster, kubectl: cluster.kubectl("1.33") }
    }

    /// Makes a pod of busybox containers that run these commands.
    fn make(&self, name: &str, mut spec: Value) {
        for container in spec["containers"].as_array_mut().unwrap() {
            container["image"] = json!("busybox");
            container["imagePullPolicy"] = json!("Never");
            let script = container["command"].take();
            container["command"] = json!(["sh", "-c", format!("{}; sleep 3600", script.as_str().unwrap_or("true"))]);
        }
        spec["terminationGracePeriodSeconds"] = json!(1);
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec});
        self.kubectl.manifest(&["create"], &pod.to_string()).unwrap();
    }

    fn get(&self, pod: &str, path: &str) -> String {
        pods::get(&self.kubectl, pod, path)
    }

    fn until(&self, pod: &str, path: &str, expected: &str) {
        pods::until_within(MINUTE, &self.kubectl, pod, path, expected);
    }

    fn until_running(&self, pod: &str) {
        self.until(pod, "{.status.phase}", "Running");
    }

    /// Waits until the pod is evicted; returns what it is told.
    fn until_evicted(&self, pod: &str) -> String {
        self.until(pod, "{.status.phase} {.status.reason}", "Failed Evicted");
        self.get(pod, "{.status.message}")
    }

    fn until_condition(&self, condition: &str, taint: &str, expected: bool) {
        let wanted = if expected { "True" } else { "False" };
        wait_for(&format!("{condition} to be {wanted}"), MINUTE, || {
            let node = ["node", &self.cluster.node];
            let seen = self.kubectl.jsonpath(&node, &format!("{{.status.conditions[?(@.type==\"{condition}\")].status}}"));
            let taints = self.kubectl.jsonpath(&node, "{.spec.taints[*].key}");
            let is_so = seen == wanted && taints.contains(taint) == expected;
            if is_so { Ok(()) } else { Err(format!("{condition} {seen}, taints {taints}")) }
        });
    }

    fn until_event(&self, of: &str, words: &str) {
        pods::until_event_within(MINUTE, &self.kubectl, of, words);
    }

    fn sh(&self, pod: &str, command: &str) -> String {
        pods::sh(&self.kubectl, pod, command).trim().to_owned()
    }
}

fn meminfo(name: &str) -> u64 {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap();
    let line = meminfo.lines().find(|line| line.starts_with(name)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

fn total_memory() -> u64 {
    meminfo("MemTotal:")
}

/// What the node counts as available: free, or given up by the kernel first.
fn available_memory() -> u64 {
    meminfo("MemFree:") + meminfo("Inactive(file):")
}

#[test]
fn what_keeps_more_than_it_may_is_evicted() {
    let cluster = Cluster::start();
    let node = Node::new(&cluster);
    let storage = |limit: &str| json!({"limits": {"ephemeral-storage": limit}, "requests": {"ephemeral-storage": "0"}});
    let write = |path: &str, kib: u32| format!("dd if=/dev/zero of={path} bs=1k count={kib} 2>/dev/null");
    let cache = |limit: &str| json!([{"name": "cache", "emptyDir": {"sizeLimit": limit}}]);
    let mounts = json!([{"name": "cache", "mountPath": "/cache"}]);
    node.make(
        "volume",
        json!({"volumes": cache("1Mi"), "containers": [{"name": "c", "command": write("/cache/f", 3_000), "volumeMounts": mounts}]}),
    );
    node.make(
        "modest",
        json!({"volumes": cache("8Mi"), "containers": [{"name": "c", "command": write("/cache/f", 3_000), "volumeMounts": mounts,
            "resources": storage("20Mi")}]}),
    );
    node.make("layer", json!({"containers": [{"name": "c", "command": write("/f", 5_000), "resources": storage("2Mi")}]}));
    node.make(
        "container",
        json!({"containers": [{"name": "a", "command": write("/f", 3_000), "resources": storage("1Mi")},
            {"name": "b", "resources": storage("50Mi")}]}),
    );
    assert_eq!(node.until_evicted("volume"), "Usage of EmptyDir volume \"cache\" exceeds the limit \"1Mi\". ");
    let words = "Pod ephemeral local storage usage exceeds the total limit of containers 2Mi. ";
    assert_eq!(node.until_evicted("layer"), words);
    assert_eq!(node.until_evicted("container"), "Container a exceeded its local ephemeral storage limit \"1Mi\". ");
    node.until_event("layer", &format!("Evicted: {}", words.trim_end()));
    assert_eq!(
        node.get("volume", "{.status.conditions[?(@.type==\"DisruptionTarget\")].status}"),
        "",
        "it was the pod's own fault"
    );
    assert_eq!(node.get("modest", "{.status.phase}"), "Running");
    let uid = node.get("volume", "{.metadata.uid}");
    let volumes = cluster.folder.path().join("data/agent/pods").join(uid).join("volumes");
    wait_for("the volumes of the evicted pod to be gone", MINUTE, || {
        if volumes.exists() { Err(format!("{} is there", volumes.display())) } else { Ok(()) }
    });
}

/// A pod that takes so much memory, in a volume, and asked for little.
fn hog(mib: u32) -> Value {
    let command = format!("dd if=/dev/zero of=/m/f bs=1M count={mib} 2>/dev/null");
    json!({"volumes": [{"name": "m", "emptyDir": {"medium": "Memory", "sizeLimit": format!("{}Mi", mib + 100)}}],
        "containers": [{"name": "c", "command": command, "volumeMounts": [{"name": "m", "mountPath": "/m"}],
            "resources": {"requests": {"memory": "16Mi"}, "limits": {"memory": format!("{}Mi", mib + 200)}}}]})
}

/// A node with a threshold of memory, below which a hog of this size presses it. What others do on the machine may press it as well:
/// only where it does not count is it said that the pressure ends, and that nobody else is evicted.
fn memory_pressure(flags: &[&str], threshold: &str, hog_mib: u32, is_shared_with_others: bool) {
    let mut all = vec!["--eviction-pressure-transition-period=15s"];
    all.extend(flags);
    let cluster = Cluster::start_with(&all);
    cluster.wait_ready();
    let node = Node::new(&cluster);
    let same = json!({"cpu": "10m", "memory": "32Mi"});
    node.make("guaranteed", json!({"containers": [{"name": "c", "resources": {"requests": same, "limits": same}}]}));
    node.until_running("guaranteed");
    node.make("hog", hog(hog_mib));
    let message = node.until_evicted("hog");
    let words = format!("The node was low on resource: memory. Threshold quantity: {threshold}, available: ");
    assert!(message.starts_with(&words), "{message}");
    assert!(message.contains("Container c was using "), "{message}");
    assert!(message.ends_with("request is 16Mi, has larger consumption of memory. "), "{message}");
    let disruption = "{.status.conditions[?(@.type==\"DisruptionTarget\")]['status','reason']}";
    assert_eq!(node.get("hog", disruption), "True TerminationByKubelet");
    node.until_condition("MemoryPressure", "node.kubernetes.io/memory-pressure", true);
    let here = json!(cluster.node);
    node.make("late", json!({"nodeName": here, "containers": [{"name": "c"}]}));
    assert_eq!(node.until_evicted("late"), "Pod was rejected: The node had condition: [MemoryPressure]. ");
    node.until_event(&cluster.node, "EvictionThresholdMet: Attempting to reclaim memory");
    node.until_event(&cluster.node, "NodeHasInsufficientMemory");
    if is_shared_with_others {
        return;
    }
    node.until_condition("MemoryPressure", "node.kubernetes.io/memory-pressure", false);
    node.until_event(&cluster.node, "NodeHasSufficientMemory");
    assert_eq!(node.get("guaranteed", "{.status.phase}"), "Running");
    node.make("later", json!({"nodeName": here, "containers": [{"name": "c"}]}));
    node.until_running("later");
}

#[test]
fn a_machine_short_of_memory_ends_who_uses_more_than_it_asked_for() {
    let threshold = format!("{}Mi", available_memory() / MIB - 1_024);
    memory_pressure(&[&format!("--eviction-hard=memory.available<{threshold}")], &threshold, 2_048, true);
}

#[test]
fn pods_that_use_up_what_is_theirs_do_not_touch_what_is_kept() {
    let kept = format!("--system-reserved=memory={}Mi", total_memory() / MIB - 2_048);
    let soft = [
        kept.as_str(),
        // The cgroup of all pods is that of other clusters on this machine too: it is evictions that keep this one within its own.
        "--enforce-node-allocatable=none",
        "--eviction-hard=",
        "--eviction-soft=allocatableMemory.available<1800Mi",
        "--eviction-soft-grace-period=allocatableMemory.available=3s",
        "--eviction-max-pod-grace-period=5",
    ];
    memory_pressure(&soft, "1800Mi", 350, false);
}

/// Processes that run on the machine, threads counted.
fn processes() -> u64 {
    let load = fs::read_to_string("/proc/loadavg").unwrap();
    load.split(' ').nth(3).unwrap().split('/').nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_node_short_of_processes_ends_who_has_most() {
    let number = |path: &str| fs::read_to_string(path).unwrap().trim().parse::<u64>().unwrap();
    let most = number("/proc/sys/kernel/pid_max").min(number("/proc/sys/kernel/threads-max"));
    // What others do on the machine at the same time takes some hundreds.
    let threshold = most - processes() - 1_500;
    let hard = format!("--eviction-hard=pid.available<{threshold}");
    let cluster = Cluster::start_with(&[&hard, "--eviction-pressure-transition-period=15s"]);
    cluster.wait_ready();
    let node = Node::new(&cluster);
    node.make("modest", json!({"containers": [{"name": "c"}]}));
    node.until_running("modest");
    let forks = "i=0; while [ $i -lt 2500 ]; do sleep 1000 & i=$((i+1)); done";
    node.make("hog", json!({"containers": [{"name": "c", "command": forks}]}));
    let message = node.until_evicted("hog");
    let words = format!("The node was low on resource: pids. Threshold quantity: {threshold}, available: ");
    assert!(message.starts_with(&words), "{message}");
    node.until_condition("PIDPressure", "node.kubernetes.io/pid-pressure", true);
    node.until_condition("PIDPressure", "node.kubernetes.io/pid-pressure", false);
    assert_eq!(node.get("modest", "{.status.phase}"), "Running");
}

/// The engine's images and containers are on a small disk of their own.
#[test]
fn a_node_whose_engine_is_short_of_disk_ends_who_fills_it() {
    let mut engine = Engine::new();
    small_disk(&engine.path(""));
    engine.start();
    run("sh", ["-c", &format!("docker save busybox | docker -H {} load", engine.host())]);
    let host = format!("--docker-host={}", engine.host());
    let flags = ["--eviction-hard=imagefs.available<200Mi", "--eviction-pressure-transition-period=15s", &host];
    let cluster = Cluster::start_with(&flags);
    cluster.wait_ready();
    let node = Node::new(&cluster);
    node.make("modest", json!({"containers": [{"name": "c"}]}));
    node.until_running("modest");
    // Written into the container's own layer, which is where the images are.
    node.make("hog", json!({"containers": [{"name": "c", "command": "dd if=/dev/zero of=/f bs=1M count=280 2>/dev/null"}]}));
    let message = node.until_evicted("hog");
    let words = "The node was low on resource: ephemeral-storage. Threshold quantity: 200Mi, available: ";
    assert!(message.starts_with(words), "{message}");
    node.until_condition("DiskPressure", "node.kubernetes.io/disk-pressure", true);
    node.until_condition("DiskPressure", "node.kubernetes.io/disk-pressure", false);
    assert_eq!(node.get("modest", "{.status.phase}"), "Running");
    node.kubectl.run(["delete", "pod", "modest", "hog"]);
}

/// Puts a small file system where the cluster, or an engine, keeps its data.
fn small_disk(folder: &Path) {
    let (image, data) = (folder.join("disk.img"), folder.join("data"));
    fs::File::create(&image).unwrap().set_len(512 * MIB).unwrap();
    fs::create_dir(&data).unwrap();
    run("mkfs.ext4", ["-q".as_ref(), "-m0".as_ref(), image.as_os_str()]);
    run("mount", ["-o".as_ref(), "loop".as_ref(), image.as_os_str(), data.as_os_str()]);
}

#[test]
fn a_node_short_of_disk_ends_who_fills_it() {
    let cluster =
        Cluster::start_in(small_disk, &["--eviction-hard=nodefs.available<200Mi", "--eviction-pressure-transition-period=15s"]);
    cluster.wait_ready();
    let node = Node::new(&cluster);
    let volumes = json!([{"name": "v", "emptyDir": {}}]);
    let write = |mib: u32| {
        let command = format!("dd if=/dev/zero of=/v/f bs=1M count={mib} 2>/dev/null");
        json!([{"name": "c", "command": command, "volumeMounts": [{"name": "v", "mountPath": "/v"}]}])
    };
    node.make("modest", json!({"volumes": volumes, "containers": write(1)}));
    node.until_running("modest");
    node.make("hog", json!({"volumes": volumes, "containers": write(280)}));
    let message = node.until_evicted("hog");
    let words = "The node was low on resource: ephemeral-storage. Threshold quantity: 200Mi, available: ";
    assert!(message.starts_with(words), "{message}");
    node.until_condition("DiskPressure", "node.kubernetes.io/disk-pressure", true);
    node.make("late", json!({"nodeName": cluster.node, "containers": [{"name": "c", "resources": {"requests": {"cpu": "1m"}}}]}));
    assert_eq!(node.until_evicted("late"), "Pod was rejected: The node had condition: [DiskPressure]. ");
    node.until_condition("DiskPressure", "node.kubernetes.io/disk-pressure", false);
    assert_eq!(node.get("modest", "{.status.phase}"), "Running");
}

#[test]
fn whole_cpus_are_nobody_elses() {
    let online = fs::read_to_string("/sys/devices/system/cpu/online").unwrap();
    assert!(online.trim() != "0", "a machine of two CPUs at least");
    let mut cluster = Cluster::start_with(&["--cpu-manager-policy=static", "--reserved-cpus=0"]);
    cluster.wait_ready();
    let allowed = |cluster: &Cluster, pod: &str| Node::new(cluster).sh(pod, "grep Cpus_allowed_list /proc/self/status | cut -f2");
    let until_allowed = |cluster: &Cluster, pod: &str, check: &dyn Fn(&str) -> bool| {
        wait_for(&format!("{pod} to be moved"), MINUTE, || {
            let seen = allowed(cluster, pod);
            if check(&seen) { Ok(()) } else { Err(seen) }
        });
    };
    {
        let node = Node::new(&cluster);
        node.make("shared", json!({"containers": [{"name": "c"}]}));
        node.until_running("shared");
        assert_eq!(allowed(&cluster, "shared"), online.trim(), "all are shared while nobody has any");
        let whole = json!({"cpu": "1", "memory": "32Mi"});
        node.make("own", json!({"containers": [{"name": "c", "resources": {"requests": whole, "limits": whole}}]}));
        node.until_running("own");
    }
    let own = allowed(&cluster, "own");
    assert!(own.parse::<u32>().is_ok_and(|cpu| cpu > 0), "one CPU that is not kept: {own}");
    let is_apart = |seen: &str| seen != online.trim() && !seen.split([',', '-']).any(|cpu| cpu == own);
    until_allowed(&cluster, "shared", &is_apart);
    cluster.kill();
    cluster.spawn();
    cluster.wait_ready();
    wait_for("the agent to know its pods again", MINUTE, || cluster.kubectl("1.33").try_run(["exec", "own", "--", "true"]));
    assert_eq!(allowed(&cluster, "own"), own, "what was given outlives the agent");
    {
        let node = Node::new(&cluster);
        node.make("after", json!({"containers": [{"name": "c"}]}));
        node.until_running("after");
        assert!(is_apart(&allowed(&cluster, "after")), "{}", allowed(&cluster, "after"));
        let cpus = |list: &str| node.kubectl.jsonpath(&["node", &cluster.node], &format!("{{.status.{list}.cpu}}"));
        let [capacity, allocatable] = ["capacity", "allocatable"].map(|list| cpus(list).parse::<u32>().unwrap());
        assert_eq!(allocatable, capacity - 1);
        node.kubectl.run(["delete", "pod", "own", "--timeout=60s"]);
    }
    until_allowed(&cluster, "shared", &|seen| seen == online.trim());
    until_allowed(&cluster, "after", &|seen| seen == online.trim());
}

#[test]
fn whole_pods_have_limits_and_are_resized() {
    let cluster = Cluster::start();
    let node = Node::new(&cluster);
    let container = |name: &str| json!({"name": name, "resources": {"requests": {"memory": "8Mi"}}});
    node.make(
        "whole",
        json!({"resources": {"limits": {"cpu": "500m", "memory": "64Mi"}}, "containers": [container("a"), container("b")]}),
    );
    node.until_running("whole");
    assert_eq!(node.get("whole", "{.spec.resources.requests.cpu} {.spec.resources.requests.memory}"), "500m 16Mi");
    assert_eq!(node.get("whole", "{.status.qosClass}"), "Burstable");
    let uid = node.get("whole", "{.metadata.uid}");
    let memory = || pods::cgroup(&uid, "memory", "memory.limit_in_bytes", "memory.max");
    assert_eq!(memory(), (64 * MIB).to_string());
    let in_container = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.max";
    assert_eq!(node.sh("whole", in_container), (64 * MIB).to_string(), "the pod's limit is its containers'");
    let patch = json!({"spec": {"resources": {"limits": {"memory": "96Mi"}}}}).to_string();
    node.kubectl.run(["patch", "pod", "whole", "--subresource=resize", "-p", &patch]);
    node.until("whole", "{.status.resources.limits.memory}", "96Mi");
    assert_eq!(memory(), (96 * MIB).to_string());
    assert_eq!(node.sh("whole", in_container), (96 * MIB).to_string());
    assert_eq!(node.get("whole", "{.status.containerStatuses[*].restartCount}"), "0 0");
    node.until_event("whole", "ResizeCompleted: Pod resize completed");
}

#[test]
fn wrong_thresholds_are_told_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let table = [
        ("--eviction-hard=memory.free<1Mi", "--eviction-hard: unrecognized eviction signal memory.free"),
        (
            "--eviction-soft=memory.available<1Gi",
            "--eviction-soft: grace period must be specified for the soft eviction threshold memory.available",
        ),
        ("--reserved-cpus=x", "--reserved-cpus: unable to parse CPUSet"),
    ];
    for (flag, words) in table {
        let output = Command::new(env!("CARGO_BIN_EXE_orch"))
            .args([
                "server",
                "--config=/dev/null",
                "--write-kubeconfig=/dev/null",
                "--https-listen-port=0",
                "--kubelet-port=0",
                flag,
            ])
            .arg("--data-dir")
            .arg(folder.path())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let said = text(&output.stderr);
        assert!(!output.status.success() && said.contains(words), "{flag}: {said}");
    }
}
