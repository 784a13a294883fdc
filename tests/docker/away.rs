//! The server is away: the agent works from what it last knew, across its own restart too, and reports all when the server is back.
//! And the other way round: a node is away, and its pods run elsewhere.

use std::fs::File;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::{Cluster, Kubectl, docker, free_port, run, uninstall, wait_for};

const MINUTE: Duration = Duration::from_secs(60);

/// An `orch agent` process.
struct Agent {
    folder: std::path::PathBuf,
    server: u16,
    name: String,
    port: u16,
    child: Option<Child>,
}

impl Agent {
    fn join(cluster: &Cluster, name: &str) -> Self {
        let folder = cluster.folder.path().join(name);
        std::fs::create_dir_all(&folder).unwrap();
        let name = format!("{}-{name}", cluster.node);
        let mut agent = Self { folder, server: cluster.port, name, port: free_port(), child: None };
        let token = std::fs::read_to_string(cluster.folder.path().join("data/token")).unwrap();
        agent.start(token.trim());
        agent
    }

    fn start(&mut self, token: &str) {
        let log = File::options().create(true).append(true).open(self.folder.join("log")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_orch"));
        command.args(["agent", "--config=/dev/null", "--join", &format!("https://127.0.0.1:{}", self.server), "--token", token]);
        command.arg(format!("--data-dir={}", self.folder.join("data").display())).arg(format!("--node-name={}", self.name));
        command.arg(format!("--kubelet-port={}", self.port));
        self.child = Some(command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap());
    }

    fn log(&self) -> String {
        let text = std::fs::read_to_string(self.folder.join("log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }

    fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            run("kill", [child.id().to_string()]);
            child.wait().unwrap();
        }
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    fn wait_ready(&self, kubectl: &Kubectl, status: &str) {
        wait_for(&format!("{} to be {status}", self.name), MINUTE, || {
            let nodes = kubectl.try_run(["get", "nodes"])?;
            let is_so = nodes.lines().any(|line| line.starts_with(&self.name) && line.contains(&format!(" {status} ")));
            if is_so { Ok(()) } else { Err(format!("{nodes}{}", self.log())) }
        });
    }

    fn owner(&self) -> String {
        std::fs::read_to_string(self.folder.join("data/agent/owner")).unwrap_or_else(|_| "nobody".to_owned()).trim().to_owned()
    }

    /// Running containers of this node by the name of their pod's container.
    fn running(&self, container: &str) -> Vec<String> {
        let owner = format!("label=io.orch.owner={}", self.owner());
        let name = format!("label=io.kubernetes.container.name={container}");
        docker(["ps", "-q", "--no-trunc", "--filter", &owner, "--filter", &name]).lines().map(str::to_owned).collect()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the end of the log of {} ---\n{}", self.name, self.log());
        }
        self.stop();
        uninstall(&self.folder.join("data"));
    }
}

/// Another running container than the one before.
fn wait_other(agent: &Agent, before: &[String]) -> Vec<String> {
    wait_for("the container to run again", MINUTE, || {
        let now = agent.running("c");
        if now.len() == 1 && now != before { Ok(now) } else { Err(format!("{now:?}; {}", agent.log())) }
    })
}

fn exec(container: &str, script: &str) -> String {
    docker(["exec", container, "sh", "-c", script])
}

#[test]
fn the_agent_goes_on_without_the_server() {
    let mut cluster = Cluster::start_with(&["--disable-agent"]);
    let kubectl = cluster.kubectl("1.33");
    let mut agent = Agent::join(&cluster, "one");
    agent.wait_ready(&kubectl, "Ready");
    kubectl.run(["create", "secret", "generic", "key", "--from-literal=word=hush"]);
    kubectl.run(["create", "configmap", "settings", "--from-literal=colour=blue"]);
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: app, labels: {app: app}}\nspec:\n  containers:\n  - name: c\n    image: busybox\n    imagePullPolicy: IfNotPresent\n    command: [sh, -c, 'touch /tmp/up; exec sleep 100000']\n    env:\n    - {name: WORD, valueFrom: {secretKeyRef: {name: key, key: word}}}\n    - {name: COLOUR, valueFrom: {configMapKeyRef: {name: settings, key: colour}}}\n    readinessProbe: {exec: {command: [cat, /tmp/up]}, periodSeconds: 1, failureThreshold: 1}\n    volumeMounts: [{name: key, mountPath: /key}, {name: settings, mountPath: /settings}]\n  volumes:\n  - {name: key, secret: {secretName: key}}\n  - {name: settings, configMap: {name: settings}}\n  terminationGracePeriodSeconds: 1\n";
    kubectl.manifest(&["apply"], pod).unwrap();
    kubectl.run(["wait", "--for=condition=Ready", "pod/app", "--timeout=60s"]);
    let known = "echo $WORD $COLOUR $(cat /key/word /settings/colour) $(ls /var/run/secrets/kubernetes.io/serviceaccount/token)";
    let expected = "hush blue hushblue /var/run/secrets/kubernetes.io/serviceaccount/token\n";
    let first = agent.running("c");
    assert_eq!(exec(&first[0], known), expected);

    assert!(cluster.stop());
    // A container that is killed starts again.
    docker(["kill", &first[0]]);
    let second = wait_other(&agent, &first);
    assert_eq!(exec(&second[0], known), expected);
    // The agent's own restart stops nothing, and it still looks after the pod.
    agent.stop();
    assert_eq!(agent.running("c"), second);
    agent.start("");
    wait_for("the agent to be there", MINUTE, || {
        let log = agent.log();
        if log.contains("joined") { Ok(()) } else { Err(log) }
    });
    docker(["kill", &second[0]]);
    let third = wait_other(&agent, &second);
    assert_eq!(exec(&third[0], known), expected, "what the API told it still knows");
    // Not ready when the server comes back: the probe went on.
    exec(&third[0], "rm /tmp/up");

    cluster.spawn();
    agent.wait_ready(&kubectl, "Ready");
    let path = "{.status.containerStatuses[0].restartCount} {.status.containerStatuses[0].ready} {.status.containerStatuses[0].containerID}";
    wait_for("the status to arrive", MINUTE, || {
        let now = kubectl.jsonpath(&["pod", "app"], path);
        if now == format!("2 false docker://{}", third[0]) { Ok(()) } else { Err(now) }
    });
    exec(&third[0], "touch /tmp/up");
    kubectl.run(["wait", "--for=condition=Ready", "pod/app", "--timeout=60s"]);
    // What was deleted while the agent was away is stopped when it is back.
    agent.stop();
    kubectl.run(["delete", "pod", "app", "--force", "--grace-period=0"]);
    assert_eq!(agent.running("c"), third);
    agent.start("");
    wait_for("the container to be gone", MINUTE, || {
        let now = agent.running("c");
        if now.is_empty() { Ok(()) } else { Err(format!("{now:?}")) }
    });
}

#[test]
fn pods_of_a_lost_node_run_elsewhere() {
    let grace = ["--disable-agent", "--node-monitor-grace-period=12s", "--default-unreachable-toleration-seconds=3"];
    let cluster = Cluster::start_with(&grace);
    let kubectl = cluster.kubectl("1.33");
    let (mut lost, stays) = (Agent::join(&cluster, "lost"), Agent::join(&cluster, "stays"));
    lost.wait_ready(&kubectl, "Ready");
    stays.wait_ready(&kubectl, "Ready");
    let web = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\nspec:\n  replicas: 4\n  selector: {matchLabels: {app: web}}\n  template:\n    metadata: {labels: {app: web}}\n    spec:\n      terminationGracePeriodSeconds: 1\n      containers: [{name: c, image: busybox, imagePullPolicy: IfNotPresent, command: [sleep, '100000']}]\n---\napiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {selector: {app: web}, ports: [{port: 80}]}\n";
    kubectl.manifest(&["apply"], web).unwrap();
    kubectl.run(["rollout", "status", "deploy/web", "--timeout=60s"]);
    let on_lost = lost.running("c");
    assert!(!on_lost.is_empty(), "pods are spread");
    let ready_on = |node: &str| {
        let path = format!("{{range .items[*].endpoints[?(@.nodeName==\"{node}\")]}}{{.conditions.ready}} {{end}}");
        kubectl.jsonpath(&["endpointslices", "-l", "kubernetes.io/service-name=web"], &path)
    };
    assert!(ready_on(&lost.name).contains("true"));
    lost.kill();
    lost.wait_ready(&kubectl, "NotReady");
    wait_for("its pods to leave the endpoints", Duration::from_secs(5), || {
        let ready = ready_on(&lost.name);
        if ready.contains("true") { Err(ready) } else { Ok(()) }
    });
    let taints = kubectl.jsonpath(&["node", &lost.name], "{.spec.taints[*].key}:{.spec.taints[*].effect}");
    assert!(taints.contains("node.kubernetes.io/unreachable"), "{taints}");
    wait_for("all to run elsewhere", MINUTE, || {
        let ready = kubectl.jsonpath(&["deploy", "web"], "{.status.readyReplicas}");
        let there = stays.running("c").len();
        if ready == "4" && there == 4 { Ok(()) } else { Err(format!("{ready} ready, {there} containers")) }
    });
    assert_eq!(lost.running("c"), on_lost, "nobody is there to stop them yet");
    // The node returns: what was replaced is stopped there.
    lost.start("");
    lost.wait_ready(&kubectl, "Ready");
    wait_for("the old containers to be stopped", MINUTE, || {
        let left = lost.running("c");
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    });
    wait_for("the taints to be gone", MINUTE, || {
        let taints = kubectl.jsonpath(&["node", &lost.name], "{.spec.taints}");
        if taints.is_empty() { Ok(()) } else { Err(taints) }
    });
    wait_for("the old pods to be gone from the API", MINUTE, || {
        let leaving = kubectl.jsonpath(&["pods", "-l", "app=web"], "{.items[*].metadata.deletionTimestamp}");
        if leaving.is_empty() { Ok(()) } else { Err(leaving) }
    });
    assert_eq!(stays.running("c").len(), 4);
    kubectl.run(["delete", "deploy", "web"]);
}

#[test]
fn a_node_that_returns_in_time_keeps_its_pods() {
    let cluster = Cluster::start_with(&["--disable-agent", "--node-monitor-grace-period=12s"]);
    let kubectl = cluster.kubectl("1.33");
    let mut agent = Agent::join(&cluster, "one");
    agent.wait_ready(&kubectl, "Ready");
    let web = "apiVersion: v1\nkind: Pod\nmetadata: {name: web, labels: {app: web}}\nspec:\n  containers: [{name: c, image: busybox, imagePullPolicy: IfNotPresent, command: [sleep, '100000']}]\n  terminationGracePeriodSeconds: 1\n---\napiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {selector: {app: web}, ports: [{port: 80}]}\n";
    kubectl.manifest(&["apply"], web).unwrap();
    kubectl.run(["wait", "--for=condition=Ready", "pod/web", "--timeout=60s"]);
    let before = agent.running("c");
    let addresses = || kubectl.jsonpath(&["endpoints", "web"], "{.subsets[*].addresses[*].ip}");
    let ip = kubectl.jsonpath(&["pod", "web"], "{.status.podIP}");
    agent.kill();
    agent.wait_ready(&kubectl, "NotReady");
    wait_for("the endpoints to be empty", MINUTE, || if addresses().is_empty() { Ok(()) } else { Err(addresses()) });
    agent.start("");
    agent.wait_ready(&kubectl, "Ready");
    wait_for("the pod to serve again", MINUTE, || if addresses() == ip { Ok(()) } else { Err(addresses()) });
    assert_eq!(agent.running("c"), before);
    assert_eq!(kubectl.jsonpath(&["pod", "web"], "{.status.containerStatuses[0].restartCount}"), "0");
    // An agent that is just starting is waited for, and answers when it has found its pods again.
    for _ in 0..3 {
        agent.kill();
        agent.start("");
        assert_eq!(kubectl.run(["exec", "web", "--", "hostname"]), "web\n");
    }
    // The node is gone for good: its pods are collected, and come back nowhere as nobody owns them.
    agent.stop();
    kubectl.run(["delete", "node", &agent.name]);
    kubectl.run(["wait", "--for=delete", "pod/web", "--timeout=90s"]);
}

#[test]
fn a_frozen_server_blames_no_node() {
    let cluster = Cluster::start_with(&["--disable-agent", "--node-monitor-grace-period=12s"]);
    let kubectl = cluster.kubectl("1.33");
    let agent = Agent::join(&cluster, "one");
    agent.wait_ready(&kubectl, "Ready");
    run("kill", ["-STOP", &cluster.pid().to_string()]);
    let until = Instant::now() + Duration::from_secs(25);
    while Instant::now() < until {
        std::thread::park_timeout(until.saturating_duration_since(Instant::now()));
    }
    run("kill", ["-CONT", &cluster.pid().to_string()]);
    // Long enough for the verdict, had there been one.
    let renewed = || kubectl.jsonpath(&["lease", "-n", "kube-node-lease", &agent.name], "{.spec.renewTime}");
    for _ in 0..2 {
        let before = renewed();
        wait_for("the node's next renewal", MINUTE, || if renewed() == before { Err(before.clone()) } else { Ok(()) });
    }
    let events = kubectl.run(["get", "events", "-A"]);
    assert!(!events.contains("NodeNotReady"), "{events}");
    agent.wait_ready(&kubectl, "Ready");
}
