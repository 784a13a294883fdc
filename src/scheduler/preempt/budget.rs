//! PodDisruptionBudgets as preemption sees them: it would rather not break one, and may.

use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::policy::v1::PodDisruptionBudget;

use crate::api::selector::label::Selector;
use crate::client::informer::Informer;
use crate::scheduler::pod_info::PodInfo;

struct Budget {
    id: usize,
    name: String,
    version: Option<String>,
    selector: Selector,
    /// Pods that may go, less those that were sent away since the status was written.
    allowed: i32,
    /// Names of pods whose eviction is counted already.
    disrupted: Vec<String>,
}

impl Budget {
    fn new(id: usize, budget: &PodDisruptionBudget) -> Self {
        let selector = budget.spec.as_ref().and_then(|spec| spec.selector.as_ref());
        let selector = selector.map_or_else(Selector::nothing, |selector| {
            Selector::from_typed(Some(selector)).unwrap_or_else(|_| Selector::nothing())
        });
        let status = budget.status.as_ref();
        Self {
            id,
            name: budget.metadata.name.clone().unwrap_or_default(),
            version: budget.metadata.resource_version.clone(),
            // As upstream, one that selects everything protects nothing from preemption.
            selector: if selector.is_everything() { Selector::nothing() } else { selector },
            allowed: status.and_then(|status| status.disruptions_allowed).unwrap_or(0),
            disrupted: status
                .and_then(|status| status.disrupted_pods.as_ref())
                .into_iter()
                .flatten()
                .map(|(name, _)| name.clone())
                .collect(),
        }
    }

    fn counts(&self, pod: &PodInfo) -> bool {
        let has_labels = pod.labels().as_ref().is_some_and(|labels| !labels.is_empty());
        has_labels && self.selector.matches(pod.labels()) && !self.disrupted.iter().any(|name| name == pod.name())
    }
}

/// All budgets, parsed once for each of their versions.
#[derive(Default)]
pub struct Budgets {
    informer: Option<Arc<Informer<PodDisruptionBudget>>>,
    revision: u64,
    by_namespace: HashMap<String, Vec<Budget>>,
}

impl Budgets {
    /// Reads the informer that controllers and scheduler share.
    pub fn new(informer: Arc<Informer<PodDisruptionBudget>>) -> Self {
        Self { informer: Some(informer), ..Self::default() }
    }

    /// Takes what has changed.
    pub fn refresh(&mut self) {
        let Some(informer) = &self.informer else { return };
        let revision = informer.revision();
        if revision != self.revision {
            self.revision = revision;
            let all = informer.list();
            self.replace(all.iter().map(|budget| &**budget));
        }
    }

    /// These are all the budgets; what was taken from one of an unchanged version stays taken.
    pub fn replace<'a>(&mut self, all: impl Iterator<Item = &'a PodDisruptionBudget>) {
        let before = std::mem::take(&mut self.by_namespace);
        for (id, budget) in all.enumerate() {
            let namespace = budget.metadata.namespace.clone().unwrap_or_default();
            let mut new = Budget::new(id, budget);
            let known = before.get(&namespace).into_iter().flatten().find(|known| known.name == new.name);
            if let Some(known) = known.filter(|known| known.version.is_some() && known.version == new.version) {
                new.allowed = known.allowed;
            }
            self.by_namespace.entry(namespace).or_default().push(new);
        }
    }

    /// Splits pods into those whose end would break a budget, if all end, and the others. Keeps their order.
    pub fn split<'a>(&self, pods: Vec<&'a Arc<PodInfo>>) -> (Vec<&'a Arc<PodInfo>>, Vec<&'a Arc<PodInfo>>) {
        let mut left: HashMap<usize, i32> = HashMap::new();
        pods.into_iter().partition(|pod| {
            let mut is_broken = false;
            for budget in self.of(pod) {
                let left = left.entry(budget.id).or_insert(budget.allowed);
                *left = left.saturating_sub(1);
                is_broken |= *left < 0;
            }
            is_broken
        })
    }

    /// The pod was sent away.
    pub fn spend(&mut self, pod: &PodInfo) {
        for budget in self.by_namespace.get_mut(pod.namespace()).into_iter().flatten() {
            if budget.counts(pod) {
                budget.allowed = budget.allowed.saturating_sub(1).max(0);
            }
        }
    }

    fn of<'b>(&'b self, pod: &'b PodInfo) -> impl Iterator<Item = &'b Budget> {
        self.by_namespace.get(pod.namespace()).into_iter().flatten().filter(|budget| budget.counts(pod))
    }
}
