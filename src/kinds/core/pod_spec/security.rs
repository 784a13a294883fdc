//! Checks of security contexts.

use k8s_openapi::api::core::v1::{AppArmorProfile, PodSecurityContext, PodSpec, SeccompProfile, SecurityContext};
use serde_json::Value;

use crate::api::field::{FieldError, Path};
use crate::kinds::check::{Errors, one_of, required, required_one_of, str_of};

/// Nodes run Linux.
const NO_WINDOWS: &str = "windows options cannot be set for a linux pod";
const PROFILE_TYPES: &[&str] = &["Localhost", "RuntimeDefault", "Unconfined"];

fn id(errors: &mut Errors, path: &Path, id: Option<i64>) {
    if let Some(id) = id.filter(|id| !(0..=i64::from(i32::MAX)).contains(id)) {
        errors.push(FieldError::invalid(path.clone(), id, "must be between 0 and 2147483647, inclusive"));
    }
}

/// Checks the security context of a pod and what shares the host's namespaces.
pub fn pod(errors: &mut Errors, path: &Path, context: &PodSecurityContext, spec: &PodSpec) {
    id(errors, &path.child("fsGroup"), context.fs_group);
    id(errors, &path.child("runAsUser"), context.run_as_user);
    id(errors, &path.child("runAsGroup"), context.run_as_group);
    for (index, group) in context.supplemental_groups.iter().flatten().enumerate() {
        id(errors, &path.child("supplementalGroups").index(index), Some(*group));
    }
    if spec.share_process_namespace == Some(true) && spec.host_pid == Some(true) {
        errors.push(FieldError::invalid(
            path.child("shareProcessNamespace"),
            true,
            "ShareProcessNamespace and HostPID cannot both be enabled",
        ));
    }
    sysctls(errors, &path.child("sysctls"), context, spec);
    if context.windows_options.is_some() {
        errors.push(FieldError::forbidden(path.child("windowsOptions"), NO_WINDOWS));
    }
    if let Some(policy) = &context.fs_group_change_policy {
        one_of(errors, &path.child("fsGroupChangePolicy"), policy, &["Always", "OnRootMismatch"]);
    }
    if let Some(policy) = &context.supplemental_groups_policy {
        one_of(errors, &path.child("supplementalGroupsPolicy"), policy, &["Merge", "Strict"]);
    }
    if let Some(policy) = &context.se_linux_change_policy {
        one_of(errors, &path.child("seLinuxChangePolicy"), policy, &["MountOption", "Recursive"]);
    }
    if let Some(profile) = &context.seccomp_profile {
        seccomp(errors, &path.child("seccompProfile"), profile);
    }
    if let Some(profile) = &context.app_armor_profile {
        app_armor(errors, &path.child("appArmorProfile"), profile);
    }
}

fn is_sysctl_name(name: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    name.len() <= 253
        && name.split(['.', '/']).all(|part| {
            let bytes = part.as_bytes();
            let edges = bytes.first().zip(bytes.last()).is_some_and(|(first, last)| inner(*first) && inner(*last));
            edges && bytes.iter().all(|byte| inner(*byte) || b"-_".contains(byte))
        })
}

fn sysctls(errors: &mut Errors, path: &Path, context: &PodSecurityContext, spec: &PodSpec) {
    let mut seen = std::collections::HashSet::new();
    for (index, sysctl) in context.sysctls.iter().flatten().enumerate() {
        let path = path.index(index).child("name");
        if !required(errors, &path, &sysctl.name) {
            continue;
        }
        if !is_sysctl_name(&sysctl.name) {
            let why = "must have at most 253 characters and match regex ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$";
            errors.push(FieldError::invalid(path, sysctl.name.as_str(), why));
        } else if !seen.insert(sysctl.name.replace('/', ".")) {
            errors.push(FieldError::duplicate(path, sysctl.name.as_str()));
        } else if spec.host_network == Some(true) && sysctl.name.starts_with("net.") {
            errors.push(FieldError::invalid(path, sysctl.name.as_str(), "may not be specified when 'hostNetwork' is true"));
        } else if spec.host_ipc == Some(true) && (sysctl.name.starts_with("kernel.shm") || sysctl.name.starts_with("fs.mqueue."))
        {
            errors.push(FieldError::invalid(path, sysctl.name.as_str(), "may not be specified when 'hostIPC' is true"));
        }
    }
}

fn seccomp(errors: &mut Errors, path: &Path, profile: &SeccompProfile) {
    let at = path.child("localhostProfile");
    let local = str_of(&profile.localhost_profile);
    required_one_of(errors, &path.child("type"), &profile.type_, PROFILE_TYPES);
    if profile.type_ == "Localhost" && profile.localhost_profile.is_none() {
        errors.push(FieldError::required(at, "must be set when seccomp type is Localhost"));
    } else if profile.type_ == "Localhost" && (local.starts_with('/') || local.split('/').any(|part| part == "..")) {
        errors.push(FieldError::invalid(
            at,
            local,
            if local.starts_with('/') { "must be a relative path" } else { "must not contain '..'" },
        ));
    } else if profile.type_ != "Localhost" && profile.localhost_profile.is_some() {
        errors.push(FieldError::invalid(at, local, "can only be set when seccomp type is Localhost"));
    }
}

fn app_armor(errors: &mut Errors, path: &Path, profile: &AppArmorProfile) {
    let at = path.child("localhostProfile");
    let local = str_of(&profile.localhost_profile);
    required_one_of(errors, &path.child("type"), &profile.type_, PROFILE_TYPES);
    if profile.type_ == "Localhost" && local.trim().is_empty() {
        errors.push(FieldError::required(at, "must be set when AppArmor type is Localhost"));
    } else if profile.type_ != "Localhost" && profile.localhost_profile.is_some() {
        errors.push(FieldError::invalid(at, local, "can only be set when AppArmor type is Localhost"));
    }
}

/// Checks the security context of a container.
pub fn container(errors: &mut Errors, path: &Path, context: &SecurityContext, host_users: Option<bool>) {
    id(errors, &path.child("runAsUser"), context.run_as_user);
    id(errors, &path.child("runAsGroup"), context.run_as_group);
    if context.windows_options.is_some() {
        errors.push(FieldError::forbidden(path.child("windowsOptions"), NO_WINDOWS));
    }
    if let Some(mount) = &context.proc_mount {
        one_of(errors, &path.child("procMount"), mount, &["Default", "Unmasked"]);
        if mount == "Unmasked" && host_users != Some(false) {
            errors.push(FieldError::invalid(
                path.child("procMount"),
                mount.as_str(),
                "`hostUsers` must be false to use `Unmasked`",
            ));
        }
    }
    if context.allow_privilege_escalation == Some(false) {
        let value = || serde_json::to_value(context).unwrap_or(Value::Null);
        if context.privileged == Some(true) {
            let why = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
            errors.push(FieldError::invalid(path.clone(), value(), why));
        }
        let added = context.capabilities.as_ref().and_then(|capabilities| capabilities.add.as_ref());
        if added.is_some_and(|added| added.iter().any(|name| name == "CAP_SYS_ADMIN")) {
            let why = "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN";
            errors.push(FieldError::invalid(path.clone(), value(), why));
        }
    }
    if let Some(profile) = &context.seccomp_profile {
        seccomp(errors, &path.child("seccompProfile"), profile);
    }
    if let Some(profile) = &context.app_armor_profile {
        app_armor(errors, &path.child("appArmorProfile"), profile);
    }
}
