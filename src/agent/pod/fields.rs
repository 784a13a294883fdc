//! The downward API: values of a pod's fields and of its containers' resources, for environment variables and volumes.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Container, Pod, ResourceFieldSelector};

use super::resources;
use crate::api::quantity::Quantity;

/// What the node adds to what a pod knows of itself.
#[derive(Debug, Clone, Copy)]
pub struct FieldContext<'a> {
    pub pod: &'a Pod,
    pub host_ip: IpAddr,
    pub pod_ip: Option<IpAddr>,
    pub allocatable: Allocatable,
}

/// What the node can give to pods: the default of limits that a container does not set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allocatable {
    pub cpu_milli: i64,
    pub memory_bytes: i64,
    pub ephemeral_storage_bytes: i64,
}

impl Allocatable {
    /// What a container without limits has at most: its pod's, where the whole pod has some.
    pub fn within(self, pod: &Pod) -> Self {
        let least = |own: i64, name: &str, unit: fn(&Quantity) -> i64| {
            resources::limit_of_pod(pod, name).map_or(own, |limit| own.min(unit(&limit)))
        };
        Self {
            cpu_milli: least(self.cpu_milli, "cpu", Quantity::milli_value),
            memory_bytes: least(self.memory_bytes, "memory", Quantity::value),
            ..self
        }
    }
}

/// The value at a field path such as `metadata.labels['app']` or `status.podIP`.
///
/// # Errors
/// A text that says which path is not supported.
pub fn field_value(context: &FieldContext<'_>, path: &str) -> Result<String, String> {
    let (meta, spec) = (&context.pod.metadata, context.pod.spec.as_ref());
    let text = |text: Option<&String>| text.cloned().unwrap_or_default();
    if let Some((map, key)) = subscript(path) {
        return match map {
            "metadata.labels" => Ok(text(meta.labels.as_ref().and_then(|labels| labels.get(key)))),
            "metadata.annotations" => Ok(text(meta.annotations.as_ref().and_then(|all| all.get(key)))),
            _ => Err(format!("fieldPath {path:?} does not support subscript")),
        };
    }
    let host_network = spec.is_some_and(|spec| spec.host_network == Some(true));
    let pod_ip = if host_network { Some(context.host_ip) } else { context.pod_ip };
    match path {
        "metadata.name" => Ok(text(meta.name.as_ref())),
        "metadata.namespace" => Ok(text(meta.namespace.as_ref())),
        "metadata.uid" => Ok(text(meta.uid.as_ref())),
        "metadata.labels" => Ok(lines(meta.labels.as_ref())),
        "metadata.annotations" => Ok(lines(meta.annotations.as_ref())),
        "spec.nodeName" => Ok(text(spec.and_then(|spec| spec.node_name.as_ref()))),
        "spec.serviceAccountName" => Ok(text(spec.and_then(|spec| spec.service_account_name.as_ref()))),
        "status.hostIP" | "status.hostIPs" => Ok(context.host_ip.to_string()),
        "status.podIP" | "status.podIPs" => Ok(pod_ip.map(|ip| ip.to_string()).unwrap_or_default()),
        _ => Err(format!("unsupported fieldPath: {path}")),
    }
}

/// Splits `metadata.labels['app']`.
fn subscript(path: &str) -> Option<(&str, &str)> {
    let (map, rest) = path.split_once("['")?;
    Some((map, rest.strip_suffix("']")?))
}

/// A map as the downward API prints it: sorted lines of `key="value"`.
fn lines(map: Option<&BTreeMap<String, String>>) -> String {
    let lines: Vec<String> = map.into_iter().flatten().map(|(key, value)| format!("{key}={value:?}")).collect();
    lines.join("\n")
}

/// The value of a `resourceFieldRef`, divided by its divisor and rounded up.
///
/// # Errors
/// A text that says what is not there or not supported.
pub fn resource_value(
    selector: &ResourceFieldSelector,
    container: &Container,
    allocatable: &Allocatable,
) -> Result<String, String> {
    let divisor = selector.divisor.as_ref().and_then(|divisor| Quantity::try_from(divisor).ok());
    let divisor = divisor.filter(|divisor| !divisor.is_zero());
    let (kind, name) = selector.resource.split_once('.').unwrap_or(("", ""));
    let set = match kind {
        "limits" => resources::limit(container, name),
        "requests" => resources::request(container, name),
        _ => return Err(format!("unsupported container resource: {}", selector.resource)),
    };
    let default = match (kind, name) {
        ("limits", "cpu") => allocatable.cpu_milli,
        ("limits", "memory") => allocatable.memory_bytes,
        ("limits", "ephemeral-storage") => allocatable.ephemeral_storage_bytes,
        ("requests", "cpu" | "memory" | "ephemeral-storage") => 0,
        _ if name.starts_with("hugepages-") => 0,
        _ => return Err(format!("unsupported container resource: {}", selector.resource)),
    };
    let (amount, unit) = if name == "cpu" {
        (set.map_or(default, |set| set.milli_value()), divisor.map_or(1_000, |divisor| divisor.milli_value()))
    } else {
        (set.map_or(default, |set| set.value()), divisor.map_or(1, |divisor| divisor.value()))
    };
    let unit = unit.max(1);
    Ok((amount / unit + i64::from(amount % unit > 0)).to_string())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const ALLOCATABLE: Allocatable = Allocatable { cpu_milli: 2_000, memory_bytes: 4 << 30, ephemeral_storage_bytes: 1 << 30 };

    #[test]
    fn fields_of_a_pod() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "shop", "uid": "u", "labels": {"app": "web", "b/c": "x \"y\""}},
            "spec": {"containers": [], "nodeName": "n1", "serviceAccountName": "default"}}))
        .unwrap();
        let context = FieldContext {
            pod: &pod,
            host_ip: [192, 0, 2, 1].into(),
            pod_ip: Some([10, 42, 0, 2].into()),
            allocatable: ALLOCATABLE,
        };
        let table = [
            ("metadata.name", "web"),
            ("metadata.labels['app']", "web"),
            ("metadata.labels['none']", ""),
            ("metadata.labels", "app=\"web\"\nb/c=\"x \\\"y\\\"\""),
            ("spec.nodeName", "n1"),
            ("status.hostIP", "192.0.2.1"),
            ("status.podIPs", "10.42.0.2"),
        ];
        for (path, value) in table {
            assert_eq!(field_value(&context, path).as_deref(), Ok(value), "{path}");
        }
        assert!(field_value(&context, "spec.containers").is_err());
    }

    #[test]
    fn a_pod_with_limits_of_its_own_is_smaller_than_the_node() {
        let pod = json!({"spec": {"containers": [], "resources": {"limits": {"cpu": "500m", "memory": "8Gi"}}}});
        let within = ALLOCATABLE.within(&serde_json::from_value(pod).unwrap());
        assert_eq!(within, Allocatable { cpu_milli: 500, ..ALLOCATABLE });
    }

    #[test]
    fn resources_round_up_and_default_to_the_node() {
        let container: Container = serde_json::from_value(
            json!({"name": "c", "resources": {"limits": {"cpu": "1250m"}, "requests": {"memory": "65Mi"}}}),
        )
        .unwrap();
        let table = [
            ("limits.cpu", None, "2"),
            ("limits.cpu", Some("1m"), "1250"),
            ("limits.memory", Some("1Mi"), "4096"),
            ("requests.memory", Some("1Gi"), "1"),
            ("requests.cpu", None, "0"),
        ];
        for (resource, divisor, value) in table {
            let selector: ResourceFieldSelector =
                serde_json::from_value(json!({"resource": resource, "divisor": divisor})).unwrap();
            assert_eq!(resource_value(&selector, &container, &ALLOCATABLE).as_deref(), Ok(value), "{resource} {divisor:?}");
        }
    }
}
