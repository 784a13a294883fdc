//! Disruption: keeps the status of PodDisruptionBudgets, by which evictions are allowed or refused. It follows upstream's
//! `controller/disruption`.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use ::http::Method;
use async_trait::async_trait;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{OwnerReference, Time};
use serde_json::Value;

use super::{Context, Controller, Error, Queue, Requeue, Seen, Watches, metadata, owners};
use crate::api::selector::label::Selector;
use crate::client::informer::Informer;
use crate::client::recorder::{EventType, Recorder, reference};
use crate::client::{Cached, Client, ObjectKey};
use crate::kinds::Kinds;
use crate::rt::clock::SharedClock;

mod plan;

use plan::Found;

/// The controller of disruption budgets.
pub(super) fn disruption(context: &Context) -> Arc<dyn Controller> {
    let informers = &context.config.informers;
    Arc::new(Disruption {
        budgets: informers.of(),
        pods: informers.of(),
        sets: informers.of(),
        deployments: informers.of(),
        client: context.client("disruption-controller"),
        recorder: context.recorder("controllermanager"),
        kinds: Arc::clone(&context.config.kinds),
        clock: Arc::clone(&context.config.clock),
    })
}

struct Disruption {
    budgets: Arc<Informer<PodDisruptionBudget>>,
    pods: Arc<Informer<Pod>>,
    sets: Arc<Informer<ReplicaSet>>,
    deployments: Arc<Informer<Deployment>>,
    client: Client,
    recorder: Recorder,
    kinds: Arc<Kinds>,
    clock: SharedClock,
}

/// Which pods a budget is about. In this version of the API an empty selector means all, and none at all means none.
fn selector(budget: &PodDisruptionBudget) -> Result<Selector, String> {
    Selector::from_typed(budget.spec.as_ref().and_then(|spec| spec.selector.as_ref()))
}

impl Disruption {
    fn pods_of(&self, budget: &PodDisruptionBudget) -> Result<Vec<Arc<Pod>>, Error> {
        let invalid = |message| Error::Invalid { object: format!("PodDisruptionBudget {}", ObjectKey::of(budget)), message };
        let selector = selector(budget).map_err(invalid)?;
        let mut pods = self.pods.in_namespace(budget.namespace());
        pods.retain(|pod| selector.matches(&pod.metadata.labels));
        Ok(pods)
    }

    /// How many pods the controllers of these pods want together; a pod without a controller counts for nothing.
    async fn expected_scale(&self, namespace: &str, pods: &[Arc<Pod>]) -> Result<i32, Error> {
        let mut scales: BTreeMap<String, i32> = BTreeMap::new();
        let mut seen = HashSet::new();
        for owner in pods.iter().filter_map(|pod| owners::controller_of(&pod.metadata)) {
            if seen.insert(owner.uid.as_str()) {
                let (uid, scale) = self.scale_of(namespace, owner).await?;
                scales.insert(uid, scale);
            }
        }
        Ok(scales.into_values().fold(0, i32::saturating_add))
    }

    /// The uid and the wanted number of the topmost controller.
    async fn scale_of(&self, namespace: &str, owner: &OwnerReference) -> Result<(String, i32), Error> {
        if owner.kind == "ReplicaSet" && owner.api_version.starts_with("apps/") {
            let set = self.sets.get(namespace, &owner.name).filter(|set| set.metadata.uid.as_ref() == Some(&owner.uid));
            let set = set.ok_or_else(|| Error::Incomplete(format!("no ReplicaSet {namespace}/{} yet", owner.name)))?;
            let above = owners::controller_of(&set.metadata).filter(|above| above.kind == "Deployment");
            if let Some(above) = above
                && let Some(deployment) = self.deployments.get(namespace, &above.name)
                && deployment.metadata.uid.as_ref() == Some(&above.uid)
            {
                return Ok((above.uid.clone(), deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)));
            }
            return Ok((owner.uid.clone(), set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)));
        }
        let (group, version) = owner.api_version.split_once('/').unwrap_or(("", owner.api_version.as_str()));
        let unknown = || Error::Invalid {
            object: format!("{} {namespace}/{}", owner.kind, owner.name),
            message: "does not implement the scale subresource".to_owned(),
        };
        let kind = self.kinds.find_kind(group, version, &owner.kind).ok_or_else(unknown)?;
        let path = format!("{}/scale", metadata::path(kind.names(), namespace, &owner.name));
        let scale: Value = match self.client.request(Method::GET, &path, "", None).await {
            Ok(scale) => scale,
            Err(error) if error.is_not_found() => return Err(unknown()),
            Err(error) => return Err(error.into()),
        };
        let replicas = scale.pointer("/spec/replicas").and_then(Value::as_i64).unwrap_or(0);
        Ok((owner.uid.clone(), i32::try_from(replicas).unwrap_or(i32::MAX)))
    }

    async fn find(&self, budget: &PodDisruptionBudget, pods: &[Arc<Pod>]) -> Result<Found, Error> {
        let needs_scale = plan::needs_scale(budget);
        let scale = if needs_scale { self.expected_scale(budget.namespace(), pods).await? } else { 0 };
        Ok(plan::found(budget, pods, scale, self.clock.now()))
    }

    async fn write(&self, budget: &PodDisruptionBudget, status: PodDisruptionBudgetStatus) -> Result<(), Error> {
        if budget.status.as_ref() == Some(&status) {
            return Ok(());
        }
        // The whole status: what an eviction wrote meanwhile is a conflict, and then it is looked at again.
        let budget = PodDisruptionBudget { status: Some(status), ..budget.clone() };
        self.client.update_status(&budget).await?;
        Ok(())
    }
}

#[async_trait]
impl Controller for Disruption {
    fn name(&self) -> &'static str {
        "disruption"
    }

    fn watch(&self, watches: &mut Watches) {
        watches.on(&self.budgets, |seen: Seen<'_, PodDisruptionBudget>, queue: &Queue| {
            seen.new.into_iter().for_each(|budget| queue.add(ObjectKey::of(budget)));
        });
        let budgets = Arc::clone(&self.budgets);
        watches.on(&self.pods, move |seen: Seen<'_, Pod>, queue: &Queue| {
            let Some(namespace) = seen.newest().map(Cached::namespace) else { return };
            for budget in budgets.in_namespace(namespace) {
                let matches =
                    selector(&budget).is_ok_and(|selector| seen.states().any(|pod| selector.matches(&pod.metadata.labels)));
                if matches {
                    queue.add(ObjectKey::of(&*budget));
                }
            }
        });
        watches.after(&self.sets);
        watches.after(&self.deployments);
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Requeue, Error> {
        let Some(budget) = self.budgets.get(&key.namespace, &key.name) else { return Ok(Requeue::Done) };
        let pods = self.pods_of(&budget)?;
        if pods.is_empty() {
            self.recorder.event(&reference(&*budget), EventType::Normal, "NoPods", "No matching pods found");
        }
        let now = Time(self.clock.now());
        match self.find(&budget, &pods).await {
            Ok(found) => {
                let recheck = found.recheck;
                self.write(&budget, plan::status(&budget, found, &now)).await?;
                Ok(recheck.map_or(Requeue::Done, Requeue::After))
            }
            Err(error @ (Error::Client(_) | Error::TimedOut)) => Err(error),
            Err(error) => {
                let message = format!("Failed to calculate the number of expected pods: {error}");
                self.recorder.event(&reference(&*budget), EventType::Warning, "CalculateExpectedPodCountFailed", message);
                // Nothing may be evicted of which nobody knows how many there should be.
                self.write(&budget, plan::failed(&budget, &error.to_string(), &now)).await?;
                Err(error)
            }
        }
    }
}
