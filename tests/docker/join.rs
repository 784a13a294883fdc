//! A second node on the same machine: joined by token, its pods reach those of the first, logs and exec reach it, and its own
//! restart changes nothing.

use std::fs::File;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::support::{Cluster, Kubectl, docker, free_port, run, text, wait_for};

const MINUTE: Duration = Duration::from_secs(60);

/// An `orch agent` process.
struct Node<'a> {
    cluster: &'a Cluster,
    name: String,
    port: u16,
    child: Option<Child>,
}

impl<'a> Node<'a> {
    fn new(cluster: &'a Cluster) -> Self {
        Self { cluster, name: format!("{}-second", cluster.node), port: free_port(), child: None }
    }

    fn start(&mut self, token: &str) {
        let folder = self.cluster.folder.path();
        let log = File::options().create(true).append(true).open(folder.join("agent.log")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_orch"));
        command.args([
            "agent",
            "--config=/dev/null",
            "--join",
            &format!("https://127.0.0.1:{}", self.cluster.port),
            "--token",
            token,
        ]);
        command.arg(format!("--data-dir={}", folder.join("second").display())).arg(format!("--node-name={}", self.name));
        command.arg(format!("--kubelet-port={}", self.port));
        self.child = Some(command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap());
    }

    fn wait_ready(&self, kubectl: &Kubectl) {
        wait_for("the second node to be ready", MINUTE, || {
            let nodes = kubectl.try_run(["get", "nodes"])?;
            let ready = nodes.lines().any(|line| line.starts_with(&self.name) && line.contains(" Ready "));
            if ready { Ok(()) } else { Err(format!("{nodes}{}", self.log())) }
        });
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.cluster.folder.path().join("agent.log")).unwrap_or_default()
    }

    fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            run("kill", [child.id().to_string()]);
            child.wait().unwrap();
        }
    }
}

impl Drop for Node<'_> {
    fn drop(&mut self) {
        self.stop();
        let owner = std::fs::read_to_string(self.cluster.folder.path().join("second/agent/owner")).unwrap_or_default();
        let containers = docker(["ps", "-aq", "--filter", &format!("label=io.orch.owner={}", owner.trim())]);
        if !owner.is_empty() && !containers.is_empty() {
            docker(["rm", "-f"].into_iter().chain(containers.lines()));
        }
    }
}

#[test]
fn a_second_node_joins_and_takes_pods() {
    let cluster = Cluster::start();
    let kubectl = cluster.kubectl("1.37");
    let token = std::fs::read_to_string(cluster.folder.path().join("data/token")).unwrap();

    let mut stranger = Node::new(&cluster);
    stranger.start("K10beef::node:wrong");
    let ended = stranger.child.take().unwrap().wait_with_output().unwrap();
    assert!(
        !ended.status.success() && stranger.log().contains("the token is not whole"),
        "{}{}",
        text(&ended.stderr),
        stranger.log()
    );

    let mut second = Node::new(&cluster);
    second.start(token.trim());
    second.wait_ready(&kubectl);
    kubectl.run(["create", "deployment", "web", "--image=nginx:1.14", "--replicas=4"]);
    kubectl.run(["rollout", "status", "deploy/web", "--timeout=120s"]);
    let on = |node: &str, path: &str| {
        kubectl.run([
            "get",
            "pods",
            "-l",
            "app=web",
            "--field-selector",
            &format!("spec.nodeName={node}"),
            "-o",
            &format!("jsonpath={{.items[*]{path}}}"),
        ])
    };
    assert_eq!(
        (on(&cluster.node, ".kind").split(' ').count(), on(&second.name, ".kind").split(' ').count()),
        (2, 2),
        "pods are spread"
    );

    let there = on(&second.name, ".metadata.name").split(' ').next().unwrap().to_owned();
    assert!(kubectl.run(["logs", &there]).contains("start worker process"));
    assert_eq!(kubectl.run(["exec", &there, "--", "hostname"]).trim(), there);
    for ip in on(&cluster.node, ".status.podIP").split(' ') {
        let page = kubectl.run(["exec", &there, "--", "sh", "-c", &format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc {ip} 80")]);
        assert!(page.contains("Welcome to nginx!"), "{page}");
    }

    let before = on(&second.name, ".status.containerStatuses[0].containerID");
    second.stop();
    second.start("");
    wait_for("the second node to serve again", MINUTE, || kubectl.try_run(["exec", &there, "--", "hostname"]));
    assert_eq!(on(&second.name, ".status.containerStatuses[0].containerID"), before, "its restart restarts nothing");
    kubectl.run(["delete", "deployment", "web", "--wait"]);
    wait_for("no pod to be left", MINUTE, || {
        let left = kubectl.run(["get", "pods", "-o", "name"]);
        if left.is_empty() { Ok(()) } else { Err(left) }
    });
}
