//! The container runtime seam: what the agent asks of whatever runs containers. `docker/` is the implementation, `fake.rs` the
//! one for tests. The types are the seam's own; they know no Kubernetes objects beyond the labels that the agent sets.
//!
//! Containers outlive `orch`. Everything needed to find them again is in their labels (see [`labels`]).

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::Stream;
use jiff::Timestamp;
use tokio::io::{AsyncRead, AsyncWrite};

pub mod docker;
pub mod fake;

/// Labels by which containers are found again; the names are dockershim's.
pub mod labels {
    pub const POD_NAME: &str = "io.kubernetes.pod.name";
    pub const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
    pub const POD_UID: &str = "io.kubernetes.pod.uid";
    pub const CONTAINER_NAME: &str = "io.kubernetes.container.name";
    /// `podsandbox` or `container`.
    pub const TYPE: &str = "io.kubernetes.docker.type";
    pub const SANDBOX_ID: &str = "io.kubernetes.sandbox.id";
    /// The node (its uid or name and data dir) that owns the container: several agents may share an engine.
    pub const OWNER: &str = "io.orch.owner";
    pub const ATTEMPT: &str = "io.orch.attempt";
    /// The OCI runtime that a sandbox was made with, where it is not the engine's default.
    pub const OCI_RUNTIME: &str = "io.orch.oci-runtime";
    /// Hash of the container's spec: a change means a restart.
    pub const SPEC_HASH: &str = "io.orch.spec-hash";
    /// `name@digest` of the image that a container was created from, if a registry gave it one.
    pub const IMAGE_DIGEST: &str = "io.orch.image-digest";
}

/// What is known of the engine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RuntimeInfo {
    /// `docker`.
    pub name: String,
    pub version: String,
    pub api_version: String,
    pub kernel_version: String,
    pub os_image: String,
    pub cgroup_driver: CgroupDriver,
    pub cgroup_version: u8,
    pub root_dir: PathBuf,
    /// Whether the kernel lets the engine lower an OOM score.
    pub can_lower_oom_score: bool,
    /// Names of the OCI runtimes that the engine knows.
    pub runtimes: BTreeSet<String>,
    /// Whether the engine confines containers with AppArmor.
    pub has_apparmor: bool,
}

impl RuntimeInfo {
    /// Whether read-only mounts can be recursive: from API 1.44 (Docker 25) on.
    pub fn has_recursive_read_only(&self) -> bool {
        let mut parts = self.api_version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
        (parts.next(), parts.next()) >= (Some(1), Some(44))
    }
}

/// Who makes cgroups.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum CgroupDriver {
    #[default]
    Cgroupfs,
    Systemd,
}

/// The sandbox of a pod: a pause container that holds its namespaces, with network `none` (or the host's).
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SandboxSpec {
    /// The container's name: `k8s_POD_<pod>_<namespace>_<uid>_<attempt>`. Creating is idempotent by it.
    pub name: String,
    pub hostname: String,
    pub labels: BTreeMap<String, String>,
    pub host_network: bool,
    pub host_pid: bool,
    pub host_ipc: bool,
    pub sysctls: BTreeMap<String, String>,
    /// Parent cgroup, in the form of the cgroup driver; "" leaves it to the engine.
    pub cgroup_parent: String,
    /// Name of the OCI runtime; "" is the engine's default.
    pub oci_runtime: String,
    /// `user:…`, `role:…`, `type:…`, `level:…` for SELinux.
    pub selinux: Vec<String>,
}

/// A container of a pod.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ContainerSpec {
    /// `k8s_<container>_<pod>_<namespace>_<uid>_<attempt>`.
    pub name: String,
    pub image: String,
    /// Replaces the image's entrypoint; `None` keeps it (then `args` replaces its cmd).
    pub command: Option<Vec<String>>,
    pub args: Option<Vec<String>>,
    /// `NAME=value`.
    pub env: Vec<String>,
    pub working_dir: String,
    pub labels: BTreeMap<String, String>,
    pub mounts: Vec<Mount>,
    pub host_devices: Vec<Device>,
    pub sandbox_id: String,
    /// Join the PID namespace of the sandbox.
    pub share_pid: bool,
    /// The host's name is the container's: that of a pod on the host's network.
    pub host_uts: bool,
    pub host_pid: bool,
    /// Join the PID namespace of this container instead.
    pub pid_of: Option<String>,
    /// `uid[:gid]`; "" keeps the image's user.
    pub user: String,
    pub supplemental_groups: Vec<i64>,
    /// Add the groups that the image gives to the user, also where `user` names a group.
    pub merge_image_groups: bool,
    pub privileged: bool,
    pub read_only_rootfs: bool,
    pub no_new_privileges: bool,
    pub capabilities_add: Vec<String>,
    pub capabilities_drop: Vec<String>,
    pub seccomp: Seccomp,
    /// Name of an AppArmor profile, or `unconfined`; `None` leaves it to the engine.
    pub apparmor: Option<String>,
    /// As for the sandbox.
    pub selinux: Vec<String>,
    /// Show all of /proc and /sys, writable where the kernel has it.
    pub unmasked_proc: bool,
    /// Devices that a driver of the engine hands out.
    pub devices: Vec<DeviceRequest>,
    /// As for the sandbox.
    pub oci_runtime: String,
    pub stdin: bool,
    pub stdin_once: bool,
    pub tty: bool,
    pub stop_signal: Option<String>,
    pub resources: Resources,
    pub oom_score_adj: Option<i64>,
    pub cgroup_parent: String,
    /// Largest size of a log file and number of files kept.
    pub log_max_bytes: u64,
    pub log_max_files: u32,
}

/// Which system calls a container may make.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Seccomp {
    /// All.
    #[default]
    Unconfined,
    /// Those of the engine's own profile.
    RuntimeDefault,
    /// Those of a profile: its JSON text.
    Profile(String),
}

/// Devices from a driver of the engine (`nvidia`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceRequest {
    pub driver: String,
    pub count: i64,
    pub capabilities: Vec<String>,
}

/// Limits, in the kernel's units; `None` sets none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resources {
    pub cpu_shares: Option<i64>,
    pub cpu_quota_us: Option<i64>,
    pub cpu_period_us: Option<i64>,
    pub memory_bytes: Option<i64>,
    pub pids: Option<i64>,
    /// The CPUs it may run on (`0-3,8`).
    pub cpuset: Option<String>,
    /// Bytes in huge pages by resource name; a pod's cgroup has them, the engine knows no such limit of a container.
    pub huge_pages: Vec<(String, i64)>,
}

/// A bind mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    pub host_path: PathBuf,
    pub container_path: String,
    pub read_only: bool,
    /// Whether what is mounted below is read-only too; only where the engine can (see [`RuntimeInfo::has_recursive_read_only`]).
    pub recursive_read_only: bool,
    pub propagation: Propagation,
}

/// A device of the host that a container has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    pub host_path: PathBuf,
    pub container_path: String,
    pub read_only: bool,
}

/// Mount propagation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Propagation {
    #[default]
    Private,
    HostToContainer,
    Bidirectional,
}

/// Where a container is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Created,
    Running,
    Exited,
    /// Being removed, dead, paused and the like.
    Unknown,
}

/// A container as a list shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerSummary {
    pub id: String,
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub state: State,
}

/// Whom a process runs as, by numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessUser {
    pub uid: u32,
    pub gid: u32,
    /// Ascending; the group above is among them where the engine puts it there.
    pub groups: Vec<u32>,
}

/// A container in full.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerDetail {
    pub id: String,
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub state: State,
    /// PID of its first process, in the host's namespace, while it runs.
    pub pid: Option<u32>,
    /// Whom that process runs as, while it runs.
    pub user: Option<ProcessUser>,
    /// The image as asked for.
    pub image: String,
    /// `sha256:…` of the image's configuration.
    pub image_id: String,
    pub created_at: Option<Timestamp>,
    pub started_at: Option<Timestamp>,
    pub finished_at: Option<Timestamp>,
    pub exit_code: i32,
    pub oom_killed: bool,
    /// The engine's words when a start failed.
    pub error: String,
    pub log_path: Option<PathBuf>,
    pub tty: bool,
}

/// An image on the node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Image {
    pub id: String,
    pub tags: Vec<String>,
    pub digests: Vec<String>,
    pub size_bytes: u64,
    /// `uid[:gid]` or name of the image's user; "" is root.
    pub user: String,
}

impl Image {
    /// `name@digest` as the registry knows the image that this reference means; `None` for one that came from no registry.
    pub fn digest_of(&self, reference: &str) -> Option<&str> {
        let name = reference.split('@').next().unwrap_or(reference);
        let tag = name.rfind(':').filter(|at| !name[*at..].contains('/'));
        let name = &name[..tag.unwrap_or(name.len())];
        let of_name = self.digests.iter().find(|digest| digest.split('@').next() == Some(name));
        of_name.or(self.digests.first()).map(String::as_str)
    }
}

/// Credentials for a registry.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RegistryAuth {
    pub username: String,
    pub password: String,
    pub server_address: String,
    pub identity_token: String,
}

/// News from the engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RuntimeEvent {
    /// Something happened to a container of this owner; look at it.
    Container { id: String, labels: BTreeMap<String, String>, action: String },
    /// The stream was broken and is there again (the engine restarted, or the connection broke): look at everything.
    Resync,
    /// The engine does not answer; the text says why. `Resync` follows when it does.
    Down(String),
}

/// A running exec or attach: streams, and the way to its end. Dropping it closes the streams; an exec'd process goes on.
pub struct ExecSession {
    /// Raw bytes of standard output, or of the terminal.
    pub stdout: Option<Pin<Box<dyn AsyncRead + Send>>>,
    pub stderr: Option<Pin<Box<dyn AsyncRead + Send>>>,
    /// Shutting it down closes the process' standard input and leaves the outputs open.
    pub stdin: Option<Pin<Box<dyn AsyncWrite + Send>>>,
    pub control: Arc<dyn ExecControl>,
}

/// What can be done to a running exec beside its streams.
#[async_trait]
pub trait ExecControl: Send + Sync {
    /// Sets the size of the terminal in cells.
    async fn resize(&self, columns: u16, rows: u16) -> Result<(), RuntimeError>;
    /// The exit code; call it when the outputs have ended.
    async fn exit_code(&self) -> Result<i32, RuntimeError>;
    /// Ends the command by force; a container's first process is left as it is.
    async fn kill(&self) -> Result<(), RuntimeError>;
}

/// What to run in a container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExecSpec {
    pub command: Vec<String>,
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub tty: bool,
}

/// Why the engine did not do what it was asked.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum RuntimeError {
    /// No such container or image.
    #[error("{0}")]
    NotFound(String),
    /// The name is in use, or the container is in a state that forbids it.
    #[error("{0}")]
    Conflict(String),
    /// The engine does not answer: try again.
    #[error("cannot reach Docker at {socket}: {why}")]
    Unreachable { socket: String, why: String },
    /// The call took too long.
    #[error("{call} took longer than {after:?}")]
    Timeout { call: &'static str, after: Duration },
    /// The engine refused, with its words.
    #[error("{0}")]
    Failed(String),
}

/// A stream of the engine's news.
pub type EventStream = Pin<Box<dyn Stream<Item = RuntimeEvent> + Send>>;

/// How far a pull is. Bytes are those of the layers whose size is known, as the registry has them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pulled {
    pub layers: usize,
    pub layers_done: usize,
    pub bytes: u64,
    pub total_bytes: u64,
}

/// Hears how far a pull is, often.
pub type PullProgress<'a> = &'a (dyn Fn(Pulled) + Send + Sync);

/// What runs containers. Every call is idempotent, has a deadline, and may be dropped at any await.
#[async_trait]
pub trait Runtime: Send + Sync + 'static {
    /// What engine this is. Also the health check.
    async fn info(&self) -> Result<RuntimeInfo, RuntimeError>;
    /// Makes sure the pause image is there (made from this executable, never pulled) and creates the sandbox, stopped. Returns its id.
    async fn create_sandbox(&self, spec: &SandboxSpec) -> Result<String, RuntimeError>;
    /// Creates a container, stopped. The sandbox must exist; it need not run yet. Returns its id.
    async fn create_container(&self, spec: &ContainerSpec) -> Result<String, RuntimeError>;
    /// Starts a sandbox or container; one that runs is left as it is.
    async fn start(&self, id: &str) -> Result<(), RuntimeError>;
    /// Sends the stop signal, waits `grace`, then kills. One that is stopped or gone is left as it is.
    async fn stop(&self, id: &str, grace: Duration) -> Result<(), RuntimeError>;
    /// Removes by force, with its anonymous volumes. One that is gone is left as it is.
    async fn remove(&self, id: &str) -> Result<(), RuntimeError>;
    /// All containers of this owner (see [`labels::OWNER`]), sandboxes too, running or not.
    async fn list(&self) -> Result<Vec<ContainerSummary>, RuntimeError>;
    /// One container in full.
    async fn inspect(&self, id: &str) -> Result<ContainerDetail, RuntimeError>;
    /// Changes limits of a running container.
    async fn update(&self, id: &str, resources: &Resources) -> Result<(), RuntimeError>;
    /// News, from now on, for ever; reconnects by itself and says [`RuntimeEvent::Resync`] when it has.
    fn events(&self) -> EventStream;
    /// Runs a command in a running container.
    async fn exec(&self, id: &str, spec: &ExecSpec) -> Result<ExecSession, RuntimeError>;
    /// Attaches to the first process of a running container.
    async fn attach(&self, id: &str, spec: &ExecSpec) -> Result<ExecSession, RuntimeError>;
    /// Looks up an image by name or id.
    async fn image(&self, reference: &str) -> Result<Option<Image>, RuntimeError>;
    /// All images.
    async fn images(&self) -> Result<Vec<Image>, RuntimeError>;
    /// Pulls an image.
    async fn pull(&self, reference: &str, auth: Option<&RegistryAuth>, progress: PullProgress<'_>) -> Result<(), RuntimeError>;
    /// Loads images from a tarball (`docker save` or OCI, compressed or not), as it is read.
    async fn load(&self, tarball: &Path) -> Result<Vec<String>, RuntimeError>;
    /// Gives an image one more name.
    async fn tag(&self, reference: &str, name: &str) -> Result<(), RuntimeError>;
    /// Writes the files of an image that is there into an empty directory.
    async fn unpack_image(&self, image: &str, target: &Path) -> Result<(), RuntimeError>;
    /// Removes an image.
    async fn remove_image(&self, reference: &str) -> Result<(), RuntimeError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_known_by_the_digest_of_the_name_it_was_asked_for_by() {
        let digests = ["other/app@sha256:1", "r.example:5000/team/app@sha256:2"].map(str::to_owned).to_vec();
        let image = Image { digests, ..Image::default() };
        for (reference, expected) in [
            ("r.example:5000/team/app", "r.example:5000/team/app@sha256:2"),
            ("r.example:5000/team/app:1", "r.example:5000/team/app@sha256:2"),
            ("r.example:5000/team/app:1@sha256:2", "r.example:5000/team/app@sha256:2"),
            ("mirrored/app:1", "other/app@sha256:1"),
        ] {
            assert_eq!(image.digest_of(reference), Some(expected), "{reference}");
        }
        assert_eq!(Image::default().digest_of("built-here:1"), None);
    }
}
