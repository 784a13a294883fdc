//! Look-ups for the kubelet server: which container is meant by (namespace, pod, container), and where its log is. Pod workers
//! publish here; nobody else writes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use parking_lot::RwLock;
use tokio::sync::watch;

use crate::cri::State;

/// Longest that a look-up waits for an agent that has just started.
const RECOVERY: Duration = Duration::from_secs(20);

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
    /// Whether the worker has looked at the pod's containers: before, it does not know of any.
    pub is_seen: bool,
}

/// How far an agent that has started is with finding its pods again.
#[derive(Debug, Default)]
enum Recovery {
    /// The API has not said yet which pods there are.
    #[default]
    Listening,
    /// Uids of the pods that their workers have not looked at yet.
    Looking(BTreeSet<String>),
    Done,
}

/// The pods of this node as the kubelet server sees them.
#[derive(Debug, Default)]
pub struct Pods {
    views: RwLock<BTreeMap<(String, String), Arc<PodView>>>,
    recovery: RwLock<Recovery>,
    /// A container came, changed its state or went, or all pods were found again.
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

    /// Waits until look-ups about a pod can be answered: its worker has looked at its containers, or, if it has none, an agent that
    /// has just started has found all pods again. Gives up after a while, when the API or the runtime does not answer.
    pub async fn settled(&self, namespace: &str, pod: &str) {
        let key = (namespace.to_owned(), pod.to_owned());
        let is_seen = || self.views.read().get(&key).is_some_and(|view| view.is_seen);
        self.recovered_or(is_seen).await;
    }

    /// Waits until `is_known`, or until an agent that has just started has found all its pods again; gives up after a while.
    pub async fn recovered_or(&self, is_known: impl Fn() -> bool + Send) {
        let mut changes = self.changed.subscribe();
        let settled = async {
            while !is_known() && !matches!(*self.recovery.read(), Recovery::Done) {
                // The sender is ours.
                if changes.changed().await.is_err() {
                    return;
                }
            }
        };
        if tokio::time::timeout(RECOVERY, settled).await.is_err() {
            tracing::warn!("the pods of this node are not all found again; answering from what is known");
        }
    }

    /// The API has said which pods there are: as soon as the workers of all of them have looked, the agent has found them again.
    pub(super) fn expect(&self, uids: impl Iterator<Item = String>) {
        let mut recovery = self.recovery.write();
        if matches!(*recovery, Recovery::Listening) {
            let views = self.views.read();
            let seen: BTreeSet<_> =
                views.values().filter(|view| view.is_seen).filter_map(|view| view.pod.metadata.uid.as_ref()).collect();
            *recovery = Recovery::Looking(uids.filter(|uid| !seen.contains(uid)).collect());
        }
        drop(recovery);
        self.note_seen("");
    }

    /// A pod was looked at, or is gone.
    fn note_seen(&self, uid: &str) {
        if !matches!(*self.recovery.read(), Recovery::Looking(_)) {
            return;
        }
        let mut recovery = self.recovery.write();
        if let Recovery::Looking(missing) = &mut *recovery {
            missing.remove(uid);
            if missing.is_empty() {
                *recovery = Recovery::Done;
                drop(recovery);
                self.changed.send_replace(());
            }
        }
    }

    /// Tells whenever a container came, changed its state or went, or a pod asks for something else: what a look-up gave may then be old.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    pub(super) fn publish(&self, view: PodView) {
        let view = Arc::new(view);
        let before = self.views.write().insert(key(&view.pod), Arc::clone(&view));
        // What a pod asks for may change while its containers stay.
        let is_same = |before: &PodView| {
            before.containers == view.containers && before.is_seen == view.is_seen && before.pod.spec == view.pod.spec
        };
        if !before.is_some_and(|before| is_same(&before)) {
            self.changed.send_replace(());
        }
        if view.is_seen {
            self.note_seen(view.pod.metadata.uid.as_deref().unwrap_or(""));
        }
    }

    pub(super) fn withdraw(&self, pod: &Pod) {
        self.note_seen(pod.metadata.uid.as_deref().unwrap_or(""));
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

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn view(name: &str, is_seen: bool) -> PodView {
        let mut pod = Pod::default();
        let meta = &mut pod.metadata;
        (meta.namespace, meta.name, meta.uid) = (Some("ns".to_owned()), Some(name.to_owned()), Some(format!("uid-{name}")));
        PodView { pod: Arc::new(pod), containers: BTreeMap::new(), is_seen }
    }

    /// Whether look-ups about a pod are answered now.
    fn is_settled(pods: &Pods, name: &str) -> bool {
        pods.settled("ns", name).now_or_never().is_some()
    }

    #[tokio::test]
    async fn look_ups_wait_until_the_pods_are_found_again() {
        let pods = Pods::default();
        assert!(!is_settled(&pods, "a"), "nobody knows yet");
        pods.publish(view("a", false));
        assert!(!is_settled(&pods, "a"), "its containers are not known");
        pods.publish(view("a", true));
        assert!(is_settled(&pods, "a") && !is_settled(&pods, "none"));
        pods.expect(["a", "b", "c"].map(|name| format!("uid-{name}")).into_iter());
        assert!(!is_settled(&pods, "none"));
        pods.withdraw(&view("c", true).pod);
        let waiting = pods.settled("ns", "none");
        tokio::pin!(waiting);
        assert!(waiting.as_mut().now_or_never().is_none());
        pods.publish(view("b", true));
        waiting.await;
        assert!(is_settled(&pods, "none") && is_settled(&pods, "d"));
        // A later list of the API's changes nothing.
        pods.expect(std::iter::once("uid-d".to_owned()));
        assert!(is_settled(&pods, "none"));
    }

    #[tokio::test(start_paused = true)]
    async fn look_ups_do_not_wait_for_ever() {
        let pods = Pods::default();
        let began = tokio::time::Instant::now();
        pods.settled("ns", "none").await;
        assert_eq!(began.elapsed().as_secs(), RECOVERY.as_secs());
    }
}
