//! The controllers: trait [`Controller`], the table [`CONTROLLERS`], one runner and one queue for all.
//!
//! A controller is a pure function `(observed, desired) -> actions` and a thin async shell that reads caches, calls it and
//! executes. Reconcile takes a key and nothing else: restart, retry and duplicate are the same case.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::client::informer::Informers;
use crate::client::recorder::Recorder;
use crate::client::{Client, ClientError, ObjectKey};
use crate::kinds::Kinds;
use crate::rt::TaskGroup;
use crate::rt::clock::SharedClock;

mod deployment;
mod expectations;
mod metrics;
mod owners;
mod pods;
mod queue;
mod replicaset;
mod runner;
mod status;

pub use queue::Queue;
pub use runner::{Seen, Watches};

/// Every controller, by name.
pub const CONTROLLERS: &[(&str, Build)] = &[
    ("deployment", deployment::deployment),
    ("replicaset", replicaset::replica_set),
    ("replicationcontroller", replicaset::replication_controller),
];

/// Makes a controller.
pub type Build = fn(&Context) -> Arc<dyn Controller>;

/// A controller: which changes concern which keys, and what to do about a key.
#[async_trait]
pub trait Controller: Send + Sync + 'static {
    /// The name in logs and metrics.
    fn name(&self) -> &'static str;

    /// Says which informers to watch and how their changes become keys.
    fn watch(&self, watches: &mut Watches);

    /// Brings what the key names nearer to what is wanted. May be called at any time, for any key, any number of times.
    ///
    /// # Errors
    /// [`Error`]; the key is tried again with a growing delay.
    async fn reconcile(&self, key: &ObjectKey) -> Result<Requeue, Error>;

    /// How many keys are worked on at one time.
    fn workers(&self) -> usize {
        5
    }
}

/// When a key should be looked at again although nothing changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Requeue {
    /// When something changes.
    Done,
    /// After this time at the latest.
    After(Duration),
}

/// Why a reconcile failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A call to the API failed.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// A field of an object has a value that validation should have refused.
    #[error("{object}: {message}")]
    Invalid { object: String, message: String },
    /// The reconcile took too long.
    #[error("the reconcile took too long")]
    TimedOut,
    /// Not everything could be done yet.
    #[error("{0}")]
    Incomplete(String),
}

/// What the controllers are told by the composition root.
#[derive(Clone)]
pub struct ControllerConfig {
    /// Shared with the scheduler, so that each object is held once.
    pub informers: Informers,
    pub clock: SharedClock,
    /// The kinds that namespace deletion and garbage collection work on.
    pub kinds: Arc<Kinds>,
}

/// What a controller is built from.
pub struct Context {
    pub tasks: TaskGroup,
    pub client: Client,
    pub config: ControllerConfig,
}

impl Context {
    /// A client that says which controller it works for.
    pub fn client(&self, component: &str) -> Client {
        self.client.named(&format!("orch/{component}"))
    }

    /// A recorder for the events of a controller.
    pub fn recorder(&self, component: &str) -> Recorder {
        Recorder::new(&self.tasks, &self.client(component), component, "", &self.config.clock)
    }
}

/// Starts all controllers in `tasks`; they end with its token. To be called on the leader only.
pub fn run(tasks: &TaskGroup, client: Client, config: ControllerConfig) {
    let context = Context { tasks: tasks.clone(), client, config };
    for (_, build) in CONTROLLERS {
        runner::start(tasks, build(&context));
    }
}
