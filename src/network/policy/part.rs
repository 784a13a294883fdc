//! The part of a node that enforces network policies: reads the API through informers, asks the planner, tells the kernel.
//!
//! Until the API has been read, what the kernel holds stays as it is; if a new pod waits meanwhile, or the table is damaged, what was
//! last known is enforced, and with nothing known the pod waits on. While the API is away the rules stay. Bursts of changes are
//! gathered into one transaction.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::facts::{NamespaceFacts, PodFacts};
use super::gate::Mode;
use super::known::Known;
use super::planner::{Local, Planner};
use super::table::{PolicyTable, table_of};
use crate::client::informer::{Change, Informer, Scope, Subscription};
use crate::client::{Cached, Source};
use crate::network::nft::{self, Monitor, Nft, NftError};
use crate::network::parts::PartContext;
use crate::rt::clock::instant;
use crate::rt::{Backoff, TaskGroup};

/// Time for the API to answer before what was last known is taken.
const API_ANSWERS: Duration = Duration::from_secs(3);
/// Shortest time between two transactions: what comes meanwhile is gathered.
const GATHER: Duration = Duration::from_millis(10);
/// Time until a change is noted on disk, so that those that belong together are one note.
const NOTE: Duration = Duration::from_millis(200);
/// Shortest time between two notes.
const NOTE_INTERVAL: Duration = Duration::from_secs(5);

/// Enforces until it is dropped.
pub(in crate::network) fn run(context: PartContext) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        let policies = Informer::<NetworkPolicy>::start(&context.tasks, context.client.clone(), Scope::all());
        let file = context.data_dir.join("policy.json");
        let mut known = None;
        if tokio::time::timeout(API_ANSWERS, policies.synced()).await.is_err() {
            known = Known::load(file.clone()).await;
            if known.as_ref().is_some_and(|known| known.policies.is_empty()) {
                context.pods.gate.set_mode(Mode::Open);
            } else if known.is_none() {
                tracing::warn!("no network policies are known yet: new pods wait until the API answers");
            }
        }
        let part = Part { context, policies, file };
        loop {
            let restored = known.take().filter(|known| !known.policies.is_empty());
            if restored.is_none() {
                part.policies.synced().await;
                if part.policies.is_empty() {
                    part.rest().await;
                }
            }
            part.enforce(restored).await;
        }
    })
}

/// Takes away what a node's policies left in the kernel.
///
/// # Errors
/// When the kernel refuses.
pub(in crate::network) async fn remove(node: &str) -> Result<(), NftError> {
    let mut batch = nft::Batch::new();
    batch.remove_table(&table_of(node));
    Nft::open()?.commit(batch).await
}

struct Part {
    context: PartContext,
    policies: Arc<Informer<NetworkPolicy>>,
    file: PathBuf,
}

impl Part {
    /// Nothing to enforce: everybody passes, until there is a policy.
    async fn rest(&self) {
        let mut changes = self.policies.subscribe();
        self.context.pods.gate.set_mode(Mode::Open);
        if let Err(error) = remove(&self.context.node).await {
            tracing::debug!(%error, "the table of policies was not removed");
        }
        Known::default().save(self.file.clone()).await;
        while self.policies.is_empty() {
            if changes.next().await.is_none() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Enforces as long as there are policies.
    async fn enforce(&self, known: Option<Known>) {
        let gate = &self.context.pods.gate;
        // Who comes now waits for its rules.
        gate.set_mode(Mode::Unknown);
        gate.touch_all();
        let group = self.context.tasks.child();
        let _ends_with_this = group.token().drop_guard();
        let mut kernel = self.open_kernel().await;
        let mut inputs = Inputs::start(&group, self);
        let cluster_cidr = self.context.cluster_cidr;
        let mut session = Session { next: Some(Planner::new(cluster_cidr)), rebuild: true, ..Session::default() };
        if let Some(known) = known {
            let mut planner = Planner::new(cluster_cidr);
            known.teach(&mut planner);
            session.active = Some(planner);
        }
        let noted = Arc::new(Notify::new());
        inputs.keep(&group, self.file.clone(), Arc::clone(&noted));
        loop {
            if session.take(&mut inputs) && self.policies.is_empty() {
                return;
            }
            let touched = gate.take();
            session.take_local(touched);
            session.is_urgent |= gate.is_waited_at();
            if session.is_due() && kernel.flush(&mut session, gate).await {
                noted.notify_one();
            }
            tokio::select! {
                () = inputs.wait(&mut session) => {}
                () = gate.touched() => {}
                () = kernel.disturbed() => (session.rebuild, session.is_urgent) = (true, true),
            }
            tokio::time::sleep_until(kernel.last + GATHER).await;
        }
    }

    /// The way to the kernel; tried until there is one.
    async fn open_kernel(&self) -> Kernel {
        let dns = match self.context.cluster_dns {
            IpAddr::V4(dns) => dns,
            IpAddr::V6(_) => Ipv4Addr::UNSPECIFIED,
        };
        let mut backoff = backoff();
        loop {
            let opened = PolicyTable::open(&self.context.node, dns).and_then(|table| Ok((table.monitor()?, table)));
            match opened {
                Ok((monitor, table)) => {
                    return Kernel { table, monitor: Some(monitor), last: instant(), retry: None, backoff };
                }
                Err(error) => {
                    tracing::warn!(error = error.report(), "network policies cannot be enforced; trying again");
                    self.context.pods.gate.set_trouble(error.report());
                    tokio::time::sleep(backoff.next_delay()).await;
                }
            }
        }
    }
}

fn backoff() -> Backoff {
    Backoff::new(Duration::from_millis(200), Duration::from_secs(30))
}

/// Planners, and what is on its way to the kernel.
#[derive(Default)]
struct Session {
    /// Whose plan is in force, or about to be.
    active: Option<Planner>,
    /// Learns from the API until that has been read whole, and takes over then.
    next: Option<Planner>,
    /// Policies, namespaces, pods: read whole.
    read: [bool; 3],
    /// Whether the kernel's table must be made anew.
    rebuild: bool,
    /// Whether what was last known is better than what the kernel holds.
    is_urgent: bool,
    /// Pods that came, and whose rules are not in force yet.
    arriving: Vec<(Box<str>, Option<Local>)>,
    /// What came in while waiting.
    policies: Vec<Change<NetworkPolicy>>,
    namespaces: Vec<Change<NamespaceFacts>>,
    pods: Vec<Change<PodFacts>>,
}

impl Session {
    /// Whether the kernel should hold what the active planner says: what comes from the API, or what was last known if need be.
    fn is_due(&self) -> bool {
        self.active.is_some() && (self.next.is_none() || self.is_urgent)
    }

    /// The planner that learns from the API.
    fn learner(&mut self) -> Option<&mut Planner> {
        self.next.as_mut().or(self.active.as_mut())
    }

    /// Takes all that waits; returns whether the API has been read whole.
    fn take(&mut self, inputs: &mut Inputs) -> bool {
        let waiting = (std::mem::take(&mut self.policies), std::mem::take(&mut self.namespaces), std::mem::take(&mut self.pods));
        let policies = waiting.0.into_iter().chain(std::iter::from_fn(|| inputs.policies.try_next())).collect::<Vec<_>>();
        let namespaces = waiting.1.into_iter().chain(std::iter::from_fn(|| inputs.namespaces.try_next())).collect::<Vec<_>>();
        let pods = waiting.2.into_iter().chain(std::iter::from_fn(|| inputs.pods.try_next())).collect::<Vec<_>>();
        for (read, is_read) in self.read.iter_mut().zip([has_synced(&policies), has_synced(&namespaces), has_synced(&pods)]) {
            *read |= is_read;
        }
        if let Some(planner) = self.learner() {
            namespaces.iter().for_each(|change| tell_namespace(planner, change));
            pods.iter().for_each(|change| tell_pod(planner, change));
            policies.iter().for_each(|change| tell_policy(planner, change));
        }
        let is_whole = self.read == [true; 3];
        if is_whole && let Some(next) = self.next.take() {
            self.active = Some(next);
            self.rebuild = true;
        }
        is_whole
    }

    fn take_local(&mut self, touched: Vec<(Box<str>, Option<Local>)>) {
        for planner in self.active.iter_mut().chain(&mut self.next) {
            touched.iter().for_each(|(uid, local)| planner.set_local(uid, local.clone()));
        }
        self.arriving.extend(touched);
    }
}

fn has_synced<T>(changes: &[Change<T>]) -> bool {
    changes.iter().any(|change| matches!(change, Change::Synced))
}

fn tell_policy(planner: &mut Planner, change: &Change<NetworkPolicy>) {
    match change {
        Change::Applied { new, .. } => planner.put_policy(new),
        Change::Deleted(old) => planner.remove_policy(old),
        Change::Synced => {}
    }
}

fn tell_namespace(planner: &mut Planner, change: &Change<NamespaceFacts>) {
    match change {
        Change::Applied { new, .. } => planner.set_namespace(&new.name, Some(new.labels.clone())),
        Change::Deleted(old) => planner.set_namespace(&old.name, None),
        Change::Synced => {}
    }
}

fn tell_pod(planner: &mut Planner, change: &Change<PodFacts>) {
    match change {
        Change::Applied { old, new } => {
            // A pod of the same name that came after it.
            if let Some(old) = old.as_ref().filter(|old| old.uid != new.uid) {
                planner.remove_pod(&old.uid);
            }
            planner.put_pod(new);
        }
        Change::Deleted(old) => planner.remove_pod(&old.uid),
        Change::Synced => {}
    }
}

/// Everything that is read of the API.
type Caches = (Arc<Informer<NetworkPolicy>>, Arc<Informer<NamespaceFacts>>, Arc<Informer<PodFacts>>);

/// What is read of the API, as it changes.
struct Inputs {
    all: Caches,
    policies: Subscription<NetworkPolicy>,
    namespaces: Subscription<NamespaceFacts>,
    pods: Subscription<PodFacts>,
}

impl Inputs {
    fn start(group: &TaskGroup, part: &Part) -> Self {
        let client = &part.context.client;
        let namespaces = start::<NamespaceFacts>(group, client, "/api/v1/namespaces");
        let pods = start::<PodFacts>(group, client, "/api/v1/pods");
        let policies = Arc::clone(&part.policies);
        Self {
            policies: policies.subscribe(),
            namespaces: namespaces.subscribe(),
            pods: pods.subscribe(),
            all: (policies, namespaces, pods),
        }
    }

    /// Waits for a change, which is kept in the session. Cancel safe.
    async fn wait(&mut self, session: &mut Session) {
        // The informers run as long as the session does.
        tokio::select! {
            Some(change) = self.policies.next() => session.policies.push(change),
            Some(change) = self.namespaces.next() => session.namespaces.push(change),
            Some(change) = self.pods.next() => session.pods.push(change),
            else => std::future::pending().await,
        }
    }

    /// Notes on disk what is known, some time after each change.
    fn keep(&self, group: &TaskGroup, file: PathBuf, changed: Arc<Notify>) {
        let (token, (policies, namespaces, pods)) = (group.token(), self.all.clone());
        group.spawn(async move {
            let noting = async {
                loop {
                    changed.notified().await;
                    tokio::time::sleep(NOTE).await;
                    if policies.is_synced() && namespaces.is_synced() && pods.is_synced() {
                        let known = Known { policies: policies.list(), namespaces: namespaces.list(), pods: pods.list() };
                        known.save(file.clone()).await;
                    }
                    tokio::time::sleep(NOTE_INTERVAL).await;
                }
            };
            token.run_until_cancelled(noting).await;
        });
    }
}

fn start<T: Cached>(group: &TaskGroup, client: &crate::client::Client, path: &str) -> Arc<Informer<T>> {
    let accept = "application/json".to_owned();
    let source = Source { path: path.to_owned(), query: String::new(), accept_watch: accept.clone(), accept };
    Informer::start_source(group, client.clone(), source)
}

/// The kernel's side.
struct Kernel {
    table: PolicyTable,
    monitor: Option<Monitor>,
    /// When it was last told something.
    last: Instant,
    /// When to try again after a failure.
    retry: Option<Instant>,
    backoff: Backoff,
}

impl Kernel {
    /// Brings the kernel to what is planned; returns whether anything was told. A failure is kept for the next attempt.
    async fn flush(&mut self, session: &mut Session, gate: &super::Gate) -> bool {
        if self.retry.is_some_and(|at| instant() < at) {
            return false;
        }
        let Some(planner) = session.active.as_mut() else { return false };
        let batch = if session.rebuild { planner.whole() } else { planner.changes() };
        let told = match (session.rebuild, batch.is_empty()) {
            (true, _) => self.table.replace(&batch).await.map(|()| true),
            (false, true) => Ok(false),
            (false, false) => self.table.apply(&batch).await.map(|()| true),
        };
        self.last = instant();
        match told {
            Ok(told) => {
                (session.rebuild, self.retry) = (false, None);
                self.backoff.reset();
                gate.enforced(&std::mem::take(&mut session.arriving));
                told
            }
            Err(error) => {
                tracing::warn!(%error, "the kernel refuses the network policies; trying again");
                session.rebuild = true;
                self.retry = Some(self.last + self.backoff.next_delay());
                gate.set_trouble(error.report());
                false
            }
        }
    }

    /// Waits until the table must be made anew: somebody else changed it, or it is time to try again. Cancel safe.
    async fn disturbed(&mut self) {
        let retry = async {
            match self.retry {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let changed = async {
            match &mut self.monitor {
                Some(monitor) => monitor.changed().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = retry => {}
            changed = changed => match changed {
                Ok(why) => tracing::info!(?why, "somebody changed the table of the network policies: it is made anew"),
                Err(error) => {
                    tracing::warn!(%error, "changes of the table of the network policies are not seen any more");
                    self.monitor = None;
                }
            },
        }
    }
}
