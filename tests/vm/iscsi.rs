//! iSCSI: a real target (tgt) and the host's own initiator. Disks in pods and by claims, raw disks, CHAP, initiator names; and with the last
//! pod the session is gone.

use std::fs;

use serde_json::{Value, json};

use crate::support::{run, wait_for};
use crate::world::{Case, MINUTE, World, pod};

pub const CASES: &[(&str, Case)] =
    &[("iscsi: disks keep what is on them", disks_keep_what_is_on_them), ("iscsi: claims", claims), ("iscsi: CHAP", chap)];

const PORTAL: &str = "10.77.1.1";
const OPEN: &str = "iqn.2024-01.io.orch:open";
const CLOSED: &str = "iqn.2024-01.io.orch:closed";

/// Starts target and initiator, once.
fn serve() {
    let script = format!(
        "set -e; pgrep -x tgtd >/dev/null && exit 0
        ip address add {PORTAL}/32 dev lo
        mkdir -p /run/lock/iscsi /etc/iscsi; echo InitiatorName=iqn.2024-01.io.orch:vm >/etc/iscsi/initiatorname.iscsi
        modprobe iscsi_tcp; iscsid
        tgtd --iscsi portal={PORTAL}:3260
        t() {{ tgtadm --lld iscsi \"$@\"; }}
        until t --op show --mode system >/dev/null 2>&1; do sleep 0.1; done
        t --op new --mode target --tid 1 -T {OPEN}; t --op new --mode target --tid 2 -T {CLOSED}
        for disk in 1:1 1:2 2:1; do truncate -s 64M /data/disk-$disk
          t --op new --mode logicalunit --tid ${{disk%:*}} --lun ${{disk#*:}} -b /data/disk-$disk; done
        for tid in 1 2; do t --op bind --mode target --tid $tid -I ALL; done
        t --op new --mode account --user me --password secretsecret1; t --op bind --mode account --tid 2 --user me"
    );
    run("bash", ["-c", &script]);
}

fn sessions() -> Vec<String> {
    let all = fs::read_dir("/sys/class/iscsi_session").into_iter().flatten().flatten();
    all.map(|session| fs::read_to_string(session.path().join("targetname")).unwrap_or_default().trim().to_owned()).collect()
}

fn until_no_session() {
    wait_for("the sessions to be gone", MINUTE, || {
        let seen = sessions();
        if seen.is_empty() { Ok(()) } else { Err(format!("{seen:?}")) }
    });
}

fn user(name: &str, script: &str, volume: Value, spec: Value) -> Value {
    let mut volume = volume;
    volume["name"] = json!("v");
    let mut all = json!({"volumes": [volume]});
    spec.as_object().unwrap().iter().for_each(|(key, value)| all[key] = value.clone());
    pod(name, script, json!({"volumeMounts": [{"name": "v", "mountPath": "/v"}]}), all)
}

fn disk(iqn: &str, lun: i32, more: Value) -> Value {
    let mut disk = json!({"targetPortal": PORTAL, "iqn": iqn, "lun": lun});
    more.as_object().unwrap().iter().for_each(|(key, value)| disk[key] = value.clone());
    json!({"iscsi": disk})
}

fn disks_keep_what_is_on_them(world: &mut World) {
    serve();
    let group = json!({"securityContext": {"fsGroup": 2000}});
    world.apply(&[user(
        "disk-writer",
        "echo kept >/v/file; stat -c %g /v/file >>/v/file; sync",
        disk(OPEN, 1, json!({})),
        group,
    )]);
    world.ready(&["disk-writer"]);
    assert_eq!(sessions(), [OPEN]);
    let mounts = World::mounts("kubernetes.io/iscsi");
    assert!(mounts.len() == 1 && mounts[0].contains(" ext4 rw"), "{mounts:?}");
    world.delete("pod", &["disk-writer"]);
    until_no_session();
    let said = run("bash", ["-c", "iscsiadm -m session 2>&1; iscsiadm -m node 2>&1; true"]);
    assert_eq!(said, "iscsiadm: No active sessions.\niscsiadm: No records found\n");
    world.apply(&[user("disk-reader", "true", disk(OPEN, 1, json!({"readOnly": true})), json!({}))]);
    world.ready(&["disk-reader"]);
    assert_eq!(
        world.sh("disk-reader", "cat /v/file; touch /v/x 2>&1 || true"),
        "kept\n2000\ntouch: /v/x: Read-only file system\n"
    );
    world.delete("pod", &["disk-reader"]);
    until_no_session();
}

fn volume(name: &str, lun: i32, more: Value) -> Value {
    let mut spec = json!({"capacity": {"storage": "64Mi"}, "accessModes": ["ReadWriteOnce"], "storageClassName": "",
        "mountOptions": ["noatime"], "iscsi": disk(OPEN, lun, json!({"fsType": "ext4"}))["iscsi"],
        "claimRef": {"namespace": "default", "name": name}});
    more.as_object().unwrap().iter().for_each(|(key, value)| spec[key] = value.clone());
    json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": spec})
}

fn claim(name: &str, mode: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": {"accessModes": ["ReadWriteOnce"],
        "storageClassName": "", "volumeName": name, "volumeMode": mode, "resources": {"requests": {"storage": "64Mi"}}}})
}

/// Two disks of one target: the session stays until the second has gone, also when the agent was killed meanwhile.
fn claims(world: &mut World) {
    let of_claim = |name: &str| json!({"persistentVolumeClaim": {"claimName": name}});
    let raw = json!({"volumeDevices": [{"name": "v", "devicePath": "/dev/raw-disk"}]});
    let mut of_raw = of_claim("raw");
    of_raw["name"] = json!("v");
    world.apply(&[
        volume("files", 1, json!({})),
        volume("raw", 2, json!({"volumeMode": "Block", "mountOptions": null})),
        claim("files", "Filesystem"),
        claim("raw", "Block"),
        user("files-1", "true", of_claim("files"), json!({})),
        user("files-2", "true", of_claim("files"), json!({})),
        pod("raw", "echo signature | dd of=/dev/raw-disk bs=512 seek=3 conv=sync,fsync", raw, json!({"volumes": [of_raw]})),
    ]);
    world.ready(&["files-1", "files-2", "raw"]);
    assert_eq!(world.sh("files-1", "head -n 1 /v/file; echo more >>/v/file"), "kept\n");
    assert_eq!(sessions(), [OPEN]);
    let mounts = World::mounts("kubernetes.io/iscsi");
    assert!(mounts.len() == 1 && mounts[0].contains("noatime"), "{mounts:?}");
    world.delete("pod", &["files-1"]);
    world.cluster.kill();
    world.cluster.spawn();
    world.cluster.wait_ready();
    assert_eq!(world.sh("files-2", "tail -n 1 /v/file"), "more\n");
    world.delete("pod", &["files-2"]);
    assert_eq!((World::mounts("kubernetes.io/iscsi").len(), sessions().len()), (0, 1), "the raw disk is still there");
    assert_eq!(world.sh("raw", "dd if=/dev/raw-disk bs=512 skip=3 count=1 2>/dev/null | head -n 1"), "signature\n");
    world.delete("pod", &["raw"]);
    until_no_session();
    world.delete("pvc", &["files", "raw"]);
    world.delete("pv", &["files", "raw"]);
}

fn chap(world: &mut World) {
    let secret = |password: &str| {
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "chap"}, "type": "kubernetes.io/iscsi-chap",
            "stringData": {"node.session.auth.username": "me", "node.session.auth.password": password}})
    };
    let me = "iqn.2024-01.io.orch:me";
    let more = json!({"chapAuthSession": true, "secretRef": {"name": "chap"}, "initiatorName": me});
    world.apply(&[secret("wrongwrong123"), user("chap", "echo x >/v/file", disk(CLOSED, 1, more), json!({}))]);
    world.until_event(
        "chap",
        "FailedMount: MountVolume.WaitForAttach failed for volume \"v\" : failed to get any path for iscsi disk",
    );
    world.until_event("chap", "iSCSI login failed due to authorization failure");
    assert!(!world.events("chap").contains("wrongwrong123"), "no event tells a password");
    world.kubectl.manifest(&["apply"], &secret("secretsecret1").to_string()).unwrap();
    world.ready(&["chap"]);
    assert_eq!(sessions(), [CLOSED]);
    let names = run("bash", ["-c", "cat /sys/class/iscsi_session/*/initiatorname"]);
    assert_eq!(names.trim(), me);
    world.delete("pod", &["chap"]);
    until_no_session();
    assert_eq!(run("bash", ["-c", "ls /etc/iscsi/ifaces 2>/dev/null || true"]), "", "the copy of the interface is gone");
}
