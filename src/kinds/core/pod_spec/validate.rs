//! Checks of a pod's specification (upstream `ValidatePodSpec`).

use k8s_openapi::api::core::v1::{PodSpec, ResourceRequirements, Volume};

use super::container::{self, Pod};
use super::{Holder, affinity, as_container, resources, scheduling, security, volume};
use crate::api::field::{FieldError, Path};
use crate::api::names;
use crate::kinds::check::{Errors, ip, labels, one_of, required, required_one_of, required_rule, rule, str_of};

/// Checks a specification; `more_volumes` are those that a StatefulSet's claims will add.
pub fn spec(errors: &mut Errors, path: &Path, spec: &PodSpec, holder: Holder, more_volumes: &[Volume]) {
    let own = spec.volumes.as_deref().unwrap_or_default();
    volume::volumes(errors, &path.child("volumes"), own, holder);
    let volumes: Vec<Volume> = own.iter().chain(more_volumes).cloned().collect();
    let pod = Pod { spec, volumes: &volumes, holder };
    container::all(errors, path, &pod);
    ephemeral_containers(errors, path, &pod);
    one_as_listed(errors, &path.child("restartPolicy"), str_of(&spec.restart_policy), &["Always", "OnFailure", "Never"]);
    dns(errors, path, spec);
    labels(errors, &path.child("nodeSelector"), spec.node_selector.as_ref());
    if let Some(context) = &spec.security_context {
        security::pod(errors, &path.child("securityContext"), context, spec);
    }
    if let Some(affinity) = &spec.affinity {
        affinity::affinity(errors, &path.child("affinity"), affinity);
    }
    scheduling::references(errors, path, spec);
    scheduling::scheduling(errors, path, spec);
    for (name, text) in [("hostname", &spec.hostname), ("subdomain", &spec.subdomain)] {
        if let Some(text) = text.as_deref().filter(|text| !text.is_empty()) {
            rule(errors, &path.child(name), text, names::dns1123_label);
        }
    }
    if let Some(seconds) = spec.active_deadline_seconds.filter(|seconds| !(1..=i64::from(i32::MAX)).contains(seconds)) {
        let why = "must be between 1 and 2147483647, inclusive";
        errors.push(FieldError::invalid(path.child("activeDeadlineSeconds"), seconds, why));
    }
    host_aliases(errors, &path.child("hostAliases"), spec);
    resources::claims_of_pod(errors, &path.child("resourceClaims"), spec);
    if let Some(policy) = &spec.preemption_policy {
        one_of(errors, &path.child("preemptionPolicy"), policy, &["Never", "PreemptLowerPriority"]);
    }
    if let Some(os) = &spec.os {
        required_one_of(errors, &path.child("os").child("name"), &os.name, &["linux", "windows"]);
    }
    if spec.scheduling_group.is_some() {
        // A gate in upstream's scheduler that is off by default: pods would be placed one by one all the same.
        let why = "may not be set when the GangScheduling feature is disabled";
        errors.push(FieldError::forbidden(path.child("schedulingGroup"), why));
    }
    host_users(errors, path, spec);
    hostname_override(errors, path, spec);
    if let Some(resources) = &spec.resources {
        resources::of_pod(errors, &path.child("resources"), resources, spec);
    }
}

/// A text that must be one of a list, which upstream shows in this order.
fn one_as_listed(errors: &mut Errors, path: &Path, text: &str, supported: &[&str]) {
    if required(errors, path, text) && !supported.contains(&text) {
        errors.push(FieldError::not_supported_as_listed(path.clone(), text, supported));
    }
}

fn hostname_override(errors: &mut Errors, path: &Path, spec: &PodSpec) {
    const HOSTNAME_MAX: usize = 64;
    let Some(name) = spec.hostname_override.as_deref() else { return };
    let at = path.child("hostnameOverride");
    rule(errors, &at, name, names::dns1123_subdomain);
    if name.len() > HOSTNAME_MAX {
        errors.push(FieldError::invalid(at.clone(), name, "must be no more than 64 characters"));
    }
    if spec.set_hostname_as_fqdn == Some(true) {
        errors.push(FieldError::forbidden(at.clone(), "may not be set when `setHostnameAsFQDN` is true"));
    }
    if spec.host_network == Some(true) {
        errors.push(FieldError::forbidden(at, "may not be set when `hostNetwork` is true"));
    }
}

fn host_users(errors: &mut Errors, path: &Path, spec: &PodSpec) {
    if spec.host_users != Some(false) {
        return;
    }
    for (name, is_shared) in [("hostNetwork", spec.host_network), ("hostPID", spec.host_pid), ("hostIPC", spec.host_ipc)] {
        if is_shared == Some(true) {
            errors.push(FieldError::forbidden(path.child(name), "when `hostUsers` is false"));
        }
    }
    // Docker maps users for the whole engine or not at all: no node could give the pod what it asks for.
    let why = "user namespaces of pods are not supported by the container runtime (docker)";
    errors.push(FieldError::invalid(path.child("hostUsers"), false, why));
}

fn host_aliases(errors: &mut Errors, path: &Path, spec: &PodSpec) {
    for (index, alias) in spec.host_aliases.iter().flatten().enumerate() {
        let path = path.index(index);
        ip(errors, &path.child("ip"), &alias.ip);
        for hostname in alias.hostnames.iter().flatten() {
            rule(errors, &path.child("hostnames"), hostname, names::dns1123_subdomain);
        }
    }
}

fn dns(errors: &mut Errors, path: &Path, spec: &PodSpec) {
    const NAMESERVERS_MAX: usize = 3;
    const SEARCHES_MAX: usize = 32;
    let policy = str_of(&spec.dns_policy);
    one_as_listed(errors, &path.child("dnsPolicy"), policy, &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"]);
    let at = path.child("dnsConfig");
    let Some(config) = &spec.dns_config else {
        if policy == "None" {
            errors.push(FieldError::required(at, "must provide `dnsConfig` when `dnsPolicy` is None"));
        }
        return;
    };
    let servers = config.nameservers.as_deref().unwrap_or_default();
    if policy == "None" && servers.is_empty() {
        let why = "must provide at least one DNS nameserver when `dnsPolicy` is None";
        errors.push(FieldError::required(at.child("nameservers"), why));
    }
    if servers.len() > NAMESERVERS_MAX {
        let why = format!("must not have more than {NAMESERVERS_MAX} nameservers");
        errors.push(FieldError::invalid(at.child("nameservers"), servers.to_vec(), why));
    }
    for (index, server) in servers.iter().enumerate() {
        ip(errors, &at.child("nameservers").index(index), server);
    }
    let searches = config.searches.as_deref().unwrap_or_default();
    if searches.len() > SEARCHES_MAX {
        let why = format!("must not have more than {SEARCHES_MAX} search paths");
        errors.push(FieldError::invalid(at.child("searches"), searches.to_vec(), why));
    }
    for (index, search) in searches.iter().enumerate().filter(|(_, search)| *search != ".") {
        let plain = search.strip_suffix('.').unwrap_or(search).replace('_', "-");
        rule(errors, &at.child("searches").index(index), &plain, names::dns1123_subdomain);
    }
    for (index, option) in config.options.iter().flatten().enumerate() {
        required(errors, &at.child("options").index(index), str_of(&option.name));
    }
}

fn ephemeral_containers(errors: &mut Errors, path: &Path, pod: &Pod<'_>) {
    let named =
        |name: &str| pod.spec.containers.iter().chain(pod.spec.init_containers.iter().flatten()).any(|each| each.name == name);
    let mut seen = std::collections::HashSet::new();
    for (index, ephemeral) in pod.spec.ephemeral_containers.iter().flatten().enumerate() {
        let path = path.child("ephemeralContainers").index(index);
        let container = as_container(ephemeral);
        container::common(errors, &path, &container, pod);
        required_rule(errors, &path.child("name"), &ephemeral.name, names::dns1123_label);
        if !ephemeral.name.is_empty() && (named(&ephemeral.name) || !seen.insert(&ephemeral.name)) {
            errors.push(FieldError::duplicate(path.child("name"), ephemeral.name.as_str()));
        }
        if let Some(target) = ephemeral.target_container_name.as_deref().filter(|target| !target.is_empty() && !named(target)) {
            errors.push(FieldError::not_found(path.child("targetContainerName"), target));
        }
        let given = [
            ("ports", ephemeral.ports.is_some()),
            ("livenessProbe", ephemeral.liveness_probe.is_some()),
            ("readinessProbe", ephemeral.readiness_probe.is_some()),
            ("startupProbe", ephemeral.startup_probe.is_some()),
            ("lifecycle", ephemeral.lifecycle.is_some()),
            ("resizePolicy", ephemeral.resize_policy.is_some()),
            ("resources", ephemeral.resources.as_ref().is_some_and(|all| *all != ResourceRequirements::default())),
            ("restartPolicy", ephemeral.restart_policy.is_some()),
            ("restartPolicyRules", ephemeral.restart_policy_rules.is_some()),
        ];
        for (name, _) in given.into_iter().filter(|(_, is_given)| *is_given) {
            errors.push(FieldError::forbidden(path.child(name), "cannot be set for an Ephemeral Container"));
        }
        for (place, mount) in ephemeral.volume_mounts.iter().flatten().enumerate() {
            for (name, sub_path) in [("subPath", &mount.sub_path), ("subPathExpr", &mount.sub_path_expr)] {
                if !str_of(sub_path).is_empty() {
                    let path = path.child("volumeMounts").index(place).child(name);
                    errors.push(FieldError::forbidden(path, "cannot be set for an Ephemeral Container"));
                }
            }
        }
    }
}
