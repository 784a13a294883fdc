//! [`Replicated`]: what ReplicaSet and ReplicationController have in common, so that one controller serves both.

use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::{
    PodTemplateSpec, ReplicationController, ReplicationControllerCondition, ReplicationControllerStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde::Serialize;

use super::super::status::count;
use crate::api::selector::label::Selector;
use crate::client::ApiObject;

/// How many pods there are of each sort.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::controllers) struct Counts {
    pub(in crate::controllers) replicas: usize,
    pub(in crate::controllers) fully_labeled: usize,
    pub(in crate::controllers) ready: usize,
    pub(in crate::controllers) available: usize,
    pub(in crate::controllers) terminating: usize,
}

/// Why pods could not be created or deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::controllers) struct Failure {
    pub(in crate::controllers) reason: &'static str,
    pub(in crate::controllers) message: String,
}

/// A kind that wants a number of like pods.
pub(in crate::controllers) trait Replicated: ApiObject {
    /// The name of its controller, in queue metrics.
    const NAME: &'static str;
    /// The component of its events.
    const COMPONENT: &'static str;
    type Status: Serialize + Clone + Send + Sync;

    fn replicas(&self) -> usize;
    fn min_ready_seconds(&self) -> i32;
    /// # Errors
    /// What is wrong with the selector.
    fn selector(&self) -> Result<Selector, String>;
    fn template(&self) -> Option<&PodTemplateSpec>;
    fn old_status(&self) -> Option<&Self::Status>;
    /// The status for these counts; `failure` becomes the condition ReplicaFailure.
    fn new_status(&self, counts: Counts, failure: Option<Failure>, now: Time) -> Self::Status;
}

fn at_least_zero(replicas: Option<i32>) -> usize {
    usize::try_from(replicas.unwrap_or(1)).unwrap_or(0)
}

fn number(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

impl Replicated for ReplicaSet {
    const NAME: &'static str = "replicaset";
    const COMPONENT: &'static str = "replicaset-controller";
    type Status = ReplicaSetStatus;

    fn replicas(&self) -> usize {
        at_least_zero(self.spec.as_ref().and_then(|spec| spec.replicas))
    }

    fn min_ready_seconds(&self) -> i32 {
        self.spec.as_ref().and_then(|spec| spec.min_ready_seconds).unwrap_or(0)
    }

    fn selector(&self) -> Result<Selector, String> {
        Selector::from_typed(self.spec.as_ref().map(|spec| &spec.selector))
    }

    fn template(&self) -> Option<&PodTemplateSpec> {
        self.spec.as_ref()?.template.as_ref()
    }

    fn old_status(&self) -> Option<&ReplicaSetStatus> {
        self.status.as_ref()
    }

    fn new_status(&self, counts: Counts, failure: Option<Failure>, now: Time) -> ReplicaSetStatus {
        let before = self.status.iter().filter_map(|status| status.conditions.as_ref()).flatten();
        let (failed, mut conditions): (Vec<_>, Vec<_>) =
            before.cloned().partition(|condition| condition.type_ == "ReplicaFailure");
        if let Some(failure) = failure {
            conditions.push(failed.into_iter().next().unwrap_or_else(|| ReplicaSetCondition {
                type_: "ReplicaFailure".to_owned(),
                status: "True".to_owned(),
                reason: Some(failure.reason.to_owned()),
                message: Some(failure.message),
                last_transition_time: Some(now),
            }));
        }
        ReplicaSetStatus {
            replicas: number(counts.replicas),
            fully_labeled_replicas: count(counts.fully_labeled),
            ready_replicas: count(counts.ready),
            available_replicas: count(counts.available),
            terminating_replicas: Some(number(counts.terminating)),
            observed_generation: self.metadata.generation,
            conditions: (!conditions.is_empty()).then_some(conditions),
        }
    }
}

impl Replicated for ReplicationController {
    const NAME: &'static str = "replicationcontroller";
    const COMPONENT: &'static str = "replication-controller";
    type Status = ReplicationControllerStatus;

    fn replicas(&self) -> usize {
        at_least_zero(self.spec.as_ref().and_then(|spec| spec.replicas))
    }

    fn min_ready_seconds(&self) -> i32 {
        self.spec.as_ref().and_then(|spec| spec.min_ready_seconds).unwrap_or(0)
    }

    fn selector(&self) -> Result<Selector, String> {
        let selector = self.spec.as_ref().and_then(|spec| spec.selector.as_ref());
        Ok(selector.map_or_else(Selector::nothing, Selector::from_labels))
    }

    fn template(&self) -> Option<&PodTemplateSpec> {
        self.spec.as_ref()?.template.as_ref()
    }

    fn old_status(&self) -> Option<&ReplicationControllerStatus> {
        self.status.as_ref()
    }

    fn new_status(&self, counts: Counts, failure: Option<Failure>, now: Time) -> ReplicationControllerStatus {
        let before = self.status.iter().filter_map(|status| status.conditions.as_ref()).flatten();
        let (failed, mut conditions): (Vec<_>, Vec<_>) =
            before.cloned().partition(|condition| condition.type_ == "ReplicaFailure");
        if let Some(failure) = failure {
            conditions.push(failed.into_iter().next().unwrap_or_else(|| ReplicationControllerCondition {
                type_: "ReplicaFailure".to_owned(),
                status: "True".to_owned(),
                reason: Some(failure.reason.to_owned()),
                message: Some(failure.message),
                last_transition_time: Some(now),
            }));
        }
        ReplicationControllerStatus {
            replicas: number(counts.replicas),
            fully_labeled_replicas: count(counts.fully_labeled),
            ready_replicas: count(counts.ready),
            available_replicas: count(counts.available),
            observed_generation: self.metadata.generation,
            conditions: (!conditions.is_empty()).then_some(conditions),
        }
    }
}
