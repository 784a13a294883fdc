//! What a pod worker is told: a newer pod, news of its containers, answers of probes. Telling never waits; what is told twice is
//! kept once, so that a mailbox cannot grow beyond the pod itself.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

use super::status::Ended;

/// What the probes of an instance found out since the worker last looked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProbeNews {
    pub is_started: Option<bool>,
    pub is_ready: Option<bool>,
    /// The container is to be restarted, for this reason and with the probe's own grace period.
    pub unhealthy: Option<(String, Option<i64>)>,
}

/// The node ends the pod.
#[derive(Debug)]
pub struct Evict {
    pub ended: Ended,
    /// Told, or dropped, when the pod has ended.
    pub done: oneshot::Sender<()>,
}

/// Everything that was told since the worker last looked.
#[derive(Debug, Default)]
pub struct Letters {
    pub pod: Option<Arc<Pod>>,
    /// What the API has under the name of a static pod now.
    pub mirror: Option<Option<Arc<Pod>>>,
    /// The pod is no more in the API.
    pub is_gone: bool,
    /// Containers to look at.
    pub containers: BTreeSet<String>,
    /// Everything in the runtime may have changed.
    pub resync: bool,
    /// Something that the pod refers to has changed.
    pub sources: bool,
    /// By instance id.
    pub probes: BTreeMap<String, ProbeNews>,
    /// The pod is to end.
    pub evict: Option<Evict>,
}

/// A worker's mailbox.
#[derive(Debug, Default)]
pub struct Mailbox {
    letters: Mutex<Letters>,
    wake: Notify,
}

impl Mailbox {
    /// Tells the worker something.
    pub fn tell(&self, write: impl FnOnce(&mut Letters)) {
        write(&mut self.letters.lock());
        self.wake.notify_one();
    }

    /// Tells what a probe found out.
    pub fn probe(&self, id: &str, write: impl FnOnce(&mut ProbeNews)) {
        self.tell(|letters| write(letters.probes.entry(id.to_owned()).or_default()));
    }

    /// Takes everything.
    pub fn take(&self) -> Letters {
        std::mem::take(&mut self.letters.lock())
    }

    /// Waits until something was told.
    pub async fn wait(&self) {
        self.wake.notified().await;
    }
}
