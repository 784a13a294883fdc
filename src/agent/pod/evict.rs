//! The worker's part of an eviction: the node ends the pod, with a grace period of its own, and is told when that is done.

use std::time::Duration;

use super::mailbox::Evict;
use super::stop::grace_of;
use super::worker::Worker;

impl Worker {
    /// Ends the pod. One that has ended already, or is being ended, stays as it is: dropping the letter says so.
    pub(super) fn evict(&mut self, Evict { ended, done }: Evict) {
        let phase = self.pod.status.as_ref().and_then(|status| status.phase.as_deref());
        if self.is_gone || self.ended.is_some() || matches!(phase, Some("Succeeded" | "Failed")) {
            return;
        }
        let grace = ended.grace;
        self.ended = Some(ended);
        self.evicted = Some(done);
        if let Some(grace) = grace {
            self.shorten(grace);
        }
    }

    /// The grace that the node leaves to the pod's containers, if it has ended the pod.
    pub(super) fn evicted_within(&self) -> Option<Duration> {
        self.ended.as_ref().and_then(|ended| ended.grace)
    }

    /// A deletion that leaves less is not made longer.
    pub(super) fn within_deletion(&self, grace: Duration) -> Duration {
        if self.pod.metadata.deletion_timestamp.is_some() { grace.min(grace_of(&self.pod)) } else { grace }
    }
}
