//! Faults: a full disk, a registry that hangs, a probe that hangs, a container that does not want to end, a sandbox removed by hand.
//! Each ends in the right state with the right event, and nothing is left in Docker, cgroups, mounts or the network.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::pods::{MINUTE, container_id, events, get, make, sh, shell, until, until_event, until_ready, with};
use crate::support::{Cluster, Kubectl, docker, run, sandbox_of, wait_for};

/// What a node has on the machine beside its data: containers, cgroups, mounts, routes to pods, rules.
#[derive(Debug, PartialEq, Eq)]
struct Footprint {
    containers: Vec<String>,
    cgroups: BTreeSet<PathBuf>,
    mounts: Vec<String>,
    pod_directories: Vec<PathBuf>,
    routes: Vec<String>,
    rules: String,
}

/// The first half of the addresses of a cluster's pods: `10.107.`.
fn pod_prefix(cluster: &Cluster) -> String {
    let flags = cluster.flags();
    let cidr = flags.iter().find_map(|flag| flag.strip_prefix("--cluster-cidr=")).unwrap();
    cidr.trim_end_matches("0.0/16").to_owned()
}

/// The cgroups of pods, by the uids of all pods that this cluster ever had.
fn cgroups(uids: &BTreeSet<String>) -> BTreeSet<PathBuf> {
    // Those of other clusters' pods come and go while it looks: a folder that is gone is no error.
    let found = run("sh", ["-c", "find /sys/fs/cgroup -maxdepth 5 -type d -name '*pod*-*' 2>/dev/null || true"]);
    let of_ours = |path: &&str| uids.iter().any(|uid| path.contains(uid.as_str()) || path.contains(&uid.replace('-', "_")));
    found.lines().filter(of_ours).map(PathBuf::from).collect()
}

impl Footprint {
    fn of(cluster: &Cluster, uids: &BTreeSet<String>) -> Self {
        let folder = cluster.folder.path().display().to_string();
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let pods = cluster.folder.path().join("data/agent/pods");
        let prefix = pod_prefix(cluster);
        let rules = run("nft", ["-s", "list", "ruleset"]);
        let tables: Vec<&str> = rules.split_inclusive("\n}\n").collect();
        let own = tables.iter().find(|table| table.contains(&format!("{prefix}0.0/")) && table.starts_with("table ip orch-"));
        let name: String = own.map(|table| table.chars().take("table ip orch-01234567".len()).collect()).unwrap_or_default();
        let routes = run("ip", ["-4", "route", "show"]);
        Self {
            containers: cluster.containers(),
            cgroups: cgroups(uids),
            mounts: mounts
                .lines()
                .filter(|line| line.contains(&format!("{folder}/data/agent/pods/")))
                .map(str::to_owned)
                .collect(),
            pod_directories: fs::read_dir(pods)
                .into_iter()
                .flatten()
                .flatten()
                .map(|entry| entry.path())
                .filter(|path| path.join("etc-hosts").exists() || path.join("volumes").exists())
                .collect(),
            routes: routes
                .lines()
                .filter(|line| line.starts_with(&prefix) && line.contains(" dev orch"))
                .map(str::to_owned)
                .collect(),
            rules: tables.into_iter().filter(|table| !name.is_empty() && table.starts_with(&name)).collect(),
        }
    }

    /// Waits until all is as it was.
    fn comes_back(&self, cluster: &Cluster, uids: &BTreeSet<String>) {
        wait_for("everything of the pods to be gone", MINUTE, || {
            let now = Self::of(cluster, uids);
            if now == *self { Ok(()) } else { Err(format!("{now:#?}")) }
        });
    }
}

fn uids(kubectl: &Kubectl) -> BTreeSet<String> {
    let all = kubectl.run(["get", "pods", "-A", "-o", "jsonpath={.items[*].metadata.uid}"]);
    all.split_whitespace().map(str::to_owned).collect()
}

/// Deletes all pods; as long as one of them takes at most.
fn delete_all(kubectl: &Kubectl) {
    kubectl.run(["delete", "pods", "--all", "--timeout=60s"]);
}

/// A small file system of its own on a directory.
fn mount_small(directory: &Path, image: &Path, megabytes: u32) {
    fs::create_dir_all(directory).unwrap();
    run("truncate", [format!("--size={megabytes}M"), image.display().to_string()]);
    run("mkfs.ext4", ["-q", "-m", "0", image.to_str().unwrap()]);
    run("mount", ["-o", "loop", image.to_str().unwrap(), directory.to_str().unwrap()]);
}

/// Fills a file system to the last byte.
fn fill(directory: &Path) -> PathBuf {
    let path = directory.join("fill");
    let mut file = fs::File::create(&path).unwrap();
    let mut block = vec![1_u8; 1 << 20];
    while !block.is_empty() {
        match file.write_all(&block) {
            Ok(()) => {}
            Err(_) => block.truncate(block.len() / 2),
        }
    }
    file.sync_all().unwrap();
    path
}

#[test]
fn a_full_disk_holds_pods_up_until_there_is_room() {
    let folder = tempfile::Builder::new().prefix("orch-disk-").tempdir().unwrap();
    let storage = folder.path().join("storage");
    mount_small(&storage, &folder.path().join("storage.img"), 16);
    let _unmount = Unmount(storage.clone());
    let cluster = Cluster::start_with(&[&format!("--default-local-storage-path={}", storage.display())]);
    cluster.wait_ready();
    let kubectl = cluster.kubectl("1.33");
    let pods = cluster.folder.path().join("data/agent/pods");
    mount_small(&pods, &cluster.folder.path().join("pods.img"), 16);
    let before = Footprint::of(&cluster, &BTreeSet::new());
    let key = cluster.folder.path().join("key");
    fs::write(&key, "x".repeat(300_000)).unwrap();
    kubectl.run(["create", "configmap", "big", &format!("--from-file={}", key.display())]);

    make(&kubectl, "first", json!({"containers": [shell("c", "sleep 1000")]}));
    until_ready(&kubectl, "first");
    let (full, full_too) = (fill(&pods), fill(&storage));
    let mounts = json!([{"name": "v", "mountPath": "/v"}]);
    let configured = json!({"containers": [with(shell("c", "exec sleep 1000"), json!({"volumeMounts": mounts}))],
        "volumes": [{"name": "v", "configMap": {"name": "big"}}]});
    make(&kubectl, "config", configured);
    make(&kubectl, "plain", json!({"containers": [shell("c", "exec sleep 1000")]}));
    let claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "claim"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}}});
    kubectl.manifest(&["create"], &claim.to_string()).unwrap();
    let claims = json!({"containers": [with(shell("c", "exec sleep 1000"), json!({"volumeMounts": mounts}))],
        "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "claim"}}]});
    make(&kubectl, "claims", claims);
    until_event(&kubectl, "config", "FailedMount: MountVolume.SetUp failed for volume \"v\" : ");
    until_event(&kubectl, "config", "No space left on device");
    until_event(&kubectl, "plain", "No space left on device");
    for pod in ["config", "plain", "claims"] {
        assert_eq!(get(&kubectl, pod, "{.status.phase}"), "Pending");
    }
    assert_eq!(get(&kubectl, "first", "{.status.containerStatuses[0].restartCount} {.status.phase}"), "0 Running");
    fs::remove_file(full).unwrap();
    fs::remove_file(full_too).unwrap();
    for pod in ["config", "plain", "claims"] {
        until_ready(&kubectl, pod);
    }
    assert_eq!(sh(&kubectl, "config", "wc -c < /v/key").trim(), "300000");
    // Tries that failed left nothing beside what was written at last.
    let inside = sh(&kubectl, "config", "ls -a /v | grep -c '^\\.\\.'");
    assert_eq!(inside.trim(), "3", "the directory itself is .., ..data and what it leads to");
    // A pod can be deleted while the disk is full.
    let full = fill(&pods);
    let all = uids(&kubectl);
    delete_all(&kubectl);
    fs::remove_file(full).unwrap();
    kubectl.run(["delete", "pvc", "claim", "--timeout=60s"]);
    before.comes_back(&cluster, &all);
    assert_eq!(fs::read_dir(&storage).unwrap().flatten().filter(|entry| entry.file_name() != "lost+found").count(), 0);
}

struct Unmount(PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        let _unmounted = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// A registry that says it is one, and then never says anything again. It counts the connections on which it keeps silent.
struct SilentRegistry {
    port: u16,
    held: Arc<AtomicUsize>,
}

impl SilentRegistry {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (port, held) = (listener.local_addr().unwrap().port(), Arc::<AtomicUsize>::default());
        let counter = Arc::clone(&held);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let counter = Arc::clone(&counter);
                std::thread::spawn(move || Self::serve(stream, &counter));
            }
        });
        Self { port, held }
    }

    fn serve(mut stream: TcpStream, held: &AtomicUsize) {
        let mut request = [0; 4_096];
        loop {
            let Ok(length @ 1..) = stream.read(&mut request) else { return };
            // The begin of TLS: there is none here.
            if !request[..length].starts_with(b"GET") && !request[..length].starts_with(b"HEAD") {
                return;
            }
            if request[..length].starts_with(b"GET /v2/ ") {
                let answer = b"HTTP/1.1 200 OK\r\nDocker-Distribution-Api-Version: registry/2.0\r\nContent-Length: 2\r\n\r\n{}";
                if stream.write_all(answer).is_err() {
                    return;
                }
                continue;
            }
            held.fetch_add(1, Ordering::SeqCst);
            let _closed = stream.read(&mut request);
            held.fetch_sub(1, Ordering::SeqCst);
            return;
        }
    }
}

#[test]
fn a_pull_that_hangs_holds_up_nobody_else() {
    let registry = SilentRegistry::start();
    let cluster = Cluster::start();
    let kubectl = cluster.kubectl("1.33");
    let before = Footprint::of(&cluster, &BTreeSet::new());
    // More than are pulled at one time.
    for number in 0..7 {
        let image = format!("127.0.0.1:{}/image:{number}", registry.port);
        let spec = json!({"terminationGracePeriodSeconds": 30, "containers": [with(shell("c", ""), json!({"image": image}))]});
        make(&kubectl, &format!("hangs-{number}"), spec);
    }
    until_event(&kubectl, "hangs-0", &format!("Pulling: Pulling image \"127.0.0.1:{}/image:0\"", registry.port));
    wait_for("the registry to keep somebody waiting", MINUTE, || {
        let held = registry.held.load(Ordering::SeqCst);
        if held >= 3 { Ok(()) } else { Err(format!("{held} connections")) }
    });
    let began = Instant::now();
    make(&kubectl, "other", json!({"containers": [shell("c", "exec sleep 1000")]}));
    until_ready(&kubectl, "other");
    // One of another registry, which refuses at once: it waits for nobody.
    make(&kubectl, "elsewhere", json!({"containers": [with(shell("c", ""), json!({"image": "127.0.0.1:1/image:1"}))]}));
    until_event(&kubectl, "elsewhere", "Failed: Failed to pull image \"127.0.0.1:1/image:1\": ");
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    assert_eq!(
        get(&kubectl, "hangs-0", "{.status.phase} {.status.containerStatuses[0].state.waiting.reason}"),
        "Pending ContainerCreating"
    );
    let all = uids(&kubectl);
    let began = Instant::now();
    delete_all(&kubectl);
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    before.comes_back(&cluster, &all);
    // Docker itself goes on to wait for the registry, also when its own client has gone (seen with 20.10).
}

#[test]
fn what_hangs_or_is_removed_ends_well() {
    let cluster = Cluster::start();
    let kubectl = cluster.kubectl("1.33");
    let before = Footprint::of(&cluster, &BTreeSet::new());
    let hangs = |name: &str, more: Value| {
        let server = shell("c", "exec nc -ll -p 8080 -e sleep 1000");
        make(&kubectl, name, json!({"containers": [with(server, more)]}));
    };
    let get_probe = json!({"httpGet": {"port": 8080}, "timeoutSeconds": 1, "periodSeconds": 1, "failureThreshold": 2});
    hangs("unready", json!({"readinessProbe": get_probe}));
    hangs("unlive", json!({"livenessProbe": get_probe}));
    hangs("unstarted", json!({"startupProbe": with(get_probe, json!({"terminationGracePeriodSeconds": 1}))}));
    let stubborn = shell("c", "trap '' TERM INT HUP QUIT; while :; do sleep 0.2; done");
    make(&kubectl, "stubborn", json!({"terminationGracePeriodSeconds": 3, "containers": [stubborn]}));
    let slow_hook = json!({"lifecycle": {"postStart": {"exec": {"command": ["sleep", "900"]}}}});
    make(&kubectl, "hook", json!({"containers": [with(shell("c", "exec sleep 1000"), slow_hook)]}));
    make(&kubectl, "sandbox", json!({"containers": [shell("c", "exec sleep 1000")]}));

    let late = "Readiness probe failed: Get \"http://";
    until_event(&kubectl, "unready", late);
    let all = events(&kubectl, "unready");
    assert!(all.contains(":8080/\": context deadline exceeded (Client.Timeout exceeded while awaiting headers)"), "{all}");
    assert_eq!(get(&kubectl, "unready", "{.status.containerStatuses[0].restartCount} {.status.phase}"), "0 Running");
    until_event(&kubectl, "unlive", "Killing: Container c failed liveness probe, will be restarted");
    until(&kubectl, "unlive", "{.status.containerStatuses[0].restartCount}", "1");
    until_event(&kubectl, "unstarted", "Killing: Container c failed startup probe, will be restarted");

    until_ready(&kubectl, "sandbox");
    let address = get(&kubectl, "sandbox", "{.status.podIP}");
    docker(["rm", "-f", &sandbox_of(&get(&kubectl, "sandbox", "{.metadata.uid}"))]);
    until_event(&kubectl, "sandbox", "SandboxChanged: Pod sandbox changed, it will be killed and re-created.");
    until(&kubectl, "sandbox", "{.status.containerStatuses[0].restartCount} {.status.containerStatuses[0].ready}", "1 true");
    assert!(
        sh(&kubectl, "sandbox", "ip -4 address show eth0").contains(&get(&kubectl, "sandbox", "{.status.podIP}")),
        "{address}"
    );
    // Everything of a pod at once.
    let uid = get(&kubectl, "sandbox", "{.metadata.uid}");
    let filter = format!("label=io.kubernetes.pod.uid={uid}");
    docker(["rm", "-f"].into_iter().chain(docker(["ps", "-aq", "--filter", &filter]).split_whitespace()));
    until(&kubectl, "sandbox", "{.status.containerStatuses[0].restartCount} {.status.containerStatuses[0].ready}", "2 true");

    until_ready(&kubectl, "stubborn");
    let id = container_id(&kubectl, "stubborn");
    let began = Instant::now();
    kubectl.run(["delete", "pod", "stubborn", "--wait=false"]);
    until_event(&kubectl, "stubborn", "Killing: Stopping container c");
    wait_for("the stubborn pod to go", MINUTE, || match kubectl.try_run(["get", "pod", "stubborn"]) {
        Err(error) if error.contains("NotFound") => Ok(()),
        other => Err(format!("{other:?}; {id}")),
    });
    assert!((3..12).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    // A hook that has not ended does not hold up the deletion beyond the grace period.
    assert_eq!(get(&kubectl, "hook", "{.status.containerStatuses[0].state.waiting.reason}"), "ContainerCreating");
    let all = uids(&kubectl);
    delete_all(&kubectl);
    before.comes_back(&cluster, &all);
}
