//! [`Runtime`] over a Docker engine (API 1.41, Docker 20.10, and later), reached through its Unix socket. The only user of
//! bollard.
//!
//! One file per concern: `info`, `pause` (the sandbox' image, made here and never pulled), `sandbox`, `container`, `image`,
//! `events`, `exec` and `hijack` (the raw streams). Practices are dockershim's and cri-dockerd's: names make creation
//! idempotent, labels find everything again, containers join their sandbox' namespaces.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use async_trait::async_trait;
use tokio::sync::{Mutex, Semaphore};

use super::{
    ContainerDetail, ContainerSpec, ContainerSummary, EventStream, ExecSession, ExecSpec, Image, PullProgress, RegistryAuth,
    Resources, Runtime, RuntimeError, RuntimeInfo, SandboxSpec,
};
use crate::rt::TaskGroup;

mod accounts;
mod container;
mod error;
mod events;
mod exec;
mod hijack;
mod identity;
mod image;
mod info;
mod pause;
mod sandbox;
mod unpack;

/// Where Docker listens unless told otherwise.
pub const DEFAULT_SOCKET: &str = "/var/run/docker.sock";

/// Response headers that take longer than this fail inside bollard; our own deadlines are shorter.
const CLIENT_TIMEOUT_SECS: u64 = 7_200;

/// Which engine, and in whose name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DockerConfig {
    /// `unix:///var/run/docker.sock` or a path.
    pub host: String,
    /// Value of the label [`OWNER`](super::labels::OWNER): what this agent's containers are told apart by.
    pub owner: String,
}

/// A Docker engine. It need not run yet: every call tries to reach it.
#[derive(Clone)]
pub struct Docker {
    engine: Arc<Engine>,
}

/// The engine as calls share it; streams and sessions keep it alive.
struct Engine {
    socket: PathBuf,
    owner: String,
    client: ArcSwapOption<bollard::Docker>,
    /// Bounds the starts at one time: they are CPU-bound in the engine, and more only make each slower.
    starts: Semaphore,
    /// Held while the pause image is made.
    pause: Mutex<()>,
    can_lower_oom_score: OnceLock<bool>,
    /// Users and groups of images; held while those of one are read.
    accounts: Mutex<accounts::KnownAccounts>,
    tasks: TaskGroup,
}

impl Docker {
    /// Names an engine; nothing is sent yet.
    ///
    /// # Errors
    /// When `host` is no Unix socket: the agent shares files and namespaces with the engine, so it must be local.
    pub fn connect(config: DockerConfig) -> Result<Self, RuntimeError> {
        let path = config.host.strip_prefix("unix://").unwrap_or(&config.host);
        if path.contains("://") || !path.starts_with('/') {
            let text = format!("Docker host {:?}: only a local Unix socket (unix:///path) will do", config.host);
            return Err(RuntimeError::Failed(text));
        }
        let cores = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
        let engine = Engine {
            socket: PathBuf::from(path),
            owner: config.owner,
            client: ArcSwapOption::empty(),
            starts: Semaphore::new((cores * 2).max(4)),
            pause: Mutex::new(()),
            can_lower_oom_score: OnceLock::new(),
            accounts: Mutex::default(),
            tasks: TaskGroup::new(),
        };
        Ok(Self { engine: Arc::new(engine) })
    }
}

impl Engine {
    /// The client; made when the socket is there, and then kept.
    fn client(&self) -> Result<Arc<bollard::Docker>, RuntimeError> {
        if let Some(client) = self.client.load_full() {
            return Ok(client);
        }
        let path = self.socket.to_string_lossy();
        let client = bollard::Docker::connect_with_unix(&path, CLIENT_TIMEOUT_SECS, bollard::API_DEFAULT_VERSION)
            .map_err(|error| self.explain(error))?;
        let client = Arc::new(client);
        self.client.store(Some(Arc::clone(&client)));
        Ok(client)
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.tasks.cancel();
    }
}

#[async_trait]
impl Runtime for Docker {
    async fn info(&self) -> Result<RuntimeInfo, RuntimeError> {
        self.engine.engine_info().await
    }

    async fn create_sandbox(&self, spec: &SandboxSpec) -> Result<String, RuntimeError> {
        self.engine.make_sandbox(spec).await
    }

    async fn create_container(&self, spec: &ContainerSpec) -> Result<String, RuntimeError> {
        self.engine.make_container(spec).await
    }

    async fn start(&self, id: &str) -> Result<(), RuntimeError> {
        self.engine.start_by_id(id).await
    }

    async fn stop(&self, id: &str, grace: Duration) -> Result<(), RuntimeError> {
        self.engine.stop_by_id(id, grace).await
    }

    async fn remove(&self, id: &str) -> Result<(), RuntimeError> {
        self.engine.remove_by_id(id).await
    }

    async fn list(&self) -> Result<Vec<ContainerSummary>, RuntimeError> {
        self.engine.list_owned().await
    }

    async fn inspect(&self, id: &str) -> Result<ContainerDetail, RuntimeError> {
        self.engine.inspect_by_id(id).await
    }

    async fn update(&self, id: &str, resources: &Resources) -> Result<(), RuntimeError> {
        self.engine.update_by_id(id, resources).await
    }

    fn events(&self) -> EventStream {
        self.engine.follow_events()
    }

    async fn exec(&self, id: &str, spec: &ExecSpec) -> Result<ExecSession, RuntimeError> {
        self.engine.exec_in(id, spec).await
    }

    async fn attach(&self, id: &str, spec: &ExecSpec) -> Result<ExecSession, RuntimeError> {
        self.engine.attach_to(id, spec).await
    }

    async fn image(&self, reference: &str) -> Result<Option<Image>, RuntimeError> {
        self.engine.find_image(reference).await
    }

    async fn images(&self) -> Result<Vec<Image>, RuntimeError> {
        self.engine.list_images().await
    }

    async fn pull(&self, reference: &str, auth: Option<&RegistryAuth>, progress: PullProgress<'_>) -> Result<(), RuntimeError> {
        self.engine.pull_image(reference, auth, progress).await
    }

    async fn load(&self, tarball: &Path) -> Result<Vec<String>, RuntimeError> {
        self.engine.load_tarball(tarball).await
    }

    async fn unpack_image(&self, image: &str, target: &Path) -> Result<(), RuntimeError> {
        self.engine.unpack(image, target).await
    }

    async fn tag(&self, reference: &str, name: &str) -> Result<(), RuntimeError> {
        self.engine.tag(reference, name).await
    }

    async fn remove_image(&self, reference: &str) -> Result<(), RuntimeError> {
        self.engine.remove_image_by(reference).await
    }
}
