//! Hosts on one machine. A host is a network, process, mount and UTS namespace with a Docker engine of its own; all hosts of a subnet
//! stand on one switch, a bridge in a network namespace of its own (so that no host's firewall sees another host's frames). The
//! machine itself is on the first switch too. With a second subnet there is a router between the two.
//!
//! Everything of a host lives as long as the first process of its namespaces: when that is killed, the kernel takes away its
//! processes, mounts and interfaces. What a run that was killed left behind is found by the names of those processes.
#![allow(dead_code, reason = "a kit: what one test does not use, the next does")]

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::{Slot, docker, run, text, wait_for};

/// What every host's engine has.
const IMAGES: [&str; 5] = ["busybox:latest", "nginx:1.14", "nginx:1.15", "orch-test:latest", "tools:latest"];
const HALF_MINUTE: Duration = Duration::from_secs(30);

/// Namespaces, held by a process.
pub struct Namespaces {
    /// The first process, as the machine numbers it.
    pid: u32,
    holder: Child,
    flags: &'static [&'static str],
}

impl Namespaces {
    /// New namespaces of the kinds that `flags` of nsenter name.
    fn new(mark: &str, hostname: Option<&str>) -> Self {
        const NETWORK: &[&str] = &["--net"];
        const HOST: &[&str] = &["--net", "--pid", "--mount", "--uts"];
        let mut command = Command::new("unshare");
        let flags = if hostname.is_some() { HOST } else { NETWORK };
        command.args(flags).arg("--fork");
        if hostname.is_some() {
            command.args(["--kill-child", "--mount-proc"]);
        }
        // Bash reaps what is orphaned in its PID namespace. The machine's own containerd is hidden, so that the engine starts its own.
        let prepare = hostname.map_or_else(String::new, |name| {
            format!("hostname {name}; mkdir -p /run/containerd; mount -t tmpfs tmpfs /run/containerd || exit 1; ")
        });
        // Without a PID namespace nothing is reaped, and nothing but the one process may stay to be killed.
        let hold = if hostname.is_some() { "while :; do sleep 1000000 & wait $!; done" } else { "exec -a $0 sleep infinity" };
        let script = format!("exec 2>&1; {prepare}ip link set lo up || exit 1; echo up; {hold}");
        command.args(["bash", "-c", &script, mark]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut holder = command.spawn().expect("unshare (util-linux) is installed");
        let mut said = String::new();
        BufReader::new(holder.stdout.as_mut().unwrap()).read_line(&mut said).unwrap();
        assert_eq!(said, "up\n", "new namespaces: is this root?");
        Self { pid: child_of(holder.id()), holder, flags }
    }

    /// A command that will run in the namespaces.
    fn command<S: AsRef<OsStr>>(&self, program: &str, arguments: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.pid.to_string()]).args(self.flags).arg(program).args(arguments).stdin(Stdio::null());
        command
    }

    /// `ip ARGUMENTS`, which must succeed.
    fn ip(&self, arguments: &str) -> String {
        let output = self.command("ip", arguments.split_whitespace()).output().unwrap();
        assert!(output.status.success(), "ip {arguments}: {}", text(&output.stderr));
        text(&output.stdout)
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        signal(self.pid, Signal::SIGKILL);
        let _reaped = self.holder.wait();
    }
}

/// The only child of a process, as soon as it has one.
fn child_of(pid: u32) -> u32 {
    let file = format!("/proc/{pid}/task/{pid}/children");
    wait_for("a process to fork", HALF_MINUTE, || {
        let children = fs::read_to_string(&file).map_err(|error| error.to_string())?;
        children.split_whitespace().next().and_then(|child| child.parse().ok()).ok_or(children)
    })
}

fn signal(pid: u32, signal: Signal) {
    let _it_may_be_gone = kill(Pid::from_raw(pid.cast_signed()), signal);
}

/// A process on a host.
pub struct Process {
    /// It waits for the process and ends as that does.
    nsenter: Child,
    /// As the machine numbers it.
    pid: u32,
}

impl Process {
    fn spawn(mut command: Command, log: &Path) -> Self {
        let log = File::options().create(true).append(true).open(log).unwrap();
        let nsenter = command.stdout(log.try_clone().unwrap()).stderr(log).spawn().expect("nsenter (util-linux) is installed");
        let pid = child_of(nsenter.id());
        Self { nsenter, pid }
    }

    /// Its number on the machine.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether it has ended, and how.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.nsenter.try_wait().unwrap()
    }

    /// SIGKILL.
    pub fn kill(self) {
        drop(self);
    }

    /// SIGTERM, and waits for the end; it must come.
    pub fn stop(mut self) {
        signal(self.pid, Signal::SIGTERM);
        wait_for("a process to end after SIGTERM", HALF_MINUTE, || {
            self.ended().ok_or_else(|| format!("process {} runs", self.pid))
        });
    }

    /// SIGSTOP: it hangs, until [`resume`](Self::resume).
    pub fn pause(&self) {
        signal(self.pid, Signal::SIGSTOP);
    }

    /// SIGCONT. Nsenter stops when what it waits for does, and must go on too.
    pub fn resume(&self) {
        signal(self.pid, Signal::SIGCONT);
        signal(self.nsenter.id(), Signal::SIGCONT);
    }
}

impl Drop for Process {
    /// A namespace of processes ends only when its last one was reaped, and this one is reaped by nsenter.
    fn drop(&mut self) {
        if self.ended().is_none() {
            signal(self.pid, Signal::SIGKILL);
            signal(self.nsenter.id(), Signal::SIGCONT);
            let _reaped = self.nsenter.wait();
        }
    }
}

/// One host.
pub struct Host {
    /// `h1`, `h2`, …: its host name.
    pub name: String,
    pub ip: Ipv4Addr,
    /// State of what runs on it; the machine sees it under the same path.
    pub folder: PathBuf,
    /// The subnet it stands in: 0 or 1.
    subnet: u8,
    /// Its port on the switch.
    port: String,
    engine: Option<Process>,
    namespaces: Namespaces,
}

impl Host {
    /// The first process of its namespaces, as the machine numbers it.
    pub fn pid(&self) -> u32 {
        self.namespaces.pid
    }

    fn socket(&self) -> String {
        format!("unix://{}", self.folder.join("docker.sock").display())
    }

    /// A command that will run on the host.
    pub fn command<S: AsRef<OsStr>>(&self, program: &str, arguments: impl IntoIterator<Item = S>) -> Command {
        let mut command = self.namespaces.command(program, arguments);
        command.env("DOCKER_HOST", self.socket());
        command
    }

    /// Runs a shell command on the host and returns all that it said.
    pub fn output(&self, script: &str) -> Output {
        self.command("sh", ["-c", script]).output().unwrap()
    }

    /// Runs a shell command on the host.
    ///
    /// # Errors
    /// What it said, when its exit code is not 0.
    pub fn try_exec(&self, script: &str) -> Result<String, String> {
        let output = self.output(script);
        let said = text(&output.stdout);
        if output.status.success() { Ok(said) } else { Err(said + &text(&output.stderr)) }
    }

    /// Runs a shell command on the host; it must succeed. Returns its standard output.
    pub fn exec(&self, script: &str) -> String {
        self.try_exec(script).unwrap_or_else(|error| panic!("{} on {}: {error}", script, self.name))
    }

    /// Starts a program on the host; its output is appended to `LOG` in the host's folder.
    pub fn spawn<S: AsRef<OsStr>>(&self, log: &str, program: &str, arguments: impl IntoIterator<Item = S>) -> Process {
        Process::spawn(self.command(program, arguments), &self.folder.join(log))
    }

    /// What a program started with [`spawn`](Self::spawn) has said.
    pub fn log(&self, log: &str) -> String {
        fs::read_to_string(self.folder.join(log)).unwrap_or_default()
    }

    /// Starts the engine and waits until it answers.
    pub fn start_engine(&mut self) {
        let mut arguments = vec![
            "--exec-opt=native.cgroupdriver=cgroupfs".to_owned(),
            "--log-level=warn".to_owned(),
            format!("--host={}", self.socket()),
        ];
        for (flag, name) in [("--data-root", "docker"), ("--exec-root", "exec"), ("--pidfile", "pid")] {
            arguments.push(format!("{flag}={}", self.folder.join(name).display()));
        }
        // An engine that was killed leaves its pid file behind; the number may be another's by now.
        let _removed = fs::remove_file(self.folder.join("pid"));
        let mut engine = self.spawn("dockerd.log", "dockerd", arguments);
        wait_for("the engine of a host to answer", HALF_MINUTE, || {
            if let Some(status) = engine.ended() {
                panic!("dockerd ended ({status}): {}", self.log("dockerd.log"));
            }
            let output = Command::new("docker").args(["-H", &self.socket(), "version"]).output().unwrap();
            if output.status.success() { Ok(()) } else { Err(text(&output.stderr)) }
        });
        self.engine = Some(engine);
    }

    /// Stops the engine; its containers end too, as Docker's own do without live-restore.
    pub fn stop_engine(&mut self) {
        self.engine.take().expect("the engine runs").stop();
    }

    /// Runs the Docker client against the host's engine; it must succeed.
    pub fn docker<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> String {
        let arguments = arguments.into_iter().map(|argument| argument.as_ref().to_owned());
        docker(["-H".into(), self.socket().into()].into_iter().chain(arguments))
    }
}

/// The hosts of one test, and what connects them.
pub struct Hosts {
    pub all: Vec<Host>,
    lan: Namespaces,
    router: Option<Namespaces>,
    folder: PathBuf,
    pub slot: Slot,
}

impl Hosts {
    /// One host for each entry, which says in which subnet it stands: 0 or 1.
    pub fn start(subnets: &[u8]) -> Self {
        let slot = Slot::take();
        let number = slot.number;
        clear_away(number);
        let folder = root().join(number.to_string());
        fs::create_dir_all(&folder).unwrap();
        let lan = Namespaces::new(&mark(number, "lan"), None);
        let mut hosts = Self { all: Vec::new(), lan, router: None, folder, slot };
        hosts.switches(subnets.contains(&1));
        let images = Images::ready();
        let (this, images) = (&hosts, &images);
        let started = std::thread::scope(|scope| {
            let start = |(at, subnet): (usize, &u8)| {
                let (name, subnet) = (format!("h{}", at + 1), *subnet);
                scope.spawn(move || this.start_host(name, subnet, u8::try_from(at).unwrap() + 11, images))
            };
            let starting: Vec<_> = subnets.iter().enumerate().map(start).collect();
            starting.into_iter().map(|thread| thread.join().expect("a host starts")).collect()
        });
        hosts.all = started;
        hosts
    }

    /// An address of a subnet.
    pub fn address(&self, subnet: u8, last: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 204, self.slot.number + 100 * subnet, last)
    }

    /// Where the machine itself is reached from the hosts.
    pub fn machine(&self) -> Ipv4Addr {
        self.address(0, 1)
    }

    fn machine_interface(&self) -> String {
        machine_interface(self.slot.number)
    }

    fn switches(&mut self, with_router: bool) {
        let interface = self.machine_interface();
        self.lan.ip("link add sw0 type bridge");
        self.lan.ip("link set sw0 up");
        run("ip", format!("link add {interface} type veth peer name machine netns {}", self.lan.pid).split(' '));
        self.lan.ip("link set machine master sw0 up");
        run("ip", format!("addr add {}/24 dev {interface}", self.machine()).split(' '));
        run("ip", format!("link set {interface} up").split(' '));
        if !with_router {
            return;
        }
        let router = Namespaces::new(&mark(self.slot.number, "router"), None);
        self.lan.ip("link add sw1 type bridge");
        self.lan.ip("link set sw1 up");
        for subnet in [0, 1] {
            self.lan.ip(&format!("link add r{subnet} type veth peer name eth{subnet} netns {}", router.pid));
            self.lan.ip(&format!("link set r{subnet} master sw{subnet} up"));
            router.ip(&format!("addr add {}/24 dev eth{subnet}", self.address(subnet, 254)));
            router.ip(&format!("link set eth{subnet} up"));
        }
        router.ip(&format!("route add default via {}", self.machine()));
        // A router that knows of no pod: what it forwards is between hosts.
        let forward = router.command("sh", ["-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"]).status().unwrap();
        assert!(forward.success());
        run("ip", format!("route add {}/24 via {}", self.address(1, 0), self.address(0, 254)).split(' '));
        self.router = Some(router);
    }

    fn start_host(&self, name: String, subnet: u8, last: u8, images: &Images) -> Host {
        let namespaces = Namespaces::new(&mark(self.slot.number, &name), Some(&name));
        let (port, ip) = (format!("p{last}"), self.address(subnet, last));
        self.lan.ip(&format!("link add {port} type veth peer name eth0 netns {}", namespaces.pid));
        self.lan.ip(&format!("link set {port} master sw{subnet} up"));
        let folder = self.folder.join(&name);
        let mut host = Host { name, ip, folder, subnet, port, engine: None, namespaces };
        host.namespaces.ip(&format!("addr add {ip}/24 dev eth0"));
        host.namespaces.ip("link set eth0 up");
        self.route_out(&host);
        images.give(&host.folder.join("docker"));
        host.start_engine();
        host
    }

    /// Gives a host its default route (again).
    pub fn route_out(&self, host: &Host) {
        let last = if self.router.is_some() { 254 } else { 1 };
        host.namespaces.ip(&format!("route replace default via {}", self.address(host.subnet, last)));
    }

    /// Pulls a host's cable out: the host sees that the link is gone.
    pub fn cut(&self, host: &Host) {
        self.lan.ip(&format!("link set {} down", host.port));
    }

    /// Puts the cable back.
    pub fn join(&self, host: &Host) {
        self.lan.ip(&format!("link set {} up", host.port));
    }

    /// Lets nothing through between a host and the others, while its link stays up; or all again.
    pub fn isolate(&self, host: &Host, is_isolated: bool) {
        let state = if is_isolated { "0" } else { "3" };
        let done = self.lan.command("bridge", ["link", "set", "dev", &host.port, "state", state]).output().unwrap();
        assert!(done.status.success(), "bridge link set: {}", text(&done.stderr));
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for host in &self.all {
                for log in ["dockerd.log", "orch.log"] {
                    let text = host.log(log);
                    let lines: Vec<&str> = text.lines().filter(|line| !line.contains("level=info")).collect();
                    eprintln!(
                        "--- the end of {log} of {} ---\n{}",
                        host.name,
                        lines[lines.len().saturating_sub(25)..].join("\n")
                    );
                }
            }
        }
        let pods = pods(&self.folder);
        self.all.clear();
        remove_cgroups(&pods);
        let _removed = Command::new("ip").args(["link", "del", &self.machine_interface()]).output();
        if let Err(error) = fs::remove_dir_all(&self.folder) {
            eprintln!("{} is not removed: {error}", self.folder.display());
        }
    }
}

/// Where hosts keep their state: short, because sockets lie below it.
fn root() -> PathBuf {
    std::env::temp_dir().join("orch-hosts")
}

/// The name by which a process that holds namespaces is found.
fn mark(slot: u8, name: &str) -> String {
    format!("orch-hosts-{slot}-{name}")
}

fn machine_interface(slot: u8) -> String {
    format!("orch-hosts{slot}")
}

/// Removes what a killed run with this slot left behind; the slot is ours, so nobody uses it.
fn clear_away(slot: u8) {
    let ours = mark(slot, "");
    let end = Instant::now() + HALF_MINUTE;
    loop {
        let left: Vec<u32> = fs::read_dir("/proc")
            .unwrap()
            .filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok())
            .filter(|pid: &u32| {
                let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                line.split(|byte| *byte == 0).any(|word| word.starts_with(ours.as_bytes()))
            })
            .collect();
        if left.is_empty() {
            break;
        }
        assert!(Instant::now() < end, "processes of a killed run do not end: {left:?}");
        left.iter().for_each(|pid| signal(*pid, Signal::SIGKILL));
        std::thread::park_timeout(Duration::from_millis(50));
    }
    let _removed = Command::new("ip").args(["link", "del", &machine_interface(slot)]).output();
    let folder = root().join(slot.to_string());
    if folder.exists() {
        remove_cgroups(&pods(&folder));
        fs::remove_dir_all(&folder).unwrap();
    }
}

/// Uids of the pods that the agents of the hosts knew.
fn pods(folder: &Path) -> Vec<String> {
    let names = |folder: PathBuf| fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.file_name());
    names(folder.to_owned())
        .flat_map(|host| {
            let agent = folder.join(host).join("orch/agent");
            names(agent.join("checkpoints")).chain(names(agent.join("pods")))
        })
        .filter_map(|name| name.to_str().map(|name| name.split('.').next().unwrap_or(name).to_owned()))
        .collect()
}

/// Cgroups are no part of a namespace: those of pods whose processes were killed with their host are removed by name.
fn remove_cgroups(pods: &[String]) {
    fn remove(folder: &Path, pods: &[String], is_ours: bool) {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten().filter(|entry| entry.path().is_dir()) {
            let name = entry.file_name().to_string_lossy().into_owned();
            let is_ours = is_ours || pods.iter().any(|uid| name == format!("pod{uid}"));
            remove(&entry.path(), pods, is_ours);
            if is_ours {
                let _removed = fs::remove_dir(entry.path());
            }
        }
    }
    let roots = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|entry| entry.path());
    roots.chain([PathBuf::from("/sys/fs/cgroup")]).for_each(|root| remove(&root.join("kubepods"), pods, false));
}

/// The test images as an engine keeps them: loaded once, then linked into each host's engine.
struct Images {
    folder: PathBuf,
    /// Nobody makes others while they are used.
    _lock: File,
}

impl Images {
    fn ready() -> Self {
        fs::create_dir_all(root()).unwrap();
        let ids = docker(["image", "inspect", "-f", "{{slice .Id 7 19}}"].iter().chain(&IMAGES));
        let folder = root().join(format!("images-{}", ids.split_whitespace().map(|id| &id[..4]).collect::<String>()));
        let lock = File::options().create(true).truncate(false).write(true).open(root().join("images.lock")).unwrap();
        lock.lock().unwrap();
        if !folder.exists() {
            Self::make(&folder);
        }
        lock.unlock().unwrap();
        lock.lock_shared().unwrap();
        Self { folder, _lock: lock }
    }

    /// Loads the images into an engine that is there for this only.
    fn make(folder: &Path) {
        let mark = "orch-hosts-images";
        for stale in fs::read_dir(root()).unwrap().flatten().map(|entry| entry.path()) {
            if stale.is_dir() && stale.file_name().is_some_and(|name| name.to_string_lossy().starts_with("images-")) {
                fs::remove_dir_all(stale).unwrap();
            }
        }
        let work = root().join("images-new");
        fs::create_dir_all(&work).unwrap();
        let namespaces = Namespaces::new(mark, Some("images"));
        let ip = Ipv4Addr::LOCALHOST;
        let (name, port) = ("images".to_owned(), String::new());
        let mut host = Host { name, ip, folder: work.clone(), subnet: 0, port, engine: None, namespaces };
        host.start_engine();
        let copy = format!("docker save {} | docker -H {} load", IMAGES.join(" "), host.socket());
        run("sh", ["-c", &copy]);
        host.stop_engine();
        drop(host);
        fs::rename(work.join("docker"), folder).unwrap();
        fs::remove_dir_all(work).unwrap();
    }

    /// Puts the images into an engine that was not started yet. Layers are never written to, and the files beside them are always
    /// replaced as a whole: links do.
    fn give(&self, data_root: &Path) {
        fs::create_dir_all(data_root).unwrap();
        for part in ["image", "overlay2"] {
            let (from, to) = (self.folder.join(part), data_root.to_owned());
            run("cp", [OsStr::new("-al"), from.as_os_str(), to.as_os_str()]);
        }
    }
}
