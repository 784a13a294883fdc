//! Informers: a reflector, a cache with indexes, and subscriptions. [`Informers`] shares one informer a kind in a process.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;

use super::cache::{Cache, Cached, IndexFn, ObjectKey};
use super::reflector::{Reflector, Source, vanished};
use super::subscription::Queue;
pub use super::subscription::{Change, Subscription};
use super::{ApiObject, Client, path, snapshot};
use crate::rt::TaskGroup;

/// Which objects of a kind.
#[derive(Debug, Clone, Default)]
pub struct Scope {
    /// "" is all namespaces.
    pub namespace: String,
    /// Selectors as they stand in a URL: `fieldSelector=spec.nodeName%3Dn1`.
    pub query: String,
}

impl Scope {
    /// Every object of the kind.
    pub fn all() -> Self {
        Self::default()
    }

    fn source<K: ApiObject>(self) -> Source {
        let accept = "application/json".to_owned();
        Source { path: path::<K>(&self.namespace, None, None), query: self.query, accept_watch: accept.clone(), accept }
    }
}

/// What the reflector fills and readers read. The lock is never held across an await.
pub(super) struct Shared<T> {
    state: RwLock<State<T>>,
    filled: watch::Sender<Filled>,
    revision: AtomicU64,
}

/// What the cache was filled from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Filled {
    Empty,
    /// A snapshot from before this process began.
    Restored,
    /// The API.
    Listed,
}

struct State<T> {
    cache: Cache<T>,
    subscribers: Vec<Weak<Queue<T>>>,
}

impl<T: Cached> Shared<T> {
    /// Puts a whole list in the place of the cache.
    pub(super) fn replace(&self, objects: Vec<T>, revision: &str) {
        let mut state = self.state.write();
        let known = state.cache.iter().map(|object| ObjectKey::of(&**object)).collect::<Vec<_>>();
        for key in vanished(known.into_iter(), &objects) {
            state.remove(&key);
        }
        for object in objects {
            state.put(object);
        }
        self.reached(revision);
        if self.filled.send_replace(Filled::Listed) != Filled::Listed {
            state.each(Queue::push_synced);
        }
    }

    /// Fills the cache with what a snapshot holds, before the first list.
    fn restore(&self, objects: Vec<T>) {
        if objects.is_empty() {
            return;
        }
        let mut state = self.state.write();
        for object in objects {
            state.put(object);
        }
        self.filled.send_replace(Filled::Restored);
        state.each(Queue::push_synced);
    }

    pub(super) fn apply(&self, object: T, revision: &str) {
        let mut state = self.state.write();
        // Subscribers may look at the revision as soon as they are told.
        self.reached(revision);
        state.put(object);
    }

    pub(super) fn delete(&self, key: &ObjectKey, revision: &str) {
        let mut state = self.state.write();
        self.reached(revision);
        state.remove(key);
    }

    /// Everything up to this revision is in the cache.
    pub(super) fn reached(&self, revision: &str) {
        if let Ok(revision) = revision.parse() {
            self.revision.store(revision, Ordering::Release);
        }
    }

    fn close(&self) {
        self.state.write().each(Queue::close);
    }
}

impl<T: Cached> State<T> {
    fn put(&mut self, mut object: T) {
        let key = ObjectKey::of(&object);
        // Revisions count in one cluster only; what a snapshot holds may be another's.
        let is_known = |old: &Arc<T>| old.resource_version() == object.resource_version() && old.uid() == object.uid();
        if self.cache.get(&key.namespace, &key.name).is_some_and(is_known) {
            return;
        }
        object.trim();
        let new = Arc::new(object);
        let old = self.cache.insert(&key, &new);
        self.each(|queue| queue.push(&key, old.as_ref(), Some(&new)));
    }

    fn remove(&mut self, key: &ObjectKey) {
        if let Some(old) = self.cache.remove(key) {
            self.each(|queue| queue.push(key, Some(&old), None));
        }
    }

    fn each(&mut self, tell: impl Fn(&Queue<T>)) {
        self.subscribers.retain(|subscriber| subscriber.upgrade().inspect(|queue| tell(queue)).is_some());
    }
}

/// The newest known state of the objects of one kind. Reads never wait for the network; what they give may be stale.
pub struct Informer<T> {
    shared: Arc<Shared<T>>,
}

impl<K: ApiObject> Informer<K> {
    /// Starts to list and watch a kind, in a task of `tasks`.
    pub fn start(tasks: &TaskGroup, client: Client, scope: Scope) -> Arc<Self> {
        Self::start_source(tasks, client, scope.source::<K>())
    }

    /// As [`start`](Self::start), with what was known when the process last ran, and keeping that for the next time.
    fn start_with_snapshot(tasks: &TaskGroup, client: Client, scope: Scope, file: PathBuf) -> Arc<Self> {
        let informer = Self::begin(tasks, client, scope.source::<K>(), snapshot::load(file.clone()));
        snapshot::keep(tasks, file, &informer);
        informer
    }
}

impl<T: Cached> Informer<T> {
    /// Starts to list and watch a path, in a task of `tasks`.
    pub fn start_source(tasks: &TaskGroup, client: Client, source: Source) -> Arc<Self> {
        Self::begin(tasks, client, source, std::future::ready(Vec::new()))
    }

    fn begin(
        tasks: &TaskGroup,
        client: Client,
        source: Source,
        known: impl Future<Output = Vec<T>> + Send + 'static,
    ) -> Arc<Self> {
        let state = RwLock::new(State { cache: Cache::default(), subscribers: Vec::new() });
        let shared = Arc::new(Shared { state, filled: watch::Sender::new(Filled::Empty), revision: AtomicU64::new(0) });
        let name = format!("reflector {}", source.path);
        let reflector = Reflector { client, source, shared: Arc::clone(&shared) };
        let (token, closing) = (tasks.token(), Arc::clone(&shared));
        tasks.critical(name, async move {
            let reflect = async {
                closing.restore(known.await);
                reflector.run().await;
            };
            token.run_until_cancelled(reflect).await;
            closing.close();
        });
        Arc::new(Self { shared })
    }

    /// The revision up to which the cache holds every write; 0 before the first list.
    pub fn revision(&self) -> u64 {
        self.shared.revision.load(Ordering::Acquire)
    }

    /// Waits until the first list, or a snapshot from before this process began, is in the cache. Cancel safe.
    pub async fn synced(&self) {
        self.filled(Filled::Restored).await;
    }

    /// Waits until the first list is in the cache. Cancel safe.
    pub async fn listed(&self) {
        self.filled(Filled::Listed).await;
    }

    async fn filled(&self, wanted: Filled) {
        // The sender lives as long as this informer: waiting cannot fail.
        if self.shared.filled.subscribe().wait_for(|filled| *filled >= wanted).await.is_err() {
            tracing::debug!("the informer is gone");
        }
    }

    /// Whether the first list, or a snapshot from before this process began, is in the cache.
    pub fn is_synced(&self) -> bool {
        *self.shared.filled.borrow() >= Filled::Restored
    }

    /// Whether the first list is in the cache.
    pub fn is_listed(&self) -> bool {
        *self.shared.filled.borrow() == Filled::Listed
    }

    /// One object; namespace "" for a cluster-scoped kind.
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<T>> {
        self.shared.state.read().cache.get(namespace, name).cloned()
    }

    /// All objects, ordered by namespace and name.
    pub fn list(&self) -> Vec<Arc<T>> {
        self.shared.state.read().cache.iter().cloned().collect()
    }

    /// The objects of a namespace, ordered by name.
    pub fn in_namespace(&self, namespace: &str) -> Vec<Arc<T>> {
        self.shared.state.read().cache.in_namespace(namespace).cloned().collect()
    }

    /// How many objects there are.
    pub fn len(&self) -> usize {
        self.shared.state.read().cache.len()
    }

    /// Whether there is no object.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds an index; does nothing if there is one of that name.
    pub fn add_index(&self, name: &'static str, values_of: IndexFn<T>) {
        self.shared.state.write().cache.add_index(name, values_of);
    }

    /// The objects that an index finds under a value, ordered by namespace and name; none if there is no such index.
    pub fn by_index(&self, index: &str, value: &str) -> Vec<Arc<T>> {
        self.shared.state.read().cache.by_index(index, value).cloned().collect()
    }

    /// Changes from now on, after everything that is in the cache.
    pub fn subscribe(&self) -> Subscription<T> {
        let queue = Queue::new();
        let mut state = self.shared.state.write();
        for object in state.cache.iter() {
            queue.push(&ObjectKey::of(&**object), None, Some(object));
        }
        if self.is_synced() {
            queue.push_synced();
        }
        state.subscribers.push(Arc::downgrade(&queue));
        Subscription(queue)
    }
}

/// The name of the index that [`by_controller`] fills.
pub const BY_CONTROLLER: &str = "controller";

/// Index values: the uid of the controlling owner, or `orphans/NAMESPACE` for an object without one.
pub fn by_controller<K: ApiObject>(object: &K) -> Vec<String> {
    let meta = object.metadata();
    let owner = meta.owner_references.iter().flatten().find(|owner| owner.controller == Some(true));
    vec![owner.map_or_else(|| orphans(meta.namespace.as_deref().unwrap_or("")), |owner| owner.uid.clone())]
}

/// The value under which the index [`BY_CONTROLLER`] finds the objects of a namespace that have no controller.
pub fn orphans(namespace: &str) -> String {
    format!("orphans/{namespace}")
}

/// One informer a kind, shared by everything in the process: each object is watched, decoded and held once.
#[derive(Clone)]
pub struct Informers {
    tasks: TaskGroup,
    client: Client,
    snapshots: Option<Arc<Path>>,
    started: Arc<Mutex<HashMap<TypeId, Arc<dyn Any + Send + Sync>>>>,
}

impl Informers {
    /// A set of informers that run in `tasks` and read through `client`; none is started yet.
    pub fn new(tasks: &TaskGroup, client: Client) -> Self {
        Self { tasks: tasks.clone(), client, snapshots: None, started: Arc::default() }
    }

    /// The same, but each informer begins with what it held when the process last ran, as files in `folder` have it. The first list
    /// corrects that; Secrets are never written.
    #[must_use]
    pub fn with_snapshots(self, folder: &Path) -> Self {
        Self { snapshots: Some(folder.into()), ..self }
    }

    /// The informer of a kind, in all namespaces; started at the first call.
    pub fn of<K: ApiObject>(&self) -> Arc<Informer<K>> {
        let mut started = self.started.lock();
        if let Some(informer) = started.get(&TypeId::of::<K>()).and_then(|any| Arc::clone(any).downcast().ok()) {
            return informer;
        }
        let informer = self.start::<K>(None, Scope::all());
        started.insert(TypeId::of::<K>(), Arc::clone(&informer) as Arc<dyn Any + Send + Sync>);
        informer
    }

    /// An informer of some objects of a kind, for the caller alone; `name` tells its snapshot from others.
    pub fn select<K: ApiObject>(&self, name: &str, scope: Scope) -> Arc<Informer<K>> {
        self.start(Some(name), scope)
    }

    fn start<K: ApiObject>(&self, name: Option<&str>, scope: Scope) -> Arc<Informer<K>> {
        let file = self.snapshots.as_ref().and_then(|folder| snapshot::path::<K>(folder, name));
        match file {
            Some(file) => Informer::start_with_snapshot(&self.tasks, self.client.clone(), scope, file),
            None => Informer::start(&self.tasks, self.client.clone(), scope),
        }
    }
}
