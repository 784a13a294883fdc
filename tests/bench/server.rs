//! A server under measurement, and the figures of the process itself: binary size, start, idle memory and CPU.

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::client::Api;
use crate::{Runtime, figure, median, support};

pub const BINARY: &str = env!("CARGO_BIN_EXE_orch");

pub struct Server {
    pub folder: tempfile::TempDir,
    /// `None` once it has ended.
    child: Option<Child>,
    pub ready_after: Duration,
}

impl Server {
    /// Starts a server on a new folder; with a node where `node` says so.
    pub fn new(runtime: &Runtime, node: bool) -> Self {
        Self::on(runtime, tempfile::tempdir().expect("a folder"), node)
    }

    fn on(runtime: &Runtime, folder: tempfile::TempDir, node: bool) -> Self {
        let port = || TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port").port();
        let (data, kubeconfig) = (folder.path().join("data"), folder.path().join("kubeconfig"));
        let log = File::create(folder.path().join("orch.log")).expect("a log");
        let _stale = fs::remove_file(&kubeconfig);
        let mut command = Command::new(BINARY);
        command.args([
            "server",
            "--config=/dev/null",
            "--node-name=bench",
            "--cluster-cidr=10.97.0.0/16",
            "--service-cidr=10.98.0.0/16",
        ]);
        command.arg(format!("--data-dir={}", data.display())).arg(format!("--write-kubeconfig={}", kubeconfig.display()));
        command
            .arg(format!("--https-listen-port={}", port()))
            .arg(format!("--kubelet-port={}", port()))
            .arg(format!("--disable-agent={}", !node));
        let start = Instant::now();
        let child = command.stdin(Stdio::null()).stdout(log.try_clone().expect("a log")).stderr(log).spawn().expect("the server");
        let mut server = Self { folder, child: Some(child), ready_after: Duration::ZERO };
        server.wait(runtime, "/readyz", |_| true);
        server.ready_after = start.elapsed();
        server
    }

    /// Waits until a GET answers 200 with a body that suits.
    pub fn wait(&self, runtime: &Runtime, path: &str, suits: impl Fn(&str) -> bool) {
        let end = Instant::now() + Duration::from_secs(60);
        while Instant::now() < end {
            let answer =
                Api::from_kubeconfig(&self.kubeconfig()).ok().and_then(|api| runtime.0.block_on(api.get_once(path)).ok());
            if answer.is_some_and(|(status, body)| status == 200 && suits(&body)) {
                return;
            }
            std::thread::park_timeout(Duration::from_millis(2));
        }
        panic!("{path} did not come true; {}", fs::read_to_string(self.folder.path().join("orch.log")).unwrap_or_default());
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.folder.path().join("kubeconfig")
    }

    pub fn api(&self) -> Api {
        Api::from_kubeconfig(&self.kubeconfig()).expect("a kubeconfig")
    }

    /// User and system CPU seconds so far.
    pub fn cpu_seconds(&self) -> f64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).expect("stat");
        let fields: Vec<&str> = stat.rsplit(')').next().expect("fields").split_whitespace().collect();
        let ticks: f64 = fields[11].parse::<f64>().expect("utime") + fields[12].parse::<f64>().expect("stime");
        ticks / 100.0
    }

    /// Resident memory in MB.
    pub fn memory_mb(&self) -> f64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("status");
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("VmRSS");
        line.split_whitespace().nth(1).expect("a number").parse::<f64>().expect("a number") / 1024.0
    }

    /// SIGTERM, then a start on the same folder.
    pub fn restart(mut self, runtime: &Runtime) -> Self {
        self.end();
        let folder = std::mem::replace(&mut self.folder, tempfile::tempdir().expect("a folder"));
        Self::on(runtime, folder, false)
    }

    fn pid(&self) -> u32 {
        self.child.as_ref().expect("a running server").id()
    }

    fn end(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ended = Command::new("kill").arg(child.id().to_string()).status();
            let _status = child.wait();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end();
        support::uninstall(&self.folder.path().join("data"));
    }
}

pub fn size(_: &Runtime) {
    let bytes = fs::metadata(BINARY).expect("the binary").len();
    figure("binary, stripped", bytes as f64 / 1e6, "MB", Some(("limit", 30.0)));
}

pub fn start(runtime: &Runtime) {
    let ready: Vec<f64> = (0..5).map(|_| Server::new(runtime, false).ready_after.as_secs_f64()).collect();
    figure("start, empty data dir, to /readyz", median(ready), "s", Some(("limit", 0.3)));
    let node = |_| {
        let start = Instant::now();
        let server = Server::new(runtime, true);
        server.wait(runtime, "/api/v1/nodes/bench", |body| body.contains("KubeletReady"));
        start.elapsed().as_secs_f64()
    };
    figure("start, empty data dir, to node Ready", median((0..5).map(node).collect()), "s", Some(("limit", 0.6)));
}

pub fn idle(runtime: &Runtime) {
    let server = Server::new(runtime, true);
    server.wait(runtime, "/api/v1/nodes/bench", |body| body.contains("KubeletReady"));
    std::thread::park_timeout(Duration::from_secs(5));
    let (before, start) = (server.cpu_seconds(), Instant::now());
    std::thread::park_timeout(Duration::from_secs(30));
    let share = (server.cpu_seconds() - before) / start.elapsed().as_secs_f64() * 100.0;
    figure("idle memory, control plane and node", server.memory_mb(), "MB", Some(("Kubernetes", 695.0)));
    figure("idle CPU, control plane and node", share, "% core", Some(("limit", 0.2)));
}
