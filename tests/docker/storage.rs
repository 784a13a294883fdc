//! Storage on the real thing: claims, volumes and what is in them, through pods, restarts and kills; and nothing is left behind.

use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::support::{Cluster, Kubectl, docker, wait_for};

const MINUTE: Duration = Duration::from_secs(60);

fn apply(kubectl: &Kubectl, manifest: &str) {
    kubectl.manifest(&["apply"], manifest).unwrap_or_else(|error| panic!("{manifest}\n{error}"));
}

fn wait_path(kubectl: &Kubectl, what: &[&str], path: &str, expected: &str) {
    wait_for(&format!("{what:?} {path} to be {expected}"), MINUTE, || {
        let arguments = ["get"].into_iter().chain(what.iter().copied());
        let seen = kubectl.try_run(arguments.chain(["-o", &format!("jsonpath={path}")]))?;
        if seen == expected { Ok(()) } else { Err(seen) }
    });
}

fn wait_event(kubectl: &Kubectl, object: &str, text: &str) {
    wait_for(&format!("an event about {object}: {text}"), MINUTE, || {
        let path = "{range .items[*]}{.reason}: {.message}{\"\\n\"}{end}";
        let selector = format!("involvedObject.name={object}");
        let seen = kubectl.try_run(["get", "events", "--field-selector", &selector, "-o", &format!("jsonpath={path}")])?;
        if seen.contains(text) { Ok(()) } else { Err(seen) }
    });
}

fn wait_gone(kubectl: &Kubectl, kind: &str, name: &str) {
    wait_for(&format!("{kind}/{name} to be gone"), MINUTE, || match kubectl.try_run(["get", kind, name]) {
        Err(error) if error.contains("not found") => Ok(()),
        other => Err(format!("{other:?}")),
    });
}

fn claim(name: &str, extra: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {{name: {name}}}, spec: {{accessModes: [ReadWriteOnce], \
         resources: {{requests: {{storage: 64Mi}}}}{extra}}}}}"
    )
}

/// A pod that sleeps, with a claim at /data.
fn pod(name: &str, claim: &str, extra: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{terminationGracePeriodSeconds: 1, containers: [{{name: c, \
         image: busybox, imagePullPolicy: Never, command: [sleep, '3600'], volumeMounts: [{{name: data, mountPath: /data{extra}}}]}}], \
         volumes: [{{name: data, persistentVolumeClaim: {{claimName: {claim}}}}}]}}}}"
    )
}

fn ready(kubectl: &Kubectl, pod: &str) {
    kubectl.run(["wait", "--for=condition=Ready", &format!("pod/{pod}"), "--timeout=60s"]);
}

fn exec(kubectl: &Kubectl, pod: &str, script: &str) -> String {
    kubectl.run(["exec", pod, "--", "sh", "-c", script])
}

/// What is mounted below a folder, and the loop devices of files below it.
fn mounts_and_loops(folder: &Path) -> (Vec<String>, Vec<String>) {
    let ours = folder.display().to_string();
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let mounts = mounts.lines().filter_map(|line| line.split(' ').nth(1)).filter(|at| at.starts_with(&ours)).map(str::to_owned);
    let devices = fs::read_dir("/sys/block").unwrap().flatten();
    let backing = devices.filter_map(|device| fs::read_to_string(device.path().join("loop/backing_file")).ok());
    (mounts.collect(), backing.filter(|file| file.starts_with(&ours)).collect())
}

fn wait_nothing_mounted(cluster: &Cluster) {
    wait_for("nothing to be mounted", MINUTE, || {
        let (mounts, loops) = mounts_and_loops(cluster.folder.path());
        if mounts.is_empty() && loops.is_empty() { Ok(()) } else { Err(format!("{mounts:?} {loops:?}")) }
    });
}

#[test]
fn a_claim_keeps_its_data_until_it_is_deleted() {
    let mut cluster = Cluster::start();
    let kubectl = cluster.kubectl("1.33");
    let classes = kubectl.run(["get", "storageclass"]);
    assert!(classes.contains("local-path (default)") && classes.contains("orch.io/local-path"), "{classes}");
    apply(&kubectl, &claim("data", ""));
    wait_event(&kubectl, "data", "WaitForFirstConsumer: waiting for first consumer to be created before binding");
    let deployment = "{apiVersion: apps/v1, kind: Deployment, metadata: {name: db}, spec: {selector: {matchLabels: {app: db}}, \
        strategy: {type: Recreate}, template: {metadata: {labels: {app: db}}, spec: {terminationGracePeriodSeconds: 1, \
        containers: [{name: c, image: busybox, imagePullPolicy: Never, command: [sleep, '3600'], \
        volumeMounts: [{name: data, mountPath: /data}]}], volumes: [{name: data, persistentVolumeClaim: {claimName: data}}]}}}}";
    apply(&kubectl, deployment);
    kubectl.run(["rollout", "status", "deploy/db", "--timeout=60s"]);
    wait_event(&kubectl, "data", "ProvisioningSucceeded: Successfully provisioned volume pvc-");
    exec(&kubectl, "deploy/db", "echo precious > /data/file");
    let volume = kubectl.jsonpath(&["pvc", "data"], "{.spec.volumeName}");
    let path = kubectl.jsonpath(&["pv", &volume], "{.spec.local.path}");
    assert!(path.starts_with(&cluster.folder.path().join("data/storage").display().to_string()), "{path}");
    assert_eq!(fs::read_to_string(format!("{path}/file")).unwrap(), "precious\n");
    let pod = kubectl.jsonpath(&["pods", "-l", "app=db"], "{.items[0].metadata.name}");
    kubectl.run(["delete", "pod", &pod]);
    kubectl.run(["rollout", "status", "deploy/db", "--timeout=60s"]);
    assert_eq!(exec(&kubectl, "deploy/db", "cat /data/file"), "precious\n");
    cluster.kill();
    cluster.spawn();
    cluster.wait_ready();
    assert_eq!(exec(&kubectl, "deploy/db", "cat /data/file"), "precious\n");
    // A claim in use is kept; when its pod is gone, it goes, and its data with it.
    kubectl.run(["delete", "pvc", "data", "--wait=false"]);
    wait_path(&kubectl, &["pvc", "data"], "{.metadata.finalizers}", "[\"kubernetes.io/pvc-protection\"]");
    assert!(kubectl.run(["get", "pvc", "data"]).contains("Terminating"));
    assert_eq!(exec(&kubectl, "deploy/db", "cat /data/file"), "precious\n");
    kubectl.run(["delete", "deploy", "db"]);
    wait_gone(&kubectl, "pvc", "data");
    wait_gone(&kubectl, "pv", &volume);
    assert!(!Path::new(&path).exists(), "{path}");
    wait_nothing_mounted(&cluster);
}

#[test]
fn static_volumes_are_bound_retained_and_refused() {
    let cluster = Cluster::start();
    let kubectl = cluster.kubectl("1.33");
    let host = cluster.folder.path().join("host");
    fs::create_dir(&host).unwrap();
    fs::write(host.join("file"), "from the host\n").unwrap();
    for (name, size) in [("big", "10Gi"), ("small", "1Gi")] {
        apply(
            &kubectl,
            &format!(
                "{{apiVersion: v1, kind: PersistentVolume, metadata: {{name: {name}}}, spec: {{capacity: {{storage: {size}}}, \
             accessModes: [ReadWriteOnce], storageClassName: manual, hostPath: {{path: {}}}}}}}",
                host.display()
            ),
        );
    }
    wait_path(&kubectl, &["pv", "small"], "{.status.phase}", "Available");
    apply(&kubectl, &claim("data", ", storageClassName: manual"));
    wait_path(&kubectl, &["pvc", "data"], "{.status.phase} {.spec.volumeName} {.status.capacity.storage}", "Bound small 1Gi");
    wait_path(&kubectl, &["pv", "small"], "{.status.phase} {.spec.claimRef.name}", "Bound data");
    apply(&kubectl, &pod("reader", "data", ", readOnly: true"));
    ready(&kubectl, "reader");
    assert_eq!(
        exec(&kubectl, "reader", "cat /data/file; touch /data/x 2>&1 || true"),
        "from the host\ntouch: /data/x: Read-only file system\n"
    );
    // A second claim of that size gets the other; a third has nothing, and its pod says so.
    apply(&kubectl, &claim("more", ", storageClassName: manual"));
    wait_path(&kubectl, &["pvc", "more"], "{.spec.volumeName}", "big");
    apply(&kubectl, &claim("none", ", storageClassName: ''"));
    wait_event(&kubectl, "none", "FailedBinding: no persistent volumes available for this claim and no storage class is set");
    apply(&kubectl, &pod("stuck", "none", ""));
    wait_event(&kubectl, "stuck", "0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims");
    apply(&kubectl, &pod("lost", "nobody", ""));
    wait_event(&kubectl, "lost", "0/1 nodes are available: persistentvolumeclaim \"nobody\" not found");
    // What comes late is bound, and the pod that waited runs.
    apply(
        &kubectl,
        &format!(
            "{{apiVersion: v1, kind: PersistentVolume, metadata: {{name: late}}, spec: {{capacity: {{storage: 1Gi}}, \
         accessModes: [ReadWriteOnce], local: {{path: {}}}, nodeAffinity: {{required: {{nodeSelectorTerms: [{{matchExpressions: \
         [{{key: kubernetes.io/hostname, operator: In, values: [{}]}}]}}]}}}}}}}}",
            host.display(),
            cluster.node
        ),
    );
    ready(&kubectl, "stuck");
    assert_eq!(exec(&kubectl, "stuck", "cat /data/file"), "from the host\n");
    kubectl.run(["delete", "pod", "reader", "stuck", "lost"]);
    kubectl.run(["delete", "pvc", "data"]);
    wait_path(&kubectl, &["pv", "small"], "{.status.phase}", "Released");
    assert_eq!(fs::read_to_string(host.join("file")).unwrap(), "from the host\n");
    // Given free by hand, it serves again.
    kubectl.run(["patch", "pv", "small", "--type=json", "-p", "[{\"op\": \"remove\", \"path\": \"/spec/claimRef\"}]"]);
    wait_path(&kubectl, &["pv", "small"], "{.status.phase}", "Available");
    wait_nothing_mounted(&cluster);
}

#[test]
fn block_and_loop_volumes_leave_no_device_behind() {
    let mut cluster = Cluster::start();
    let kubectl = cluster.kubectl("1.37");
    apply(
        &kubectl,
        "{apiVersion: storage.k8s.io/v1, kind: StorageClass, metadata: {name: sized}, provisioner: orch.io/local-path, \
        parameters: {type: loop}, volumeBindingMode: WaitForFirstConsumer, allowVolumeExpansion: true}",
    );
    apply(&kubectl, &claim("sized", ", storageClassName: sized"));
    apply(&kubectl, &claim("raw", ", volumeMode: Block"));
    apply(&kubectl, &pod("fs", "sized", ""));
    apply(
        &kubectl,
        "{apiVersion: v1, kind: Pod, metadata: {name: raw}, spec: {terminationGracePeriodSeconds: 1, containers: [{name: c, \
        image: busybox, imagePullPolicy: Never, command: [sleep, '3600'], volumeDevices: [{name: data, devicePath: /dev/disk}]}], \
        volumes: [{name: data, persistentVolumeClaim: {claimName: raw}}]}}",
    );
    ready(&kubectl, "fs");
    ready(&kubectl, "raw");
    let kib = || exec(&kubectl, "fs", "df -k /data | tail -1 | awk '{print $2}'").trim().parse::<u64>().unwrap();
    assert!((40_000..65_536).contains(&kib()), "{}", kib());
    let full =
        kubectl.output(["exec", "fs", "--", "sh", "-c", "dd if=/dev/zero of=/data/big bs=1M count=100 2>&1; rm /data/big"]);
    assert!(String::from_utf8_lossy(&full.stdout).contains("No space left"), "{full:?}");
    exec(&kubectl, "raw", "echo signature | dd of=/dev/disk bs=512 seek=3 conv=sync 2>/dev/null");
    exec(&kubectl, "fs", "echo kept > /data/file");
    // It grows while it is in use.
    kubectl.run(["patch", "pvc", "sized", "-p", "{\"spec\": {\"resources\": {\"requests\": {\"storage\": \"128Mi\"}}}}"]);
    // Where the kernel does not allow that (CAP_SYS_RESOURCE), it says that it waits for the next pod.
    wait_for("the claim to say that it grows", MINUTE, || {
        let path = "{.status.capacity.storage} {.status.conditions[*].type}";
        let seen = kubectl.jsonpath(&["pvc", "sized"], path);
        if seen.starts_with("128Mi") || seen.contains("FileSystemResizePending") { Ok(()) } else { Err(seen) }
    });
    cluster.kill();
    cluster.spawn();
    cluster.wait_ready();
    kubectl.run(["delete", "pod", "fs", "raw"]);
    wait_nothing_mounted(&cluster);
    apply(&kubectl, &pod("fs", "sized", ""));
    ready(&kubectl, "fs");
    assert_eq!(exec(&kubectl, "fs", "cat /data/file"), "kept\n");
    wait_path(&kubectl, &["pvc", "sized"], "{.status.capacity.storage}", "128Mi");
    assert!(kib() > 100_000, "{}", kib());
    kubectl.run(["delete", "pod", "fs"]);
    kubectl.run(["delete", "pvc", "sized", "raw"]);
    wait_for("the volumes to be gone", MINUTE, || match kubectl.try_run(["get", "pv", "-o", "name"])? {
        none if none.is_empty() => Ok(()),
        some => Err(some),
    });
    assert_eq!(fs::read_dir(cluster.folder.path().join("data/storage")).unwrap().count(), 0);
    wait_nothing_mounted(&cluster);
}

#[test]
fn ephemeral_claims_live_as_long_as_their_pod() {
    let cluster = Cluster::start();
    let kubectl = cluster.kubectl("1.33");
    apply(
        &kubectl,
        "{apiVersion: v1, kind: Pod, metadata: {name: job}, spec: {terminationGracePeriodSeconds: 1, \
        securityContext: {runAsUser: 1000, fsGroup: 2000}, containers: [{name: c, image: busybox, imagePullPolicy: Never, \
        command: [sleep, '3600'], volumeMounts: [{name: scratch, mountPath: /scratch}]}], volumes: [{name: scratch, ephemeral: \
        {volumeClaimTemplate: {spec: {accessModes: [ReadWriteOncePod], resources: {requests: {storage: 1Mi}}}}}}]}}",
    );
    ready(&kubectl, "job");
    assert_eq!(exec(&kubectl, "job", "echo x > /scratch/f && stat -c %g /scratch/f"), "2000\n");
    let volume = kubectl.jsonpath(&["pvc", "job-scratch"], "{.spec.volumeName}");
    apply(&kubectl, &pod("rival", "job-scratch", ""));
    wait_event(&kubectl, "rival", "node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode");
    kubectl.run(["delete", "pod", "rival", "job"]);
    wait_gone(&kubectl, "pvc", "job-scratch");
    wait_gone(&kubectl, "pv", &volume);
    wait_nothing_mounted(&cluster);
}

#[test]
fn images_are_volumes() {
    let cluster = Cluster::start();
    let kubectl = cluster.kubectl("1.37");
    for name in ["one", "two"] {
        apply(
            &kubectl,
            &format!(
                "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{terminationGracePeriodSeconds: 1, containers: [{{name: c, \
                 image: busybox, imagePullPolicy: Never, command: [sleep, '3600'], volumeMounts: [{{name: web, mountPath: /web}}, \
                 {{name: web, mountPath: /conf, subPath: etc/nginx}}]}}], \
                 volumes: [{{name: web, image: {{reference: 'nginx:1.14', pullPolicy: Never}}}}]}}}}"
            ),
        );
    }
    ready(&kubectl, "one");
    ready(&kubectl, "two");
    let seen = exec(
        &kubectl,
        "one",
        "ls /web/etc/nginx/nginx.conf /conf/nginx.conf; ls -A /web | grep dockerenv; touch /web/x 2>&1 || true",
    );
    assert_eq!(seen, "/conf/nginx.conf\n/web/etc/nginx/nginx.conf\ntouch: /web/x: Read-only file system\n");
    let unpacked = || fs::read_dir(cluster.folder.path().join("data/agent/image-volumes")).unwrap().count();
    assert_eq!(unpacked(), 1, "one copy for both");
    kubectl.run(["delete", "pod", "one"]);
    assert_eq!(unpacked(), 1);
    assert_eq!(exec(&kubectl, "two", "ls /conf/nginx.conf"), "/conf/nginx.conf\n");
    kubectl.run(["delete", "pod", "two"]);
    wait_for("the image to be gone", MINUTE, || if unpacked() == 0 { Ok(()) } else { Err(unpacked().to_string()) });
    wait_nothing_mounted(&cluster);
}

#[test]
fn trust_anchors_are_projected_and_follow_their_bundles() {
    let cluster = Cluster::start();
    let kubectl = cluster.kubectl("1.37");
    let root = kubectl.jsonpath(&["configmap", "kube-root-ca.crt"], "{.data.ca\\.crt}");
    let bundle = |name: &str, spec: &str, text: &str| {
        let text = text.trim().replace('\n', "\\n");
        format!(
            "{{apiVersion: certificates.k8s.io/v1, kind: ClusterTrustBundle, metadata: {{name: {name}, labels: {{use: test}}}}, \
             spec: {{{spec}trustBundle: \"{text}\\n\"}}}}"
        )
    };
    let refused = kubectl.manifest(&["apply"], &bundle("none", "", "nothing")).unwrap_err();
    assert!(
        refused.contains("spec.trustBundle: Invalid value") && refused.contains("at least one trust anchor must be provided"),
        "{refused}"
    );
    let refused = kubectl.manifest(&["apply"], &bundle("other", "signerName: example.com/s, ", &root)).unwrap_err();
    assert!(refused.contains("must be named with prefix example.com:s:"), "{refused}");
    apply(&kubectl, &bundle("anchors", "", &root));
    apply(
        &kubectl,
        "{apiVersion: v1, kind: Pod, metadata: {name: app}, spec: {terminationGracePeriodSeconds: 0, containers: [{name: c, \
        image: busybox, imagePullPolicy: Never, command: [sleep, '3600'], volumeMounts: [{name: trust, mountPath: /trust}]}], \
        volumes: [{name: trust, projected: {sources: [{clusterTrustBundle: {name: anchors, path: named.pem}}, \
        {clusterTrustBundle: {signerName: example.com/s, labelSelector: {matchLabels: {use: test}}, optional: true, path: signed.pem}}]}}]}}",
    );
    ready(&kubectl, "app");
    assert_eq!(exec(&kubectl, "app", "cat /trust/named.pem; wc -c < /trust/signed.pem"), format!("{}\n0\n", root.trim()));
    apply(&kubectl, &bundle("example.com:s:1", "signerName: example.com/s, ", &root));
    wait_for("the new bundle in the volume", Duration::from_secs(5), || {
        let seen = exec(&kubectl, "app", "cat /trust/signed.pem");
        if seen.trim() == root.trim() { Ok(()) } else { Err(seen) }
    });
    let listed = kubectl.run(["get", "clustertrustbundles", "--field-selector=spec.signerName=example.com/s"]);
    assert!(
        listed.contains("SIGNERNAME") && listed.contains("example.com:s:1   example.com/s") && !listed.contains("anchors"),
        "{listed}"
    );
    kubectl.run(["delete", "pod", "app"]);
    wait_nothing_mounted(&cluster);
}

#[test]
fn configuration_is_swapped_while_the_pod_runs_and_sub_paths_stay_inside() {
    let cluster = Cluster::start();
    let kubectl = cluster.kubectl("1.33");
    kubectl.run(["create", "configmap", "conf", "--from-literal=level=low"]);
    let outside = cluster.folder.path().join("outside");
    fs::create_dir(&outside).unwrap();
    apply(&kubectl, &claim("data", ""));
    apply(
        &kubectl,
        "{apiVersion: v1, kind: Pod, metadata: {name: app}, spec: {terminationGracePeriodSeconds: 1, containers: [{name: c, \
        image: busybox, imagePullPolicy: Never, command: [sleep, '3600'], volumeMounts: [{name: conf, mountPath: /conf}, \
        {name: data, mountPath: /data}, {name: data, mountPath: /part, subPath: a/b}, {name: memory, mountPath: /memory}]}], volumes: [\
        {name: conf, configMap: {name: conf, defaultMode: 256}}, {name: data, persistentVolumeClaim: {claimName: data}}, \
        {name: memory, emptyDir: {medium: Memory, sizeLimit: 4Mi}}]}}",
    );
    ready(&kubectl, "app");
    assert_eq!(
        exec(&kubectl, "app", "cat /conf/level; stat -Lc %a /conf/level; df -k /memory | tail -1 | awk '{print $2}'"),
        "low400\n4096\n"
    );
    exec(&kubectl, "app", "echo x > /part/f && cat /data/a/b/f");
    kubectl.run(["patch", "configmap", "conf", "-p", "{\"data\": {\"level\": \"high\"}}"]);
    wait_for("the new configuration", Duration::from_secs(5), || {
        let seen = exec(&kubectl, "app", "cat /conf/level");
        if seen == "high" { Ok(()) } else { Err(seen) }
    });
    // A link that leads out of the volume leads nowhere.
    exec(&kubectl, "app", &format!("ln -s {} /data/escape", outside.display()));
    kubectl.run(["delete", "pod", "app"]);
    apply(&kubectl, &pod("thief", "data", ", subPath: escape/stolen"));
    wait_for("the thief to be refused or kept inside", MINUTE, || {
        let state = kubectl.jsonpath(&["pod", "thief"], "{.status.containerStatuses[0].state.waiting.reason}{.status.phase}");
        if state.contains("CreateContainerConfigError") || state.contains("Running") { Ok(()) } else { Err(state) }
    });
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    kubectl.run(["delete", "pod", "thief"]);
    wait_nothing_mounted(&cluster);
    assert_eq!(docker(["ps", "-q", "--filter", &format!("label=io.orch.owner={}", cluster.owner())]), "");
}
