//! Claims, volumes and classes as the informers know them, with what bindings under way have promised.

use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::{Lookup, VolumePlan, key_of};
use crate::client::informer::{Informer, Informers};

#[derive(Default)]
struct Promised {
    volumes: HashMap<String, String>,
    nodes: HashMap<String, String>,
}

/// What the scheduler looks volumes up in.
pub struct Storage {
    pub(super) claims: Arc<Informer<PersistentVolumeClaim>>,
    volumes: Arc<Informer<PersistentVolume>>,
    classes: Arc<Informer<StorageClass>>,
    promised: Mutex<Promised>,
    news: watch::Sender<()>,
}

impl Storage {
    /// Reads the informers that controllers and scheduler share.
    pub fn new(informers: &Informers) -> Arc<Self> {
        Arc::new(Self {
            claims: informers.of(),
            volumes: informers.of(),
            classes: informers.of(),
            promised: Mutex::default(),
            news: watch::Sender::new(()),
        })
    }

    /// Waits until everything that was there at the start is known. Cancel safe.
    pub async fn synced(&self) {
        tokio::join!(self.claims.synced(), self.volumes.synced(), self.classes.synced());
    }

    /// Tells those who wait for claims that one changed.
    pub fn tell(&self) {
        self.news.send_replace(());
    }

    /// Wakes whenever claims change.
    pub(super) fn news(&self) -> watch::Receiver<()> {
        self.news.subscribe()
    }

    /// The changes of claims, volumes and classes.
    pub fn claims(&self) -> &Arc<Informer<PersistentVolumeClaim>> {
        &self.claims
    }

    pub fn volumes_informer(&self) -> &Arc<Informer<PersistentVolume>> {
        &self.volumes
    }

    pub fn classes(&self) -> &Arc<Informer<StorageClass>> {
        &self.classes
    }

    /// Keeps what a plan gives from being given twice until it is written.
    pub fn promise(&self, plan: &VolumePlan, node: &str) {
        let mut promised = self.promised.lock();
        for (volume, claim) in &plan.bind {
            promised.volumes.insert(volume.metadata.name.clone().unwrap_or_default(), key_of(claim));
        }
        for claim in &plan.provision {
            promised.nodes.insert(key_of(claim), node.to_owned());
        }
    }

    /// The plan is written, or given up.
    pub fn settle(&self, plan: &VolumePlan) {
        let mut promised = self.promised.lock();
        for (volume, _) in &plan.bind {
            promised.volumes.remove(volume.metadata.name.as_deref().unwrap_or(""));
        }
        for claim in &plan.provision {
            promised.nodes.remove(&key_of(claim));
        }
    }
}

impl Lookup for Storage {
    fn claim(&self, namespace: &str, name: &str) -> Option<Arc<PersistentVolumeClaim>> {
        self.claims.get(namespace, name)
    }

    fn volume(&self, name: &str) -> Option<Arc<PersistentVolume>> {
        self.volumes.get("", name)
    }

    fn class(&self, name: &str) -> Option<Arc<StorageClass>> {
        self.classes.get("", name)
    }

    fn volumes(&self) -> Vec<Arc<PersistentVolume>> {
        self.volumes.list()
    }

    fn promised_to(&self, volume: &str) -> Option<String> {
        self.promised.lock().volumes.get(volume).cloned()
    }

    fn promised_node(&self, claim: &str) -> Option<String> {
        self.promised.lock().nodes.get(claim).cloned()
    }
}
