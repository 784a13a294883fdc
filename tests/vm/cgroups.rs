//! cgroup v2: what pods ask for is in the kernel's files, at every level, as the kubelet writes it; and what they use is told truly.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::support::{docker, wait_for};
use crate::world::{Case, MINUTE, World, pod, read};

pub const CASES: &[(&str, Case)] = &[
    ("cgroups: limits of every level", limits_of_every_level),
    ("cgroups: figures", figures),
    ("cgroups: resize", resize),
    ("cgroups: killed for memory", killed_for_memory),
    ("cgroups: the server is killed", the_server_is_killed),
    ("cgroups: short of memory", short_of_memory),
];

const ROOT: &str = "/sys/fs/cgroup/kubepods";

fn pod_cgroup(world: &World, pod: &str) -> PathBuf {
    let seen = world.get(pod, "{.status.qosClass} {.metadata.uid}");
    let (class, uid) = seen.split_once(' ').unwrap();
    let class = match class {
        "Guaranteed" => "",
        "Burstable" => "burstable",
        _ => "besteffort",
    };
    Path::new(ROOT).join(class).join(format!("pod{uid}"))
}

fn container_cgroup(world: &World, pod: &str) -> PathBuf {
    let id = world.get(pod, "{.status.containerStatuses[0].containerID}");
    pod_cgroup(world, pod).join(id.trim_start_matches("docker://"))
}

/// The files of a cgroup have these texts.
fn check(folder: &Path, files: &[(&str, &str)]) {
    for (file, expected) in files {
        assert_eq!(read(&folder.join(file)), *expected, "{}/{file}", folder.display());
    }
}

/// The CPUs of those that have none of their own.
fn others(own: &str) -> &'static str {
    if own == "1" { "0,2" } else { "0-1" }
}

fn limits_of_every_level(world: &mut World) {
    let burn = "while :; do :; done";
    let resources = |value: Value| json!({"resources": value});
    world.apply(&[
        pod(
            "burst",
            burn,
            resources(json!({"requests": {"cpu": "100m", "memory": "32Mi"}, "limits": {"cpu": "200m", "memory": "64Mi"}})),
            json!({}),
        ),
        pod("best", "true", json!({}), json!({})),
        pod("own", "true", resources(json!({"limits": {"cpu": "1", "memory": "48Mi"}})), json!({})),
    ]);
    world.ready(&["burst", "best", "own"]);
    let burst = [("cpu.max", "20000 100000"), ("cpu.weight", "4"), ("memory.max", "67108864")];
    check(&pod_cgroup(world, "burst"), &burst);
    check(&pod_cgroup(world, "burst"), &[("pids.max", "500")]);
    check(&container_cgroup(world, "burst"), &burst);
    check(&container_cgroup(world, "burst"), &[("memory.swap.max", "0"), ("memory.oom.group", "1")]);
    let best = [("cpu.max", "max 100000"), ("cpu.weight", "1"), ("memory.max", "max")];
    check(&pod_cgroup(world, "best"), &best);
    check(&container_cgroup(world, "best"), &best);
    // A CPU of its own is not limited; the others keep off it.
    let own = [("cpu.max", "max 100000"), ("cpu.weight", "39"), ("memory.max", "50331648")];
    check(&pod_cgroup(world, "own"), &own);
    check(&container_cgroup(world, "own"), &own);
    let mine = read(&container_cgroup(world, "own").join("cpuset.cpus"));
    assert!(["1", "2"].contains(&mine.as_str()), "{mine}");
    for other in ["burst", "best"] {
        let folder = container_cgroup(world, other);
        wait_for(&format!("{other} to leave the CPU that is own's"), MINUTE, || {
            let seen = read(&folder.join("cpuset.cpus"));
            if seen == others(&mine) { Ok(()) } else { Err(seen) }
        });
    }
    // The pods together: what the system does not keep; each class: what its pods ask for.
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap();
    let total: u64 = meminfo.split_whitespace().nth(1).unwrap().parse().unwrap();
    check(Path::new(ROOT), &[("memory.max", &((total << 10) - (300 << 20)).to_string()), ("cpu.weight", "79")]);
    let pids = read(Path::new("/proc/sys/kernel/threads-max")).parse::<u64>().unwrap();
    let pids = pids.min(read(Path::new("/proc/sys/kernel/pid_max")).parse().unwrap());
    check(Path::new(ROOT), &[("pids.max", &(pids - 1_000).to_string())]);
    check(&Path::new(ROOT).join("burstable"), &[("cpu.weight", "4"), ("memory.max", "max")]);
    check(&Path::new(ROOT).join("besteffort"), &[("cpu.weight", "1"), ("memory.max", "max")]);
}

fn number(path: &Path, name: &str) -> f64 {
    let text = fs::read_to_string(path).unwrap();
    let line = text.lines().find(|line| line.split(' ').next() == Some(name)).unwrap_or_else(|| panic!("{name}: {text}"));
    line.split(' ').nth(1).unwrap().parse().unwrap()
}

/// What is told is what the kernel's files say.
fn figures(world: &mut World) {
    let node = world.cluster.node.clone();
    let folder = container_cgroup(world, "burst");
    let cores = wait_for("the busy pod to be seen busy", MINUTE, || {
        let top = world.kubectl.try_run(["top", "pod", "burst", "--no-headers"])?;
        let cells: Vec<&str> = top.split_whitespace().collect();
        let milli: u32 = cells[1].trim_end_matches('m').parse().map_err(|_| top.clone())?;
        if (150..=230).contains(&milli) { Ok(milli) } else { Err(top) }
    });
    let top = world.kubectl.run(["top", "node", "--no-headers"]);
    let cells: Vec<&str> = top.split_whitespace().collect();
    assert!(cells[0] == node && cells[1].trim_end_matches('m').parse::<u32>().unwrap() >= cores, "{top}");
    let raw = |path: &str| world.kubectl.run(["get", "--raw", &format!("/api/v1/nodes/{node}/proxy/{path}")]);

    let before = number(&folder.join("cpu.stat"), "usage_usec") / 1e6;
    let summary: Value = serde_json::from_str(&raw("stats/summary")).unwrap();
    let resource = raw("metrics/resource");
    let cadvisor = raw("metrics/cadvisor");
    let after = number(&folder.join("cpu.stat"), "usage_usec") / 1e6;
    let memory =
        read(&folder.join("memory.current")).parse::<f64>().unwrap() - number(&folder.join("memory.stat"), "inactive_file");

    let pods = summary["pods"].as_array().unwrap();
    let of = pods.iter().find(|pod| pod["podRef"]["name"] == "burst").unwrap();
    let container = &of["containers"][0];
    // A figure may be as old as the last look, a quarter of a minute.
    let is_time = |seconds: f64| seconds > before - 8.0 && seconds <= after + 0.1;
    let is_memory = |bytes: f64| (bytes - memory).abs() < 4e6;
    let seconds = container["cpu"]["usageCoreNanoSeconds"].as_f64().unwrap() / 1e9;
    assert!(is_time(seconds), "{seconds} s, the kernel: {before} to {after}");
    let bytes = container["memory"]["workingSetBytes"].as_f64().unwrap();
    assert!(is_memory(bytes), "{bytes}, the kernel: {memory}");
    assert_eq!(container["memory"]["availableBytes"].as_f64().unwrap() + bytes, f64::from(64 << 20));
    let nano = of["cpu"]["usageNanoCores"].as_f64().unwrap();
    assert!((1.5e8..2.4e8).contains(&nano), "{nano}");
    assert!(of["process_stats"]["process_count"].as_u64().unwrap() >= 2, "{of}");
    let sample = |text: &str, start: &str| {
        let line = text.lines().find(|line| line.starts_with(start) && line.contains("pod=\"burst\""));
        let line = line.unwrap_or_else(|| panic!("{start} is not in {text}"));
        line.split(' ').nth(1).unwrap().parse::<f64>().unwrap()
    };
    for (text, start) in [
        (&resource, "container_cpu_usage_seconds_total{container=\"c\""),
        (&cadvisor, "container_cpu_usage_seconds_total{container=\"c\""),
    ] {
        assert!(is_time(sample(text, start)), "{start}: {}, the kernel: {before} to {after}", sample(text, start));
    }
    for (text, start) in [
        (&resource, "container_memory_working_set_bytes{container=\"c\""),
        (&cadvisor, "container_memory_working_set_bytes{container=\"c\""),
    ] {
        assert!(is_memory(sample(text, start)), "{start}: {}, the kernel: {memory}", sample(text, start));
    }
    assert!(sample(&resource, "pod_cpu_usage_seconds_total{") > before, "the pod has used what its container has");
    assert_eq!(sample(&cadvisor, "container_spec_memory_limit_bytes{container=\"c\""), f64::from(64 << 20));
    assert_eq!(sample(&cadvisor, "container_spec_cpu_quota{container=\"c\""), 20_000.0);
}

fn resize(world: &mut World) {
    let id = world.get("burst", "{.status.containerStatuses[0].containerID}");
    let to = r#"{"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "300m", "memory": "40Mi"},
        "limits": {"cpu": "400m", "memory": "96Mi"}}}]}}"#;
    world.kubectl.run(["patch", "pod", "burst", "--subresource=resize", "-p", to]);
    world.until("burst", "{.status.containerStatuses[0].resources.limits.memory}", "96Mi");
    world.until_event("burst", "ResizeCompleted");
    let new = [("cpu.max", "40000 100000"), ("cpu.weight", "12"), ("memory.max", "100663296")];
    check(&container_cgroup(world, "burst"), &new);
    check(&pod_cgroup(world, "burst"), &new);
    wait_for("the class to weigh what its pods ask for", MINUTE, || {
        let seen = read(&Path::new(ROOT).join("burstable/cpu.weight"));
        if seen == "12" { Ok(()) } else { Err(seen) }
    });
    assert_eq!(world.get("burst", "{.status.containerStatuses[0].containerID}"), id, "it was not restarted");
    world.delete("pod", &["burst"]);
}

/// The whole container goes, also when it was not its first process that took too much.
fn killed_for_memory(world: &mut World) {
    let little = json!({"resources": {"limits": {"memory": "16Mi"}}});
    world.apply(&[
        pod("first", "exec tail /dev/zero", little.clone(), json!({"restartPolicy": "Never"})),
        pod("child", "tail /dev/zero; sleep 5", little, json!({"restartPolicy": "Never"})),
    ]);
    for name in ["first", "child"] {
        let path = "{.status.containerStatuses[0].state.terminated['reason','exitCode']} {.status.phase}";
        world.until(name, path, "OOMKilled 137 Failed");
    }
    world.delete("pod", &["first", "child"]);
}

fn pod_cgroups() -> Vec<PathBuf> {
    let classes = ["", "burstable", "besteffort"].map(|class| Path::new(ROOT).join(class));
    let entries = classes.iter().flat_map(|class| fs::read_dir(class).into_iter().flatten().flatten());
    entries.map(|entry| entry.path()).filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("pod")).collect()
}

/// A pod that goes while nobody looks leaves nothing, and those that stay keep what they have.
fn the_server_is_killed(world: &mut World) {
    let own = container_cgroup(world, "own");
    let best = container_cgroup(world, "best");
    world.cluster.kill();
    docker(["rm", "-f", best.file_name().unwrap().to_str().unwrap()]);
    world.cluster.spawn();
    world.cluster.wait_ready();
    wait_for("the container to be made again", MINUTE, || {
        let seen = world.get("best", "{.status.containerStatuses[0].restartCount} {.status.containerStatuses[0].ready}");
        if seen == "1 true" { Ok(()) } else { Err(seen) }
    });
    let mine = read(&own.join("cpuset.cpus"));
    check(&own, &[("memory.max", "50331648")]);
    check(&container_cgroup(world, "best"), &[("cpuset.cpus", others(&mine)), ("cpu.weight", "1")]);
    world.delete("pod", &["own", "best"]);
    wait_for("the cgroups to be gone", MINUTE, || {
        let left = pod_cgroups();
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    });
    assert_eq!(world.cluster.containers(), [""; 0]);
}

fn short_of_memory(world: &mut World) {
    let volume = json!({"volumes": [{"name": "m", "emptyDir": {"medium": "Memory"}}]});
    let takes = json!({"volumeMounts": [{"name": "m", "mountPath": "/m"}], "resources": {"requests": {"memory": "16Mi"}}});
    let same = json!({"cpu": "10m", "memory": "32Mi"});
    world.apply(&[pod("modest", "true", json!({"resources": {"limits": same}}), json!({}))]);
    world.ready(&["modest"]);
    world.apply(&[pod("hog", "dd if=/dev/zero of=/m/f bs=1M count=1800", takes, volume)]);
    world.until("hog", "{.status.phase} {.status.reason}", "Failed Evicted");
    let message = world.get("hog", "{.status.message}");
    assert!(message.starts_with("The node was low on resource: memory. Threshold quantity: 2000Mi, available: "), "{message}");
    assert!(message.contains("Container c was using "), "{message}");
    let node = ["node", &world.cluster.node];
    wait_for("the pressure to end", MINUTE, || {
        let seen = world.kubectl.jsonpath(&node, "{.status.conditions[?(@.type==\"MemoryPressure\")].status}");
        if seen == "False" { Ok(()) } else { Err(seen) }
    });
    assert_eq!(world.get("modest", "{.status.phase}"), "Running");
    world.delete("pod", &["hog", "modest"]);
}
