//! The quality-of-service class of a pod (upstream `pkg/apis/core/v1/helper/qos`).

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Typed;

use crate::api::quantity::Quantity;

/// How gently a pod is treated when its node runs short: `Guaranteed`, `Burstable` or `BestEffort`.
pub fn qos_class(spec: &PodSpec) -> &'static str {
    let mut requests = BTreeMap::new();
    let mut limits = BTreeMap::new();
    let mut is_limited = true;
    let nothing = ResourceRequirements::default();
    let of_pod = spec.resources.as_ref().filter(|resources| resources.requests.is_some() || resources.limits.is_some());
    let all: Vec<&ResourceRequirements> = match of_pod {
        Some(resources) => vec![resources],
        None => {
            let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
            containers.map(|container| container.resources.as_ref().unwrap_or(&nothing)).collect()
        }
    };
    for resources in all {
        add(&mut requests, resources.requests.as_ref());
        is_limited &= add(&mut limits, resources.limits.as_ref()) == 2;
    }
    if requests.is_empty() && limits.is_empty() {
        "BestEffort"
    } else if is_limited
        && requests.len() == limits.len()
        && requests.iter().all(|(name, amount)| limits.get(name) == Some(amount))
    {
        "Guaranteed"
    } else {
        "Burstable"
    }
}

/// Adds the positive amounts of cpu and memory; returns how many of the two there were.
fn add<'a>(sums: &mut BTreeMap<&'a str, Quantity>, list: Option<&'a BTreeMap<String, Typed>>) -> usize {
    let mut found = 0;
    for (name, amount) in list.into_iter().flatten().filter(|(name, _)| matches!(name.as_str(), "cpu" | "memory")) {
        let Ok(amount) = Quantity::try_from(amount) else { continue };
        if amount > Quantity::ZERO {
            *sums.entry(name).or_insert(Quantity::ZERO) += amount;
            found += 1;
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn classes_by_requests_and_limits() {
        let table = [
            (json!({"containers": [{"name": "a"}]}), "BestEffort"),
            (json!({"containers": [{"name": "a", "resources": {"requests": {"cpu": "1"}}}]}), "Burstable"),
            (
                json!({"containers": [{"name": "a", "resources": {"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": "1000m", "memory": "1Gi"}}}]}),
                "Guaranteed",
            ),
            (
                json!({"containers": [{"name": "a", "resources": {"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": "2", "memory": "1Gi"}}}]}),
                "Burstable",
            ),
            (
                json!({"containers": [{"name": "a", "resources": {"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": "1", "memory": "1Gi"}}}, {"name": "b"}]}),
                "Burstable",
            ),
            (json!({"containers": [{"name": "a", "resources": {"requests": {"example.com/gpu": 1}}}]}), "BestEffort"),
        ];
        for (spec, class) in table {
            assert_eq!(qos_class(&serde_json::from_value(spec.clone()).unwrap()), class, "{spec}");
        }
    }
}
