//! Defaults of a pod's specification (upstream `pkg/apis/core/v1/defaults.go`).

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Container, ContainerPort, ContainerResizePolicy, EnvVar, EphemeralContainer, HTTPGetAction, LifecycleHandler,
    ObjectFieldSelector, PodSpec, PodTemplateSpec, Probe, ResourceFieldSelector, ResourceRequirements,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Typed;

use super::{as_container, as_ephemeral, volume_defaults};
use crate::api::quantity::Quantity;
use crate::kinds::core::pod::resources::of_containers;

/// Sets an absent text.
pub fn text(slot: &mut Option<String>, value: &str) {
    if slot.as_deref().is_none_or(str::is_empty) {
        *slot = Some(value.to_owned());
    }
}

/// Sets an absent value.
pub fn value<T>(slot: &mut Option<T>, value: T) {
    slot.get_or_insert(value);
}

/// Sets an absent number, where zero counts as absent.
pub fn number(slot: &mut Option<i32>, value: i32) {
    if slot.is_none_or(|number| number == 0) {
        *slot = Some(value);
    }
}

/// Writes the amounts in canonical form, rounded up to thousandths. What does not parse is left for validation to refuse.
pub fn quantities(list: &mut Option<BTreeMap<String, Typed>>) {
    for amount in list.iter_mut().flat_map(BTreeMap::values_mut) {
        if let Ok(parsed) = Quantity::parse(&amount.0) {
            *amount = parsed.rounded_to_milli().to_typed();
        }
    }
}

/// Writes one amount in canonical form.
pub fn quantity(amount: &mut Typed) {
    if let Ok(parsed) = Quantity::parse(&amount.0) {
        *amount = parsed.to_typed();
    }
}

/// Defaults of a template.
pub fn template(template: &mut PodTemplateSpec) {
    template.metadata.get_or_insert_default();
    spec(template.spec.get_or_insert_default());
}

/// Defaults that hold in pods and templates.
pub fn spec(spec: &mut PodSpec) {
    text(&mut spec.restart_policy, "Always");
    text(&mut spec.dns_policy, "ClusterFirst");
    text(&mut spec.scheduler_name, "default-scheduler");
    value(&mut spec.termination_grace_period_seconds, 30);
    spec.security_context.get_or_insert_default();
    service_account(spec);
    quantities(&mut spec.overhead);
    if let Some(resources) = &mut spec.resources {
        requirements(resources);
    }
    for each in spec.init_containers.iter_mut().flatten().chain(&mut spec.containers) {
        container(each);
    }
    for each in spec.ephemeral_containers.iter_mut().flatten() {
        ephemeral(each);
    }
    for volume in spec.volumes.iter_mut().flatten() {
        volume_defaults::volume(volume);
    }
}

/// Keeps the old field `serviceAccount` the same as `serviceAccountName`.
pub fn service_account(spec: &mut PodSpec) {
    let name = spec.service_account_name.take().filter(|name| !name.is_empty());
    let name = name.or_else(|| spec.service_account.take()).filter(|name| !name.is_empty());
    spec.service_account.clone_from(&name);
    spec.service_account_name = name;
}

/// Defaults that hold only in pods.
pub fn pod(spec: &mut PodSpec) {
    value(&mut spec.enable_service_links, true);
    let host_network = spec.host_network == Some(true);
    for each in spec.init_containers.iter_mut().flatten().chain(&mut spec.containers) {
        if let Some(resources) = &mut each.resources {
            requests_from_limits(resources);
        }
        resize_policy(each);
        if host_network {
            for port in each.ports.iter_mut().flatten() {
                number(&mut port.host_port, port.container_port);
            }
        }
    }
    whole_pod(spec);
}

/// What a whole pod asks for, if it has limits and does not say: what its containers ask for together, else its limit (upstream
/// `defaultPodRequests`).
fn whole_pod(spec: &mut PodSpec) {
    let Some(limits) = spec.resources.as_ref().and_then(|resources| resources.limits.as_ref()) else { return };
    if limits.is_empty() {
        return;
    }
    let asked = |name: &str| {
        let of = |container: &Container| {
            let requests = container.resources.as_ref()?.requests.as_ref()?;
            requests.get(name).and_then(|typed| Quantity::try_from(typed).ok())
        };
        of_containers(spec, of).map(|sum| (name.to_owned(), sum.to_typed()))
    };
    let asked: Vec<(String, Typed)> = ["cpu", "memory"].into_iter().filter_map(asked).collect();
    let Some(resources) = &mut spec.resources else { return };
    let requests = resources.requests.get_or_insert_default();
    for (name, amount) in asked {
        requests.entry(name).or_insert(amount);
    }
    requests_from_limits(resources);
}

fn requests_from_limits(resources: &mut ResourceRequirements) {
    let Some(limits) = &resources.limits else { return };
    if limits.is_empty() {
        return;
    }
    let requests = resources.requests.get_or_insert_default();
    for (name, limit) in limits {
        requests.entry(name.clone()).or_insert_with(|| limit.clone());
    }
}

fn resize_policy(container: &mut Container) {
    let Some(resources) = &container.resources else { return };
    let is_used = |name: &str| [&resources.requests, &resources.limits].into_iter().flatten().any(|list| list.contains_key(name));
    for name in ["cpu", "memory"].into_iter().filter(|name| is_used(name)) {
        let policies = container.resize_policy.get_or_insert_default();
        if !policies.iter().any(|policy| policy.resource_name == name) {
            policies.push(ContainerResizePolicy { resource_name: name.to_owned(), restart_policy: "NotRequired".to_owned() });
        }
    }
}

fn requirements(resources: &mut ResourceRequirements) {
    quantities(&mut resources.limits);
    quantities(&mut resources.requests);
}

/// The pull policy of an image without one: `Always` for the tag `latest`.
pub fn pull_policy(image: &str) -> &'static str {
    let last = image.rsplit('/').next().unwrap_or(image);
    let (name, digest) = last.split_once('@').map_or((last, None), |(name, digest)| (name, Some(digest)));
    let tag = name.split_once(':').map(|(_, tag)| tag).or(digest);
    if matches!(tag, None | Some("latest")) { "Always" } else { "IfNotPresent" }
}

fn ephemeral(slot: &mut EphemeralContainer) {
    let mut defaulted = as_container(slot);
    container(&mut defaulted);
    *slot = as_ephemeral(defaulted, slot.target_container_name.take());
}

fn container(container: &mut Container) {
    let policy = pull_policy(container.image.as_deref().unwrap_or_default());
    text(&mut container.image_pull_policy, policy);
    text(&mut container.termination_message_path, "/dev/termination-log");
    text(&mut container.termination_message_policy, "File");
    requirements(container.resources.get_or_insert_default());
    container.ports.iter_mut().flatten().for_each(port);
    container.env.iter_mut().flatten().for_each(env);
    for probe in
        [&mut container.liveness_probe, &mut container.readiness_probe, &mut container.startup_probe].into_iter().flatten()
    {
        self::probe(probe);
    }
    if let Some(lifecycle) = &mut container.lifecycle {
        for handler in [&mut lifecycle.post_start, &mut lifecycle.pre_stop].into_iter().flatten() {
            handler_get(handler);
        }
    }
}

fn port(port: &mut ContainerPort) {
    text(&mut port.protocol, "TCP");
    port.host_port = port.host_port.filter(|port| *port != 0);
}

fn env(variable: &mut EnvVar) {
    variable.value = variable.value.take().filter(|value| !value.is_empty());
    let Some(from) = &mut variable.value_from else { return };
    if let Some(field) = &mut from.field_ref {
        field_ref(field);
    }
    if let Some(field) = &mut from.resource_field_ref {
        resource_field_ref(field);
    }
}

pub(super) fn field_ref(field: &mut ObjectFieldSelector) {
    text(&mut field.api_version, "v1");
}

pub(super) fn resource_field_ref(field: &mut ResourceFieldSelector) {
    let divisor = field.divisor.get_or_insert_with(|| Typed("0".to_owned()));
    quantity(divisor);
}

fn probe(probe: &mut Probe) {
    number(&mut probe.timeout_seconds, 1);
    number(&mut probe.period_seconds, 10);
    number(&mut probe.success_threshold, 1);
    number(&mut probe.failure_threshold, 3);
    if let Some(get) = &mut probe.http_get {
        http_get(get);
    }
    if let Some(grpc) = &mut probe.grpc {
        value(&mut grpc.service, String::new());
    }
}

fn handler_get(handler: &mut LifecycleHandler) {
    if let Some(get) = &mut handler.http_get {
        http_get(get);
    }
}

fn http_get(get: &mut HTTPGetAction) {
    text(&mut get.path, "/");
    text(&mut get.scheme, "HTTP");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pull_policies_by_tag() {
        let table = [
            ("nginx", "Always"),
            ("nginx:latest", "Always"),
            ("nginx:1.14", "IfNotPresent"),
            ("localhost:5000/nginx", "Always"),
            ("localhost:5000/a/nginx:1", "IfNotPresent"),
            ("nginx@sha256:0123", "IfNotPresent"),
            ("nginx:1@sha256:0123", "IfNotPresent"),
            ("", "Always"),
        ];
        for (image, policy) in table {
            assert_eq!(pull_policy(image), policy, "{image}");
        }
    }
}
