//! A host of its own on this machine: a network namespace with a Docker engine, one cable to the machine's own namespace, and a
//! firewall that takes no connection from outside when asked.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::support::{run, text, wait_for};

/// The host; everything it made is taken away when it is dropped.
pub struct Host {
    number: u8,
    folder: tempfile::TempDir,
    dockerd: Option<Child>,
}

impl Host {
    /// Starts a host with these images of the main engine; no two tests use one number.
    pub fn start(number: u8, images: &[&str]) -> Self {
        let folder = tempfile::Builder::new().prefix("orch-host-").tempdir().unwrap();
        let mut host = Self { number, folder, dockerd: None };
        host.remove_network();
        let (name, cable) = (host.name(), host.cable());
        run("ip", ["netns", "add", &name]);
        run("ip", ["link", "add", &cable, "type", "veth", "peer", "name", "eth0", "netns", &name]);
        run("ip", ["addr", "add", &format!("{}/24", host.machine_ip()), "dev", &cable]);
        run("ip", ["link", "set", &cable, "up"]);
        run("ip", ["-n", &name, "addr", "add", &format!("{}/24", host.ip()), "dev", "eth0"]);
        for link in ["eth0", "lo"] {
            run("ip", ["-n", &name, "link", "set", link, "up"]);
        }
        run("ip", ["-n", &name, "route", "add", "default", "via", &host.machine_ip()]);
        host.start_engine();
        for image in images {
            let mut save = Command::new("docker").args(["save", image]).stdout(Stdio::piped()).spawn().unwrap();
            let mut load = host.docker_command(&["load", "-q"]);
            let loaded = load.stdin(save.stdout.take().unwrap()).output().unwrap();
            assert!(save.wait().unwrap().success() && loaded.status.success(), "{}", text(&loaded.stderr));
        }
        host
    }

    fn start_engine(&mut self) {
        let path = |name: &str| self.path(name).display().to_string();
        let log = File::create(self.path("dockerd.log")).unwrap();
        let mut command = self.command("dockerd");
        command.args(["--data-root", &path("docker"), "--exec-root", &path("exec"), "-p", &path("docker.pid")]);
        command.args(["-H", &self.socket()]).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.dockerd = Some(command.spawn().unwrap());
        wait_for("the host's engine", Duration::from_secs(30), || {
            let answer = self.docker_command(&["info"]).output().unwrap();
            if answer.status.success() { Ok(()) } else { Err(text(&answer.stderr)) }
        });
    }

    fn name(&self) -> String {
        format!("jn-host{}", self.number)
    }

    fn cable(&self) -> String {
        format!("jn-cable{}", self.number)
    }

    /// The host's address.
    pub fn ip(&self) -> String {
        format!("10.203.{}.2", self.number)
    }

    /// The machine's address, as the host reaches it.
    pub fn machine_ip(&self) -> String {
        Self::machine_ip_of(self.number)
    }

    /// The same, before there is a host.
    pub fn machine_ip_of(number: u8) -> String {
        format!("10.203.{number}.1")
    }

    /// A path in the host's own folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The engine's socket.
    pub fn socket(&self) -> String {
        format!("unix://{}", self.path("docker.sock").display())
    }

    /// A program in the host's network.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.name())).arg(program).env("DOCKER_HOST", self.socket());
        command
    }

    /// What a program in the host's network prints; it must succeed.
    pub fn run(&self, program: &str, arguments: &[&str]) -> String {
        let output = self.command(program).args(arguments).stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success(), "{program} {arguments:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    fn docker_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("docker");
        command.args(["-H", &self.socket()]).args(arguments);
        command
    }

    /// The Docker client on the host's engine.
    pub fn docker(&self, arguments: &[&str]) -> String {
        let output = self.docker_command(arguments).output().unwrap();
        assert!(output.status.success(), "docker {arguments:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    /// From now on nobody outside opens a connection to the host or through it, as behind NAT.
    pub fn close(&self) {
        let rules = "table inet closed {\n chain input {\n type filter hook input priority -10; policy accept;\n iifname \"eth0\" ct state new drop\n }\n \
                     chain forward {\n type filter hook forward priority -10; policy accept;\n iifname \"eth0\" ct state new drop\n }\n}\n";
        let path = self.path("closed.nft");
        std::fs::write(&path, rules).unwrap();
        self.run("nft", &["-f", path.to_str().unwrap()]);
    }

    fn remove_network(&self) {
        for arguments in [["netns", "del", &self.name()], ["link", "del", &self.cable()]] {
            // Left behind by a run that was killed, or not there.
            let _gone = Command::new("ip").args(arguments).stderr(Stdio::null()).status();
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let containers = self.docker_command(&["ps", "-aq"]).output().map(|output| text(&output.stdout)).unwrap_or_default();
        for container in containers.lines() {
            let _removed = self.docker_command(&["rm", "-f", container]).output();
        }
        if let Some(mut dockerd) = self.dockerd.take() {
            let _asked = Command::new("kill").arg(dockerd.id().to_string()).status();
            let _ended = dockerd.wait();
        }
        let ours = self.folder.path().display().to_string();
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        for mount in mounts.lines().filter_map(|line| line.split(' ').nth(1)).filter(|mount| mount.starts_with(&ours)) {
            let _unmounted = Command::new("umount").arg("-l").arg(mount).status();
        }
        self.remove_network();
    }
}
