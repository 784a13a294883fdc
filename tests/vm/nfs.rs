//! NFS: the kernel's own server and client. Volumes in pods and by claims, a server that changes its address, that is not there, and that
//! falls silent.

use std::time::Instant;

use serde_json::{Value, json};

use crate::support::{here, run, wait_for};
use crate::world::{Case, MINUTE, World, pod};

pub const CASES: &[(&str, Case)] = &[
    ("nfs: volumes", volumes),
    ("nfs: the server has another address", the_server_has_another_address),
    ("nfs: no server", no_server),
    ("nfs: the server falls silent", the_server_falls_silent),
];
/// To be run after others.
pub const LAST: &[(&str, Case)] = &[("nfs: the silent server is given up", the_silent_server_is_given_up)];

/// What is shared, and its path for clients: that below the root of the exports.
const SHARED: &str = "/data/export/share";
const EXPORT: &str = "/share";
const FIRST: &str = "10.77.0.1";
const SECOND: &str = "10.77.0.2";
/// Nobody is there, and nobody says so.
const NOWHERE: &str = "10.99.0.9";

/// Starts the server, once.
fn serve() {
    let script = format!(
        "set -e; mountpoint -q /proc/fs/nfsd && exit 0
        mkdir -p {SHARED} /var/lib/nfs/v4recovery; chmod 777 {SHARED}; touch /var/lib/nfs/etab /var/lib/nfs/rmtab
        for address in {FIRST} {SECOND}; do ip address add $address/32 dev lo; done
        echo '/data/export *(rw,fsid=0,no_root_squash,no_subtree_check,insecure)' >/etc/exports
        modprobe nfsd; mount -t nfsd nfsd /proc/fs/nfsd; exportfs -ra; rpc.mountd -N 3; rpc.nfsd -N 3 -G 10 -L 10 4
        echo Y >/proc/fs/nfsd/v4_end_grace"
    );
    run("bash", ["-c", &script]);
}

/// What falls silent hears nothing more.
fn silence(is_silent: bool) {
    let rules =
        "table inet silence { chain in { type filter hook input priority -300; tcp dport 2049 drop; tcp sport 2049 drop; }; }";
    run("nft", [if is_silent { rules } else { "delete table inet silence" }]);
}

fn volume(server: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "nfs"}, "spec": {
        "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteMany"], "persistentVolumeReclaimPolicy": "Retain",
        "mountOptions": ["nfsvers=4.2", "noatime"], "nfs": {"server": server, "path": EXPORT},
        "claimRef": {"namespace": "default", "name": "data"}}})
}

fn claim() -> Value {
    json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteMany"],
        "storageClassName": "", "volumeName": "nfs", "resources": {"requests": {"storage": "1Gi"}}}})
}

fn user(name: &str, script: &str, volume: Value) -> Value {
    let mount = json!({"volumeMounts": [{"name": "v", "mountPath": "/v"}]});
    let mut volume = volume;
    volume["name"] = json!("v");
    pod(name, script, mount, json!({"volumes": [volume]}))
}

fn claimed(name: &str, script: &str) -> Value {
    user(name, script, json!({"persistentVolumeClaim": {"claimName": "data"}}))
}

fn volumes(world: &mut World) {
    serve();
    let read_only = json!({"persistentVolumeClaim": {"claimName": "data", "readOnly": true}});
    let inline = json!({"nfs": {"server": FIRST, "path": EXPORT, "readOnly": true}});
    world.apply(&[
        volume(FIRST),
        claim(),
        claimed("writer", "echo one >/v/file"),
        claimed("second", "true"),
        user("reader", "true", read_only),
        user("inline", "true", inline),
    ]);
    world.ready(&["writer", "second", "reader", "inline"]);
    assert_eq!(world.sh("second", "cat /v/file; echo two >>/v/file"), "one\n");
    for name in ["reader", "inline"] {
        assert_eq!(world.sh(name, "cat /v/file; touch /v/x 2>&1 || true"), "one\ntwo\ntouch: /v/x: Read-only file system\n");
    }
    let of = |pod: &str| {
        let uid = world.get(pod, "{.metadata.uid}");
        let all = World::mounts("nfs4");
        all.into_iter().find(|line| line.contains(&uid)).unwrap_or_else(|| panic!("{:?}", World::mounts("nfs")))
    };
    let (writer, reader) = (of("writer"), of("reader"));
    assert!(writer.starts_with(&format!("{FIRST}:{EXPORT} ")) && writer.contains(" rw,noatime,vers=4.2"), "{writer}");
    assert!(reader.contains(" ro,noatime,vers=4.2"), "{reader}");

    world.cluster.kill();
    world.cluster.spawn();
    world.cluster.wait_ready();
    assert_eq!(world.sh("second", "echo three >>/v/file; cat /v/file"), "one\ntwo\nthree\n");
    world.delete("pod", &["reader", "inline", "second"]);
    assert_eq!(World::mounts("nfs4").len(), 1, "{:?}", World::mounts("nfs4"));
}

/// The claim stays; the volume behind it is made again. A pod that runs goes on, one that is made again uses the new address.
fn the_server_has_another_address(world: &mut World) {
    world.kubectl.run(["delete", "pv", "nfs", "--wait=false"]);
    world.kubectl.run(["patch", "pv", "nfs", "--type=merge", "-p", r#"{"metadata": {"finalizers": null}}"#]);
    let phase = |expected: &str| {
        wait_for(&format!("the claim to be {expected}"), MINUTE, || {
            let seen = world.kubectl.jsonpath(&["pvc", "data"], "{.status.phase}");
            if seen == expected { Ok(()) } else { Err(seen) }
        });
    };
    phase("Lost");
    world.apply(&[volume(SECOND)]);
    phase("Bound");
    assert_eq!(world.sh("writer", "tail -n 1 /v/file"), "three\n");
    world.delete("pod", &["writer"]);
    world.apply(&[claimed("writer", "echo four >>/v/file")]);
    world.ready(&["writer"]);
    assert_eq!(world.sh("writer", "tail -n 2 /v/file"), "three\nfour\n");
    let mounts = World::mounts("nfs4");
    assert!(mounts.len() == 1 && mounts[0].starts_with(&format!("{SECOND}:{EXPORT} ")), "{mounts:?}");
    world.delete("pod", &["writer"]);
}

/// What `mount.nfs` says is in the event; a pod whose server does not answer is deleted all the same, and holds up nobody.
fn no_server(world: &mut World) {
    let inline = |server: &str, path: &str| json!({"nfs": {"server": server, "path": path}});
    world.apply(&[
        user("nothing", "true", inline(FIRST, "/none")),
        user("nobody", "true", inline(NOWHERE, "/none")),
        claimed("writer", "true"),
    ]);
    world.ready(&["writer"]);
    world.until_event("nothing", "FailedMount: MountVolume.SetUp failed for volume \"v\" : mount failed: exit status 32");
    world.until_event("nothing", "mount.nfs: mounting 10.77.0.1:/none failed, reason given by server: No such file or directory");
    let began = Instant::now();
    world.delete("pod", &["nothing", "nobody"]);
    assert!(began.elapsed() < here(MINUTE / 3), "{:?}", began.elapsed());
    assert_eq!(run("bash", ["-c", "pgrep mount.nfs || true"]), "", "no mount goes on for a pod that is gone");
}

/// A pod is deleted whose server is silent: that takes a while, in which others go on (the cases after this one).
fn the_server_falls_silent(world: &mut World) {
    silence(true);
    world.kubectl.run(["delete", "pod", "writer", "--wait=false"]);
}

fn the_silent_server_is_given_up(world: &mut World) {
    world.kubectl.run(["wait", "--for=delete", "pod/writer", "--timeout=300s"]);
    assert_eq!(World::mounts("nfs4"), [""; 0]);
    silence(false);
    world.delete("pvc", &["data"]);
    world.delete("pv", &["nfs"]);
}
