//! Look-ups for the kubelet server: which container is meant by (namespace, pod, container), and where its log is. Pod workers
//! publish here; nobody else writes.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use parking_lot::RwLock;
use tokio::sync::watch;

use crate::cri::State;

/// One instance (attempt) of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerInstance {
    /// The runtime's id of the container.
    pub id: String,
    pub state: State,
    /// How many instances came before it.
    pub attempt: u32,
    /// Docker's json-file log.
    pub log_path: Option<PathBuf>,
    pub tty: bool,
    /// Of its first process, while it runs.
    pub pid: Option<u32>,
}

/// The present instance of a container and the one before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerLookup {
    pub pod_uid: String,
    pub container: String,
    /// Absent while the container has not been created.
    pub current: Option<ContainerInstance>,
    pub previous: Option<ContainerInstance>,
    /// Why there is no instance yet: `ContainerCreating`, `ErrImagePull`, …
    pub waiting_reason: Option<String>,
}

impl ContainerLookup {
    /// The instance whose log is meant.
    ///
    /// # Errors
    /// [`LookupError::Waiting`] or [`LookupError::NoPrevious`], in the kubelet's words.
    pub fn for_logs(&self, pod: &str, previous: bool) -> Result<&ContainerInstance, LookupError> {
        let (container, pod) = (self.container.clone(), pod.to_owned());
        if previous {
            return self.previous.as_ref().ok_or(LookupError::NoPrevious { container, pod });
        }
        let reason = self.waiting_reason.clone().unwrap_or_else(|| "ContainerCreating".to_owned());
        self.current.as_ref().or(self.previous.as_ref()).ok_or(LookupError::Waiting { container, pod, reason })
    }

    /// The running instance, for exec and attach.
    ///
    /// # Errors
    /// [`LookupError::NotRunning`].
    pub fn running(&self) -> Result<&ContainerInstance, LookupError> {
        let running = self.current.as_ref().filter(|instance| instance.state == State::Running);
        running.ok_or_else(|| LookupError::NotRunning { container: self.container.clone() })
    }
}

/// Why a look-up found nothing; the words are the kubelet's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LookupError {
    /// No such pod on this node: 404.
    #[error("pod \"{namespace}/{pod}\" not found")]
    NoPod { namespace: String, pod: String },
    /// The pod has no container of that name: 400.
    #[error("container {container} is not valid for pod {pod}")]
    NoContainer { container: String, pod: String },
    /// The container has no instance yet: 400.
    #[error("container \"{container}\" in pod \"{pod}\" is waiting to start: {reason}")]
    Waiting { container: String, pod: String, reason: String },
    /// There was no instance before: 400.
    #[error("previous terminated container \"{container}\" in pod \"{pod}\" not found")]
    NoPrevious { container: String, pod: String },
    /// It does not run: exec and attach are refused.
    #[error("container not found (\"{container}\")")]
    NotRunning { container: String },
}

/// What a pod worker publishes.
#[derive(Debug, Clone)]
pub(super) struct PodView {
    pub pod: Arc<Pod>,
    pub containers: BTreeMap<String, ContainerLookup>,
}

/// The pods of this node as the kubelet server sees them.
#[derive(Debug, Default)]
pub struct Pods {
    views: RwLock<BTreeMap<(String, String), Arc<PodView>>>,
    /// A container came, changed its state or went.
    changed: watch::Sender<()>,
}

impl Pods {
    /// The pods that this node runs, with the status that the agent last computed.
    pub fn list(&self) -> Vec<Arc<Pod>> {
        self.views.read().values().map(|view| Arc::clone(&view.pod)).collect()
    }

    /// Everything that the workers published.
    pub(super) fn views(&self) -> Vec<Arc<PodView>> {
        self.views.read().values().map(Arc::clone).collect()
    }

    /// One pod by namespace and name.
    pub fn pod(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        self.views.read().get(&(namespace.to_owned(), name.to_owned())).map(|view| Arc::clone(&view.pod))
    }

    /// The container meant by namespace, pod and container name; an empty container name means the only one.
    ///
    /// # Errors
    /// [`LookupError::NoPod`] and [`LookupError::NoContainer`].
    pub fn container(&self, namespace: &str, pod: &str, container: &str) -> Result<ContainerLookup, LookupError> {
        let views = self.views.read();
        let no_pod = || LookupError::NoPod { namespace: namespace.to_owned(), pod: pod.to_owned() };
        let view = views.get(&(namespace.to_owned(), pod.to_owned())).ok_or_else(no_pod)?;
        let found = match view.containers.len() {
            1 if container.is_empty() => view.containers.values().next(),
            _ => view.containers.get(container),
        };
        found.cloned().ok_or_else(|| LookupError::NoContainer { container: container.to_owned(), pod: pod.to_owned() })
    }

    /// Tells whenever a container came, changed its state or went: what a look-up gave may then be old.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    pub(super) fn publish(&self, view: PodView) {
        let view = Arc::new(view);
        let before = self.views.write().insert(key(&view.pod), Arc::clone(&view));
        if before.is_none_or(|before| before.containers != view.containers) {
            self.changed.send_replace(());
        }
    }

    pub(super) fn withdraw(&self, pod: &Pod) {
        let mut views = self.views.write();
        let key = key(pod);
        // A pod of the same name that came after it keeps its place.
        if views.get(&key).is_some_and(|view| view.pod.metadata.uid == pod.metadata.uid) {
            views.remove(&key);
            drop(views);
            self.changed.send_replace(());
        }
    }
}

fn key(pod: &Pod) -> (String, String) {
    (pod.metadata.namespace.clone().unwrap_or_default(), pod.metadata.name.clone().unwrap_or_default())
}
