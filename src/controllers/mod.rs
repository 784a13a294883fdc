//! The controllers: trait [`Controller`], the table [`CONTROLLERS`], one runner and one queue for all.
//!
//! A controller is a pure function `(observed, desired) -> actions` and a thin async shell that reads caches, calls it and
//! executes. Reconcile takes a key and nothing else: restart, retry and duplicate are the same case.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use ipnet::IpNet;

use crate::client::informer::Informers;
use crate::client::recorder::Recorder;
use crate::client::{Client, ClientError, ObjectKey};
use crate::kinds::Kinds;
use crate::rt::TaskGroup;
use crate::rt::clock::SharedClock;

mod address_repair;
mod bootstrap_token;
mod certificate_cleaner;
mod certificates;
mod cluster_role_aggregation;
mod cron_job;
mod daemon_set;
mod deployment;
mod disruption;
mod disruption_budget;
mod endpoints;
mod expectations;
mod garbage_collector;
mod history;
mod job;
mod metadata;
mod metrics;
mod namespace;
pub mod node_identity;
mod node_ipam;
mod node_lifecycle;
mod owners;
mod pod_control;
mod pod_gc;
mod pods;
mod queue;
mod replicaset;
mod runner;
mod service_account;
mod service_cidr;
mod service_lb;
mod stateful_set;
mod status;
mod taint_eviction;
mod volume;

pub use queue::Queue;
pub use runner::{Seen, Watches};

/// Every controller, by name.
pub const CONTROLLERS: &[(&str, Build)] = &[
    ("addressrepair", address_repair::address_repair),
    ("attachdetach", volume::attach),
    ("bootstraptoken", bootstrap_token::bootstrap_token),
    ("certificates", certificates::certificates),
    ("clusterroleaggregation", cluster_role_aggregation::cluster_role_aggregation),
    ("cronjob", cron_job::cron_job),
    ("csrcleaner", certificate_cleaner::certificate_cleaner),
    ("daemonset", daemon_set::daemon_set),
    ("deployment", deployment::deployment),
    ("disruption", disruption_budget::disruption),
    ("endpoints", endpoints::endpoints),
    ("endpointslicemirroring", endpoints::mirror::mirroring),
    ("ephemeralvolume", volume::ephemeral),
    ("garbagecollector", garbage_collector::garbage_collector),
    ("job", job::job),
    ("joborphan", job::orphans),
    ("localpathprovisioner", volume::local_path),
    ("namespace", namespace::namespace),
    ("nodeidentity", node_identity::node_identity),
    ("nodeipam", node_ipam::node_ipam),
    ("nodelifecycle", node_lifecycle::node_lifecycle),
    ("persistentvolumebinder", volume::binder),
    ("persistentvolumeexpander", volume::expand),
    ("podgc", pod_gc::pod_gc),
    ("pvcprotection", volume::claim_protection),
    ("pvprotection", volume::volume_protection),
    ("replicaset", replicaset::replica_set),
    ("replicationcontroller", replicaset::replication_controller),
    ("serviceaccount", service_account::service_account),
    ("servicecidr", service_cidr::service_cidr),
    ("servicelb", service_lb::service_lb),
    ("statefulset", stateful_set::stateful_set),
    ("tainteviction", taint_eviction::taint_eviction),
    ("ttlafterfinished", job::ttl_after_finished),
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
    /// The certificate authority of the API server, in PEM, that every namespace gets in `kube-root-ca.crt`.
    pub root_ca_pem: String,
    /// The range of which every node gets a part for its pods.
    pub cluster_cidr: IpNet,
    /// Length of the prefix of a node's part: 24.
    pub node_cidr_prefix: u8,
    /// Silence after which a node counts as lost.
    pub node_grace: Duration,
    /// Whether Services of type LoadBalancer get the addresses of nodes.
    pub service_lb: bool,
    /// Signs approved certificate requests; without one they stay as they are.
    pub signer: Option<Arc<dyn Signer>>,
}

/// Reads and signs certificate requests; handed in by the composition root, which has the keys.
pub trait Signer: Send + Sync + 'static {
    /// Who a request (PEM) asks a certificate for.
    ///
    /// # Errors
    /// What is wrong with the request.
    fn subject(&self, request_pem: &str) -> Result<RequestSubject, String>;

    /// Signs a request for a signer (`kubernetes.io/kube-apiserver-client-kubelet`) and returns the chain in PEM.
    ///
    /// # Errors
    /// Why it cannot be signed.
    fn sign(&self, request: &SigningOrder<'_>) -> Result<String, String>;
}

/// What is to be signed.
#[derive(Debug, Clone, Copy)]
pub struct SigningOrder<'a> {
    pub signer: &'a str,
    pub request_pem: &'a str,
    pub usages: &'a [String],
    /// What the requester asked for.
    pub lifetime: Option<Duration>,
    /// The identity that the certificate is bound to; "" for none.
    pub uid: &'a str,
}

/// What a certificate request says of its subject.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RequestSubject {
    pub common_name: String,
    pub organizations: Vec<String>,
    pub dns_names: Vec<String>,
    pub ip_addresses: Vec<String>,
    /// Whether it asks for names of other sorts (mail addresses, URIs).
    pub has_other_names: bool,
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
        runner::start(tasks, build(&context), &context.config.clock);
    }
}
