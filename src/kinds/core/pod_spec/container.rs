//! Checks of containers.

use std::collections::HashSet;

use k8s_openapi::api::core::v1::{Container, ContainerPort, ContainerResizePolicy, PodSpec, Volume, VolumeDevice, VolumeMount};

use super::volume::local_path;
use super::{Holder, env, is_sidecar, probe, resources, security};
use crate::api::field::{FieldError, Path};
use crate::api::names;
use crate::kinds::check::{Errors, one_of, port, required, required_one_of, required_rule, rule, str_of, unique};

/// What containers are checked against.
pub struct Pod<'a> {
    pub spec: &'a PodSpec,
    pub volumes: &'a [Volume],
    pub holder: Holder,
}

/// Checks the containers and init containers of a pod.
pub fn all(errors: &mut Errors, path: &Path, pod: &Pod<'_>) {
    let mut seen = HashSet::new();
    let at = path.child("containers");
    if pod.spec.containers.is_empty() {
        errors.push(FieldError::required(at.clone(), ""));
    }
    for (index, container) in pod.spec.containers.iter().enumerate() {
        let path = at.index(index);
        common(errors, &path, container, pod);
        named(errors, &path, container, &mut seen);
        probe::container(errors, &path, container, pod.spec);
        restart_policy(errors, &path, container);
    }
    let at = path.child("initContainers");
    for (index, container) in pod.spec.init_containers.iter().flatten().enumerate() {
        let path = at.index(index);
        common(errors, &path, container, pod);
        named(errors, &path, container, &mut seen);
        init(errors, &path, container, pod);
    }
    host_ports(errors, &path.child("containers"), &pod.spec.containers);
}

fn named<'a>(errors: &mut Errors, path: &Path, container: &'a Container, seen: &mut HashSet<&'a str>) {
    let path = path.child("name");
    required_rule(errors, &path, &container.name, names::dns1123_label);
    if !container.name.is_empty() {
        unique(errors, &path, seen, &container.name);
    }
}

fn init(errors: &mut Errors, path: &Path, container: &Container, pod: &Pod<'_>) {
    restart_policy(errors, path, container);
    if is_sidecar(container) {
        probe::container(errors, path, container, pod.spec);
        return;
    }
    let given = [
        ("lifecycle", container.lifecycle.is_some()),
        ("livenessProbe", container.liveness_probe.is_some()),
        ("readinessProbe", container.readiness_probe.is_some()),
        ("startupProbe", container.startup_probe.is_some()),
        ("resizePolicy", container.resize_policy.as_ref().is_some_and(|policies| policies.iter().any(is_restart))),
    ];
    for (name, _) in given.into_iter().filter(|(_, is_given)| *is_given) {
        errors.push(FieldError::forbidden(path.child(name), "may not be set for init containers without restartPolicy=Always"));
    }
}

fn is_restart(policy: &ContainerResizePolicy) -> bool {
    policy.restart_policy == "RestartContainer"
}

/// Checks a container's own restart policy (upstream `validateContainerRestartPolicy`).
fn restart_policy(errors: &mut Errors, path: &Path, container: &Container) {
    const RULES_MAX: usize = 20;
    const CODES_MAX: usize = 255;
    let at = path.child("restartPolicy");
    if let Some(policy) = &container.restart_policy {
        one_of(errors, &at, policy, &["Always", "Never", "OnFailure"]);
    }
    let rules = container.restart_policy_rules.as_deref().unwrap_or_default();
    if rules.is_empty() {
        return;
    }
    if container.restart_policy.is_none() {
        errors.push(FieldError::required(at, "must specify restartPolicy when restart rules are used"));
    }
    let path = path.child("restartPolicyRules");
    if rules.len() > RULES_MAX {
        errors.push(FieldError::too_many(path.clone(), rules.len(), RULES_MAX));
    }
    for (index, rule) in rules.iter().enumerate() {
        let path = path.index(index);
        required_one_of(errors, &path.child("action"), &rule.action, &["Restart"]);
        let path = path.child("exitCodes");
        let Some(codes) = &rule.exit_codes else {
            errors.push(FieldError::required(path, "must be specified"));
            continue;
        };
        required_one_of(errors, &path.child("operator"), &codes.operator, &["In", "NotIn"]);
        match codes.values.as_deref().unwrap_or_default() {
            [] => errors.push(FieldError::required(path.child("values"), "must be specified")),
            values if values.len() > CODES_MAX => {
                errors.push(FieldError::too_many(path.child("values"), values.len(), CODES_MAX));
            }
            _ => {}
        }
    }
}

/// Checks what containers of every kind share, ephemeral ones too.
pub fn common(errors: &mut Errors, path: &Path, container: &Container, pod: &Pod<'_>) {
    let image = str_of(&container.image);
    let at = path.child("image");
    if image.is_empty() {
        if pod.holder == Holder::Pod {
            errors.push(FieldError::required(at, ""));
        }
    } else if image.trim() != image {
        errors.push(FieldError::invalid(at, image, "must not have leading or trailing whitespace"));
    }
    env::pull_policy(errors, &path.child("imagePullPolicy"), str_of(&container.image_pull_policy));
    let messages = &["FallbackToLogsOnError", "File"];
    required_one_of(errors, &path.child("terminationMessagePolicy"), str_of(&container.termination_message_policy), messages);
    let devices = container.volume_devices.as_deref().unwrap_or_default();
    let mounts = container.volume_mounts.as_deref().unwrap_or_default();
    ports(errors, &path.child("ports"), container.ports.as_deref().unwrap_or_default(), pod);
    env::variables(errors, &path.child("env"), container.env.as_deref().unwrap_or_default());
    env::sources(errors, &path.child("envFrom"), container.env_from.as_deref().unwrap_or_default());
    volume_mounts(errors, &path.child("volumeMounts"), mounts, devices, container, pod);
    volume_devices(errors, &path.child("volumeDevices"), devices, mounts, pod);
    if let Some(requirements) = &container.resources {
        resources::requirements(errors, &path.child("resources"), requirements);
        resources::claims(errors, &path.child("resources"), requirements, pod.spec);
    }
    for (index, policy) in container.resize_policy.iter().flatten().enumerate() {
        let path = path.child("resizePolicy").index(index);
        required_one_of(errors, &path.child("resourceName"), &policy.resource_name, &["cpu", "memory"]);
        required_one_of(errors, &path.child("restartPolicy"), &policy.restart_policy, &["NotRequired", "RestartContainer"]);
        if is_restart(policy) && str_of(&pod.spec.restart_policy) == "Never" {
            let why = "must be 'NotRequired' when `restartPolicy` is 'Never'";
            errors.push(FieldError::invalid(path.child("restartPolicy"), policy.restart_policy.as_str(), why));
        }
    }
    if let Some(context) = &container.security_context {
        security::container(errors, &path.child("securityContext"), context, pod.spec.host_users);
    }
}

fn ports(errors: &mut Errors, path: &Path, ports: &[ContainerPort], pod: &Pod<'_>) {
    let host_network = pod.spec.host_network == Some(true);
    let mut seen = HashSet::new();
    for (index, each) in ports.iter().enumerate() {
        let path = path.index(index);
        let name = str_of(&each.name);
        if !name.is_empty() {
            rule(errors, &path.child("name"), name, names::port_name);
            unique(errors, &path.child("name"), &mut seen, name);
        }
        if each.container_port == 0 {
            errors.push(FieldError::required(path.child("containerPort"), ""));
        } else {
            port(errors, &path.child("containerPort"), i64::from(each.container_port));
        }
        let host_port = each.host_port.unwrap_or(0);
        if host_port != 0 {
            port(errors, &path.child("hostPort"), i64::from(host_port));
        }
        if host_network && (pod.holder == Holder::Pod || host_port != 0) && host_port != each.container_port {
            let why = "must match `containerPort` when `hostNetwork` is true";
            errors.push(FieldError::invalid(path.child("hostPort"), host_port, why));
        }
        required_one_of(errors, &path.child("protocol"), str_of(&each.protocol), &["SCTP", "TCP", "UDP"]);
        let host_ip = str_of(&each.host_ip);
        if !host_ip.is_empty() && host_ip.parse::<std::net::Ipv4Addr>().is_err() {
            let why = "must be a valid IPv4 address: pods have no others that a port could lead to";
            errors.push(FieldError::invalid(path.child("hostIP"), host_ip, why));
        }
    }
}

/// Two containers of a pod may not ask for the same port of the host.
fn host_ports(errors: &mut Errors, path: &Path, containers: &[Container]) {
    let mut seen = HashSet::new();
    for (index, container) in containers.iter().enumerate() {
        for (place, port) in container.ports.iter().flatten().enumerate() {
            let Some(number) = port.host_port.filter(|number| *number != 0) else { continue };
            let key = format!("{}/{}/{number}", str_of(&port.protocol), str_of(&port.host_ip));
            if !seen.insert(key.clone()) {
                errors.push(FieldError::duplicate(path.index(index).child("ports").index(place).child("hostPort"), key));
            }
        }
    }
}

fn volume_mounts(
    errors: &mut Errors,
    path: &Path,
    mounts: &[VolumeMount],
    devices: &[VolumeDevice],
    container: &Container,
    pod: &Pod<'_>,
) {
    let mut seen = HashSet::new();
    for (index, mount) in mounts.iter().enumerate() {
        let path = path.index(index);
        if required(errors, &path.child("name"), &mount.name) && !pod.volumes.iter().any(|volume| volume.name == mount.name) {
            errors.push(FieldError::not_found(path.child("name"), mount.name.as_str()));
        }
        let at = path.child("mountPath");
        required(errors, &at, &mount.mount_path);
        if !seen.insert(mount.mount_path.as_str()) {
            errors.push(FieldError::invalid(at.clone(), mount.mount_path.as_str(), "must be unique"));
        }
        if devices.iter().any(|device| device.device_path == mount.mount_path) {
            errors.push(FieldError::invalid(at, mount.mount_path.as_str(), "must not already exist as a path in volumeDevices"));
        }
        let (sub_path, expression) = (str_of(&mount.sub_path), str_of(&mount.sub_path_expr));
        local_path(errors, &path.child("subPath"), sub_path);
        if !expression.is_empty() && !sub_path.is_empty() {
            let why = "subPathExpr and subPath are mutually exclusive";
            errors.push(FieldError::invalid(path.child("subPathExpr"), expression, why));
        }
        local_path(errors, &path.child("subPathExpr"), expression);
        propagation(errors, &path, mount, container);
    }
}

fn propagation(errors: &mut Errors, path: &Path, mount: &VolumeMount, container: &Container) {
    if let Some(propagation) = &mount.mount_propagation {
        let at = path.child("mountPropagation");
        one_of(errors, &at, propagation, &["Bidirectional", "HostToContainer", "None"]);
        let is_privileged = container.security_context.as_ref().is_some_and(|context| context.privileged == Some(true));
        if propagation == "Bidirectional" && !is_privileged {
            errors.push(FieldError::forbidden(at, "Bidirectional mount propagation is available only to privileged containers"));
        }
    }
    if let Some(mode) = &mount.recursive_read_only {
        let at = path.child("recursiveReadOnly");
        one_of(errors, &at, mode, &["Disabled", "Enabled", "IfPossible"]);
        if mode != "Disabled" && mount.read_only != Some(true) {
            errors.push(FieldError::forbidden(at, "may only be specified when readOnly is true"));
        }
    }
}

fn volume_devices(errors: &mut Errors, path: &Path, devices: &[VolumeDevice], mounts: &[VolumeMount], pod: &Pod<'_>) {
    let mut seen = HashSet::new();
    for (index, device) in devices.iter().enumerate() {
        let path = path.index(index);
        required(errors, &path.child("name"), &device.name);
        let volume = pod.volumes.iter().find(|volume| volume.name == device.name);
        if volume.is_none() {
            errors.push(FieldError::not_found(path.child("name"), device.name.as_str()));
        } else if volume.is_some_and(|volume| volume.persistent_volume_claim.is_none() && volume.ephemeral.is_none()) {
            let why = "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode";
            errors.push(FieldError::invalid(path.child("name"), device.name.as_str(), why));
        }
        let at = path.child("devicePath");
        required(errors, &at, &device.device_path);
        if !seen.insert(&device.device_path) {
            errors.push(FieldError::invalid(at.clone(), device.device_path.as_str(), "must be unique"));
        }
        if mounts.iter().any(|mount| mount.mount_path == device.device_path) {
            errors.push(FieldError::invalid(at, device.device_path.as_str(), "must not already exist as a path in volumeMounts"));
        }
    }
}
