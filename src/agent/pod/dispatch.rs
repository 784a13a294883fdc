//! Gives each pod of the node its worker, and each worker its news: pods from the API, containers from the runtime. Containers
//! whose pod is gone from the API are ended, once the API has been heard.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;

use futures_util::StreamExt;
use k8s_openapi::api::core::v1::{Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::context::Context;
use super::mailbox::{Evict, Letters, Mailbox};
use super::statics::{self, Folder};
use super::stop;
use super::worker::Worker;
use crate::agent::checkpoint::Checkpoints;
use crate::client::informer::{Change, Informer};
use crate::client::{DeleteOptions, Preconditions};
use crate::cri::{RuntimeEvent, labels};

/// The mailboxes of the workers by pod uid.
#[derive(Debug, Default)]
pub struct Mailboxes(Mutex<HashMap<String, Arc<Mailbox>>>);

impl Mailboxes {
    fn get(&self, uid: &str) -> Option<Arc<Mailbox>> {
        self.0.lock().get(uid).cloned()
    }

    fn all(&self) -> Vec<Arc<Mailbox>> {
        self.0.lock().values().cloned().collect()
    }

    /// Tells a pod's worker to end the pod; `None` when it has none.
    pub fn evict(&self, uid: &str, evict: Evict) -> Option<()> {
        self.get(uid).map(|mailbox| mailbox.tell(|letters| letters.evict = Some(evict)))
    }

    /// Tells a pod's worker that something the pod refers to has changed.
    pub fn source_changed(&self, uid: &str) {
        if let Some(mailbox) = self.get(uid) {
            mailbox.tell(|letters| letters.sources = true);
        }
    }
}

/// Gives pods to workers.
pub struct Dispatcher {
    context: Arc<Context>,
    mailboxes: Arc<Mailboxes>,
    checkpoints: Checkpoints,
    is_synced: bool,
    folder: Folder,
    /// The static pods that are wanted, by namespace and name.
    statics: BTreeMap<(String, String), Arc<Pod>>,
    /// A worker has ended.
    ended: Arc<Notify>,
}

impl Dispatcher {
    /// A dispatcher whose workers are tasks of the context's group.
    pub fn new(context: Arc<Context>, mailboxes: Arc<Mailboxes>, checkpoints: Checkpoints, folder: Folder) -> Self {
        let (statics, ended) = (BTreeMap::new(), Arc::new(Notify::new()));
        Self { context, mailboxes, checkpoints, is_synced: false, folder, statics, ended }
    }

    /// Runs until the agent stops.
    pub async fn run(mut self, pods: Arc<Informer<Pod>>) {
        let mut changes = pods.subscribe();
        let mut events = self.context.runtime.events();
        let token = self.context.tasks.token();
        let mut manifests = Box::pin(self.folder.changes());
        self.read_statics(&pods).await;
        // What was last known runs at once, whether or not the API answers.
        for pod in self.checkpoints.load().await {
            self.give(Arc::new(pod));
        }
        loop {
            let ended = Arc::clone(&self.ended);
            tokio::select! {
                () = token.cancelled() => return,
                change = changes.next() => match change {
                    Some(change) => self.note(change, &pods).await,
                    None => return,
                },
                event = events.next() => match event {
                    Some(event) => self.pass_on(event).await,
                    None => return,
                },
                _ = manifests.next() => self.read_statics(&pods).await,
                () = ended.notified() => self.start_statics(&pods),
            }
        }
    }

    async fn note(&mut self, change: Change<Pod>, pods: &Informer<Pod>) {
        match change {
            Change::Applied { new, .. } if statics::is_mirror(&new) => self.show_mirror(&new, true).await,
            Change::Deleted(pod) if statics::is_mirror(&pod) => self.show_mirror(&pod, false).await,
            Change::Applied { old, new } => {
                let replaced = old.as_ref().filter(|old| old.metadata.uid != new.metadata.uid);
                if let Some(old) = replaced {
                    self.withdraw(old.metadata.uid.as_deref().unwrap_or("")).await;
                }
                self.give(Arc::clone(&new));
                if old.is_none_or(|old| differs(&old, &new)) {
                    self.checkpoints.save(&new).await;
                }
            }
            Change::Deleted(pod) => self.withdraw(pod.metadata.uid.as_deref().unwrap_or("")).await,
            Change::Synced => {
                self.is_synced = true;
                self.forget_missing(pods).await;
                let present = pods.list();
                let present = present.iter().chain(self.statics.values()).filter_map(|pod| pod.metadata.uid.clone());
                self.context.pods.expect(present.filter(|uid| self.mailboxes.get(uid).is_some()));
                let known = Arc::clone(&self.mailboxes);
                self.context.cpus.retain(|uid| known.get(uid).is_some());
                self.adopt_orphans().await;
                self.sweep().await;
            }
        }
    }

    /// Takes over what the folder of static pods says now.
    async fn read_statics(&mut self, pods: &Informer<Pod>) {
        let wanted = self.folder.read(self.context.clock.now()).await;
        let wanted: BTreeMap<_, _> = wanted.into_iter().map(|pod| (statics::key(&pod), pod)).collect();
        let before = std::mem::replace(&mut self.statics, wanted);
        for (key, pod) in &before {
            let now = self.statics.get(key);
            if now.is_none_or(|now| now.metadata.uid != pod.metadata.uid) {
                self.withdraw(pod.metadata.uid.as_deref().unwrap_or("")).await;
            }
            if let Some(mirror) = pods.get(&key.0, &key.1).filter(|pod| now.is_none() && statics::is_mirror(pod)) {
                self.delete_mirror(&mirror);
            }
        }
        self.start_statics(pods);
    }

    /// Starts the static pods that do not run, unless one of the same name has not ended yet.
    fn start_statics(&self, pods: &Informer<Pod>) {
        for ((namespace, name), pod) in &self.statics {
            let uid = pod.metadata.uid.as_deref().unwrap_or("");
            let mine = |view: Arc<Pod>| (view.metadata.uid.as_deref() != Some(uid)).then_some(view.metadata.uid.clone());
            let earlier = self.context.pods.pod(namespace, name).and_then(mine).flatten();
            if self.mailboxes.get(uid).is_some() || earlier.is_some_and(|earlier| self.mailboxes.get(&earlier).is_some()) {
                continue;
            }
            self.give(Arc::clone(pod));
            if let Some(mirror) = pods.get(namespace, name) {
                self.tell(uid, |letters| letters.mirror = Some(Some(mirror)));
            }
        }
    }

    /// Tells a static pod's worker of its mirror; a mirror of nothing is deleted.
    async fn show_mirror(&self, mirror: &Arc<Pod>, is_there: bool) {
        match self.statics.get(&statics::key(mirror)) {
            Some(pod) => {
                let uid = pod.metadata.uid.as_deref().unwrap_or("");
                self.tell(uid, |letters| letters.mirror = Some(is_there.then(|| Arc::clone(mirror))));
            }
            None if is_there => self.delete_mirror(mirror),
            None => {}
        }
    }

    fn delete_mirror(&self, mirror: &Pod) {
        let (client, (namespace, name)) = (self.context.client.clone(), statics::key(mirror));
        let preconditions = Some(Preconditions { uid: mirror.metadata.uid.clone(), resource_version: None });
        let options = DeleteOptions { grace_period_seconds: Some(0), preconditions, ..DeleteOptions::default() };
        self.context.tasks.spawn(async move {
            // If this fails, the mirror is seen again when the API is heard anew.
            if let Err(error) = client.delete::<Pod>(&namespace, &name, &options).await {
                tracing::debug!(namespace, name, %error, "the mirror of a static pod that is gone was not deleted");
            }
        });
    }

    fn tell(&self, uid: &str, write: impl FnOnce(&mut Letters)) {
        if let Some(mailbox) = self.mailboxes.get(uid) {
            mailbox.tell(write);
        }
    }

    fn give(&self, pod: Arc<Pod>) {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        if let Some(mailbox) = self.mailboxes.get(&uid) {
            return mailbox.tell(|letters| letters.pod = Some(pod));
        }
        let mailbox = Arc::new(Mailbox::default());
        self.mailboxes.0.lock().insert(uid.clone(), Arc::clone(&mailbox));
        let worker = Worker::new(Arc::clone(&self.context), mailbox, pod);
        let (mailboxes, ended) = (Arc::clone(&self.mailboxes), Arc::clone(&self.ended));
        self.context.tasks.spawn(async move {
            worker.run().await;
            mailboxes.0.lock().remove(&uid);
            ended.notify_one();
        });
    }

    async fn withdraw(&self, uid: &str) {
        self.checkpoints.remove(uid).await;
        if let Some(mailbox) = self.mailboxes.get(uid) {
            mailbox.tell(|letters| letters.is_gone = true);
        }
    }

    /// Pods that are known from before and that the API does not have any more.
    async fn forget_missing(&self, pods: &Informer<Pod>) {
        let listed = pods.list();
        let present = listed.iter().chain(self.statics.values()).filter_map(|pod| pod.metadata.uid.clone());
        let present: BTreeSet<String> = present.collect();
        let known: Vec<String> = self.mailboxes.0.lock().keys().cloned().collect();
        for uid in known.iter().filter(|uid| !present.contains(*uid)) {
            self.withdraw(uid).await;
        }
    }

    /// Containers whose pod nobody knows: a worker takes each pod down.
    async fn adopt_orphans(&self) {
        match self.context.runtime.list().await {
            Ok(containers) => containers.iter().for_each(|container| self.adopt(&container.labels)),
            // The runtime says Resync when it is back; the orphans are looked for again then.
            Err(error) => tracing::debug!(%error, "cannot look for orphaned containers"),
        }
    }

    /// Directories of pods that nobody knows and that have no containers: what is mounted in them is taken down.
    async fn sweep(&self) {
        let Ok(containers) = self.context.runtime.list().await else { return };
        let helpers = containers.iter().filter(|one| one.labels.get(labels::TYPE).is_some_and(|kind| kind == "image-volume"));
        for helper in helpers {
            if let Err(error) = self.context.runtime.remove(&helper.id).await {
                tracing::warn!(id = helper.id, %error, "a container that an image was unpacked from stays");
            }
        }
        let Ok(mut entries) = tokio::fs::read_dir(&self.context.pods_dir).await else { return };
        while let Ok(Some(entry)) = entries.next_entry().await {
            let Ok(uid) = entry.file_name().into_string() else { continue };
            let has_containers = containers.iter().any(|one| one.labels.get(labels::POD_UID) == Some(&uid));
            if has_containers || self.mailboxes.get(&uid).is_some() {
                continue;
            }
            tracing::info!(uid, "the directory of a pod that is gone: taking down its volumes");
            if let Err(error) = self.sweep_pod(&uid, &entry.path()).await {
                tracing::warn!(uid, error, "the directory of a pod stays");
            }
        }
    }

    async fn sweep_pod(&self, uid: &str, directory: &Path) -> Result<(), String> {
        self.context.volumes.tear_down(&self.context, uid).await.map_err(|error| error.to_string())?;
        stop::remove_cgroup(&self.context, uid).await?;
        tokio::fs::remove_dir_all(directory).await.map_err(|error| error.to_string())
    }

    fn adopt(&self, all: &BTreeMap<String, String>) {
        let label = |name: &str| all.get(name).cloned();
        let Some(uid) = label(labels::POD_UID).filter(|uid| self.mailboxes.get(uid).is_none()) else { return };
        tracing::info!(uid, pod = label(labels::POD_NAME), "containers of a pod that is gone: ending them");
        let pod = Pod {
            metadata: ObjectMeta {
                name: label(labels::POD_NAME),
                namespace: label(labels::POD_NAMESPACE),
                uid: Some(uid.clone()),
                ..ObjectMeta::default()
            },
            spec: Some(PodSpec::default()),
            status: None,
        };
        self.give(Arc::new(pod));
        if let Some(mailbox) = self.mailboxes.get(&uid) {
            mailbox.tell(|letters| letters.is_gone = true);
        }
    }

    async fn pass_on(&self, event: RuntimeEvent) {
        match event {
            RuntimeEvent::Container { id, labels: all, action } => {
                match all.get(labels::POD_UID).and_then(|uid| self.mailboxes.get(uid)) {
                    Some(mailbox) => mailbox.tell(|letters| {
                        letters.containers.insert(id);
                    }),
                    None if self.is_synced && !matches!(action.as_str(), "destroy" | "die" | "kill" | "stop") => self.adopt(&all),
                    None => {}
                }
            }
            RuntimeEvent::Resync => {
                self.mailboxes.all().iter().for_each(|mailbox| mailbox.tell(|letters| letters.resync = true));
                if self.is_synced {
                    self.adopt_orphans().await;
                }
            }
            RuntimeEvent::Down(why) => tracing::warn!(why, "the container runtime does not answer"),
        }
    }
}

/// Whether a checkpoint of the old pod would mislead: its spec, its deletion or its phase is another.
fn differs(old: &Pod, new: &Pod) -> bool {
    let essence = |pod: &Pod| {
        let (meta, status) = (&pod.metadata, pod.status.as_ref());
        (meta.uid.clone(), meta.generation, meta.deletion_timestamp.clone(), status.and_then(|status| status.phase.clone()))
    };
    essence(old) != essence(new)
}
