//! ConfigMaps, Secrets, claims, trust bundles, certificate requests and Services that pods on this node refer to. Each referenced object is watched by itself, and only while
//! a pod needs it; a change tells the pods that use it.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Secret, Service};
use parking_lot::Mutex;

use crate::agent::volume::certificate::{Asked, Look, Request};
use crate::agent::volume::trust::Bundle;
use crate::client::informer::{Change, Informer, Scope};
use crate::client::{ApiObject, Client};
use crate::rt::TaskGroup;

/// How long to wait for the API to show an object for the first time, where there is nothing to fall back to.
pub const FIRST_LOOK: Duration = Duration::from_secs(10);
/// How long to wait for the API to show what is known from before a restart.
const SECOND_LOOK: Duration = Duration::from_secs(3);

/// In place of a name: every object of the kind that [`Kept::all`] selects.
const ALL: &str = "";

/// Tells the pod with this uid that something it refers to has changed.
pub type Changed = Arc<dyn Fn(&str) + Send + Sync>;

/// Why an object cannot be told.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("timed out waiting for {kind} \"{name}\": the API server does not answer")]
pub struct SourceError {
    kind: &'static str,
    name: String,
}

struct Watched<K> {
    informer: Arc<Informer<K>>,
    tasks: TaskGroup,
    users: Arc<Mutex<BTreeSet<String>>>,
}

struct Kept<K> {
    watched: Mutex<HashMap<(String, String), Watched<K>>>,
    /// The query that finds [`ALL`].
    all: String,
}

impl<K> Default for Kept<K> {
    fn default() -> Self {
        Self { watched: Mutex::default(), all: String::new() }
    }
}

/// The objects that pods on this node refer to.
pub struct Sources {
    tasks: TaskGroup,
    client: Client,
    changed: Changed,
    config_maps: Kept<ConfigMap>,
    secrets: Kept<Secret>,
    claims: Kept<PersistentVolumeClaim>,
    bundles: Kept<Bundle>,
    requests: Kept<Request>,
    services: Arc<Informer<Service>>,
}

impl Sources {
    /// The sources of the pods on `node`. All Services come from `services`; the rest is watched when it is asked for, in tasks of
    /// `tasks`.
    pub fn new(tasks: &TaskGroup, client: Client, node: &str, services: Arc<Informer<Service>>, changed: Changed) -> Self {
        Self {
            tasks: tasks.clone(),
            client,
            changed,
            config_maps: Kept::default(),
            secrets: Kept::default(),
            claims: Kept::default(),
            bundles: Kept::default(),
            requests: Kept { all: format!("fieldSelector=spec.nodeName%3D{node}"), ..Kept::default() },
            services,
        }
    }

    /// A ConfigMap for the pod `uid`, waiting for the API no longer than `patience` at the first look; `None` if there is none of that name.
    ///
    /// # Errors
    /// [`SourceError`] when the API does not answer and the object was not known before: try again.
    pub async fn config_map(
        &self,
        uid: &str,
        namespace: &str,
        name: &str,
        patience: Duration,
    ) -> Result<Option<Arc<ConfigMap>>, SourceError> {
        self.look(&self.config_maps, |found| found.immutable == Some(true), uid, (namespace, name), patience).await
    }

    /// A Secret for the pod `uid`; `None` if there is none of that name.
    ///
    /// # Errors
    /// As [`config_map`](Self::config_map).
    pub async fn secret(
        &self,
        uid: &str,
        namespace: &str,
        name: &str,
        patience: Duration,
    ) -> Result<Option<Arc<Secret>>, SourceError> {
        self.look(&self.secrets, |found| found.immutable == Some(true), uid, (namespace, name), patience).await
    }

    /// A claim for the pod `uid`; `None` if there is none of that name.
    ///
    /// # Errors
    /// As [`config_map`](Self::config_map).
    pub async fn claim(
        &self,
        uid: &str,
        namespace: &str,
        name: &str,
        patience: Duration,
    ) -> Result<Option<Arc<PersistentVolumeClaim>>, SourceError> {
        self.look(&self.claims, |_| false, uid, (namespace, name), patience).await
    }

    /// All ClusterTrustBundles, for the pod `uid`.
    ///
    /// # Errors
    /// As [`config_map`](Self::config_map).
    pub async fn bundles(&self, uid: &str, patience: Duration) -> Result<Vec<Arc<Bundle>>, SourceError> {
        let informer = self.informer(&self.bundles, |_| false, uid, ("", ALL), patience).await?;
        Ok(informer.list())
    }

    /// What became of a certificate request of this node's, made for the pod `uid`; waits no longer than `patience` for a decision.
    ///
    /// # Errors
    /// As [`config_map`](Self::config_map).
    pub async fn request(&self, uid: &str, asked: &Asked, patience: Duration) -> Result<Look, SourceError> {
        let informer = self.informer(&self.requests, |_| false, uid, ("", ALL), FIRST_LOOK).await?;
        let mut changes = informer.subscribe();
        let look = || match informer.get(&asked.namespace, &asked.name) {
            Some(request) if request.decision().is_some() => Look::Decided(request),
            // What was made before the newest that we know of, and is not there, is gone.
            None if informer.revision() >= asked.revision => Look::Gone,
            _ => Look::Pending,
        };
        let decided = async {
            loop {
                match look() {
                    Look::Pending if changes.next().await.is_some() => {}
                    other => return other,
                }
            }
        };
        Ok(tokio::time::timeout(patience, decided).await.unwrap_or(Look::Pending))
    }

    /// All Services, once they are known.
    ///
    /// # Errors
    /// As [`config_map`](Self::config_map).
    pub async fn services(&self, patience: Duration) -> Result<Vec<Arc<Service>>, SourceError> {
        // What was known before a restart does only while the API does not answer.
        let patience = if self.services.is_synced() { SECOND_LOOK.min(patience) } else { patience };
        let listed = tokio::time::timeout(patience, self.services.listed()).await;
        if listed.is_err() && !self.services.is_synced() {
            return Err(SourceError { kind: "services", name: "all".to_owned() });
        }
        Ok(self.services.list())
    }

    /// Forgets that a pod uses anything; what nobody uses is watched no longer.
    pub fn release(&self, uid: &str) {
        release(&self.config_maps, uid);
        release(&self.secrets, uid);
        release(&self.claims, uid);
        release(&self.bundles, uid);
        release(&self.requests, uid);
    }

    async fn look<K: ApiObject>(
        &self,
        kept: &Kept<K>,
        is_final: fn(&K) -> bool,
        uid: &str,
        (namespace, name): (&str, &str),
        patience: Duration,
    ) -> Result<Option<Arc<K>>, SourceError> {
        let informer = self.informer(kept, is_final, uid, (namespace, name), patience).await?;
        Ok(informer.get(namespace, name))
    }

    /// What watches the object of a name, or [`ALL`], once it knows it.
    async fn informer<K: ApiObject>(
        &self,
        kept: &Kept<K>,
        is_final: fn(&K) -> bool,
        uid: &str,
        (namespace, name): (&str, &str),
        patience: Duration,
    ) -> Result<Arc<Informer<K>>, SourceError> {
        let informer = {
            let mut watched = kept.watched.lock();
            let key = (namespace.to_owned(), name.to_owned());
            let one = || if name == ALL { kept.all.clone() } else { format!("fieldSelector=metadata.name%3D{name}") };
            let watched = watched.entry(key).or_insert_with(|| self.watch(namespace, one(), is_final));
            watched.users.lock().insert(uid.to_owned());
            Arc::clone(&watched.informer)
        };
        let synced = tokio::time::timeout(patience, informer.synced()).await;
        synced.map_err(|_| SourceError { kind: K::KIND, name: name.to_owned() })?;
        Ok(informer)
    }

    /// Watches what a query finds; an object that can change no more is watched no more.
    fn watch<K: ApiObject>(&self, namespace: &str, query: String, is_final: fn(&K) -> bool) -> Watched<K> {
        let tasks = self.tasks.child();
        let scope = Scope { namespace: namespace.to_owned(), query };
        let informer = Informer::<K>::start(&tasks, self.client.clone(), scope);
        let users: Arc<Mutex<BTreeSet<String>>> = Arc::default();
        let (mut changes, changed, known) = (informer.subscribe(), Arc::clone(&self.changed), Arc::clone(&users));
        let (token, watching) = (tasks.token(), tasks.clone());
        tasks.spawn(async move {
            while let Some(Some(change)) = token.run_until_cancelled(changes.next()).await {
                if matches!(change, Change::Synced) {
                    continue;
                }
                if matches!(&change, Change::Applied { new, .. } if is_final(new)) {
                    watching.cancel();
                }
                let users: Vec<String> = known.lock().iter().cloned().collect();
                users.iter().for_each(|uid| changed(uid));
            }
        });
        Watched { informer, tasks, users }
    }
}

fn release<K>(kept: &Kept<K>, uid: &str) {
    kept.watched.lock().retain(|_, watched| {
        let mut users = watched.users.lock();
        users.remove(uid);
        if users.is_empty() {
            watched.tasks.cancel();
        }
        !users.is_empty()
    });
}
