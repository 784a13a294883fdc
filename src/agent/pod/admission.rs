//! The worker's part of admission: a pod that the node sees for the first time is checked and granted what it asks for, once.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::admit::{self, Abilities, Rejection};
use super::resources::qos_class;
use super::status::Ended;
use super::worker::{Admission, Worker};

impl Worker {
    /// Whether the node takes the pod; looked at once.
    pub(super) fn is_admitted(&mut self) -> bool {
        if self.admission != Admission::Open {
            return self.admission == Admission::Granted;
        }
        let known = self.pod.status.as_ref();
        let has_begun = known.is_some_and(|status| status.start_time.is_some())
            || !self.runtime.containers.is_empty()
            || !self.runtime.sandboxes.is_empty();
        if has_begun {
            // Taken before a restart of the agent: what runs is not refused any more.
            self.begin_resizes(true);
            self.context.grants.note(&self.uid, &self.granted);
            if let Err(why) = self.context.cpus.allocate(&self.uid, &self.granted) {
                tracing::warn!(pod = self.uid, why, "a pod that runs has no CPUs of its own");
            }
            self.admission = Admission::Granted;
            return true;
        }
        match self.check() {
            Ok(()) => {
                self.begin_resizes(false);
                self.admission = Admission::Granted;
            }
            Err(Rejection { reason, message }) => {
                self.context.event(&self.pod, None, true, &reason, &message);
                self.ended = Some(Ended { reason, message: format!("Pod was rejected: {message}"), ..Ended::default() });
                self.admission = Admission::Refused;
            }
        }
        self.admission == Admission::Granted
    }

    fn check(&self) -> Result<(), Rejection> {
        admit::under_pressure(&self.pod, &self.context.pressures.now())?;
        let node = self.context.node();
        let abilities = Abilities {
            has_apparmor: self.context.offer.has_apparmor,
            allowed_unsafe_sysctls: &self.context.allowed_unsafe_sysctls,
        };
        admit::check(&self.pod, node.as_deref(), abilities)?;
        let granted = self.context.grants.grant(&self.uid, &self.pod, &self.context.allocatable());
        granted.map_err(|lack| admit::out_of(&lack))?;
        self.context.cpus.allocate(&self.uid, &self.pod).map_err(|why| {
            self.context.grants.give_back(&self.uid);
            admit::unexpected(&why)
        })
    }
}

/// The status of a pod that was refused: it has no containers.
pub(super) fn refused(pod: &Pod, why: Option<&Ended>, at: Timestamp) -> PodStatus {
    let known = pod.status.clone().unwrap_or_default();
    let at = Timestamp::from_second(at.as_second()).unwrap_or(at);
    PodStatus {
        phase: Some("Failed".to_owned()),
        reason: why.map(|why| why.reason.clone()),
        message: why.map(|why| why.message.clone()),
        qos_class: known.qos_class.clone().or_else(|| Some(qos_class(pod).as_str().to_owned())),
        start_time: known.start_time.clone().or(Some(Time(at))),
        observed_generation: pod.metadata.generation.or(known.observed_generation),
        ..known
    }
}
