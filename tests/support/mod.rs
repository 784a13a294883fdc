//! What the integration tests share: real clusters of real processes, the real kubectls, and waiting on conditions.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::ffi::OsStr;
use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// The kubectls that every answer is tested with: the oldest, one between, the newest.
pub const KUBECTLS: [&str; 3] = ["1.20", "1.33", "1.37"];

/// Environment variable: how much slower than usual the machine is that the tests run on.
pub const SLOWNESS: &str = "ORCH_TEST_SLOWNESS";

/// A time that is enough on a machine of usual speed, on this one.
pub fn here(time: Duration) -> Duration {
    std::env::var(SLOWNESS).map_or(time, |times| time * times.parse::<u32>().unwrap())
}

/// Polls until `condition` gives a value.
///
/// # Panics
/// After `deadline`, saying `what` did not come true and the last thing seen.
pub fn wait_for<T>(what: &str, deadline: Duration, mut condition: impl FnMut() -> Result<T, String>) -> T {
    let deadline = here(deadline);
    let end = Instant::now() + deadline;
    loop {
        match condition() {
            Ok(value) => return value,
            Err(seen) if Instant::now() > end => panic!("waited {deadline:?} for {what}; last seen: {seen}"),
            Err(_) => std::thread::park_timeout(Duration::from_millis(30)),
        }
    }
}

/// A number that no other running test has; it is given back when this is dropped. Ranges of addresses derive from it.
pub struct Slot {
    pub number: u8,
    _lock: File,
}

impl Slot {
    pub fn take() -> Self {
        let folder = std::env::temp_dir().join("orch-test-slots");
        fs::create_dir_all(&folder).unwrap();
        (0..50_u8)
            .find_map(|number| {
                let lock =
                    File::options().create(true).truncate(false).write(true).open(folder.join(number.to_string())).unwrap();
                lock.try_lock().ok().map(|()| Self { number, _lock: lock })
            })
            .expect("a free slot: fewer than 50 clusters may run at a time")
    }
}

/// A port that was free a moment ago.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A cluster of one `orch server` process in a folder of its own.
pub struct Cluster {
    pub folder: tempfile::TempDir,
    pub port: u16,
    pub kubelet_port: u16,
    pub node: String,
    slot: Slot,
    extra: Vec<String>,
    server: Option<Child>,
}

impl Cluster {
    /// Starts a server with its node and waits until the node is ready.
    pub fn start() -> Self {
        let cluster = Self::start_with(&[]);
        cluster.wait_ready();
        cluster
    }

    /// Starts a server with more flags; waits for `/readyz` only.
    pub fn start_with(extra: &[&str]) -> Self {
        Self::start_in(|_| (), extra)
    }

    /// The same, in a folder that was prepared.
    pub fn start_in(prepare: impl FnOnce(&Path), extra: &[&str]) -> Self {
        let slot = Slot::take();
        let mut cluster = Self {
            folder: tempfile::Builder::new().prefix("orch-test-").tempdir().unwrap(),
            port: free_port(),
            kubelet_port: free_port(),
            node: format!("node-{}", slot.number),
            slot,
            extra: extra.iter().map(|flag| (*flag).to_owned()).collect(),
            server: None,
        };
        prepare(cluster.folder.path());
        cluster.spawn();
        cluster
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// The admin's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.folder.path().join("kubeconfig")
    }

    /// Where the cluster's DNS answers.
    pub fn cluster_dns(&self) -> String {
        format!("10.{}.0.10", 160 + self.slot.number)
    }

    /// The flags that this cluster's server runs with.
    pub fn flags(&self) -> Vec<String> {
        let number = self.slot.number;
        let mut flags = vec![
            format!("--data-dir={}", self.data().display()),
            format!("--write-kubeconfig={}", self.kubeconfig().display()),
            format!("--https-listen-port={}", self.port),
            format!("--kubelet-port={}", self.kubelet_port),
            format!("--node-name={}", self.node),
            format!("--cluster-cidr=10.{}.0.0/16", 100 + number),
            format!("--service-cidr=10.{}.0.0/16", 160 + number),
            "--config=/dev/null".to_owned(),
        ];
        // How full the disk is that the tests run on is no part of them.
        if !self.extra.iter().any(|flag| flag.starts_with("--eviction-hard")) {
            flags.push("--eviction-hard=memory.available<100Mi".to_owned());
        }
        flags.extend(self.extra.iter().cloned());
        flags
    }

    /// Starts the server again after [`kill`](Self::kill) or [`stop`](Self::stop), on the same folder.
    pub fn spawn(&mut self) {
        let log = File::options().create(true).append(true).open(self.log_path()).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_orch"));
        command.arg("server").args(self.flags()).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.server = Some(command.spawn().unwrap());
        let kubectl = self.kubectl("1.33");
        let server = self.server.as_mut().unwrap();
        let kubeconfig = self.folder.path().join("kubeconfig");
        wait_for("the API server to be ready", Duration::from_secs(30), || {
            if let Some(status) = server.try_wait().unwrap() {
                panic!(
                    "orch server ended ({status}): {}",
                    fs::read_to_string(self.folder.path().join("orch.log")).unwrap_or_default()
                );
            }
            if !kubeconfig.exists() {
                return Err("no kubeconfig".to_owned());
            }
            kubectl.try_run(["get", "--raw", "/readyz"])
        });
    }

    /// Waits until the node is ready.
    pub fn wait_ready(&self) {
        let kubectl = self.kubectl("1.33");
        let condition = "jsonpath={.status.conditions[?(@.type==\"Ready\")].status}";
        wait_for("the node to be ready", Duration::from_secs(60), || {
            let status = kubectl.try_run(["get", "node", &self.node, "-o", condition])?;
            if status == "True" { Ok(()) } else { Err(format!("Ready is {status:?}; log: {}", self.log_tail())) }
        });
    }

    fn log_path(&self) -> PathBuf {
        self.folder.path().join("orch.log")
    }

    /// The end of the server's log.
    pub fn log_tail(&self) -> String {
        let text = fs::read_to_string(self.log_path()).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }

    /// The process id of the server.
    pub fn pid(&self) -> u32 {
        self.server.as_ref().unwrap().id()
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        let mut server = self.server.take().unwrap();
        server.kill().unwrap();
        server.wait().unwrap();
    }

    /// SIGTERM, and waits for the end. Returns whether it ended well in time.
    pub fn stop(&mut self) -> bool {
        let Some(mut server) = self.server.take() else { return true };
        run("kill", [server.id().to_string()]);
        let end = Instant::now() + here(Duration::from_secs(15));
        while Instant::now() < end {
            if let Some(status) = server.try_wait().unwrap() {
                return status.success();
            }
            std::thread::park_timeout(Duration::from_millis(20));
        }
        server.kill().unwrap();
        server.wait().unwrap();
        false
    }

    /// A real kubectl of that version for this cluster's admin.
    pub fn kubectl(&self, version: &str) -> Kubectl {
        Kubectl::new(version, &self.kubeconfig())
    }

    /// Ids of all containers, sandboxes too, that this cluster's node made.
    pub fn containers(&self) -> Vec<String> {
        docker(["ps", "-aq", "--no-trunc", "--filter", &format!("label=io.orch.owner={}", self.owner())])
            .lines()
            .map(str::to_owned)
            .collect()
    }

    /// What the node writes into the label `io.orch.owner`.
    pub fn owner(&self) -> String {
        fs::read_to_string(self.data().join("agent/owner")).unwrap_or_else(|_| "nobody".to_owned()).trim().to_owned()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the end of the server's log ---\n{}", self.log_tail());
        }
        self.stop();
        uninstall(&self.data());
        // The address stays while an agent is away, so that pods are refused at once; a test leaves nothing behind.
        let address = format!("{}/32", self.cluster_dns());
        let _removed = Command::new("ip").args(["address", "del", &address, "dev", "lo"]).stderr(Stdio::null()).status();
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let ours = self.folder.path().display().to_string();
        for mount in mounts.lines().filter_map(|line| line.split(' ').nth(1)).filter(|mount| mount.starts_with(&ours)) {
            let _unmounted = Command::new("umount").arg("-l").arg(mount).status();
        }
        for device in fs::read_dir("/sys/block").into_iter().flatten().flatten() {
            let backing = fs::read_to_string(device.path().join("loop/backing_file")).unwrap_or_default();
            if backing.starts_with(&ours) {
                let _detached = Command::new("losetup").arg("-d").arg(Path::new("/dev").join(device.file_name())).status();
            }
        }
    }
}

/// Takes away what a node left on the machine: containers, interfaces, rules. What another test finds there would mislead it.
pub fn uninstall(data_dir: &Path) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_orch"));
    command.args(["uninstall", "--yes", "--keep-data", "--write-kubeconfig=/dev/null"]).arg("--data-dir").arg(data_dir);
    let output = command.stdin(Stdio::null()).output().unwrap();
    if !output.status.success() {
        eprintln!("orch uninstall: {}{}", text(&output.stdout), text(&output.stderr));
    }
    nothing_left(data_dir);
}

/// Fails a test whose node left cgroups of its pods or mounts on the machine.
pub fn nothing_left(data_dir: &Path) {
    if std::thread::panicking() {
        return;
    }
    let pods = fs::read_dir(data_dir.join("agent/pods")).into_iter().flatten().flatten();
    let uids: Vec<String> = pods.map(|pod| pod.file_name().to_string_lossy().into_owned()).collect();
    let groups = run("sh", ["-c", "find /sys/fs/cgroup -maxdepth 6 -type d -path '*kubepods*pod*' 2>/dev/null || true"]);
    let is_ours = |group: &&str| uids.iter().any(|uid| group.contains(uid.as_str()) || group.contains(&uid.replace('-', "_")));
    let folder = data_dir.join("agent").display().to_string();
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let mounts = mounts.lines().filter(|line| line.split(' ').nth(1).is_some_and(|point| point.starts_with(&folder)));
    let left: Vec<&str> = groups.lines().filter(is_ours).chain(mounts).collect();
    assert!(left.is_empty(), "the node of {folder} left behind: {left:#?}");
}

/// A real kubectl and a kubeconfig.
#[derive(Clone)]
pub struct Kubectl {
    pub version: String,
    path: PathBuf,
    kubeconfig: PathBuf,
    namespace: Option<String>,
}

impl Kubectl {
    /// # Panics
    /// When that kubectl was not fetched: `tests/tools/fetch` does.
    pub fn new(version: &str, kubeconfig: &Path) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("target/tools/kubectl-{version}"));
        assert!(path.exists(), "{} is missing: run tests/tools/fetch", path.display());
        Self { version: version.to_owned(), path, kubeconfig: kubeconfig.to_owned(), namespace: None }
    }

    /// The same, in a namespace.
    #[must_use]
    pub fn in_namespace(&self, namespace: &str) -> Self {
        Self { namespace: Some(namespace.to_owned()), ..self.clone() }
    }

    /// The command, not yet run.
    pub fn command<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(&self.path);
        // The cache of discovery must not be shared: each cluster is another server on a port that may come again.
        command
            .env("KUBECONFIG", &self.kubeconfig)
            .env("HOME", self.kubeconfig.parent().unwrap())
            .env_remove("KUBERNETES_SERVICE_HOST");
        if let Some(namespace) = &self.namespace {
            command.args(["--namespace", namespace]);
        }
        command.args(arguments).stdin(Stdio::null());
        command
    }

    /// Runs it and returns all that it said, whatever the exit code.
    pub fn output<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs it; the standard output, or the error text.
    ///
    /// # Errors
    /// Standard error, when the exit code is not 0.
    pub fn try_run<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Result<String, String> {
        let output = self.output(arguments);
        if output.status.success() {
            Ok(text(&output.stdout))
        } else {
            Err(format!("{}{}", text(&output.stdout), text(&output.stderr)))
        }
    }

    /// Runs it; it must succeed.
    pub fn run<S: AsRef<OsStr> + std::fmt::Debug>(&self, arguments: impl IntoIterator<Item = S>) -> String {
        let arguments: Vec<S> = arguments.into_iter().collect();
        self.try_run(&arguments).unwrap_or_else(|error| panic!("kubectl-{} {arguments:?}: {error}", self.version))
    }

    /// Runs it; it must fail. Returns its standard error.
    pub fn fails<S: AsRef<OsStr> + std::fmt::Debug>(&self, arguments: impl IntoIterator<Item = S>) -> String {
        let arguments: Vec<S> = arguments.into_iter().collect();
        let output = self.output(&arguments);
        assert!(!output.status.success(), "kubectl-{} {arguments:?} should have failed: {}", self.version, text(&output.stdout));
        text(&output.stderr)
    }

    /// Feeds a manifest to `kubectl VERB -f -`.
    pub fn manifest(&self, arguments: &[&str], manifest: &str) -> Result<String, String> {
        let mut command = self.command(arguments.iter().copied().chain(["-f", "-"]));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), manifest.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    /// A jsonpath of an object.
    pub fn jsonpath(&self, what: &[&str], path: &str) -> String {
        self.run(["get"].into_iter().chain(what.iter().copied()).chain(["-o", &format!("jsonpath={path}")]))
    }
}

/// Bytes as text.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs a program that must succeed; its standard output.
pub fn run<S: AsRef<OsStr>>(program: &str, arguments: impl IntoIterator<Item = S>) -> String {
    let output =
        Command::new(program).args(arguments).stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program}: {}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

/// Runs the Docker client, which must succeed.
pub fn docker<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> String {
    run("docker", arguments)
}

/// The id of a pod's running sandbox.
pub fn sandbox_of(uid: &str) -> String {
    let labels = [format!("label=io.kubernetes.pod.uid={uid}"), "label=io.kubernetes.docker.type=podsandbox".to_owned()];
    docker(["ps", "-q"].into_iter().chain(labels.iter().flat_map(|label| ["--filter", label]))).trim().to_owned()
}

/// The body at a URL, by the real curl.
///
/// # Errors
/// What curl says.
pub fn curl(url: &str) -> Result<String, String> {
    let output = Command::new("curl").args(["-sS", "--max-time", "5", url]).output().unwrap();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}
