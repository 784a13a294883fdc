//! Nodes that join: by token, under a name of their own, behind a firewall that takes no connection, and until they are removed.

use std::fs::File;
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use crate::host::Host;
use crate::support::{Cluster, Kubectl, free_port, nothing_left, run, text, wait_for};

const MINUTE: Duration = Duration::from_secs(60);
const ORCH: &str = env!("CARGO_BIN_EXE_orch");
const WEB: &str = "
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{name: http, port: 80}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: web, image: 'nginx:1.14', ports: [{containerPort: 80}]}]}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: web}
spec: {minAvailable: 2, selector: {matchLabels: {app: web}}}
";

/// An `orch agent` process, on a host or on this machine.
pub struct Node<'a> {
    server: String,
    host: Option<&'a Host>,
    name: String,
    folder: PathBuf,
    port: u16,
    child: Option<Child>,
}

impl<'a> Node<'a> {
    pub fn on_machine(cluster: &Cluster) -> Self {
        let (name, folder) = (format!("{}-second", cluster.node), cluster.folder.path().join("second"));
        Self { server: format!("https://127.0.0.1:{}", cluster.port), host: None, name, folder, port: free_port(), child: None }
    }

    /// Its name in the cluster.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn on_host(cluster: &Cluster, host: &'a Host, name: &str) -> Self {
        let server = format!("https://{}:{}", host.machine_ip(), cluster.port);
        Self { server, host: Some(host), name: name.to_owned(), folder: host.path(name), port: 10_250, child: None }
    }

    fn command(&self) -> Command {
        let mut command = self.host.map_or_else(|| Command::new(ORCH), |host| host.command(ORCH));
        command.env("ORCH_CONFIG", "/dev/null").stdin(Stdio::null());
        command
    }

    pub fn start(&mut self, token: &str) {
        std::fs::create_dir_all(&self.folder).unwrap();
        let log = File::options().create(true).append(true).open(self.folder.join("log")).unwrap();
        let mut command = self.command();
        command.args(["agent", "--join", &self.server, "--token", token]);
        command.arg(format!("--data-dir={}", self.data().display())).arg(format!("--node-name={}", self.name));
        command.arg(format!("--kubelet-port={}", self.port));
        if let Some(host) = self.host {
            command.arg(format!("--node-ip={}", host.ip()));
        }
        self.child = Some(command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap());
    }

    /// The same with a configuration file alone, as the packaged unit starts it.
    fn start_by_file(&mut self, token: &str) {
        let host = self.host.expect("a node on a host");
        let file = self.folder.join("config.yaml");
        let (data, name, port, ip) = (self.data(), &self.name, self.port, host.ip());
        let text = format!(
            "server: {}\ntoken: {token}\ndata-dir: {}\nnode-name: {name}\nkubelet-port: {port}\nnode-ip: {ip}\n",
            self.server,
            data.display()
        );
        std::fs::write(&file, text).unwrap();
        let log = File::options().create(true).append(true).open(self.folder.join("log")).unwrap();
        let mut command = self.command();
        command.arg("agent").env("ORCH_CONFIG", file);
        self.child = Some(command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap());
    }

    fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    fn wait_ready(&self, kubectl: &Kubectl) {
        wait_for("the node to be ready", MINUTE, || {
            let nodes = kubectl.try_run(["get", "nodes"])?;
            let ready = nodes.lines().any(|line| line.starts_with(&self.name) && line.contains(" Ready "));
            if ready { Ok(()) } else { Err(format!("{nodes}{}", self.log())) }
        });
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            run("kill", [child.id().to_string()]);
            child.wait().unwrap();
        }
    }

    fn uninstall(&self, more: &[&str]) -> Output {
        let data = format!("--data-dir={}", self.data().display());
        self.command().args(["uninstall", &data, "--write-kubeconfig=/nonexistent"]).args(more).output().unwrap()
    }

    /// Waits until the process ends by itself.
    fn ended(&mut self) -> ExitStatus {
        let mut child = self.child.take().unwrap();
        wait_for("the agent to end", MINUTE, || child.try_wait().unwrap().ok_or_else(|| self.log()))
    }
}

impl Drop for Node<'_> {
    fn drop(&mut self) {
        self.stop();
        let owner = std::fs::read_to_string(self.data().join("agent/owner")).unwrap_or_default();
        if owner.is_empty() {
            return;
        }
        // The host and its engine go after this; what they share with the machine (cgroups) would stay.
        let output = self.uninstall(&["--yes", "--keep-data"]);
        if !output.status.success() {
            eprintln!("orch uninstall: {}{}", text(&output.stdout), text(&output.stderr));
        }
        nothing_left(&self.data());
    }
}

/// A control plane without a node, which hosts of this number reach.
fn control_plane(number: u8) -> Cluster {
    Cluster::start_with(&["--disable-agent", &format!("--node-ip={}", Host::machine_ip_of(number))])
}

/// Runs `orch COMMAND` as the cluster's administrator.
fn orch(cluster: &Cluster, arguments: &[&str]) -> Output {
    Command::new(ORCH).args(arguments).env("KUBECONFIG", cluster.kubeconfig()).stdin(Stdio::null()).output().unwrap()
}

fn orch_says(cluster: &Cluster, arguments: &[&str]) -> String {
    let output = orch(cluster, arguments);
    assert!(output.status.success(), "orch {arguments:?}: {}", text(&output.stderr));
    text(&output.stdout).trim().to_owned()
}

fn port_forward(kubectl: &Kubectl, to: &str) -> String {
    let port = free_port();
    let mut child = kubectl.command(["port-forward", to, &format!("{port}:80")]).stdout(Stdio::null()).spawn().unwrap();
    let page = wait_for("the forwarded port", MINUTE, || crate::support::curl(&format!("http://127.0.0.1:{port}/")));
    child.kill().unwrap();
    child.wait().unwrap();
    page
}

#[test]
fn a_second_node_joins_and_takes_pods() {
    let cluster = Cluster::start();
    let kubectl = cluster.kubectl("1.37");
    let token = std::fs::read_to_string(cluster.folder.path().join("data/token")).unwrap();

    let mut second = Node::on_machine(&cluster);
    second.start("K10beef::node:wrong");
    assert!(!second.ended().success() && second.log().contains("the token is not whole"), "{}", second.log());

    second.start(token.trim());
    second.wait_ready(&kubectl);
    kubectl.run(["create", "deployment", "web", "--image=nginx:1.14", "--replicas=4"]);
    kubectl.run(["rollout", "status", "deploy/web", "--timeout=120s"]);
    let on = |node: &str, path: &str| {
        let selected = format!("spec.nodeName={node}");
        let path = format!("jsonpath={{.items[*]{path}}}");
        kubectl.run(["get", "pods", "-l", "app=web", "--field-selector", &selected, "-o", &path])
    };
    let counts = (on(&cluster.node, ".kind").split(' ').count(), on(&second.name, ".kind").split(' ').count());
    assert_eq!(counts, (2, 2), "pods are spread");

    let there = on(&second.name, ".metadata.name").split(' ').next().unwrap().to_owned();
    assert!(kubectl.run(["logs", &there]).contains("start worker process"));
    assert_eq!(kubectl.run(["exec", &there, "--", "hostname"]).trim(), there);
    for ip in on(&cluster.node, ".status.podIP").split(' ') {
        let page = kubectl.run(["exec", &there, "--", "sh", "-c", &format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc {ip} 80")]);
        assert!(page.contains("Welcome to nginx!"), "{page}");
    }

    let ranges = kubectl.run(["get", "nodes", "-o", "jsonpath={.items[*].spec.podCIDR}"]);
    let ranges: Vec<&str> = ranges.split(' ').collect();
    let monitor = std::process::Command::new("timeout").args(["2", "ip", "monitor", "route"]).output().unwrap();
    let changes = String::from_utf8(monitor.stdout).unwrap();
    let ours: Vec<&str> = changes.lines().filter(|line| ranges.iter().any(|range| line.contains(range))).collect();
    assert!(ranges.len() == 2 && ours.is_empty(), "the agents leave each other's routes alone: {ours:?}");

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

#[test]
fn a_node_that_takes_no_connection_is_reached_through_its_tunnel() {
    let host = Host::start(1, &["nginx:1.14"]);
    host.close();
    let cluster = control_plane(1);
    let kubectl = cluster.kubectl("1.37");
    let token = orch_says(&cluster, &["token", "create"]);
    let mut node = Node::on_host(&cluster, &host, "closed");
    let started = Instant::now();
    node.start(&token);
    node.wait_ready(&kubectl);
    eprintln!("from orch agent --join to Ready: {:?}", started.elapsed());
    assert!(started.elapsed() < Duration::from_secs(10));

    let kubelet: SocketAddr = format!("{}:10250", host.ip()).parse().unwrap();
    assert!(TcpStream::connect_timeout(&kubelet, Duration::from_secs(1)).is_err(), "the firewall lets nobody in");
    kubectl.manifest(&["apply"], WEB).unwrap();
    kubectl.run(["rollout", "status", "deploy/web", "--timeout=120s"]);
    let pod = kubectl.jsonpath(&["pods", "-l", "app=web"], "{.items[0].metadata.name}");
    for version in ["1.20", "1.37"] {
        let kubectl = cluster.kubectl(version);
        assert!(kubectl.run(["logs", &pod]).contains("start worker process"));
        assert_eq!(kubectl.run(["exec", &pod, "--", "hostname"]).trim(), pod);
        for to in [format!("pod/{pod}"), "deployment/web".to_owned(), "service/web".to_owned()] {
            assert!(port_forward(&kubectl, &to).contains("Welcome to nginx!"), "kubectl-{version} port-forward {to}");
        }
        let file = cluster.folder.path().join("copied");
        std::fs::write(&file, "some text\n").unwrap();
        kubectl.run(["cp", file.to_str().unwrap(), &format!("{pod}:/tmp/copied")]);
        assert_eq!(kubectl.run(["exec", &pod, "--", "cat", "/tmp/copied"]), "some text\n");
    }
    assert_eq!(kubectl.run(["get", "--raw", "/api/v1/nodes/closed/proxy/healthz"]), "ok");
    for what in [format!("pods/{pod}"), format!("pods/{pod}:80"), "services/web".to_owned(), "services/web:http".to_owned()] {
        let page = kubectl.run(["get", "--raw", &format!("/api/v1/namespaces/default/{what}/proxy/")]);
        assert!(page.contains("Welcome to nginx!"), "{what}");
    }
    let refused = kubectl.fails(["get", "--raw", &format!("/api/v1/namespaces/default/pods/{pod}:81/proxy/")]);
    assert!(refused.contains("connection refused"), "{refused}");

    budget_holds(&cluster);
    node.stop();
    node.start("");
    wait_for("the tunnel of a restarted agent", MINUTE, || kubectl.try_run(["exec", "deploy/web", "--", "hostname"]));
}

/// A drain evicts what the budget allows, and no more.
fn budget_holds(cluster: &Cluster) {
    let kubectl = cluster.kubectl("1.37");
    wait_for("the budget's status", MINUTE, || {
        let allowed = kubectl.jsonpath(&["pdb", "web"], "{.status.disruptionsAllowed} {.status.currentHealthy}");
        if allowed == "1 3" { Ok(()) } else { Err(allowed) }
    });
    for version in ["1.20", "1.37"] {
        let words = cluster.kubectl(version).fails(["drain", "closed", "--force", "--ignore-daemonsets", "--timeout=6s"]);
        assert!(words.contains("disruption budget"), "{words}");
        let running = kubectl.run(["get", "pods", "--field-selector=status.phase=Running", "-o", "name"]);
        assert_eq!(running.lines().count(), 2, "{running}");
        kubectl.run(["uncordon", "closed"]);
        kubectl.run(["rollout", "status", "deploy/web", "--timeout=120s"]);
    }
}

#[test]
fn a_name_belongs_to_one_machine_until_it_is_freed() {
    let host = Host::start(2, &[]);
    let cluster = control_plane(2);
    let kubectl = cluster.kubectl("1.37");
    let token = orch_says(&cluster, &["token", "create", "--ttl", "1h"]);
    let mut first = Node::on_host(&cluster, &host, "alpha");
    first.start(&token);
    first.wait_ready(&kubectl);
    assert!(orch_says(&cluster, &["node", "list"]).contains("bound"));

    let mut other = Node::on_host(&cluster, &host, "alpha");
    (other.folder, other.port) = (host.path("other"), 10_251);
    other.start(&token);
    assert_eq!(other.ended().code(), Some(1));
    assert!(other.log().contains("is taken by another machine") && other.log().contains("orch node replace alpha"));

    kubectl.run(["delete", "node", "alpha"]);
    assert_eq!(first.ended().code(), Some(77), "{}", first.log());
    assert!(first.log().contains("was removed from the cluster") && first.log().contains("To join again"));
    first.start("");
    assert_eq!(first.ended().code(), Some(77), "its old certificate is good no more: {}", first.log());
    assert_eq!(kubectl.run(["get", "nodes", "-o", "name"]), "");
    // A token that stays in its configuration file is the administrator's word that the machine may join at its next start.
    first.start_by_file(&token);
    first.wait_ready(&kubectl);
    old_requests_go(&cluster);

    orch_says(&cluster, &["node", "replace", "alpha"]);
    assert_eq!(first.ended().code(), Some(77));
    other.start(&token);
    other.wait_ready(&kubectl);
}

/// A certificate request that was approved more than an hour ago is deleted; the others stay.
fn old_requests_go(cluster: &Cluster) {
    let kubectl = cluster.kubectl("1.37");
    let names = || kubectl.jsonpath(&["csr"], "{.items[*].metadata.name}");
    let before = names();
    let old = before.split(' ').next().unwrap();
    let mut request: serde_json::Value = serde_json::from_str(&kubectl.run(["get", "csr", old, "-o", "json"])).unwrap();
    request["status"]["conditions"][0]["lastUpdateTime"] = "2020-01-01T00:00:00Z".into();
    let path = format!("/apis/certificates.k8s.io/v1/certificatesigningrequests/{old}/approval");
    kubectl.manifest(&["replace", "--raw", &path], &request.to_string()).unwrap();
    wait_for("the old request to go", MINUTE, || {
        let left = names();
        if left.split(' ').any(|name| name == old) { Err(left) } else { Ok(()) }
    });
    assert_eq!(names().split(' ').count(), before.split(' ').count() - 1, "the others stay");
}

#[test]
fn tokens_end_when_they_are_to() {
    let cluster = Cluster::start_with(&["--disable-agent"]);
    let url = format!("https://127.0.0.1:{}/apis/certificates.k8s.io/v1/certificatesigningrequests", cluster.port);
    let code = |token: &str| {
        let bearer = format!("Authorization: Bearer {}", token.rsplit(':').next().unwrap());
        run("curl", ["-sk", "-o", "/dev/null", "-w", "%{http_code}", "-H", &bearer, &url])
    };
    let token = orch_says(&cluster, &["token", "create", "--description", "for a test", "--ttl", "7d"]);
    let short = orch_says(&cluster, &["token", "create", "--ttl", "2s"]);
    assert!(token.starts_with("K10") && code(&token) == "200" && code(&short) == "200");
    let list: serde_json::Value = serde_json::from_str(&orch_says(&cluster, &["token", "list", "--output", "json"])).unwrap();
    assert!(list.as_array().unwrap().iter().any(|one| one["description"] == "for a test"), "{list}");
    let join = orch_says(&cluster, &["token", "create", "--print-join-command"]);
    assert!(join.starts_with("orch agent --join https://") && join.contains(" --token K10"), "{join}");

    wait_for("the token to expire", Duration::from_secs(10), || if code(&short) == "401" { Ok(()) } else { Err("good".into()) });
    orch_says(&cluster, &["token", "delete", &token]);
    assert_eq!(code(&token), "401");
    assert!(!orch(&cluster, &["token", "delete", &token]).status.success());

    let file = cluster.folder.path().join("data/token");
    let old = std::fs::read_to_string(&file).unwrap();
    let new = orch_says(&cluster, &["token", "rotate"]);
    assert_eq!((code(old.trim()).as_str(), code(&new).as_str()), ("401", "200"));
    for token in [short.as_str(), old.trim()] {
        let mut node = Node::on_machine(&cluster);
        node.start(token);
        assert_eq!(node.ended().code(), Some(1), "{}", node.log());
        let is_clear =
            node.log().contains("has expired or was changed") && node.log().contains("orch token create --print-join-command");
        assert!(is_clear, "{}", node.log());
        std::fs::remove_file(node.folder.join("log")).unwrap();
    }
    wait_for("the server's file", MINUTE, || {
        let kept = std::fs::read_to_string(&file).unwrap();
        if kept.trim() == new { Ok(()) } else { Err(kept) }
    });
}

/// What a node left on its host, sort by sort.
fn remains(host: &Host, node: &Node<'_>, pods: &[String]) -> Vec<(&'static str, usize)> {
    let lines = |text: &str, part: &str| text.lines().filter(|line| line.contains(part)).count();
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    let groups = run("find", ["/sys/fs/cgroup", "-type", "d", "-path", "*kubepods*"]);
    vec![
        ("containers", host.docker(&["ps", "-aq"]).lines().count()),
        ("interfaces", lines(&host.run("ip", &["-br", "link"]), "orch")),
        ("routes", lines(&host.run("ip", &["route"]), "orch")),
        ("tables", lines(&host.run("nft", &["list", "tables"]), "orch")),
        ("rules", lines(&host.run("iptables-save", &[]), "orch")),
        ("mounts", lines(&mounts, node.data().to_str().unwrap())),
        ("cgroups", groups.lines().filter(|group| pods.iter().any(|uid| group.contains(uid))).count()),
        ("images", lines(&host.docker(&["images"]), "orch/pause")),
        ("folders", usize::from(node.data().exists())),
    ]
}

#[test]
fn uninstalling_leaves_nothing() {
    let host = Host::start(3, &["nginx:1.14"]);
    let cluster = control_plane(3);
    let kubectl = cluster.kubectl("1.37");
    let mut node = Node::on_host(&cluster, &host, "leaving");
    node.start(&orch_says(&cluster, &["token", "create"]));
    node.wait_ready(&kubectl);
    kubectl.manifest(&["apply"], WEB).unwrap();
    kubectl.run(["rollout", "status", "deploy/web", "--timeout=120s"]);
    let pods: Vec<String> = kubectl.jsonpath(&["pods"], "{.items[*].metadata.uid}").split(' ').map(str::to_owned).collect();
    let before = remains(&host, &node, &pods);
    assert!(before.iter().all(|(_, count)| *count > 0), "{before:?}");

    assert!(text(&node.uninstall(&[]).stderr).contains("--yes"));
    let refused = node.uninstall(&["--yes"]);
    assert!(text(&refused.stderr).contains("stop it first"), "{}", text(&refused.stderr));
    assert_eq!(remains(&host, &node, &pods), before, "a running node is left alone");
    node.stop();
    let output = node.uninstall(&["--yes"]);
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    let after = remains(&host, &node, &pods);
    assert!(after.iter().all(|(_, count)| *count == 0), "{after:?}\n{}", text(&output.stdout));
}
