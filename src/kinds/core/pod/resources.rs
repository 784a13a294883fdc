//! What pods ask for and nodes have, as plain numbers (upstream `k8s.io/component-helpers/resource`).

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Typed;

use crate::api::quantity::Quantity;

/// CPU that a container counts for in scores if it asks for none.
const DEFAULT_CPU_MILLIS: i64 = 100;
/// Memory that a container counts for in scores if it asks for none.
const DEFAULT_MEMORY_BYTES: i64 = 200 << 20;

/// Amounts of each resource.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resources {
    pub cpu_millis: i64,
    pub memory_bytes: i64,
    pub ephemeral_bytes: i64,
    pub pods: i64,
    /// Everything else (`nvidia.com/gpu`, huge pages), sorted by name; usually empty.
    pub extended: Vec<(Arc<str>, i64)>,
}

impl Resources {
    /// The amounts in a map of an API object.
    pub fn parse(map: Option<&BTreeMap<String, Typed>>) -> Self {
        let mut resources = Self::default();
        for (name, quantity) in map.into_iter().flatten() {
            // The API validated it; what does not parse counts as nothing.
            let Ok(quantity) = Quantity::parse(&quantity.0) else { continue };
            match name.as_str() {
                "cpu" => resources.cpu_millis = quantity.milli_value(),
                "memory" => resources.memory_bytes = quantity.value(),
                "ephemeral-storage" => resources.ephemeral_bytes = quantity.value(),
                "pods" => resources.pods = quantity.value(),
                _ => resources.extended.push((name.as_str().into(), quantity.value())),
            }
        }
        resources
    }

    /// The amount of an extended resource.
    pub fn extended(&self, name: &str) -> i64 {
        let at = self.extended.binary_search_by(|(candidate, _)| (**candidate).cmp(name));
        at.ok().and_then(|at| self.extended.get(at)).map_or(0, |(_, amount)| *amount)
    }

    /// Every resource by its name; CPU in thousandths.
    pub fn named(&self) -> impl Iterator<Item = (&str, i64)> {
        let own = [
            ("cpu", self.cpu_millis),
            ("memory", self.memory_bytes),
            ("ephemeral-storage", self.ephemeral_bytes),
            ("pods", self.pods),
        ];
        own.into_iter().chain(self.extended.iter().map(|(name, amount)| (&**name, *amount)))
    }

    fn combine(&mut self, other: &Self, with: fn(i64, i64) -> i64) {
        self.cpu_millis = with(self.cpu_millis, other.cpu_millis);
        self.memory_bytes = with(self.memory_bytes, other.memory_bytes);
        self.ephemeral_bytes = with(self.ephemeral_bytes, other.ephemeral_bytes);
        self.pods = with(self.pods, other.pods);
        for (name, amount) in &other.extended {
            match self.extended.binary_search_by(|(candidate, _)| candidate.cmp(name)) {
                Ok(at) => self.extended[at].1 = with(self.extended[at].1, *amount),
                Err(at) => self.extended.insert(at, (Arc::clone(name), with(0, *amount))),
            }
        }
    }

    /// Adds another amount of everything.
    pub fn add(&mut self, other: &Self) {
        self.combine(other, i64::saturating_add);
    }

    /// Takes another amount of everything away.
    pub fn subtract(&mut self, other: &Self) {
        self.combine(other, i64::saturating_sub);
    }

    fn at_least(&mut self, other: &Self) {
        self.combine(other, i64::max);
    }
}

/// What a pod's containers have of one resource together; `None` if no container has any. Init containers run one after the other,
/// beside the sidecars that were started before them.
pub fn of_containers(spec: &PodSpec, of: impl Fn(&Container) -> Option<Quantity>) -> Option<Quantity> {
    let plus = |sum: Option<Quantity>, more: Option<Quantity>| match (sum, more) {
        (Some(sum), Some(more)) => Some(sum + more),
        (sum, more) => sum.or(more),
    };
    let mut sum = spec.containers.iter().map(&of).fold(None, plus);
    let (mut sidecars, mut peak) = (None, None);
    for container in spec.init_containers.iter().flatten() {
        if container.restart_policy.as_deref() == Some("Always") {
            sidecars = plus(sidecars, of(container));
            sum = plus(sum, of(container));
        } else {
            peak = peak.max(plus(sidecars, of(container)));
        }
    }
    sum.max(peak)
}

fn requests(resources: Option<&ResourceRequirements>) -> Resources {
    Resources::parse(resources.and_then(|resources| resources.requests.as_ref()))
}

fn with_defaults(mut resources: Resources) -> Resources {
    if resources.cpu_millis == 0 {
        resources.cpu_millis = DEFAULT_CPU_MILLIS;
    }
    if resources.memory_bytes == 0 {
        resources.memory_bytes = DEFAULT_MEMORY_BYTES;
    }
    resources
}

fn total(pod: &Pod, of: impl Fn(&Container) -> Resources) -> Resources {
    let Some(spec) = &pod.spec else { return Resources::default() };
    let mut sum = Resources::default();
    spec.containers.iter().for_each(|container| sum.add(&of(container)));
    // Init containers run one after the other, beside the sidecars that were started before them.
    let (mut sidecars, mut peak) = (Resources::default(), Resources::default());
    for container in spec.init_containers.iter().flatten() {
        let mut needed = of(container);
        if container.restart_policy.as_deref() == Some("Always") {
            sidecars.add(&needed);
            sum.add(&needed);
            peak.at_least(&sidecars);
        } else {
            needed.add(&sidecars);
            peak.at_least(&needed);
        }
    }
    sum.at_least(&peak);
    if let Some(pod_level) = &spec.resources {
        let pod_level = requests(Some(pod_level));
        let replace = |slot: &mut i64, amount: i64| *slot = if amount > 0 { amount } else { *slot };
        replace(&mut sum.cpu_millis, pod_level.cpu_millis);
        replace(&mut sum.memory_bytes, pod_level.memory_bytes);
    }
    sum.add(&Resources::parse(spec.overhead.as_ref()));
    sum.pods = 1;
    sum
}

/// What a pod asks for: `resource.PodRequests`.
pub fn of_pod(pod: &Pod) -> Resources {
    total(pod, |container| requests(container.resources.as_ref()))
}

/// What a pod counts for in scores: containers that ask for no CPU or memory count with a default.
pub fn scored(pod: &Pod) -> Resources {
    total(pod, |container| with_defaults(requests(container.resources.as_ref())))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn init_containers_and_sidecars_count_as_upstream() {
        let container = |cpu: &str, always: bool| {
            let policy = if always { json!("Always") } else { json!(null) };
            json!({"name": "c", "resources": {"requests": {"cpu": cpu}}, "restartPolicy": policy})
        };
        for (init, containers, expected) in [
            (vec![], vec![container("100m", false), container("200m", false)], 300),
            (vec![container("1", false)], vec![container("200m", false)], 1000),
            (vec![container("100m", true), container("500m", false)], vec![container("200m", false)], 600),
            (vec![container("500m", false), container("100m", true)], vec![container("600m", false)], 700),
        ] {
            let pod: Pod = serde_json::from_value(json!({"spec": {"initContainers": init, "containers": containers}})).unwrap();
            assert_eq!(of_pod(&pod).cpu_millis, expected);
        }
    }

    #[test]
    fn extended_resources_add_and_subtract() {
        let map = |count: &str| [("example.com/gpu".to_owned(), Typed(count.to_owned()))].into();
        let mut have = Resources::parse(Some(&map("3")));
        have.subtract(&Resources::parse(Some(&map("1"))));
        assert_eq!(have.extended("example.com/gpu"), 2);
        assert_eq!(have.extended("example.com/tpu"), 0);
    }
}
