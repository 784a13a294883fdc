//! A Docker engine that is not there yet, goes away, or is restarted: the node says so, and all heals when it is back.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::support::{Cluster, docker, run, wait_for};

const MINUTE: Duration = Duration::from_secs(60);

/// An engine of this test's own, beside the machine's. Pods need none of its networks.
pub struct Engine {
    folder: tempfile::TempDir,
    child: Option<Child>,
}

impl Engine {
    pub fn new() -> Self {
        Self { folder: tempfile::Builder::new().prefix("orch-engine-").tempdir().unwrap(), child: None }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn host(&self) -> String {
        format!("unix://{}", self.path("docker.sock").display())
    }

    pub fn start(&mut self) {
        let log = File::options().create(true).append(true).open(self.path("log")).unwrap();
        let mut command = Command::new("dockerd");
        command.args(["--bridge=none", "--iptables=false", "--ip-forward=false", "-H", &self.host()]);
        command
            .arg("--data-root")
            .arg(self.path("data"))
            .arg("--exec-root")
            .arg(self.path("exec"))
            .arg("-p")
            .arg(self.path("pid"));
        self.child = Some(command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap());
        wait_for("the engine to answer", MINUTE, || {
            let output = Command::new("docker").args(["-H", &self.host(), "version"]).output().unwrap();
            if output.status.success() { Ok(()) } else { Err(std::fs::read_to_string(self.path("log")).unwrap()) }
        });
    }

    fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            run("kill", [child.id().to_string()]);
            child.wait().unwrap();
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let remove = format!("docker -H {0} ps -aq | xargs -r docker -H {0} rm -f", self.host());
        let _removed = Command::new("sh").args(["-c", &remove]).output();
        self.stop();
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let ours = self.folder.path().display().to_string();
        for mount in mounts.lines().filter_map(|line| line.split(' ').nth(1)).filter(|mount| mount.starts_with(&ours)) {
            let _unmounted = Command::new("umount").arg("-l").arg(mount).status();
        }
    }
}

#[test]
fn an_engine_that_is_away_or_restarts() {
    let mut engine = Engine::new();
    let cluster = Cluster::start_with(&[&format!("--docker-host={}", engine.host())]);
    let kubectl = cluster.kubectl("1.33");
    let ready = "{.status.conditions[?(@.type==\"Ready\")]}";
    wait_for("the node to say why it is not ready", MINUTE, || {
        let now = kubectl.try_run(["get", "node", &cluster.node, "-o", &format!("jsonpath={ready}")])?;
        if now.contains("\"status\":\"False\"") && now.contains("docker.sock") { Ok(()) } else { Err(now) }
    });
    engine.start();
    run("sh", ["-c", &format!("docker save nginx:1.14 | docker -H {} load", engine.host())]);
    cluster.wait_ready();
    kubectl.run(["create", "deployment", "web", "--image=nginx:1.14", "--replicas=2"]);
    kubectl.run(["rollout", "status", "deploy/web", "--timeout=120s"]);

    engine.stop();
    wait_for("the node to notice", MINUTE, || {
        let now = kubectl.jsonpath(&["node", &cluster.node], ready);
        if now.contains("\"status\":\"False\"") { Ok(()) } else { Err(now) }
    });
    engine.start();
    cluster.wait_ready();
    wait_for("both pods to run again", MINUTE, || {
        let now = kubectl.jsonpath(&["deploy", "web"], "{.status.readyReplicas}");
        let running = docker(["-H", &engine.host(), "ps", "-q"]).lines().count();
        if now == "2" && running == 4 { Ok(()) } else { Err(format!("{now} ready, {running} containers")) }
    });
    kubectl.run(["delete", "deployment", "web"]);
    wait_for("nothing to be left in Docker", MINUTE, || {
        let left = docker(["-H", &engine.host(), "ps", "-aq"]);
        if left.is_empty() { Ok(()) } else { Err(left) }
    });
}
