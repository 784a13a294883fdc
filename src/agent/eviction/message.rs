//! What an evicted pod is told, in upstream's words (`eviction/helpers.go`). Pure.

use k8s_openapi::api::core::v1::Pod;

use super::rank::PodUsage;
use super::signal::Pressure;
use super::state::Observations;
use super::threshold::Threshold;
use crate::agent::pod::resources::request;
use crate::api::quantity::{Format, Quantity};

/// Reason of events, and of the status of a pod that was evicted or not taken.
pub const REASON: &str = "Evicted";

/// Why a pod is evicted for a resource of the node.
pub fn shortage(resource: &str, pod: &Pod, usage: Option<&PodUsage>, due: &[Threshold], observations: &Observations) -> String {
    let mut message = format!("The node was low on resource: {resource}. ");
    let mut about = due.iter().filter(|threshold| threshold.signal.resource() == resource);
    if let Some((threshold, observed)) = about.find_map(|threshold| Some((threshold, observations.get(&threshold.signal)?))) {
        let level = threshold.level.of(observed.capacity);
        message.push_str(&format!("Threshold quantity: {level}, available: {}. ", observed.available));
    }
    let spec = pod.spec.iter();
    let containers: Vec<_> = spec.flat_map(|spec| spec.init_containers.iter().flatten().chain(&spec.containers)).collect();
    for used in usage.iter().flat_map(|usage| &usage.containers) {
        let Some(container) = containers.iter().find(|container| container.name == used.name) else { continue };
        let amount = match resource {
            "memory" => Some(used.working_set_bytes),
            "ephemeral-storage" => used.disk_bytes,
            _ => None,
        };
        let Some(amount) = amount.and_then(|amount| i64::try_from(amount).ok()) else { continue };
        let amount = Quantity::new(amount, Format::BinarySi);
        let requested = request(container, resource).unwrap_or(Quantity::ZERO);
        if amount > requested {
            let name = &used.name;
            message.push_str(&format!(
                "Container {name} was using {amount}, request is {requested}, has larger consumption of {resource}. "
            ));
        }
    }
    message
}

/// Why a pod is not taken.
pub fn pressed<'a>(pressures: impl Iterator<Item = &'a Pressure>) -> String {
    let names: Vec<&str> = pressures.map(|pressure| pressure.condition()).collect();
    format!("The node had condition: [{}]. ", names.join(" "))
}

/// Why a pod is evicted for a volume of its own.
pub fn empty_dir(volume: &str, limit: Quantity) -> String {
    format!("Usage of EmptyDir volume \"{volume}\" exceeds the limit \"{limit}\". ")
}

/// Why a pod is evicted for all that it keeps on the node's disk.
pub fn pod_storage(limit: Quantity) -> String {
    format!("Pod ephemeral local storage usage exceeds the total limit of containers {limit}. ")
}

/// Why a pod is evicted for what one of its containers keeps there.
pub fn container_storage(container: &str, limit: Quantity) -> String {
    format!("Container {container} exceeded its local ephemeral storage limit \"{limit}\". ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::rank::ContainerUsage;
    use super::super::signal::Signal;
    use super::super::state::Observed;
    use super::super::threshold::{Texts, parse};
    use super::*;

    #[test]
    fn words_are_upstreams() {
        let pod: Pod = serde_json::from_value(json!({"spec": {"containers": [
            {"name": "hog", "resources": {"requests": {"memory": "16Mi"}}}, {"name": "other"},
            {"name": "modest", "resources": {"requests": {"memory": "1Gi"}}}]}}))
        .unwrap();
        let used = |name: &str, mib: u64| ContainerUsage {
            name: name.to_owned(),
            working_set_bytes: mib << 20,
            disk_bytes: Some(mib << 10),
        };
        let usage = PodUsage { containers: vec![used("hog", 64), used("other", 1), used("modest", 2)], ..PodUsage::default() };
        let due = parse(Texts { hard: "memory.available<100Mi", ..Texts::default() }).unwrap();
        let available = Quantity::new(52 << 20, Format::BinarySi);
        let observations = [(Signal::MemoryAvailable, Observed { available, capacity: 1 << 30 })].into();
        assert_eq!(
            shortage("memory", &pod, Some(&usage), &due, &observations),
            "The node was low on resource: memory. Threshold quantity: 100Mi, available: 52Mi. \
             Container hog was using 64Mi, request is 16Mi, has larger consumption of memory. \
             Container other was using 1Mi, request is 0, has larger consumption of memory. "
        );
        assert_eq!(shortage("pids", &pod, None, &due, &observations), "The node was low on resource: pids. ");
        assert_eq!(pressed([Pressure::Memory, Pressure::Disk].iter()), "The node had condition: [MemoryPressure DiskPressure]. ");
    }
}
