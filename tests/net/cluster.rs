//! A cluster over several hosts: `orch server` with its node on the first, an agent that joined on each other one.
#![allow(dead_code, reason = "a kit: what one test does not use, the next does")]

use std::fs;
use std::ops::Deref;
use std::path::PathBuf;
use std::time::Duration;

use crate::hosts::{Host, Hosts, Process};
use crate::support::{Kubectl, wait_for};

pub const MINUTE: Duration = Duration::from_secs(60);

/// Real nodes on hosts; host `hK` is node `hK`.
pub struct NetCluster {
    /// The process of each host, if it runs: the server on the first, agents on the others.
    orch: Vec<Option<Process>>,
    /// Flags of every server and agent beyond what each needs.
    extra: Vec<String>,
    pub hosts: Hosts,
}

impl Deref for NetCluster {
    type Target = Hosts;
    fn deref(&self) -> &Hosts {
        &self.hosts
    }
}

impl NetCluster {
    /// A host and node for each entry, which says in which subnet it stands (0 or 1; the first in 0). Returns when all are ready.
    pub fn start(subnets: &[u8]) -> Self {
        Self::start_with(subnets, &[])
    }

    /// The same, with more flags for server and agents.
    pub fn start_with(subnets: &[u8], extra: &[&str]) -> Self {
        Self::start_with_hosts(subnets, extra, |_| {})
    }

    /// The same, on hosts that were prepared.
    pub fn start_with_hosts(subnets: &[u8], extra: &[&str], prepare: impl Fn(&Host)) -> Self {
        let hosts = Hosts::start(subnets);
        hosts.all.iter().for_each(prepare);
        let extra = extra.iter().map(|flag| (*flag).to_owned()).collect();
        let mut cluster = Self { orch: hosts.all.iter().map(|_| None).collect(), extra, hosts };
        for at in 0..cluster.orch.len() {
            cluster.spawn(at);
        }
        cluster.wait_ready();
        cluster
    }

    /// Host K, from 1.
    pub fn host(&self, number: usize) -> &Host {
        &self.hosts.all[number - 1]
    }

    fn data(&self, at: usize) -> PathBuf {
        self.hosts.all[at].folder.join("orch")
    }

    /// The URL of the API, as hosts and the machine reach it.
    pub fn url(&self) -> String {
        format!("https://{}:6443", self.hosts.all[0].ip)
    }

    /// The range of all pods.
    pub fn cluster_cidr(&self) -> String {
        format!("10.{}.0.0/16", 100 + self.hosts.slot.number)
    }

    fn token(&self) -> String {
        fs::read_to_string(self.data(0).join("token")).unwrap().trim().to_owned()
    }

    fn flags(&self, at: usize) -> Vec<String> {
        let (host, number) = (&self.hosts.all[at], self.hosts.slot.number);
        let mut flags = match at {
            0 => vec![
                "server".to_owned(),
                format!("--write-kubeconfig={}", host.folder.join("kubeconfig.local").display()),
                format!("--cluster-cidr={}", self.cluster_cidr()),
                format!("--service-cidr=10.{}.0.0/16", 160 + number),
            ],
            _ => vec!["agent".to_owned(), format!("--join={}", self.url()), format!("--token={}", self.token())],
        };
        flags.extend([
            format!("--data-dir={}", self.data(at).display()),
            format!("--node-name={}", host.name),
            "--config=/dev/null".to_owned(),
            // A disk that is nearly full is not what is tested.
            "--eviction-hard=memory.available<50Mi,nodefs.available<1%,imagefs.available<1%".to_owned(),
            "--image-gc-high-threshold=100".to_owned(),
        ]);
        flags.extend(self.extra.iter().cloned());
        flags
    }

    fn spawn(&mut self, at: usize) {
        assert!(self.orch[at].is_none(), "orch runs on {}", self.hosts.all[at].name);
        let host = &self.hosts.all[at];
        // A library that the test prepared is loaded before orch's own.
        let library = Some(host.folder.join("preload.so")).filter(|file| file.exists());
        let preload = library.map(|file| format!("LD_PRELOAD={}", file.display()));
        let command = preload.into_iter().chain([env!("CARGO_BIN_EXE_orch").to_owned()]).chain(self.flags(at));
        self.orch[at] = Some(host.spawn("orch.log", "env", command));
        if at == 0 {
            self.wait_server();
        }
    }

    /// Waits until the server serves, and writes a kubeconfig that reaches it from outside of its host.
    fn wait_server(&mut self) {
        let (local, folder) = (self.hosts.all[0].folder.join("kubeconfig.local"), self.hosts.all[0].folder.clone());
        let (url, kubectl) = (self.url(), self.kubectl());
        let server = self.orch[0].as_mut().unwrap();
        wait_for("the API server to be ready", MINUTE, || {
            if let Some(status) = server.ended() {
                panic!("orch server ended ({status})");
            }
            let kubeconfig = fs::read_to_string(&local).map_err(|error| error.to_string())?;
            fs::write(folder.join("kubeconfig"), kubeconfig.replace("https://127.0.0.1:6443", &url)).unwrap();
            kubectl.try_run(["get", "--raw", "/readyz"])
        });
    }

    /// Waits until all nodes are ready.
    pub fn wait_ready(&self) {
        for host in &self.hosts.all {
            self.wait_node(&host.name, "True");
        }
    }

    /// Waits until the status of a node's Ready condition is one of True, False, Unknown.
    pub fn wait_node(&self, name: &str, status: &str) {
        let path = "jsonpath={.status.conditions[?(@.type==\"Ready\")].status}";
        let kubectl = self.kubectl();
        wait_for(&format!("Ready of node {name} to be {status}"), Duration::from_secs(90), || {
            let seen = kubectl.try_run(["get", "node", name, "-o", path])?;
            if seen == status { Ok(()) } else { Err(seen) }
        });
    }

    /// Waits until a condition of a node has a status and a reason: `False RouteCreated`.
    pub fn wait_condition(&self, node: &str, condition: &str, wanted: &str) {
        let path = format!("jsonpath={{range .status.conditions[?(@.type==\"{condition}\")]}}{{.status}} {{.reason}}{{end}}");
        let kubectl = self.kubectl();
        wait_for(&format!("{condition} of node {node} to be {wanted}"), MINUTE, || {
            let seen = kubectl.try_run(["get", "node", node, "-o", &path])?;
            if seen == wanted { Ok(()) } else { Err(seen) }
        });
    }

    /// The address with which a pod reaches what lies outside of the cluster.
    pub fn source_seen_by_machine(&self, pod: &NetPod<'_>) -> String {
        let listener = std::net::TcpListener::bind((self.machine(), 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let accepting = std::thread::spawn(move || listener.accept().unwrap().1.ip().to_string());
        pod.exec(&format!("nc -w 5 {} {port} < /dev/null", self.machine()));
        accepting.join().unwrap()
    }

    /// A pod that runs.
    pub fn existing(&self, name: &str, node: usize, ip: std::net::Ipv4Addr) -> NetPod<'_> {
        NetPod { cluster: self, name: name.to_owned(), node, ip }
    }

    /// A real kubectl for the admin, on the machine.
    pub fn kubectl(&self) -> Kubectl {
        Kubectl::new("1.33", &self.hosts.all[0].folder.join("kubeconfig"))
    }

    /// The process of host K.
    pub fn orch(&self, number: usize) -> &Process {
        self.orch[number - 1].as_ref().expect("orch runs")
    }

    /// SIGKILL for the server or agent on host K.
    pub fn kill(&mut self, number: usize) {
        self.orch[number - 1].take().expect("orch runs").kill();
    }

    /// SIGTERM for the server or agent on host K; waits for the end.
    pub fn stop(&mut self, number: usize) {
        self.orch[number - 1].take().expect("orch runs").stop();
    }

    /// Starts the server or agent on host K again.
    pub fn restart(&mut self, number: usize) {
        self.spawn(number - 1);
    }

    /// Stops the agent on host K, and takes its node and all that it knows away: what starts next joins anew.
    pub fn leave(&mut self, number: usize) {
        self.stop(number);
        self.kubectl().run(["delete", "node", &self.host(number).name]);
        fs::remove_dir_all(self.data(number - 1)).unwrap();
    }

    /// Runs a pod with `sleep` on host K, of an image that has a shell, and returns when it is ready.
    pub fn shell_pod(&self, name: &str, number: usize) -> NetPod<'_> {
        self.pod(name, number, "image: tools, command: [sleep, infinity]", "")
    }

    /// Runs a pod of one container on host K and returns when it is ready. `container` and `spec` are in YAML's flow style.
    pub fn pod(&self, name: &str, number: usize, container: &str, spec: &str) -> NetPod<'_> {
        let node = &self.host(number).name;
        let manifest = format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, labels: {{app: {name}}}}}, spec: {{nodeName: {node}, \
             terminationGracePeriodSeconds: 0, containers: [{{name: main, imagePullPolicy: Never, {container}}}], {spec}}}}}"
        );
        let kubectl = self.kubectl();
        // The controller that makes it may not have made the default service account yet.
        wait_for("a pod to be created", MINUTE, || kubectl.manifest(&["apply"], &manifest));
        kubectl.run(["wait", "--for=condition=Ready", &format!("pod/{name}"), "--timeout=60s"]);
        let ip = kubectl.jsonpath(&["pod", name], "{.status.podIP}").parse().unwrap();
        NetPod { cluster: self, name: name.to_owned(), node: number, ip }
    }
}

/// A running pod.
pub struct NetPod<'a> {
    cluster: &'a NetCluster,
    pub name: String,
    /// K of its host.
    pub node: usize,
    pub ip: std::net::Ipv4Addr,
}

impl NetPod<'_> {
    /// Runs a shell command in the pod by its host's Docker, which needs no API server.
    ///
    /// # Errors
    /// What it said, when its exit code is not 0.
    pub fn try_exec(&self, script: &str) -> Result<String, String> {
        let quoted = script.replace('\'', "'\\''");
        self.cluster.host(self.node).try_exec(&format!("docker exec {} sh -c '{quoted}'", self.container()))
    }

    /// Runs a shell command in the pod; it must succeed.
    pub fn exec(&self, script: &str) -> String {
        self.try_exec(script).unwrap_or_else(|error| panic!("{script} in pod {}: {error}", self.name))
    }

    /// The id of its container.
    pub fn container(&self) -> String {
        let name = format!("label=io.kubernetes.pod.name={}", self.name);
        let ids = self.cluster.host(self.node).docker([
            "ps",
            "-q",
            "--filter",
            &name,
            "--filter",
            "label=io.kubernetes.container.name=main",
        ]);
        ids.lines().next().unwrap_or_else(|| panic!("pod {} has no running container", self.name)).to_owned()
    }

    /// Pings an address once.
    ///
    /// # Errors
    /// What ping said.
    pub fn ping(&self, to: impl std::fmt::Display) -> Result<String, String> {
        self.try_exec(&format!("ping -c 1 -W 1 {to}"))
    }
}
