//! The main path, as a user types it, with the oldest, a middle and the newest kubectl: create, apply, scale, update, roll back,
//! inspect, read logs, execute, configure, delete. Each version has a cluster of its own, so they also run beside each other.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::Duration;

use crate::support::{Cluster, Kubectl, curl, docker, text, wait_for};

const MINUTE: Duration = Duration::from_secs(60);

#[test]
fn main_path_with_kubectl_1_20() {
    main_path("1.20");
}

#[test]
fn main_path_with_kubectl_1_33() {
    main_path("1.33");
}

#[test]
fn main_path_with_kubectl_1_37() {
    main_path("1.37");
}

fn main_path(version: &str) {
    let cluster = Cluster::start();
    let kubectl = cluster.kubectl(version);
    inspects_the_cluster(&cluster, &kubectl);
    creates_and_applies(&cluster, &kubectl);
    scales(&kubectl);
    updates_and_rolls_back(&kubectl);
    reads_and_executes(&kubectl);
    configures(&kubectl);
    explains_and_compares(&kubectl, &cluster);
    deletes(&cluster, &kubectl);
}

fn inspects_the_cluster(cluster: &Cluster, kubectl: &Kubectl) {
    let info = kubectl.run(["cluster-info"]);
    assert!(info.contains("is running at") && info.contains(&cluster.port.to_string()), "{info}");
    let nodes = kubectl.run(["get", "nodes", "-o", "wide"]);
    let header: Vec<&str> = nodes.lines().next().unwrap().split_whitespace().collect();
    assert_eq!(
        header,
        "NAME STATUS ROLES AGE VERSION INTERNAL-IP EXTERNAL-IP OS-IMAGE KERNEL-VERSION CONTAINER-RUNTIME"
            .split(' ')
            .collect::<Vec<_>>()
    );
    let row = nodes.lines().nth(1).unwrap();
    assert!(
        row.starts_with(&cluster.node) && row.contains(" Ready ") && row.contains("control-plane") && row.contains("docker://"),
        "{row}"
    );
    let described = kubectl.run(["describe", "node", &cluster.node]);
    for part in [
        "Capacity:",
        "Allocatable:",
        "KubeletReady",
        "PodCIDR:",
        "Non-terminated Pods:",
        "Allocated resources:",
        "node-role.kubernetes.io/control-plane",
    ] {
        assert!(described.contains(part), "no {part:?} in {described}");
    }
    let namespaces = kubectl.run(["get", "ns", "-o", "name"]);
    let expected = ["namespace/default", "namespace/kube-node-lease", "namespace/kube-public", "namespace/kube-system"];
    assert_eq!(namespaces.lines().collect::<Vec<_>>(), expected);
}

fn creates_and_applies(cluster: &Cluster, kubectl: &Kubectl) {
    assert_eq!(kubectl.run(["create", "deployment", "made", "--image=nginx:1.14"]), "deployment.apps/made created\n");
    rollout(kubectl, "made");
    kubectl.run(["delete", "deployment", "made"]);

    let manifest = kubectl.run(["create", "deployment", "web", "--image=nginx:1.14", "--dry-run=client", "-o", "yaml"]);
    std::fs::write(cluster.folder.path().join("web.yaml"), &manifest).unwrap();
    assert_eq!(kubectl.manifest(&["apply"], &manifest).unwrap(), "deployment.apps/web created\n");
    rollout(kubectl, "web");
    let ready = kubectl.run(["get", "deploy,rs,po", "-o", "wide"]);
    for part in ["deployment.apps/web", "1/1", "replicaset.apps/web-", "pod/web-", "Running", "nginx:1.14", &cluster.node] {
        assert!(ready.contains(part), "no {part:?} in {ready}");
    }
    let ip = kubectl.jsonpath(&["pods", "-l", "app=web"], "{.items[0].status.podIP}");
    let page = curl(&format!("http://{ip}/")).unwrap();
    assert!(page.contains("Welcome to nginx!"), "{page}");

    let mut watch = kubectl.command(["get", "po", "-l", "app=web", "-w"]).stdout(Stdio::piped()).spawn().unwrap();
    let ten = manifest.replace("replicas: 1", "replicas: 10");
    assert_eq!(kubectl.manifest(&["apply"], &ten).unwrap(), "deployment.apps/web configured\n");
    rollout(kubectl, "web");
    assert_eq!(kubectl.jsonpath(&["deploy", "web"], "{.status.readyReplicas}"), "10");
    let mut seen = String::new();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    while !["Pending", "ContainerCreating", "Running"].iter().all(|status| seen.contains(status)) {
        seen.push_str(&lines.next().unwrap().unwrap());
    }
    watch.kill().unwrap();
    watch.wait().unwrap();
    // Older kubectls print `creationTimestamp: null`, a change that they then report for ever, on Kubernetes too.
    let plain: Vec<&str> = ten.lines().filter(|line| !line.contains("creationTimestamp: null")).collect();
    kubectl.manifest(&["apply"], &plain.join("\n")).unwrap();
    assert_eq!(kubectl.manifest(&["apply"], &plain.join("\n")).unwrap(), "deployment.apps/web unchanged\n");
}

fn scales(kubectl: &Kubectl) {
    assert_eq!(kubectl.run(["scale", "deploy", "web", "--replicas=3"]), "deployment.apps/web scaled\n");
    rollout(kubectl, "web");
    wait_for("three pods to be left", MINUTE, || {
        let pods = kubectl.run(["get", "pods", "-l", "app=web", "-o", "name"]);
        if pods.lines().count() == 3 { Ok(()) } else { Err(pods) }
    });
}

fn updates_and_rolls_back(kubectl: &Kubectl) {
    let images = |kubectl: &Kubectl| kubectl.jsonpath(&["pods", "-l", "app=web"], "{.items[*].spec.containers[0].image}");
    let settled = |image: &str| {
        rollout(kubectl, "web");
        let expected = [image; 3].join(" ");
        wait_for("all pods to be of the new template", MINUTE, || {
            let now = images(kubectl);
            if now == expected { Ok(()) } else { Err(now) }
        });
    };
    kubectl.run(["set", "image", "deploy/web", "nginx=nginx:1.15"]);
    settled("nginx:1.15");
    let history = kubectl.run(["rollout", "history", "deploy/web"]);
    assert!(
        history.contains("REVISION") && history.lines().filter(|line| line.starts_with(['1', '2'])).count() == 2,
        "{history}"
    );
    let undone = kubectl.run(["rollout", "undo", "deploy/web"]);
    assert!(undone.starts_with("deployment.apps/web rolled back"), "{undone}");
    settled("nginx:1.14");
    assert_eq!(kubectl.jsonpath(&["deploy", "web"], "{.metadata.annotations.deployment\\.kubernetes\\.io/revision}"), "3");
    assert_eq!(kubectl.run(["get", "rs", "-l", "app=web", "-o", "name"]).lines().count(), 2, "the old ReplicaSet is used again");
}

fn reads_and_executes(kubectl: &Kubectl) {
    let pod = kubectl.jsonpath(&["pods", "-l", "app=web"], "{.items[0].metadata.name}");
    let described = kubectl.run(["describe", "pod", &pod]);
    for part in [
        "Status:",
        "Running",
        "Container ID:",
        "docker://",
        "Controlled By:",
        "ReplicaSet/web-",
        "Scheduled",
        "Pulled",
        "Created",
        "Started",
        "kube-api-access-",
    ] {
        assert!(described.contains(part), "no {part:?} in {described}");
    }
    let ip = kubectl.jsonpath(&["pod", &pod], "{.status.podIP}");
    let mut follow = kubectl.command(["logs", "-f", &pod]).stdout(Stdio::piped()).spawn().unwrap();
    curl(&format!("http://{ip}/marker")).unwrap();
    let mut lines = BufReader::new(follow.stdout.take().unwrap()).lines();
    let line = lines.find(|line| line.as_ref().unwrap().contains("\"GET /marker HTTP/1.1\" 404"));
    assert!(line.is_some(), "the line comes while following");
    follow.kill().unwrap();
    follow.wait().unwrap();
    assert_eq!(kubectl.run(["logs", &pod, "--tail=1"]).lines().count(), 1);

    assert_eq!(kubectl.run(["exec", &pod, "--", "cat", "/etc/hostname"]).trim(), pod);
    let failed = kubectl.output(["exec", &pod, "--", "sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!((failed.status.code(), text(&failed.stdout).as_str()), (Some(7), "out\n"));
    assert!(text(&failed.stderr).contains("err\n") && text(&failed.stderr).contains("command terminated with exit code 7"));
    let mut piped =
        kubectl.command(["exec", "-i", &pod, "--", "cat"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut piped.stdin.take().unwrap(), b"through stdin").unwrap();
    assert_eq!(text(&piped.wait_with_output().unwrap().stdout), "through stdin");
    executes_on_a_terminal(kubectl, &pod);

    let events = kubectl.run(["get", "events"]);
    for reason in ["Scheduled", "SuccessfulCreate", "ScalingReplicaSet", "Started", "Killing"] {
        assert!(events.contains(reason), "no {reason} in {events}");
    }
}

/// `exec -it` behind a real pseudo-terminal, which util-linux' `script` gives.
fn executes_on_a_terminal(kubectl: &Kubectl, pod: &str) {
    // The terminal gets its size just after the process has started, as with `docker exec`.
    let inside = "tty; until stty size 2>/dev/null | grep 33; do sleep 0.1; done; exit 3";
    let command = kubectl.command(["exec", "-it", pod, "--", "sh", "-c", inside]);
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|word| format!("'{}'", word.to_string_lossy())));
    let mut script = std::process::Command::new("script");
    script.args(["-q", "-e", "-c", &format!("stty rows 33 cols 99; {}", words.join(" ")), "/dev/null"]).stdin(Stdio::null());
    for (name, value) in command.get_envs().filter_map(|(name, value)| value.map(|value| (name, value))) {
        script.env(name, value);
    }
    let output = script.output().unwrap();
    let said = text(&output.stdout);
    assert!(said.contains("/dev/pts/") && said.contains("33 99"), "{said}");
    assert_eq!(output.status.code(), Some(3), "{said}");
}

const READS_CONFIG: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: reads}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: busybox:latest
    imagePullPolicy: IfNotPresent
    command: ["sleep", "100000"]
    env:
    - {name: USERNAME, valueFrom: {secretKeyRef: {name: test-secret, key: username}}}
    - {name: POD_IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
    - {name: GREETING, value: "hello $(USERNAME)"}
    envFrom:
    - prefix: S_
      secretRef: {name: test-secret}
    volumeMounts:
    - {name: config, mountPath: /config}
    - {name: secret, mountPath: /secret}
  volumes:
  - {name: config, configMap: {name: redis-config}}
  - {name: secret, secret: {secretName: test-secret, defaultMode: 0400}}
"#;

fn configures(kubectl: &Kubectl) {
    kubectl.run(["create", "secret", "generic", "test-secret", "--from-literal=username=root", "--from-literal=password=123456"]);
    let file = tempfile::Builder::new().prefix("properties").tempdir().unwrap();
    let path = file.path().join("redis.properties");
    std::fs::write(&path, "maxmemory=2mb\n").unwrap();
    kubectl.run(["create", "configmap", "redis-config", &format!("--from-file={}", path.display())]);
    assert_eq!(kubectl.jsonpath(&["secret", "test-secret"], "{.data.password}"), "MTIzNDU2");
    kubectl.manifest(&["apply"], READS_CONFIG).unwrap();
    kubectl.run(["wait", "--for=condition=Ready", "pod/reads", "--timeout=60s"]);
    let inside = |command: &str| kubectl.run(["exec", "reads", "--", "sh", "-c", command]);
    assert_eq!(inside("cat /config/redis.properties /secret/username"), "maxmemory=2mb\nroot");
    assert_eq!(inside("echo $USERNAME $S_password $GREETING"), "root 123456 hello root\n");
    assert_eq!(inside("echo $POD_IP").trim(), kubectl.jsonpath(&["pod", "reads"], "{.status.podIP}"));
    assert_eq!(inside("stat -L -c %a /secret/username").trim(), "400");
    assert!(inside("cat /var/run/secrets/kubernetes.io/serviceaccount/namespace") == "default");
    assert!(inside("df /secret").contains("tmpfs"), "a secret stays in memory");
    kubectl.run(["delete", "pod", "reads"]);
}

fn explains_and_compares(kubectl: &Kubectl, cluster: &Cluster) {
    let explained = kubectl.run(["explain", "deployment.spec.strategy"]);
    for part in ["Deployment", "rollingUpdate", "type", "\"Recreate\""] {
        assert!(explained.contains(part), "no {part:?} in {explained}");
    }
    let pods = kubectl.run(["get", "po", "-o", "yaml"]);
    let dry = kubectl.manifest(&["apply", "--dry-run=server"], &pods).unwrap();
    assert!(dry.lines().count() == 3 && dry.lines().all(|line| line.ends_with("(server dry run)")), "{dry}");
    let web = cluster.folder.path().join("web.yaml");
    let diff = kubectl.output(["diff", "-f", web.to_str().unwrap()]);
    assert_eq!(diff.status.code(), Some(1), "{}{}", text(&diff.stdout), text(&diff.stderr));
    let said = text(&diff.stdout);
    assert!(said.contains("-  replicas: 3") && said.contains("+  replicas: 1"), "{said}");
}

fn deletes(cluster: &Cluster, kubectl: &Kubectl) {
    let web = cluster.folder.path().join("web.yaml");
    kubectl.run(["delete", "-f", web.to_str().unwrap()]);
    kubectl.run(["create", "ns", "x"]);
    kubectl.in_namespace("x").run(["create", "deployment", "inside", "--image=nginx:1.14"]);
    rollout(&kubectl.in_namespace("x"), "inside");
    kubectl.run(["delete", "ns", "x"]);
    let gone = kubectl.fails(["get", "ns", "x"]);
    assert!(gone.contains("Error from server (NotFound): namespaces \"x\" not found"), "{gone}");
    wait_for("nothing to be left in Docker", MINUTE, || {
        let left = cluster.containers();
        if left.is_empty() {
            Ok(())
        } else {
            Err(docker(["ps", "-a", "--filter", &format!("label=io.orch.owner={}", cluster.owner())]))
        }
    });
}

fn rollout(kubectl: &Kubectl, name: &str) {
    let done = kubectl.run(["rollout", "status", &format!("deploy/{name}"), "--timeout=120s"]);
    assert!(done.contains(&format!("deployment \"{name}\" successfully rolled out")), "{done}");
}
