//! The worker's part of an eviction: the node ends the pod, with a grace period of its own, and is told when that is done.

use std::time::Duration;

use super::mailbox::Evict;
use super::status::{DISRUPTION, Ended, TERMINATED_BY_NODE};
use super::stop::grace_of;
use super::worker::Worker;
use crate::agent::eviction::IMMEDIATE;
use crate::agent::eviction::message::REASON;
use crate::kinds::core::pod::has_ended;

impl Worker {
    /// Ends the pod. One that has ended already, or is being ended, stays as it is: dropping the letter says so.
    pub(super) fn evict(&mut self, Evict { ended, done }: Evict) {
        if self.is_gone || self.ended.is_some() || has_ended(&self.pod) {
            return;
        }
        let grace = ended.grace;
        self.ended = Some(ended);
        self.evicted = Some(done);
        if let Some(grace) = grace {
            self.shorten(grace);
        }
    }

    /// Goes on with an eviction that the end of the agent cut short: the pod's condition remembers it.
    pub(super) fn resume_eviction(&mut self) {
        if has_ended(&self.pod) {
            return;
        }
        let conditions = self.pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
        let mut told = conditions.filter(|condition| condition.type_ == DISRUPTION && condition.status == "True");
        let Some(told) = told.find(|condition| condition.reason.as_deref() == Some(TERMINATED_BY_NODE)) else { return };
        let message = told.message.clone().unwrap_or_default();
        self.ended.get_or_insert_with(|| Ended {
            reason: REASON.to_owned(),
            message,
            grace: Some(IMMEDIATE),
            is_disruption: true,
        });
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
